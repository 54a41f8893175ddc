"""Input file -> records still to be sent, into the bounded submit queue."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import aiofiles

from batchrun.channel import Channel
from batchrun.check import BLOCK_BYTES, TOO_LONG, is_record, prefix_digest, state_of
from batchrun.errors import InputProblem
from batchrun.inputs import Parsed
from batchrun.lines import BadLine, Line, LineSplitter, digest
from batchrun.log import event
from batchrun.record import Failure, History, Place, Record, State
from batchrun.run import Run
from batchrun.storage.ledger import Ledger


class Reader:
    """Reads what has no row yet, and again what comes back. Holds no more than a block and one record."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._source = source = run.source
        self._splitter = LineSplitter(offset=source.first_offset, number=source.first_line)
        self._seen = source.checked and source.checked[0]

    async def run(self, out: Channel[Record]) -> None:
        """Put every record still to be sent into the channel, and close it when none can come any more."""
        try:
            async for record in self._records():
                self._run.backlog.read(record)
                if not await out.put(record, record.place.length):
                    return
        except InputProblem as problem:
            self._run.stop.request(problem)
        finally:
            out.close(discard=self._run.stop.is_requested)

    async def _records(self) -> AsyncIterator[Record]:
        if not self._source.end:  # only answers are fetched, or there is nothing
            return
        for seq in await self._run.storage.do(Ledger.seqs_to_send, self._source.end):
            yield await self._again(seq)
        async for line in self._lines_without_row():
            while (returned := self._run.backlog.take_returned()) is not None:
                yield await self._again(returned)
            record = await self._record(line)
            if record is not None:
                yield record
        while (returned := await self._run.backlog.wait_for_returned()) is not None:
            yield await self._again(returned)
        await self._save_low_water()

    async def _again(self, seq: int) -> Record:
        """A record that has a row, read again from its place."""
        row = await self._run.storage.do(Ledger.row, seq)
        raw = os.pread(self._source.fd, row.place.length, row.place.offset)
        if digest(raw) != row.digest:
            raise self._changed()
        try:
            parsed = await self._parsed(raw)
        except BadLine as bad:
            remedy = "it was good when it was first read: go on with the batchrun and Jinja2 of then, or another -o"
            raise InputProblem(f"{self._source.path}:{row.place.line}: {bad}", remedy=remedy) from bad
        history = row.history
        if parsed.maybe_paid:  # a failures file, which may say more by now than at the first sending
            here = min(history.maybe_paid, history.attempt - 1 - history.failed_operations)  # at most
            history = replace(history, maybe_paid=max(history.maybe_paid, parsed.maybe_paid + here))
        return Record(row.place, parsed.id, row.digest, parsed.prompt, row.seq, history)

    async def _lines_without_row(self) -> AsyncIterator[Line]:
        known_until = await self._run.storage.do(Ledger.last_line)
        async for lines in self._blocks():
            known: set[int] = set()
            if lines and lines[0].number <= known_until:
                known = await self._run.storage.do(Ledger.lines_known, lines[0].number, lines[-1].number)
            for line in lines:
                if line.number not in known and is_record(line):
                    yield line
            await self._save_low_water()

    async def _save_low_water(self) -> None:
        await self._run.storage.do(Ledger.save_low_water, *self._run.backlog.low_water(*self._splitter.position))

    async def _blocks(self) -> AsyncIterator[list[Line]]:
        source, at = self._source, self._source.first_offset
        async with aiofiles.open(source.fd, "rb", buffering=0, closefd=False) as file:
            await file.seek(at)
            while at < source.end and not self._run.stop.is_requested:
                block = await file.read(min(BLOCK_BYTES, source.end - at))
                await self._check_unchanged()
                if not block:
                    raise self._changed()
                at += len(block)
                yield self._splitter.feed(block)
            if not self._run.stop.is_requested:
                yield self._splitter.end()

    async def _record(self, line: Line) -> Record | None:
        """The record of a line; a bad one is written off at once."""
        place = Place(line.number, line.offset, len(line.raw))
        try:
            if line.too_long:
                raise BadLine(TOO_LONG)
            parsed = await self._parsed(line.raw)
        except BadLine as bad:
            failure = Failure("bad_input", str(bad))
            await self._run.storage.do(Ledger.refuse_line, place, digest(line.raw), failure, time.time())
            self._run.backlog.counts[State.FAILED] += 1
            return None
        history = History(maybe_paid=parsed.maybe_paid)
        return Record(place, parsed.id, digest(line.raw), parsed.prompt, history=history)

    async def _parsed(self, raw: bytes) -> Parsed:
        if self._source.reading.render is None:
            return self._source.parse(raw)
        return await asyncio.to_thread(self._source.parse, raw)  # a template may take its time

    async def _check_unchanged(self) -> None:
        """An input that only grew is read as far as it was checked; any other change ends the run."""
        if self._source.checked is None:
            return
        try:
            now = state_of(self._source.spool or self._source.path)
        except OSError as error:
            raise self._changed() from error
        if now == self._seen:
            return
        (inode, _, size), end, known = self._source.checked
        is_longer = now[0] == inode and now[2] >= end
        if not is_longer or await asyncio.to_thread(prefix_digest, self._source.fd, end) != known:
            raise self._changed()
        self._seen = now
        if now[2] > size:
            event("input_grew", bytes=now[2] - size)

    def _changed(self) -> InputProblem:
        return InputProblem(
            f"{self._source.path} was changed while it was read; what was sent is safe",
            remedy="run again when the file is at rest",
        )
