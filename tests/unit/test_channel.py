"""A full channel makes its writers wait, a closed one ends its readers, and no item is lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from batchrun.channel import Channel


def play(story: Callable[[Channel[int]], Awaitable[None]], *, items: int = 3, size_bytes: int = 100) -> None:
    asyncio.run(asyncio.wait_for(story(Channel[int](items, size_bytes)), 10))


async def settle() -> None:
    """Let every task go on until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_items_come_out_in_the_order_they_went_in() -> None:
    async def story(channel: Channel[int]) -> None:
        for item in (1, 2, 3):
            assert await channel.put(item, 1)
        assert [await channel.get() for _ in range(3)] == [1, 2, 3]

    play(story)


def test_a_channel_full_of_items_makes_the_writer_wait() -> None:
    async def story(channel: Channel[int]) -> None:
        for item in (1, 2, 3):
            await channel.put(item, 1)
        writer = asyncio.create_task(channel.put(4, 1))
        await settle()
        assert not writer.done()
        assert await channel.get() == 1
        assert await writer
        assert await channel.get_all() == [2, 3, 4]

    play(story)


def test_a_channel_full_of_bytes_makes_the_writer_wait() -> None:
    async def story(channel: Channel[int]) -> None:
        await channel.put(1, 60)
        await channel.put(2, 60)
        writer = asyncio.create_task(channel.put(3, 1))
        await settle()
        assert not writer.done()
        assert await channel.get() == 1
        assert await writer

    play(story)


def test_one_item_always_fits_whatever_its_size() -> None:
    async def story(channel: Channel[int]) -> None:
        assert await channel.put(1, 10**9)
        writer = asyncio.create_task(channel.put(2, 10**9))
        await settle()
        assert not writer.done()
        assert await channel.get() == 1
        assert await writer

    play(story)


def test_everything_that_is_there_is_taken_at_once() -> None:
    async def story(channel: Channel[int]) -> None:
        reader = asyncio.create_task(channel.get_all())
        await settle()
        assert not reader.done()
        await channel.put(1, 1)
        await channel.put(2, 1)
        assert await reader == [1, 2]

    play(story)


def test_a_closed_channel_is_emptied_and_then_ends() -> None:
    async def story(channel: Channel[int]) -> None:
        await channel.put(1, 1)
        channel.close()
        assert await channel.get() == 1
        assert await channel.get() is None
        assert await channel.get_all() == []
        assert not await channel.put(2, 1)

    play(story)


def test_a_channel_closed_with_discard_ends_at_once() -> None:
    async def story(channel: Channel[int]) -> None:
        await channel.put(1, 1)
        channel.close(discard=True)
        assert await channel.get() is None

    play(story)


@pytest.mark.parametrize("discard", [False, True])
def test_closing_wakes_everyone_who_waits(discard: bool) -> None:
    async def readers(channel: Channel[int]) -> None:
        waiting = [asyncio.create_task(channel.get()) for _ in range(3)]
        await settle()
        channel.close(discard=discard)
        assert await asyncio.gather(*waiting) == [None] * 3

    async def writers(channel: Channel[int]) -> None:
        for item in (1, 2, 3):
            await channel.put(item, 1)
        waiting = [asyncio.create_task(channel.put(item, 1)) for item in (4, 5)]
        await settle()
        channel.close(discard=discard)
        assert await asyncio.gather(*waiting) == [False, False]
        assert await channel.get_all() == ([] if discard else [1, 2, 3])

    play(readers)
    play(writers)


def test_a_reader_that_is_cancelled_in_its_turn_gives_it_to_the_next() -> None:
    async def story(channel: Channel[int]) -> None:
        first, second = asyncio.create_task(channel.get()), asyncio.create_task(channel.get())
        await settle()
        await channel.put(1, 1)  # it is the first one's turn
        first.cancel()
        assert await second == 1
        assert first.cancelled()

    play(story)


def test_a_writer_that_is_cancelled_in_its_turn_gives_it_to_the_next() -> None:
    async def story(channel: Channel[int]) -> None:
        for item in (1, 2, 3):
            await channel.put(item, 1)
        first, second = asyncio.create_task(channel.put(4, 1)), asyncio.create_task(channel.put(5, 1))
        await settle()
        assert await channel.get() == 1  # it is the first one's turn
        first.cancel()
        assert await second
        assert await channel.get_all() == [2, 3, 5]

    play(story)


def test_a_reader_cancelled_while_it_waits_loses_nothing() -> None:
    async def story(channel: Channel[int]) -> None:
        reader = asyncio.create_task(channel.get())
        await settle()
        reader.cancel()
        await settle()
        await channel.put(1, 1)
        assert await channel.get() == 1

    play(story)


@pytest.mark.parametrize("number", range(20))
def test_among_many_readers_and_writers_every_item_arrives_once(number: int) -> None:
    chance = random.Random(number)

    async def story(channel: Channel[int]) -> None:
        put, got = list[int](), list[int]()

        async def write(first: int) -> None:
            for item in range(first, first + 30):
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
                if await channel.put(item, chance.choice([1, 20, 120])):
                    put.append(item)

        async def read() -> None:
            while (item := await channel.get()) is not None:
                got.append(item)
                if chance.random() < 0.3:
                    await asyncio.sleep(0)

        readers = [asyncio.create_task(read()) for _ in range(6)]
        writers = [asyncio.create_task(write(first)) for first in range(0, 300, 30)]
        await settle()
        for unlucky in (readers[0], readers[3], writers[5]):
            unlucky.cancel()
            await settle()
        await asyncio.gather(*writers, return_exceptions=True)
        channel.close()
        await asyncio.gather(*readers, return_exceptions=True)
        assert sorted(got) == sorted(put)
        assert len(put) >= 270

    play(story)
