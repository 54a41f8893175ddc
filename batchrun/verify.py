"""Do input, ledger and output agree? Reads all three whole, in bounded memory, and names every difference."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from batchrun.check import is_record, read_lines
from batchrun.inputs import digest
from batchrun.record import State
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


def _compare_output(ledger: Ledger, path: Path, found: Findings) -> None:
    committed = ledger.job().out_committed
    seen = bytearray(ledger.last_seq() // 8 + 1)
    odd: list[tuple[int, int, bytes]] = []
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        found.uncommitted_bytes = max(0, size - committed)
        if size < committed:
            found.differ(f"{path}: {committed - size:,} bytes are missing at the end")
        for number, (offset, data) in enumerate(lines_of(fd, 0, committed), 1):
            found.output_lines += 1
            row = _row_of(ledger, data)
            if row is None or row.written is None or row.written.crc32 != zlib.crc32(data):
                odd.append((number, offset, data))
                if len(odd) > MAX_NAMED:
                    break
            elif _is_marked(seen, row.seq):
                found.differ(f"{path}:{number}: line {row.place.line} of the input is answered twice")
            else:
                _mark(seen, row.seq)
    finally:
        os.close(fd)
    changed = _name_odd_lines(ledger, path, odd, seen, found)
    for row in _done_rows(ledger):
        if not _is_marked(seen, row.seq) and row.seq not in changed:
            found.differ(f"{path}: the answer to line {row.place.line} of the input{_id(row)} is missing")


def _name_odd_lines(
    ledger: Ledger, path: Path, odd: list[tuple[int, int, bytes]], seen: bytearray, found: Findings
) -> set[int]:
    """Say of each line without its row whether it is a changed one or a foreign one. Returns the changed rows."""
    changed = set()
    for number, offset, data in odd:
        row = ledger.row_at(offset) or _row_of(ledger, data)
        if row is not None and row.state is State.DONE and not _is_marked(seen, row.seq) and row.seq not in changed:
            found.differ(
                f"{path}:{number}: changed since it was written (line {row.place.line} of the input{_id(row)})"
            )
            changed.add(row.seq)
        else:
            found.differ(f"{path}:{number}: not written by this job")
    return changed


def _compare_input(ledger: Ledger, path: Path, found: Findings) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = ledger.job().input_size
        batch: dict[int, bytes] = {}
        for line in read_lines(fd, os.fstat(fd).st_size if end is None else end):
            if is_record(line):
                found.input_records += 1
                batch[line.number] = digest(line.raw)
            if len(batch) >= LINES_AT_ONCE:
                _compare_lines(ledger, path, batch, found)
                batch = {}
        if batch:
            _compare_lines(ledger, path, batch, found)
        last = line.number if found.input_records else 0
        for number in ledger.lines_known(last + 1, 1 << 62):
            found.differ(f"{path}:{number}: in the ledger, and no longer in the input")
    finally:
        os.close(fd)


def _compare_lines(ledger: Ledger, path: Path, batch: dict[int, bytes], found: Findings) -> None:
    for number, row in ledger.rows_by_line(min(batch), max(batch)).items():
        if number not in batch:
            found.differ(f"{path}:{number}: in the ledger, and no longer in the input")
        elif batch[number] != row.digest:
            found.differ(f"{path}:{number}: changed since it was sent")


def _done_rows(ledger: Ledger) -> Iterator[Row]:
    last = 0
    while page := ledger.rows_done(last):
        yield from page
        last = page[-1].seq


def _row_of(ledger: Ledger, data: bytes) -> Row | None:
    try:
        operation_id = orjson.loads(data)["operation_id"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return ledger.row_of_operation(operation_id) if isinstance(operation_id, str) else None


def _id(row: Row) -> str:
    return "" if row.id is None else f" (id {row.id})"


def _is_marked(seen: bytearray, seq: int) -> bool:
    return bool(seen[seq >> 3] & (1 << (seq & 7)))


def _mark(seen: bytearray, seq: int) -> None:
    seen[seq >> 3] |= 1 << (seq & 7)
