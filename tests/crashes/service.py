"""A service that survives every crash, and a clock that jumps over every wait: nothing here takes real time."""

from __future__ import annotations

import asyncio
import queue
import selectors
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

from batchrun.record import (
    Accepted,
    Ambiguous,
    Answer,
    Failure,
    Finished,
    NotFound,
    PollReply,
    Prompt,
    Refused,
    Settings,
    SubmitReply,
    Usage,
)
from batchrun.storage.thread import Storage
from tests.crashes import recorder as seen

PLAIN, LOST, FAILING = "plain", "lost", "failing"
RECORDS = (PLAIN, LOST, FAILING)
"""The job. PLAIN is refused once; the reply to LOST's first request is lost; FAILING's operation fails, and its first
request is answered late."""

ANSWERS = {PLAIN: "one", LOST: "two " * 40}
SLOW_REPLY_S = 6.0
STROKE_S = 5.0
LONGEST_RUN_S = 3600.0


class Service:
    """Remembers what it accepted. The reply to a poll comes with the next stroke of five seconds, so that two answers
    may arrive together and become one write.
    """

    retention_s = 3 * 24 * 3600.0

    def __init__(
        self, accepted: Sequence[seen.Accepted] = (), note: Callable[[seen.Event], None] | None = None
    ) -> None:
        self.accepted = list(accepted)
        self.polls = Counter[str]()
        self._note = note
        self._requests = Counter(event.record for event in accepted)

    @property
    def payments(self) -> Counter[str]:
        """How often each record was accepted, and so paid for."""
        return Counter(event.record for event in self.accepted)

    def build(self, prompt: Prompt, settings: Settings) -> bytes:
        return (prompt.text or "").encode()

    async def submit(self, body: bytes, request_id: str) -> SubmitReply:
        record = body.decode()
        self._requests[record] += 1
        if record == PLAIN and self._requests[record] == 1:
            self._tell(seen.TurnedAway(record))
            return Refused(429, "slower, please")
        event = seen.Accepted(record, f"operation-{len(self.accepted)}")
        self.accepted.append(event)
        self._tell(event)
        if self._requests[record] == 1 and record == LOST:
            return Ambiguous("connection lost")
        if self._requests[record] == 1 and record == FAILING:
            await asyncio.sleep(SLOW_REPLY_S)
        return Accepted(event.operation_id)

    async def poll(self, operation_id: str) -> PollReply:
        self.polls[operation_id] += 1
        self._tell(seen.Asked(operation_id))
        await asyncio.sleep(STROKE_S - asyncio.get_running_loop().time() % STROKE_S)
        records = [event.record for event in self.accepted if event.operation_id == operation_id]
        if not records:
            return NotFound()
        if records[0] == FAILING:
            return Finished(Failure("rejected", "this one fails"))
        return Finished(Answer(ANSWERS[records[0]], "stop", Usage(1, 2)))

    def _tell(self, event: seen.Event) -> None:
        if self._note is not None:
            self._note(event)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Clock:
    """The time of one run. It stands still while anything is done and jumps when all that is left is to wait."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.asked: _PatientQueue | None = None

    def monotonic(self) -> float:
        return self.now_s

    def loop(self) -> asyncio.AbstractEventLoop:
        return _Loop(self)

    def open_storage(self, *args: Any) -> Storage:
        asked = self.asked = _PatientQueue()
        with patch.object(queue, "SimpleQueue", lambda: asked):
            return Storage(*args)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop without threads of its own, on that clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._clock.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        future.set_result(func(*args))
        return future


class _Selector(selectors.DefaultSelector):
    """Asked to wait when the event loop has nothing left to do: first the storage thread gets its turn, then time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if self._clock.asked is not None and self._clock.asked.hand_over():
            return super().select()
        if timeout is None or self._clock.now_s > LONGEST_RUN_S:
            raise AssertionError("the run waits for what will never come")
        self._clock.now_s += timeout
        return []


class _PatientQueue(queue.SimpleQueue[Any]):
    """Hands the storage thread its requests when the event loop rests: so the same run makes the same batches."""

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._unanswered = 0

    def put(self, request: Any, block: bool = True, timeout: float | None = None) -> None:
        self._held.append(request)
        if request is None:  # the end: nobody rests any more
            self.hand_over()
        else:
            self._unanswered += 1
            request.future.add_done_callback(self._answered)

    def hand_over(self) -> bool:
        """Let go of what was asked meanwhile. Whether an answer is still to come."""
        while self._held:
            super().put(self._held.pop(0))
        return self._unanswered > 0

    def _answered(self, future: asyncio.Future[Any]) -> None:
        self._unanswered -= 1
