"""What the emulated service remembers: accepted operations, who paid for them, and how fast requests came."""

import os
import random
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from .faults import Ending

KEPT_CHARACTERS = 200
ID_ALPHABET = "0123456789abcdefghijklmnopqrstuv"


@dataclass(frozen=True, slots=True)
class Operation:
    """One accepted operation, and its line in the journal; ``request`` is the SHA-256 of the body that asked for it.

    Its end is settled at acceptance, by the wall clock: it survives a restart.
    """

    id: str
    request: str
    text: str  # the first 200 characters of the last message: most of the prompt is not kept
    characters: int
    occurrence: int  # how many times its request had been seen before
    accepted_at: float
    finishes_at: float
    ending: Ending
    fail_code: int

    def is_done(self, now: float) -> bool:
        return self.ending is not Ending.STUCK and now >= self.finishes_at

    def is_known(self, now: float, retention_s: float) -> bool:
        return self.ending is not Ending.MISSING and now < self.accepted_at + retention_s


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
        self.paid: defaultdict[str, list[str]] = defaultdict(list)  # by request, as the two below: ids of operations
        self.seen = Counter[str]()  # drawn for, accepted or not
        self.failures = Counter[str]()
        self._path = journal or os.devnull
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if journal is not None:
            os.fchmod(self._file, 0o600)
            self._restore()

    def _restore(self) -> None:
        whole_bytes = 0
        with open(self._file, "rb", closefd=False) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):  # torn, so it was never answered for
                    os.ftruncate(self._file, whole_bytes)
                    return
                whole_bytes += len(line)
                try:
                    fields = orjson.loads(line)
                    operation = Operation(**{**fields, "ending": Ending(fields["ending"])})
                    self.seen[operation.request] = max(self.seen[operation.request], operation.occurrence + 1)
                except (ValueError, KeyError, TypeError) as exc:
                    self.close()
                    raise ValueError(f"{self._path}:{number}: not a line of an emulator's journal") from exc
                self._remember(operation)

    def close(self) -> None:
        os.close(self._file)

    def accept(self, operation: Operation) -> None:
        """Take an operation for good: it is in the journal when this returns."""
        line = orjson.dumps(operation, option=orjson.OPT_APPEND_NEWLINE)
        if os.write(self._file, line) != len(line):
            raise OSError(f"journal `{self._path}` could not be written: is the disk full?")
        self._remember(operation)

    def _remember(self, operation: Operation) -> None:
        self.operations[operation.id] = operation
        self.paid[operation.request].append(operation.id)
        if operation.ending is Ending.FAIL:
            self.failures[operation.request] += 1

    def payments(self) -> list[dict[str, Any]]:
        """One entry per distinct request that was accepted at least once: a count above 1 was paid twice."""
        return [
            {"request": request, "text": self.operations[ids[0]].text, "count": len(ids), "operation_ids": ids}
            for request, ids in self.paid.items()
        ]


def new_operation_id() -> str:
    """``d7q`` and 17 characters of ``0-9a-v``, as text generation gives them [R].

    Random, never from the seed: an emulator that lost its journal must not know an old id by accident.
    """
    return "d7q" + "".join(random.choices(ID_ALPHABET, k=17))


class SlidingWindow:
    """Events of the last ``span_s`` seconds, and the most there ever were in such a span."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._events: deque[float] = deque()
        self.busiest = 0

    def has_room(self, now: float, limit: int) -> bool:
        """Whether one more event keeps within ``limit``; 0 is no limit."""
        return limit == 0 or self._count(now) < limit

    def add(self, now: float) -> None:
        self._events.append(now)
        self.busiest = max(self.busiest, self._count(now))

    def _count(self, now: float) -> int:
        while self._events and self._events[0] <= now - self._span_s:
            self._events.popleft()
        return len(self._events)
