"""A clock that a test sets. As a script it runs batchrun by that clock; as a module it is the test's hand on it.

Both map one file of four numbers. A run by this clock may skip what it would only wait for, so that hours pass in a
moment. While a request, a commit or a read is on its way, a second takes a second.
"""

from __future__ import annotations

import asyncio
import mmap
import selectors
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from batchrun import job, tracker
from batchrun.__main__ import main
from batchrun.providers.http import Http
from batchrun.storage.thread import Storage

LOOK_EVERY_S = 0.005
GRAIN_S = tracker.TIMER_GRAIN_S
MONOTONIC, WALL, MAY_SKIP, SKIPPED = range(0, 32, 8)


class Clock:
    """How far a run's clocks are from the real ones, in seconds; the same for every run that is given it."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(32))
        with path.open("r+b") as file:
            self._numbers = mmap.mmap(file.fileno(), 32)
        self.program = (__file__, str(path))

    # --- for the test ---

    def jump(self, *, monotonic: float = 0, wall: float = 0) -> None:
        """Set the clocks forward or back at once, as a run sees them after a sleep, or when somebody sets the time."""
        self._add(MONOTONIC, monotonic)
        self._add(WALL, wall)

    def let_pass(self, seconds: float) -> None:
        """A run may skip so much of its waiting."""
        self._add(MAY_SKIP, seconds)

    @property
    def may_skip_s(self) -> float:
        """What is left of that."""
        return self._get(MAY_SKIP) - self.skipped_s

    @property
    def skipped_s(self) -> float:
        return self._get(SKIPPED)

    # --- for the run ---

    def monotonic_ahead_s(self) -> float:
        return self._get(MONOTONIC) + self.skipped_s

    def wall_ahead_s(self) -> float:
        return self._get(WALL) + self.skipped_s

    def skip(self, seconds: float) -> None:
        self._add(SKIPPED, seconds)

    def _get(self, at: int) -> float:
        number: float = struct.unpack_from("d", self._numbers, at)[0]
        return number

    def _add(self, at: int, seconds: float) -> None:
        struct.pack_into("d", self._numbers, at, self._get(at) + seconds)


class SkippingSelector(selectors.DefaultSelector):
    """Waits for the network as any selector does; what is only a wait, it skips."""

    def __init__(self, clock: Clock, awaited: set[asyncio.Future[Any]]) -> None:
        super().__init__()
        self._clock = clock
        self._awaited = awaited

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        wait_s = LOOK_EVERY_S if timeout is None else timeout
        skip_s = 0.0 if self._awaited or timeout is None else min(timeout, self._clock.may_skip_s)
        tracker.TIMER_GRAIN_S = GRAIN_S if self._clock.may_skip_s <= 0 else 1.0  # an hour in fewer steps
        ready = super().select(0 if skip_s > 0 else min(wait_s, LOOK_EVERY_S))
        if skip_s > 0 and not ready:
            self._clock.skip(skip_s)
        return ready


def run(clock: Clock) -> None:
    """Run batchrun by this clock."""
    real_monotonic, real_time = time.monotonic, time.time
    time.monotonic = lambda: real_monotonic() + clock.monotonic_ahead_s()
    time.time = lambda: real_time() + clock.wall_ahead_s()
    awaited: set[asyncio.Future[Any]] = set()  # of the world outside: nothing is skipped meanwhile

    def noted(step: Callable[..., Awaitable[Any]]) -> Callable[..., asyncio.Future[Any]]:
        def call(*args: Any, **named: Any) -> asyncio.Future[Any]:
            future = asyncio.ensure_future(step(*args, **named))
            awaited.add(future)
            future.add_done_callback(awaited.discard)
            return future

        return call

    def new_loop() -> asyncio.AbstractEventLoop:
        """The standard library's: uvloop reads a clock that nobody can set."""
        loop = asyncio.SelectorEventLoop(SkippingSelector(clock, awaited))
        loop.run_in_executor = noted(loop.run_in_executor)  # type: ignore[method-assign,assignment]  # reads
        end_threads = loop.shutdown_default_executor

        async def noted_end(*args: Any) -> None:  # from Python 3.12 on it waits for 300 s at most
            awaited.add(end := loop.create_future())
            await end_threads(*args)
            awaited.discard(end)

        loop.shutdown_default_executor = noted_end  # type: ignore[method-assign]
        return loop

    Http._exchange = noted(Http._exchange)  # type: ignore[method-assign,assignment]  # requests
    Storage.do = noted(Storage.do)  # type: ignore[method-assign,assignment]  # commits
    job.loop_factory = lambda: new_loop
    main()


if __name__ == "__main__":
    run(Clock(Path(sys.argv.pop(1))))
