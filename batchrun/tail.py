"""The output as it is found: what of it is ours, and what stands behind the last commit: steps 1 to 3 of recovery."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import closing, suppress

import orjson

from batchrun.errors import InputProblem
from batchrun.record import JsonObject, State, Usage
from batchrun.storage.jobdir import AlreadyRunning, JobDir, JobPaths
from batchrun.storage.ledger import Done, Ledger, Row
from batchrun.storage.results import Results, lines_of, read_back, sync_directory, write_new, writing

MARKS_OF_A_RESULT = frozenset({"operation_id", "line", "provider", "attempt", "maybe_paid"})


def open_output(ledger: Ledger, paths: JobPaths) -> Results:
    """Step 1: the output must be at least what the ledger says, and end as it says."""
    job, results = ledger.job(), find_output(ledger, paths)
    if results is None:
        if job.out_committed:
            raise output_changed(paths, "is gone", ledger)
        return lock_output(paths)
    how = ""
    if results.size() < job.out_committed:
        how = "is shorter than it was"
    elif job.out_committed or job.out_last_seq is not None:
        last = ledger.row(job.out_last_seq or 0).written
        if last is None or last.end != job.out_committed or read_back(results.fd, last) is None:
            how = "was edited"
    if how:
        results.close()  # whoever runs jobs from Python goes on after a refusal
        raise output_changed(paths, how, ledger)
    return results


def lock_output(paths: JobPaths, *, new: bool = False) -> Results:
    """The output, or the ``new`` one that is to take its place; an empty one if there is none, its name durable."""
    path = paths.new_output if new else paths.output
    with writing(path):
        try:
            return Results.open(path, create=not os.path.lexists(path))
        except (BlockingIOError, FileExistsError) as error:
            raise AlreadyRunning(paths, {}) from error
        except OSError as error:
            if path.is_symlink():
                raise InputProblem(f"{path} is a link", remedy="name the file itself with -o") from error
            raise


def output_changed(paths: JobPaths, how: str, ledger: Ledger) -> InputProblem:
    done = sum(row["records"] for row in ledger.tally() if row["state"] == State.DONE)
    return InputProblem(
        f"{paths.output} {how}, but its job has {done:,} paid answers",
        remedy="put the file back as it was; batchrun run with --rebuild-output fetches what is still kept, "
        "with --new-run it pays for all again",
    )


# --- taking lines out of the output ---


def rebuild(ledger: Ledger, jobdir: JobDir, now: float) -> int:
    """--rebuild-output: keep the lines that are as they were written; returns how many answers must be fetched."""
    old = find_output(ledger, jobdir.paths) or lock_output(jobdir.paths)
    with closing(old), ledger.transaction():
        return take_out(ledger, old, jobdir, now)


def take_out(ledger: Ledger, old: Results, jobdir: JobDir, now: float) -> int:
    """Write the lines that belong to DONE records and are as they were into a new file, and every other to quarantine.

    Inside a transaction, so that the file is durable before the ledger describes it; ``find_output`` and ``replaced``
    let it take the output's place. Returns how many records are OPEN again because their line was not found.
    """
    refuse_unknown_answers(ledger, old, 0, states=())
    cut: list[tuple[int, int]] = []

    def kept() -> Iterator[bytes]:
        end, last = 0, None
        for offset, data in lines_of(old.fd, 0):
            seq = ledger.keep_line(result_in(data).get("operation_id", ""), Results.place(data, end))
            if seq is None:
                cut.append((offset, len(data)))
            else:
                end, last = end + len(data), seq
                yield data
        ledger.save(out_committed=end, out_last_seq=last)

    ledger.doubt_lines()
    with writing(jobdir.paths.output):
        jobdir.paths.new_output.unlink(missing_ok=True)
        write_new(jobdir.paths.new_output, kept(), stat.S_IMODE(os.fstat(old.fd).st_mode))
        if cut:
            write_new(jobdir.new_quarantine(now), (os.pread(old.fd, length, offset) for offset, length in cut))
    return ledger.miss_lines()


def find_output(ledger: Ledger, paths: JobPaths) -> Results | None:
    """The output, locked; None if it is gone. A crash may have left the end of ``take_out`` to be done."""
    old = lock_output(paths) if os.path.lexists(paths.output) else None
    new = replaced(ledger, paths)
    if new is not None and old is not None:
        old.close()
    return new or old


def replaced(ledger: Ledger, paths: JobPaths) -> Results | None:
    """The new output in place of the old one, if there is one and the ledger describes it; else it is deleted."""
    if not os.path.lexists(paths.new_output):
        return None
    new = lock_output(paths, new=True)
    with writing(paths.new_output):
        if _is_as_written(ledger, new):
            os.replace(new.path, paths.output)
            sync_directory(paths.output.parent)
            new.path = paths.output
            return new
        new.close()
        paths.new_output.unlink()
    return None


def _is_as_written(ledger: Ledger, results: Results) -> bool:
    """Whether the file is the lines of all DONE records, and nothing else."""
    end = 0
    for row in ledger.walk("rows_done"):
        if row.written is None or row.written.offset != end or read_back(results.fd, row.written) is None:
            return False
        end = row.written.end
    return end == results.size()


# --- the tail ---


def walk_tail(ledger: Ledger, results: Results, start: int, now: float) -> tuple[list[Done], int]:
    """The lines from ``start`` that are whole, belong to an OPEN operation, and come first; and where they end.

    Their answers need not be fetched again. After a power cut the tail may hold zeros or old bytes, so the walk stops
    at the first line that is not right.
    """
    kept: dict[int, Done] = {}
    end = start
    for offset, data in lines_of(results.fd, start):
        row, usage = _open_row(ledger, data)
        if row is None or row.seq in kept:
            break
        kept[row.seq] = row.seq, row.operation_id or "", Results.place(data, offset), usage, now
        end = offset + len(data)
    return list(kept.values()), end


def _open_row(ledger: Ledger, data: bytes) -> tuple[Row | None, Usage]:
    """The OPEN record whose operation this line answers, if it is whole."""
    match result_in(data):
        case {
            "operation_id": operation_id,
            "line": line,
            "usage": {"input_tokens": int() | None as asked, "output_tokens": int() | None as answered},
        }:
            row = ledger.row_of_operation(operation_id)
            is_open = row is not None and row.state is State.OPEN and row.operation_id == operation_id
            is_sound = data.endswith(b"\n") and all(0 <= (each or 0) < 1 << 53 for each in (asked, answered))
            if row is not None and is_open and is_sound and row.place.line == line:
                return row, Usage(asked, answered)
    return None, Usage()


def refuse_unknown_answers(
    ledger: Ledger, results: Results, start: int, *, states: Collection[State] = (State.DONE,)
) -> None:
    """What is about to be cut must not hold an answer of an operation that no record had, or one in these states has.

    Then the ledger is older than the output, or another job's, and sending those records again would pay twice in
    silence.
    """
    for _, data in lines_of(results.fd, start):
        result = result_in(data)
        if result.keys() >= MARKS_OF_A_RESULT:
            row = ledger.row_of_operation(result["operation_id"])
            if row is None or row.state in states:
                raise InputProblem(
                    f"{results.path} holds answers that its ledger {ledger.path} does not know",
                    remedy="the ledger is older, or another job's; restore the right one, or choose another -o",
                )


def result_in(line: bytes) -> JsonObject:
    """The result in a line of an output, empty if it is none."""
    with suppress(orjson.JSONDecodeError):
        result: JsonObject = orjson.loads(line)
        match result:
            case {"operation_id": str()}:
                return result
    return {}
