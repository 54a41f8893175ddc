"""Writes down what a run does to its files and to the service, in one order: what a crash could fall between.

Python's own calls are seen in ``os``, those of SQLite in ``sqlite_files``. Whatever changed a file by another way is
found out: what was recorded, replayed, must equal what is there (``test_recorder.py``).
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
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


class Call(StrEnum):
    """What a disk may be asked to do, and refuse."""

    MAKE = "make"
    WRITE = "write"
    TRUNCATE = "truncate"
    SYNC = "sync"
    RENAME = "rename"
    UNLINK = "unlink"


@dataclass(frozen=True, slots=True)
class Failed:
    """A call that was refused. After a sync, what it was to save is lost, and the kernel will not say so again."""

    path: str
    call: Call


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


FileEvent = Create | MakeDirectory | Write | Truncate | Sync | Failed | Rename | Unlink
ServiceEvent = Accepted | TurnedAway | Asked
Event = FileEvent | ServiceEvent
T = TypeVar("T", bound=Event)


def described(event: Event) -> str:
    """One event in a few words, for the message of a test that fails."""
    match event:
        case Write(path, offset, data):
            return f"Write({path}, {len(data)} bytes at {offset})"
        case _:
            return str(event)


class Recorder:
    """The events of a folder, while ``watching``. One recorder at a time.

    Args:
        refused: This call fails, once: its sort, and its number among those, from 0.
    """

    def __init__(self, folder: Path, *, refused: tuple[Call, int] | None = None) -> None:
        self.events: list[Event] = []
        self._calls = Counter[Call]()
        self._refused = refused
        self._folder = os.path.realpath(folder)
        self._opened: dict[int, str] = {}
        self._lock = threading.Lock()

    def note(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)

    def first(self, kind: type[T]) -> T | None:
        return next((event for event in self.events if isinstance(event, kind)), None)

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
            "rmdir": self._unlink,
        }

    def inside(self, path: Any) -> str | None:
        """The path as events name it; None for one that is not of this job."""
        full = os.path.abspath(os.fsdecode(path))
        if full != self._folder and not full.startswith(self._folder + os.sep):
            return None
        return os.path.relpath(full, self._folder)

    def refuses(self, call: str, path: str) -> bool:
        """Whether this call shall fail. Asked once for each, before it is made."""
        call = Call(call)
        self._calls[call] += 1
        if (call, self._calls[call] - 1) != self._refused:
            return False
        self.note(Failed(path, call))
        return True

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
        if is_new and flags & os.O_CREAT:
            self._ask(Call.MAKE, name)
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
        self._ask(Call.WRITE, self._opened.get(fd))
        count = real(fd, data, offset)
        if fd in self._opened:
            self.note(Write(self._opened[fd], offset, bytes(memoryview(data)[:count])))
        return count

    def _write(self, real: Callable[..., int], fd: int, data: Any) -> int:
        self._ask(Call.WRITE, self._opened.get(fd))
        offset = os.lseek(fd, 0, os.SEEK_CUR) if fd in self._opened else 0
        count = real(fd, data)
        if fd in self._opened:
            self.note(Write(self._opened[fd], offset, bytes(memoryview(data)[:count])))
        return count

    def _fsync(self, real: Callable[..., None], fd: int) -> None:
        self._ask(Call.SYNC, self._opened.get(fd))
        real(fd)
        if fd in self._opened:
            self.note(Sync(self._opened[fd]))

    def _ftruncate(self, real: Callable[..., None], fd: int, size: int) -> None:
        self._ask(Call.TRUNCATE, self._opened.get(fd))
        real(fd, size)
        if fd in self._opened:
            self.note(Truncate(self._opened[fd], size))

    def _mkdir(self, real: Callable[..., None], path: Any, *args: Any, **named: Any) -> None:
        name = self.inside(path)
        if not os.path.lexists(path):
            self._ask(Call.MAKE, name)
        real(path, *args, **named)
        if name is not None:
            self.note(MakeDirectory(name))

    def _rename(self, real: Callable[..., None], path: Any, to: Any, **named: Any) -> None:
        name, new_name = self.inside(path), self.inside(to)
        self._ask(Call.RENAME, name)
        real(path, to, **named)
        if name is not None and new_name is not None:
            self._opened = {
                fd: new_name if opened == name else opened for fd, opened in self._opened.items() if opened != new_name
            }
            self.note(Rename(name, new_name))

    def _unlink(self, real: Callable[..., None], path: Any, **named: Any) -> None:
        name = self.inside(path)
        if os.path.lexists(path):
            self._ask(Call.UNLINK, name)
        real(path, **named)
        if name is not None:
            self.note(Unlink(name))

    def _ask(self, call: Call, path: str | None) -> None:
        if path is not None and self.refuses(call, path):
            error = errno.EIO if call is Call.SYNC else errno.ENOSPC
            raise OSError(error, os.strerror(error), path)
