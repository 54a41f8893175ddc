"""What a provider is: a pure function and two calls.

``submit`` and ``poll`` never raise for anything the network or the service does: every such thing is a reply. They
raise ``CredentialsRefused`` only for what no retry can mend (a certificate that does not verify).
"""

from __future__ import annotations

from typing import Protocol

from batchrun.record import PollReply, Prompt, Settings, SubmitReply


class Provider(Protocol):
    """One service that accepts a request now and has its answer later."""

    retention_s: float
    """Seconds for which the service keeps a finished answer."""

    def build(self, prompt: Prompt, settings: Settings) -> bytes:
        """The request body (pure). The settings fill what the prompt leaves open."""
        ...

    async def submit(self, body: bytes, request_id: str) -> SubmitReply:
        """POST the body once: no redirect, no retry. ``request_id`` (a UUID) names the call to the vendor's support."""
        ...

    async def poll(self, operation_id: str) -> PollReply:
        """GET the operation once."""
        ...
