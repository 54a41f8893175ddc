"""``batchrun verify``: prove that input, ledger and output agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click

from batchrun import verify as proof
from batchrun.cli.options import OUTPUT, SETTINGS, STATE_DIR
from batchrun.cli.report import print_lines
from batchrun.cli.status import file_read, open_job
from batchrun.errors import INPUT
from batchrun.storage.jobdir import JobPaths
from batchrun.summary import headline, summarize


@click.command(context_settings=SETTINGS, params=[OUTPUT, STATE_DIR])
def verify(output: Path, state_dir: Path | None) -> int:
    """Read input, ledger and OUTPUT whole, and name everything in which they differ. Exit 3 if there is any.

    \b
    Example:
      batchrun verify answers.jsonl
    """
    paths = JobPaths.of(output, state_dir)
    with closing(open_job(paths, at_rest_to="verify")) as ledger:
        found = proof.verify(ledger, file_read(ledger, paths), output)
        state = headline(summarize(ledger))
    print_lines(_report(found, state))
    return INPUT if found.differences else 0


def _report(found: proof.Findings, state: str) -> Iterator[str]:
    yield f"input    {found.input_records:>9,} records"
    yield f"ledger   {found.ledger_rows:>9,} rows      {state}"
    yield f"output   {found.output_lines:>9,} lines"
    if found.uncommitted_bytes:
        yield f"tail     {found.uncommitted_bytes:>9,} bytes behind the last commit; the next run sees to them"
    yield from found.named
    yield f"differences: {found.differences:,}" if found.differences else "all agree"
