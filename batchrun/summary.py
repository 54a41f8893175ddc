"""Ledger -> counts, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batchrun.errors import DECISION, BatchrunError
from batchrun.lines import shown
from batchrun.providers.yandex import Yandex
from batchrun.record import State
from batchrun.storage.ledger import LAST_INSTANT, Ledger

NAMED = 20


@dataclass(frozen=True, slots=True)
class Summary:
    """Where a job stands. ``total`` is None where the input was never read whole.

    ``maybe_paid`` counts records that were possibly paid twice, ``named`` are the first of them as (line, id).
    ``failed_kinds`` are those of the FAILED records alone: (kind, records, first line, its message). Tokens are added
    up at the end of a run. ``lines_gone``: answers and failures written without ``meta`` or ``input``, their line being
    gone.
    """

    counts: dict[State, int]
    total: int | None
    maybe_paid: int
    named: list[tuple[int, Any]]
    failed_kinds: list[tuple[str, int, int, str]]
    oldest_open_at: float | None
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    exit_code: int | None = None
    problem: BatchrunError | None = None
    lines_gone: int = 0

    @property
    def unsent(self) -> int | None:
        """Records that the service does not have: without a row, or NEW again."""
        if self.total is None:
            return None
        return max(0, self.total - sum(self.counts.values())) + self.counts[State.NEW]

    def is_finished(self, limit: int | None = None) -> bool:
        """Whether each of the records, or of the first so many, is settled, and nothing else is on its way."""
        wanted = min((count for count in (self.total, limit) if count is not None), default=None)
        live = sum(self.counts[state] for state in (State.NEW, State.INTENT, State.OPEN))
        return wanted is not None and not live and sum(self.counts.values()) >= wanted

    def job_exit_code(self, max_failures: str = "0") -> int:
        """What the exit code says of a job that has nothing left to do. Failures are allowed only beside answers."""
        if self.counts[State.HELD] or self.counts[State.EXPIRED]:
            return DECISION
        allowed = float(max_failures.removesuffix("%"))
        if max_failures.endswith("%"):
            allowed *= sum(self.counts.values()) / 100
        return 1 if self.counts[State.FAILED] > (allowed if self.counts[State.DONE] else 0) else 0


def summarize(ledger: Ledger, total: int | None = None) -> Summary:
    """Where a job stands, in a few queries that read only the rows that are not simply DONE.

    ``total`` overrides the number of records.
    """
    counts = dict.fromkeys(State, 0)
    maybe_paid = 0
    oldest = None
    for row in ledger.tally():
        counts[State(row["state"])] = row["records"]
        maybe_paid += row["maybe_paid"]
        if row["state"] == State.OPEN:
            oldest = min(max(0.0, row["oldest"] or 0.0), LAST_INSTANT)
    return Summary(
        counts=counts,
        total=ledger.job().input_records if total is None else total,
        maybe_paid=maybe_paid,
        named=[(line, id_) for line, id_, _ in ledger.maybe_paid(NAMED)],
        failed_kinds=[row for row in ledger.failure_kinds() if row[0] not in (State.HELD, State.EXPIRED)],
        oldest_open_at=oldest,
    )


def headline(summary: Summary) -> str:
    """``200 written, 0 failed, 4 possibly paid twice``, and what else is not zero."""
    counts = summary.counts
    parts = [f"{counts[State.DONE]:,} written", f"{counts[State.FAILED]:,} failed"]
    parts += [f"{counts[state]:,} {state}" for state in (State.HELD, State.EXPIRED, State.OPEN) if counts[state]]
    if counts[State.INTENT]:
        parts.append(f"{counts[State.INTENT]:,} without a reply")
    if summary.unsent:
        parts.append(f"{summary.unsent:,} not sent")
    parts.append(f"{summary.maybe_paid:,} possibly paid twice")
    gone = f"; {summary.lines_gone:,} of them without meta or input: their lines are gone or changed"
    return ", ".join(parts) + gone * bool(summary.lines_gone)


def details(summary: Summary) -> list[str]:
    """The lines under the headline: tokens, failures by kind, and every doubt by name."""
    lines = []
    if summary.input_tokens or summary.output_tokens:
        lines.append(f"tokens   {summary.input_tokens:,} in, {summary.output_tokens:,} out")
    if summary.failed_kinds:
        lines.append(f"failed   {kinds_of(summary)}")
    if summary.named:
        lines.append(f"possibly paid twice: {names_of(summary)}")
    if summary.oldest_open_at is not None:
        lines.append(
            f"the open ones go on without us; their answers are kept until {kept_until(summary.oldest_open_at)}"
        )
    return lines


def kinds_of(summary: Summary) -> str:
    """Why records failed: each kind with what was said of its first record."""
    kinds = (
        f"{kind} {n:,} (first: line {line:,}, {shown(str(said), 120)})" for kind, n, line, said in summary.failed_kinds
    )
    return " · ".join(kinds)


def kept_until(accepted_at: float) -> str:
    """When the answer to an operation of this age may lapse."""
    return f"{datetime.fromtimestamp(accepted_at + Yandex.retention_s):%d %b %H:%M}"


def names_of(summary: Summary) -> str:
    """The records possibly paid twice, by line and id."""
    names = [f"line {line}" if id_ is None else f"line {line} (id {id_})" for line, id_ in summary.named]
    more = summary.maybe_paid - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more > 0 else "")


def retry_of_doubtful(summary: Summary, job: str) -> str | None:
    """What a person can do about records that nobody knows of, if there are any. ``job``: its words in a command."""
    for state in (State.HELD, State.EXPIRED):
        if summary.counts[state]:
            return f"batchrun retry {job} --only {state} sends them again, and may pay for them twice"
    return None


def duration(seconds: float) -> str:
    """In the two largest fitting units."""
    whole = round(max(0.0, seconds))
    for size, unit, rest, smaller in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // rest} {smaller}"
    return f"{whole} s"
