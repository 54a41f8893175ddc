"""An input that is not what it was: between two runs, or under a run's hands."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.scenarios.bench import Bench, record, wait_until


def test_a_few_records_first_then_more_then_the_whole_file(bench: Bench) -> None:
    """Fails if the limit holds for the first check of the input only."""
    bench.records(*(f"prompt {number}" for number in range(15)))
    for limit in (3, 10):
        assert bench.run("--limit", str(limit)).exit_code == 0
        assert len(bench.results()) == limit
        bench.check(unsent=15 - limit)
    assert bench.run().exit_code == 0
    assert set(bench.emulator.submissions.values()) == {1}
    bench.check()


def test_a_limit_below_a_record_in_doubt_leaves_it_for_a_later_run(bench: Bench) -> None:
    """Fails if a record behind the limit counts as one that was forgotten: nothing is damaged."""
    bench.records("a", "b", "c")
    bench.expect("c", slow=60)
    running = bench.start()
    wait_until(lambda: bench.emulator.submissions["c"] == 1, "c is accepted, and not yet answered", while_alive=running)
    running.stop(signal.SIGKILL)
    bench.emulator.change(rules=[])
    assert bench.run("--limit", "1").exit_code == 0
    assert bench.emulator.submissions["c"] == 1
    assert bench.run().exit_code == 0
    bench.check()


def test_appended_lines_are_new_work(finished: Bench) -> None:
    finished.append("d")
    assert finished.run().exit_code == 0
    assert finished.emulator.submissions == {"a": 1, "b": 1, "c": 1, "d": 1}
    finished.check()


def test_a_renamed_input_is_still_the_same_input(finished: Bench) -> None:
    """Fails if the ledger keeps the old name: ``verify`` would look for a file that is gone."""
    finished.input = finished.input.rename(finished.folder / "renamed.jsonl")
    assert finished.spawn("renamed.jsonl", *finished.command()[1:]).wait().exit_code == 0
    assert finished.is_untouched()
    finished.check()


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        pytest.param((record("a"), record("b", note="new"), record("c")), "in.jsonl:2: changed", id="changed"),
        pytest.param((record("a"), record("c")), "in.jsonl:2: gone", id="deleted"),
        pytest.param((record("a"), "{", record("c")), "in.jsonl:2: gone", id="broken"),
    ],
)
def test_an_answered_line_that_changed_is_refused_and_nothing_is_touched(
    finished: Bench, lines: tuple[str, ...], named: str
) -> None:
    """Fails if ``conflicts`` leaves out the rows that are DONE."""
    before = finished.output.read_bytes(), finished.rows()
    finished.lines(*lines)
    ran = finished.run()
    assert ran.exit_code == 3
    assert named in ran.stderr
    assert (finished.output.read_bytes(), finished.rows()) == before
    assert finished.is_untouched()


def test_lines_in_another_order_go_on_where_ids_are_unique(finished: Bench) -> None:
    """Fails if rows are matched by line although every record has an id."""
    finished.records("d", "c", "a", "b")
    assert finished.run().exit_code == 0
    assert finished.emulator.submissions == {"a": 1, "b": 1, "c": 1, "d": 1}
    finished.check()


def test_a_repaired_line_is_new_work(finished: Bench) -> None:
    """Fails if ``forget_what_cost_nothing`` is left out: the row of the bad line would stand for the good one."""
    finished.lines(record("a"), record("b"), record("c"), "{oops")
    assert finished.run().exit_code == 1
    assert finished.kinds() == {None: "bad_input"}
    finished.check()
    finished.records("a", "b", "c", "d")
    assert finished.run().exit_code == 0
    assert finished.failures() == []
    assert finished.emulator.submissions == {"a": 1, "b": 1, "c": 1, "d": 1}
    finished.check()


def test_a_line_that_was_never_accepted_may_break_or_go(bench: Bench) -> None:
    """Fails if a row for which nothing was paid needs its line."""
    bench.records("a", "b", "c", "d")
    bench.emulator.change(status=400)
    assert bench.run().exit_code == 2
    bench.emulator.change(rules=[{"text": "refused", "status": 400}], status=0)
    bench.lines(record("a"), "{oops", record("c"), record("refused"))
    assert bench.run().exit_code == 1
    assert bench.kinds() == {None: "bad_input", "refused": "invalid_argument"}
    bench.check()
    bench.lines(record("a"), record("c"))
    assert bench.run().exit_code == 0
    assert bench.failures() == []
    assert bench.emulator.submissions == {"a": 1, "c": 1}
    bench.check()


def test_a_record_in_doubt_without_an_id_must_not_move(bench: Bench) -> None:
    """Fails if ``conflicts`` looks at answered records alone: the doubt would stay with the line in its place."""
    one, lost, new = (json.dumps(text) for text in ("one", "lost", "new"))
    bench.emulator.change(rules=[{"text": "lost", "lost": 1}])
    bench.lines(one, lost)
    assert bench.run().exit_code == 1
    paid = bench.emulator.submissions
    bench.emulator.change(rules=[])
    bench.lines(one, new, lost)
    ran = bench.run()
    assert (ran.exit_code, ran.stderr.splitlines()[0].endswith(":2: changed since it was sent")) == (3, True), ran
    assert bench.emulator.submissions == paid
    bench.lines(one, lost, new)
    assert bench.run().exit_code == 1
    assert bench.emulator.submissions == paid | {"new": 1}
    bench.check()


def test_a_failures_file_made_anew_hides_no_payment_of_the_job_it_came_from(bench: Bench) -> None:
    """Fails if ``maybe_paid`` of a line is read only when its record is first sent."""

    def failure(text: str, **fields: object) -> str:
        as_it_was = {"operation_id": None, "error": {"kind": "invalid_argument"}, "input": json.loads(record(text))}
        return json.dumps(as_it_was | fields)

    bench.lines(failure("answered"), failure("refused"), failure("failed"))
    rules = [{"text": "refused", "status": 400}, {"text": "failed", "fail": 1, "fail_code": 3}]
    bench.emulator.change(rules=rules)
    assert bench.run().exit_code == 1
    bench.emulator.change(rules=[])
    expired = {"operation_id": "theirs", "error": {"kind": "expired"}}
    no_reply = {"error": {"kind": "no_reply"}, "maybe_paid": 3}
    bench.lines(failure("answered"), failure("refused", **expired), failure("failed", **no_reply))
    assert bench.run().exit_code == 0
    paid = {result["id"]: result["maybe_paid"] for result in bench.results()}
    assert paid == {"answered": 0, "refused": 1, "failed": 3 + 1}  # the operation that failed here is one more
    bench.check()


@pytest.mark.parametrize(
    ("change", "options"),
    [("edited", ()), ("edited", ("--limit", "1899")), ("shortened", ()), ("replaced", ())],
    ids=["edited", "edited_within_a_limit", "shortened", "replaced"],
)
def test_an_input_that_changes_while_it_is_read_stops_the_run(
    bench: Bench, change: str, options: tuple[str, ...]
) -> None:
    """Fails if ``_check_unchanged`` compares less than inode, time, size and the bytes that were checked."""
    bench.lines(*(json.dumps(f"{number:04} {'word ' * 220}") for number in range(1900)))  # more than the queue holds
    bench.emulator.change(slow=0.2)
    running = bench.start_until("--rps", "2000", *options, open=8)
    content = bench.input.read_bytes()
    if change == "replaced":
        (bench.folder / "new.jsonl").write_bytes(content.replace(b"word", b"verb"))
        os.replace(bench.folder / "new.jsonl", bench.input)
    elif change == "edited":
        with bench.input.open("r+b") as file:
            file.write(content.replace(b"word", b"verb"))
    else:
        os.truncate(bench.input, len(content) - 1000)
    bench.emulator.change(slow=0)
    ran = running.wait()
    assert ran.exit_code == 3
    assert "was changed while it was read" in ran.stderr
    assert bench.states()["intent"] == 0
    assert set(bench.emulator.submissions.values()) == {1}


def test_an_input_that_grows_while_it_is_read_is_finished_as_far_as_it_was_checked(bench: Bench) -> None:
    """Fails if the reader goes on to the end of the file instead of the end that was checked."""
    bench.records("a", "b", "c")
    running = bench.start_until(open=1)
    bench.append("d")
    assert running.wait().exit_code == 0
    assert bench.result_ids() == {"a", "b", "c"}
    bench.check(unsent=1)
    assert bench.run().exit_code == 0
    assert bench.emulator.submissions == {"a": 1, "b": 1, "c": 1, "d": 1}
    bench.check()


def test_an_input_that_grows_under_a_long_run_does_not_stop_it(bench: Bench) -> None:
    """Fails if every new modification time counts as a change."""
    bench.lines(*(json.dumps(f"{number:04} {'word ' * 220}") for number in range(1900)))
    bench.emulator.change(slow=0.2)
    running = bench.start_until("--rps", "2000", "--log-file", "run.log", open=8)
    bench.append("the last")
    bench.emulator.change(slow=0)
    wait_until(lambda: "input_grew" in bench.log(), "the growth is seen", while_alive=running)
    assert bench.states()["failed"] == 0
