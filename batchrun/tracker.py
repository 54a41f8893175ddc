"""Open operations -> provider -> outcomes, under one read budget."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchrun.channel import Channel
from batchrun.errors import CredentialsRefused, NoSuccess
from batchrun.log import event
from batchrun.pacing import LAPSES_SOON_S, Due, Pacer, Polls, backoff_s, with_jitter_s
from batchrun.record import (
    STOPS_THE_RUN,
    Answer,
    Failure,
    Malformed,
    NotFound,
    PollAgain,
    PollFailed,
    PollPolicy,
    PollReply,
    State,
    after_failure,
    decide,
)
from batchrun.redact import without_echo
from batchrun.run import Run
from batchrun.storage.ledger import Ledger

MAX_OPEN = 5000
TIMER_GRAIN_S = 0.05
STRANGERS_IN_A_ROW = 3
FAILURES_THAT_SLOW = 5


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer on its way to the writer."""

    seq: int
    operation_id: str
    answer: Answer


class Tracker:
    """Polls every open operation until it is settled, twice as many at a time as the submitter sends."""

    def __init__(self, run: Run, operations: Sequence[tuple[int, str, float]]) -> None:
        """``operations``: (seq, ID, accepted at in Unix seconds) of an earlier run, oldest first: polled at once."""
        self._run = run
        self._stop = run.stop
        self._pacer = Pacer(run.config.read_rps)
        self._policy = PollPolicy(run.provider.retention_s)
        self._last_policy = self._policy.at_the_end()
        now, wall = time.monotonic(), time.time()
        earlier = [(now, seq, id_, now - max(0.0, wall - at)) for seq, id_, at in operations]
        self._polls = Polls(self._pacer, run.provider.retention_s, earlier)
        self.lapse_from: float | None = None  # Unix seconds, once it is near
        self._polling = 0
        self._turn = asyncio.Lock()
        self._failures_in_a_row = 0
        self._trouble_since: dict[int, float] = {}
        self._strangers: set[int] = set()
        self._has_found_one = False
        self._first_look = {seq for seq, _, _ in operations}
        self.looked_at_all = asyncio.Event()
        self._all_sent = False
        self._mark_looked_at(-1)

    def __len__(self) -> int:
        """Operations open right now."""
        return len(self._polls) + self._polling

    @property
    def troubled(self) -> int:
        """Open operations that the service does not find, or calls finished without an answer; asked for 10 minutes."""
        return len(self._trouble_since)

    def has_room(self) -> bool:
        """Whether one more operation may be opened."""
        return len(self) < MAX_OPEN and self._polls.has_time(time.monotonic())

    def add(self, seq: int, operation_id: str, accepted_at: float) -> None:
        """A new operation; its first poll is due after ``min_gap_s``."""
        self._polls.add((accepted_at + self._policy.gap_s(0.0), seq, operation_id, accepted_at))

    def expect_no_more(self) -> None:
        """No operation will be added: once none is open, all is done."""
        self._all_sent = True

    async def run(self, out: Channel[Answered]) -> None:
        """Poll until all is sent and nothing is open, or the stop is requested. Closes ``out``."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(2 * self._run.config.concurrency):
                    group.create_task(self._work(out), name=f"tracker-{number}")
        finally:
            out.close()

    async def _work(self, out: Channel[Answered]) -> None:
        while True:
            async with self._turn:
                operation = await self._next()
                if operation is None:
                    return
                self._polling += 1
            await self._poll(operation, out)
            self._polling -= 1

    async def _next(self) -> Due | None:
        """The operation that has been due longest, once the read budget allows. None at the end."""
        while not self._stop.is_requested:
            now = time.monotonic()
            self._mind_lapse(now)
            wait_s = self._polls.wait_s(now)
            if wait_s <= 0:
                return self._polls.take(now)
            if self._all_sent and not len(self):
                return None
            await self._stop.sleep(min(wait_s, TIMER_GRAIN_S))
        return None

    async def _poll(self, operation: Due, out: Channel[Answered]) -> None:
        due_at, seq, operation_id, accepted_at = operation
        try:
            reply = await self._run.provider.poll(operation_id)
        except CredentialsRefused as problem:
            self._stop.request(problem)
            reply = PollFailed(problem.cause)
        now = time.monotonic()
        age_s = now - accepted_at
        event("polled", logging.DEBUG, operation_id=operation_id, reply=type(reply).__name__)
        self._note(seq, reply, now, age_s)
        policy = self._last_policy if self._run.backlog.unsettled == len(self) else self._policy  # all of it is open
        match decide(reply, age_s=age_s, trouble_s=self._trouble_s(seq, reply, now), policy=policy):
            case PollAgain(after_s):
                if isinstance(reply, PollFailed):
                    after_s += backoff_s(1, random.random())
                    if reply.status == 429:  # it says nothing of the operation, which keeps its turn; the pacer waits
                        after_s = due_at - now
                self._polls.add((now + after_s, seq, operation_id, accepted_at))
            case Answer() as answer:
                await out.put(Answered(seq, operation_id, answer), len(answer.text or ""))
                self._run.backlog.settled(State.DONE)
            case Failure() as failure:
                await self._fail(seq, failure)
        self._mark_looked_at(seq)

    def _note(self, seq: int, reply: PollReply, now: float, age_s: float) -> None:
        """Tell pacer and outage what the reply says about the service; stop where it speaks of all operations."""
        outage = self._run.outage
        if not isinstance(reply, PollFailed):
            self._failures_in_a_row = 0
            outage.succeeded()
            self._pacer.accepted(now)
            self._mind_strangers(seq, reply, age_s)
            return
        self._failures_in_a_row += 1
        if reply.status == 429 or self._failures_in_a_row >= FAILURES_THAT_SLOW:
            self._pacer.refused(now, with_jitter_s(reply.retry_after_s, random.random()))
        if reply.status in STOPS_THE_RUN:
            cause = f"the service refuses to show our operations ({reply.status}: {reply.reason})"
            remedy = "set YC_API_KEY or YC_IAM_TOKEN anew and run the same command; answers are kept for days"
            self._stop.request(CredentialsRefused(cause, remedy=remedy))
        elif reply.status != 429 and outage.failed(now):
            self._stop.request(NoSuccess(outage.limit_s, reply.reason))

    def _mind_lapse(self, now: float) -> None:
        left_s = self._polls.lapse_at(now) - now
        if self.lapse_from is None and left_s < LAPSES_SOON_S:
            self.lapse_from = time.time() + left_s
            event("answers_lapse_soon", logging.WARNING, open=len(self), first_in_s=round(left_s))

    def _mind_strangers(self, seq: int, reply: PollReply, age_s: float) -> None:
        """Many operations unknown at once: wrong key or folder, and no reason to give any of them up."""
        if not isinstance(reply, NotFound):
            self._has_found_one = True  # this is the right key
        if self._has_found_one or not self._policy.settling_in_s <= age_s < self._policy.retention_s:
            return
        self._strangers.add(seq)
        if len(self._strangers) >= STRANGERS_IN_A_ROW:
            remedy = "is this the key of the account that sent them? They stay open; run again with it"
            self._stop.request(
                CredentialsRefused(f"the service finds none of {STRANGERS_IN_A_ROW} operations", remedy=remedy)
            )

    def _trouble_s(self, seq: int, reply: PollReply, now: float) -> float:
        if not isinstance(reply, NotFound | Malformed):
            self._trouble_since.pop(seq, None)
            return 0.0
        return now - self._trouble_since.setdefault(seq, now)

    async def _fail(self, seq: int, failure: Failure) -> None:
        self._trouble_since.pop(seq, None)
        row = await self._run.storage.do(Ledger.row, seq)
        sent = os.pread(self._run.source.fd, row.place.length, row.place.offset).decode(errors="replace")
        move = after_failure(replace(failure, message=without_echo(failure.message, sent)), row.history)
        await self._run.storage.do(Ledger.move, seq, State.OPEN, move, time.time())
        event("operation_failed", logging.DEBUG, line=row.place.line, kind=failure.kind, code=failure.code, to=move.to)
        if move.to is State.NEW:
            self._run.backlog.give_back(seq, backoff_s(move.adds_failed_operation, random.random()))
        else:
            self._run.backlog.settled(move.to)

    def _mark_looked_at(self, seq: int) -> None:
        self._first_look.discard(seq)
        if not self._first_look:
            self.looked_at_all.set()
