"""The one storage thread: it alone touches the ledger and the output while a job runs.

It takes whatever has arrived since its last commit, appends and syncs the result lines first, then commits everything
in one transaction. There is no timer and no batch size: while one commit is on its way, the next batch gathers.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple

from batchrun.record import Usage
from batchrun.storage.ledger import Ledger
from batchrun.storage.results import Results, writing

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class Line:
    """A result on its way to the output: the bytes with their LF, and what the DONE row will say."""

    seq: int
    operation_id: str
    data: bytes
    usage: Usage
    finished_at: float


def _lines(ledger: Ledger, *lines: Line) -> None:
    """The step of lines: they are appended before the transaction begins, and DONE at its end."""


@dataclass(eq=False, slots=True)
class _Request:
    """Something the thread is asked to do, and the future that waits for it to be durable."""

    step: Callable[..., Any]
    given: tuple[Any, ...]
    future: asyncio.Future[Any]
    value: Any = None


class Storage:
    """The asynchronous face of ledger and output. Every awaited call returns when its effect is durable.

    The first failure is final: nothing is tried again on a disk that has lied once, and every later call raises it.
    """

    def __init__(self, ledger: Ledger, results: Results) -> None:
        self._ledger = ledger
        self._results = results
        self._arrived: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="storage", daemon=True)
        self._thread.start()

    def do(self, step: Callable[[Ledger, *Ts], T], *given: *Ts) -> asyncio.Future[T]:
        """Run one method of the ledger in the next transaction: ``await storage.do(Ledger.row, 17)``."""
        request = _Request(step, given, self._loop.create_future())
        self._arrived.put(request)
        return request.future

    def write_lines(self, lines: Sequence[Line]) -> asyncio.Future[None]:
        """Append the lines, sync them, and make their records DONE."""
        return self.do(_lines, *lines)

    def close(self) -> None:
        """Finish what has arrived and stop the thread. Ledger and output stay open."""
        self._arrived.put(None)
        self._thread.join()

    # --- in the thread ---

    def _work(self) -> None:
        arrived: list[_Request | None] = []
        while None not in arrived:
            arrived = [self._arrived.get()]
            while not self._arrived.empty():
                arrived.append(self._arrived.get())
            if batch := [request for request in arrived if request is not None]:
                if self._failure is None:
                    self._commit(batch)
                self._loop.call_soon_threadsafe(_resolve, batch, self._failure)

    def _commit(self, batch: list[_Request]) -> None:
        """Operation IDs go first: one that is not on disk is money lost. What many ask alike is one statement: each
        statement makes the event loop wait.

        IDs that came with a batch that failed still go to disk, each by itself, if it takes them. Those it does not
        take are found INTENT by the next start, which says so.
        """
        urgent = [request for request in batch if request.step is Ledger.record_operation]
        intents = [request for request in batch if request.step is Ledger.record_intent]
        lines = [line for request in batch if request.step is _lines for line in request.given]
        try:
            with writing(self._results.path):
                places = self._results.append([line.data for line in lines]) if lines else []
            with self._ledger.transaction():
                _answer_all(urgent, self._ledger.record_operations)
                _answer_all(intents, self._ledger.record_intents)
                for request in batch:
                    if request.step not in (Ledger.record_operation, Ledger.record_intent):
                        request.value = request.step(self._ledger, *request.given)
                if lines:
                    done = zip(lines, places, strict=True)
                    self._ledger.record_done(
                        [(line.seq, line.operation_id, at, line.usage, line.finished_at) for line, at in done]
                    )
        except BaseException as failure:
            self._failure = failure
            for request in urgent:
                with suppress(Exception), self._ledger.transaction():
                    self._ledger.record_operation(*request.given)


def _answer_all(requests: list[_Request], step: Callable[[list[Any]], list[Any]]) -> None:
    if requests:
        for request, value in zip(requests, step([request.given for request in requests]), strict=True):
            request.value = value


def _resolve(batch: list[_Request], failure: BaseException | None) -> None:
    for request in batch:
        if request.future.cancelled():
            continue
        if failure is None:
            request.future.set_result(request.value)
        else:
            request.future.set_exception(failure)
