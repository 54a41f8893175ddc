"""What was read and is not settled: when the reader may stop, and where the next one may begin."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.record import State
from batchrun.run import Backlog

from .jobfiles import LINE_BYTES, a_record

NOBODY = dict.fromkeys(State, 0)


def play(story: Callable[[Backlog], Awaitable[None]], *, already_open: int = 0) -> None:
    async def told() -> None:
        await asyncio.wait_for(story(Backlog({**NOBODY, State.OPEN: already_open})), 5)

    asyncio.run(told())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_with_nothing_read_there_is_nothing_to_wait_for() -> None:
    async def story(backlog: Backlog) -> None:
        assert backlog.take_returned() is None
        assert await backlog.wait_for_returned() is None

    play(story)


@pytest.mark.parametrize("state", [State.DONE, State.FAILED, State.HELD, State.EXPIRED])
def test_the_reader_waits_until_everything_is_settled(state: State) -> None:
    async def story(backlog: Backlog) -> None:
        backlog.read(a_record(1))
        reader = asyncio.create_task(backlog.wait_for_returned())
        await settle()
        backlog.settled(state)  # the one that was open before
        await settle()
        assert not reader.done()
        backlog.settled(state)
        assert await reader is None
        assert backlog.counts[state] == 2

    play(story, already_open=1)


def test_a_record_that_comes_back_is_read_again() -> None:
    async def story(backlog: Backlog) -> None:
        backlog.read(a_record(1))
        backlog.give_back(7, 0.0)
        assert backlog.take_returned() is None  # not before its time
        assert await backlog.wait_for_returned() == 7
        backlog.read(a_record(1, seq=7))
        reader = asyncio.create_task(backlog.wait_for_returned())
        await settle()
        assert not reader.done()
        backlog.settled(State.DONE)
        assert await reader is None

    play(story)


def test_records_come_back_in_the_order_of_their_pauses() -> None:
    async def story(backlog: Backlog) -> None:
        for line in (1, 2):
            backlog.read(a_record(line))
        backlog.give_back(1, 0.02)
        backlog.give_back(2, 0.0)
        assert [await backlog.wait_for_returned() for _ in range(2)] == [2, 1]

    play(story)


def test_a_run_that_ends_waits_for_nothing() -> None:
    async def story(backlog: Backlog) -> None:
        backlog.read(a_record(1))
        reader = asyncio.create_task(backlog.wait_for_returned())
        await settle()
        backlog.end()
        assert await reader is None

    play(story)


def test_the_low_water_mark_is_the_first_line_without_a_row() -> None:
    async def story(backlog: Backlog) -> None:
        end = (6, 5 * LINE_BYTES)
        assert backlog.low_water(*end) == end
        records = [a_record(line) for line in range(1, 6)]
        for record in records:
            backlog.read(record)
        assert backlog.low_water(*end) == (1, 0)
        for sent in (1, 2, 4):
            backlog.has_row(records[sent - 1])
        assert backlog.low_water(*end) == (3, 2 * LINE_BYTES)
        backlog.has_row(records[2])
        backlog.has_row(records[4])
        assert backlog.low_water(*end) == end

    play(story)


def test_a_record_with_a_row_does_not_hold_the_low_water_mark_back() -> None:
    async def story(backlog: Backlog) -> None:
        backlog.read(a_record(1, seq=1))
        assert backlog.low_water(2, LINE_BYTES) == (2, LINE_BYTES)

    play(story)


@given(st.permutations(range(1, 12)), st.integers(0, 11))
def test_whatever_the_order_of_sending_every_line_before_the_mark_has_a_row(order: list[int], sent: int) -> None:
    async def story(backlog: Backlog) -> None:
        records = {line: a_record(line) for line in range(1, 12)}
        for record in records.values():
            backlog.read(record)
        for line in order[:sent]:
            backlog.has_row(records[line])
        line, offset = backlog.low_water(12, 11 * LINE_BYTES)
        assert set(range(1, line)) <= set(order[:sent])
        assert line not in order[:sent]
        assert offset == (line - 1) * LINE_BYTES

    play(story)
