"""``batchrun resume``: go on with what was begun, as it was begun."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import Any

import click

from batchrun.cli import exit_code_of
from batchrun.cli.options import END, PATH, SCREEN, SETTINGS, STATE_DIR
from batchrun.cli.report import report_problem, say
from batchrun.cli.run import config_of, refuse_log, run, run_job, say_unwell, start_log
from batchrun.cli.status import input_of, limit_of, open_job, settings_of
from batchrun.config import REMEMBERED, JobConfig
from batchrun.errors import (
    BUG,
    CREDENTIALS,
    DECISION,
    DISK,
    INPUT,
    RUN_AGAIN,
    USAGE,
    DiskProblem,
    InputProblem,
    UsageProblem,
)
from batchrun.providers.http import check_endpoint, is_loopback
from batchrun.record import State
from batchrun.storage.jobdir import AlreadyRunning, JobPaths, is_locked, read_holder
from batchrun.storage.ledger import Ledger
from batchrun.summary import summarize

PATHS = click.Argument(["paths"], type=PATH, nargs=-1, required=True, metavar="PATH...")
SIGNALLED = (143, 130, 129)
SERIOUS = (BUG, DISK, CREDENTIALS, USAGE, INPUT, RUN_AGAIN, *SIGNALLED, DECISION, 1, 0)
"""The exit codes of several jobs: the first of them stands."""


@click.command(context_settings=SETTINGS, params=[PATHS, STATE_DIR, *END, *SCREEN])
def resume(
    paths: tuple[Path, ...],
    state_dir: Path | None,
    deadline: float | None,
    collect_only: bool,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
) -> int:
    """Continue the job of an output, or every unfinished job below a folder.

    \b
    Examples:
      batchrun resume answers.jsonl
      batchrun resume out/ --deadline 06:00

    Input and settings are those of the job's last start. Several jobs go one after another, those
    whose answers lapse first before the others, and share the hourly quota. Finished jobs of a
    folder are left alone. Of several exit codes the most serious stands.
    """
    codes, waiting = {0}, list[tuple[float, JobConfig]]()
    job_ids, inputs = dict[Path, str](), list[Path]()
    are_several = len(paths) > 1 or paths[0].is_dir()

    def tell(error: OSError) -> None:
        codes.add(report_problem(DiskProblem(f"{error.filename}: {error.strerror}", remedy="see to its permissions")))

    def look(job: JobPaths, is_named: bool) -> int:
        """Let the job wait for its turn if it has anything to do; else its code, if anybody must know."""
        with closing(open_job(job)) as ledger:
            job_ids[job.output] = ledger.job().job_id
            inputs.append(input_of(ledger, job))
            if is_locked(job):
                raise AlreadyRunning(job, read_holder(job))
            summary, last = summarize(ledger), ledger.last_run()
            was_cut = last is not None and last.ended_at is None  # its failures may not be told yet
            is_over = summary.is_finished(limit_of(ledger)) and not was_cut
            if is_named or not (is_over or (collect_only and not summary.counts[State.OPEN])):
                refuse_misplaced(job, is_named)
                others = tuple(other.ledger for other, _ in jobs if other != job)
                config = config_of_job(ledger, job, deadline=deadline, collect_only=collect_only, beside=others)
                waiting.append((summary.oldest_open_at or math.inf, config))
                return 0
        if summary.job_exit_code() != DECISION:
            return 0
        say_unwell(summary, job)
        return DECISION

    def go_on(config: JobConfig) -> int:
        refuse_copy(config.paths.output, job_ids)
        with suppress(PermissionError):  # the run itself will say so
            if not collect_only and not config.input.exists():
                remedy = "put it back, or --collect-only fetches what was sent already"
                raise UsageProblem(f"{config.input}: no such file", remedy=remedy)
        return run_job(config, quiet=quiet)

    jobs = jobs_of(paths, state_dir, tell)
    if not jobs and codes == {0} and not quiet:
        say(f"batchrun: no job below {', '.join(map(str, paths))}")
    for job, is_named in jobs:
        codes.add(exit_code_of(partial(look, job, is_named), about=job.output if are_several else None))
    if waiting:
        for job, _ in jobs:
            refuse_log(log_file, job, *inputs)
        start_log(log_file, verbose=verbose)
    for _, config in sorted(waiting, key=lambda each: each[0]):
        code = exit_code_of(partial(go_on, config), about=config.paths.output if are_several else None)
        codes.add(code)
        if code in (CREDENTIALS, *SIGNALLED) or (code == RUN_AGAIN and not is_locked(config.paths)):
            break  # what ended this one would end the others as well
    return min(codes, key=SERIOUS.index)


def refuse_misplaced(job: JobPaths, is_named: bool) -> None:
    """Raise InputProblem for a job that was found without its output: its state may be that of another output."""
    if not is_named and not job.output.exists():
        remedy = f"put it back, or name the job's own: batchrun resume OUTPUT --state-dir {quote(str(job.state))}"
        raise InputProblem(f"{job.output} is not there, and {job.state} holds a job", remedy=remedy)


def refuse_copy(output: Path, job_ids: dict[Path, str]) -> None:
    """Raise InputProblem for a job that is there more than once."""
    same = [path for path, job_id in job_ids.items() if path != output and job_id == job_ids[output]]
    if same:
        cause = f"{output} and {same[0]} are copies of one job: both would pay"
        raise InputProblem(cause, remedy="move one away, or name only the output that shall go on")


def jobs_of(
    paths: tuple[Path, ...], state_dir: Path | None, tell: Callable[[OSError], None]
) -> list[tuple[JobPaths, bool]]:
    """Every job once, and whether it was named by its output. ``tell``: of a folder that cannot be read."""
    if state_dir is not None and (len(paths) > 1 or paths[0].is_dir()):
        raise UsageProblem("--state-dir belongs to one output", remedy="name that output, and nothing else")
    named = [(JobPaths.of(path, state_dir), True) for path in paths if not path.is_dir()]
    folders = chain.from_iterable(os.walk(path, onerror=tell) for path in paths if path.is_dir())
    states = sorted(Path.cwd() if at == "." else Path(at) for at, *names in folders if "ledger.db" in chain(*names))
    outputs = (state.with_suffix("") for state in states if state.suffix == ".batchrun")
    below = [(JobPaths.of(path), False) for path in outputs if not path.name.endswith(".errors.ndjson")]
    return list({job.state.resolve(): (job, is_named) for job, is_named in (*below, *named)}.values())


def config_of_job(ledger: Ledger, paths: JobPaths, **this_run: Any) -> JobConfig:
    """How the job was started last, held to the rules for options. The environment has no say in it.

    ``this_run``: what no job keeps.

    Raises:
        UsageProblem: it was killed before its first start was complete, or its endpoint needs somebody's word.
        ClickException: the ledger holds what no option takes.
    """
    stored, settings = json.loads(ledger.job().options), settings_of(ledger)
    if not stored:
        raise UsageProblem(f"the job of {paths.output} was never started", remedy="start it by its own command")
    endpoint = None if stored.get("endpoint") is None else check_endpoint(str(stored["endpoint"]))
    if endpoint is not None and not is_loopback(endpoint) and endpoint != os.environ.get("BATCHRUN_ENDPOINT"):
        remedy = "export BATCHRUN_ENDPOINT with this address: who is given the key is not for a file to say"
        raise UsageProblem(f"the job of {paths.output} was sent to {endpoint}", remedy=remedy)
    given = {name: stored.get(name) for name in REMEMBERED} | {"provider": settings.provider}
    given |= {"output": paths.output, "state_dir": paths.state}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    input_path = os.devnull if ledger.job().input_source == "-" else str(input_of(ledger, paths))
    config = config_of(run.make_context("run", [*words, "--", input_path], auto_envvar_prefix=None).params)
    # an endpoint that is no longer the one of the settings is refused as any other change is
    settings = replace(settings, on_this_machine=config.settings.on_this_machine)
    return replace(config, settings=settings, goes_on=True, **this_run)
