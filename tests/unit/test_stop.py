"""How a run ends early: the first reason stands, and everyone who sleeps wakes up."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest

from batchrun.errors import DiskProblem, Interrupted, NoSuccess
from batchrun.job import _interrupt
from batchrun.stop import SIGNALS, Stop, on_signals

FULL = DiskProblem("the disk is full", remedy="free some space")
A_DAY_S = 86_400.0


def play(story: Callable[[Stop], Awaitable[None]]) -> None:
    async def told() -> None:
        await asyncio.wait_for(story(Stop()), 10)

    asyncio.run(told())


async def heard() -> None:
    """Let a signal that came reach the loop."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_the_first_reason_stands() -> None:
    async def story(stop: Stop) -> None:
        assert not stop.is_requested
        stop.request(FULL)
        stop.request(NoSuccess(900, "503"))
        assert stop.error is FULL
        assert stop.requested.is_set()

    play(story)


def test_a_stop_wakes_everyone_who_sleeps() -> None:
    async def story(stop: Stop) -> None:
        sleepers = [asyncio.create_task(stop.sleep(A_DAY_S)) for _ in range(3)]
        await heard()
        assert not any(sleeper.done() for sleeper in sleepers)
        stop.request(FULL)
        await asyncio.gather(*sleepers)
        await stop.sleep(A_DAY_S)  # and nobody goes to sleep again

    play(story)


def test_a_sleep_without_a_stop_ends_by_itself_and_can_be_cancelled() -> None:
    async def story(stop: Stop) -> None:
        await stop.sleep(0.0)
        sleeper = asyncio.create_task(stop.sleep(A_DAY_S))
        await heard()
        sleeper.cancel()
        await heard()
        assert sleeper.cancelled()
        stop.request(FULL)

    play(story)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_run_with_the_code_of_the_shell(number: int, code: int) -> None:
    async def story(stop: Stop) -> None:
        stop.on_signal(number)
        await stop.requested.wait()
        assert isinstance(stop.error, Interrupted)
        assert stop.error.exit_code == code
        assert not stop.hurried.is_set()

    play(story)


def test_the_second_signal_hurries() -> None:
    async def story(stop: Stop) -> None:
        stop.on_signal(signal.SIGINT)
        stop.on_signal(signal.SIGTERM)
        await stop.hurried.wait()
        assert stop.error is not None
        assert stop.error.exit_code == 130

    play(story)


def test_two_signals_hurry_a_run_that_was_stopping_for_another_reason() -> None:
    async def story(stop: Stop) -> None:
        stop.request(FULL)
        stop.on_signal(signal.SIGINT)
        stop.on_signal(signal.SIGINT)
        await heard()
        assert stop.error is FULL
        assert stop.hurried.is_set()

    play(story)


def test_a_signal_wakes_the_loop_from_whatever_it_waits_for() -> None:
    async def story(stop: Stop) -> None:
        with on_signals(stop.on_signal):
            threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM]).start()
            await stop.sleep(A_DAY_S)
        assert isinstance(stop.error, Interrupted)

    play(story)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_are_handled_inside_the_block_and_as_before_after_it(number: int) -> None:
    seen: list[int] = []
    outside = signal.signal(number, signal.default_int_handler)  # whoever started the tests may have it ignored
    try:
        with on_signals(seen.append):
            signal.raise_signal(number)
            with on_signals(lambda number: seen.append(-number)):
                signal.raise_signal(number)
            signal.raise_signal(number)
        assert seen == [number, -number, number]
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, outside)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    seen: list[int] = []
    try:
        with on_signals(seen.append):
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert seen == []


def test_signals_are_put_back_when_the_block_fails() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError), on_signals(lambda number: None):
        raise RuntimeError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_one_signal_undoes_no_other_interrupts() -> None:
    """Fails if a second signal leaves half of an old job aside."""
    before, undone = [signal.getsignal(number) for number in SIGNALS], []

    def undo() -> None:
        for number in SIGNALS:
            signal.raise_signal(number)
        undone.append("all of it")

    def begin() -> None:
        with on_signals(_interrupt), ExitStack() as stack:
            stack.callback(undo)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM"):
        begin()
    assert undone == ["all of it"]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_in_a_thread_signals_are_left_alone() -> None:
    before, inside = signal.getsignal(signal.SIGINT), list[object]()

    def work() -> None:
        with on_signals(lambda number: None):
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
