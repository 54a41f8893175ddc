"""What a run says: nothing to a pipe unless something is wrong, bars to a terminal, events to a log, keys to nobody."""

from __future__ import annotations

import os
import pty
import re
import signal
from typing import Any

import pytest

from tests.scenarios.bench import KEY, Bench


def test_a_failure_is_two_lines_and_even_a_detailed_log_quotes_nothing(bench: Bench) -> None:
    """Fails if an event carries a prompt or an answer."""
    bench.records("a secret prompt", "a secret failure")
    bench.expect("failure", fail=1, fail_code=3)
    ran = bench.run("-v", "--log-file", "run.log")
    assert ran.exit_code == 1
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == [
        "batchrun: 1 written, 1 failed, 0 possibly paid twice",
        "  see out.errors.ndjson, or: batchrun status out.jsonl",
    ]
    assert {"posted", "polled", "operation_failed"} <= set(bench.log())
    log = (bench.folder / "run.log").read_text()
    assert "secret" not in log
    assert "Invented" not in log
    bench.check()


def test_on_a_terminal_the_run_shows_its_progress(bench: Bench) -> None:
    """Fails if ``run_job`` does not hand a screen to the job."""
    bench.records("a", "b", "c")
    here, there = pty.openpty()
    running = bench.spawn(*bench.command(), env={**bench.environment, "TERM": "xterm"}, shown_on=there)
    os.close(there)
    shown = _read_to_the_end(here)
    assert running.wait().exit_code == 0
    assert "in.jsonl → out.jsonl" in shown
    assert "out.jsonl: 0 written, 0 failed, 3 not sent, 0 possibly paid twice" in shown
    assert "submitted" in shown
    assert "3/3 100%" in shown
    assert "3 written, 0 failed, 0 possibly paid twice" in shown
    assert KEY not in shown
    assert bench.cloud_folder not in shown
    bench.check()


def test_a_terminal_is_told_once_when_answers_are_about_to_lapse(bench: Bench) -> None:
    """Fails if the screen does not look at ``lapse_from``, or says it with each refresh."""
    bench.records("old")
    bench.emulator.change(stuck=1)
    bench.kill_once(open=1)
    with bench.ledger(write=True) as connection:
        connection.execute("UPDATE record SET submitted_at = submitted_at - 61 * 3600")
    here, there = pty.openpty()
    running = bench.spawn(*bench.command(), env={**bench.environment, "TERM": "xterm"}, shown_on=there)
    os.close(there)
    shown = b""
    while shown.partition(b"let this run go on")[2].count(b"open 1") < 3:  # three refreshes later
        shown += os.read(here, 4096)
    running.signal(signal.SIGTERM)
    after = _read_to_the_end(here)
    assert running.wait().exit_code == 143
    warning = r"open answers lapse from \d\d \w{3} \d\d:\d\d; let this run go on"
    assert len(re.findall(warning, shown.decode() + after)) == 1


def _read_to_the_end(terminal: int) -> str:
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # what a terminal says when nobody writes to it any more
        pass
    finally:
        os.close(terminal)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


@pytest.mark.parametrize(
    ("options", "faults", "exit_code"),
    [pytest.param(("-v",), {}, 0, id="log"), pytest.param((), {"fail": 1, "fail_code": 3}, 1, id="failure")],
)
def test_a_pipe_that_nobody_reads_any_more_does_not_stop_a_run(
    bench: Bench, options: tuple[str, ...], faults: dict[str, Any], exit_code: int
) -> None:
    """Fails if writing the log or the summary may raise, or if what could not be written decides the exit code."""
    bench.records("a", "b")
    bench.expect("b", **faults)
    ours, theirs = os.pipe()
    os.close(ours)
    running = bench.spawn(*bench.command(*options), shown_on=theirs)
    os.close(theirs)
    assert running.wait().exit_code == exit_code
    assert set(bench.emulator.submissions.values()) == {1}
    bench.check()
