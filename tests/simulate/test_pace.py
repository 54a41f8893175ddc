"""The figures that the pacer is held to, and docs/pace.md against a fresh run of its quick cases."""

from __future__ import annotations

import os
from functools import cache

import pytest

from batchrun.pacing import HOUR_S
from tests.simulate.__main__ import PAGE, QUICK, THOROUGH, Simulated, day_with_restarts
from tests.simulate.service import DAY_S, most_in_any


@cache
def simulated(case: str) -> Simulated:
    return {**QUICK, **THOROUGH}[case]()


@pytest.mark.parametrize("case", QUICK)
def test_the_page_says_what_the_simulation_comes_to(case: str) -> None:
    """Fails if pacer, gate, poll schedule or guard change and ``make simulate`` is forgotten."""
    assert simulated(case).row(case) in PAGE.read_text("utf-8").splitlines()


def test_every_thorough_case_is_on_the_page() -> None:
    assert [name for name in THOROUGH if f"\n| {name} |" not in PAGE.read_text("utf-8")] == []


@pytest.mark.parametrize(
    ("case", "efficiency", "refused"),
    [
        ("200/s, known", 0.995, 0.001),
        ("200/s, rate 25 % too high", 0.991, 0.01),
        ("10/s and 50 polls/s, known", 0.995, 0.001),
        ("10/s, rate 25 % too high", 0.9911, 0.01),
    ],
)
def test_a_job_ends_hardly_later_than_the_quota_allows(case: str, efficiency: float, refused: float) -> None:
    """Fails if the last polls are as far apart as the others, or if a refusal takes more of the rate than it must."""
    run = simulated(case)
    assert run.efficiency >= efficiency
    assert run.refused <= refused
    assert run.seen.reads_refused == 0
    assert len(run.seen.lags) == len(run.service.finished_at)


@pytest.mark.parametrize("case", ["200/s, known", "10/s and 50 polls/s, known"])
def test_requests_that_are_late_by_turns_cost_a_rate_at_the_quota_one_percent_more(case: str) -> None:
    """Fails if each refusal takes two hundredths of the rate."""
    late = simulated(f"{case}, up to 10 ms late")
    assert late.efficiency >= max(0.985, simulated(case).efficiency - 0.0115)
    assert late.refused <= 0.007
    assert late.seen.reads_refused <= 1


def test_half_a_quota_is_found_at_once_and_used_whole() -> None:
    """Fails if what was accepted in the last second is not what the pacer goes down to."""
    run = simulated("10/s becomes 5/s")
    late = [at for at in run.service.finished_at if at >= 400.0]
    assert run.refused <= 0.015
    assert len(late) / (max(run.seen.submits) - 400.0 + 30.0) >= 0.9 * 5


def test_an_outage_costs_few_posts_and_no_answer() -> None:
    """Fails if the gate does not close."""
    run = simulated("an outage of 10 minutes")
    assert run.seen.unreachable <= 20
    assert len(run.seen.lags) == 6000
    assert run.efficiency >= 0.9


def test_a_day_with_three_restarts_uses_the_whole_hourly_quota_and_never_more() -> None:
    """Eight hours of it, unless everything is asked for. Fails if a restart forgets the hour, or gives more than a
    second of it away."""
    hours = 24 if os.environ.get("FAULTS") == "all" else 8
    run = simulated("24 h, killed three times") if hours == 24 else day_with_restarts(hours, of_kills=(2, 4, 7))
    assert len(run.service.finished_at) >= 0.99 * hours * 5000
    assert run.seen.submits[-1] < hours * HOUR_S
    assert most_in_any(HOUR_S, run.seen.submits) <= 5000
    assert run.seen.refused == 0


@pytest.mark.parametrize("case", ["5,000 open for 2.9 days", "the same with 0.6 polls/s"])
def test_answers_that_lapse_soon_are_collected_before_anything_is_sent(case: str) -> None:
    """Fails if submissions do not wait for the first look at all that is open."""
    run = simulated(case)
    assert (run.seen.at_risk, run.seen.lost) == (5000, 0)
    assert len(run.seen.lags) == 8000
    reads_s = 5000 / (0.6 if "0.6" in case else 40.0)
    assert run.seen.submits[0] >= 2.9 * DAY_S + reads_s - 5.0


def test_nothing_is_sent_that_could_not_be_collected_in_time() -> None:
    """Fails if ``Polls.has_time`` is always true: thousands would be open, and lapse."""
    run = simulated("0.01 polls/s, 4 days")
    assert (run.seen.at_risk, run.seen.lost) == (0, 0)
    assert len(run.seen.lags) >= 0.9 * 0.01 * 4 * DAY_S
