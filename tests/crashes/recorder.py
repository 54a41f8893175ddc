"""Writes down what a run does to its files and to the service, in one order: what a crash could fall between.

Python's own calls are seen in ``os``, those of SQLite in ``sqlite_files``. Whatever changed a file by another way is
found out: what was recorded, replayed, must equal what is there (``test_recorder.py``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.crashes.sqlite_files import watched_sqlite


@dataclass(frozen=True, slots=True)
class Create:
    """A file that was not there, empty. Paths are relative to the job's folder."""

    path: str


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    path: str


@dataclass(frozen=True, slots=True)
class Write:
    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """An fsync that has returned: of a file its bytes and size, of a directory its names."""

    path: str


@dataclass(frozen=True, slots=True)
class Rename:
    path: str
    to: str


@dataclass(frozen=True, slots=True)
class Unlink:
    path: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request reached the service and is paid for, whatever becomes of the reply."""

    record: str
    operation_id: str


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A request reached the service and was not accepted."""

    record: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A poll."""

    operation_id: str


FileEvent = Create | MakeDirectory | Write | Truncate | Sync | Rename | Unlink
ServiceEvent = Accepted | TurnedAway | Asked
Event = FileEvent | ServiceEvent


def described(event: Event) -> str:
    """One event in a few words, for the message of a test that fails."""
    match event:
        case Write(path, offset, data):
            return f"Write({path}, {len(data)} bytes at {offset})"
        case _:
            return str(event)


class Recorder:
    """The events of a folder, while ``watching``. One recorder at a time."""

    def __init__(self, folder: Path) -> None:
        self.events: list[Event] = []
        self._folder = os.path.realpath(folder)
        self._opened: dict[int, str] = {}
        self._lock = threading.Lock()

    def note(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as patches:
            for name, ours in self._watched_calls().items():
                patches.enter_context(patch.object(os, name, partial(ours, getattr(os, name))))
            patches.enter_context(watched_sqlite(self))
            yield

    def _watched_calls(self) -> dict[str, Callable[..., Any]]:
        """What stands in for each call: it gets the real one first, then its arguments."""
        return {
            "open": self._open,
            "close": self._close,
            "pwrite": self._pwrite,
            "write": self._write,
            "fsync": self._fsync,
            "fdatasync": self._fsync,
            "ftruncate": self._ftruncate,
            "mkdir": self._mkdir,
            "rename": self._rename,
            "replace": self._rename,
            "unlink": self._unlink,
            "remove": self._unlink,
        }

    def inside(self, path: Any) -> str | None:
        """The path as events name it; None for one that is not of this job."""
        full = os.path.abspath(os.fsdecode(path))
        if full != self._folder and not full.startswith(self._folder + os.sep):
            return None
        return os.path.relpath(full, self._folder)

    # --- SQLite's files, by name ---

    def created(self, path: str) -> None:
        self.note(Create(path))

    def written(self, path: str, offset: int, data: bytes) -> None:
        self.note(Write(path, offset, data))

    def truncated(self, path: str, size: int) -> None:
        self.note(Truncate(path, size))

    def synced(self, path: str) -> None:
        self.note(Sync(path))

    def unlinked(self, path: str) -> None:
        self.note(Unlink(path))

    # --- os ---

    def _open(self, real: Callable[..., int], path: Any, flags: int, *args: Any, **named: Any) -> int:
        name = self.inside(path) if isinstance(path, str | bytes | os.PathLike) else None
        is_new = name is not None and not os.path.lexists(path)
        fd = real(path, flags, *args, **named)
        if name is not None:
            self._opened[fd] = name
            if is_new:
                self.note(Create(name))
            elif flags & os.O_TRUNC:
                self.note(Truncate(name, 0))
        return fd

    def _close(self, real: Callable[..., None], fd: int) -> None:
        self._opened.pop(fd, None)
        real(fd)

    def _pwrite(self, real: Callable[..., int], fd: int, data: Any, offset: int) -> int:
        count = real(fd, data, offset)
        if fd in self._opened:
            self.note(Write(self._opened[fd], offset, bytes(memoryview(data)[:count])))
        return count

    def _write(self, real: Callable[..., int], fd: int, data: Any) -> int:
        offset = os.lseek(fd, 0, os.SEEK_CUR) if fd in self._opened else 0
        count = real(fd, data)
        if fd in self._opened:
            self.note(Write(self._opened[fd], offset, bytes(memoryview(data)[:count])))
        return count

    def _fsync(self, real: Callable[..., None], fd: int) -> None:
        real(fd)
        if fd in self._opened:
            self.note(Sync(self._opened[fd]))

    def _ftruncate(self, real: Callable[..., None], fd: int, size: int) -> None:
        real(fd, size)
        if fd in self._opened:
            self.note(Truncate(self._opened[fd], size))

    def _mkdir(self, real: Callable[..., None], path: Any, *args: Any, **named: Any) -> None:
        real(path, *args, **named)
        if (name := self.inside(path)) is not None:
            self.note(MakeDirectory(name))

    def _rename(self, real: Callable[..., None], path: Any, to: Any, **named: Any) -> None:
        real(path, to, **named)
        name, new_name = self.inside(path), self.inside(to)
        if name is not None and new_name is not None:
            self.note(Rename(name, new_name))

    def _unlink(self, real: Callable[..., None], path: Any, **named: Any) -> None:
        real(path, **named)
        if (name := self.inside(path)) is not None:
            self.note(Unlink(name))
