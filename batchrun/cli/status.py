"""``batchrun status``: where a job stands, read beside a live run without disturbing it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from datetime import datetime
from pathlib import Path

import click

from batchrun import errors
from batchrun.cli.options import OUTPUT, SETTINGS, STATE_DIR
from batchrun.cli.report import print_lines
from batchrun.errors import DiskProblem, UsageProblem
from batchrun.record import Settings, State
from batchrun.storage.jobdir import JobPaths, is_locked
from batchrun.storage.ledger import Ledger, PastRun
from batchrun.summary import Summary, kept_until, kinds_of, names_of, retry_of_doubtful, summarize
from batchrun.template import compiled

SAME_COMMAND = "the same command, without --new-run or --if-finished new"  # these begin anew, and pay again
MUST_BE_MENDED = frozenset({errors.USAGE, errors.INPUT, errors.CREDENTIALS, errors.BUG, errors.DISK})


@click.command(context_settings=SETTINGS, params=[OUTPUT, STATE_DIR])
def status(output: Path, state_dir: Path | None) -> None:
    """Say how far the job of OUTPUT is, what is wrong, and what to do next.

    \b
    Example:
      batchrun status answers.jsonl
    """
    paths = JobPaths.of(output, state_dir)
    with closing(open_job(paths)) as ledger:
        print_lines(describe(ledger, paths))


def open_job(paths: JobPaths, at_rest_to: str = "") -> Ledger:
    """The job's ledger, for reading. ``at_rest_to``: what is done with the job, for which no run may be at work.

    Raises:
        UsageProblem: there is no such job, or it does not rest.
    """
    if not paths.ledger.exists():
        remedy = "name the file given with -o, and --state-dir if the run had one"
        raise UsageProblem(f"{paths.output} has no job ({paths.state} is not there)", remedy=remedy)
    if at_rest_to and is_locked(paths):
        raise UsageProblem(f"{paths.output} is being written by a run", remedy=f"{at_rest_to} when it has ended")
    ledger = Ledger.read_only(paths.ledger)
    if ledger.exists():
        return ledger
    ledger.close()
    raise UsageProblem(f"the job of {paths.output} has not begun", remedy="run it first")


def input_of(ledger: Ledger, paths: JobPaths) -> Path:
    """Where the job's input should be, as seen from here."""
    path = ledger.job().input_path
    return Path(path if path == "-" else os.path.relpath(paths.output.parent / path))


def file_read(ledger: Ledger, paths: JobPaths) -> Path:
    """The file that holds the job's records: the input, or what was made of it."""
    return input_of(ledger, paths) if ledger.job().input_source is None else paths.spool


def settings_of(ledger: Ledger) -> Settings:
    """What the job's requests were made with."""
    job = ledger.job()
    given = json.loads(job.settings)
    settings = Settings(**{each.name: given.get(each.name, each.default) for each in fields(Settings)})
    try:
        texts = (settings.provider, settings.model, settings.format)
        maybe = (settings.system, settings.prompt_column, settings.template, settings.schema)
        is_sound = settings.digest() == job.settings_digest and all(isinstance(each, str) for each in texts)
        is_sound = is_sound and all(isinstance(each, str | None) for each in maybe)
        if settings.template is not None:
            compiled(settings.template)
    except Exception:  # whatever it is that Jinja finds wrong: it was right when it was written
        is_sound = False
    if not is_sound:
        remedy = "--new-run begins anew and pays again"
        raise DiskProblem(f"the ledger `{ledger.path}` is damaged", remedy=remedy)
    return settings


def limit_of(ledger: Ledger) -> int | None:
    """The ``--limit`` of the job's last start."""
    limit = json.loads(ledger.job().options).get("limit")
    return limit if isinstance(limit, int) else None


def describe(ledger: Ledger, paths: JobPaths) -> Iterator[str]:
    """The screen of ``status``."""
    job, summary, last = ledger.job(), summarize(ledger), ledger.last_run()
    counts, oldest, running = summary.counts, summary.oldest_open_at, is_locked(paths)
    how = "running" if running else "killed, or machine or disk failed" if last else "never ran"
    if not running and last is not None and last.ended_at is not None:
        how = f"ended {datetime.fromtimestamp(last.ended_at):%d %b %H:%M} with exit {last.exit_code}"
    yield f"{paths.output}   {how}   {settings_of(ledger).model}   job {job.job_id}"
    for name, count, note in (
        ("written", counts[State.DONE], ""),
        ("failed", counts[State.FAILED], kinds_of(summary)),
        ("held", counts[State.HELD], "nobody can know whether they were accepted; a person decides"),
        ("expired", counts[State.EXPIRED], "paid, and no longer kept by the service"),
        ("no reply", counts[State.INTENT], "" if running else "may have been accepted; the next run says so"),
        ("open", counts[State.OPEN], "" if oldest is None else f"their answers are kept until {kept_until(oldest)}"),
        ("not sent", summary.unsent, ""),
        ("total", summary.total, ""),
    ):
        if count is None:
            yield f"  {name:<8}   unknown   the input was not read to its end"
        elif count or name in ("written", "failed", "not sent", "total"):
            yield f"  {name:<8} {count:>9,}   {note}".rstrip()
    doubt = f": {names_of(summary)}" if summary.maybe_paid else ""
    if counts[State.INTENT] and not running:
        doubt += f", and the {counts[State.INTENT]:,} without a reply"
    yield f"  possibly paid twice: {summary.maybe_paid:,}{doubt}"
    if last is not None and last.cause and not running:
        yield f"  last said: {last.cause}"
    yield f"  next: {'wait; it is at work' if running else _next(summary, last, ledger, paths)}"


def _next(summary: Summary, last: PastRun | None, ledger: Ledger, paths: JobPaths) -> str:
    counts = summary.counts
    if last is not None and last.exit_code in MUST_BE_MENDED and last.remedy:
        return last.remedy
    if not paths.output.exists() and counts[State.DONE]:
        return f"{paths.output} is gone: the same command with --rebuild-output fetches again what is still kept"
    limit = limit_of(ledger)
    if not summary.is_finished(limit):
        has_started = ledger.job().options != "{}"
        return f"batchrun resume {paths.named}" if has_started else "the same command again"
    if again := retry_of_doubtful(summary, paths.named):
        return f"decide: {again}"
    if counts[State.FAILED]:
        again = SAME_COMMAND if ledger.job().input_source == "-" else f"batchrun resume {paths.named}"
        ways = [f"look at {paths.failures}", f"{again} sends mended lines"]
        if any(kind != "bad_input" for kind, *_ in summary.failed_kinds):
            ways.append(f"batchrun retry {paths.named} sends again what may pass, with --only KIND any of a kind")
        return "; ".join(ways)
    if limit is not None and summary.unsent != 0:
        return f"{SAME_COMMAND}, and without --limit, sends the rest"
    return "nothing, every record is written"
