"""``batchrun status``: where a job stands, read beside a live run without disturbing it."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path

import click

from batchrun.cli import CONTEXT
from batchrun.cli.report import say
from batchrun.errors import UsageProblem
from batchrun.record import State
from batchrun.storage.jobdir import JobPaths, is_locked
from batchrun.storage.ledger import Ledger
from batchrun.summary import RETENTION_S, Summary, age, names_of, summarize


@click.command(context_settings=CONTEXT)
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="where the job's ledger is, if not beside OUTPUT",
)
def status(output: Path, state_dir: Path | None) -> None:
    """Say how far the job of OUTPUT is, what is wrong, and what to do next.

    \b
    Example:
      batchrun status answers.jsonl
    """
    paths = JobPaths.of(output, state_dir)
    ledger = open_job(paths)
    for line in describe(ledger, paths):
        click.echo(line)
    ledger.close()


def open_job(paths: JobPaths) -> Ledger:
    """The job's ledger, for reading.

    Raises:
        UsageProblem: there is no such job.
    """
    if not paths.ledger.exists():
        raise UsageProblem(
            f"{paths.output} has no job ({paths.state} is not there)", remedy="name the file given with -o"
        )
    ledger = Ledger.read_only(paths.ledger)
    if not ledger.exists():
        raise UsageProblem(f"the job of {paths.output} has not begun", remedy="run it first")
    return ledger


def describe(ledger: Ledger, paths: JobPaths) -> list[str]:
    """The screen of ``status``."""
    job, summary, last = ledger.job(), summarize(ledger), ledger.last_run()
    counts = summary.counts
    running = is_locked(paths)
    how = "running" if running else "killed, or the machine stopped"
    if not running and last is not None and last.ended_at is not None:
        how = f"ended {datetime.fromtimestamp(last.ended_at):%d %b %H:%M} with exit {last.exit_code}"
    model = json.loads(job.settings)["model"]
    lines = [f"{paths.output}   {how}   {model}   job {job.job_id}", f"  written  {counts[State.DONE]:>9,}"]
    kinds = " · ".join(f"{kind} {count:,}" for kind, count, _ in summary.kinds)
    for state in (State.FAILED, State.HELD, State.EXPIRED):
        if counts[state] or state is State.FAILED:
            lines.append(
                f"  {state:<8} {counts[state]:>9,}" + (f"   {kinds}" if state is State.FAILED and kinds else "")
            )
    if counts[State.INTENT]:
        lines.append(
            f"  no reply {counts[State.INTENT]:>9,}"
            + ("" if running else "   may have been accepted; the next run says so")
        )
    if counts[State.OPEN]:
        lines.append(f"  open     {counts[State.OPEN]:>9,}   {_open_until(summary)}")
    unsent = summary.unsent
    lines.append(
        "  not sent   unknown   the input was not read to its end" if unsent is None else f"  not sent {unsent:>9,}"
    )
    if summary.total is not None:
        lines.append(f"  total    {summary.total:>9,}")
    doubt = f"   {names_of(summary)}" if summary.maybe_paid else ""
    lines.append(f"  possibly paid twice {summary.maybe_paid:,}{doubt}")
    lines.append(f"  next: {_next(summary, job.input_path, paths, running=running)}")
    return lines


def _open_until(summary: Summary) -> str:
    oldest = summary.oldest_open_at
    if oldest is None:
        return ""
    return f"oldest {age(oldest)} · answers lapse from {datetime.fromtimestamp(oldest + RETENTION_S):%d %b %H:%M}"


def _next(summary: Summary, input_path: str, paths: JobPaths, *, running: bool) -> str:
    counts = summary.counts
    if running:
        return "wait; it is at work"
    if summary.unsent is None or summary.unsent or counts[State.OPEN] or counts[State.INTENT]:
        return f"the same command again: batchrun {shlex.quote(input_path)} -o {shlex.quote(str(paths.output))} …"
    if counts[State.FAILED] or counts[State.HELD] or counts[State.EXPIRED]:
        return f"look at {paths.failures}"
    return "nothing, every record is written"


__all__ = ["describe", "open_job", "say", "status"]
