"""A ledger that somebody else wrote: whatever it says, a command ends in words and harms nobody's files."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.hostile import IS_LONG, drawn
from tests.hostile.here import Here, Service, copy_of, finished, in_memory, json_lines, reply

PAGE_BYTES = 4096
LOOKS = (
    ("status", "out.jsonl"),
    ("verify", "out.jsonl"),
    ("export", "out.jsonl", "--with-errors", "--format", "csv", "-o", "exported"),
    ("export", "out.jsonl", "--with-errors", "--order", "finish", "-o", "exported"),
    ("export", "out.jsonl", "--format", "yandex-dataset", "-o", "exported"),
)
COMMANDS = (*LOOKS, ("resume", "out.jsonl", "--collect-only"), ("resume", "."), (), *LOOKS)
"""``()`` stands for the run."""

COLUMNS = {
    "job": "job_id epoch created_at input_path options settings settings_digest input_inode input_mtime_ns input_size"
    " input_digest input_records out_committed out_last_seq low_water_line low_water_offset",
    "run": "run_id started_at ended_at exit_code cause remedy version",
    "record": "seq line offset length id digest state attempt lost_replies maybe_paid failed_operations request_id"
    " operation_id submitted_at finished_at input_tokens output_tokens out_offset out_length out_crc32 error",
    "operation": "operation_id seq accepted_at",
    "submission": "at_s posts",
}
KEYS = {"job": "only", "run": "run_id", "record": "seq", "operation": "operation_id", "submission": "at_s"}
PLACES = [(table, column) for table, columns in COLUMNS.items() for column in columns.split()]

NUMBERS = (0, -1, 1, 2, 3, 7, 1 << 31, 1 << 40, (1 << 53) + 1, (1 << 63) - 1, -(1 << 63), 1_750_000_000)
REALS = (0.5, -0.5, 1e18, 1e300, -1e300, float("inf"), float("-inf"))
TEXTS = (
    "",
    "op000001",
    "op000002",
    "../../victim",
    "/etc/passwd",
    "..",
    ".",
    "a\x00b",
    "\x1b[2J\x1b]0;owned\x07",
    "line one\nline two",
    "\u202egnp.exe \u2028 \x85 \ufeff",
    "new",
    "intent",
    "open",
    "done",
    "failed",
    "held",
    "expired",
    "x" * 100_000,
    "; DROP TABLE record; --",
    "%s %d {0} {settings}",
    "in.jsonl",
    "out.jsonl",
    "out.jsonl.batchrun/ledger.db",
)
JSONS = (
    "null",
    "true",
    "0",
    "-1",
    "1e999",
    "NaN",
    '"text"',
    '"\\ud800"',
    '"\\u0000\\u001b[2J"',
    "[]",
    "{}",
    "{",
    "[" * 100_000,
    '{"model": null}',
    '{"model": {"a": 1}}',
    '{"model": "\\u001b[2J\\ud800"}',
    '{"kind": "bad_input"}',
    '{"kind": "bad_input", "message": 1, "code": [], "retryable": "x", "finish_reason": {}, "usage": {}}',
    '{"kind": null, "message": "m", "code": null, "retryable": false, "finish_reason": null, "usage": {}}',
    '{"kind": ["\\u001b[2J"], "message": "m", "code": 1, "retryable": false, "finish_reason": null, "usage": {}}',
    '{"kind": "\\u001b[2J", "message": "\\ud800\\u001b[2J", "code": 1, "retryable": false, "finish_reason": "\\ud800",'
    ' "usage": {"input_tokens": "\\ud800"}}',
    '{"kind": "x", "message": "m", "code": 1, "retryable": false, "finish_reason": null, "usage": null}',
    '{"kind": "x", "message": "m", "surplus": 1}',
)
BLOBS = (b"", b"\xff" * 16, b"\xff\xfe\x00", bytes(16))
VALUES = (None, *NUMBERS, *REALS, *TEXTS, *JSONS, *BLOBS)

TELLING: dict[tuple[str, str], Any] = {
    ("job", "epoch"): (1 << 63) - 1,
    ("job", "input_path"): "a\x00b",
    ("job", "job_id"): "a\x00b",
    ("job", "options"): '{"endpoint": "https://elsewhere.example", "rps": 1000}',
    ("job", "out_committed"): 0,
    ("job", "out_last_seq"): 99,
    ("job", "settings"): "{}",
    ("run", "cause"): "a\x00b",
    ("run", "ended_at"): 1e300,
    ("record", "error"): "{}",
    ("record", "id"): "{",
    ("record", "out_length"): 1 << 45,
    ("record", "seq"): 1 << 60,
    ("record", "submitted_at"): 1e300,
}
"""Values that were bugs once, tried every time."""


class Moody(Service):
    """What a prompt asks for happens to it."""

    async def get(self, url: str) -> Any:
        operation_id = url.rpartition("/")[2]
        match self.asked.get(operation_id, ""):
            case "fails":
                return reply({"id": operation_id, "done": True, "error": {"code": 3, "message": "no\u001b[2J"}})
            case "lost":
                return reply({"code": 5, "message": "not found"}, status=404)
            case "":
                return finished(operation_id, "of an earlier run")
            case text:
                return finished(operation_id, text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that was killed: three answers, a failure of each sort, one operation open, one reply lost, one to send."""
    here = Here(tmp_path_factory.mktemp("job"), Moody())
    lines = [json.dumps({"id": text, "prompt": text}) for text in ("a", "fails", "b", "lost", "c", "d", "e")]
    here.input.write_text("\n".join([*lines[:3], "no record", *lines[3:]]) + "\n")
    assert here.run("--limit", "6").code == 4
    assert [result["id"] for result in here.results()] == ["a", "b", "c"]
    with closing(sqlite3.connect(here.state / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE run SET ended_at = NULL, exit_code = NULL, cause = NULL, remedy = NULL")
        last, at = ledger.execute("SELECT seq, out_offset FROM record WHERE id = '\"c\"'").fetchone()
        before = ledger.execute("SELECT seq FROM record WHERE id = '\"b\"'").fetchone()[0]
        ledger.execute(
            "UPDATE record SET state = 'open', out_offset = NULL, out_length = NULL, out_crc32 = NULL WHERE seq = ?",
            (last,),
        )
        ledger.execute("UPDATE job SET out_committed = ?, out_last_seq = ?", (at, before))
    with here.output.open("r+b") as output:
        output.truncate(at)
    return here.folder


def put(here: Here, place: tuple[str, str], value: Any, row: int | None) -> bool:
    """Put this value into the column, of one row or of all; False if the schema forbids it."""
    table, column = place
    key = KEYS[table]
    given = "CAST(? AS TEXT)" if isinstance(value, bytes) and "digest" not in column else "?"
    with closing(sqlite3.connect(here.state / "ledger.db")) as ledger:
        rows = [found for (found,) in ledger.execute(f"SELECT {key} FROM {table} ORDER BY 1")]
        chosen = rows if row is None or not rows else [rows[row % len(rows)]]
        try:
            with ledger:
                for found in chosen:
                    ledger.execute(f"UPDATE {table} SET {column} = {given} WHERE {key} = ?", (value, found))
        except sqlite3.IntegrityError:
            return False
    return True


def check(here: Here) -> list[int]:
    """Every command ends well, and what was written stays written."""
    victim = here.folder.parent / "victim"
    victim.write_text("precious")
    input_before, output_before = here.input.read_bytes(), here.output.read_bytes()
    codes = []
    for words in COMMANDS:
        codes.append((here(*words) if words else here.run()).code)
        (here.folder / "exported").unlink(missing_ok=True)
        assert here.output.read_bytes().startswith(output_before), f"{words}: a committed line was changed"
    assert here.input.read_bytes() == input_before
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in here.folder.parent.iterdir()) == ["job", "victim"]
    own = {"in.jsonl", "out.jsonl", "out.errors.ndjson", "out.jsonl.batchrun"}
    assert {path.name for path in here.folder.iterdir()} <= own
    kept = {"ledger.db", "ledger.db-wal", "ledger.db-shm", "lock", "quarantine"}
    assert {path.name for path in here.state.iterdir()} <= kept
    for line in json_lines(here.failures):
        assert isinstance(line["line"], int)
    for url in here.service.urls:
        assert re.fullmatch(r"https://(ai|operation)\.api\.cloud\.yandex\.net/[A-Za-z]+/[A-Za-z0-9_/-]+", url)
    here.check_secrets()
    return codes


def try_value(model: Path, place: tuple[str, str], value: Any, row: int | None) -> None:
    with in_memory() as folder:
        here = Here(copy_of(model, folder / "job"), Moody())
        if put(here, place, value, row):
            check(here)


@pytest.mark.parametrize("place", PLACES, ids=map(".".join, PLACES))
def test_no_value_in_the_ledger_is_a_bug(model: Path, place: tuple[str, str], seed: int) -> None:
    """Fails if a value of this column is used as it is."""
    if place in TELLING:
        for row in (None, 2):
            try_value(model, place, TELLING[place], row)
    draw = random.Random(f"{seed} {place}")
    for value in draw.sample(VALUES, 4 if IS_LONG else 2):
        try_value(model, place, value, draw.choice([None, *range(8)]))


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=40)), min_size=1, max_size=4))
@example([(200, b"\x9c")])
@drawn(20)
def test_no_splinter_in_the_ledger_is_a_bug(model: Path, splinters: list[tuple[int, bytes]]) -> None:
    """Places count from the text of the schema. Fails if a text is trusted to be UTF-8, or any value to make sense."""
    with in_memory() as folder:
        here = Here(copy_of(model, folder / "job"), Moody())
        path = here.state / "ledger.db"
        data = bytearray(path.read_bytes())
        origin = data.index(b"CREATE TABLE job")
        for at, splinter in splinters:
            at = (origin + at) % len(data)
            data[at : at + len(splinter)] = splinter[: len(data) - at]
        path.write_bytes(data)
        check(here)


@given(st.sets(st.integers(0, 40)), st.none() | st.integers(0, 1 << 20), st.integers(0, 1 << 30))
@drawn(20)
def test_pages_of_noise_and_a_lost_end_are_damage(model: Path, pages: set[int], end: int | None, noise: int) -> None:
    """Fails if SQLite's word for a damaged page is not put into ours."""
    with in_memory() as folder:
        here = Here(copy_of(model, folder / "job"), Moody())
        path = here.state / "ledger.db"
        data = bytearray(path.read_bytes())
        for page in pages:
            at = page * PAGE_BYTES % len(data)
            data[at : at + PAGE_BYTES] = random.Random(noise + page).randbytes(PAGE_BYTES)
        path.write_bytes(data if end is None else data[: end % (len(data) + 1)])
        check(here)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER evil AFTER UPDATE ON job BEGIN DELETE FROM operation; END",
        "CREATE VIEW evil AS SELECT * FROM record",
    ],
)
def test_a_ledger_with_something_added_is_refused_by_every_command(model: Path, statement: str) -> None:
    """Fails if a command opens the ledger without a look at its schema."""
    with in_memory() as folder:
        here = Here(copy_of(model, folder / "job"), Moody())
        with closing(sqlite3.connect(here.state / "ledger.db")) as ledger:
            ledger.execute(statement)
        assert set(check(here)) == {3}
        assert not here.service.submits
