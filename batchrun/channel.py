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
        self._free_bytes = max_bytes
        self._closed = False
        self._changed = asyncio.Event()

    async def put(self, item: T, size_bytes: int) -> bool:
        """False if the channel was closed and the item was not taken. One item fits always, whatever its size."""
        while self._items and not self._closed and (len(self._items) >= self._max_items or self._free_bytes <= 0):
            await self._changed.wait()
        if self._closed:
            return False
        self._items.append((item, size_bytes))
        self._free_bytes -= size_bytes
        self._wake_all()
        return True

    async def get(self) -> T | None:
        """The next item; None once the channel is closed and empty."""
        while not self._items and not self._closed:
            await self._changed.wait()
        if not self._items:
            return None
        item, size_bytes = self._items.popleft()
        self._free_bytes += size_bytes
        self._wake_all()
        return item

    async def get_all(self) -> list[T]:
        """Everything that is there, at least one item; empty once the channel is closed and empty."""
        batch: list[T] = []
        while (self._items or not batch) and (item := await self.get()) is not None:
            batch.append(item)
        return batch

    def close(self, *, discard: bool = False) -> None:
        """No more items. ``discard`` also drops those not yet taken."""
        self._closed = True
        if discard:
            self._items.clear()
        self._wake_all()

    def _wake_all(self) -> None:
        """Everyone who waits looks again. So nobody's turn is lost with a task that is cancelled."""
        self._changed.set()
        self._changed.clear()
