"""A bounded queue between two stages, which can be closed."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """Items with their weight in bytes. A full channel makes ``put`` wait; a closed one ends its readers."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._bytes = 0
        self._closed = False
        self._readers: deque[asyncio.Future[None]] = deque()
        self._writers: deque[asyncio.Future[None]] = deque()

    async def put(self, item: T, size_bytes: int) -> bool:
        """False if the channel was closed and the item was not taken. One item fits always, whatever its size."""
        while self._items and not self._closed and self._is_full():
            await self._wait(self._writers)
        if self._closed:
            return False
        self._items.append((item, size_bytes))
        self._bytes += size_bytes
        _wake(self._readers)
        return True

    async def get(self) -> T | None:
        """The next item; None once the channel is closed and empty."""
        while not self._items:
            if self._closed:
                return None
            await self._wait(self._readers)
        return self._pop()

    async def get_all(self) -> list[T]:
        """Everything that is there, at least one item; empty once the channel is closed and empty."""
        first = await self.get()
        batch = [] if first is None else [first]
        while self._items:
            batch.append(self._pop())
        return batch

    def close(self, *, discard: bool = False) -> None:
        """No more items. ``discard`` also drops those not yet taken."""
        self._closed = True
        if discard:
            self._items.clear()
        for waiting in (self._readers, self._writers):
            while waiting:
                _wake(waiting)

    def _is_full(self) -> bool:
        return len(self._items) >= self._max_items or self._bytes >= self._max_bytes

    def _pop(self) -> T:
        item, size_bytes = self._items.popleft()
        self._bytes -= size_bytes
        _wake(self._writers)
        return item

    async def _wait(self, waiting: deque[asyncio.Future[None]]) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                _wake(waiting)  # the turn given to us goes to the next
            raise


def _wake(waiting: deque[asyncio.Future[None]]) -> None:
    while waiting:
        future = waiting.popleft()
        if not future.done():
            future.set_result(None)
            return
