"""A crash at every boundary of a run, of every kind; and in the run that follows a crash, a second one.

The second crash is tried at a few boundaries of a fixed choice. ``FAULTS=all`` tries every one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.crashes.job import ELSEWHERE, OUTPUT, Bench, Crash, Recording
from tests.crashes.recorder import Accepted, Create, Event, MakeDirectory, Rename, Sync, TurnedAway, Unlink, Write
from tests.crashes.replay import File, Kind
from tests.figures import note

EVERY_ONE = os.environ.get("FAULTS") == "all"
FIRST_SHARE, SECOND_SHARE = (1.0, 1.0) if EVERY_ONE else (0.08, 0.08)
ASKED_SHARE = 1.0 if EVERY_ONE else 0.25
PARTS = 4
Run = Callable[[Bench], Recording]
Asked = tuple[Crash, dict[str, Any], int | None]
"""A finished job, what a person asks for then, and how many requests may be accepted in all; None for any number."""


def writes_output(event: Event) -> bool:
    return isinstance(event, Write) and event.path == OUTPUT


def changes_names(event: Event) -> bool:
    return isinstance(event, Create | MakeDirectory | Rename | Unlink)


def is_accepted(event: Event) -> bool:
    return isinstance(event, Accepted)


def is_relied_on(event: Event) -> bool:
    """A payment, or a checkpoint, after which the log is emptied."""
    return is_accepted(event) or (isinstance(event, Sync) and event.path.endswith("ledger.db"))


def straight(bench: Bench) -> Recording:
    """The first run of the job."""
    return bench.record()


def resumed(bench: Bench) -> Recording:
    """A run that finds one whole line of the output and half of the next, an INTENT, and a payment in doubt."""
    (torn,) = bench.record().crashes(Kind.TORN, after=writes_output)
    return bench.record(torn)


def holding(bench: Bench) -> Recording:
    """The first run of a job that never sends again what is in doubt."""
    bench.on_ambiguous = "hold"
    return bench.record()


EVERY_KIND = pytest.mark.parametrize("kind", list(Kind))
EITHER_RUN = pytest.mark.parametrize("run", [straight, resumed])


def test_a_run_that_nothing_ends_early_is_a_job_well_done(bench: Bench) -> None:
    *_, end = bench.record().crashes(Kind.KILL)
    bench.judge(end)


@EITHER_RUN
@EVERY_KIND
def test_a_crash_anywhere_costs_nothing(bench: Bench, run: Run, kind: Kind) -> None:
    judge_all(run(bench).crashes(kind), bench.judge)


@pytest.mark.parametrize("kind", list(Kind) if EVERY_ONE else [Kind.KILL, Kind.DROP])
def test_a_crash_anywhere_costs_a_packed_input_nothing(bench: Bench, kind: Kind) -> None:
    """Fails if the copy is read before it is whole, or its name is not durable when the ledger relies on it."""
    bench.pack()
    judge_all(bench.record().crashes(kind), bench.judge)


def test_the_copy_of_a_packed_input_is_on_disk_before_anything_is_sent(bench: Bench) -> None:
    """Fails if a sync is left out: a run after a power cut would read zeros, as its name, time and size are right."""
    bench.pack()
    events = bench.record().events
    part, copy = f"{ELSEWHERE}/state/spool.part", f"{ELSEWHERE}/state/spool"
    synced, renamed = events.index(Sync(part)), events.index(Rename(part, copy))
    assert max(at for at, event in enumerate(events) if isinstance(event, Write) and event.path == part) < synced
    assert synced < renamed
    sent = next(at for at, event in enumerate(events) if isinstance(event, Accepted | TurnedAway))
    assert events[renamed + 1] == Sync(f"{ELSEWHERE}/state")
    assert renamed + 1 < sent


@pytest.mark.parametrize("kind", list(Kind) if EVERY_ONE else [Kind.KILL, Kind.DROP])
def test_a_crash_anywhere_makes_a_run_that_holds_pay_for_nothing_twice(bench: Bench, kind: Kind) -> None:
    """Fails if ``after_crash`` does not look at the policy."""
    judge_all(holding(bench).crashes(kind), bench.judge)


@pytest.mark.parametrize("kind", list(Kind) if EVERY_ONE else [Kind.KILL, Kind.DROP])
@pytest.mark.parametrize("how", [{"new_run": True}, {"if_finished": "new"}], ids=["new_run", "if_finished"])
def test_a_crash_anywhere_in_a_new_run_loses_neither_the_old_job_nor_the_new_one(
    bench: Bench, kind: Kind, how: dict[str, Any]
) -> None:
    """Fails if ``put_aside`` leaves the state where it is."""
    *_, old = bench.record().crashes(Kind.KILL)
    judge_all(bench.record(old, **how).crashes(kind), lambda crash: bench.judge_new_run(crash, old, **how))


def held_again(bench: Bench) -> Asked:
    """A held record is sent again."""
    return end_of(holding(bench)), {"retry": "held"}, None


def failed_again(bench: Bench) -> Asked:
    """A failed record is sent again, and fails again."""
    return end_of(bench.record()), {"retry": "rejected"}, None


def rebuilt(bench: Bench) -> Asked:
    """One line of the output was edited: the other stays, and the answer is fetched again."""
    end = end_of(bench.record())
    first, second = end.output().splitlines(keepends=True)
    spoilt = first.replace(b'"text":"', b'"text":"?') + second
    end.disk.names[OUTPUT] = File(spoilt, spoilt)
    return end, {"rebuild_output": True}, len(end.accepted)


def accepted(bench: Bench) -> Asked:
    """One line of the input was edited: its answer leaves the output, and it is sent again."""
    end = end_of(bench.record())
    bench.edit_input()
    return end, {"accept_changed": True}, None


def end_of(recording: Recording) -> Crash:
    *_, end = recording.crashes(Kind.KILL)
    return end


@pytest.mark.parametrize("kind", list(Kind) if EVERY_ONE else [Kind.KILL, Kind.DROP, Kind.HOLLOW])
@pytest.mark.parametrize("ask", [held_again, failed_again, rebuilt, accepted])
def test_a_crash_anywhere_in_what_a_person_asked_for_costs_nothing(
    bench: Bench, ask: Callable[[Bench], Asked], kind: Kind
) -> None:
    """Fails if ``after_request`` counts nothing, ``take_out`` syncs nothing, or ``replaced`` deletes what it finds."""
    end, asked, answered = ask(bench)
    chance = random.Random(1)
    crashes = bench.record(end, **asked).crashes(kind)
    judge_all(
        (crash for crash in crashes if chance.random() < ASKED_SHARE),
        lambda crash: bench.judge_asked(crash, asked, answered),
    )


@EITHER_RUN
def test_a_power_cut_after_a_kill_that_left_a_new_name_costs_nothing(bench: Bench, run: Run) -> None:
    """Fails if a name that is there already is taken for one that is durable."""
    for first in run(bench).crashes(Kind.KILL, after=changes_names):
        judge_all(bench.record(first).crashes(Kind.DROP), bench.judge)


@EITHER_RUN
def test_a_power_cut_after_a_kill_at_a_failed_sync_costs_nothing(bench: Bench, run: Run) -> None:
    """Fails if bytes that are there already are not written anew before they are relied on."""
    for first in run(bench).crashes(Kind.FAILED_SYNC):
        judge_all(bench.record(first).crashes(Kind.DROP, after=is_relied_on), bench.judge)


@EITHER_RUN
@pytest.mark.parametrize("part", range(PARTS))
def test_a_second_crash_anywhere_costs_nothing(bench: Bench, run: Run, part: int) -> None:
    chance = random.Random(part)
    for number, first in enumerate(run(bench).crashes(*Kind)):
        if number % PARTS == part and chance.random() < FIRST_SHARE:
            second = bench.record(first).crashes(Kind.KILL, Kind.DROP)
            judge_all((crash for crash in second if chance.random() < SECOND_SHARE), bench.judge)


def judge_all(crashes: Iterator[Crash], judge: Callable[[Crash], None]) -> None:
    judged = 0
    for crash in crashes:
        judge(crash)
        judged += 1
    note({"crashes at a boundary, each followed by a run to the end": judged})
