"""Everything between the start and the first POST, in order. Every start is a resume, and each step may be killed.

0. Take both locks; make durable what is found.  1. Is the output still what the ledger wrote?  2.-3. Keep the whole
lines of its tail, put the rest aside.  4. One closing commit.  5. Same settings?  6. Same input?  Only then may
anything be sent.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import batchrun
from batchrun import tail
from batchrun.check import Source, reading_of
from batchrun.config import JobConfig
from batchrun.errors import BatchrunError, InputProblem, UsageProblem
from batchrun.intake import announce, from_output, open_input, settle_input
from batchrun.log import event
from batchrun.record import Settings, State, after_crash
from batchrun.spool import open_copy
from batchrun.stop import in_time, signals_held
from batchrun.storage.jobdir import JobDir, JobPaths
from batchrun.storage.ledger import Done, Ledger
from batchrun.storage.results import Results
from batchrun.summary import summarize

SUBMISSIONS_KEPT_S = 2 * 3600


@dataclass(slots=True)
class Recovered:
    """A job whose files agree with one another. Leaving it lets go of every file."""

    ledger: Ledger
    results: Results
    source: Source
    run_id: int
    has_work: bool
    lines_gone: int = 0  # records whose line was wanted for the output or the failures, and is not there any more


@contextmanager
def recover(config: JobConfig, now: float) -> Iterator[Recovered]:
    """Bring the job into a state from which it is safe to send.

    Raises:
        BatchrunError: nothing was sent, and what it names must be seen to first.
    """
    with ExitStack() as undisturbed, ExitStack() as held:
        try:
            recovered = bring_in_step(config, now, held)
        except BaseException:
            undisturbed.enter_context(signals_held())  # what is undone is undone whole
            raise
        yield recovered


def bring_in_step(config: JobConfig, now: float, held: ExitStack) -> Recovered:
    """The steps, in order. ``held``: what to let go of at the end of the run, or now if one of them refuses."""
    input_fd = open_input(config.input, config.paths) if not config.collect_only else open_if_there(config)
    held.callback(os.close, input_fd)
    jobdir, put_aside = JobDir.take(config.paths), None
    held.callback(lambda: jobdir.release())  # whichever it is by then
    refused = held.enter_context(ExitStack())
    old = jobdir
    with signals_held():
        if begins_anew(config):
            put_aside = old.free_suffix(now)
            refused.callback(old.release)
            refused.callback(old.put_back, put_aside)
            jobdir = start_over(old, put_aside)
        refused.callback(jobdir.discard_if_made)
    ledger = held.enter_context(closing(Ledger.open(jobdir.make_ledger_file())))
    is_new = not ledger.exists()
    if is_new and (config.collect_only or config.goes_on):
        raise UsageProblem(f"{config.paths.output} has no job yet", remedy="start it by its own command first")
    if is_new or not ledger.has_operations():
        refuse_foreign_file(config.paths.output, config.paths)
    if is_new:
        refuse_foreign_failures(config.paths)
        job_id = uuid.uuid4().hex[:8]
        ledger.create(job_id=job_id, input_path=from_output(config), settings=config.settings, now=now)
    if config.rebuild_output:
        if is_new:
            remedy = "its state is needed: bring it back; or leave out --rebuild-output, and pay for everything"
            raise InputProblem(f"{config.paths.output} has no job ({config.paths.state})", remedy=remedy)
        missing = tail.rebuild(ledger, jobdir, now)
        event("rebuilt", missing=missing)
        config.tell(f"answers to be fetched again: {missing:,}")
    results = None if is_new else held.enter_context(closing(tail.open_output(ledger, config.paths)))
    run_id = close_the_books(ledger, results, jobdir, config, now)
    try:
        settle_settings(ledger, config)
        if config.collect_only:
            source = unread(ledger, input_fd, config)
        else:
            with in_time(config.deadline):
                take_out = None if results is None else partial(tail.take_out, ledger, results, jobdir, now)
                source = settle_input(ledger, input_fd, config, take_out)
        if put_aside is not None:
            refuse_empty(config, source)
        if results is not None and (rewritten := tail.replaced(ledger, config.paths)) is not None:
            results = held.enter_context(closing(rewritten))
        if config.retry is not None:
            send_again(ledger, config, source.end)
        with signals_held():  # once there is an output, there is a job
            if results is None:
                results = held.enter_context(closing(tail.lock_output(config.paths)))
            refused.pop_all()
    except BatchrunError as problem:
        with ledger.transaction():
            ledger.end_run(run_id, problem.exit_code, now, problem)
        raise
    if put_aside is not None:
        old.release()
        event("put_aside", suffix=put_aside)
        config.tell(f"the job before is kept, its files with {put_aside} at the end of their names")
    results.end = ledger.job().out_committed
    waiting = (State.OPEN,) if config.collect_only else (State.NEW, State.OPEN)
    has_work = source.first_offset < source.end or any(row["state"] in waiting for row in ledger.tally())
    return Recovered(ledger, results, source, run_id, has_work)


def open_if_there(config: JobConfig) -> int:
    """The input; nothing in its place if it is gone. Answers can be fetched without it."""
    try:
        fd = open_input(config.input, config.paths)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    except UsageProblem as problem:
        event("input_missing", logging.WARNING, cause=problem.cause)
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def unread(ledger: Ledger, fd: int, config: JobConfig) -> Source:
    """An input of which nothing more is sent: each record that was sent is found in its place, or not at all."""
    job = ledger.job()
    if job.input_source is not None:
        copy = open_copy(config.paths.spool)
        with open(os.devnull if copy is None else copy, "rb") as known:
            os.dup2(known.fileno(), fd, inheritable=False)
    reading = reading_of(config.settings, fd, os.fstat(fd).st_size)
    start = job.low_water_line, job.low_water_offset
    return Source(config.input, fd, 0, job.input_records, None, *start, reading=reading)


# --- 0: the files and the locks ---


def start_over(jobdir: JobDir, suffix: str) -> JobDir:
    """--new-run: the old job keeps its files under a dated name, and its lock; this one begins with none."""
    if jobdir.paths.output.exists():
        tail.lock_output(jobdir.paths).close()
    jobdir.put_aside(suffix)
    return JobDir.take(jobdir.paths)


def begins_anew(config: JobConfig) -> bool:
    """Whether what is there is to be put aside: all of it, or a job that has nothing left to do."""
    if config.new_run:
        return any(os.path.lexists(path) for path in (config.paths.ledger, config.paths.output, config.paths.failures))
    if config.if_finished != "new" or not config.paths.ledger.exists():
        return False
    with closing(Ledger.read_only(config.paths.ledger, alone=True)) as ledger:
        return ledger.exists() and summarize(ledger).is_finished(config.limit)


def refuse_empty(config: JobConfig, source: Source) -> None:
    """Nothing takes no job's place: most likely, whoever makes the input has failed."""
    if not source.records:
        remedy = "what was there is as it was; name an input with records"
        raise InputProblem(f"{config.input} holds no record to begin anew with", remedy=remedy)


def refuse_foreign_failures(paths: JobPaths) -> None:
    """Failures are made anew and deleted: they must not be those of another job, there or to come."""
    refuse_foreign_file(paths.failures, paths)
    if paths.twin.resolve() != paths.state.resolve() and (paths.twin / "ledger.db").exists():
        owner = paths.twin.with_suffix("")
        raise InputProblem(f"{paths.failures} is for the failures of {owner}", remedy="choose another -o")


def refuse_foreign_file(path: Path, paths: JobPaths) -> None:
    """A job must not write into a file that it did not make."""
    if path.exists() and (path.stat().st_size or not path.is_file()):
        raise InputProblem(
            f"{path} is there already, and no ledger that knows it ({paths.state})",
            remedy="choose another -o, or --new-run to put it aside under a dated name",
        )


# --- 4: the closing commit ---


def close_the_books(ledger: Ledger, results: Results | None, jobdir: JobDir, config: JobConfig, now: float) -> int:
    """Adopt the tail, end every INTENT, and begin a run, in one commit. Returns the run's number."""
    last_run = ledger.last_run()
    if last_run is not None and last_run.ended_at is None:
        ledger.check()
    kept: list[Done] = []
    cut, start = 0, ledger.job().out_committed
    if results is not None and results.size() > start:
        if last_run is not None and last_run.ended_at is not None:
            raise tail.output_changed(jobdir.paths, "has grown since its last run ended", ledger)
        kept, end = tail.walk_tail(ledger, results, start, now)
        tail.refuse_unknown_answers(ledger, results, end)
        cut = results.keep_until(start, end, jobdir.new_quarantine(now))
    with ledger.transaction():
        if kept:
            ledger.record_done(kept)
        lost = ledger.end_intents(after_crash(config.on_ambiguous), now)
        ledger.forget_submissions(now - SUBMISSIONS_KEPT_S, now + SUBMISSIONS_KEPT_S)
        epoch = ledger.next_epoch()
        run_id = ledger.begin_run(batchrun.__version__, now)
    event("recovered", epoch=epoch, lines_kept=len(kept), bytes_cut=cut, replies_lost=lost)
    return run_id


# --- 5: the settings ---


def settle_settings(ledger: Ledger, config: JobConfig) -> None:
    """Other settings give other answers: they are pinned by the first acceptance, and free until then."""
    job = ledger.job()
    if job.settings_digest == config.settings.digest():
        return
    if ledger.has_operations():
        raise InputProblem(
            f"{config.paths.output} was made with {_difference(json.loads(job.settings), config.settings)}",
            remedy="the options of then go on with it; another -o keeps both; --new-run starts over and pays again",
        )
    with ledger.transaction():
        ledger.save_settings(config.settings)
        ledger.save(input_inode=None)  # it is read once more: what is a bad line may be another matter now
        refused = (row for row in ledger.walk("rows_unwell") if row.failure and row.failure.kind != "bad_input")
        ledger.reopen(*(row.seq for row in refused if row.state is State.FAILED))


# --- what a person asks for ---


def send_again(ledger: Ledger, config: JobConfig, end: int) -> None:
    """retry: failures of one kind, held and expired records among them, or all that say it may help.

    ``end``: of what is read; a record behind it (``--limit``) stays as it is.

    Raises:
        UsageProblem: all of them are behind it.
    """
    with ledger.transaction():
        found = [(row.seq, row.place.offset < end) for row in ledger.rows_to_retry(config.retry or "")]
        again = [seq for seq, is_within in found if is_within]
        if found and not again:
            cause = f"what could be sent again is behind the first {config.limit:,} records (--limit)"
            raise UsageProblem(cause, remedy="the same command without --limit first, then retry")
        counted = ledger.reopen(*again)
    announce(config, counted)


def _difference(before: dict[str, object], now: Settings) -> str:
    return "; ".join(_changed(name, before.get(name), to) for name, to in asdict(now).items() if before.get(name) != to)


def _changed(name: str, old: object, new: object) -> str:
    match name:
        case "system":
            return "another system message"
        case "template" | "schema":
            return f"another {name}"
        case "model_given":
            return "its model named by -m, now not" if old else "its model not named by -m, now it is"
        case "on_this_machine":
            return f"an --endpoint {'on this machine, now the service' if old else 'elsewhere, now on this machine'}"
    old, new = ("not set" if value is None else value for value in (old, new))
    return f"{name} {old}, now {new}"
