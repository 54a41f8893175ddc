"""The product with one safeguard left out, in this process only: what the enumerator must notice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from batchrun import recovery, tail
from batchrun.record import Accepted, Move, Record, State, SubmitReply
from batchrun.storage import jobdir, results
from batchrun.storage import ledger as books
from batchrun.storage.jobdir import JobPaths
from batchrun.storage.ledger import Ledger
from batchrun.storage.results import Results
from batchrun.storage.thread import Storage
from batchrun.submitter import Submitter

WRITE_NEW = results.write_new
Mutant = Callable[[], AbstractContextManager[Any]]


def no_sync_of_the_output_before_done() -> AbstractContextManager[Any]:
    return _without_sync("append")


def no_sync_of_the_tail_before_it_is_adopted() -> AbstractContextManager[Any]:
    return _without_sync("keep_until")


def _without_sync(method: str) -> AbstractContextManager[Any]:
    real = getattr(Results, method)

    def without_sync(self: Results, *args: Any) -> Any:
        with patch.object(results, "sync", lambda fd: None):
            return real(self, *args)

    return patch.object(Results, method, without_sync)


def no_sync_of_the_name_of_the_output() -> AbstractContextManager[Any]:
    return patch.object(results, "sync_directory", lambda path: None)


def no_sync_of_the_name_of_the_state() -> AbstractContextManager[Any]:
    return patch.object(jobdir, "sync_directory", lambda path: None)


def no_sync_of_a_name_that_is_found() -> AbstractContextManager[Any]:
    """The output's name is made durable only by the run that made the file."""
    real = Results.open

    def open_output(cls: type[Results], path: Path, *, create: bool) -> Results:
        if create:
            return real(path, create=True)
        with no_sync_of_the_name_of_the_output():
            return real(path, create=False)

    return patch.object(Results, "open", classmethod(open_output))


def no_quarantine() -> AbstractContextManager[Any]:
    return _without_quarantine(results)


def _without_quarantine(module: ModuleType) -> AbstractContextManager[Any]:
    def write(path: Path, pieces: Iterable[bytes], mode: int = 0o600) -> None:
        if path.parent.name != "quarantine":
            WRITE_NEW(path, pieces, mode)

    return patch.object(module, "write_new", write)


def no_look_at_the_tail() -> AbstractContextManager[Any]:
    return patch.object(tail, "walk_tail", lambda ledger, results, start, now: ([], start))


def no_flag_for_a_lost_reply() -> AbstractContextManager[Any]:
    return patch.object(recovery, "after_crash", lambda on_ambiguous: Move(State.NEW))


def done_before_the_output_is_written() -> AbstractContextManager[Any]:
    """The lines go to the output when their rows say DONE, not before."""
    commit = Storage._commit

    def commit_first(self: Storage, batch: list[Any]) -> None:
        later: list[bytes] = []

        def append(lines: list[bytes]) -> Any:
            at = self._results.end
            later.extend(lines)
            self._results.end += sum(map(len, lines))
            return [Results.place(line, at + sum(map(len, lines[:number]))) for number, line in enumerate(lines)]

        start = self._results.end
        with patch.object(self._results, "append", append):
            commit(self, batch)
        if later:
            self._results.end = start
            self._results.append(later)

    return patch.object(Storage, "_commit", commit_first)


def no_intent_before_the_post() -> AbstractContextManager[Any]:
    async def post_now(self: Submitter, record: Record, body: bytes) -> tuple[int, SubmitReply]:
        reply = await self._run.provider.submit(body, "request")
        seq = await self._run.storage.do(Ledger.record_intent, record, "request", time.time())
        self._run.backlog.has_row(record)
        if isinstance(reply, Accepted):
            await self._open(seq, reply.operation_id)
        self._note(record, reply, "request")
        return seq, reply

    return patch.object(Submitter, "_post_now", post_now)


def synchronous_normal() -> AbstractContextManager[Any]:
    real = Ledger.open

    def open_normal(cls: type[Ledger], path: Path) -> Ledger:
        ledger = real(path)
        ledger.connection.execute("PRAGMA synchronous = NORMAL")
        return ledger

    return patch.object(Ledger, "open", classmethod(open_normal))


def no_closing_commit() -> AbstractContextManager[Any]:
    real = recovery.close_the_books

    @contextmanager
    def rolled_back(self: Ledger) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        yield
        self.connection.execute("ROLLBACK")

    def close_the_books(*args: Any) -> int:
        with patch.object(Ledger, "transaction", rolled_back):
            return real(*args)

    return patch.object(recovery, "close_the_books", close_the_books)


def no_writing_of_the_log_anew() -> AbstractContextManager[Any]:
    """The ledger is taken as it is found."""
    return patch.object(jobdir, "write_anew", lambda fd, start, end: None)


def no_flag_for_what_is_sent_again() -> AbstractContextManager[Any]:
    return patch.object(books, "after_request", lambda *args, **named: Move(State.NEW))


def no_sync_of_the_new_output() -> AbstractContextManager[Any]:
    return patch.object(results, "sync", lambda fd: None)


def no_quarantine_for_what_is_taken_out() -> AbstractContextManager[Any]:
    return _without_quarantine(tail)


def no_end_of_what_a_crash_interrupted() -> AbstractContextManager[Any]:
    """A start does not look for a new output."""

    def find_output(ledger: Ledger, paths: JobPaths) -> Results | None:
        return tail.lock_output(paths) if os.path.lexists(paths.output) else None

    return patch.object(tail, "find_output", find_output)
