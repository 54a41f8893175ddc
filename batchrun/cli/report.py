"""What a person sees when something ends: two lines, or silence."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import click

from batchrun.errors import BUG, RUN_AGAIN, BatchrunError
from batchrun.log import LOGGER, LineFormatter, event, redact
from batchrun.storage.jobdir import AlreadyRunning

DAY_S = 24 * 3600


def say(text: str) -> None:
    """One line on stderr; a terminal that has gone away is no reason to fail."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def print_lines(lines: Iterable[str]) -> None:
    """Data on stdout. Whoever reads may have seen enough; the exit code stays."""
    with contextlib.suppress(BrokenPipeError):
        for line in lines:
            click.echo(redact(line))


def report_problem(problem: BatchrunError, about: Path | None = None) -> int:
    """Say what is wrong and what to do. Returns the exit code. ``about``: a name that must be in its first line.

    Without a terminal nothing is said of exit 75: cron would mail it every night, and the next run settles it. A run
    that has held the job for more than a day is worth the mail.
    """
    first, *others = *problem.before, problem.cause
    if about is not None and not re.search(rf"(?<![^ `]){re.escape(str(about))}(?![^ `:,])", first):
        first = f"{about}: {first}"
    event("ended", logging.ERROR, exit_code=problem.exit_code, cause="; ".join((first, *others)))
    since = problem.since if isinstance(problem, AlreadyRunning) else None
    overdue = since is not None and time.time() - since > DAY_S
    if problem.exit_code != RUN_AGAIN or sys.stderr.isatty() or overdue:
        for line in (f"{'' if problem.before else problem.label}{first}", *others):
            say(redact(line))
        say(f"  {redact(problem.remedy)}")
    return problem.exit_code


def report_bug(bug: Exception) -> int:
    """A traceback goes to a file, its name to the screen."""
    path = f"batchrun-bug-{datetime.now():%Y%m%dT%H%M%S}-{os.getpid()}.log"
    record = logging.LogRecord("batchrun", logging.CRITICAL, "", 0, "bug", None, (type(bug), bug, bug.__traceback__))
    text = LineFormatter().format(record)
    LOGGER.handle(record)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text + "\n")
        say(f"error: this is a bug in batchrun ({type(bug).__name__})")
        say(f"  the details are in {path}; what a run had reached is safe, the same command continues it")
    except OSError:
        say(f"error: this is a bug in batchrun ({type(bug).__name__}), and there is no room here for its details")
        say("  run again with --log-file in another folder; what a run had reached is safe")
    return BUG
