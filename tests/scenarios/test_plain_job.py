"""A job that nothing disturbs."""

from __future__ import annotations

import os
from collections import Counter

from tests.scenarios.bench import Bench


def test_every_record_is_answered_once_and_nothing_is_said(bench: Bench) -> None:
    """Fails if ``run_job`` prints its summary without a terminal."""
    bench.records("a", "b", "c")
    ran = bench.run("--log-file", "run.log")
    assert ran.exit_code == 0
    assert ran.is_silent
    assert bench.emulator.submissions == Counter(a=1, b=1, c=1)
    assert {result["id"]: result["text"].rpartition(": ")[2] for result in bench.results()} == {
        each: each for each in "abc"
    }
    assert bench.failures() == []
    assert bench.log() == ["recovered", "input_checked", "begun", "first_post", "finished"]
    bench.check()


def test_a_finished_job_needs_neither_credentials_nor_network(finished: Bench) -> None:
    """Fails if ``job.run`` enters the event loop although ``has_work`` is false."""
    before = finished.output.read_bytes()
    ran = finished.spawn(
        *finished.command(), env=finished.environment_without_credentials, python=("-X", "importtime")
    ).wait()
    assert ran.exit_code == 0
    assert ran.stdout == ""
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "sqlite3" in imported
    assert not {"aiohttp", "rich", "uvloop"} & imported
    assert finished.output.read_bytes() == before
    assert finished.is_untouched()
    finished.check()


def test_a_finished_job_whose_input_was_only_touched_needs_no_credentials_either(finished: Bench) -> None:
    """Fails if a new look at the same bytes counts as work to be done."""
    os.utime(finished.input)
    ran = finished.spawn(*finished.command(), env=finished.environment_without_credentials).wait()
    assert ran.exit_code == 0
    assert finished.is_untouched()
    finished.check()


def test_a_job_of_no_records_leaves_an_empty_output(bench: Bench) -> None:
    bench.lines()
    assert bench.run().exit_code == 0
    assert bench.output.read_bytes() == b""
    assert bench.is_untouched()
    bench.check()


def test_the_last_answer_is_asked_for_more_often_than_one_that_nothing_waits_for(bench: Bench) -> None:
    """Fails if the tracker keeps to its usual gaps once nothing is left to send."""
    bench.records("a")
    bench.emulator.change(p50=3.0, p99=3.0)
    assert bench.run().exit_code == 0
    assert bench.emulator.count("polls_running") > 3  # after 1 s, and then each quarter of a second
    bench.check()
