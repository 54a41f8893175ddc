"""Everything between the start and the first POST, in order. Every start is a resume, and each step may be killed.

0. Take both locks.  1. Is the output still what the ledger wrote?  2.-3. Keep the whole lines of its tail, put the rest
aside.  4. One closing commit.  5. Same settings?  6. Same input?  Only then may anything be sent.
"""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

import batchrun
from batchrun.check import Source, check_input, offset_after
from batchrun.config import JobConfig
from batchrun.errors import BatchrunError, InputProblem, UsageProblem
from batchrun.log import event
from batchrun.record import Settings, State, Usage, after_crash
from batchrun.storage.inventory import Conflict, Inventory
from batchrun.storage.jobdir import AlreadyRunning, JobDir, JobPaths
from batchrun.storage.ledger import Ledger, Row, Written
from batchrun.storage.results import Results, full_disk, lines_of

MARKS_OF_A_RESULT = frozenset({"operation_id", "line", "provider", "attempt", "maybe_paid"})
SUBMISSIONS_KEPT_S = 2 * 3600


@dataclass(slots=True)
class Recovered:
    """A job whose files agree with one another. Leaving it lets go of every file."""

    ledger: Ledger
    results: Results
    source: Source
    run_id: int
    has_work: bool
    put_aside: str | None = None


@contextmanager
def recover(config: JobConfig, now: float) -> Iterator[Recovered]:
    """Bring the job into a state from which it is safe to send.

    Raises:
        BatchrunError: nothing was sent, and what it names must be seen to first.
    """
    with ExitStack() as held:
        input_fd = open_input(config.input, config.paths)
        held.callback(os.close, input_fd)
        jobdir, put_aside = JobDir.take(config.paths), None
        if config.new_run:
            jobdir, put_aside = start_over(jobdir, now)
        held.callback(jobdir.release)
        refused = held.enter_context(ExitStack())
        refused.callback(jobdir.discard_if_made)
        ledger = held.enter_context(closing(Ledger.open(jobdir.make_ledger_file())))
        is_new = not ledger.exists()
        if is_new or not ledger.has_operations():
            refuse_foreign_file(config.paths.output, config.paths)
        if is_new:
            refuse_foreign_file(config.paths.failures, config.paths)
            job_id = uuid.uuid4().hex[:8]
            ledger.create(job_id=job_id, input_path=_from_output(config), settings=config.settings, now=now)
        results = None if is_new else held.enter_context(closing(open_output(ledger, config.paths)))
        run_id = close_the_books(ledger, results, jobdir, config, now)
        try:
            settle_settings(ledger, config)
            source = settle_input(ledger, input_fd, config)
            if results is None:
                results = held.enter_context(closing(make_output(config.paths)))
        except BatchrunError as problem:
            with ledger.transaction():
                ledger.end_run(run_id, problem.exit_code, now, problem)
            raise
        refused.pop_all()
        results.end = ledger.job().out_committed
        yield Recovered(ledger, results, source, run_id, _has_work(ledger, source), put_aside)


def _has_work(ledger: Ledger, source: Source) -> bool:
    return source.first_offset < source.end or any(
        row["state"] in (State.NEW, State.INTENT, State.OPEN) for row in ledger.tally()
    )


# --- 0: the files and the locks ---


def open_input(path: Path, paths: JobPaths) -> int:
    """Open the input. It must be a regular file, and none of the job's own."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _no_input(path, error) from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise UsageProblem(f"{path} is {kind}", remedy="name a file with one record per line")
    for own in (paths.output, paths.failures, paths.ledger, paths.emulator_journal):
        if own.exists() and os.path.samestat(own.stat(), found):
            os.close(fd)
            raise UsageProblem(f"{own} would be written over the input", remedy="choose another -o")
    return fd


def _from_output(config: JobConfig) -> str:
    """The input's path, seen from the output's folder: right from anywhere, and when the folder moves."""
    return os.path.relpath(config.input, config.paths.output.parent)


def _no_input(path: Path, error: OSError) -> UsageProblem:
    remedy = "name the file with the records"
    if str(path) == "-":
        return UsageProblem("standard input is not supported yet", remedy="save it to a file and name that")
    if isinstance(error, FileNotFoundError) and path.parent.is_dir():
        alike = sorted(other.name for other in path.parent.glob(f"{path.stem}.*") if other.is_file())
        remedy = f"this folder has {', '.join(alike[:3])}" if alike else remedy
    reason = "no such file" if isinstance(error, FileNotFoundError) else os.strerror(error.errno or 0)
    return UsageProblem(f"{path}: {reason}", remedy=remedy)


def start_over(jobdir: JobDir, now: float) -> tuple[JobDir, str]:
    """--new-run: the old job keeps its files under a dated name, and this one begins with none."""
    if jobdir.paths.output.exists():
        _lock_output(jobdir.paths, create=False).close()
    suffix = jobdir.put_aside(now)
    event("put_aside", suffix=suffix)
    fresh = JobDir.take(jobdir.paths)
    jobdir.release()
    return fresh, suffix


def refuse_foreign_file(path: Path, paths: JobPaths) -> None:
    """A job must not write into a file that it did not make."""
    if path.exists() and (path.stat().st_size or not path.is_file()):
        raise InputProblem(
            f"{path} is there already, and no ledger that knows it ({paths.state})",
            remedy="choose another -o, or --new-run to put it aside under a dated name",
        )


def open_output(ledger: Ledger, paths: JobPaths) -> Results:
    """Step 1: the output must be at least what the ledger says, and end as it says."""
    job = ledger.job()
    if not os.path.lexists(paths.output):
        if job.out_committed:
            raise _output_changed(paths, "is gone", ledger)
        return make_output(paths)
    results = _lock_output(paths, create=False)
    if results.size() < job.out_committed:
        raise _output_changed(paths, "is shorter than it was", ledger)
    if job.out_committed or job.out_last_seq is not None:
        written = ledger.row(job.out_last_seq or 0).written
        if written is None or written.end != job.out_committed or not results.matches(written):
            raise _output_changed(paths, "was edited", ledger)
    return results


def make_output(paths: JobPaths) -> Results:
    """An empty output, its name durable; an empty file that is there already will do."""
    return _lock_output(paths, create=not os.path.lexists(paths.output))


def _lock_output(paths: JobPaths, *, create: bool) -> Results:
    try:
        return Results.open(paths.output, create=create)
    except (BlockingIOError, FileExistsError) as error:
        raise AlreadyRunning(paths.output, {}) from error
    except OSError as error:
        if paths.output.is_symlink():
            raise InputProblem(f"{paths.output} is a link", remedy="name the file itself with -o") from error
        raise full_disk(paths.output, error) from error


def _output_changed(paths: JobPaths, how: str, ledger: Ledger) -> InputProblem:
    done = sum(row["records"] for row in ledger.tally() if row["state"] == State.DONE)
    return InputProblem(
        f"{paths.output} {how}, but its job has {done:,} paid answers",
        remedy="put the file back as it was, or --new-run, which pays for everything again",
    )


# --- 2 to 4: the tail and the closing commit ---


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole line found behind the last commit: its answer need not be fetched again."""

    row: Row
    written: Written
    usage: Usage


def close_the_books(ledger: Ledger, results: Results | None, jobdir: JobDir, config: JobConfig, now: float) -> int:
    """Adopt the tail, end every INTENT, and commit even if nothing changed. Returns the new run's number.

    The commit is never left out: rows of a killed process may be visible and not durable, and acting on them before a
    sync would bring silent second payments back. The checkpoint writes their pages anew for the same reason.
    """
    last_run = ledger.last_run()
    if last_run is not None and last_run.ended_at is None:
        ledger.check()
    kept: list[Kept] = []
    cut = 0
    if results is not None:
        start = ledger.job().out_committed
        earlier = ledger.last_run()
        if earlier is not None and earlier.ended_at is not None and results.size() > start:
            raise _output_changed(jobdir.paths, "has grown since its last run ended", ledger)
        kept, end = walk_tail(ledger, results, start)
        refuse_unknown_answers(ledger, results, end)
        if results.size() > start:
            cut = _mend(results, start, end, jobdir, now)
    with ledger.transaction():
        for line in kept:
            ledger.record_done(line.row.seq, line.row.operation_id or "", line.written, line.usage, now)
        if kept:
            last = kept[-1]
            ledger.save_out_committed(last.written.end, last.row.seq)
        lost = ledger.move_all(State.INTENT, after_crash(config.on_ambiguous), now)
        ledger.forget_submissions(now - SUBMISSIONS_KEPT_S, now + SUBMISSIONS_KEPT_S)
        epoch = ledger.next_epoch()
        run_id = ledger.begin_run(batchrun.__version__, now)
    ledger.checkpoint()
    event("recovered", epoch=epoch, lines_kept=len(kept), bytes_cut=cut, replies_lost=lost)
    return run_id


def _mend(results: Results, start: int, end: int, jobdir: JobDir, now: float) -> int:
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


# --- 5: the settings ---


def settle_settings(ledger: Ledger, config: JobConfig) -> None:
    """Other settings give other answers: they are pinned by the first acceptance, and free until then."""
    job = ledger.job()
    if job.settings_digest == config.settings.digest():
        return
    if ledger.has_operations():
        raise InputProblem(
            f"{config.paths.output} was made with {_difference(json.loads(job.settings), config.settings)}",
            remedy="another -o keeps both; --new-run starts over and pays again",
        )
    with ledger.transaction():
        ledger.save_settings(config.settings)
        ledger.reopen_refused()


def _difference(before: dict[str, object], now: Settings) -> str:
    changed = [(name, before.get(name), value) for name, value in asdict(now).items() if before.get(name) != value]
    words = []
    for name, old, new in changed:
        if name == "system":
            words.append("another system message")
        elif name == "on_this_machine":
            words.append(
                "an --endpoint " + ("on this machine, now the service" if old else "elsewhere, now on this machine")
            )
        else:
            words.append(f"{name} {_shown(old)}, now {_shown(new)}")
    return "; ".join(words)


def _shown(value: object) -> str:
    return "not set" if value is None else str(value)


# --- 6: the input ---


def settle_input(ledger: Ledger, fd: int, config: JobConfig) -> Source:
    """Check the input and hold it against the ledger, unless it is the very file of the last complete check."""
    job = ledger.job()
    found = os.fstat(fd)
    known = (job.input_inode, job.input_mtime_ns, job.input_size)
    if config.strict or known != (found.st_ino, found.st_mtime_ns, found.st_size):
        source = _check(ledger, fd, found, config)
    else:
        with ledger.transaction():  # the same file, maybe under a new name
            ledger.save_input_path(_from_output(config))
        digest = job.input_digest or b""
        source = Source(
            config.input,
            fd,
            end=found.st_size,
            records=job.input_records,
            checked=(found.st_ino, found.st_mtime_ns, found.st_size, digest),
            first_line=job.low_water_line,
            first_offset=job.low_water_offset,
        )
    if config.limit is not None and source.records is not None:
        end = offset_after(fd, source.end, config.limit)
        source = replace(source, end=end, records=min(source.records, config.limit))
    return source


def _check(ledger: Ledger, fd: int, found: os.stat_result, config: JobConfig) -> Source:
    has_rows = ledger.last_line() > 0
    inventory = Inventory(ledger)
    try:
        checked = check_input(
            config.input, fd, found.st_size, inventory, limit=None if has_rows else config.limit, strict=config.strict
        )
        with ledger.transaction():
            if has_rows:
                ledger.forget_bad_lines()
                conflicts, count = inventory.conflicts()
                if conflicts:
                    raise _input_changed(config, ledger.job().input_path, conflicts, count)
                inventory.adopt()
            after_all = checked.lines + 1, checked.end
            start = min(inventory.first_unknown() or after_all, checked.first_bad or after_all)
            ledger.save_low_water(*start)
            ledger.save_input_path(_from_output(config))
            if checked.whole:
                ledger.save_input(
                    inode=found.st_ino,
                    mtime_ns=found.st_mtime_ns,
                    size=found.st_size,
                    digest=checked.digest,
                    records=checked.records,
                )
    finally:
        inventory.close()
    event(
        "input_checked",
        records=checked.records,
        bad=checked.bad,
        bytes=checked.end,
        matched_by="line" if checked.without_id else "id",
    )
    identity = (found.st_ino, found.st_mtime_ns, found.st_size, checked.digest) if checked.whole else None
    return Source(config.input, fd, checked.end, checked.records, identity, *start)


def _input_changed(config: JobConfig, known_as: str, conflicts: list[Conflict], count: int) -> InputProblem:
    path = config.input
    remedy = "put these lines back as they were, or use another -o; appended lines are welcome"
    if os.path.basename(known_as) != path.name:
        remedy = f"the job of {config.paths.output} reads {os.path.basename(known_as)}: another input wants another -o"
    *before, last = [
        f"{path}:{conflict.was}: " + ("gone since it was sent" if conflict.now is None else "changed since it was sent")
        for conflict in conflicts
    ] + [f"… and {count - len(conflicts):,} more"] * (count > len(conflicts))
    return InputProblem(last, remedy=remedy, before=before)
