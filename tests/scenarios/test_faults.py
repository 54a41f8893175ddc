"""What the service does wrong, and what becomes of the records. Payments, output and ledger must agree each time."""

from __future__ import annotations

import signal
import time
from collections import Counter
from typing import Any

from tests.scenarios.bench import Bench, wait_until
from tests.scenarios.emulator import operations_in


def rules(**faults: dict[str, Any]) -> list[dict[str, Any]]:
    """Faults by prompt, as the emulator takes them."""
    return [{"text": text, **settings} for text, settings in faults.items()]


# --- while submitting ---


def test_a_429_is_waited_out_as_long_as_it_asks(bench: Bench) -> None:
    """Fails if ``Retry-After`` is not handed to the pacer."""
    bench.records("a")
    bench.emulator.change(refuse=1, retry_after=1)
    running = bench.start()
    wait_until(lambda: bench.emulator.count("refuse") == 1, "the first 429 is out", while_alive=running)
    refused_at = time.time()
    bench.emulator.change(refuse=0)
    assert running.wait().exit_code == 0
    [operation] = operations_in(bench.emulator.journal())
    assert operation["accepted_at"] - refused_at > 0.8
    assert bench.row("a")["maybe_paid"] == 0
    bench.check()


def test_a_reply_lost_after_acceptance_is_flagged_and_sent_again(bench: Bench) -> None:
    """Fails if an ambiguous reply goes back to NEW without ``maybe_paid``."""
    faults = ("lost", "cut", "garbled", "error_after")
    bench.records("healthy", *faults)
    bench.emulator.change(rules=rules(**{fault: {fault: 1} for fault in faults}))
    running = bench.start()
    wait_until(lambda: all(map(bench.emulator.count, faults)), "each fault has happened", while_alive=running)
    bench.emulator.change(rules=[])
    assert running.wait().exit_code == 0
    submissions = bench.emulator.submissions
    for fault in faults:
        row = bench.row(fault)
        assert submissions[fault] == 1 + row["maybe_paid"] == row["attempt"] >= 2
    assert (submissions["healthy"], bench.row("healthy")["maybe_paid"]) == (1, 0)
    assert {result["id"]: result["maybe_paid"] for result in bench.results()} == {
        row["id"]: row["maybe_paid"] for row in bench.rows()
    }
    bench.check()


def test_a_submission_lost_before_acceptance_is_paid_once_whatever_it_looks_like(bench: Bench) -> None:
    """Fails if a 503 counts as a refusal (it may have been forwarded), or a 429 as ambiguous."""
    bench.records("healthy", "reset", "error_before", "refuse")
    bench.emulator.change(rules=rules(reset={"reset": 1}, error_before={"error_before": 1}, refuse={"refuse": 1}))
    running = bench.start()
    faults = ("reset", "error_before", "refuse")
    wait_until(lambda: all(map(bench.emulator.count, faults)), "each fault has happened", while_alive=running)
    bench.emulator.change(rules=[])
    assert running.wait().exit_code == 0
    assert set(bench.emulator.submissions.values()) == {1}
    assert {row["id"] for row in bench.rows() if row["maybe_paid"]} == {"reset", "error_before"}
    bench.check()


def test_the_third_lost_reply_of_a_record_is_the_last(bench: Bench) -> None:
    """Fails if ``lost_replies`` is not kept, or if the third does not count as a payment."""
    bench.records("a", "b")
    bench.expect("b", lost=1)
    ran = bench.run()
    assert ran.exit_code == 1
    assert len(ran.stderr.splitlines()) == 2
    assert bench.emulator.submissions == {"a": 1, "b": 3}
    assert bench.row("b")["maybe_paid"] == 3
    assert bench.kinds() == {"b": "no_reply"}
    bench.check()
    assert bench.resume().exit_code == 1
    assert bench.emulator.submissions["b"] == 3


def test_under_hold_a_lost_reply_is_never_paid_for_again(bench: Bench) -> None:
    """Fails if ``_after_ambiguous`` does not look at the policy."""
    bench.records("a", "b")
    bench.expect("b", lost=1)
    assert bench.run("--on-ambiguous", "hold").exit_code == 4
    assert bench.states() == {"done": 1, "held": 1}
    assert bench.kinds() == {"b": "held"}
    bench.emulator.change(rules=[])
    assert bench.resume().exit_code == 4
    assert bench.emulator.submissions == {"a": 1, "b": 1}
    bench.check()


def test_under_hold_what_a_kill_left_in_doubt_is_never_paid_for_again(bench: Bench) -> None:
    """Fails if ``after_crash`` does not look at the policy."""
    bench.records("a", "b")
    bench.expect("b", slow=60)
    running = bench.start("--on-ambiguous", "hold")
    wait_until(lambda: bench.emulator.submissions["b"] == 1, "b is accepted, and not yet answered", while_alive=running)
    running.stop(signal.SIGKILL)
    assert bench.resume().exit_code == 4
    assert bench.states() == {"done": 1, "held": 1}
    assert bench.emulator.submissions == {"a": 1, "b": 1}
    bench.check()


def test_an_operation_given_for_two_records_answers_one_and_holds_the_other(bench: Bench) -> None:
    """Fails if an operation ID may belong to two rows."""
    bench.records("a", "b")
    bench.expect("b", same_id=1)
    assert bench.run().exit_code == 4
    assert bench.result_ids() == {"a"}
    assert bench.kinds() == {"b": "held"}
    assert bench.emulator.submissions == {"a": 1, "b": 1}
    bench.check()


def test_refused_credentials_stop_the_run_and_fail_nothing(bench: Bench) -> None:
    """Fails if a 401 or 403 fails its record like any other refusal, or if a log shows the headers of a request."""
    bench.records("a", "b", "c", "d")
    for faults, said in (
        ({"api_key": "another-key"}, "the service refused the key (401"),
        ({"api_key": "", "status": 403, "folder": bench.cloud_folder}, "may not use models in this folder (403"),
    ):
        bench.emulator.change(**faults)
        ran = bench.run("-v", "--log-file", "run.log")
        assert ran.exit_code == 5
        assert said in ran.stderr
        assert set(bench.states()) == {"new"}
        assert bench.failures() == []
    bench.emulator.change(status=0)
    assert bench.run().exit_code == 0
    assert set(bench.emulator.submissions.values()) == {1}
    bench.check()


def test_a_wrong_key_and_a_bad_line_leave_a_job_that_the_right_key_finishes(bench: Bench) -> None:
    """Fails if the failures file of a job without an answer is taken for somebody else's."""
    bench.records("a", "b")
    with bench.input.open("a") as file:
        file.write("{}\n")
    bench.emulator.change(api_key="another-key")
    assert bench.run().exit_code == 5
    bench.emulator.change(api_key="")
    assert bench.run().exit_code == 1
    assert bench.result_ids() == {"a", "b"}
    assert [failure["error"]["kind"] for failure in bench.failures()] == ["bad_input"]


def test_a_request_refused_for_good_fails_alone_once_the_service_has_accepted_another(bench: Bench) -> None:
    """Fails if a 400 in mid-job stops the run, or fails more than its record."""
    bench.records("a", "b", "c", "d", "e")
    bench.emulator.change(rules=rules(b={"status": 400}, c={"status": 413}, d={"status": 422}))
    assert bench.run().exit_code == 1
    assert bench.kinds() == dict.fromkeys("bcd", "invalid_argument")
    assert bench.emulator.submissions == {"a": 1, "e": 1}
    bench.check()


# --- how operations end ---


def test_how_an_operation_ends_decides_what_becomes_of_its_record(bench: Bench) -> None:
    """Fails if a passing failure is not sent again twice, a final one is, or either counts as a doubtful payment."""
    endings = rules(
        passing={"fail": 1},
        once={"fail": 1, "fail_code": 14, "fail_times": 1},
        final={"fail": 1, "fail_code": 3},
        filtered={"filter": 1},
        shortened={"truncate": 1},
    )
    bench.records("healthy", "passing", "once", "final", "filtered", "shortened")
    bench.emulator.change(rules=endings)
    assert bench.run().exit_code == 1
    assert bench.emulator.submissions == Counter(healthy=1, passing=3, once=2, final=1, filtered=1, shortened=1)
    assert bench.kinds() == {"passing": "provider_error", "final": "invalid_argument", "filtered": "content_filter"}
    reasons = {result["id"]: result["finish_reason"] for result in bench.results()}
    assert reasons == {"healthy": "stop", "once": "stop", "shortened": "length"}
    assert {row["id"]: row["attempt"] for row in bench.rows() if row["attempt"] > 1} == {"passing": 3, "once": 2}
    assert {row["maybe_paid"] for row in bench.rows()} == {0}
    bench.check()
    assert bench.resume().exit_code == 1
    assert bench.emulator.submissions["passing"] == 3


def test_operations_without_an_end_stay_open_and_are_never_sent_again(bench: Bench) -> None:
    """Fails if an answer without content, or an operation that is not found, is given up at once.

    They are given up after ten minutes; no option shortens those, so the end of the wait is the unit tests' affair.
    """
    bench.records("healthy", "stuck", "neither", "missing")
    bench.emulator.change(rules=rules(stuck={"stuck": 1}, neither={"neither": 1}, missing={"missing": 1}))
    assert bench.start_until(done=1, open=3).stop(signal.SIGTERM).exit_code == 143
    running = bench.start()
    polled = bench.emulator.count("polls_received")
    wait_until(
        lambda: bench.emulator.count("polls_received") >= polled + 6, "each is polled twice", while_alive=running
    )
    assert running.stop(signal.SIGTERM).exit_code == 143
    assert bench.states() == {"done": 1, "open": 3}
    assert bench.failures() == []
    assert set(bench.emulator.submissions.values()) == {1}


def test_failing_polls_cost_nothing_but_time(bench: Bench) -> None:
    """Fails if a failed poll says anything about its operation."""
    faults = ("poll_error", "poll_garbled", "poll_reset", "poll_refuse")
    bench.records(*faults)
    bench.emulator.change(rules=rules(**{fault: {fault: 1} for fault in faults}))
    running = bench.start()
    wait_until(lambda: all(map(bench.emulator.count, faults)), "each fault has happened", while_alive=running)
    bench.emulator.change(rules=[])
    assert running.wait().exit_code == 0
    assert set(bench.emulator.submissions.values()) == {1}
    assert {row["maybe_paid"] for row in bench.rows()} == {0}
    bench.check()


# --- answers that are gone: the ledger of a stopped job is made older ---


def reopen_as_of(bench: Bench, hours_ago: float) -> None:
    """A stopped job whose operations were all accepted so long ago, and of which nothing is written yet."""
    with bench.ledger(write=True) as connection:
        connection.execute(
            "UPDATE record"
            " SET state = 'open', out_offset = NULL, out_length = NULL, out_crc32 = NULL, submitted_at = ?",
            (time.time() - hours_ago * 3600,),
        )
        connection.execute("UPDATE job SET out_committed = 0, out_last_seq = NULL")
    bench.output.write_bytes(b"")
    bench.emulator.change(retention=0)  # what was accepted before is not found from now on


def test_many_young_operations_that_are_not_found_stop_the_run_and_stay_open(finished: Bench) -> None:
    """Fails if ``_mind_strangers`` does not count: with the wrong key every paid answer would be given up."""
    reopen_as_of(finished, hours_ago=2)
    ran = finished.run()
    assert ran.exit_code == 5
    assert "finds none of 3 operations" in ran.stderr
    assert finished.states() == {"open": 3}
    assert finished.is_untouched()
    finished.emulator.change(retention=259_200)
    assert finished.run().exit_code == 0
    finished.check()


def test_lost_operations_are_no_reason_to_doubt_a_key_that_finds_others(bench: Bench) -> None:
    """Fails if three unknown operations end a run although another was found with the same key."""
    bench.records("a", "b", "c", "d", "e")
    bench.emulator.change(rules=[{"text": "a", "stuck": 1}, *({"text": text, "missing": 1} for text in "bcde")])
    bench.start_until(open=5).stop(signal.SIGTERM)
    with bench.ledger(write=True) as connection:
        connection.execute("UPDATE record SET submitted_at = submitted_at - 7200 - (id = '\"a\"')")
    running = bench.start()
    looks = bench.emulator.count("polls_not_found") + 4  # each of the four at once
    wait_until(lambda: bench.emulator.count("polls_not_found") >= looks, "all are asked for", while_alive=running)
    assert running.stop(signal.SIGTERM).exit_code == 143
    assert bench.states() == {"open": 5}
    assert set(bench.emulator.submissions.values()) == {1}


def test_operations_older_than_the_retention_are_expired_and_not_sent_again(finished: Bench) -> None:
    """Fails if EXPIRED records are sent again without being asked to."""
    reopen_as_of(finished, hours_ago=73)
    assert finished.run().exit_code == 4
    assert finished.states() == {"expired": 3}
    assert finished.kinds() == dict.fromkeys("abc", "expired")
    assert finished.run().exit_code == 4
    assert finished.is_untouched()
    finished.check()
