"""Permits under a simulated clock: never more than the quota, hardly less than allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.pacing import (
    HOUR_S,
    MAX_RETRY_AFTER_S,
    Gate,
    HourWindow,
    Outage,
    Pacer,
    Polls,
    backoff_s,
    with_jitter_s,
)

START = 50_000.0
"""The monotonic clock when a test begins."""

A_LITTLE = 1e-6
"""What adding up floats may cost."""


def permits(pacer: Pacer, delays: Iterable[float], *, start: float = START) -> list[float]:
    """When a caller gets its permits, if it asks again so many seconds after each moment it was told to ask."""
    now, taken = start, []
    for delay_s in delays:
        now += delay_s
        while (wait_s := pacer.wait_s(now)) > 0:
            now += wait_s
        pacer.take(now)
        taken.append(now)
    return taken


def prompt_permits(pacer: Pacer, seconds: float, *, late_s: float = 0.0, start: float = START) -> int:
    """Permits of a caller that is always there, ``late_s`` after the moment it was told."""
    now, count = start, 0
    while True:
        wait_s = pacer.wait_s(now)
        if wait_s > 0:
            now += wait_s + late_s
        if now >= start + seconds:
            return count
        pacer.take(now)
        count += 1


def most_in_any(window_s: float, taken: Sequence[float]) -> int:
    """The most permits in any window of this length, its end not counted."""
    most = first = 0
    for last, at in enumerate(taken):
        while at - taken[first] >= window_s - A_LITTLE:
            first += 1
        most = max(most, last - first + 1)
    return most


RATES = st.sampled_from([1.0, 1.5, 2.0, 3.0, 8.5, 9.0, 10.0, 40.0, 97.3])
DELAYS = st.lists(
    st.one_of(st.just(0.0), st.floats(0, 0.01), st.floats(0, 0.3), st.floats(0, 5), st.floats(0, 4000)),
    max_size=120,
)


# --- the second ---


@given(RATES, DELAYS)
def test_no_second_sees_more_permits_than_the_rate_however_late_the_caller(rate: float, delays: list[float]) -> None:
    assert most_in_any(1.0, permits(Pacer(rate), delays)) <= -(-rate // 1)


@given(RATES, DELAYS, st.lists(st.integers(0, 120)))
def test_refusals_and_recovery_never_lead_over_the_rate(
    rate: float, delays: list[float], refused_at: list[int]
) -> None:
    pacer, taken = Pacer(rate), list[float]()
    for number, delay_s in enumerate(delays):
        taken += permits(pacer, [delay_s], start=taken[-1] if taken else START)
        if number in refused_at:
            pacer.refused(taken[-1])
        elif number % 3:
            pacer.accepted(taken[-1])
        assert 0 < pacer.rate(taken[-1]) <= rate
    assert most_in_any(1.0, taken) <= -(-rate // 1)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_below_one_a_second_permits_are_spaced_evenly(rate: float) -> None:
    taken = permits(Pacer(rate), [0.0, 0.0, 0.3, 0.0, 100.0, 0.0, 0.0])
    assert min(later - at for at, later in pairwise(taken)) >= 1 / rate - 0.05 - A_LITTLE


@pytest.mark.parametrize("late_s", [0.0, 0.001, 0.004], ids=["on time", "1 ms late", "4 ms late"])
@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0, 8.5, 9.0, 40.0, 400.0])
def test_a_prompt_caller_gets_the_whole_rate(rate: float, late_s: float) -> None:
    assert prompt_permits(Pacer(rate), 600.0, late_s=late_s) >= 0.995 * rate * 600


def test_a_caller_back_from_a_pause_does_not_make_up_for_it() -> None:
    pacer = Pacer(9.0)
    before = permits(pacer, [0.0] * 20)[-1]
    back = permits(pacer, [600.0, *[0.0] * 20], start=before)
    assert back[18] - back[0] >= 2.0 - A_LITTLE


# --- the hour ---


@given(st.integers(1, 40), DELAYS)
def test_no_hour_sees_more_permits_than_its_limit_however_late_the_caller(limit: int, delays: list[float]) -> None:
    assert most_in_any(HOUR_S, permits(Pacer(1.0, HourWindow(limit)), delays)) <= limit


@given(
    limit=st.integers(1, 30),
    past=st.lists(st.floats(-HOUR_S, 0), max_size=60),
    start=st.sampled_from([0.0, 17.3, START]),
    delays=DELAYS,
)
def test_what_was_sent_before_a_restart_counts(
    limit: int, past: list[float], start: float, delays: list[float]
) -> None:
    sent = sorted(start + at for at in past)
    window = HourWindow(limit, [(at, 1) for at in sent])
    taken = permits(Pacer(9.0, window), delays, start=start)
    for at in taken:
        in_the_hour = [other for other in sent + taken if at - HOUR_S + A_LITTLE < other <= at]
        assert len(in_the_hour) <= limit


def test_a_prompt_caller_gets_the_whole_hour() -> None:
    in_3_hours = prompt_permits(Pacer(9.0, HourWindow(4900)), 3 * HOUR_S, late_s=0.001)
    assert 0.995 * 3 * 4900 <= in_3_hours <= 3 * 4900


def test_a_burst_before_a_restart_closes_the_hour_until_it_has_passed() -> None:
    window = HourWindow(4900, [(START - 1000.5, 4900)])
    assert window.used(START) == 4900
    assert START + 2599 <= window.free_at(START) <= START + 2601
    assert Pacer(9.0, window).wait_s(START) == pytest.approx(2600, abs=1)
    assert window.free_at(START + 2601) == START + 2601
    assert window.used(START + 2601) == 0


def test_more_than_the_limit_in_the_past_waits_until_enough_of_it_has_passed() -> None:
    window = HourWindow(10, [(START - 3000, 8), (START - 2000, 1), (START - 1000, 8)])
    assert window.free_at(START) == pytest.approx(START + 601)  # 9 stay
    window = HourWindow(9, [(START - 3000, 8), (START - 2000, 1), (START - 1000, 8)])
    assert window.free_at(START) == pytest.approx(START + 1601)  # 8 stay


def test_the_window_remembers_seconds_and_not_permits() -> None:
    window = HourWindow(100_000)
    for number in range(50_000):
        window.take(START + number / 10)
    assert window.used(START + 5000) == pytest.approx(36_000, abs=20)
    assert len(window._seconds) <= HOUR_S + 1


# --- refusals ---


def test_a_refusal_slows_by_three_tenths_but_only_once_for_a_burst() -> None:
    pacer = Pacer(9.0)
    for late_s in (0.0, 0.1, 0.5, 0.99):
        pacer.refused(START + late_s)
    assert pacer.rate(START) == pytest.approx(6.3)
    pacer.refused(START + 1.0)
    assert pacer.rate(START + 1.0) == pytest.approx((6.3 + 0.18) * 0.7)


def test_the_rate_comes_back_by_a_fiftieth_of_the_ceiling_a_second() -> None:
    pacer = Pacer(9.0)
    pacer.refused(START)
    assert pacer.rate(START + 5) == pytest.approx(6.3 + 5 * 0.18)
    assert pacer.rate(START + 14.9) < 9.0
    assert pacer.rate(START + 15.1) == 9.0
    assert pacer.rate(START + 1e6) == 9.0


@pytest.mark.parametrize(("ceiling", "floor"), [(2.0, 0.2), (0.5, 0.2), (0.1, 0.1)])
def test_the_rate_has_a_floor(ceiling: float, floor: float) -> None:
    pacer = Pacer(ceiling)
    for number in range(200):
        pacer.refused(START + number)
    assert pacer.rate(START + 199) == pytest.approx(floor)


def test_a_rate_that_was_slowed_is_kept_to() -> None:
    pacer = Pacer(9.0)
    for number in range(3):
        pacer.refused(START + number)
    pacer.accepted(START + 2)
    allowed = sum(pacer.rate(START + 2 + tenth / 10) / 10 for tenth in range(50))
    assert prompt_permits(pacer, 5.0, start=START + 2) == pytest.approx(allowed, abs=2)


ASKED = {
    "nothing asked": (0.0, 0.0),
    "10 s": (10.0, 10.0),
    "300 s": (300.0, 300.0),
    "a day is too much": (86_400.0, MAX_RETRY_AFTER_S),
}


@pytest.mark.parametrize(("asked_s", "least_s"), ASKED.values(), ids=ASKED)
def test_retry_after_is_a_floor_of_at_most_five_minutes(asked_s: float, least_s: float) -> None:
    pacer = Pacer(9.0)
    pacer.refused(START, asked_s)
    assert least_s <= pacer.wait_s(START) + A_LITTLE or least_s == 0.0
    assert pacer.wait_s(START) <= least_s


def test_a_shorter_retry_after_does_not_shorten_an_earlier_one() -> None:
    pacer = Pacer(9.0)
    pacer.refused(START, 60.0)
    pacer.refused(START + 1, 5.0)
    assert pacer.wait_s(START + 1) == pytest.approx(59.0)


def refusals_in(pacer: Pacer, seconds: float) -> list[float]:
    """A service that refuses everything, and a prompt caller."""
    now, probes = START, []
    while now < START + seconds:
        now += max(0.0, pacer.wait_s(now))
        pacer.take(now)
        pacer.refused(now)
        probes.append(now)
    return probes


def test_after_a_minute_of_nothing_but_refusals_one_probe_a_minute_is_enough() -> None:
    probes = refusals_in(Pacer(9.0), 1800.0)
    late = [at for at in probes if at >= START + 61]
    assert len(late) >= 27
    assert all(later - at >= 60.0 - A_LITTLE for at, later in pairwise(late))


def test_an_accepted_probe_ends_the_waiting() -> None:
    pacer = Pacer(9.0)
    now = refusals_in(pacer, 300.0)[-1] + 60.0
    pacer.take(now)
    pacer.accepted(now)
    assert pacer.wait_s(now + 0.2) <= 5.0


def test_refusals_with_acceptances_between_them_are_no_exhausted_quota() -> None:
    pacer = Pacer(9.0)
    now = START
    while now < START + 300:
        now += max(0.0, pacer.wait_s(now))
        pacer.take(now)
        pacer.accepted(now)
        pacer.refused(now)
        assert pacer.wait_s(now) <= 5.0


def test_the_pacer_says_what_holds_it_back() -> None:
    pacer = Pacer(9.0, HourWindow(2))
    assert pacer.limited_by(START) == "rate"
    pacer.refused(START)
    assert pacer.limited_by(START) == "429"
    assert pacer.limited_by(START + 60) == "rate"
    pacer.refused(START + 60, 200.0)
    assert pacer.limited_by(START + 200) == "429"
    permits(pacer, [0.0, 0.0], start=START + 300)
    assert pacer.limited_by(START + 301) == "hour"
    assert pacer.limited_by(START + 300 + HOUR_S + 2) == "rate"


def refused_after(rate: float, accepted: int, seconds: float) -> Pacer:
    """A pacer that is refused after so many acceptances in so many seconds."""
    pacer = Pacer(rate)
    for number in range(accepted):
        pacer.accepted(START + seconds * number / accepted)
    pacer.refused(START + seconds)
    return pacer


def test_a_refusal_among_acceptances_slows_to_just_under_what_was_accepted() -> None:
    pacer = refused_after(250.0, accepted=200, seconds=0.8)
    assert pacer.rate(START + 0.8) == pytest.approx(199.0)
    assert pacer.rate(START + 20.8) == pytest.approx(200.2)  # beyond what is known it creeps, and faster and faster
    assert pacer.rate(START + 40.8) == pytest.approx(203.8)
    assert pacer.rate(START + 300) == 250.0


def test_a_caller_that_was_slow_itself_does_not_take_that_for_the_quota() -> None:
    assert refused_after(200.0, accepted=185, seconds=1.0).rate(START + 1.0) == pytest.approx(199.0)


# --- the open operations ---

DAY_S = 86_400.0


def polls(read_rate: float, ages_s: Sequence[float]) -> Polls:
    """So many operations, all due, of a service that keeps its answers for three days."""
    return Polls(Pacer(read_rate), 3 * DAY_S, [(START, seq, "", START - age_s) for seq, age_s in enumerate(ages_s)])


AT_RISK = {
    "nothing is open": (40.0, [], True),
    "5,000 young ones": (40.0, [60.0] * 5000, True),
    "5,000 with two hours left": (40.0, [2.9 * DAY_S] * 5000, True),
    "5,000 with eight minutes left": (40.0, [3 * DAY_S - 480.0] * 5000, False),
    "one with a minute left among a thousand": (40.0, [60.0] * 1000 + [3 * DAY_S - 60.0], False),
    "one that has lapsed already": (40.0, [60.0] * 1000 + [3 * DAY_S + 60.0], True),
    "a poll in 100 s, 600 open": (0.01, [0.0] * 600, True),
    "a poll in 100 s, 700 open": (0.01, [0.0] * 700, False),
}


@pytest.mark.parametrize(("read_rate", "ages_s", "has_time"), AT_RISK.values(), ids=AT_RISK)
def test_one_more_is_sent_only_if_all_can_be_collected_in_time(
    read_rate: float, ages_s: list[float], has_time: bool
) -> None:
    assert polls(read_rate, ages_s).has_time(START) is has_time


def test_what_the_service_grants_counts_and_not_what_was_asked_for() -> None:
    pacer = Pacer(40.0)
    open_now = Polls(pacer, 3 * DAY_S, [(START, seq, "", START) for seq in range(700)])
    for number in range(4):
        pacer.accepted(START - 400.0 + 100.0 * number)
    assert pacer.achieved(START) == pytest.approx(0.01)
    assert not open_now.has_time(START)


# --- backoff ---


@given(tries=st.integers(0, 10**6), chance=st.floats(0, 1))
def test_backoff_is_full_jitter_under_a_ceiling_that_doubles(tries: int, chance: float) -> None:
    ceiling_s = min(30.0, 0.5 * 2 ** min(tries, 10))
    assert backoff_s(tries, chance) == pytest.approx(chance * ceiling_s)


@given(retry_after_s=st.floats(0, 300), chance=st.floats(0, 1))
def test_jitter_comes_on_top_of_what_the_service_asked_for(retry_after_s: float, chance: float) -> None:
    waited_s = with_jitter_s(retry_after_s, chance)
    assert retry_after_s <= waited_s <= 1.1 * retry_after_s + 1.0
    assert waited_s == 0 or retry_after_s > 0


# --- the gate ---


def fail(gate: Gate, times: int, now: float = START) -> None:
    for _ in range(times):
        gate.failed(now)


def test_the_gate_closes_after_five_failures_in_a_row() -> None:
    gate = Gate()
    closed = []
    for _ in range(5):
        closed.append(gate.is_closed)
        assert gate.wait_s(START) == 0
        fail(gate, 1)
    assert [*closed, gate.is_closed] == [False] * 5 + [True]
    assert gate.wait_s(START) == 5.0


def test_an_acceptance_breaks_the_row() -> None:
    gate = Gate()
    for _ in range(4):
        fail(gate, 4)
        gate.accepted()
        for _ in range(6):
            gate.accepted()
    assert not gate.is_closed


def test_the_gate_closes_when_half_of_the_last_twenty_failed() -> None:
    gate = Gate()
    closed = []
    for _ in range(10):
        closed.append(gate.is_closed)
        gate.accepted()
        fail(gate, 1)
    assert [*closed, gate.is_closed] == [False] * 10 + [True]


def test_nine_failures_of_twenty_keep_it_open() -> None:
    gate = Gate()
    for number in range(200):
        if number % 20 in range(0, 18, 2):
            fail(gate, 1)
        else:
            gate.accepted()
        assert not gate.is_closed


def test_probes_go_five_to_sixty_seconds_apart_while_they_fail() -> None:
    gate, now, waits = Gate(), START, []
    fail(gate, 5, now)
    for _ in range(7):
        waits.append(gate.wait_s(now))
        now += gate.wait_s(now)
        fail(gate, 1, now)
    assert waits == [5, 10, 20, 40, 60, 60, 60]


def test_replies_lost_together_are_one_reason_to_close_and_no_failed_probes() -> None:
    gate = Gate()
    fail(gate, 8)  # eight POSTs were on their way when the service went down
    assert gate.wait_s(START) == 5.0
    fail(gate, 1, START + 2)  # a straggler: no probe has gone yet
    assert gate.wait_s(START + 2) == 3.0


def test_one_acceptance_opens_the_gate_and_old_failures_are_forgotten() -> None:
    gate = Gate()
    fail(gate, 5)
    gate.accepted()
    assert not gate.is_closed
    assert gate.wait_s(START) == 0
    fail(gate, 4)
    assert not gate.is_closed
    fail(gate, 1)
    assert gate.wait_s(START) == 5.0  # and the probes begin anew


def test_a_gate_that_was_opened_looks_at_new_posts_only() -> None:
    gate = Gate()
    for _ in range(10):
        gate.accepted()
        fail(gate, 1)
    gate.accepted()
    fail(gate, 1)
    assert not gate.is_closed


# --- the outage ---


def test_an_outage_is_a_quarter_of_an_hour_of_failures_without_one_success() -> None:
    outage = Outage(900.0)
    assert not any(outage.failed(START + after) for after in range(0, 900, 60))
    assert outage.failed(START + 900)
    outage.succeeded()
    assert not any(outage.failed(START + after) for after in range(901, 1801, 60))
    assert outage.failed(START + 1801)


def test_a_pause_of_our_own_is_no_outage() -> None:
    outage = Outage(900.0)
    assert not outage.failed(START)
    assert not outage.failed(START + 2400)  # the hourly quota lay between the two
