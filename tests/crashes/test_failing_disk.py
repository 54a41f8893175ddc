"""Every call that changes a file fails once. What a failed sync was to save is dropped, and no later sync says so."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.crashes.job import Bench, Recording
from tests.crashes.recorder import Call, Failed
from tests.crashes.replay import Kind
from tests.crashes.test_crashes import EVERY_ONE, is_accepted, judge_all

WRITES_SHARE = 1.0 if EVERY_ONE else 0.2


def failed_runs(bench: Bench, call: Call) -> Iterator[Recording]:
    chance = random.Random(1)
    number = 0
    while (failed := bench.record_refused(call, number)) is not None:
        if call is not Call.WRITE or chance.random() < WRITES_SHARE:
            yield failed
        number += 1
    assert number


@pytest.mark.parametrize("call", list(Call))
def test_a_run_ends_with_the_first_call_that_fails_and_a_crash_after_it_costs_nothing(bench: Bench, call: Call) -> None:
    for failed in failed_runs(bench, call):
        judge_all(failed.crashes(Kind.KILL, Kind.DROP, since=Failed), bench.judge)


def test_a_power_cut_in_the_run_after_a_failed_sync_costs_nothing(bench: Bench) -> None:
    for failed in failed_runs(bench, Call.SYNC):
        *_, end = failed.crashes(Kind.KILL)
        judge_all(bench.record(end).crashes(Kind.DROP, after=is_accepted), bench.judge)
