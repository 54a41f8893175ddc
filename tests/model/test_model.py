"""Every interleaving of a small job, with a crash at every step: no result is lost or doubled, no payment is hidden.

``make test`` explores worlds of a few thousand states, ``make faults`` also those of millions.

I1  A line that a crash has left, or that is DONE, is never lost; a record without a line ended so for a true reason.
I2  No record ever has two lines.
I3  Payments beyond the first are at most those flagged in ``maybe_paid``, failed operations apart; under hold, none.
I4  Never in doubt means: NEW is paid 0 times, OPEN and DONE once, INTENT 0 or 1 times, failed operations apart.
I5  From every state the end can be reached.
I6  Every move is one of ``MOVES``.
I7  A crash puts only requests in flight in doubt.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from batchrun import record
from batchrun.record import MOVES, Failure, History, Move, OnAmbiguous, PollAgain, State
from tests.figures import note
from tests.model.disk import TORN
from tests.model.explore import explore
from tests.model.protocol import Model, Protocol, Setup, Violation

ANY = ("kill", "power cut", "failed sync")
ALL_AT_ONCE = Setup(crashes=3, kinds=ANY, lost=1, failing=1, expiring=1, refusing=True)
SMALL = {
    "one record, three crashes, everything else once": ALL_AT_ONCE,
    "one record, two crashes, three replies lost": Setup(crashes=2, kinds=ANY, lost=3),
    "one record, two crashes, three operations failing": Setup(crashes=2, kinds=ANY, failing=3),
    "two records, two crashes": Setup(records=2, crashes=2, kinds=ANY),
    "two records, a crash, a reply lost": Setup(records=2, lost=1),
    "two records, a crash, an answer expired, an operation failing": Setup(records=2, failing=1, expiring=1),
    "two records, two crashes, refusals": Setup(records=2, crashes=2, refusing=True),
    "two records, two crashes, hold": Setup(2, 2, ANY, lost=1, failing=1, expiring=1, on_ambiguous="hold"),
    "three records, a crash": Setup(records=3),
    "one record, everything once": replace(ALL_AT_ONCE, crashes=1, asking=1),
    "one record, asked for, three operations failing": Setup(crashes=1, failing=3, asking=1),
    "two records, a crash, asked for": Setup(records=2, asking=1),
    "one record, a crash, hold, asked for": Setup(1, 1, ANY, lost=1, expiring=1, asking=1, on_ambiguous="hold"),
}
LARGE = {
    "two records, two crashes, everything else once": replace(ALL_AT_ONCE, records=2, crashes=2),
    "two records, three crashes, a reply lost": Setup(records=2, crashes=3, kinds=ANY, lost=1),
    "three records, a crash, a reply lost": Setup(records=3, kinds=ANY, lost=1),
    "three records, a crash, hold, everything else once": replace(
        ALL_AT_ONCE, records=3, crashes=1, on_ambiguous="hold"
    ),
    "three records, two crashes": Setup(records=3, crashes=2, kinds=ANY),
    "two records, two crashes, asked for twice, an answer expired": Setup(2, 2, ANY, expiring=1, asking=2),
}


@pytest.mark.parametrize("name", SMALL)
def test_no_crash_anywhere_breaks_a_guarantee(name: str) -> None:
    """Fails if ``after_crash`` no longer adds to ``maybe_paid``, or ``after_failure`` to the failed operations."""
    assert len(explore(Model(SMALL[name])).worlds) > 500


@pytest.mark.skipif(os.environ.get("FAULTS") != "all", reason="takes minutes and gigabytes: make faults")
@pytest.mark.parametrize("name", LARGE)
def test_no_crash_anywhere_breaks_a_guarantee_in_a_large_world(name: str) -> None:
    """Fails as the one above does."""
    note({"states of the model": len(explore(Model(LARGE[name])).worlds)})


KILL = Setup(kinds=("kill",))
POWER_CUT = Setup(kinds=("power cut",))
KILL_THEN_POWER_CUT = Setup(crashes=2)
FAILED_SYNC_THEN_POWER_CUT = Setup(crashes=2, kinds=("failed sync", "power cut"))


@pytest.mark.parametrize(
    ("mutant", "setup", "invariant"),
    [
        pytest.param(mutant, setup, invariant, id=f"{name}-{invariant}")
        for name, mutant, setup, invariant in [
            ("synchronous NORMAL", Protocol(synchronous="NORMAL"), POWER_CUT, "I3"),
            ("synchronous NORMAL", Protocol(synchronous="NORMAL"), POWER_CUT, "I7"),
            ("DONE before the line is written", Protocol(("commit", "return", "append", "sync")), KILL, "I1"),
            ("DONE before the line is synced", Protocol(("append", "commit", "return", "sync")), POWER_CUT, "I1"),
            ("no tail walk, the tail stays", Protocol(tail="leave"), KILL, "I2"),
            ("no tail walk, the tail is cut", Protocol(tail="cut"), replace(KILL, expiring=1), "I1"),
            ("no intent before the POST", Protocol(intent_before_post=False), KILL, "I3"),
            ("no intent before the POST", Protocol(intent_before_post=False), KILL, "I4"),
            ("no sync of kept lines", Protocol(kept_lines="left"), KILL_THEN_POWER_CUT, "I1"),
            ("no writing of kept lines anew", Protocol(kept_lines="synced"), FAILED_SYNC_THEN_POWER_CUT, "I1"),
            ("no closing commit", Protocol(closing_commit=False), KILL, "I5"),
            ("no writing of the log anew", Protocol(log="synced"), FAILED_SYNC_THEN_POWER_CUT, "I3"),
            ("no writing of the log anew", Protocol(log="left"), replace(KILL_THEN_POWER_CUT, asking=1), "I1"),
            ("an answer written with its operation ID", Protocol(poll_after_open=False), KILL, "I1"),
            (
                "no sync of the new output before the ledger describes it",
                Protocol(new_output="written"),
                Setup(records=2, kinds=("power cut",), asking=1),
                "I1",
            ),
        ]
    ],
)
def test_the_model_notices_that_there_is(mutant: Protocol, setup: Setup, invariant: str) -> None:
    """Fails if the model no longer tells this way of working from the product's."""
    explore(Model(setup))
    with pytest.raises(Violation, match=f"^{invariant}: ") as caught:
        explore(Model(setup, mutant, watched=(invariant,)))
    print(caught.value)


def not_flagged(*args: object) -> Move:
    return Move(State.NEW)


def not_asked(*args: object, **named: object) -> Move:
    return Move(State.NEW, starts_anew=True)


def never_settled(*args: object, **named: object) -> PollAgain:
    return PollAgain(1.0)


def not_counted(failure: Failure, history: History) -> Move:
    return Move(State.NEW)


def sent_again_under_hold(on_ambiguous: OnAmbiguous) -> Move:
    return Move(State.NEW, adds_maybe_paid=1)


@pytest.mark.parametrize(
    ("function", "mutant", "setup", "invariant"),
    [
        ("after_crash", not_flagged, KILL, "I3"),
        ("after_crash", sent_again_under_hold, replace(KILL, on_ambiguous="hold"), "I3"),
        ("after_submit", not_flagged, replace(KILL, crashes=0, lost=1), "I4"),
        ("after_failure", not_counted, replace(KILL, crashes=0, failing=1), "I4"),
        ("after_request", not_asked, replace(KILL, crashes=0, asking=1), "I4"),
        ("after_request", not_asked, replace(KILL, crashes=0, asking=1), "I3"),
        ("decide", never_settled, KILL, "I5"),
        ("MOVES", {**MOVES, State.OPEN: MOVES[State.OPEN] - {State.EXPIRED}}, replace(KILL, expiring=1), "I6"),
    ],
    ids=[
        "after_crash-I3",
        "after_crash-hold",
        "after_submit-I4",
        "after_failure-I4",
        "after_request-I4",
        "after_request-I3",
        "decide-I5",
        "MOVES-I6",
    ],
)
def test_the_model_notices_another_answer_of(
    monkeypatch: pytest.MonkeyPatch, function: str, mutant: Any, setup: Setup, invariant: str
) -> None:
    """Fails if the model holds a copy of what ``record.py`` decides."""
    explore(Model(setup))
    monkeypatch.setattr(record, function, mutant)
    with pytest.raises(Violation, match=f"^{invariant}: ") as caught:
        explore(Model(setup, watched=(invariant,)))
    print(caught.value)


@pytest.mark.parametrize("without", [Protocol(log="synced"), Protocol(kept_lines="synced")], ids=["log", "kept lines"])
def test_only_a_failed_sync_makes_writing_anew_necessary(without: Protocol) -> None:
    """Fails if the product could not do without writing anew on a disk whose syncs never fail."""
    explore(Model(Setup(records=2, crashes=2), without))


def test_a_violation_names_every_step_that_leads_to_it() -> None:
    """Fails if a trace is not the shortest, or leaves a step out."""
    with pytest.raises(Violation) as caught:
        explore(Model(KILL, Protocol(intent_before_post=False), watched=("I3",)))
    start = ["start", "closing commit", "closing commit returns", "a is next", "a is accepted, and paid"]
    what, *steps, _ = str(caught.value).splitlines()
    assert what == "I3: paid 2 times, flagged 0"
    assert [step.split(". ")[1] for step in steps] == [*start, "kill", *start]


def test_what_can_happen_does_happen() -> None:
    """Fails if the model is vacuous: a state, a loss or a second payment that it never meets is not proven harmless."""
    worlds = explore(Model(ALL_AT_ONCE)).worlds
    rows = [(world, world.ledger.visible.rows[0]) for world in worlds]
    occurs: dict[str, Callable[..., bool]] = {
        "a reply is lost": lambda world, row: row.history.lost_replies == 1,
        "a start finds a torn tail": lambda world, row: world.phase == "down" and TORN in world.output.visible,
        "a start keeps a line": lambda world, row: world.phase == "tail cut" and len(world.output.visible) == 1,
        "a start finds rows that are not durable": lambda world, row: (
            world.phase == "down" and len(world.ledger.versions) > 1
        ),
        "a start finds a ledger whose sync failed": lambda world, row: world.ledger.stuck,
        "a start finds an output whose sync failed": lambda world, row: world.output.stuck,
        "in doubt, paid once": lambda world, row: (
            row.history.maybe_paid and len(world.operations[0]) == 1 and row.state is State.DONE
        ),
        "in doubt four times, paid five times": lambda world, row: (
            row.history.maybe_paid == 4 and len(world.operations[0]) == 5 and row.state is State.DONE
        ),
    }
    assert {row.state for _, row in rows} == set(State)
    assert [what for what, holds in occurs.items() if not any(holds(world, row) for world, row in rows)] == []


def test_every_move_is_made_that_needs_no_bad_line() -> None:
    """Fails if a move becomes legal, or is no longer, that the model does not know."""
    made = set()
    everything = replace(ALL_AT_ONCE, crashes=1)
    for setup in (
        replace(everything, crashes=0, asking=1),
        everything,
        replace(everything, on_ambiguous="hold"),
        replace(everything, failing=3),
    ):
        model = Model(setup)
        explore(model)
        made |= model.moves
    legal = {(origin, to) for origin, targets in MOVES.items() for to in targets}
    assert legal - made == {(State.NEW, State.FAILED)}
    assert made <= legal
