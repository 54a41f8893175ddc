"""A disk as it would be after a crash: what was written, what was synced, and what a power cut may make of the rest."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Self

from tests.crashes.recorder import (
    Call,
    Create,
    Event,
    Failed,
    FileEvent,
    MakeDirectory,
    Rename,
    Sync,
    Truncate,
    Unlink,
    Write,
)

SECTOR_BYTES = 512


class Kind(StrEnum):
    """What ends a run. Those after FAILED_SYNC are power cuts and differ in what becomes of what was not synced."""

    KILL = "kill"  # everything written stays, and may still be lost in a later power cut
    FAILED_SYNC = "failed sync"  # a kill when the next sync had failed: its bytes stay, but no later sync writes them
    DROP = "drop"  # bytes and names that were not synced are gone
    HOLLOW = "hollow"  # the names are there, the bytes are gone
    ZERO = "zero"  # the files have grown, the new bytes are zeros
    TORN = "torn"  # the first half of the bytes is there: whole sectors of a database, any half of another file
    ONLY_LEDGER = "only ledger"  # the ledger reached the disk, the other files did not
    ALL_BUT_LEDGER = "all but ledger"  # the other way round


@dataclass(slots=True)
class File:
    """A file's bytes as a process reads them, as they were at the last sync, and what was done since."""

    visible: bytes = b""
    durable: bytes = b""
    unsynced: tuple[Write | Truncate, ...] = ()

    def did(self, event: Write | Truncate) -> None:
        self.visible = _after(self.visible, event)
        self.unsynced += (event,)

    def sync(self) -> None:
        for event in self.unsynced:
            self.durable = _after(self.durable, event)
        self.unsynced = ()

    def fail_sync(self) -> None:
        """The kernel takes its pages for clean from now on, and they never reached the disk."""
        self.unsynced = ()

    def copy(self) -> File:
        return File(self.visible, self.durable, self.unsynced)

    def zeroed(self) -> bytes:
        return self.durable[: len(self.visible)].ljust(len(self.visible), b"\0")

    def torn(self, *, sector_bytes: int | None) -> bytes:
        """The first half of what is not synced; ``sector_bytes``: only whole sectors are written at once."""
        pieces = [piece for event in self.unsynced for piece in _pieces(event, sector_bytes)]
        content = self.durable
        for piece in pieces[: len(pieces) // 2]:
            content = _after(content, piece)
        return content


def _after(content: bytes, event: Write | Truncate) -> bytes:
    if isinstance(event, Truncate):
        return content[: event.size].ljust(event.size, b"\0")
    end = event.offset + len(event.data)
    return content[: event.offset].ljust(event.offset, b"\0") + event.data + content[end:]


def _pieces(event: Write | Truncate, sector_bytes: int | None) -> Iterator[Write | Truncate]:
    if isinstance(event, Truncate):
        yield event
        return
    at, data = event.offset, event.data
    while data:
        room = 1 if sector_bytes is None else sector_bytes - at % sector_bytes
        yield Write(event.path, at, data[:room])
        at, data = at + room, data[room:]


def is_of_ledger(path: str) -> bool:
    return PurePosixPath(path).name.startswith("ledger.db")


@dataclass(slots=True)
class Disk:
    """Names and files. A directory is a name without a file. ``durable_names`` are those a power cut leaves;
    ``moved`` are directories that have their old name there, and so have all names below them.
    """

    names: dict[str, File | None] = field(default_factory=dict)
    durable_names: dict[str, File | None] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)

    @classmethod
    def after(cls, events: Iterable[Event], start: Disk | None = None) -> Self:
        """The disk once all of it has happened."""
        disk = cls() if start is None else cls(*start._copied())
        for event in events:
            if isinstance(event, FileEvent):
                disk.apply(event)
        return disk

    def copy(self) -> Disk:
        return Disk(*self._copied())

    def apply(self, event: FileEvent) -> None:
        match event:
            case Create(path):
                self.names[path] = File()
            case MakeDirectory(path):
                self.names[path] = None
            case Write(path) | Truncate(path):
                self._file(path).did(event)
            case Sync(path) if self.names.get(path) is None:  # a directory, or one that was always there
                self._sync_names(path)
            case Sync(path):
                self._file(path).sync()
            case Failed(path, Call.SYNC):
                if (file := self.names.get(path)) is not None:
                    file.fail_sync()
            case Rename(path, to):
                _move(self.names, path, to)
                if self.names[to] is None:
                    self.moved[path] = to
            case Unlink(path):
                del self.names[path]

    def after_crash(self, kind: Kind, unfinished: Event | None = None) -> Disk | None:
        """What the next run finds; after a power cut, all of that is durable.

        Args:
            unfinished: What came next in the run that crashed. None is returned if that makes this kind impossible.
        """
        if kind is Kind.KILL:
            return self.copy()
        if kind is Kind.FAILED_SYNC:
            return self._after_failed_sync(unfinished)
        if kind is Kind.DROP:
            names = {path: file for path, file in self.durable_names.items() if self._is_reachable(path)}
        else:
            names = self.names
        left = {path: None if file is None else _settled(_left(path, file, kind)) for path, file in names.items()}
        return Disk(left, dict(left))

    def _after_failed_sync(self, unfinished: Event | None) -> Disk | None:
        if not isinstance(unfinished, Sync):
            return None
        file = self.names.get(unfinished.path)
        if file is None or not file.unsynced:
            return None
        return Disk.after([Failed(unfinished.path, Call.SYNC)], self)

    def contents(self) -> dict[str, bytes | None]:
        """What a process sees: the bytes of every file, None for a directory."""
        return {path: None if file is None else file.visible for path, file in self.names.items()}

    def key(self) -> tuple[object, ...]:
        """Equal for two disks that no run, and no later crash, can tell apart."""
        return tuple(
            (path, file and (file.visible, file.durable, file.unsynced))
            for names in (self.names, self.durable_names)
            for path, file in sorted(names.items())
        ) + tuple(self.moved.items())

    def put_into(self, folder: Path, *, keep: Collection[str]) -> None:
        """Make the folder look like this. ``keep`` are names that stay as they are."""
        for path in sorted(found_in(folder, without=keep), reverse=True):
            (os.rmdir if (folder / path).is_dir() else os.unlink)(folder / path)
        for path in sorted(self.names):
            file = self.names[path]
            if file is None:
                os.mkdir(folder / path, 0o700)
            else:
                (folder / path).write_bytes(file.visible)
                os.chmod(folder / path, 0o600)

    def _file(self, path: str) -> File:
        file = self.names[path]
        assert file is not None, f"{path} is a directory"
        return file

    def _sync_names(self, directory: str) -> None:
        for path in [path for path in self.moved if _parent(path) == directory]:
            _move(self.durable_names, path, self.moved.pop(path))
        for names in (self.durable_names, self.names):
            for path in [path for path in names if _parent(path) == directory]:
                if path in self.names:
                    self.durable_names[path] = self.names[path]
                else:
                    del self.durable_names[path]

    def _is_reachable(self, path: str) -> bool:
        """Whether every directory that was made on the way to it is still there."""
        parent = _parent(path)
        return parent not in self.names or (parent in self.durable_names and self._is_reachable(parent))

    def _copied(self) -> tuple[dict[str, File | None], dict[str, File | None], dict[str, str]]:
        """Copies of the names, in which a file of two names is still one file."""
        files = {id(file): file.copy() for names in (self.names, self.durable_names) for file in names.values() if file}
        names, durable_names = (
            {path: file and files[id(file)] for path, file in names.items()}
            for names in (self.names, self.durable_names)
        )
        return names, durable_names, dict(self.moved)


def _move(names: dict[str, File | None], path: str, to: str) -> None:
    """Rename, with everything below."""
    for name in [name for name in names if name == path or name.startswith(f"{path}/")]:
        names[to + name.removeprefix(path)] = names.pop(name)


def _left(path: str, file: File, kind: Kind) -> bytes:
    match kind:
        case Kind.DROP | Kind.HOLLOW:
            return file.durable
        case Kind.ZERO:
            return file.zeroed()
        case Kind.TORN:
            return file.torn(sector_bytes=SECTOR_BYTES if is_of_ledger(path) else None)
        case Kind.ONLY_LEDGER:
            return file.visible if is_of_ledger(path) else file.durable
        case Kind.ALL_BUT_LEDGER:
            return file.durable if is_of_ledger(path) else file.visible
        case _:
            return file.visible


def _settled(content: bytes) -> File:
    return File(content, content)


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


def found_in(folder: Path, *, without: Collection[str]) -> dict[str, bytes | None]:
    """What is really there, while no run is at work."""
    return {
        name: None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if (name := str(path.relative_to(folder))) not in without
    }
