"""``--accept-changed``: edited lines are sent again, and the answers to what they were leave the output."""

from __future__ import annotations

import json
import os
import pty

from tests.scenarios.bench import Bench, record
from tests.scenarios.test_faults import rules
from tests.scenarios.test_screen_and_log import _read_to_the_end


def test_edited_lines_are_sent_again_and_their_old_answers_leave_the_output(finished: Bench) -> None:
    """Fails if a stale line stays, a line that is as it was is sent again, or the second payment is not counted."""
    answers = {json.loads(line)["id"]: line for line in finished.output.read_bytes().splitlines(keepends=True)}
    stale = answers.pop("b")
    finished.lines(record("a"), json.dumps({"id": "b", "prompt": "another b"}), record("c"), record("d"))
    refused = finished.run()
    assert (refused.exit_code, "--accept-changed" in refused.stderr) == (3, True)
    ran = finished.run("--accept-changed")
    assert (ran.exit_code, ran.is_silent) == (0, True)
    assert finished.emulator.submissions == {"a": 1, "b": 1, "another b": 1, "c": 1, "d": 1}
    assert finished.output.read_bytes().startswith(b"".join(answers.values()))
    assert [path.read_bytes() for path in (finished.state / "quarantine").iterdir()] == [stale]
    assert {row["id"]: (row["attempt"], row["maybe_paid"]) for row in finished.rows()} == {
        **dict.fromkeys("acd", (1, 0)),
        "b": (2, 1),
    }
    assert finished.run("--accept-changed").is_silent
    finished.check()


def test_whatever_became_of_a_record_its_edited_line_is_sent_again(bench: Bench) -> None:
    """Fails if ``changed_rows`` leaves out a state: OPEN, HELD, FAILED."""
    bench.records("open", "held", "failed", "good")
    bench.emulator.change(rules=rules(open={"stuck": 1}, held={"lost": 1}, failed={"status": 400}))
    running = bench.start_until("--on-ambiguous", "hold", open=1, held=1, failed=1, done=1)
    assert running.stop(15).exit_code == 143
    bench.emulator.change(rules=[])
    changed = [json.dumps({"id": id, "prompt": f"another {id}"}) for id in ("open", "held", "failed")]
    bench.lines(*changed, record("good"))
    assert bench.run("--accept-changed").exit_code == 0
    assert {row["id"]: row["maybe_paid"] for row in bench.rows()} == {"open": 1, "held": 1, "failed": 0, "good": 0}
    assert bench.emulator.submissions["good"] == 1
    bench.check()


def unnamed(*texts: str) -> list[str]:
    return [json.dumps(text) for text in texts]


def test_without_ids_a_line_may_change_and_must_not_move(bench: Bench) -> None:
    """Fails if ``conflicts`` takes a line that has moved for an edited one: all behind it would be paid."""
    bench.lines(*unnamed("one", "two", "one"))
    assert bench.run().exit_code == 0
    before, paid = bench.output.read_bytes(), bench.emulator.submissions
    one_in_front, exchanged, one_gone = ("new", "one", "two", "one"), ("two", "one", "one"), ("one", "two")
    for lines in (one_in_front, exchanged, one_gone):
        bench.lines(*unnamed(*lines))
        ran = bench.run("--accept-changed")
        assert ran.exit_code == 3, ran
        assert (bench.emulator.submissions, bench.output.read_bytes()) == (paid, before), lines
    changed, one_of_two_that_are_the_same = ("one", "2", "one"), ("1", "2", "one")
    for lines, sent in ((changed, "2"), (one_of_two_that_are_the_same, "1")):
        bench.lines(*unnamed(*lines))
        assert bench.run("--accept-changed").exit_code == 0
        paid[sent] += 1
        assert bench.emulator.submissions == paid
        assert bench.verify().exit_code == 0


def test_with_ids_a_line_may_change_and_move(finished: Bench) -> None:
    """Fails if a line that is kept is found by its place: it stands elsewhere in the input now."""
    finished.lines(record("c"), json.dumps({"id": "a", "prompt": "another a"}), record("b"))
    assert finished.run("--accept-changed").exit_code == 0
    assert finished.emulator.submissions == {"a": 1, "b": 1, "c": 1, "another a": 1}
    finished.check()


def test_what_is_sent_again_is_said_first(finished: Bench) -> None:
    """Fails if ``_check`` does not announce what it has reopened."""
    finished.lines(record("a", note="new"), record("b", note="new"), record("c"))
    here, there = pty.openpty()
    env = {**finished.environment, "TERM": "xterm"}
    running = finished.spawn(*finished.command("--accept-changed"), env=env, shown_on=there)
    os.close(there)
    shown = _read_to_the_end(here)
    assert running.wait().exit_code == 0
    assert shown.index("2 records again, of which 2 may be paid twice") < shown.index("3 written")
    finished.check()
