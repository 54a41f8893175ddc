"""The services batchrun can talk to. Nothing here is imported before there is something to send or to fetch."""
