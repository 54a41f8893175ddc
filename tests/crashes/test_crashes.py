"""A crash at every boundary of a run, of every kind; and in the run that follows a crash, a second one.

Kills, and power cuts that drop whatever was not synced, are tried at every boundary; those that keep a part of it, and
second crashes, at a few of a fixed choice. ``FAULTS=all`` tries every one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import pytest

from batchrun.storage.jobdir import JobDir, is_locked
from tests.crashes.job import ELSEWHERE, OUTPUT, Bench, Crash, Recording
from tests.crashes.recorder import Accepted, Create, Event, MakeDirectory, Rename, Sync, TurnedAway, Unlink, Write
from tests.crashes.replay import File, Kind
from tests.figures import note

EVERY_ONE = os.environ.get("FAULTS") == "all"
FIRST_SHARE, SECOND_SHARE = (1.0, 1.0) if EVERY_ONE else (0.08, 0.05)
PARTLY_SHARE = 1.0 if EVERY_ONE else 0.25
ASKED_SHARE = 1.0 if EVERY_ONE else 0.25
LATER_SHARE = 1.0 if EVERY_ONE else 0.25
NAMES_SHARE = 1.0 if EVERY_ONE else 0.3
PARTS = 4
CLEANLY = [Kind.KILL, Kind.FAILED_SYNC, Kind.DROP, Kind.HOLLOW]
PARTLY = [Kind.ZERO, Kind.TORN, Kind.ONLY_LEDGER, Kind.ALL_BUT_LEDGER]
"""Power cuts that keep a part of what was not synced."""
FEW_KINDS = list(Kind) if EVERY_ONE else [Kind.KILL, Kind.DROP]
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


EITHER_RUN = pytest.mark.parametrize("run", [straight, resumed])


def test_a_run_that_nothing_ends_early_is_a_job_well_done(bench: Bench) -> None:
    *_, end = bench.record().crashes(Kind.KILL)
    bench.judge(end)


@EITHER_RUN
@pytest.mark.parametrize(("kinds", "share"), [(CLEANLY, 1.0), (PARTLY, PARTLY_SHARE)], ids=["cleanly", "partly"])
def test_a_crash_anywhere_costs_nothing(bench: Bench, run: Run, kinds: list[Kind], share: float) -> None:
    judge_all(some(run(bench).crashes(*kinds), share), bench.judge)


def test_a_crash_anywhere_costs_a_packed_input_nothing(bench: Bench) -> None:
    """Fails if the copy is read before it is whole, or its name is not durable when the ledger relies on it."""
    bench.pack()
    judge_all(early(bench.record()), bench.judge)


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


def test_a_crash_anywhere_makes_a_run_that_holds_pay_for_nothing_twice(bench: Bench) -> None:
    """Fails if ``after_crash`` does not look at the policy."""
    judge_all(holding(bench).crashes(*FEW_KINDS), bench.judge)


@pytest.mark.parametrize("how", [{"new_run": True}, {"if_finished": "new"}], ids=["new_run", "if_finished"])
def test_a_crash_anywhere_in_a_new_run_loses_neither_the_old_job_nor_the_new_one(
    bench: Bench, how: dict[str, Any]
) -> None:
    """Fails if ``put_aside`` leaves the state where it is."""
    *_, old = bench.record().crashes(Kind.KILL)
    crashes = early(bench.record(old, **how))
    judge_all(crashes, lambda crash: bench.judge_new_run(crash, old, **how))


def test_a_crash_anywhere_in_a_new_run_that_is_refused_loses_nothing_of_the_old_job(bench: Bench) -> None:
    """Fails if ``put_back`` lets the output come back before its state."""
    *_, old = bench.record().crashes(Kind.KILL)
    crashes = list(bench.record_turned_away(old, new_run=True).crashes(*FEW_KINDS))
    judge_all(crashes, lambda crash: bench.judge_new_run(crash, old, new_run=True))
    assert crashes[-1].output() == old.output()


def test_an_old_job_is_put_back_under_its_own_lock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the lock is let go first: a run that begins there in between would have its answers overwritten."""
    *_, old = bench.record().crashes(Kind.KILL)
    put_back, locked = JobDir.put_back, []

    def watched(jobdir: JobDir, suffix: str) -> None:
        put_back(jobdir, suffix)
        locked.append(is_locked(jobdir.paths))

    monkeypatch.setattr(JobDir, "put_back", watched)
    bench.record_turned_away(old, new_run=True)
    assert locked == [True]


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
    crashes = some(bench.record(end, **asked).crashes(kind), ASKED_SHARE)
    judge_all(crashes, lambda crash: bench.judge_asked(crash, asked, answered))


def test_a_new_output_has_its_name_on_disk_before_anything_is_written_to_it(bench: Bench) -> None:
    """Fails if the sync is left out: lines without a row behind it would make the next start throw it away."""
    end, asked, _ = accepted(bench)
    events = bench.record(end, **asked).events
    renamed = events.index(Rename(f".{OUTPUT}.new", OUTPUT))
    assert events[renamed + 1] == Sync(".")


@EITHER_RUN
def test_a_power_cut_after_a_kill_that_left_a_new_name_costs_nothing(bench: Bench, run: Run) -> None:
    """Fails if a name that is there already is taken for one that is durable."""
    firsts = run(bench).crashes(Kind.KILL, after=changes_names)
    cuts = (cut for first in firsts for cut in bench.record(first).crashes(Kind.DROP))
    judge_all(some(cuts, NAMES_SHARE), bench.judge)


@EITHER_RUN
def test_a_power_cut_after_a_kill_at_a_failed_sync_costs_nothing(bench: Bench, run: Run) -> None:
    """Fails if bytes that are there already are not written anew before they are relied on."""
    firsts = run(bench).crashes(Kind.FAILED_SYNC)
    cuts = (cut for first in firsts for cut in bench.record(first).crashes(Kind.DROP, after=is_relied_on))
    judge_all(cuts, bench.judge)


@EITHER_RUN
@pytest.mark.parametrize("part", range(PARTS))
def test_a_second_crash_anywhere_costs_nothing(bench: Bench, run: Run, part: int) -> None:
    firsts = some(islice(run(bench).crashes(*Kind), part, None, PARTS), FIRST_SHARE, seed=part)
    seconds = (second for first in firsts for second in bench.record(first).crashes(Kind.KILL, Kind.DROP))
    judge_all(some(seconds, SECOND_SHARE), bench.judge)


def some(crashes: Iterable[Crash], share: float, seed: int = 1) -> Iterator[Crash]:
    """This share of them, the same every time."""
    chance = random.Random(seed)
    return (crash for crash in crashes if chance.random() < share)


def early(recording: Recording) -> Iterator[Crash]:
    """Those before the run has sent anything, and some later: from there on it is a run like any other."""
    chance = random.Random(1)
    for crash in recording.crashes(*FEW_KINDS):
        if crash.accepted == recording.start.accepted or chance.random() < LATER_SHARE:
            yield crash


def judge_all(crashes: Iterable[Crash], judge: Callable[[Crash], None]) -> None:
    """Those that the next run cannot tell apart, once."""
    judged = set()
    for crash in crashes:
        if (found := crash.found()) not in judged:
            judge(crash)
            judged.add(found)
    note({"crashes at a boundary that a run can tell apart, each followed by a run to the end": len(judged)})
