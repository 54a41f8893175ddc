"""What a person is told of a job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchrun.record import Move, State, Usage
from batchrun.storage.ledger import Ledger, Written
from batchrun.summary import details, duration, headline, names_of, summarize

from .jobfiles import NOW, a_record, make_ledger, record_in

NEW, INTENT, OPEN, DONE = State.NEW, State.INTENT, State.OPEN, State.DONE
FAILED, HELD, EXPIRED = State.FAILED, State.HELD, State.EXPIRED


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = make_ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def fill(ledger: Ledger, *states: State) -> None:
    for line, state in enumerate(states, 1):
        record_in(ledger, state, line)


HEADLINES: dict[str, tuple[list[State], int | None, str]] = {
    "nothing": ([], 0, "0 written, 0 failed, 0 possibly paid twice"),
    "finished": ([DONE, DONE], 2, "2 written, 0 failed, 0 possibly paid twice"),
    "some failed": ([DONE, FAILED], 2, "1 written, 1 failed, 0 possibly paid twice"),
    "some wait for a person": (
        [HELD, EXPIRED, EXPIRED],
        3,
        "0 written, 0 failed, 1 held, 2 expired, 0 possibly paid twice",
    ),
    "some are on their way": (
        [OPEN, INTENT, NEW],
        10,
        "0 written, 0 failed, 1 open, 1 without a reply, 8 not sent, 0 possibly paid twice",
    ),
    "the input was never read whole": ([DONE], None, "1 written, 0 failed, 0 possibly paid twice"),
}


@pytest.mark.parametrize(("states", "total", "expected"), HEADLINES.values(), ids=HEADLINES)
def test_headline(ledger: Ledger, states: list[State], total: int | None, expected: str) -> None:
    fill(ledger, *states)
    assert headline(summarize(ledger, total)) == expected


CODES: dict[str, tuple[list[State], int]] = {
    "nothing to do": ([], 0),
    "all written": ([DONE], 0),
    "some failed": ([DONE, FAILED], 1),
    "some held": ([DONE, FAILED, HELD], 4),
    "some expired": ([FAILED, EXPIRED], 4),
}


@pytest.mark.parametrize(("states", "code"), CODES.values(), ids=CODES)
def test_exit_code_of_a_job_with_nothing_left_to_do(ledger: Ledger, states: list[State], code: int) -> None:
    fill(ledger, *states)
    assert summarize(ledger, len(states)).job_exit_code() == code


ALLOWED: dict[str, tuple[list[State], str, int]] = {
    "as many as allowed": ([DONE, FAILED], "1", 0),
    "one more": ([DONE, FAILED, FAILED], "1", 1),
    "a share": ([DONE] * 3 + [FAILED], "25%", 0),
    "more than a share": ([DONE] * 3 + [FAILED], "24.9%", 1),
    "of nothing": ([FAILED], "100%", 1),
    "held": ([DONE, HELD], "100%", 4),
}


@pytest.mark.parametrize(("states", "allowed", "code"), ALLOWED.values(), ids=ALLOWED)
def test_so_many_failures_are_allowed(ledger: Ledger, states: list[State], allowed: str, code: int) -> None:
    """Fails if failures alone, or records that wait for a person, can be allowed."""
    fill(ledger, *states)
    assert summarize(ledger, len(states)).job_exit_code(allowed) == code


FINISHED: dict[str, tuple[list[State], int | None, int | None, bool]] = {
    "all settled": ([DONE, FAILED, HELD, EXPIRED], 4, None, True),
    "no records": ([], 0, None, True),
    "one not sent": ([DONE], 2, None, False),
    "the input was never read whole": ([DONE], None, None, False),
    "as many as were asked for": ([DONE], None, 1, True),
    "fewer than were asked for": ([DONE], 2, 5, False),
    "one on its way": ([DONE, OPEN], 2, 1, False),
    "one without a reply": ([DONE, INTENT], 2, None, False),
    "one to be sent again": ([DONE, NEW], 2, None, False),
}


@pytest.mark.parametrize(("states", "total", "limit", "expected"), FINISHED.values(), ids=FINISHED)
def test_a_job_is_finished_when_all_that_was_asked_for_is_settled(
    ledger: Ledger, states: list[State], total: int | None, limit: int | None, expected: bool
) -> None:
    fill(ledger, *states)
    assert summarize(ledger, total).is_finished(limit) is expected


def doubt(ledger: Ledger, line: int, id: str | int | None, times: int = 1) -> None:
    seq = record_in(ledger, INTENT, line, id=id)
    with ledger.transaction():
        ledger.move(seq, INTENT, Move(NEW, adds_maybe_paid=times), NOW)


def test_every_doubt_is_named_by_line_and_id(ledger: Ledger) -> None:
    doubt(ledger, 9, None, times=3)
    doubt(ledger, 4, "r4")
    doubt(ledger, 5, 5)
    fill(ledger, DONE)
    summary = summarize(ledger, 9)
    assert summary.maybe_paid == 3
    assert names_of(summary) == "line 4 (id r4), line 5 (id 5), line 9"
    assert f"possibly paid twice: {names_of(summary)}" in details(summary)


def test_a_doubt_stays_one_when_its_answer_is_written(ledger: Ledger) -> None:
    fill(ledger, DONE, FAILED, OPEN)
    doubt(ledger, 7, "r7")
    [seq] = ledger.seqs_to_send(1 << 40)
    with ledger.transaction():
        ledger.record_intent(a_record(7, seq=seq), "request", NOW)
        ledger.record_operation(seq, "again", NOW)
        ledger.record_done([(seq, "again", Written(100, 3, 0), Usage(), NOW)])
    summary = summarize(ledger, 9)
    assert (summary.maybe_paid, summary.named) == (1, [(7, None)])
    assert summary.counts == dict.fromkeys(State, 0) | {DONE: 2, FAILED: 1, OPEN: 1}
    assert summary.oldest_open_at == NOW + 3


def test_many_doubts_are_named_up_to_twenty_and_counted(ledger: Ledger) -> None:
    for line in range(1, 24):
        doubt(ledger, line, None)
    names = names_of(summarize(ledger, 23))
    assert names.endswith("line 20 and 3 more")
    assert names.count("line") == 20


def test_details_say_tokens_kinds_and_until_when_answers_are_kept(ledger: Ledger) -> None:
    fill(ledger, DONE, FAILED, FAILED, OPEN)
    lines = details(replace(summarize(ledger, 4), input_tokens=3000, output_tokens=4))
    assert lines[0] == "tokens   3,000 in, 4 out"
    assert lines[1] == "failed   invalid_argument 2 (first: line 2, the service did not like it)"
    assert re.fullmatch(r"the open ones go on without us; their answers are kept until \d\d \w{3} \d\d:\d\d", lines[2])
    assert len(lines) == 3


def test_a_job_in_order_needs_no_details(ledger: Ledger) -> None:
    fill(ledger, NEW)
    assert details(summarize(ledger, 1)) == []


def test_a_duration_is_told_in_its_two_largest_units() -> None:
    told = [duration(seconds) for seconds in (-5, 0, 59.4, 59.6, 3599, 3600, 86_399, 86_400, 9 * 86_400 + 3600)]
    shown = ["0 s", "0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "23 h 59 min", "1 d 0 h", "9 d 1 h"]
    assert told == shown
