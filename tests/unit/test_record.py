"""What each reply means for its record, and that no chain of replies hides a payment."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.record import (
    MAX_FAILED_OPERATIONS,
    MAX_LOST_REPLIES,
    MAX_REFUSALS,
    MOVES,
    Accepted,
    Ambiguous,
    Answer,
    Failure,
    Finished,
    History,
    Malformed,
    Move,
    NotFound,
    OnAmbiguous,
    PollAgain,
    PollFailed,
    PollPolicy,
    PollReply,
    Refused,
    Settings,
    State,
    StillRunning,
    SubmitReply,
    Unreachable,
    Usage,
    after_crash,
    after_failure,
    after_submit,
    decide,
)

NEW, INTENT, OPEN, DONE = State.NEW, State.INTENT, State.OPEN, State.DONE
FAILED, HELD, EXPIRED = State.FAILED, State.HELD, State.EXPIRED

AMBIGUOUS = Ambiguous("reset")
PASSING = Failure("provider_error", "try again", 14, retryable=True)
LOST_TWO = History(attempt=3, lost_replies=2, maybe_paid=2)


def kind_of(move: Move) -> str | None:
    return None if move.failure is None else move.failure.kind


# --- the states ---


def test_the_schema_knows_exactly_the_states_of_the_moves() -> None:
    schema = resources.files("batchrun.storage").joinpath("schema.sql").read_text()
    check = re.search(r"CHECK \((state = '\w+'(?: OR\s+state = '\w+')*)\)", schema)
    assert check is not None
    assert re.findall(r"'(\w+)'", check[1]) == [str(state) for state in State]
    assert set(MOVES) == set(State)


def test_every_state_can_be_reached_and_left() -> None:
    reached = {to for targets in MOVES.values() for to in targets}
    assert reached == set(State)
    assert all(MOVES.values())


# --- after a POST ---

Meaning = tuple[State, int, int, str | None]
"""(to, adds to maybe_paid, adds to lost_replies, kind of failure)."""

SUBMITS: dict[str, tuple[SubmitReply, History, int, OnAmbiguous, Meaning]] = {
    "accepted": (Accepted("op1"), History(), 0, "resubmit", (OPEN, 0, 0, None)),
    "accepted at the third sending": (Accepted("op1"), LOST_TWO, 0, "hold", (OPEN, 0, 0, None)),
    "nothing left this machine": (Unreachable("refused"), History(), 0, "resubmit", (NEW, 0, 0, None)),
    "nothing left, however often": (Unreachable("no name"), LOST_TWO, 9, "hold", (NEW, 0, 0, None)),
    "429": (Refused(429, "slow down"), History(), 0, "resubmit", (NEW, 0, 0, None)),
    "429 never fails a record": (Refused(429, "slow down"), LOST_TWO, 99, "hold", (NEW, 0, 0, None)),
    "401 speaks of the key": (Refused(401, "who?"), History(), 0, "resubmit", (NEW, 0, 0, None)),
    "403 speaks of the folder": (Refused(403, "no role"), History(), 99, "resubmit", (NEW, 0, 0, None)),
    "501 may pass": (Refused(501, "not now"), History(), 1, "resubmit", (NEW, 0, 0, None)),
    "a redirect may pass": (Refused(307, "elsewhere"), History(), 1, "resubmit", (NEW, 0, 0, None)),
    "409 may pass": (Refused(409, "conflict"), History(), 4, "resubmit", (NEW, 0, 0, None)),
    "501 for the fifth time": (Refused(501, "not now"), History(), 5, "resubmit", (FAILED, 0, 0, "rejected")),
    "a redirect for the fifth time": (Refused(302, "elsewhere"), History(), 5, "hold", (FAILED, 0, 0, "rejected")),
    "400": (Refused(400, "bad", 3), History(), 0, "resubmit", (FAILED, 0, 0, "invalid_argument")),
    "413": (Refused(413, "long"), History(), 0, "hold", (FAILED, 0, 0, "invalid_argument")),
    "422": (Refused(422, "odd"), History(), 0, "resubmit", (FAILED, 0, 0, "invalid_argument")),
    "404": (Refused(404, "no such model"), History(), 0, "resubmit", (FAILED, 0, 0, "rejected")),
    "any other 4xx": (Refused(451, "the law"), History(), 0, "resubmit", (FAILED, 0, 0, "rejected")),
    "first reply lost": (AMBIGUOUS, History(), 0, "resubmit", (NEW, 1, 1, None)),
    "second reply lost": (AMBIGUOUS, History(2, 1, 1), 0, "resubmit", (NEW, 1, 1, None)),
    "third reply lost": (AMBIGUOUS, LOST_TWO, 0, "resubmit", (FAILED, 1, 1, "no_reply")),
    "doubts left by crashes are no lost replies": (
        AMBIGUOUS,
        History(attempt=6, lost_replies=0, maybe_paid=5),
        0,
        "resubmit",
        (NEW, 1, 1, None),
    ),
    "reply lost, a person decides": (AMBIGUOUS, History(), 0, "hold", (HELD, 0, 1, "held")),
    "third reply lost, a person decides": (AMBIGUOUS, LOST_TWO, 0, "hold", (HELD, 0, 1, "held")),
}


@pytest.mark.parametrize(("reply", "history", "refusals", "policy", "meaning"), SUBMITS.values(), ids=SUBMITS)
def test_a_submit_reply_means(
    reply: SubmitReply, history: History, refusals: int, policy: OnAmbiguous, meaning: Meaning
) -> None:
    move = after_submit(reply, history, refusals, policy)
    assert (move.to, move.adds_maybe_paid, move.adds_lost_reply, kind_of(move)) == meaning
    assert move.to in MOVES[INTENT]
    assert move.adds_failed_operation == 0


RETRYABLE = {
    "a bad request is not worth another try": (Refused(400, "bad"), 1, False),
    "an unknown model is not": (Refused(404, "gone"), 1, False),
    "a refusal that may pass is": (Refused(501, "not now"), 5, True),
    "a lost reply is": (AMBIGUOUS, 0, True),
}


@pytest.mark.parametrize(("reply", "refusals", "worth_it"), RETRYABLE.values(), ids=RETRYABLE)
def test_a_failed_submission_says_whether_another_try_may_help(
    reply: SubmitReply, refusals: int, worth_it: bool
) -> None:
    failure = after_submit(reply, LOST_TWO, refusals, "resubmit").failure
    assert failure is not None
    assert failure.retryable is worth_it


def test_a_failed_submission_keeps_what_the_service_said() -> None:
    failure = after_submit(Refused(400, "temperature is odd", 3), History(), 0, "resubmit").failure
    assert failure == Failure("invalid_argument", "temperature is odd", 3)


# --- after a crash ---


def test_a_crash_sends_again_and_notes_the_doubt_but_no_lost_reply() -> None:
    move = after_crash("resubmit")
    assert move == Move(NEW, adds_maybe_paid=1)
    assert move.adds_attempt == 1


def test_a_crash_under_hold_waits_for_a_person_and_pays_nothing_more() -> None:
    move = after_crash("hold")
    assert (move.to, move.adds_maybe_paid, move.adds_lost_reply, kind_of(move)) == (HELD, 0, 0, "held")


# --- after a failed operation ---

OPERATIONS: dict[str, tuple[Failure, History, Meaning, int]] = {
    "a passing error": (PASSING, History(), (NEW, 0, 0, None), 1),
    "a passing error again": (PASSING, History(2, 0, 0, 1), (NEW, 0, 0, None), 1),
    "a passing error for the third time": (PASSING, History(3, 0, 0, 2), (FAILED, 0, 0, "provider_error"), 0),
    "lost replies do not count as passing errors": (PASSING, LOST_TWO, (NEW, 0, 0, None), 1),
    "a final error": (
        Failure("provider_error", "bad prompt", 3),
        History(),
        (FAILED, 0, 0, "provider_error"),
        0,
    ),
    "filtered": (Failure("content_filter", "no"), History(), (FAILED, 0, 0, "content_filter"), 0),
    "filtered, and said to be worth a try": (
        Failure("content_filter", "no", retryable=True),
        History(),
        (FAILED, 0, 0, "content_filter"),
        0,
    ),
    "cancelled": (Failure("cancelled", "by hand", 1), History(), (FAILED, 0, 0, "cancelled"), 0),
    "unreadable for too long": (Failure("malformed", "neither"), History(), (FAILED, 0, 0, "malformed"), 0),
    "not found": (Failure("held", "unknown"), History(), (HELD, 0, 0, "held"), 0),
    "lapsed": (Failure("expired", "gone"), History(), (EXPIRED, 0, 0, "expired"), 0),
}


@pytest.mark.parametrize(("failure", "history", "meaning", "adds_failed"), OPERATIONS.values(), ids=OPERATIONS)
def test_a_failed_operation_means(failure: Failure, history: History, meaning: Meaning, adds_failed: int) -> None:
    move = after_failure(failure, history)
    assert (move.to, move.adds_maybe_paid, move.adds_lost_reply, kind_of(move)) == meaning
    assert move.adds_failed_operation == adds_failed
    assert move.to in MOVES[OPEN]
    assert move.failure in (None, failure)


# --- after a poll ---

HOUR_S, DAY_S = 3600.0, 24 * 3600.0
POLICY = PollPolicy(retention_s=3 * DAY_S)
ANSWER = Answer("text", "stop", Usage(1, 2))

POLLS: dict[str, tuple[PollReply, float, float, float | str | None]] = {
    # reply, age, trouble -> seconds until the next poll, the kind of failure, or None for the answer
    "finished": (Finished(ANSWER), 5.0, 0.0, None),
    "finished, though unknown until now": (Finished(ANSWER), 4 * DAY_S, DAY_S, None),
    "failed": (Finished(Failure("content_filter", "no")), 5.0, 0.0, "content_filter"),
    "running, just accepted": (StillRunning(), 0.0, 0.0, 1.0),
    "running for 10 s": (StillRunning(), 10.0, 0.0, 1.0),
    "running for 5 minutes": (StillRunning(), 300.0, 0.0, 15.0),
    "running for a day": (StillRunning(), DAY_S, 0.0, 60.0),
    "running for longer than answers are kept": (StillRunning(), 4 * DAY_S, 0.0, 60.0),
    "poll failed": (PollFailed("503", 503), 100.0, 0.0, 5.0),
    "poll failed, for ever": (PollFailed("no route"), 4 * DAY_S, 0.0, 60.0),
    "poll refused, wait asked for": (PollFailed("429", 429, 120.0), 100.0, 0.0, 120.0),
    "poll refused, short wait asked for": (PollFailed("429", 429, 2.0), 100.0, 0.0, 5.0),
    "not found, just accepted": (NotFound(), 0.5, 0.0, 1.0),
    "not found, 59 s old": (NotFound(), 59.0, 58.0, 2.95),
    "not found, just accepted, whatever the trouble": (NotFound(), 59.0, 601.0, 2.95),
    "not found, an hour old": (NotFound(), HOUR_S, 0.0, 60.0),
    "not found for almost 10 minutes": (NotFound(), HOUR_S, 599.0, 60.0),
    "not found for 10 minutes": (NotFound(), HOUR_S, 600.0, "held"),
    "not found just before the answer lapses": (NotFound(), 3 * DAY_S - 1, 600.0, "held"),
    "not found after the answer lapsed": (NotFound(), 3 * DAY_S, 0.0, "expired"),
    "not found after the answer lapsed, for long": (NotFound(), 4 * DAY_S, DAY_S, "expired"),
    "unreadable": (Malformed("neither"), HOUR_S, 0.0, 60.0),
    "unreadable for almost 10 minutes": (Malformed("neither"), HOUR_S, 599.0, 60.0),
    "unreadable for 10 minutes": (Malformed("neither"), HOUR_S, 600.0, "malformed"),
    "unreadable for 10 minutes, and old": (Malformed("neither"), 4 * DAY_S, 600.0, "malformed"),
}


@pytest.mark.parametrize(("reply", "age_s", "trouble_s", "meaning"), POLLS.values(), ids=POLLS)
def test_a_poll_reply_means(reply: PollReply, age_s: float, trouble_s: float, meaning: float | str | None) -> None:
    match decide(reply, age_s=age_s, trouble_s=trouble_s, policy=POLICY):
        case PollAgain(after_s):
            assert after_s == pytest.approx(meaning)
        case Failure(kind=kind):
            assert kind == meaning
        case outcome:
            assert (outcome, meaning) == (ANSWER, None)


@given(age_s=st.floats(0, 1e9), later_s=st.floats(0, 1e9))
def test_polls_of_one_operation_only_grow_further_apart(age_s: float, later_s: float) -> None:
    assert 1.0 <= POLICY.gap_s(age_s) <= POLICY.gap_s(age_s + later_s) <= 60.0
    assert 0.25 <= POLICY.at_the_end().gap_s(age_s) <= POLICY.gap_s(age_s)


# --- the whole life of a record ---


@dataclass
class Life:
    """One record, and a service that may charge for everything it may have accepted."""

    state: State = NEW
    history: History = field(default_factory=History)
    payments: int = 0
    sendings: int = 0
    refusals: int = 0
    doubts: int = 0

    def send(self, reply: SubmitReply | None, policy: OnAmbiguous) -> None:
        """One POST; ``None``: the process was killed before the reply."""
        assert self.history.attempt == 1 + self.doubts + self.history.failed_operations
        self.refusals += isinstance(reply, Refused) and reply.status != 429
        if reply is None or isinstance(reply, Accepted | Ambiguous):
            self.payments += 1
        if reply is None:
            self._make(INTENT, after_crash(policy))
            self.doubts += 1
            return
        self.sendings += isinstance(reply, Accepted | Ambiguous | Refused) and reply != Refused(429, "")
        self._make(INTENT, after_submit(reply, self.history, self.refusals, policy))
        self.doubts += isinstance(reply, Ambiguous)

    def end(self, failure: Failure | None) -> None:
        """The operation is over; ``None``: with an answer."""
        if failure is None:
            self.state = DONE
            return
        self.payments -= failure == PASSING  # failed for the service's own reasons: not charged
        self._make(OPEN, after_failure(failure, self.history))

    def _make(self, origin: State, move: Move) -> None:
        assert move.to in MOVES[origin]
        self.state = move.to
        self.history = self.history.after(move)


REPLIES = st.sampled_from(
    [Accepted("op"), Accepted("op"), AMBIGUOUS, AMBIGUOUS, Refused(429, ""), Refused(501, ""), Unreachable(""), None]
)
ENDS = st.sampled_from([PASSING, PASSING, PASSING, Failure("held", ""), Failure("expired", ""), Failure("x", ""), None])
POLICIES: st.SearchStrategy[OnAmbiguous] = st.sampled_from(["resubmit", "resubmit", "hold"])


@given(st.lists(st.tuples(REPLIES, ENDS, POLICIES), max_size=60))
def test_no_chain_of_replies_hides_a_payment_or_sends_without_end(
    story: list[tuple[SubmitReply | None, Failure | None, OnAmbiguous]],
) -> None:
    life = Life()
    for reply, end, policy in story:
        if life.state is NEW:
            life.send(reply, policy)
        elif life.state is OPEN:
            life.end(end)
        assert life.payments - 1 <= life.history.maybe_paid
        assert life.history.lost_replies <= MAX_LOST_REPLIES
        assert life.history.failed_operations <= MAX_FAILED_OPERATIONS
        assert life.sendings <= (MAX_LOST_REPLIES - 1) + (MAX_REFUSALS - 1) + MAX_FAILED_OPERATIONS + 1


@given(st.lists(st.tuples(REPLIES, ENDS), max_size=60))
def test_under_hold_nothing_is_ever_paid_twice(story: list[tuple[SubmitReply | None, Failure | None]]) -> None:
    life = Life()
    for reply, end in story:
        if life.state is NEW:
            life.send(reply, "hold")
        elif life.state is OPEN:
            life.end(end)
        assert life.payments <= 1
        assert life.history.maybe_paid == 0


# --- the settings ---

SETTINGS = Settings("yandex", "yandexgpt/latest", "Be brief.", 0.3, 100)
CHANGES = {
    "provider": replace(SETTINGS, provider="emulator"),
    "model": replace(SETTINGS, model="yandexgpt-lite/latest"),
    "system": replace(SETTINGS, system="Be long."),
    "no system": replace(SETTINGS, system=None),
    "an empty system": replace(SETTINGS, system=""),
    "temperature": replace(SETTINGS, temperature=0.0),
    "no temperature": replace(SETTINGS, temperature=None),
    "max_tokens": replace(SETTINGS, max_tokens=1),
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
def test_other_settings_have_another_digest(changed: Settings) -> None:
    assert changed.digest() != SETTINGS.digest()
    assert changed.digest() == replace(changed).digest()


def test_the_digests_of_settings_stay_the_same_from_version_to_version() -> None:
    assert SETTINGS.digest().hex() == "49413993a60ea1139659232c63feffbc"
