"""``batchrun verify``: prove that input, ledger and output agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from batchrun import verify as proof
from batchrun.cli import PATH, SETTINGS
from batchrun.cli.status import STATE_DIR, file_read, open_job, unreadable
from batchrun.errors import INPUT, UsageProblem
from batchrun.log import redact
from batchrun.storage.jobdir import JobPaths, is_locked
from batchrun.summary import headline, summarize


@click.command(context_settings=SETTINGS)
@click.argument("output", type=PATH)
@STATE_DIR
def verify(output: Path, state_dir: Path | None) -> int:
    """Read input, ledger and OUTPUT whole, and name everything in which they differ. Exit 3 if there is any.

    \b
    Example:
      batchrun verify answers.jsonl
    """
    paths = JobPaths.of(output, state_dir)
    ledger = open_job(paths)
    if is_locked(paths):
        raise UsageProblem(f"{output} is being written by a run", remedy="verify when it has ended")
    try:
        found = proof.verify(ledger, file_read(ledger, paths), output)
    except OSError as error:
        raise unreadable(error) from error
    with suppress(BrokenPipeError):  # whoever reads may have seen enough; the exit code stays
        for line in _report(found, headline(summarize(ledger))):
            click.echo(redact(line))
    ledger.close()
    return INPUT if found.differences else 0


def _report(found: proof.Findings, state: str) -> Iterator[str]:
    yield f"input    {found.input_records:>9,} records"
    yield f"ledger   {found.ledger_rows:>9,} rows      {state}"
    yield f"output   {found.output_lines:>9,} lines"
    if found.uncommitted_bytes:
        yield f"tail     {found.uncommitted_bytes:>9,} bytes behind the last commit; the next run sees to them"
    yield from found.named
    if found.differences > len(found.named):
        yield f"… and {found.differences - len(found.named):,} more differences"
    count = f"{found.differences:,} difference" + ("s" if found.differences > 1 else "")
    yield count if found.differences else "all agree"
