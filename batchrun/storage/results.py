"""The results file: appended, synced, and mended at its tail after a crash."""

from __future__ import annotations

import fcntl
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from batchrun.errors import DiskProblem, InputProblem
from batchrun.storage.ledger import Written

BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 256 << 20  # an answer of 32 MiB, every byte of it escaped, and its record's own fields

AS_IT_IS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # no link is followed, no pipe waited at
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone leaves the bytes in the disk's cache


def sync(fd: int) -> None:
    """Return when the file's bytes would survive a power cut. Never call it again after it has failed."""
    if _FULL_SYNC is not None:
        fcntl.fcntl(fd, _FULL_SYNC)
    else:
        os.fdatasync(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it, however many calls the kernel takes."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def write_new(path: Path, pieces: Iterable[bytes], mode: int = 0o600) -> None:
    """Make a file of these pieces. It is durable, name and all, when this returns, and not there if it fails."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        at = 0
        for piece in pieces:
            write_at(fd, piece, at)
            at += len(piece)
        sync(fd)
        sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def replace_file(path: Path, pieces: Iterable[bytes], *, meanwhile: Path) -> None:
    """Make the file, or another in its place, in one rename; ``meanwhile`` is its name until then.

    Raises:
        DiskProblem: it cannot be written; what was there is there.
    """
    with writing(path):
        meanwhile.unlink(missing_ok=True)  # of a process that was killed here
        write_new(meanwhile, pieces, 0o666)
        try:
            os.replace(meanwhile, path)
        except BaseException:
            meanwhile.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_anew(fd: int, start: int, end: int) -> None:
    """Write the bytes over themselves, and sync: what a process finds of a killed one is then as durable as it looks.

    A sync alone is not enough: after one that failed the kernel takes its pages for clean, and no later one saves them.
    """
    for at in range(start, end, BLOCK_BYTES):
        write_at(fd, os.pread(fd, min(BLOCK_BYTES, end - at), at), at)
    sync(fd)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that does not take it is told in words."""
    try:
        yield
    except OSError as error:
        remedy = "free some space, or see to the disk and its permissions, then run the same command"
        reason = os.strerror(error.errno or 0)
        raise DiskProblem(f"`{path}` cannot be written ({reason}); stopped", remedy=remedy) from error


def blocks_of(fd: int, start: int) -> Iterator[bytes]:
    """Everything from there on."""
    while block := os.pread(fd, BLOCK_BYTES, start):
        yield block
        start += len(block)


def lines_of(fd: int, start: int, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its LF) from ``start``; the last may lack its LF. An over-long line ends the walk."""
    at, rest = start, b""
    stop = os.fstat(fd).st_size if end is None else end
    while at + len(rest) < stop and (block := os.pread(fd, min(BLOCK_BYTES, stop - at - len(rest)), at + len(rest))):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield at, line + b"\n"
            at += len(line) + 1
        if len(rest) > MAX_LINE_BYTES:
            break
    if rest:
        yield at, rest


def read_back(fd: int, written: Written | None) -> bytes | None:
    """The line at this place; None if it is not, byte for byte, the one that was written there."""
    if written is None or written.length > MAX_LINE_BYTES:
        return None
    if not 0 <= written.offset < written.end <= os.fstat(fd).st_size:
        return None
    line = os.pread(fd, written.length, written.offset)
    return line if zlib.crc32(line) == written.crc32 else None


class Results:
    """The open output. ``end`` is where the next line goes: every byte before it is synced and known to the ledger."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path
        self.end = 0

    @classmethod
    def open(cls, path: Path, *, create: bool) -> Self:
        """Open and lock the output, or ``create`` it, and make its directory entry durable.

        Raises:
            InputProblem: it is no regular file, or has a second name.
            BlockingIOError: another run holds it.
            OSError: it cannot be opened.
        """
        fd = os.open(path, os.O_RDWR | AS_IT_IS | (os.O_CREAT | os.O_EXCL if create else 0), 0o666)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise InputProblem(f"`{path}` is not a plain file of one name", remedy="choose another -o")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_directory(path.parent)  # also if it was there: who made it may have been killed before this
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, path)

    @staticmethod
    def place(line: bytes, offset: int) -> Written:
        return Written(offset, len(line), zlib.crc32(line))

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def append(self, lines: Sequence[bytes]) -> list[Written]:
        """Write the lines (each with its LF) at the end and sync them. Returns where each stands.

        Raises:
            OSError: nothing may be believed about the bytes after ``end``; the next start looks at them.
            InputProblem: somebody else changed the file, or put another in its place.
        """
        self.check_is_ours()
        places = []
        at = self.end
        for line in lines:
            places.append(self.place(line, at))
            at += len(line)
        write_at(self.fd, b"".join(lines), self.end)
        sync(self.fd)
        self.end = at
        return places

    def check_is_ours(self) -> None:
        """Raise InputProblem if somebody else changed the file, or put another in its place."""
        ours = os.fstat(self.fd)
        try:
            is_named = os.path.samestat(ours, os.stat(self.path))
        except FileNotFoundError:
            is_named = False
        if ours.st_size != self.end or not is_named:
            remedy = "put it back as it was and run again; no other program may write to it meanwhile"
            raise InputProblem(f"{self.path} was changed or replaced during the run", remedy=remedy)

    def keep_until(self, start: int, end: int, quarantine: Path) -> int:
        """Keep the bytes from ``start`` to ``end`` and move whatever follows to ``quarantine``. Returns bytes moved.

        The kept bytes are written anew: they may be visible and not durable.

        Raises:
            DiskProblem: the disk does not take it.
        """
        with writing(self.path):
            cut = self.size() - end
            if cut:
                write_new(quarantine, blocks_of(self.fd, end))
                os.ftruncate(self.fd, end)
            write_anew(self.fd, start, end)
        self.end = end
        return cut

    def close(self) -> None:
        os.close(self.fd)
