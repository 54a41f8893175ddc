"""Every call that changes a file fails once. What a failed sync was to save is dropped, and no later sync says so."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

import pytest

from tests.crashes.job import Bench, Recording
from tests.crashes.recorder import Call, Failed
from tests.crashes.replay import Kind
from tests.crashes.test_crashes import EVERY_ONE, end_of, is_accepted, judge_all, some

WRITES_SHARE = 1.0 if EVERY_ONE else 0.2
SYNCS_SHARE = 1.0 if EVERY_ONE else 0.4


def failed_runs(bench: Bench, call: Call) -> Iterator[Recording]:
    """A run for each call of the sort that fails; of the many writes, ``make test`` takes a few."""
    share = WRITES_SHARE if call is Call.WRITE else 1.0
    chance = random.Random(1)
    failures = 0
    for number in count():
        if chance.random() < share:
            failed = bench.record_refused(call, number)
            if failed is None:
                break
            yield failed
            failures += 1
    assert failures


@pytest.mark.parametrize("call", list(Call))
def test_a_run_ends_with_the_first_call_that_fails_and_a_crash_after_it_costs_nothing(bench: Bench, call: Call) -> None:
    crashes = (
        crash for failed in failed_runs(bench, call) for crash in failed.crashes(Kind.KILL, Kind.DROP, since=Failed)
    )
    judge_all(some(crashes, SYNCS_SHARE if call is Call.SYNC else 1.0), bench.judge)


def test_a_power_cut_in_the_run_after_a_failed_sync_costs_nothing(bench: Bench) -> None:
    ends = (end_of(failed) for failed in failed_runs(bench, Call.SYNC))
    judge_all((cut for end in ends for cut in bench.record(end).crashes(Kind.DROP, after=is_accepted)), bench.judge)
