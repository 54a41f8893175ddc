"""A record, the states it passes through, and what each reply of the service means for it (pure).

Everything here is a value or a decision about values; the stages perform what is decided here, the ledger keeps it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Literal, NamedTuple

JsonObject = dict[str, Any]
RecordId = str | int | None
OnAmbiguous = Literal["resubmit", "hold"]


class State(StrEnum):
    """Where a record stands. The member's comment is its whole meaning; docs/architecture.md repeats it."""

    NEW = "new"  # nothing sent that could have been accepted (no row means the same)
    INTENT = "intent"  # on disk before the POST; the provider may or may not have it
    OPEN = "open"  # the provider returned an operation ID
    DONE = "done"  # its line is in the results file, fsynced
    FAILED = "failed"  # a final error is on disk
    HELD = "held"  # nobody can know whether it was accepted; a person decides
    EXPIRED = "expired"  # accepted and paid, but the answer is no longer kept


MOVES: Mapping[State, frozenset[State]] = {
    State.NEW: frozenset({State.INTENT, State.FAILED}),
    State.INTENT: frozenset({State.OPEN, State.NEW, State.FAILED, State.HELD}),
    State.OPEN: frozenset({State.DONE, State.NEW, State.FAILED, State.HELD, State.EXPIRED}),
    State.DONE: frozenset({State.NEW, State.OPEN}),
    State.FAILED: frozenset({State.NEW}),
    State.HELD: frozenset({State.NEW}),
    State.EXPIRED: frozenset({State.NEW}),
}
"""Every legal move; the ledger refuses any other. Those of DONE, HELD and EXPIRED are made at a person's request."""


# --- what goes in -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """What shapes a request beside the record itself. Other values would give other answers, so a job keeps its own."""

    provider: str
    model: str
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    on_this_machine: bool = False  # the endpoint is a loopback address: a rehearsal never goes on for real
    model_given: bool = False  # by name: then it goes before the model of an OpenAI line
    format: str = "auto"  # the shape of the input, if it was named
    prompt_column: str | None = None
    template: str | None = None  # the text that makes a prompt of a record's fields
    schema: str | None = None  # a JSON Schema that the service holds the answers to

    def digest(self) -> bytes:
        """16 bytes that are equal exactly when the settings are."""
        given = ((each.name, getattr(self, each.name), each.default) for each in fields(self))
        values = {name: value for name, value, default in given if value != default}
        return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).digest()


class Prompt(NamedTuple):
    """What a record asks, in no provider's words. ``None`` means: the record leaves it to the job's settings.

    Exactly one of ``text`` (the *prompt* shape) and ``body`` (a full API body, passed through) is given.
    """

    text: str | None
    body: JsonObject | None = None
    system: str | None = None
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands in its input: ``line`` from 1, ``offset`` and ``length`` in bytes without the line end."""

    line: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class History:
    """What the ledger remembers of a record and decisions depend on.

    ``attempt`` says which sending this is (refused ones are not counted); ``maybe_paid`` counts the payments beyond the
    first that may have happened; ``failed_operations`` the accepted operations that ended with a passing error.
    """

    attempt: int = 1
    lost_replies: int = 0
    maybe_paid: int = 0
    failed_operations: int = 0

    def after(self, move: Move) -> History:
        """The history once the move is made."""
        kept = not move.starts_anew
        return History(
            self.attempt + move.adds_attempt,
            kept * (self.lost_replies + move.adds_lost_reply),
            self.maybe_paid + move.adds_maybe_paid,
            kept * (self.failed_operations + move.adds_failed_operation),
        )


@dataclass(frozen=True, slots=True)
class Record:
    """One input line, parsed. ``seq`` is its row in the ledger, ``None`` while it has none."""

    place: Place
    id: RecordId
    digest: bytes
    prompt: Prompt
    seq: int | None = None
    history: History = History()


# --- what comes back --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the service counted them; ``None`` where it did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished generation. ``json`` holds the tool calls when ``finish_reason`` is ``tool_calls``."""

    text: str | None
    finish_reason: str
    usage: Usage
    model_version: str | None = None
    json: Any = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record has no answer. ``kind`` is one of the documented kinds; ``retryable``: sending it again may help."""

    kind: str
    message: str
    code: int | None = None
    retryable: bool = False
    finish_reason: str | None = None
    usage: Usage = Usage()


Outcome = Answer | Failure


@dataclass(frozen=True, slots=True)
class Accepted:
    """The service took the request and gave its operation this ID."""

    operation_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A complete answer that refuses: certainly not accepted, nothing paid. ``retry_after_s`` as the service asked."""

    status: int
    message: str
    code: int | None = None
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Nothing left this machine: certainly not accepted."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Bytes of the POST may have left and no operation ID came back: accepted or not, nobody can know."""

    reason: str


SubmitReply = Accepted | Refused | Unreachable | Ambiguous


@dataclass(frozen=True, slots=True)
class StillRunning:
    """The operation is not finished."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The operation is finished, with this outcome."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Malformed:
    """The operation says it is finished and holds neither an answer nor an error that can be read."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotFound:
    """The service does not know the operation: not yet, no longer, or not with this key."""


@dataclass(frozen=True, slots=True)
class PollFailed:
    """The poll itself failed and says nothing about the operation. ``status`` is the HTTP status, if there was one."""

    reason: str
    status: int | None = None
    retry_after_s: float = 0.0


PollReply = StillRunning | Finished | Malformed | NotFound | PollFailed


# --- what it means ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Move:
    """One step of a record to another state, with what it adds to the record's history."""

    to: State
    adds_maybe_paid: int = 0
    adds_lost_reply: int = 0
    adds_failed_operation: int = 0
    failure: Failure | None = None
    starts_anew: bool = False  # lost replies and failed operations are counted from 0

    @property
    def adds_attempt(self) -> int:
        """1 if the next POST will be another sending, not a repeat of one that was certainly refused."""
        return int(self.to is State.NEW and bool(self.adds_maybe_paid or self.adds_failed_operation))


MAX_LOST_REPLIES = 3
MAX_REFUSALS = 5
MAX_FAILED_OPERATIONS = 2
STOPS_THE_RUN = frozenset({401, 403})
_PASSING_REFUSALS = frozenset({409, 425, 501})


def is_passing(reply: Refused) -> bool:
    """Whether the same request may be accepted later although the service refused it now."""
    return reply.status in _PASSING_REFUSALS or 300 <= reply.status < 400


def after_submit(reply: SubmitReply, history: History, refusals: int, on_ambiguous: OnAmbiguous) -> Move:
    """What one submit reply means for its record, which is INTENT.

    Args:
        refusals: Passing refusals (not 429) of this record in this run, this reply included.
    """
    match reply:
        case Accepted():
            return Move(State.OPEN)
        case Ambiguous(reason) if on_ambiguous == "hold":
            return Move(State.HELD, adds_lost_reply=1, failure=Failure("held", f"may have been accepted: {reason}"))
        case Ambiguous(reason) if history.lost_replies + 1 >= MAX_LOST_REPLIES:
            failure = Failure("no_reply", f"{MAX_LOST_REPLIES} replies lost, the last: {reason}", retryable=True)
            return Move(State.FAILED, adds_maybe_paid=1, adds_lost_reply=1, failure=failure)
        case Ambiguous():
            return Move(State.NEW, adds_maybe_paid=1, adds_lost_reply=1)
        case Unreachable() | Refused(status=429):
            return Move(State.NEW)
        case Refused(status) if status in STOPS_THE_RUN or (is_passing(reply) and refusals < MAX_REFUSALS):
            return Move(State.NEW)
        case Refused(status, message, code):
            kind = "invalid_argument" if status in (400, 413, 422) else "rejected"
            failure = Failure(kind, message, code, retryable=is_passing(reply))
            return Move(State.FAILED, failure=failure)


def after_crash(on_ambiguous: OnAmbiguous) -> Move:
    """What the end of the process means for a record that was INTENT: its reply will never be read."""
    if on_ambiguous == "hold":
        return Move(State.HELD, failure=Failure("held", "may have been accepted: batchrun ended before the reply"))
    return Move(State.NEW, adds_maybe_paid=1)


def after_failure(failure: Failure, history: History) -> Move:
    """What a failed operation means for its record, which is OPEN. A passing failure is sent again, twice at most."""
    if _is_passing(failure) and history.failed_operations < MAX_FAILED_OPERATIONS:
        return Move(State.NEW, adds_failed_operation=1)
    to = {"held": State.HELD, "expired": State.EXPIRED}.get(failure.kind, State.FAILED)
    return Move(to, failure=failure)


def _is_passing(failure: Failure) -> bool:
    return failure.retryable and failure.kind == "provider_error"


def after_request(state: State, failure: Failure | None, *, accepted: bool) -> Move:
    """What it means that a person has a settled record sent again: whatever may have been paid for it until now counts.

    A refusal cost nothing, nor did an operation that failed in passing; each lost reply has been counted when it was.
    """
    counted = state is State.FAILED and failure is not None and (failure.kind == "no_reply" or _is_passing(failure))
    if state is State.FAILED and not accepted and not counted:
        return Move(State.NEW, starts_anew=True)
    return Move(State.NEW, adds_maybe_paid=not counted, adds_failed_operation=counted, starts_anew=True)


@dataclass(frozen=True, slots=True)
class PollPolicy:
    """When to ask again and when to stop asking. Seconds; the reasons stand in docs/decisions/0004-pace.md."""

    retention_s: float
    min_gap_s: float = 1.0
    gap_per_age: float = 0.05
    max_gap_s: float = 60.0
    last_min_gap_s: float = 0.25
    last_gap_per_age: float = 0.01
    settling_in_s: float = 60.0
    patience_s: float = 600.0

    def gap_s(self, age_s: float) -> float:
        """Seconds until the next look at an operation of this age."""
        return min(max(self.min_gap_s, self.gap_per_age * age_s), self.max_gap_s)

    def at_the_end(self) -> PollPolicy:
        """The policy once nothing is left to send: the whole job waits for each operation, and the budget is free."""
        return replace(self, min_gap_s=self.last_min_gap_s, gap_per_age=self.last_gap_per_age)


@dataclass(frozen=True, slots=True)
class PollAgain:
    """Nothing is decided; ask again in so many seconds."""

    after_s: float


def decide(reply: PollReply, *, age_s: float, trouble_s: float, policy: PollPolicy) -> PollAgain | Outcome:
    """What one poll reply means for its operation: an outcome settles it.

    Args:
        age_s: Seconds since the service accepted it.
        trouble_s: Seconds since the first of an unbroken series of ``NotFound`` or ``Malformed``; 0 at the first.
    """
    match reply:
        case Finished(outcome):
            return outcome
        case StillRunning():
            return PollAgain(policy.gap_s(age_s))
        case PollFailed():
            return PollAgain(max(policy.gap_s(age_s), reply.retry_after_s))
        case NotFound() if age_s >= policy.retention_s:
            return Failure("expired", "accepted and paid, but the service no longer keeps the answer")
        case NotFound() if age_s >= policy.settling_in_s and trouble_s >= policy.patience_s:
            return Failure("held", "accepted, but the service does not find it")
        case Malformed(reason) if trouble_s >= policy.patience_s:
            return Failure("malformed", reason)
        case NotFound() | Malformed():
            return PollAgain(policy.gap_s(age_s))
