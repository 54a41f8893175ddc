"""The enumerator can fail: it notices every safeguard that is left out, each by a crash of the right kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.crashes import mutants
from tests.crashes.job import OUTPUT, Bench, Crash, Violation
from tests.crashes.mutants import Mutant
from tests.crashes.recorder import Accepted, Create, Event, Rename, Sync, Write
from tests.crashes.replay import Kind
from tests.crashes.test_crashes import (
    Asked,
    accepted,
    failed_again,
    held_again,
    is_accepted,
    judge_all,
    writes_output,
)


def makes_output(event: Event) -> bool:
    return event == Create(OUTPUT)


def syncs(event: Event) -> bool:
    return isinstance(event, Sync)


def writes(event: Event) -> bool:
    return isinstance(event, Write)


Where = Callable[[Event], bool]
PAID_AGAIN = "paid 2 times, flagged 0"


def name_of(value: object) -> str:
    return getattr(value, "__name__", str(value)).replace("_", " ")


@pytest.mark.parametrize(
    ("mutant", "kind", "after", "seen"),
    [
        (mutants.no_intent_before_the_post, Kind.KILL, is_accepted, PAID_AGAIN),
        (mutants.no_flag_for_a_lost_reply, Kind.KILL, is_accepted, PAID_AGAIN),
        (mutants.synchronous_normal, Kind.DROP, is_accepted, PAID_AGAIN),
        (mutants.no_sync_of_the_name_of_the_state, Kind.DROP, is_accepted, PAID_AGAIN),
        (mutants.no_closing_commit, Kind.KILL, is_accepted, "lost or doubled"),
        (mutants.done_before_the_output_is_written, Kind.KILL, syncs, "is shorter than it was"),
        (mutants.no_sync_of_the_output_before_done, Kind.DROP, syncs, "is shorter than it was"),
        (mutants.no_sync_of_the_name_of_the_output, Kind.DROP, syncs, "is gone"),
        (mutants.no_look_at_the_tail, Kind.KILL, writes_output, "asked for although|was given up"),
        (mutants.no_quarantine, Kind.TORN, writes_output, "are nowhere"),
    ],
    ids=name_of,
)
def test_one_crash_shows_that_there_is(bench: Bench, mutant: Mutant, kind: Kind, after: Where, seen: str) -> None:
    def crashes() -> Iterator[Crash]:
        return bench.record().crashes(kind, after=after)

    check(bench, mutant, crashes, seen)


@pytest.mark.parametrize(
    ("mutant", "first", "after", "then_after", "seen"),
    [
        (mutants.no_sync_of_the_tail_before_it_is_adopted, Kind.KILL, writes_output, syncs, "is shorter than it was"),
        (mutants.no_sync_of_a_name_that_is_found, Kind.KILL, makes_output, syncs, "is gone"),
        (mutants.no_writing_of_the_log_anew, Kind.FAILED_SYNC, writes, is_accepted, PAID_AGAIN),
    ],
    ids=name_of,
)
def test_a_second_crash_shows_that_there_is(
    bench: Bench, mutant: Mutant, first: Kind, after: Where, then_after: Where, seen: str
) -> None:
    def crashes() -> Iterator[Crash]:
        for crash in bench.record().crashes(first, after=after):
            yield from bench.record(crash).crashes(Kind.DROP, after=then_after)

    check(bench, mutant, crashes, seen)


@pytest.mark.parametrize(
    ("mutant", "ask", "kind", "seen"),
    [
        (mutants.no_flag_for_what_is_sent_again, failed_again, Kind.KILL, PAID_AGAIN),
        (mutants.no_flag_for_what_is_sent_again, held_again, Kind.KILL, PAID_AGAIN),
        (mutants.no_flag_for_what_is_sent_again, accepted, Kind.KILL, PAID_AGAIN),
        (mutants.no_sync_of_the_new_output, accepted, Kind.DROP, "is shorter than it was|is gone|was edited"),
        (mutants.no_quarantine_for_what_is_taken_out, accepted, Kind.KILL, "a paid line is nowhere"),
        (
            mutants.no_end_of_what_a_crash_interrupted,
            accepted,
            Kind.KILL,
            "is shorter than it was|was edited|has grown",
        ),
    ],
    ids=name_of,
)
def test_a_crash_in_what_a_person_asked_for_shows_that_there_is(
    bench: Bench, mutant: Mutant, ask: Callable[[Bench], Asked], kind: Kind, seen: str
) -> None:
    end, asked, answered = ask(bench)

    def crashes() -> Iterator[Crash]:
        return bench.record(end, **asked).crashes(kind, after=lambda event: isinstance(event, Sync | Rename | Accepted))

    judge_all(crashes(), lambda crash: bench.judge_asked(crash, asked, answered))
    with mutant(), pytest.raises(Violation, match=seen):
        judge_all(crashes(), lambda crash: bench.judge_asked(crash, asked, answered))


def check(bench: Bench, mutant: Mutant, crashes: Callable[[], Iterator[Crash]], seen: str) -> None:
    """The product as it is passes the very crashes of which one is too much for the mutant."""
    judge_all(crashes(), bench.judge)
    with mutant(), pytest.raises(Violation, match=seen):
        judge_all(crashes(), bench.judge)
