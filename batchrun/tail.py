"""The end of the output: what stands behind the last commit, and what of it is ours: steps 1 to 3 of recovery."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import orjson

from batchrun.errors import InputProblem
from batchrun.record import State, Usage
from batchrun.storage.jobdir import AlreadyRunning, JobDir, JobPaths
from batchrun.storage.ledger import Ledger, Row, Written
from batchrun.storage.results import Results, full_disk, lines_of

MARKS_OF_A_RESULT = frozenset({"operation_id", "line", "provider", "attempt", "maybe_paid"})


def open_output(ledger: Ledger, paths: JobPaths) -> Results:
    """Step 1: the output must be at least what the ledger says, and end as it says."""
    job = ledger.job()
    if not os.path.lexists(paths.output):
        if job.out_committed:
            raise output_changed(paths, "is gone", ledger)
        return make_output(paths)
    results = lock_output(paths, create=False)
    if results.size() < job.out_committed:
        raise output_changed(paths, "is shorter than it was", ledger)
    if job.out_committed or job.out_last_seq is not None:
        written = ledger.row(job.out_last_seq or 0).written
        if written is None or written.end != job.out_committed or not results.matches(written):
            raise output_changed(paths, "was edited", ledger)
    return results


def make_output(paths: JobPaths) -> Results:
    """An empty output, its name durable; an empty file that is there already will do."""
    return lock_output(paths, create=not os.path.lexists(paths.output))


def lock_output(paths: JobPaths, *, create: bool) -> Results:
    try:
        return Results.open(paths.output, create=create)
    except (BlockingIOError, FileExistsError) as error:
        raise AlreadyRunning(paths.output, {}) from error
    except OSError as error:
        if paths.output.is_symlink():
            raise InputProblem(f"{paths.output} is a link", remedy="name the file itself with -o") from error
        raise full_disk(paths.output, error) from error


def output_changed(paths: JobPaths, how: str, ledger: Ledger) -> InputProblem:
    done = sum(row["records"] for row in ledger.tally() if row["state"] == State.DONE)
    return InputProblem(
        f"{paths.output} {how}, but its job has {done:,} paid answers",
        remedy="put the file back as it was, or --new-run, which pays for everything again",
    )


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole line found behind the last commit: its answer need not be fetched again."""

    row: Row
    written: Written
    usage: Usage


def mend(results: Results, start: int, end: int, jobdir: JobDir, now: float) -> int:
    try:
        return results.keep_until(start, end, jobdir.new_quarantine(now))
    except OSError as error:
        raise full_disk(results.path, error) from error


def walk_tail(ledger: Ledger, results: Results, start: int) -> tuple[list[Kept], int]:
    """The lines from ``start`` that are whole, belong to an OPEN operation, and come first; and where they end.

    After a power cut the tail may hold zeros or old bytes, so the walk stops at the first line that is not right.
    """
    kept: list[Kept] = []
    seen: set[int] = set()
    end = start
    for offset, data in lines_of(results.fd, start):
        line = _adoptable(ledger, data, offset)
        if line is None or line.row.seq in seen:
            break
        seen.add(line.row.seq)
        kept.append(line)
        end = offset + len(data)
    return kept, end


def _adoptable(ledger: Ledger, data: bytes, offset: int) -> Kept | None:
    """The line, if it is whole and belongs to an OPEN operation of this ledger."""
    result = _result(data)
    try:
        line, usage = result["line"], result["usage"]
        tokens = usage["input_tokens"], usage["output_tokens"]
    except (KeyError, TypeError):
        return None
    if not data.endswith(b"\n") or not all(
        value is None or (isinstance(value, int) and 0 <= value < 1 << 53) for value in tokens
    ):
        return None
    row = ledger.row_of_operation(result["operation_id"])
    if row is None or row.state is not State.OPEN or row.place.line != line:
        return None
    return (
        Kept(row, Results.place(data, offset), Usage(*tokens)) if row.operation_id == result["operation_id"] else None
    )


def refuse_unknown_answers(ledger: Ledger, results: Results, start: int) -> None:
    """What is about to be cut must not hold an answer of an operation that this ledger never saw.

    Then the ledger is older than the output, or another job's, and sending those records again would pay twice in
    silence.
    """
    for _, data in lines_of(results.fd, start):
        result = _result(data)
        if not result.keys() >= MARKS_OF_A_RESULT:
            continue
        row = ledger.row_of_operation(result["operation_id"])
        if row is None or row.state is State.DONE:
            raise InputProblem(
                f"{results.path} holds answers that its ledger {ledger.path} does not know",
                remedy="the ledger is older, or another job's; restore the right one, or choose another -o",
            )


def _result(data: bytes) -> dict[str, Any]:
    """The result in a line, empty if it is none."""
    try:
        result = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return result if isinstance(result, dict) and isinstance(result.get("operation_id"), str) else {}
