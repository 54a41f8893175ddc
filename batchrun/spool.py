"""What is no plain file of JSON lines is copied into one first: archives, streams, tables.

A run reads records by their place, and reads them again later. So the copy is whole and synced before anything is sent,
takes the place of the one before only when it has passed every check, and is what the run reads from then on.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import select
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import IO, Any, NoReturn, Self

import orjson

from batchrun.check import BLOCK_BYTES, TOO_LONG, state_of
from batchrun.config import JobConfig
from batchrun.errors import InputProblem, UsageProblem
from batchrun.lines import MAX_LINE_BYTES, shown
from batchrun.record import Settings
from batchrun.storage.results import sync, sync_directory, write_at, writing

STDIN = (Path("-"), Path("/dev/stdin"))
STREAMS = (*STDIN, Path(os.devnull))  # the last brings nothing: what came before is read
MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
TABLES = ("csv", "tsv")
NOT_A_RECORD = ""  # no column has this name: under it stand the cells of a row that is none, and the columns


def _made_of(path: Path, fd: int, settings: Settings) -> str | None:
    """What a copy of this input would be made of; None: it needs none and is read as it is."""
    table = _table(path, settings)
    if path in STREAMS or not stat.S_ISREG(os.fstat(fd).st_mode):
        return "-"
    if table is None and path.suffix.lower() not in MAGIC:
        return None
    return ":".join(map(str, state_of(fd))) + (f":{table}" if table else "")


def _table(path: Path, settings: Settings) -> str | None:
    names = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in MAGIC]
    kind = names[-1][1:] if settings.format == "auto" and names else settings.format
    return kind if kind in TABLES else None


def open_copy(path: Path) -> int | None:
    """The copy that is there; None for none, and for whatever else has its name."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return fd
    os.close(fd)
    return None


class Spool:
    """The copy in the state directory, and the one that may become it; or, ``for_good`` being false, never does.

    ``source`` is what it is made of; None: the input needs no copy, and is read as it is.
    """

    def __init__(self, config: JobConfig, fd: int, *, for_good: bool) -> None:
        self._path = config.paths.spool
        self._part = self._path.with_name("spool.part")
        self._for_good = for_good
        self._input = config.input
        self._settings = config.settings
        self._is_new = False
        self.source = _made_of(config.input, fd, config.settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        """Leave no copy behind that was not kept, and none of an input that needs none."""
        if not self._for_good:
            return
        with suppress(OSError):
            if self.source is not None:
                self._part.unlink(missing_ok=True)
            elif not failed:
                self._path.unlink()

    def read_instead(self, fd: int, known_source: str | None, known_state: tuple[int | None, ...]) -> None:
        """Let ``fd`` be the copy's: the one that is there if it is still what the ledger knows, else a new one.

        A stream without a byte brings nothing new: the copy that is there is read.

        Raises:
            InputProblem: the input is torn, or no such archive or table.
            DiskProblem: there is no room for it.
        """
        if self.source is None:
            return
        known = open_copy(self._path)
        try:
            if known is None or not self.source == known_source != "-" or state_of(known) != known_state:
                size = self._fill(fd)
                self._is_new = size > 0 or self.source != "-" or known is None
            if known is not None and not self._is_new:
                os.dup2(known, fd, inheritable=False)
        finally:
            if known is not None:
                os.close(known)

    def _fill(self, fd: int) -> int:
        """Make a new copy and let ``fd`` be its. Returns its size."""
        path, at = self._input, 0
        with writing(self._part if self._for_good else Path("TMPDIR")), self._new_file() as copy:
            for block in _blocks(path, fd, self._settings):
                write_at(copy.fileno(), block, at)
                at += len(block)
            sync(copy.fileno())
            if _made_of(path, fd, self._settings) != self.source:
                raise InputProblem(f"{path} was changed while it was read", remedy="run again when it is at rest")
            os.dup2(copy.fileno(), fd, inheritable=False)
        return at

    def _new_file(self) -> IO[bytes]:
        if not self._for_good:
            return tempfile.TemporaryFile()
        self._part.unlink(missing_ok=True)  # of a run that was killed here
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(self._part, flags, 0o600), "r+b")

    def keep(self) -> None:
        """The new copy has passed: it takes its place, durably, before the ledger says so.

        Killed in between, the ledger still knows the old one, and the next start checks the new one against it.
        """
        if self._is_new and self._for_good:
            with writing(self._path):
                os.replace(self._part, self._path)
                sync_directory(self._path.parent)


# --- archives and streams ---


def _blocks(path: Path, fd: int, settings: Settings) -> Iterator[bytes]:
    """What the copy shall hold, in pieces."""
    waiting = select.poll()  # of a pipe that nobody has opened for writing yet, reading would find the end
    waiting.register(fd, select.POLLIN)
    waiting.poll()
    os.set_blocking(fd, True)
    with os.fdopen(os.dup(fd), "rb") as raw:
        file = _unpacked(path, raw)
        table = _table(path, settings)
        if table is not None:
            yield from _rows(path, file, "\t" if table == "tsv" else ",", settings)
            return
        while block := _read(path, file.read, BLOCK_BYTES):
            yield block


def _unpacked(path: Path, raw: io.BufferedReader) -> io.BufferedIOBase:
    suffix = path.suffix.lower()
    if suffix not in MAGIC:
        return raw
    if not _read(path, raw.peek, 4).startswith(MAGIC[suffix]):
        remedy = f"name it without {suffix} if it is not packed"
        raise InputProblem(f"{path} is named {suffix} and is no such archive", remedy=remedy)
    return gzip.GzipFile(fileobj=raw) if suffix == ".gz" else _zstd(path).ZstdFile(raw)


def _zstd(path: Path) -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            return import_module(name)
    raise UsageProblem(f"{path}: nothing here unpacks zstd", remedy="pip install backports.zstd, or unpack it first")


def _read(path: Path, read: Callable[[int], bytes], size: int) -> bytes:
    try:
        return read(size)
    except Exception as error:
        if not isinstance(error, OSError | EOFError | zlib.error) and type(error).__name__ != "ZstdError":
            raise
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else "the archive is torn or damaged"
        raise InputProblem(f"{path}: {reason}", remedy="make it again; nothing was sent") from error


# --- tables ---


def _rows(path: Path, file: io.BufferedIOBase, delimiter: str, settings: Settings) -> Iterator[bytes]:
    """Each row as an object, on the line on which it begins in the table."""

    def refuse(line: int, reason: str, remedy: str = "mend it; nothing was sent") -> NoReturn:
        raise InputProblem(f"{path}:{line}: {reason}", remedy=remedy)

    row_bytes = 0

    def lines() -> Iterator[str]:
        nonlocal row_bytes
        raws = iter(lambda: _read(path, file.readline, MAX_LINE_BYTES + 1), b"")
        for number, raw in enumerate(raws, 1):
            if len(raw) > MAX_LINE_BYTES:
                refuse(number, TOO_LONG)
            row_bytes += len(raw)
            if row_bytes > 2 * MAX_LINE_BYTES:
                refuse(number, "a row is longer than 8 MiB; perhaps a quote is not closed")
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")

    csv.field_size_limit(MAX_LINE_BYTES)
    text = lines()
    first = next(text, "")
    if delimiter == "," and ";" in first and "," not in first:
        delimiter = ";"  # as spreadsheets write it where the comma is in the numbers
    reader = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
    columns: list[str] = []
    begins, written = 1, 0
    try:
        for row in reader:
            line, begins, row_bytes = begins, reader.line_num + 1, 0
            if len(row) <= 1 and not "".join(row).strip():
                continue
            if columns:
                yield b"\n" * (line - 1 - written) + orjson.dumps(_object(columns, row)) + b"\n"
                written = line
                continue
            columns = row
            names = ", ".join(map(shown, columns))
            if not all(map(str.strip, columns)) or len({*columns}) < len(columns) or not _is_text("".join(columns)):
                refuse(line, f"each column needs a name of its own, in UTF-8; these are: {names}")
            if settings.prompt_column is None and settings.template is None:
                remedy = "--prompt-column NAME, or -t FILE with {{ NAME }}"
                refuse(line, f"which column is the prompt? There are: {names}", remedy)
    except csv.Error as error:
        is_cr = str(error).startswith("new-line")  # the parser's words for it are for programmers
        refuse(begins, "line ends are CR only: convert the line ends to LF" if is_cr else f"not CSV: {error}")


def _object(columns: list[str], row: list[str]) -> dict[str, Any]:
    if len(row) != len(columns) or not _is_text("".join(row)):
        return {NOT_A_RECORD: [len(row), len(columns)]}
    return dict(zip(columns, row, strict=True))


def _is_text(cells: str) -> bool:
    return re.search("[\0\udc80-\udcff]", cells) is None
