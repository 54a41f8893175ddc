"""Do input, ledger and output agree? Reads all three whole, in bounded memory, and names every difference."""

from __future__ import annotations

import errno
import os
import stat
import zlib
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from batchrun.check import is_record, read_lines
from batchrun.lines import digest
from batchrun.storage.ledger import Ledger, Row
from batchrun.storage.results import lines_of

MAX_NAMED = 20
LINES_AT_ONCE = 1000


@dataclass(slots=True)
class Findings:
    """What was counted, and what does not agree: the first differences by name, and how many there are."""

    input_records: int = 0
    ledger_rows: int = 0
    output_lines: int = 0
    uncommitted_bytes: int = 0
    named: list[str] = field(default_factory=list)
    differences: int = 0

    def differ(self, what: str) -> None:
        self.differences += 1
        if len(self.named) < MAX_NAMED:
            self.named.append(what)


def verify(ledger: Ledger, input_path: Path, output_path: Path) -> Findings:
    """Compare all three.

    Raises:
        OSError: one of the files cannot be read.
    """
    found = Findings()
    ledger.check("integrity_check")
    found.ledger_rows = sum(row["records"] for row in ledger.tally())
    _compare_output(ledger, output_path, found)
    _compare_input(ledger, input_path, found)
    return found


def open_plain(path: Path) -> int:
    """Open a regular file for reading; a pipe in its place is not waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def _compare_output(ledger: Ledger, path: Path, found: Findings) -> None:
    committed = ledger.job().out_committed
    good, changed = Marks(), Marks()
    expected = _RowsByOffset(ledger)
    odd = array("q")  # line number, then the row it may be; judged when it is known which rows have their line
    fd = open_plain(path)
    try:
        size = os.fstat(fd).st_size
        found.uncommitted_bytes = max(0, size - committed)
        if size < committed:
            found.differ(f"{path}: {committed - size:,} bytes are missing at the end")
        for number, (offset, data) in enumerate(lines_of(fd, 0, committed), 1):
            found.output_lines += 1
            row, here = _row_of(ledger, data), expected.at(offset)
            if row is not None and row.written is not None and row.written.crc32 == zlib.crc32(data):
                if row.seq in good:
                    found.differ(f"{path}:{number}: line {row.place.line} of the input is answered twice")
                good.add(row.seq)
            else:
                culprit = row or here
                odd.extend((number, culprit.seq if culprit is not None and culprit.written is not None else 0))
    finally:
        os.close(fd)
    for number, seq in zip(odd[::2], odd[1::2], strict=True):
        if seq and seq not in good and seq not in changed:
            row = ledger.row(seq)
            whose = f"it answers line {row.place.line} of the input{_id(row)}"
            found.differ(f"{path}:{number}: changed since it was written; {whose}")
            changed.add(seq)
        else:
            found.differ(f"{path}:{number}: not written by this job")
    for row in ledger.rows_done():
        if row.seq not in good and row.seq not in changed:
            found.differ(f"{path}: the answer to line {row.place.line} of the input{_id(row)} is missing")


class Marks:
    """A set of row numbers, one bit each, in pages: numbers that are no rows of ours may be any."""

    def __init__(self) -> None:
        self._pages: defaultdict[int, bytearray] = defaultdict(lambda: bytearray(1 << 12))

    def __contains__(self, seq: int) -> bool:
        page = self._pages.get(seq >> 15)
        return page is not None and bool(page[seq >> 3 & 0xFFF] & 1 << (seq & 7))

    def add(self, seq: int) -> None:
        self._pages[seq >> 15][seq >> 3 & 0xFFF] |= 1 << (seq & 7)


class _RowsByOffset:
    """Finds the row whose line should begin at an offset; asked for rising offsets only."""

    def __init__(self, ledger: Ledger) -> None:
        self._rows = ledger.rows_done()
        self._next = next(self._rows, None)

    def at(self, offset: int) -> Row | None:
        while self._next is not None and self._next.written is not None and self._next.written.offset < offset:
            self._next = next(self._rows, None)
        here = self._next
        return here if here is not None and here.written is not None and here.written.offset == offset else None


def _compare_input(ledger: Ledger, path: Path, found: Findings) -> None:
    fd = open_plain(path)
    try:
        end = ledger.job().input_size
        next_line = 1
        batch: dict[int, bytes] = {}
        for line in read_lines(fd, os.fstat(fd).st_size if end is None else end):
            if is_record(line):
                found.input_records += 1
                batch[line.number] = digest(line.raw)
            if len(batch) >= LINES_AT_ONCE:
                _compare_lines(ledger, path, batch, next_line, line.number, found)
                batch, next_line = {}, line.number + 1
        _compare_lines(ledger, path, batch, next_line, ledger.last_line(), found)
    finally:
        os.close(fd)


def _compare_lines(ledger: Ledger, path: Path, batch: dict[int, bytes], first: int, last: int, found: Findings) -> None:
    for number, row in ledger.rows_by_line(first, last).items():
        if number not in batch:
            found.differ(f"{path}:{number}: in the ledger, and no longer in the input")
        elif batch[number] != row.digest:
            found.differ(f"{path}:{number}: changed since it was sent")


def _row_of(ledger: Ledger, data: bytes) -> Row | None:
    try:
        operation_id = orjson.loads(data)["operation_id"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return ledger.row_of_operation(operation_id) if isinstance(operation_id, str) else None


def _id(row: Row) -> str:
    return "" if row.id is None else f" (id {row.id})"
