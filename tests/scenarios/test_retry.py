"""``batchrun retry``: what was given up is sent again, and every payment that may have happened is counted."""

from __future__ import annotations

import os
import pty
import signal

from tests.scenarios.bench import Bench, record
from tests.scenarios.test_faults import reopen_as_of, rules
from tests.scenarios.test_screen_and_log import _read_to_the_end

ABSENT = "error: out.jsonl has no job (out.jsonl.batchrun is not there)"


def test_failures_that_may_pass_are_sent_again_and_the_others_stay(bench: Bench) -> None:
    """Fails if ``send_again`` does not look at ``retryable``, or ``after_request`` counts what was not charged."""
    bench.records("good", "passing", "lost", "final")
    bench.emulator.change(
        rules=rules(passing={"fail": 1, "fail_code": 14}, lost={"lost": 1}, final={"fail": 1, "fail_code": 3})
    )
    assert bench.run().exit_code == 1
    assert bench.kinds() == {"passing": "provider_error", "lost": "no_reply", "final": "invalid_argument"}
    way_on = "; batchrun resume out.jsonl sends mended lines; batchrun retry out.jsonl sends again what may pass, "
    assert f"{way_on}with --only KIND any of a kind\n" in bench.spawn("status", "out.jsonl").wait().stdout
    bench.emulator.change(rules=[])
    ran = bench.retry()
    assert ran.exit_code == 1
    assert bench.result_ids() == {"good", "passing", "lost"}
    rows = {row["id"]: (row["attempt"], row["maybe_paid"]) for row in bench.rows()}
    assert rows == {"good": (1, 0), "passing": (4, 0), "lost": (4, 3), "final": (1, 0)}
    assert bench.emulator.submissions == {"good": 1, "passing": 4, "lost": 4, "final": 1}
    bench.check()


def test_one_kind_is_sent_again_and_flagged_where_it_may_have_been_charged(bench: Bench) -> None:
    """Fails if ``after_request`` takes a refusal for a payment, or a failed operation for none."""
    bench.records("good", "final", "refused", "filtered")
    bench.emulator.change(
        rules=rules(final={"fail": 1, "fail_code": 3}, refused={"status": 400}, filtered={"filter": 1})
    )
    assert bench.run().exit_code == 1
    bench.emulator.change(rules=rules(filtered={"filter": 1}))
    assert bench.retry("--only", "invalid_argument").exit_code == 1
    assert bench.result_ids() == {"good", "final", "refused"}
    assert {row["id"]: row["maybe_paid"] for row in bench.rows()} == {
        "good": 0,
        "final": 1,
        "refused": 0,
        "filtered": 0,
    }
    assert bench.emulator.submissions["filtered"] == 1
    for paid in (2, 3):
        assert bench.retry("--only", "content_filter").exit_code == 1
        assert bench.row("filtered")["maybe_paid"] == paid - 1
        assert bench.emulator.submissions["filtered"] == paid
    bench.check()


def test_held_records_wait_until_they_are_asked_for(bench: Bench) -> None:
    """Fails if ``retry`` alone sends what nobody can know, or sends it without its flag."""
    bench.records("a", "b")
    bench.emulator.change(rules=rules(b={"lost": 1}))
    assert bench.run("--on-ambiguous", "hold").exit_code == 4
    bench.emulator.change(rules=[])
    ran = bench.retry()
    assert ran.exit_code == 4
    assert bench.emulator.submissions == {"a": 1, "b": 1}
    ran = bench.retry("--only", "held")
    assert (ran.exit_code, ran.is_silent) == (0, True)
    assert bench.row("b")["maybe_paid"] == 1
    assert bench.emulator.submissions == {"a": 1, "b": 2}
    bench.check()


def test_expired_records_are_paid_for_again_when_asked_for(finished: Bench) -> None:
    """Fails if an EXPIRED record is sent without its flag."""
    reopen_as_of(finished, hours_ago=73)
    assert finished.run().exit_code == 4
    finished.emulator.change(retention=259_200)
    assert finished.retry("--only", "expired").exit_code == 0
    assert {row["maybe_paid"] for row in finished.rows()} == {1}
    assert finished.emulator.submissions == {"a": 2, "b": 2, "c": 2}
    finished.check()


def test_a_retry_that_is_killed_is_finished_by_the_plain_command(bench: Bench) -> None:
    """Fails if what is sent again is not in the ledger before it is sent."""
    bench.records("a", "b")
    bench.emulator.change(rules=rules(b={"status": 400}))
    assert bench.run().exit_code == 1
    bench.emulator.change(rules=rules(b={"slow": 60}))
    retrying = bench.spawn("retry", "out.jsonl", "--only", "invalid_argument")
    bench.wait_for(retrying, intent=1)
    assert retrying.stop(signal.SIGKILL).exit_code == -signal.SIGKILL
    bench.emulator.change(rules=[])
    assert bench.run().exit_code == 0
    bench.check()


def test_what_is_sent_again_is_said_on_a_terminal_before_it_is_sent(bench: Bench) -> None:
    """Fails if ``announce`` comes after the run, or the count of those that may be paid twice is another."""
    bench.records("good", "final", "refused")
    bench.emulator.change(rules=rules(final={"fail": 1, "fail_code": 3}, refused={"status": 400}))
    assert bench.run().exit_code == 1
    bench.emulator.change(rules=[])
    here, there = pty.openpty()
    words = ("retry", "out.jsonl", "--only", "invalid_argument")
    running = bench.spawn(*words, env={**bench.environment, "TERM": "xterm"}, shown_on=there)
    os.close(there)
    shown = _read_to_the_end(here)
    assert running.wait().exit_code == 0
    assert shown.index("2 records again, of which 1 may be paid twice") < shown.index("3 written")


def test_a_retry_sends_no_record_that_the_last_run_was_not_to_send(bench: Bench) -> None:
    """Fails if ``stored_config`` leaves out the limit: a look at two records would become the whole file."""
    bench.records("a", "b", "c")
    bench.emulator.change(rules=rules(b={"status": 400}))
    assert bench.run("--limit", "2").exit_code == 1
    bench.emulator.change(rules=[])
    assert bench.retry("--only", "invalid_argument").exit_code == 0
    assert bench.emulator.submissions == {"a": 1, "b": 1}
    bench.check(unsent=1)


def test_a_retry_that_can_send_nothing_says_why(bench: Bench) -> None:
    """Fails if a bad line is sent, or a job with failures ends as if there were none."""
    bench.lines(record("a"), "{")
    assert bench.run().exit_code == 1
    for options, code, said in (
        (("--only", "bad_input"), 2, "is not one of 'held', 'expired'"),
        ((), 1, "1 failed"),
    ):
        ran = bench.retry(*options)
        assert (ran.exit_code, said in ran.stderr) == (code, True), ran
    assert bench.kinds() == {None: "bad_input"}
    bench.check()


def test_a_retry_that_finds_nothing_in_an_unfinished_job_sends_nothing(bench: Bench) -> None:
    """Fails if the job goes on: records that nobody asked for would be paid for."""
    bench.records(*"abcdef")
    bench.emulator.change(poll_status=503)
    bench.kill_once("--concurrency", "1", "--rps", "50", open=2)
    bench.emulator.change(poll_status=0)
    before, rows = bench.emulator.submissions, bench.rows()
    for options in (("--only", "expired"), ()):
        ran = bench.retry(*options)
        assert (ran.exit_code, ran.stderr.splitlines()[0]) == (2, "error: nothing to send again")
        assert "batchrun resume out.jsonl goes on" in ran.stderr
        assert (bench.emulator.submissions, bench.rows()) == (before, rows)
    assert bench.spawn("resume", "out.jsonl").wait().exit_code == 0
    assert bench.retry().exit_code == 0
    assert len(bench.result_ids()) == 6
    bench.check()


def test_a_retry_beside_a_live_run_leaves_without_a_word(bench: Bench) -> None:
    """Fails if ``retry`` touches the ledger before it holds the lock."""
    bench.records("refused", "slow")
    bench.emulator.change(rules=rules(refused={"status": 400}, slow={"p50": 60, "p99": 60}))
    running = bench.start_until(failed=1, open=1)
    ran = bench.retry("--only", "invalid_argument")
    assert (ran.exit_code, ran.is_silent) == (75, True)
    assert bench.states() == {"failed": 1, "open": 1}
    assert running.stop(signal.SIGTERM).exit_code == 143


def test_a_job_that_is_not_there_cannot_be_tried_again(bench: Bench) -> None:
    """Fails if ``retry`` makes a job of its own."""
    ran = bench.retry()
    assert (ran.exit_code, ran.stderr.splitlines()[0]) == (2, ABSENT)
    assert not bench.state.exists()
    bench.output.mkdir()
    for words in (("status",), ("verify",), ("retry",), ("export", "-o", "-")):
        ran = bench.spawn(*words, "out.jsonl").wait()
        assert (ran.exit_code, ran.stderr.splitlines()[0]) == (2, ABSENT)
    ran = bench.spawn("resume", "outt/").wait()
    assert (ran.exit_code, ran.stderr.splitlines()[0]) == (2, "error: outt has no job (outt.batchrun is not there)")


def test_a_retry_does_not_take_up_what_the_limit_of_its_job_leaves_out(bench: Bench) -> None:
    """Fails if ``send_again`` reopens records that the run will not read: they would be in no file, with exit 0."""
    bench.records("a", "b", "c")
    bench.emulator.change(rules=[{"text": text, "fail": 1, "fail_code": 8} for text in "ac"])
    assert bench.run().exit_code == 1
    assert bench.run("--limit", "1").exit_code == 1
    bench.emulator.change(rules=[])
    assert bench.spawn("retry", "out.jsonl", "--only", "provider_error").wait().exit_code == 1
    assert bench.kinds() == {"c": "provider_error"}
    assert bench.result_ids() == {"a", "b"}
    ran = bench.retry()
    assert (ran.exit_code, "behind the first 1 records (--limit)" in ran.stderr) == (2, True)
    assert "next: the same command without --limit first" in bench.spawn("status", "out.jsonl").wait().stdout
    assert bench.run().exit_code == 1
    assert bench.retry().exit_code == 0
    bench.check()
