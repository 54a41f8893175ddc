"""Do input, ledger and output agree? Reads all three whole and names every difference."""

from __future__ import annotations

import errno
import os
import stat
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from batchrun.check import is_record, read_lines
from batchrun.errors import UsageProblem
from batchrun.lines import digest
from batchrun.record import State
from batchrun.storage.ledger import Ledger
from batchrun.storage.results import lines_of
from batchrun.tail import result_in

MAX_NAMED = 20
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
        UsageProblem: one of the files cannot be read.
    """
    found = Findings()
    ledger.check("integrity_check")
    found.ledger_rows = sum(row["records"] for row in ledger.tally())
    _compare_output(ledger, output_path, found)
    _compare_input(ledger, input_path, found)
    return found


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe in its place is not waited for. Raises UsageProblem."""
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(errno.EINVAL, "not a regular file")
    except OSError as error:
        remedy = "put it back, or see to its permissions; an output is fetched again by a run with --rebuild-output"
        raise UsageProblem(f"{path} cannot be read ({error.strerror})", remedy=remedy) from error
    return file


def _compare_output(ledger: Ledger, path: Path, found: Findings) -> None:
    """Each line is to be, byte for byte, one that was written, and each answer is to be met once, in its place."""
    committed, moved = ledger.job().out_committed, 0
    ledger.forget_met()
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        found.uncommitted_bytes = max(0, size - committed)
        if size < committed:
            found.differ(f"{path}: {committed - size:,} bytes are missing at the end")
        for number, (offset, data) in enumerate(lines_of(file.fileno(), 0, committed), 1):
            found.output_lines += 1
            row = ledger.row_of_operation(result_in(data).get("operation_id", ""))
            written = row.written if row is not None and row.state is State.DONE else None
            if row is None or written is None or written.crc32 != zlib.crc32(data):
                found.differ(f"{path}:{number}: changed, or not written by this job")
            elif not ledger.meet(row.seq):
                found.differ(f"{path}:{number}: {row.named} is answered twice")
            elif written.offset != offset:
                moved = moved or number
    for row in ledger.walk("rows_not_met"):
        found.differ(f"{path}: the answer to {row.named} is missing")
    if moved and not found.differences:  # else that is what moved them
        found.differ(f"{path}:{moved}: from here on, lines are not in the order in which they were written")


def _compare_input(ledger: Ledger, path: Path, found: Findings) -> None:
    """Walk lines and rows side by side."""
    rows = ledger.walk("rows_in_order")
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
