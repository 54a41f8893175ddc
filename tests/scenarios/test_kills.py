"""A run killed at moments that a seed chooses, by a service and with options that it chooses, until the job is done."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable

from tests.figures import note
from tests.scenarios.bench import Bench, Running, wait_until

RECORDS = 60
DOUBTFUL = ("lost", "cut", "garbled", "error_after", "error_before", "reset")
PASSING = ("refuse", "fail", "poll_error", "poll_reset", "poll_refuse", "poll_garbled")
LEAST, MOST, REAL_KILLS = (12, 20, 10) if os.environ.get("FAULTS") == "all" else (8, 12, 6)
"""How often a job is killed, and how often at least with a row INTENT or OPEN: something was at stake."""

Moment = Callable[[], bool]


def test_kills_at_random_moments_lose_nothing_and_hide_no_payment(bench: Bench, seed: int) -> None:
    """Fails if recovery leaves out ``end_intents`` or does not count it in ``maybe_paid``, if the POST goes out
    before INTENT is committed, or, with seeds that hold, if ``after_crash`` does not look at the policy."""
    chance = random.Random(seed)
    faults = {name: chance.choice((0, 0.02, 0.05)) for name in (*DOUBTFUL, *PASSING)}
    policy = ("--on-ambiguous", chance.choice(("hold", "resubmit", "resubmit")))  # seed 0 resubmits
    pace = ("--concurrency", chance.choice(("1", "4", "8", "64")), "--rps", chance.choice(("5", "10", "20", "40")))
    few_first = chance.choice(((), ("--limit", str(RECORDS // 2))))
    wanted = chance.randint(LEAST, MOST)
    bench.records(*(f"prompt {number}" for number in range(RECORDS)))
    bench.emulator.change(**faults, p50=0.2, p99=0.6, fail_times=2, seed=seed)
    seen = Counter[str]()
    while seen["kills"] < wanted or seen["live"] < REAL_KILLS:
        seen["starts"] += 1
        running = bench.start(*policy, *pace, *(few_first if seen["starts"] <= 6 else ()))
        if killed(running, chance.choice(MOMENTS)(bench, running, chance)):
            states = bench.states()
            seen += Counter(kills=1, live=bool(states["intent"] or states["open"]), intents=states["intent"])
        else:
            bench.append(*(f"prompt {seen['starts']}.{number}" for number in range(10)))
    bench.emulator.change(**dict.fromkeys(faults, 0))
    ran = bench.run(*policy)

    records = len(bench.input.read_text().splitlines())
    submissions, rows = bench.emulator.submissions, bench.rows()
    lines = Counter(each["id"] for each in (*bench.results(), *bench.failures()))
    again = submissions.total() - len(submissions)
    lost, doubled = records - len(lines), lines.total() - len(lines)
    hidden = sum(max(0, submissions[row["id"]] - 1 - row["maybe_paid"] - row["failed_operations"]) for row in rows)
    note(
        {
            "SIGKILLs of a run": seen["kills"],
            "of them with a record on its way": seen["live"],
            "records of these jobs": records,
            "payments": submissions.total(),
            "payments beyond the first, each flagged": again - sum(row["failed_operations"] for row in rows),
            "records lost": lost,
            "records doubled": doubled,
            "payments without their flag": hidden,
        }
    )
    states = bench.states()
    assert ran.exit_code == (4 if states["held"] else 1 if states["failed"] else 0), ran
    assert (lost, doubled, hidden) == (0, 0, 0)
    assert set(bench.kinds().values()) <= {"no_reply", "held"}
    if "hold" in policy:
        assert {row["maybe_paid"] for row in rows} == {0}
    bench.check()


def killed(running: Running, is_time: Moment) -> bool:
    """Kill it when it is time; False if it came to its end before."""
    wait_until(lambda: is_time() or not running.is_alive, "it is time for a kill")
    ran = running.stop(signal.SIGKILL)
    assert ran.exit_code in (-signal.SIGKILL, 0, 1, 4), ran
    return ran.exit_code == -signal.SIGKILL


# --- moments ---


def an_intent(bench: Bench, running: Running, chance: random.Random) -> Moment:
    """This run is about to POST, or has just done so."""
    before = intents(bench)
    return lambda: bool(intents(bench) - before)


def intents(bench: Bench) -> set[str]:
    return {row["request_id"] for row in bench.rows() if row["state"] == "intent"}


def more_accepted(bench: Bench, running: Running, chance: random.Random) -> Moment:
    wanted = bench.emulator.journal().count(b"\n") + chance.randint(1, 5)
    return lambda: bench.emulator.journal().count(b"\n") >= wanted


def a_line_written(bench: Bench, running: Running, chance: random.Random) -> Moment:
    """The output grew: its DONE row may be there or not."""
    before = size(bench)
    return lambda: size(bench) > before


def size(bench: Bench) -> int:
    return bench.output.stat().st_size if bench.output.exists() else 0


def the_lock_taken(bench: Bench, running: Running, chance: random.Random) -> Moment:
    """Recovery has begun."""

    def is_ours() -> bool:
        try:
            return bool(json.loads((bench.state / "lock").read_bytes())["pid"] == running.pid)
        except (OSError, ValueError):
            return False

    return is_ours


def more_polls(bench: Bench, running: Running, chance: random.Random) -> Moment:
    wanted = bench.emulator.count("polls_received") + chance.randint(1, 8)
    return lambda: bench.emulator.count("polls_received") >= wanted


MOMENTS = (an_intent, more_accepted, more_accepted, a_line_written, the_lock_taken, more_polls)
