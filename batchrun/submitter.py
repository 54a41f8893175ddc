"""Records -> provider -> operation IDs in the ledger."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from dataclasses import replace

from batchrun.channel import Channel
from batchrun.errors import CredentialsRefused, NoSuccess, UsageProblem
from batchrun.log import event
from batchrun.pacing import Gate, Pacer, backoff_s, submit_wait_s, with_jitter_s
from batchrun.record import (
    STOPS_THE_RUN,
    Accepted,
    Ambiguous,
    Record,
    Refused,
    State,
    SubmitReply,
    Unreachable,
    after_submit,
    is_passing,
)
from batchrun.redact import without_echo
from batchrun.run import Run
from batchrun.storage.ledger import Ledger
from batchrun.tracker import Tracker

ALIKE_AT_THE_START = 3


class Submitter:
    """Sends each record of a channel, several at a time; one at a time until the service has accepted one."""

    def __init__(self, run: Run, pacer: Pacer, tracker: Tracker) -> None:
        """``tracker`` is told of each acceptance, once it is on disk."""
        self._run = run
        self._stop = run.stop
        self._pacer = pacer
        self._tracker = tracker
        self._gate = Gate()
        self._turn = asyncio.Lock()
        self._proven = False
        self._refused_status = 0
        self._refused_alike = 0
        self._failed_first: list[int] = []
        self._said_first = ""
        self._first_post = True
        self._trouble = ""

    async def run(self, records: Channel[Record]) -> None:
        """Send until the channel is closed and empty, or the stop is requested."""
        try:
            await self._tracker.looked_at_all.wait()  # answers before new submissions: they expire
            async with asyncio.TaskGroup() as group:
                for number in range(self._run.config.concurrency):
                    group.create_task(self._work(records), name=f"submitter-{number}")
            if self._failed_first and not await self._run.storage.do(Ledger.has_operations):
                await self._take_back()  # fewer than it takes, and all there are
        finally:
            self._tracker.expect_no_more()

    def waits_for(self) -> str:
        """What holds the next submission back, in a few words."""
        now = time.monotonic()
        if self._gate.is_closed:
            return f"{self._trouble}; next try in {max(0.0, self._gate.wait_s(now)):.0f} s"
        return self._pacer.limited_by(now) if self._has_room() else ""

    def _has_room(self) -> bool:
        return self._run.disk.has_room and self._tracker.has_room()

    async def _work(self, records: Channel[Record]) -> None:
        while (record := await records.get()) is not None:
            await self._send(record)

    async def _send(self, record: Record) -> None:
        """Send one record until it is accepted or settled."""
        body = self._run.provider.build(record.prompt, self._run.config.settings)
        refusals = tries = 0
        while (sent := await self._post(record, body)) is not None:
            seq, reply = sent
            if isinstance(reply, Accepted):
                return
            tries += 1
            if isinstance(reply, Refused):
                refusals += is_passing(reply) and not self._gate.is_closed
                reply = replace(reply, message=without_echo(reply.message, body.decode()))
            move = after_submit(reply, record.history, refusals, self._run.config.on_ambiguous)
            await self._run.storage.do(Ledger.move, seq, State.INTENT, move, time.time())
            if isinstance(reply, Refused):
                await self._mind_refusal(seq, reply, failed=move.to is State.FAILED)
            if move.to is not State.NEW:
                self._run.backlog.settled(move.to)
                return
            record = replace(record, seq=seq, history=record.history.after(move))
            if not (isinstance(reply, Refused) and reply.status == 429):  # then the pacer slows every worker at once
                await self._stop.sleep(backoff_s(tries, random.random()))

    async def _post(self, record: Record, body: bytes) -> tuple[int, SubmitReply] | None:
        """Wait for a permit, then send. None if the run stops first."""
        async with self._turn:
            if not await self._permit():
                return None
            if self._gate.is_closed or not self._proven:
                return await self._post_now(record, body)  # nobody else sends meanwhile
        return await self._post_now(record, body)

    async def _permit(self) -> bool:
        while not self._stop.is_requested:
            now = time.monotonic()
            wait_s = submit_wait_s(now, self._pacer, self._gate, self._has_room)
            if wait_s <= 0:
                self._pacer.take(now)
                return True
            await self._stop.sleep(wait_s)
        return False

    async def _post_now(self, record: Record, body: bytes) -> tuple[int, SubmitReply]:
        request_id = str(uuid.UUID(int=random.getrandbits(128), version=4))
        seq = await self._run.storage.do(Ledger.record_intent, record, request_id, time.time())
        self._run.backlog.has_row(record)
        if self._first_post:
            self._first_post = False
            event("first_post", line=record.place.line)
        try:
            reply = await self._run.provider.submit(body, request_id)
        except CredentialsRefused as problem:  # not our peer: nothing left
            self._stop.request(problem)
            reply = Unreachable(problem.cause)
        if isinstance(reply, Accepted):
            await self._open(seq, reply.operation_id)
        self._note(record, reply, request_id)
        return seq, reply

    async def _open(self, seq: int, operation_id: str) -> None:
        if await self._run.storage.do(Ledger.record_operation, seq, operation_id, time.time()):
            self._tracker.add(seq, operation_id, time.monotonic())
        else:
            self._run.backlog.settled(State.HELD)
            event("operation_given_twice", logging.WARNING, operation_id=operation_id)

    def _note(self, record: Record, reply: SubmitReply, request_id: str) -> None:
        """Tell pacer, gate and outage what the reply says about the service."""
        now = time.monotonic()
        event("posted", logging.DEBUG, line=record.place.line, reply=type(reply).__name__, request_id=request_id)
        match reply:
            case Accepted():
                self._proven = True
                self._pacer.accepted(now)
                self._gate.accepted()
                self._run.outage.succeeded()
            case Refused(status=429):
                self._pacer.refused(now, with_jitter_s(reply.retry_after_s, random.random()))
            case Ambiguous(reason) | Unreachable(reason):
                self._failed(now, reason)
            case Refused() if is_passing(reply):
                self._failed(now, f"HTTP {reply.status}")

    def _failed(self, now: float, reason: str) -> None:
        self._trouble = reason
        self._gate.failed(now)
        if self._run.outage.failed(now):
            self._stop.request(NoSuccess(self._run.outage.limit_s, reason))

    async def _mind_refusal(self, seq: int, reply: Refused, *, failed: bool) -> None:
        """Stop the run where a refusal speaks of the run and not of the record: a typo must not fail a million."""
        if reply.status in STOPS_THE_RUN:
            self._stop.request(_refused_credentials(reply))
        if self._proven or reply.status == 429:
            return
        if reply.status != self._refused_status:
            self._refused_status, self._refused_alike = reply.status, 0
            self._failed_first.clear()
        self._refused_alike += 1
        self._said_first = f"{reply.status}: {reply.message}"
        if failed:
            self._failed_first.append(seq)
        if self._refused_alike >= ALIKE_AT_THE_START:
            await self._take_back()

    async def _take_back(self) -> None:
        """Stop, and let what was refused be NEW: it may well be accepted once the settings are right."""
        asked = f"the first {self._refused_alike} requests alike" if self._refused_alike > 1 else "the request"
        cause = f"the service refused {asked} ({self._said_first})"
        remedy = "see to --model, YC_FOLDER_ID and --endpoint, then run again; this run got nothing accepted"
        self._stop.request(UsageProblem(cause, remedy=remedy))
        while self._failed_first:
            await self._run.storage.do(Ledger.reopen, self._failed_first.pop())
            self._run.backlog.counts[State.FAILED] -= 1


def _refused_credentials(reply: Refused) -> CredentialsRefused:
    if reply.status == 401:
        cause = f"the service refused the key (401: {reply.message})"
        remedy = "set YC_API_KEY or YC_IAM_TOKEN anew and run the same command; what was answered is safe"
    else:
        cause = f"the key's account may not use models in this folder (403: {reply.message})"
        remedy = "it needs the role ai.languageModels.user there and an active billing account, or set YC_FOLDER_ID"
    return CredentialsRefused(cause, remedy=remedy)
