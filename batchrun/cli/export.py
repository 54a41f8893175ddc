"""``batchrun export``: the answers of a job in another order or shape."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import click

from batchrun.check import Source, reading_of
from batchrun.cli import CONTEXT
from batchrun.cli.options import OUTPUT, PATH, STATE_DIR
from batchrun.cli.report import say
from batchrun.cli.status import file_read, open_job, settings_of
from batchrun.errors import UsageProblem
from batchrun.export import FORMATS, Export
from batchrun.record import State
from batchrun.storage.jobdir import JobPaths
from batchrun.storage.results import replace_file
from batchrun.summary import summarize
from batchrun.verify import open_plain


@click.command(context_settings=CONTEXT, params=[OUTPUT, STATE_DIR])
@click.option("--format", "shape", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True)
@click.option("--order", type=click.Choice(["input", "finish"]), default="input", show_default=True)
@click.option("--with-errors", is_flag=True, help="failed, held and expired records too")
@click.option("-o", "target", metavar="FILE", type=PATH, required=True, help="new file; - is stdout")
def export(output: Path, shape: str, order: str, with_errors: bool, target: Path, state_dir: Path | None) -> None:
    """Take the answers of OUTPUT away, in the order of the input and in the format you need.

    \b
    Examples:
      batchrun export answers.jsonl --format csv -o answers.csv
      batchrun export answers.jsonl --format yandex-dataset -o dataset.jsonl
      batchrun export answers.jsonl --with-errors -o - | head

    Every answer is checked on the way: one that changed since it was written ends the export.
    """
    if with_errors and shape == "yandex-dataset":
        raise UsageProblem("yandex-dataset has no place for failures", remedy="leave out --with-errors")
    paths = JobPaths.of(output, state_dir)
    with ExitStack() as opened:
        ledger = opened.enter_context(closing(open_job(paths, at_rest_to="export")))
        source = file_read(ledger, paths)
        needed = [output, source] if with_errors or shape == "yandex-dataset" else [output]
        fds = [opened.enter_context(open_plain(path)).fileno() for path in needed]
        settings, summary = settings_of(ledger), summarize(ledger)
        read = Source(source, fds[-1], 0, None, None, reading=reading_of(settings, fds[-1], os.fstat(fds[-1]).st_size))
        answers = Export(ledger, paths, fds[0], read, settings, shape, with_errors)
        if str(target) == "-":
            with suppress(BrokenPipeError):  # of `export | head`: the reader has seen enough
                sys.stdout.buffer.writelines(answers.lines(order))
                sys.stdout.buffer.flush()
        else:
            refuse_taken(target, {source, paths.state, *paths.beside_it})
            meanwhile = target.with_name(f".{target.name}.{os.getpid()}")
            replace_file(target, answers.lines(order), meanwhile=meanwhile)
    if waiting := (summary.unsent or 0) + summary.counts[State.INTENT] + summary.counts[State.OPEN]:
        say(f"batchrun: not finished; records without an answer yet, not in it: {waiting:,}")
    if answers.left_out:
        say(f"batchrun: tool calls have no place in {shape}; answers left out: {answers.left_out:,}")


def refuse_taken(target: Path, of_job: set[Path]) -> None:
    """Raise UsageProblem for a name that is taken, by a file that is there or by one the job may make."""
    if not target.parent.is_dir():
        raise UsageProblem(f"there is no folder {target.parent}", remedy="make it, or name another with -o")
    place, taken = target.resolve(), {Path(os.path.realpath(path)) for path in of_job}
    is_of_job = taken & {place, *place.parents}
    if is_of_job or os.path.lexists(target):
        how = "belongs to the job" if is_of_job else "is there already"
        raise UsageProblem(f"{target} {how}", remedy="name another file with -o")
