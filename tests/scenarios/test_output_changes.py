"""The output between two runs: what we wrote is trusted only as far as the ledger knows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scenarios.bench import Bench


def _edit(output: Path) -> None:
    content = output.read_bytes()
    output.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])


def _truncate(output: Path) -> None:
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [(_edit, "was edited"), (_truncate, "is shorter than it was"), (Path.unlink, "is gone")],
    ids=["edited_at_its_end", "truncated", "deleted"],
)
def test_an_output_that_somebody_changed_is_refused_and_left_as_it_is(
    finished: Bench, damage: Callable[[Path], None], said: str
) -> None:
    """Fails if ``open_output`` leaves out the check of that kind."""
    finished.append("d")
    damage(finished.output)
    before = finished.output.read_bytes() if finished.output.exists() else None, finished.rows()
    ran = finished.run()
    assert ran.exit_code == 3
    assert said in ran.stderr
    assert (finished.output.read_bytes() if finished.output.exists() else None, finished.rows()) == before
    assert finished.is_untouched()


def test_an_output_that_grew_after_its_run_had_ended_is_refused_and_left_as_it_is(finished: Bench) -> None:
    """Fails if a tail is cut although the run that wrote the output had come to its end: somebody else wrote it."""
    with finished.output.open("ab") as output:
        output.write(b"somebody's work\n")
    before = finished.output.read_bytes()
    ran = finished.run()
    assert ran.exit_code == 3
    assert "has grown since its last run ended" in ran.stderr
    assert finished.output.read_bytes() == before


def test_answers_that_the_ledger_has_and_does_not_count_are_not_cut(finished: Bench) -> None:
    """Fails if ``refuse_unknown_answers`` looks at unknown operations only."""
    before = finished.output.read_bytes()
    with finished.ledger(write=True) as connection:
        connection.execute("UPDATE job SET out_committed = 0, out_last_seq = NULL")
        connection.execute("UPDATE run SET ended_at = NULL")
    assert finished.run().exit_code == 3
    assert finished.output.read_bytes() == before
    assert finished.is_untouched()


def test_an_output_without_its_ledger_is_not_written_to(bench: Bench) -> None:
    bench.records("a")
    bench.output.write_text("somebody's work\n")
    ran = bench.run()
    assert ran.exit_code == 3
    assert "no ledger that knows it" in ran.stderr
    assert bench.output.read_text() == "somebody's work\n"
    assert bench.is_untouched()


def uncommit_the_last_line(bench: Bench) -> bytes:
    """Take the ledger back to just before the last commit, as a kill between fsync and commit leaves it."""
    with bench.ledger(write=True) as connection:
        before, last = connection.execute(
            "SELECT seq, out_offset FROM record WHERE state = 'done' ORDER BY out_offset DESC LIMIT 2"
        ).fetchall()[::-1]
        connection.execute(
            "UPDATE record SET state = 'open', out_offset = NULL, out_length = NULL, out_crc32 = NULL WHERE seq = ?",
            (last["seq"],),
        )
        connection.execute("UPDATE job SET out_committed = ?, out_last_seq = ?", (last["out_offset"], before["seq"]))
        connection.execute("UPDATE run SET ended_at = NULL, exit_code = NULL")
    return bench.output.read_bytes()[last["out_offset"] :]


FOREIGN = b'{"line": 2, "operation_id": "d7qforeign", "text": "not ours"}\n'


@pytest.mark.parametrize(
    ("tail_of", "cut_of", "polls"),
    [
        pytest.param(lambda line: line, lambda line: b"", 0, id="a_whole_line"),
        pytest.param(lambda line: line[:-9], lambda line: line[:-9], 1, id="a_torn_line"),
        pytest.param(lambda line: line[:-1], lambda line: line[:-1], 1, id="all_but_its_line_end"),
        pytest.param(lambda line: bytes(len(line)), lambda line: bytes(len(line)), 1, id="zeros"),
        pytest.param(lambda line: line + bytes(99), lambda line: bytes(99), 0, id="a_whole_line_and_zeros"),
        pytest.param(lambda line: FOREIGN + line, lambda line: FOREIGN + line, 1, id="a_foreign_line_first"),
        pytest.param(lambda line: line + FOREIGN, lambda line: FOREIGN, 0, id="a_foreign_line_after_it"),
        pytest.param(lambda line: line + line, lambda line: line, 0, id="the_line_twice"),
        pytest.param(lambda line: b"", lambda line: b"", 1, id="nothing"),
    ],
)
def test_a_tail_that_was_never_committed_is_mended(
    finished: Bench, tail_of: Callable[[bytes], bytes], cut_of: Callable[[bytes], bytes], polls: int
) -> None:
    """A whole line is adopted and not fetched again; whatever else is there goes to quarantine, byte for byte.

    Fails if ``walk_tail`` adopts nothing, or does not stop at the first line that is not right.
    """
    line = uncommit_the_last_line(finished)
    committed = finished.output.read_bytes().removesuffix(line)
    finished.output.write_bytes(committed + tail_of(line))
    assert finished.run().exit_code == 0
    assert finished.emulator.count("polls_received") == polls
    assert finished.emulator.count("submits_received") == 0
    quarantined = sorted((finished.state / "quarantine").glob("*"))
    assert b"".join(path.read_bytes() for path in quarantined) == cut_of(line)
    assert finished.output.read_bytes().startswith(committed)
    finished.check()


def test_an_output_that_goes_away_during_a_run_ends_it_in_words(bench: Bench) -> None:
    """Fails if nobody looks at the output's name while a run works: answers would go into a file without one."""
    bench.records("a", "b")
    bench.expect("b", stuck=1)
    running = bench.start_until(done=1, open=1)
    bench.output.unlink()
    ran = running.wait()
    assert ran.exit_code == 74
    assert "out.jsonl is gone" in ran.stderr
    assert bench.run().exit_code == 3
    assert set(bench.emulator.submissions.values()) == {1}


def test_an_output_replaced_when_only_failures_are_to_come_is_noticed_at_the_end(bench: Bench) -> None:
    """Fails if the output is looked at before an append only: the paid answers would be in a file without a name."""
    bench.records("a", "b")
    bench.emulator.change(rules=[{"text": "b", "fail": 1, "fail_code": 3, "p50": 4, "p99": 4}])
    running = bench.start_until(done=1, open=1)
    bench.output.rename(bench.folder / "moved.jsonl")
    bench.output.touch()
    ran = running.wait()
    assert ran.exit_code == 3
    assert "changed or replaced during the run" in ran.stderr
    assert bench.states() == {"done": 1, "failed": 1}
    assert set(bench.emulator.submissions.values()) == {1}
