"""``batchrun status``: where a job stands, read beside a live run without disturbing it."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import fields
from datetime import datetime
from pathlib import Path

import click

from batchrun.cli import PATH, SETTINGS
from batchrun.errors import BUG, CREDENTIALS, DISK, INPUT, USAGE, DiskProblem, UsageProblem
from batchrun.log import redact
from batchrun.providers.yandex import Yandex
from batchrun.record import Settings, State
from batchrun.storage.jobdir import JobPaths, is_locked
from batchrun.storage.ledger import Ledger, Run
from batchrun.summary import Summary, age, names_of, summarize

STATE_DIR = click.option(
    "--state-dir", type=PATH, metavar="DIR", help="where the job's ledger is, if not beside OUTPUT"
)
MUST_BE_MENDED = frozenset({USAGE, INPUT, CREDENTIALS, BUG, DISK})


@click.command(context_settings=SETTINGS)
@click.argument("output", type=PATH)
@STATE_DIR
def status(output: Path, state_dir: Path | None) -> None:
    """Say how far the job of OUTPUT is, what is wrong, and what to do next.

    \b
    Example:
      batchrun status answers.jsonl
    """
    paths = JobPaths.of(output, state_dir)
    ledger = open_job(paths)
    for line in describe(ledger, paths):
        click.echo(redact(line))
    ledger.close()


def open_job(paths: JobPaths) -> Ledger:
    """The job's ledger, for reading.

    Raises:
        UsageProblem: there is no such job.
    """
    if not paths.ledger.exists():
        raise UsageProblem(
            f"{paths.output} has no job ({paths.state} is not there)",
            remedy="name the file given with -o, and --state-dir if the run had one",
        )
    ledger = Ledger.read_only(paths.ledger)
    if not ledger.exists():
        raise UsageProblem(f"the job of {paths.output} has not begun", remedy="run it first")
    return ledger


def input_of(ledger: Ledger, paths: JobPaths) -> Path:
    """Where the job's input should be, as seen from here."""
    path = ledger.job().input_path
    return Path(path if path == "-" else os.path.relpath(paths.output.parent / path))


def file_read(ledger: Ledger, paths: JobPaths) -> Path:
    """The file that holds the job's records: the input, or what was made of it."""
    return input_of(ledger, paths) if ledger.job().input_source is None else paths.spool


def unreadable(error: OSError) -> UsageProblem:
    """A file of the job is not as it should be."""
    remedy = "put it back; a run with --rebuild-output fetches an output again"
    return UsageProblem(f"{error.filename} cannot be read ({error.strerror})", remedy=remedy)


def settings_of(ledger: Ledger) -> Settings:
    """What the job's requests were made with."""
    given = json.loads(ledger.job().settings)
    try:
        settings = Settings(**{each.name: given[each.name] for each in fields(Settings) if each.name in given})
        texts = (settings.provider, settings.model, settings.format)
        maybe = (settings.system, settings.prompt_column, settings.template, settings.schema)
        if not all(isinstance(each, str) for each in texts) or not all(isinstance(each, str | None) for each in maybe):
            raise TypeError("no settings")
        if settings.template is not None:
            from batchrun.template import compiled

            compiled(settings.template)
    except Exception as error:  # whatever it is that Jinja finds wrong: it was right when it was written
        remedy = "--new-run begins anew and pays again"
        raise DiskProblem(f"the ledger `{ledger.path}` is damaged", remedy=remedy) from error
    return settings


def describe(ledger: Ledger, paths: JobPaths) -> list[str]:
    """The screen of ``status``."""
    job, summary, last = ledger.job(), summarize(ledger), ledger.last_run()
    counts = summary.counts
    running = is_locked(paths)
    how = "running" if running else "killed, or the machine stopped" if last else "never ran"
    if not running and last is not None and last.ended_at is not None:
        how = f"ended {datetime.fromtimestamp(last.ended_at):%d %b %H:%M} with exit {last.exit_code}"
    rows = [
        ("written", counts[State.DONE], ""),
        ("failed", counts[State.FAILED], " · ".join(f"{kind} {n:,}" for kind, n, _ in summary.failed_kinds)),
        ("held", counts[State.HELD], "nobody can know whether they were accepted; a person decides"),
        ("expired", counts[State.EXPIRED], "paid, and no longer kept by the service"),
        ("no reply", counts[State.INTENT], "" if running else "may have been accepted; the next run says so"),
        ("open", counts[State.OPEN], _open_until(summary)),
        ("not sent", summary.unsent, ""),
        ("total", summary.total, ""),
    ]
    lines = [f"{paths.output}   {how}   {settings_of(ledger).model}   job {job.job_id}"]
    for name, count, note in rows:
        if count is None:
            lines.append(f"  {name:<8}   unknown   the input was not read to its end")
        elif count or name in ("written", "failed", "not sent", "total"):
            lines.append(f"  {name:<8} {count:>9,}   {note}".rstrip())
    doubt = f": {names_of(summary)}" if summary.maybe_paid else ""
    if counts[State.INTENT] and not running:
        doubt += f", and the {counts[State.INTENT]:,} without a reply"
    lines.append(f"  possibly paid twice: {summary.maybe_paid:,}{doubt}")
    if last is not None and last.cause and not running:
        lines.append(f"  last said: {last.cause}")
    again = f"batchrun resume {shlex.quote(str(paths.output))}"
    if paths.state != JobPaths.of(paths.output).state:
        again += f" --state-dir {shlex.quote(str(paths.state))}"
    if job.options == "{}":
        again = "the same command again"
    lines.append(f"  next: {_next(summary, last, again, paths, running=running)}")
    return lines


def _open_until(summary: Summary) -> str:
    oldest = summary.oldest_open_at
    if oldest is None:
        return ""
    until = oldest + Yandex.retention_s
    safe = "answers safe until" if until > time.time() else "answers lapse since"
    return f"oldest {age(oldest)} · {safe} {datetime.fromtimestamp(until):%d %b %H:%M}"


def _next(summary: Summary, last: Run | None, again: str, paths: JobPaths, *, running: bool) -> str:
    counts = summary.counts
    if running:
        return "wait; it is at work"
    if last is not None and last.exit_code in MUST_BE_MENDED and last.remedy:
        return last.remedy
    if not paths.output.exists() and counts[State.DONE]:
        return f"{paths.output} is gone: --rebuild-output fetches again what the service still keeps"
    if summary.unsent is None:
        return "the same command without --limit sends the rest"
    if summary.unsent or counts[State.OPEN] or counts[State.INTENT]:
        return again
    if counts[State.HELD] or counts[State.EXPIRED]:
        only = State.HELD if counts[State.HELD] else State.EXPIRED
        return (
            f"decide: batchrun retry {shlex.quote(str(paths.output))} --only {only} sends them again, and may pay twice"
        )
    if counts[State.FAILED]:
        again = f"batchrun retry {shlex.quote(str(paths.output))}"
        return f"look at {paths.failures}; the same command sends a mended line, {again} what may pass now"
    return "nothing, every record is written"
