"""Do input, ledger and output agree? Reads all three whole and names every difference."""

from __future__ import annotations

import errno
import math
import os
import stat
import zlib
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from batchrun.check import is_record, read_lines
from batchrun.lines import digest
from batchrun.record import State
from batchrun.storage.ledger import Ledger
from batchrun.storage.results import lines_of
from batchrun.tail import result_in

MAX_NAMED = 20
NO_MORE = math.inf, 0
GONE = "in the ledger, and no longer in the input"


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


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe in its place is not waited for."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", path)
    return file


def _compare_output(ledger: Ledger, path: Path, found: Findings) -> None:
    """Walk lines and answered records side by side: only what is not met where it should be stays in memory."""
    committed = ledger.job().out_committed
    places = ((row.written.offset, row.seq) for row in ledger.rows_done() if row.written is not None)
    next_at, next_seq = next(places, NO_MORE)
    missing: set[int] = set()  # the records whose line should have come by now
    odd = array("q")  # line number, then the record it may be; judged when it is known which records have their line
    moved = 0  # the first line that is not where it was written
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        found.uncommitted_bytes = max(0, size - committed)
        if size < committed:
            found.differ(f"{path}: {committed - size:,} bytes are missing at the end")
        for number, (offset, data) in enumerate(lines_of(file.fileno(), 0, committed), 1):
            found.output_lines += 1
            seq, at, is_as_written = _claim(ledger, data)
            while next_at <= max(offset, at):
                missing.add(next_seq)
                if next_at == offset and not seq:
                    seq = next_seq
                next_at, next_seq = next(places, NO_MORE)
            if not is_as_written:
                odd.extend((number, seq))
            elif seq in missing:
                missing.remove(seq)
                if not moved and at != offset:
                    moved = number
            else:
                line = ledger.row(seq).place.line
                found.differ(f"{path}:{number}: line {line} of the input is answered twice")
    missing.update(seq for _, seq in ((next_at, next_seq), *places) if seq)
    for number, seq in zip(odd[::2], odd[1::2], strict=True):
        if seq in missing:
            missing.remove(seq)
            found.differ(f"{path}:{number}: changed since it was written; it answers {ledger.row(seq).named}")
        else:
            found.differ(f"{path}:{number}: not written by this job")
    for row in ledger.rows_done():
        if row.seq in missing:
            found.differ(f"{path}: the answer to {row.named} is missing")
    if moved and not found.differences:  # else that is what moved them
        found.differ(f"{path}:{moved}: from here on, lines are not in the order in which they were written")


def _claim(ledger: Ledger, data: bytes) -> tuple[int, int, bool]:
    """The record that a line says it answers (0: none), where its answer was written, and whether this line is it."""
    row = ledger.row_of_operation(result_in(data).get("operation_id", ""))
    if row is None or row.state is not State.DONE or row.written is None:
        return 0, 0, False
    return row.seq, row.written.offset, row.written.crc32 == zlib.crc32(data)


def _compare_input(ledger: Ledger, path: Path, found: Findings) -> None:
    """Walk lines and rows side by side."""
    rows = ledger.rows_in_order()
    row = next(rows, None)
    with open_plain(path) as file:
        size, end = os.fstat(file.fileno()).st_size, ledger.job().input_size
        for line in read_lines(file.fileno(), size if end is None else end):
            found.input_records += is_record(line)
            while row is not None and row.place.line <= line.number:
                if not is_record(line):
                    found.differ(f"{path}:{row.place.line}: {GONE}")
                elif row.digest != digest(line.raw):
                    found.differ(f"{path}:{row.place.line}: changed since it was sent")
                row = next(rows, None)
    while row is not None:
        found.differ(f"{path}:{row.place.line}: {GONE}")
        row = next(rows, None)
