"""What a job that nobody watches needs beside ``resume``: its own end, new ones, and failures that are no news."""

from __future__ import annotations

from tests.scenarios.bench import Bench

SLOWLY = ("--concurrency", "1", "--rps", "50")


def test_a_finished_job_begins_anew_when_asked_to_and_an_unfinished_one_goes_on(finished: Bench) -> None:
    """Fails if ``has_finished`` looks at anything but the records, or if the old answers are nowhere."""
    old = finished.output.read_bytes()
    finished.emulator.begin()  # what the old job paid is its own affair
    finished.records("d", "e", "f", "g")
    finished.emulator.change(poll_status=503)
    finished.kill_once("--if-finished", "new", *SLOWLY, open=1)
    finished.emulator.change(poll_status=0)
    assert finished.run("--if-finished", "new").is_silent
    assert finished.result_ids() == {"d", "e", "f", "g"}
    finished.check()
    [aside] = finished.folder.glob("out.jsonl.2*")
    assert aside.read_bytes() == old
    assert finished.run("--if-finished", "keep").exit_code == 0
    assert len(finished.emulator.submissions) == 4


def test_failures_that_are_allowed_are_no_news_and_a_resume_knows(bench: Bench) -> None:
    """Fails if ``--max-failures`` is not remembered."""
    bench.records("a", "b", "c")
    bench.expect("c", fail=1, fail_code=3)
    ran = bench.run("--max-failures", "34%")
    assert (ran.exit_code, ran.is_silent) == (0, True)
    assert bench.spawn("resume", "out.jsonl").wait().exit_code == 0
    assert bench.run().exit_code == 1
    bench.check()


def test_what_is_paid_for_is_fetched_and_nothing_is_sent(bench: Bench) -> None:
    """Fails if a record of which the service has nothing, or whose operation failed in passing, is sent."""
    bench.records("a", "b", "c", "d", "e")
    bench.emulator.change(poll_status=503)
    bench.expect("a", fail=1, fail_code=14)
    bench.kill_once(*SLOWLY, open=2)
    bench.emulator.change(poll_status=0)
    sent = bench.emulator.count("submits_received")
    ran = bench.run("--collect-only")
    assert (ran.exit_code, ran.is_silent) == (0, True)
    assert bench.emulator.count("submits_received") == sent
    assert "a" not in bench.result_ids()
    assert "b" in bench.result_ids()
    assert bench.states()["open"] == 0
    assert bench.run("--collect-only").exit_code == 0
    bench.emulator.change(rules=[])
    assert bench.run().exit_code == 0
    assert len(bench.result_ids()) == 5
    bench.check()


def test_an_unfinished_job_whose_input_was_replaced_can_still_be_collected_and_is_told_so(bench: Bench) -> None:
    """Fails if nobody is told the way to answers that lapse, or that ``meta`` is lost on it."""
    bench.records("a", "b")
    bench.expect("b", fail=1, fail_code=3)
    bench.emulator.change(poll_status=503)
    bench.kill_once(open=2)
    bench.emulator.change(poll_status=0)
    bench.records("c", "d")
    ran = bench.run("--if-finished", "new")
    assert (
        ran.exit_code,
        ran.stderr.rstrip().endswith("resume out.jsonl --collect-only fetches what is paid for"),
    ) == (
        3,
        True,
    )
    ran = bench.spawn("resume", "out.jsonl", "--collect-only").wait()
    assert (ran.exit_code, "; 2 of them without meta or input: their lines are gone or changed" in ran.stderr) == (
        1,
        True,
    )
    assert bench.states() == {"done": 1, "failed": 1}


def test_without_the_input_all_that_is_paid_for_is_fetched_though_an_operation_fails_in_passing(bench: Bench) -> None:
    """Fails if the reader takes up a record that came back: it cannot be read, and would end the run."""
    bench.records("a", "b")
    bench.emulator.change(poll_status=503)
    bench.expect("a", fail=1, fail_code=14)
    bench.kill_once(open=2)
    bench.emulator.change(poll_status=0)
    bench.input.rename(bench.folder / "elsewhere.jsonl")
    assert bench.run("--collect-only").exit_code == 0
    assert bench.states() == {"new": 1, "done": 1}
    bench.emulator.change(rules=[])
    (bench.folder / "elsewhere.jsonl").rename(bench.input)
    assert bench.run().exit_code == 0
    bench.check()


def test_a_rebuild_and_a_new_job_are_not_asked_for_at_once(finished: Bench) -> None:
    """Fails if the job is put aside before the two are seen to contradict each other."""
    assert finished.run("--new-run", "--rebuild-output").exit_code == 2
    assert finished.run("--if-finished", "new", "--rebuild-output").exit_code == 2
    assert finished.is_untouched()
