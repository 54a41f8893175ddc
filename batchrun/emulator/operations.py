"""What the emulated service remembers: accepted operations, that is payments; and what a quota makes of the past."""

import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from .faults import Draws, ending, latency_s
from .requests import Request


@dataclass(frozen=True, slots=True)
class Operation:
    """One accepted operation, and its line in the journal; ``request`` is the SHA-256 of the body that asked for it.

    Its end is settled at acceptance, by the wall clock: it survives a restart.
    """

    id: str
    request: str
    text: str  # the first 200 characters of the last message, or of the request: most of the prompt is not kept
    characters: int
    occurrence: int  # how many times its request had been seen before
    accepted_at: float
    finishes_at: float
    ending: str
    fail_code: int
    api: str


class Book:
    """All operations and payments; with a journal it is as it was after any kill.

    The journal is never synced: it stands in for a remote machine, which no SIGKILL of ours reaches; what the kernel
    has is safe enough. No journal is a null device.

    Raises:
        ValueError: the journal holds a line that no emulator wrote.
        OSError: the journal cannot be opened, or is a link.
    """

    def __init__(self, journal: Path | None) -> None:
        self.operations: dict[str, Operation] = {}
        self.seen = Counter[str]()  # by request: how often it was drawn for, accepted or not
        self._path = journal or Path(os.devnull)
        with self._journal() as lines:
            lines.seek(0)
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):  # torn, so it was never answered for
                    lines.truncate(lines.tell() - len(line))
                    return
                try:
                    self._remember(Operation(**orjson.loads(line)))
                except (ValueError, TypeError) as exc:
                    raise ValueError(f"{self._path}:{number}: not a line of an emulator's journal") from exc

    def _journal(self) -> BinaryIO:
        return open(self._path, "a+b", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o600))

    def accept(self, request: Request, draws: Draws) -> Operation:
        """Take a request for good: it is paid for, and in the journal, when this returns."""
        now = time.time()
        operation = Operation(
            # Random, never from the seed: an emulator that lost its journal must not know an old id by accident.
            id="d7q" + "".join(random.choices("0123456789abcdefghijklmnopqrstuv", k=17)),  # [R] of text generation
            request=request.sha256,
            text=request.text[:200],
            characters=request.characters,
            occurrence=draws.occurrence,
            accepted_at=now,
            finishes_at=now + latency_s(draws),
            ending=ending(draws),
            fail_code=draws.settings.fail_code,
            api=request.api,
        )
        with self._journal() as lines:
            lines.write(orjson.dumps(operation, option=orjson.OPT_APPEND_NEWLINE))
        self._remember(operation)
        return operation

    def _remember(self, operation: Operation) -> None:
        self.seen[operation.request] = max(self.seen[operation.request], operation.occurrence + 1)
        self.operations[operation.id] = operation

    def payments(self) -> list[dict[str, Any]]:
        """One entry per distinct request that was accepted: a count above 1 was paid twice."""
        counts = Counter((each.request, each.text) for each in self.operations.values())
        return [{"request": request, "text": text, "count": count} for (request, text), count in counts.items()]


def is_used_up(quota: int, admitted_at: Sequence[float], *, span_s: float, now: float) -> bool:
    """Whether as many as the quota allows were admitted within the last ``span_s`` seconds; 0 = no quota."""
    return 0 < quota <= len(admitted_at) and now - admitted_at[-quota] < span_s
