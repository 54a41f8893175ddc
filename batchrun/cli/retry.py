"""``batchrun retry``: settled records are sent again because a person says so."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from batchrun.cli.options import OUTPUT, SETTINGS, STATE_DIR, by_hand
from batchrun.cli.resume import config_of_job
from batchrun.cli.run import run_job
from batchrun.cli.status import open_job
from batchrun.errors import UsageProblem
from batchrun.storage.jobdir import JobPaths, is_locked
from batchrun.summary import summarize

KINDS = (
    *("held", "expired", "no_reply", "provider_error", "content_filter", "invalid_argument", "rejected"),
    *("cancelled", "malformed", "oversize"),
)


ONLY = by_hand("--only KIND", "all of this kind: held, expired, or a kind of failure", click.Choice(KINDS))


@click.command(context_settings=SETTINGS, params=[OUTPUT, ONLY, STATE_DIR])
def retry(output: Path, only: str | None, state_dir: Path | None) -> int:
    """Send failed records of the job of OUTPUT again: those whose error says that it may help.

    \b
    Examples:
      batchrun retry answers.jsonl
      batchrun retry answers.jsonl --only expired

    The job goes on with the input and the options of its last run, if it has such records or is finished. A record that
    may have been paid for already says so in its maybe_paid. A bad line is sent by the same command once it is mended.
    """
    paths = JobPaths.of(output, state_dir)
    with closing(open_job(paths)) as ledger:
        config, summary = config_of_job(ledger, paths, retry=only or ""), summarize(ledger)
        finds_none = next(ledger.rows_to_retry(only or ""), None) is None
    if finds_none and not summary.is_finished(config.limit) and not is_locked(paths):
        remedy = f"batchrun resume {paths.named} goes on with what was never sent or is not answered yet"
        raise UsageProblem("nothing to send again", remedy=remedy)
    return run_job(config)
