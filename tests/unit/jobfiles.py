"""Real files of a job, made in one call each."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from batchrun.lines import digest
from batchrun.record import Failure, Move, Place, Prompt, Record, RecordId, Settings, State, Usage
from batchrun.storage.ledger import Ledger
from batchrun.storage.results import Results

NOW = 1_750_000_000.0
SETTINGS = Settings("emulator", "yandexgpt/latest")
REFUSED = Failure("invalid_argument", "the service did not like it", 3)

ARRIVAL = {
    State.INTENT: (),
    State.OPEN: (State.OPEN,),
    State.NEW: (State.NEW,),
    State.DONE: (State.OPEN, State.DONE),
    State.FAILED: (State.FAILED,),
    State.HELD: (State.HELD,),
    State.EXPIRED: (State.OPEN, State.EXPIRED),
}
"""The steps that bring a record from INTENT into a state."""


def make_ledger(path: Path) -> Ledger:
    """A new ledger, as a job makes it."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    ledger = Ledger.open(path)
    ledger.create(job_id="job00001", input_path="in.jsonl", settings=SETTINGS, now=NOW)
    return ledger


def a_line(number: int) -> bytes:
    """A line of input, all of the same length."""
    return f'{{"id": "r{number:06d}", "prompt": "question {number:06d}"}}'.encode()


LINE_BYTES = len(a_line(1)) + 1


def a_record(line: int, *, id: RecordId = None, seq: int | None = None) -> Record:
    """The record of such a line, in a file that holds nothing else."""
    raw = a_line(line)
    place = Place(line, (line - 1) * LINE_BYTES, len(raw))
    return Record(place, id, digest(raw), Prompt(f"question {line:06d}"), seq)


def operation_of(seq: int) -> str:
    return f"op{seq:06d}"


def record_in(ledger: Ledger, state: State, line: int = 1, *, id: RecordId = None) -> int:
    """Bring one more record into this state; returns its ``seq``."""
    with ledger.transaction():
        seq = ledger.record_intent(a_record(line, id=id), f"request-{line}", NOW)
        at = State.INTENT
        for to in ARRIVAL[state]:
            if to is State.OPEN:
                assert ledger.record_operation(seq, operation_of(seq), NOW + line)
            elif to is State.DONE:
                written = Results.place(b"{}\n", 3 * (seq - 1))
                ledger.record_done([(seq, operation_of(seq), written, Usage(3, 4), NOW + 60)])
            else:
                ledger.move(seq, at, Move(to, failure=None if to is State.NEW else REFUSED), NOW + 60)
            at = to
    return seq


def contents(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    """Everything a ledger holds, table by table."""
    tables = [name for (name,) in ledger.connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    return {table: [tuple(row) for row in ledger.connection.execute(f"SELECT * FROM {table}")] for table in tables}


def damage(path: Path, first_byte: int) -> None:
    """Overwrite a file from there on with what no program wrote."""
    size = path.stat().st_size
    assert size > first_byte, "nothing to damage"
    with path.open("r+b") as file:
        file.seek(first_byte)
        file.write(b"\xa5" * (size - first_byte))


def sql(path: Path, *statements: str) -> None:
    """What somebody else does to a ledger."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()
