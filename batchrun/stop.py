"""How a run ends before its job does: nothing new is sent, replies on their way are awaited."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from batchrun.errors import BatchrunError, DeadlineReached, Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Asked for once, seen by every stage. ``error`` is the reason that decides the exit code."""

    def __init__(self) -> None:
        self.error: BatchrunError | None = None
        self.requested = asyncio.Event()
        self.hurried = asyncio.Event()
        self._signals = 0
        self._loop = asyncio.get_running_loop()

    def request(self, error: BatchrunError) -> None:
        """Begin to stop; the first reason stands."""
        if self.error is None:
            self.error = error
            self.requested.set()

    def on_signal(self, number: int) -> None:
        """The first signal asks to end well, the next to leave at once."""
        self._loop.call_soon_threadsafe(self._signalled, number)

    def _signalled(self, number: int) -> None:
        if self._signals:
            self.hurried.set()
        self._signals += 1
        self.request(Interrupted(number))

    @property
    def is_requested(self) -> bool:
        return self.error is not None

    async def sleep(self, seconds: float) -> None:
        """Sleep so long, or until the stop is requested."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.requested.wait()


@contextmanager
def on_signals(act: Callable[[int], None]) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP do this instead. One that is ignored (``nohup``) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, frame: act(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let them come when this is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def in_time(deadline: float | None) -> Iterator[None]:
    """Let DeadlineReached interrupt what no event loop does; in the main thread, where signals can."""
    if deadline is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _too_late(*_: object) -> None:
    raise DeadlineReached
