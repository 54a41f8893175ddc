"""What a provider is: two pure functions about bytes and two calls.

``build`` and ``read`` are pure, so each vendor file is tested by tables of bytes. ``submit`` and ``poll`` never raise
for anything the network or the service does: every such thing is a reply. They raise ``CredentialsRefused`` only for
what no retry can mend (a certificate that does not verify).
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from batchrun.record import PollReply, Prompt, Settings, SubmitReply


class Provider(Protocol):
    """One service that accepts a request now and has its answer later."""

    name: str
    retention_s: float
    """Seconds for which the service keeps a finished answer."""

    def build(self, prompt: Prompt, settings: Settings) -> bytes:
        """The request body. The settings fill what the prompt leaves open."""
        ...

    def read(self, body: bytes) -> PollReply:
        """What the body of a poll (HTTP 200) says."""
        ...

    async def submit(self, body: bytes, request_id: str) -> SubmitReply:
        """POST the body once: no redirect, no retry. ``request_id`` (a UUID) names the call to the vendor's support."""
        ...

    async def poll(self, operation_id: str) -> PollReply:
        """GET the operation once."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
