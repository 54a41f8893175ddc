"""Everything a job keeps on disk: the only code that touches SQL or the job's files."""
