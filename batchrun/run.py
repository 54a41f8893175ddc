"""What the stages of one run share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from batchrun.check import Source
from batchrun.config import JobConfig
from batchrun.pacing import Outage
from batchrun.providers.base import Provider
from batchrun.record import Record, State
from batchrun.stop import Stop
from batchrun.storage.disk import Disk
from batchrun.storage.thread import Storage


class Backlog:
    """What was read and is not settled. While any of it is left, a record may still come back to be sent again."""

    def __init__(self, counts: Mapping[State, int]) -> None:
        """``counts``: what the ledger says at the start."""
        self.counts = dict(counts)
        self.unsettled = counts[State.OPEN]
        self._returned: deque[int] = deque()
        self._unsent: dict[int, int] = {}
        self._changed = asyncio.Event()
        self._ended = False

    def end(self) -> None:
        """The run stops: nothing is waited for any more."""
        self._ended = True
        self._changed.set()

    # --- for the reader ---

    def read(self, record: Record) -> None:
        """A record goes into the submit queue."""
        self.unsettled += 1
        if record.seq is None:
            self._unsent[record.place.offset] = record.place.line

    def take_returned(self) -> int | None:
        """The row of a record that is to be sent again."""
        if not self._returned:
            return None
        self.unsettled -= 1
        return self._returned.popleft()

    async def wait_for_returned(self) -> int | None:
        """The same, but waits while one may still come; None once all is settled."""
        while not self._returned and self.unsettled and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        return self.take_returned()

    def low_water(self, line: int, offset: int) -> tuple[int, int]:
        """(line, offset) before which every line has a row, when the reader is about to read this one."""
        first = next(iter(self._unsent.items()), None)
        return (line, offset) if first is None else (first[1], first[0])

    # --- for the submitter and the tracker ---

    def has_row(self, record: Record) -> None:
        """The ledger knows the record: a restart finds it there."""
        self._unsent.pop(record.place.offset, None)

    def settled(self, state: State) -> None:
        """A record has reached this state and will not come back."""
        self.counts[state] += 1
        self.unsettled -= 1
        self._changed.set()

    def give_back(self, seq: int, after_s: float) -> None:
        """A record is NEW again and shall be sent after so many seconds."""
        asyncio.get_running_loop().call_later(after_s, self._return, seq)

    def _return(self, seq: int) -> None:
        self._returned.append(seq)
        self._changed.set()


@dataclass(frozen=True, slots=True)
class Run:
    """One process at work on a job: each stage takes what it needs."""

    config: JobConfig
    source: Source
    provider: Provider
    storage: Storage
    backlog: Backlog
    stop: Stop
    outage: Outage
    disk: Disk
