"""What the emulated service remembers: accepted operations, who paid for them, and how fast requests came."""

import os
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson

from . import shapes
from .faults import Ending
from .requests import CompletionRequest

KEPT_CHARACTERS = 200
ID_ALPHABET = "0123456789abcdefghijklmnopqrstuv"


@dataclass(slots=True)
class DistinctRequest:
    """One request body and everything that was accepted for it. Most of the prompt is not kept."""

    digest: bytes
    text: str  # the first 200 characters of the last message
    characters: int
    times_seen: int = 0  # drawn for, accepted or not
    failures: int = 0
    operation_ids: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        return self.digest.hex()


@dataclass(slots=True)
class Operation:
    """One accepted operation. Its end is settled at acceptance, by the wall clock: it survives a restart."""

    id: str
    request: DistinctRequest
    occurrence: int  # how many times its request had been seen before
    accepted_at: float
    finishes_at: float
    ending: Ending
    fail_code: int
    polls: int = 0

    def is_done(self, now: float) -> bool:
        return self.ending is not Ending.STUCK and now >= self.finishes_at

    def is_known(self, now: float, retention_s: float) -> bool:
        return self.ending is not Ending.MISSING and now < self.accepted_at + retention_s


def operation_document(operation: Operation, *, done: bool) -> shapes.Json:
    """The Operation as the service shows it, with its result when it is done."""
    modified_at = operation.finishes_at if done else operation.accepted_at
    document = shapes.operation(operation.id, created_at=operation.accepted_at, modified_at=modified_at, done=done)
    if not done or operation.ending is Ending.NEITHER:
        return document
    if operation.ending is Ending.FAIL:
        return {**document, "error": shapes.failure(operation.fail_code)}
    return {**document, "response": _completion(operation)}


def _completion(operation: Operation) -> shapes.Json:
    request = operation.request
    text, status = shapes.answer_text(request.text, request.sha256), "FINAL"
    if operation.ending is Ending.FILTER:
        text, status = shapes.FILTERED_TEXT, "CONTENT_FILTER"
    elif operation.ending is Ending.TRUNCATE:
        text, status = text[: len(text) // 2], "TRUNCATED_FINAL"
    return shapes.completion(text, status=status, prompt_characters=request.characters)


class Journal:
    """One line per accepted operation. No fsync: it stands in for a remote machine, which no SIGKILL of ours
    reaches; what the kernel has is safe enough."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(self._file, 0o600)

    def lines(self) -> Iterator[bytes]:
        """The lines written so far. A last line without its end was never answered for: it is cut off."""
        whole_bytes = 0
        with open(self._file, "rb", closefd=False) as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, whole_bytes)
                    return
                whole_bytes += len(line)
                yield line

    def append(self, line: bytes) -> None:
        if os.write(self._file, line) != len(line):
            raise OSError(f"journal `{self._path}` could not be written: is the disk full?")

    def close(self) -> None:
        os.close(self._file)


class Book:
    """All operations and payments; with a journal it is as it was after any kill."""

    def __init__(self, journal: Journal | None) -> None:
        self.operations: dict[str, Operation] = {}
        self.distinct_paid = 0
        self.latest_id: str | None = None
        self._requests: dict[bytes, DistinctRequest] = {}
        self._journal = journal

    @classmethod
    def open(cls, path: Path | None) -> Self:
        """A book over the journal at ``path``, with everything that stands in it.

        Raises:
            ValueError: a line is not one that an emulator wrote.
        """
        if path is None:
            return cls(None)
        journal = Journal(path)
        book = cls(journal)
        for number, line in enumerate(journal.lines(), start=1):
            try:
                book._restore(orjson.loads(line))
            except (ValueError, KeyError, TypeError) as exc:
                journal.close()
                raise ValueError(f"{path}:{number}: not a line of an emulator's journal") from exc
        return book

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def meet(self, request: CompletionRequest) -> DistinctRequest:
        """The memory of this distinct request, made on first sight."""
        known = self._requests.get(request.digest)
        if known is None:
            text = request.text[:KEPT_CHARACTERS]
            known = self._requests[request.digest] = DistinctRequest(request.digest, text, request.characters)
        return known

    def accept(self, operation: Operation) -> None:
        """Take an operation for good: it is in the journal when this returns."""
        if self._journal is not None:
            self._journal.append(_journal_line(operation))
        self._remember(operation)

    def _remember(self, operation: Operation) -> None:
        request = operation.request
        self.distinct_paid += not request.operation_ids
        request.operation_ids.append(operation.id)
        request.failures += operation.ending is Ending.FAIL
        self.operations[operation.id] = operation
        self.latest_id = operation.id

    def _restore(self, line: dict[str, Any]) -> None:
        digest = bytes.fromhex(line["request"])
        request = self._requests.get(digest)
        if request is None:
            request = self._requests[digest] = DistinctRequest(digest, line["text"], line["characters"])
        request.times_seen = max(request.times_seen, line["occurrence"] + 1)
        self._remember(
            Operation(
                id=line["id"],
                request=request,
                occurrence=line["occurrence"],
                accepted_at=line["accepted_at"],
                finishes_at=line["finishes_at"],
                ending=Ending(line["ending"]),
                fail_code=line["fail_code"],
            )
        )

    def payments(self) -> list[dict[str, Any]]:
        """One entry per distinct request that was accepted at least once: a count above 1 was paid twice."""
        return [
            {
                "request": request.sha256,
                "text": request.text,
                "count": len(request.operation_ids),
                "operation_ids": request.operation_ids,
            }
            for request in self._requests.values()
            if request.operation_ids
        ]


def _journal_line(operation: Operation) -> bytes:
    request = operation.request
    line = {
        "id": operation.id,
        "request": request.sha256,
        "text": request.text,
        "characters": request.characters,
        "occurrence": operation.occurrence,
        "accepted_at": operation.accepted_at,
        "finishes_at": operation.finishes_at,
        "ending": operation.ending.value,
        "fail_code": operation.fail_code,
    }
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


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
