"""The ledger on a real disk: what it refuses, what it keeps, what it tells."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, replace
from importlib import resources
from itertools import product
from pathlib import Path

import pytest

import batchrun
from batchrun.errors import DiskProblem, InputProblem
from batchrun.record import MOVES, Failure, History, Move, Place, RecordId, Settings, State, Usage, after_crash
from batchrun.storage.inventory import Inventory
from batchrun.storage.jobdir import JobDir, JobPaths
from batchrun.storage.ledger import QUERIES, Ledger, StateConflict, Written
from batchrun.storage.results import Results
from batchrun.summary import summarize

from .jobfiles import (
    NOW,
    REFUSED,
    SETTINGS,
    a_line,
    a_record,
    contents,
    damage,
    make_ledger,
    operation_of,
    record_in,
    sql,
)

NEW, INTENT, OPEN, DONE = State.NEW, State.INTENT, State.OPEN, State.DONE
FAILED, HELD, EXPIRED = State.FAILED, State.HELD, State.EXPIRED
WRITTEN = Results.place(b'{"text": "yes"}\n', 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = make_ledger(path)
    yield ledger
    ledger.close()


# --- the guards ---

Step = Callable[[Ledger, int], object]
STEPS: dict[str, tuple[State, Step]] = {
    "record_intent": (NEW, lambda ledger, seq: ledger.record_intent(a_record(1, seq=seq), "again", NOW)),
    "record_operation": (INTENT, lambda ledger, seq: ledger.record_operation(seq, "brand-new", NOW)),
    "record_done": (
        OPEN,
        lambda ledger, seq: ledger.record_done([(seq, operation_of(seq), WRITTEN, Usage(1, 2), NOW)]),
    ),
    "move from intent": (INTENT, lambda ledger, seq: ledger.move(seq, INTENT, Move(NEW), NOW)),
    "move from open": (OPEN, lambda ledger, seq: ledger.move(seq, OPEN, Move(EXPIRED, failure=REFUSED), NOW)),
}
WRONG = [(name, state) for name, state in product(STEPS, State) if state is not STEPS[name][0]]


@pytest.mark.parametrize(("name", "state"), WRONG, ids=[f"{name} of {state}" for name, state in WRONG])
def test_a_step_from_the_wrong_state_is_refused_and_changes_nothing(ledger: Ledger, name: str, state: State) -> None:
    seq = record_in(ledger, state)
    record_in(ledger, STEPS[name][0], line=2)  # one that it would fit, and that it must not touch
    before = contents(ledger)
    with pytest.raises(StateConflict), ledger.transaction():
        STEPS[name][1](ledger, seq)
    assert contents(ledger) == before


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_a_record_that_is_not_there_is_refused(ledger: Ledger, name: str) -> None:
    before = contents(ledger)
    with pytest.raises(StateConflict), ledger.transaction():
        STEPS[name][1](ledger, 7)
    assert contents(ledger) == before


@pytest.mark.parametrize("name", STEPS)
def test_a_step_from_the_right_state_moves_this_record_alone(ledger: Ledger, name: str) -> None:
    origin, step = STEPS[name]
    other, seq = record_in(ledger, origin), record_in(ledger, origin, line=2)
    with ledger.transaction():
        step(ledger, seq)
    assert ledger.row(seq).state is not origin
    assert ledger.row(other).state is origin


ILLEGAL = [(origin, to) for origin, to in product(State, State) if to not in MOVES[origin]]


@pytest.mark.parametrize(("origin", "to"), ILLEGAL, ids=[f"{origin} to {to}" for origin, to in ILLEGAL])
def test_an_illegal_move_is_refused_even_where_the_record_stands(ledger: Ledger, origin: State, to: State) -> None:
    seq = record_in(ledger, origin)
    before = contents(ledger)
    with pytest.raises(StateConflict), ledger.transaction():
        ledger.move(seq, origin, Move(to, failure=REFUSED), NOW)
    assert contents(ledger) == before


def test_an_answer_to_another_operation_is_not_written_down(ledger: Ledger) -> None:
    seq = record_in(ledger, OPEN)
    with pytest.raises(StateConflict), ledger.transaction():
        ledger.record_done([(seq, "op-of-somebody-else", WRITTEN, Usage(), NOW)])
    assert ledger.row(seq).state is OPEN


def test_one_operation_for_two_records_holds_the_second(ledger: Ledger) -> None:
    first, second = record_in(ledger, OPEN), record_in(ledger, INTENT, line=2)
    with ledger.transaction():
        assert not ledger.record_operation(second, operation_of(first), NOW)
    row = ledger.row(second)
    assert (row.state, row.operation_id) == (HELD, None)
    assert ledger.row(first).state is OPEN
    found = ledger.row_of_operation(operation_of(first))
    assert found is not None
    assert found.seq == first


def test_an_operation_of_a_settled_record_is_not_taken_for_another(ledger: Ledger) -> None:
    done, sent_again = record_in(ledger, DONE), record_in(ledger, OPEN, line=2)
    with ledger.transaction():
        ledger.move(sent_again, OPEN, Move(NEW, adds_failed_operation=1), NOW)
        ledger.record_intent(a_record(2, seq=sent_again), "again", NOW)
        assert not ledger.record_operation(sent_again, operation_of(sent_again), NOW)  # its own failed one
    third = record_in(ledger, INTENT, line=3)
    with ledger.transaction():
        assert not ledger.record_operation(third, operation_of(done), NOW)
    assert [ledger.row(seq).state for seq in (done, sent_again, third)] == [DONE, HELD, HELD]


def test_a_broken_rule_of_the_schema_is_a_bug_and_no_fault_of_the_disk(ledger: Ledger) -> None:
    seq = record_in(ledger, INTENT)
    with pytest.raises(sqlite3.IntegrityError, match="error IS NOT NULL"), ledger.transaction():
        ledger.move(seq, INTENT, Move(FAILED, failure=None), NOW)  # a failure without a reason
    assert ledger.row(seq).state is INTENT


# --- a transaction ---


def test_all_of_a_transaction_is_kept_or_none_of_it(ledger: Ledger) -> None:
    before = contents(ledger)
    with suppress(KeyboardInterrupt), ledger.transaction():
        ledger.record_intent(a_record(1), "request", NOW)
        ledger.refuse_line(Place(2, 100, 5), b"\0" * 16, REFUSED, NOW)
        raise KeyboardInterrupt
    assert contents(ledger) == before
    record_in(ledger, DONE)  # and the next one is none the worse


def test_nobody_else_sees_a_transaction_before_its_end(ledger: Ledger, path: Path) -> None:
    reader = Ledger.read_only(path)
    with ledger.transaction():
        ledger.record_intent(a_record(1), "request", NOW)
        assert reader.last_line() == 0
    assert reader.last_line() == 1
    reader.close()


def test_a_transaction_is_durable_when_it_returns(ledger: Ledger) -> None:
    def setting(name: str) -> object:
        return ledger.connection.execute(f"PRAGMA {name}").fetchone()[0]

    full = 2
    assert (setting("journal_mode"), setting("synchronous"), setting("fullfsync")) == ("wal", full, 1)
    assert setting("trusted_schema") == 0


# --- the file ---


def test_a_ledger_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        jobdir = JobDir.take(JobPaths.of(tmp_path / "out.jsonl"))
        ledger = Ledger.open(jobdir.make_ledger_file())
        ledger.create(job_id="job", input_path="in.jsonl", settings=SETTINGS, now=NOW)
        modes = {entry.name: entry.stat().st_mode & 0o777 for entry in jobdir.paths.state.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["lock", "ledger.db", "ledger.db-wal", "ledger.db-shm"], 0o600)
    assert jobdir.paths.state.stat().st_mode & 0o777 == 0o700
    ledger.close()
    jobdir.release()


def test_a_ledger_made_by_hand_of_the_schema_is_the_same_as_one_made_by_create(ledger: Ledger) -> None:
    shape = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name"
    wanted = sqlite3.connect(":memory:")
    wanted.executescript(resources.files("batchrun.storage").joinpath("schema.sql").read_text())
    assert [tuple(row) for row in ledger.connection.execute(shape)] == wanted.execute(shape).fetchall()
    wanted.close()


def test_a_ledger_is_found_again_as_it_was_left(ledger: Ledger, path: Path) -> None:
    record_in(ledger, DONE)
    before = contents(ledger)
    ledger.close()
    again = Ledger.open(path)
    assert again.exists()
    assert contents(again) == before
    again.close()


def test_a_ledger_killed_in_its_first_moment_is_made_anew(path: Path) -> None:
    path.touch(mode=0o600)
    ledger = Ledger.open(path)
    assert not ledger.exists()
    with suppress(KeyboardInterrupt), ledger.transaction():
        ledger.connection.execute("CREATE TABLE job (only INTEGER)")
        raise KeyboardInterrupt
    ledger.close()
    again = Ledger.open(path)
    assert not again.exists()
    again.create(job_id="job", input_path="in.jsonl", settings=SETTINGS, now=NOW)
    assert again.exists()
    again.close()


def test_a_ledger_of_a_newer_batchrun_is_refused_and_left_alone(ledger: Ledger, path: Path) -> None:
    ledger.close()
    sql(path, "PRAGMA user_version = 999")
    before = path.read_bytes()
    for opened in (Ledger.open, Ledger.read_only):
        with pytest.raises(InputProblem, match="newer"):
            opened(path)
    assert path.read_bytes() == before


FOREIGN = {
    "a trigger": ["CREATE TRIGGER evil AFTER UPDATE ON record BEGIN DELETE FROM operation; END"],
    "a trigger with a name much like SQLite's": [
        "CREATE TRIGGER sqlitexevil AFTER UPDATE ON record BEGIN DELETE FROM operation; END"
    ],
    "a view": ["CREATE VIEW extra AS SELECT 1"],
    "a table": ["CREATE TABLE extra (x)"],
    "a column": ["ALTER TABLE record ADD COLUMN extra TEXT"],
    "an index": ["CREATE INDEX extra ON record (id)"],
    "no index": ["DROP INDEX record_line"],
    "no table": ["DROP TABLE operation"],
    "a table of another program": [
        *(f"DROP TABLE {table}" for table in ("operation", "record", "run", "job", "submission")),
        "CREATE TABLE photos (path TEXT)",
    ],
    "no version": ["PRAGMA user_version = 0"],
}


@pytest.mark.parametrize("statements", FOREIGN.values(), ids=FOREIGN)
def test_a_ledger_with_a_foreign_schema_is_refused(ledger: Ledger, path: Path, statements: list[str]) -> None:
    ledger.close()
    sql(path, *statements)
    for opened in (Ledger.open, Ledger.read_only):
        with pytest.raises(InputProblem, match="not a ledger"):
            opened(path)


# --- damage ---

QUESTIONS: dict[str, Step] = {
    "a row": lambda ledger, seq: ledger.row(seq),
    "the row of an operation": lambda ledger, seq: ledger.row_of_operation(operation_of(seq)),
    "how many in each state": lambda ledger, seq: ledger.fetch("tally"),
    "how much in all": lambda ledger, seq: ledger.fetch("totals"),
    "what is written": lambda ledger, seq: list(ledger.walk("rows_done")),
    "which lines are known": lambda ledger, seq: ledger.lines_known(1, 9999),
    "what is open": lambda ledger, seq: ledger.open_operations(),
    "what is to be sent": lambda ledger, seq: ledger.seqs_to_send(1 << 40),
}


@pytest.fixture
def damaged(path: Path) -> Iterator[Ledger]:
    """A ledger whose first pages are whole, so that it opens, and nothing behind them is."""
    ledger = make_ledger(path)
    ledger.checkpoint()
    first_pages = path.stat().st_size
    with ledger.transaction():
        for line in range(1, 600):
            seq = ledger.record_intent(a_record(line), "request", NOW)
            ledger.record_operation(seq, operation_of(seq), NOW)
    ledger.checkpoint()
    ledger.close()
    damage(path, first_pages)
    ledger = Ledger.open(path)
    yield ledger
    ledger.close()


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_whatever_a_damaged_ledger_is_asked_it_says_that_it_is_damaged(damaged: Ledger, question: Step) -> None:
    with pytest.raises(DiskProblem, match="damaged"):
        question(damaged, 300)


@pytest.mark.parametrize("pragma", ["quick_check", "integrity_check"])
def test_a_check_finds_the_damage(damaged: Ledger, pragma: str) -> None:
    with pytest.raises(DiskProblem, match="damaged"):
        damaged.check(pragma)


def test_a_step_on_a_damaged_ledger_is_a_problem_of_the_disk(damaged: Ledger) -> None:
    with pytest.raises(DiskProblem, match="damaged"), damaged.transaction():
        damaged.record_operation(300, "brand-new", NOW)


def test_a_file_that_is_no_database_is_a_problem_of_the_disk(path: Path) -> None:
    path.write_bytes(b"these are not the pages you are looking for" * 200)
    for opened in (Ledger.open, Ledger.read_only):
        with pytest.raises(DiskProblem, match="damaged"):
            opened(path)


def test_a_sound_ledger_passes_its_checks(ledger: Ledger) -> None:
    record_in(ledger, DONE)
    ledger.check()
    ledger.check("integrity_check")


# --- a reader beside the writer ---


def test_a_reader_sees_each_commit_and_does_not_hold_the_writer_up(ledger: Ledger, path: Path) -> None:
    reader = Ledger.read_only(path)
    for line in range(1, 4):
        record_in(ledger, OPEN, line)
        assert len(reader.open_operations()) == line
    assert reader.job().job_id == "job00001"
    reader.close()


def test_a_reader_cannot_write(ledger: Ledger, path: Path) -> None:
    record_in(ledger, DONE)
    reader = Ledger.read_only(path)
    before = contents(ledger)
    with pytest.raises(DiskProblem, match="READONLY"), reader.transaction():
        reader.next_epoch()
    assert contents(ledger) == before
    reader.close()


def test_a_reader_that_leaves_does_not_empty_the_log(ledger: Ledger, path: Path) -> None:
    log = path.with_name("ledger.db-wal")
    record_in(ledger, OPEN)
    size = log.stat().st_size
    Ledger.read_only(path).close()
    assert log.stat().st_size == size > 0
    ledger.checkpoint()
    assert log.stat().st_size == 0


# --- what the steps leave behind ---


def test_a_record_that_is_sent_again_carries_nothing_of_its_last_operation(ledger: Ledger) -> None:
    seq = record_in(ledger, OPEN)
    with ledger.transaction():
        ledger.move(seq, OPEN, Move(NEW, adds_failed_operation=1), NOW)
    row = ledger.row(seq)
    assert (row.state, row.operation_id, row.finished_at, row.failure) == (NEW, None, None, None)
    assert row.history == History(attempt=2, failed_operations=1)


def test_every_doubt_is_counted_by_the_step_that_makes_it(ledger: Ledger) -> None:
    seq = record_in(ledger, INTENT)
    with ledger.transaction():
        ledger.move(seq, INTENT, Move(NEW, adds_maybe_paid=1, adds_lost_reply=1), NOW)
        ledger.record_intent(a_record(1, seq=seq), "again", NOW)
        ledger.move(seq, INTENT, Move(NEW), NOW)  # certainly refused
        ledger.record_intent(a_record(1, seq=seq), "again", NOW)
        assert ledger.end_intents(after_crash("resubmit"), NOW) == 1
    assert ledger.row(seq).history == History(attempt=3, lost_replies=1, maybe_paid=2)
    assert ledger.maybe_paid(10) == [(1, None, 2)]


def test_after_a_crash_only_what_was_on_its_way_is_in_doubt(ledger: Ledger) -> None:
    seqs = {state: record_in(ledger, state, line) for line, state in enumerate(State, 1)}
    with ledger.transaction():
        assert ledger.end_intents(after_crash("resubmit"), NOW) == 1
    rows = {state: ledger.row(seq) for state, seq in seqs.items()}
    assert {state: row.state for state, row in rows.items()} == {state: state for state in State} | {INTENT: NEW}
    assert [state for state, row in rows.items() if row.history.maybe_paid] == [INTENT]


def test_after_a_crash_under_hold_a_person_is_told_why(ledger: Ledger) -> None:
    seq = record_in(ledger, INTENT)
    with ledger.transaction():
        ledger.end_intents(after_crash("hold"), NOW)
    row = ledger.row(seq)
    assert (row.state, row.history.maybe_paid, row.finished_at) == (HELD, 0, NOW)
    assert row.failure is not None
    assert "before the reply" in row.failure.message


def test_a_failure_comes_back_as_it_was(ledger: Ledger) -> None:
    failure = Failure("content_filter", "нет \U0001f984 \\ \" '", 7, True, "content_filter", Usage(11, 22, None, 33))
    seq = record_in(ledger, OPEN)
    with ledger.transaction():
        ledger.move(seq, OPEN, Move(FAILED, failure=failure), NOW)
    row = ledger.row(seq)
    assert (row.failure, row.operation_id, row.finished_at) == (failure, operation_of(seq), NOW)
    assert tuple(ledger.fetch("totals")[0]) == (0, 11, 22)  # what failed was paid for, too


def test_an_answer_is_found_by_its_operation_with_its_place(ledger: Ledger) -> None:
    seq = record_in(ledger, OPEN)
    written = Written(offset=1 << 40, length=77, crc32=0xFFFFFFFF)
    with ledger.transaction():
        ledger.record_done([(seq, operation_of(seq), written, Usage(3, None), NOW)])
    row = ledger.row(seq)
    assert (row.state, row.written, row.failure) == (DONE, written, None)
    assert [ledger.row_of_operation(operation_of(seq)), *ledger.walk("rows_done")] == [row, row]
    assert ledger.row_of_operation("unheard-of") is None


@pytest.mark.parametrize("id", [None, 0, 1, -(2**63), "1", "", "Я\u2028\"'\\"], ids=repr)
def test_an_id_comes_back_with_its_type(ledger: Ledger, id: RecordId) -> None:
    row = ledger.row(record_in(ledger, OPEN, id=id))
    assert (row.id, type(row.id)) == (id, type(id))


def test_a_failed_record_goes_back_to_work_as_another_attempt_only_if_it_was_accepted(ledger: Ledger) -> None:
    refused, failed = record_in(ledger, FAILED), record_in(ledger, OPEN, line=2)
    with ledger.transaction():
        ledger.move(failed, OPEN, Move(FAILED, failure=REFUSED), NOW)
        ledger.reopen(refused)
        ledger.reopen(failed)
    rows = [ledger.row(refused), ledger.row(failed)]
    assert [row.history.attempt for row in rows] == [1, 2]
    assert {(row.state, row.operation_id, row.failure, row.finished_at) for row in rows} == {(NEW, None, None, None)}


def test_other_settings_give_what_was_refused_a_new_chance_and_a_bad_line_is_read_anew(ledger: Ledger) -> None:
    """Fails if the row of a bad line stays where the new settings make a record of it: nobody would send that."""
    refused, records = record_in(ledger, FAILED), [a_record(line) for line in (1, 2, 3)]
    with ledger.transaction():
        ledger.refuse_line(records[1].place, records[1].digest, Failure("bad_input", "no field 'a'"), NOW)
        ledger.save_settings(Settings("yandex", "yandexgpt-lite/latest"))
        ledger.reopen(refused)
    record_in(ledger, HELD, line=3)
    assert [ledger.row(seq).state for seq in (1, 2, 3)] == [NEW, FAILED, HELD]
    assert ledger.job().settings_digest == Settings("yandex", "yandexgpt-lite/latest").digest()
    inventory = Inventory(ledger)
    inventory.add((*astuple(record.place), None, record.digest) for record in records)
    inventory.forget_what_cost_nothing()
    assert ledger.lines_known(1, 9) == {3}, "no row means NEW"


def test_settings_are_free_until_the_service_has_accepted_anything(ledger: Ledger) -> None:
    seq = record_in(ledger, INTENT)
    assert not ledger.has_operations()
    with ledger.transaction():
        ledger.record_operation(seq, "op", NOW)
        assert ledger.has_operations()
        ledger.move(seq, OPEN, Move(NEW, adds_failed_operation=1), NOW)
    assert ledger.has_operations()


# --- the questions ---


def test_open_operations_come_oldest_first(ledger: Ledger) -> None:
    seqs = [record_in(ledger, state, line) for line, state in enumerate((OPEN, DONE, OPEN, NEW, OPEN), 1)]
    assert ledger.open_operations() == [
        (seqs[line - 1], operation_of(seqs[line - 1]), NOW + line) for line in (1, 3, 5)
    ]


def test_what_is_to_be_sent_comes_by_line_and_ends_with_the_checked_part(ledger: Ledger) -> None:
    seqs = {line: record_in(ledger, NEW, line) for line in (9, 2, 5)}
    record_in(ledger, OPEN, 3)
    assert list(ledger.seqs_to_send(1 << 40)) == [seqs[2], seqs[5], seqs[9]]
    assert list(ledger.seqs_to_send(a_record(9).place.offset)) == [seqs[2], seqs[5]]
    assert list(ledger.seqs_to_send(a_record(9).place.offset + 1)) == [seqs[2], seqs[5], seqs[9]]


def test_known_lines(ledger: Ledger) -> None:
    assert (ledger.last_line(), ledger.lines_known(1, 9)) == (0, set())
    for line in (4, 2, 7):
        record_in(ledger, OPEN, line)
    assert ledger.last_line() == 7
    assert ledger.lines_known(2, 4) == {2, 4}
    assert [row.place.line for row in ledger.walk("row_of_line", line=7)] == [7]


def test_failures_come_in_the_order_of_the_input(ledger: Ledger) -> None:
    lines = [line for line in range(30, 0, -1) if line % 3]
    with ledger.transaction():
        for line in range(30, 0, -1):
            if line % 3:
                ledger.refuse_line(Place(line, 0, 1), b"\0" * 16, REFUSED, NOW)
            else:
                ledger.record_intent(a_record(line), "request", NOW)
    assert [row.place.line for row in ledger.walk("rows_unwell")] == sorted(lines)


def test_answers_come_in_the_order_of_the_output(ledger: Ledger) -> None:
    with ledger.transaction():
        for line, offset in ((1, 500), (2, 0), (3, 9)):
            seq = ledger.record_intent(a_record(line), "request", NOW)
            ledger.record_operation(seq, operation_of(seq), NOW)
            ledger.record_done([(seq, operation_of(seq), Written(offset, 1, 2), Usage(), NOW)])
    record_in(ledger, OPEN, line=4)
    assert [row.place.line for row in ledger.walk("rows_done")] == [2, 3, 1]


def test_submissions_of_the_last_hour_are_counted_by_the_second(ledger: Ledger) -> None:
    with ledger.transaction():
        for line, at in enumerate((NOW - 9000, NOW, NOW + 0.9, NOW + 1), 1):
            ledger.record_intent(a_record(line), "request", at)
    assert ledger.submissions_since(NOW) == [(int(NOW), 2), (int(NOW) + 1, 1)]
    assert len(ledger.submissions_since(0)) == 3
    with ledger.transaction():
        ledger.forget_submissions(NOW, NOW + 3600)
    assert ledger.submissions_since(0) == [(int(NOW), 2), (int(NOW) + 1, 1)]


def test_a_sending_that_was_refused_counts_for_the_hour_all_the_same(ledger: Ledger) -> None:
    seq = record_in(ledger, NEW)
    with ledger.transaction():
        ledger.record_intent(a_record(1, seq=seq), "again", NOW)
    assert ledger.submissions_since(NOW) == [(int(NOW), 2)]


def test_runs_are_remembered_and_a_killed_one_has_no_end(ledger: Ledger) -> None:
    assert ledger.last_run() is None
    with ledger.transaction():
        first = ledger.begin_run("0.1.0", NOW)
        ledger.end_run(first, 75, NOW + 5)
    run = ledger.last_run()
    assert run is not None
    assert (run.run_id, run.ended_at, run.exit_code) == (first, NOW + 5, 75)
    with ledger.transaction():
        ledger.end_run(first, 3, NOW + 6, InputProblem("the last", remedy="mend it", before=["one", "another"]))
    run = ledger.last_run()
    assert run is not None
    assert (run.cause, run.remedy) == ("one; another; the last", "mend it")
    with ledger.transaction():
        ledger.begin_run("0.1.0", NOW + 10)
    run = ledger.last_run()
    assert run is not None
    assert (run.run_id, run.ended_at, run.exit_code) == (first + 1, None, None)


def test_the_job_keeps_what_it_is_told(ledger: Ledger) -> None:
    with ledger.transaction():
        assert (ledger.next_epoch(), ledger.next_epoch()) == (1, 2)
        ledger.save_low_water(12, 345)
        ledger.save(out_committed=6789, out_last_seq=3)
        ledger.save(input_path="other.jsonl")
        ledger.save(input_inode=2**62, input_mtime_ns=2**62, input_size=3, input_digest=b"\1" * 16, input_records=4)
    job = ledger.job()
    assert (job.epoch, job.low_water_line, job.low_water_offset) == (2, 12, 345)
    assert (job.out_committed, job.out_last_seq) == (6789, 3)
    assert (job.input_path, job.input_inode, job.input_mtime_ns) == ("other.jsonl", 2**62, 2**62)
    assert (job.input_size, job.input_digest, job.input_records) == (3, b"\1" * 16, 4)


def test_what_was_asked_and_answered_is_not_in_the_ledger(ledger: Ledger, path: Path) -> None:
    record_in(ledger, DONE, id="the id is")
    ledger.checkpoint()
    held = path.read_bytes()
    assert b"the id is" in held
    assert b"question" not in held
    assert a_line(1) not in held


# --- the queries ---


def test_every_named_query_is_used() -> None:
    code = "".join(file.read_text("utf-8") for file in Path(batchrun.__file__).parent.rglob("*.py"))
    assert [name for name in QUERIES if f'"{name}"' not in code] == []


def test_every_named_query_compiles(ledger: Ledger) -> None:
    Inventory(ledger).close()  # teaches the connection its function
    for query in QUERIES.values():
        if "CREATE TEMP TABLE matched" in query:
            ledger.connection.execute(QUERIES["drop_matched"])
        if "CREATE TEMP TABLE" in query:
            ledger.connection.execute(query)
        else:
            values = dict.fromkeys(re.findall(r":(\w+)", query)) or (None,) * query.count("?")
            ledger.connection.execute(f"EXPLAIN {query}", values)


@pytest.mark.parametrize("query", ["rows", "row_of_line", "rows_unwell", "row_of_operation", "lines_known"])
def test_a_query_of_a_running_job_reads_an_index_and_not_every_row(ledger: Ledger, query: str) -> None:
    values = dict.fromkeys(re.findall(r":(\w+)", QUERIES[query]), 1)
    plan = [row[3] for row in ledger.connection.execute(f"EXPLAIN QUERY PLAN {QUERIES[query]}", values)]
    assert [step for step in plan if step.startswith("SCAN") and "INDEX" not in step] == []


STARTS = ["tally", "maybe_paid", "failure_kinds", "open_operations", "seqs_in_flight", "seqs_to_send"]


@pytest.mark.parametrize("query", STARTS)
def test_a_query_of_a_start_finds_what_is_not_simply_done_by_its_index(ledger: Ledger, query: str) -> None:
    values = dict.fromkeys(re.findall(r":(\w+)", QUERIES[query]), 1)
    plan = [row[3] for row in ledger.connection.execute(f"EXPLAIN QUERY PLAN {QUERIES[query]}", values)]
    of_rows = [step for step in plan if re.match("(SCAN|SEARCH) record ", step)]
    counts = ["SCAN record USING COVERING INDEX record_line"] * (query == "tally")
    assert of_rows == ["SCAN record USING INDEX record_notable", *counts]


def test_a_start_takes_as_many_steps_however_many_records_are_done(ledger: Ledger) -> None:
    """Fails if a query of the start walks over DONE rows. SQLite counts them in one step."""

    def steps() -> int:
        taken: list[None] = []
        ledger.connection.set_progress_handler(lambda: taken.append(None), 1)
        ledger.end_intents(after_crash("resubmit"), NOW)
        summary, operations = summarize(ledger), ledger.open_operations()
        ledger.connection.set_progress_handler(None, 0)
        assert (summary.counts, len(operations)) == (found, 1)
        assert list(ledger.seqs_to_send(1 << 40)) == [1]
        return len(taken)

    for line, state in enumerate((NEW, OPEN, FAILED, HELD, EXPIRED), 1):
        record_in(ledger, state, line)
    found = dict.fromkeys(State, 1) | {INTENT: 0, DONE: 0}
    steps()  # the statements are compiled now
    before = steps()
    for line in range(11, 111):
        record_in(ledger, DONE, line)
    found[DONE] = 100
    assert steps() == before


def test_no_row_is_held_against_a_list(ledger: Ledger) -> None:
    """Fails if a CHECK says IN: then SQLite makes a table of the list each time, the dearest part of a write."""
    write = f"EXPLAIN {QUERIES['insert_intent']}"
    steps = [row[1] for row in ledger.connection.execute(write, (None,) * write.count("?"))]
    assert "MakeRecord" in steps
    assert "OpenEphemeral" not in steps


def test_a_record_of_the_ledger_is_a_copy_of_its_line_in_the_input(ledger: Ledger) -> None:
    record = replace(a_record(3), id="r3")
    with ledger.transaction():
        row = ledger.row(ledger.record_intent(record, "request", NOW))
    assert (row.place, row.id, row.digest, row.state, row.submitted_at) == (
        record.place,
        "r3",
        record.digest,
        INTENT,
        NOW,
    )
