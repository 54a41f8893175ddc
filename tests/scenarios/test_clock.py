"""Hours and days of trouble: the run's clock is the test's (see ``clock``), the service keeps the real time."""

from __future__ import annotations

import signal
from collections import Counter
from functools import partial
from pathlib import Path
from socket import AF_INET, SOCK_STREAM, socket

import pytest

from tests.scenarios.bench import Bench, Running, wait_until
from tests.scenarios.clock import Clock
from tests.scenarios.emulator import operations_in
from tests.scenarios.test_faults import rules

DAY_S = 24 * 3600
OUTAGE_S = 900
POSTS_IN_AN_OUTAGE = 24  # five, then one after 5, 10, 20, 40, 60, 60… seconds


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


def skip(clock: Clock, seconds: float, running: Running) -> None:
    """Let so much time pass for a run that has nothing but waiting to do."""
    clock.let_pass(seconds)
    wait_until(lambda: clock.may_skip_s <= 0, f"{seconds:g} s have passed", while_alive=running)


def accepted(bench: Bench) -> list[float]:
    """When each operation was accepted, by the real clock."""
    return [operation["accepted_at"] for operation in operations_in(bench.emulator.journal())]


def has_row_for(bench: Bench, records: int) -> bool:
    states = bench.states()
    return states["open"] + states["done"] == records


def most_in_one_second(instants: list[float]) -> int:
    return max(sum(begin <= at < begin + 1 for at in instants) for begin in instants)


def test_an_hour_in_which_the_process_stood_still_is_no_outage_and_no_burst_follows(bench: Bench, clock: Clock) -> None:
    """Fails if ``Outage.failed`` does not look at ``MAX_GAP_S``, or if a POST that timed out is not flagged."""
    hanging = {"b", "c", "d", "e"}
    bench.records("a", *sorted(hanging), *map(str, range(12)))
    bench.emulator.change(slow=600, poll_status=503, rules=rules(a={"slow": 0}))
    running = bench.start("--rps", "8", "--concurrency", "4", "-v", "--log-file", "run.log", program=clock.program)
    wait_until(lambda: len(accepted(bench)) == 5, "four POSTs hang", while_alive=running)
    wait_until(lambda: "polled" in bench.log(), "the failures have begun", while_alive=running)
    running.signal(signal.SIGSTOP)
    clock.jump(monotonic=3600, wall=3600)
    bench.emulator.change(slow=0, poll_status=0)
    running.signal(signal.SIGCONT)
    assert running.wait().exit_code == 0
    assert {row["id"] for row in bench.rows() if row["maybe_paid"]} == hanging
    assert bench.emulator.submissions == Counter(dict.fromkeys(bench.result_ids(), 1)) + Counter(hanging)
    assert most_in_one_second(accepted(bench)[5:]) <= 12
    bench.check()


def test_a_wall_clock_that_jumps_by_a_month_neither_stalls_a_run_nor_makes_it_hurry(bench: Bench, clock: Clock) -> None:
    """Fails if any delay is taken from ``time.time``: that of the permits, of the polls, or an operation's age."""
    bench.records(*map(str, range(16)))
    bench.emulator.change(p50=1.5, p99=1.5)  # each is asked for at least twice
    running = bench.start("--rps", "8", program=clock.program)
    wait_until(lambda: len(accepted(bench)) >= 3, "some are sent", while_alive=running)
    clock.jump(wall=30 * DAY_S)
    wait_until(lambda: len(accepted(bench)) >= 6, "more are sent", while_alive=running)
    clock.jump(wall=-60 * DAY_S)
    assert running.wait().exit_code == 0
    assert most_in_one_second(accepted(bench)) <= 12
    assert bench.emulator.count("polls_received") <= 4 * 16
    assert set(bench.emulator.submissions.values()) == {1}
    bench.check()


def test_a_wall_clock_set_wrong_between_two_runs_blocks_no_quota_and_gives_up_no_answer(
    bench: Bench, clock: Clock
) -> None:
    """Fails if ``forget_submissions`` keeps those of the future, or if age alone makes an operation EXPIRED."""
    bench.records(*map(str, range(6)))
    bench.emulator.change(p50=3, p99=3)  # still running when the second run asks
    for sent, days in ((2, 30), (4, -60)):
        running = bench.start("--rph", "2", program=clock.program)
        wait_until(partial(has_row_for, bench, sent), f"{sent} are accepted", while_alive=running)
        assert running.stop(signal.SIGTERM).exit_code == 143
        clock.jump(wall=days * DAY_S)
        bench.emulator.change(p50=0, p99=0)
    running = bench.start("--rph", "2", program=clock.program)
    wait_until(lambda: not running.is_alive, "the last two are sent")
    assert running.wait().exit_code == 0
    assert set(bench.emulator.submissions.values()) == {1}
    bench.check()


def test_a_deadline_is_reached_when_so_much_time_has_passed_whatever_the_calendar_says(
    bench: Bench, clock: Clock
) -> None:
    """Fails if the deadline is held against the time of day, or if it ends a run in any other way than a signal."""
    bench.records(*map(str, range(16)))
    bench.emulator.change(slow=0.2)  # POSTs take long enough to be met on their way
    running = bench.start("--rps", "8", "--deadline", "5h", program=clock.program)
    wait_until(lambda: len(accepted(bench)) >= 3, "some are sent", while_alive=running)
    clock.jump(wall=30 * DAY_S)
    wait_until(lambda: len(accepted(bench)) >= 6, "more are sent", while_alive=running)
    clock.jump(monotonic=5 * 3600)
    ran = running.wait()
    assert (ran.exit_code, ran.is_silent) == (75, True)
    assert bench.states()["intent"] == 0
    assert len(accepted(bench)) < 16
    bench.emulator.change(slow=0)
    assert bench.spawn("resume", "out.jsonl").wait().exit_code == 0
    bench.check()


def test_after_three_days_the_service_says_which_answers_are_gone(bench: Bench, clock: Clock) -> None:
    """Fails if an old operation is EXPIRED although the service has it, or one that it has not is asked for again."""
    bench.records("kept", "gone")
    bench.emulator.change(rules=rules(kept={"p50": 2, "p99": 2}, gone={"retention": 0}))
    running = bench.start(program=clock.program)
    asked = ("polls_running", "polls_not_found")
    wait_until(lambda: all(map(bench.emulator.count, asked)), "both are asked for", while_alive=running)
    clock.jump(monotonic=73 * 3600, wall=73 * 3600)
    clock.let_pass(DAY_S)
    assert running.wait().exit_code == 4
    assert bench.result_ids() == {"kept"}
    assert bench.kinds() == {"gone": "expired"}
    assert bench.emulator.submissions == {"kept": 1, "gone": 1}
    bench.check()


def test_nothing_is_sent_while_answers_are_at_risk_and_the_log_warns(bench: Bench, clock: Clock) -> None:
    """Fails if the job does not ask ``Polls.has_time``: one answer has 100 s left, and a poll takes 20 s."""
    bench.records("old")
    bench.emulator.change(rules=rules(old={"stuck": 1}))
    bench.kill_once("--rps", "500", open=1)
    clock.jump(wall=3 * DAY_S - 100)
    bench.append("new")
    running = bench.start("--read-rps", "0.05", "--log-file", "run.log", program=clock.program)
    wait_until(lambda: bench.emulator.count("polls_running") > 0, "the old one is asked for", while_alive=running)
    skip(clock, 60, running)
    assert bench.emulator.submissions == {"old": 1}
    bench.expect("old", retention=0)
    clock.let_pass(3600)
    assert running.wait().exit_code == 4
    assert bench.log().count("answers_lapse_soon") == 1
    assert bench.emulator.submissions == {"old": 1, "new": 1}
    assert bench.states() == {"expired": 1, "done": 1}
    bench.check()


# --- trouble that lasts ---


def test_an_operation_without_an_end_is_given_up_after_ten_minutes_and_only_that(bench: Bench, clock: Clock) -> None:
    """Fails if ``_trouble_since`` is reset by each poll, or if patience ends sooner or later."""
    bench.records("healthy", "neither", "missing", "running")
    bench.emulator.change(rules=rules(neither={"neither": 1}, missing={"missing": 1}, running={"stuck": 1}))
    running = bench.start(program=clock.program)
    wait_until(lambda: bench.states() == {"done": 1, "open": 3}, "three have no end", while_alive=running)
    skip(clock, 560, running)
    assert bench.states() == {"done": 1, "open": 3}
    skip(clock, 3040, running)
    assert bench.states() == {"done": 1, "failed": 1, "held": 1, "open": 1}
    bench.expect("running", retention=0)  # an hour old, and from now on not found
    clock.let_pass(3600)
    assert running.wait().exit_code == 4
    assert bench.kinds() == {"neither": "malformed", "missing": "held", "running": "held"}
    waited_s = {row["id"]: row["finished_at"] - row["submitted_at"] for row in bench.rows()}
    assert 600 <= waited_s["neither"] < 720
    assert 4200 <= waited_s["running"] < 4320
    assert bench.resume().exit_code == 4
    assert bench.emulator.submissions == {"healthy": 1, "neither": 1, "missing": 1, "running": 1}
    bench.check()


def test_a_service_that_is_not_there_for_a_quarter_of_an_hour_ends_the_run_and_costs_nothing(
    bench: Bench, clock: Clock
) -> None:
    """Fails if a refused connection may have been a payment, is no failure to gate or outage, or fails a record."""
    bench.records(*map(str, range(12)))
    with socket(AF_INET, SOCK_STREAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        bench.endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        clock.let_pass(DAY_S)
        ran = bench.run(program=clock.program)
    assert (ran.exit_code, ran.is_silent) == (75, True)
    assert OUTAGE_S <= clock.skipped_s < OUTAGE_S + 90
    assert bench.states().keys() == {"new"}
    assert posts(bench) <= POSTS_IN_AN_OUTAGE
    bench.endpoint = bench.emulator.url
    assert bench.run().exit_code == 0
    assert set(bench.emulator.submissions.values()) == {1}
    assert {row["maybe_paid"] for row in bench.rows()} == {0}
    bench.check()


def posts(bench: Bench) -> int:
    """POSTs begun, by the ledger's own count."""
    with bench.ledger() as connection:
        return int(connection.execute("SELECT sum(posts) FROM submission").fetchone()[0])


def test_replies_lost_for_a_quarter_of_an_hour_cost_few_payments_and_each_is_flagged(
    bench: Bench, clock: Clock
) -> None:
    """Fails if the gate stays open, if a probe that fails does not count, or if a lost reply is not flagged."""
    bench.records(*map(str, range(40)))
    alone = ("--concurrency", "1")  # with more at a time, some are on their way when the gate closes
    running = bench.start("--rps", "20", *alone, program=clock.program)
    wait_until(lambda: len(accepted(bench)) >= 4, "it goes well", while_alive=running)
    bench.emulator.change(error_after=1)
    clock.let_pass(DAY_S)
    assert running.wait().exit_code == 75
    assert OUTAGE_S <= clock.skipped_s < OUTAGE_S + 90
    lost = bench.emulator.count("error_after")
    assert lost == sum(row["maybe_paid"] for row in bench.rows()) <= POSTS_IN_AN_OUTAGE
    bench.emulator.change(error_after=0)
    assert bench.resume().exit_code == 1
    assert set(bench.kinds().values()) == {"no_reply"}  # of three replies each: the eighth of the records, not all
    assert len(bench.kinds()) <= POSTS_IN_AN_OUTAGE / 3
    bench.check()


def test_a_quota_that_is_used_up_is_asked_for_once_a_minute_and_fails_no_record(bench: Bench, clock: Clock) -> None:
    """Fails if ``Pacer`` never calls itself stuck, if a 429 counts as an outage, or as a refusal of its record."""
    bench.records(*map(str, range(16)))
    running = bench.start("--rps", "20", program=clock.program)
    wait_until(lambda: len(accepted(bench)) >= 4, "some are accepted", while_alive=running)
    bench.emulator.change(rph=1)
    skip(clock, 120, running)
    at_first = bench.emulator.count("refused_quota")
    assert at_first < 200
    skip(clock, 3600, running)
    assert 59 <= bench.emulator.count("refused_quota") - at_first <= 61
    bench.emulator.change(rph=0)
    clock.let_pass(3600)
    assert running.wait().exit_code == 0
    assert clock.skipped_s < 4000
    assert set(bench.emulator.submissions.values()) == {1}
    assert {row["maybe_paid"] for row in bench.rows()} == {0}
    bench.check()


def test_a_key_refused_in_mid_run_stops_it_and_the_right_key_finishes(bench: Bench) -> None:
    """Fails if a 401 fails its record once others were accepted."""
    bench.records(*map(str, range(12)))
    bench.emulator.change(p50=1, p99=1)
    running = bench.start("--rps", "20")
    wait_until(lambda: len(accepted(bench)) >= 4, "some are accepted", while_alive=running)
    bench.emulator.change(api_key="another-key")
    ran = running.wait()
    assert ran.exit_code == 5
    assert "401" in ran.stderr
    assert bench.states().keys() <= {"new", "open", "done"}
    assert bench.failures() == []
    bench.emulator.change(api_key="")
    assert bench.resume().exit_code == 0
    assert set(bench.emulator.submissions.values()) == {1}
    assert {row["maybe_paid"] for row in bench.rows()} == {0}
    bench.check()
