"""Progress bars on a terminal. Only a run that somebody watches imports this, and rich with it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column

from batchrun import job
from batchrun.config import JobConfig
from batchrun.record import State
from batchrun.summary import headline

REFRESH_S = 0.2
ENDED = (State.DONE, State.FAILED, State.HELD, State.EXPIRED)


async def show(config: JobConfig, progress: job.Progress) -> None:
    """The screen of this job, until it is cancelled."""
    console = Console(stderr=True)
    begun, output = progress.begun, config.paths.output
    width = 32 if console.width >= 90 else 10  # the right-hand columns go first
    columns = (TextColumn("{task.description:>9}"), BarColumn(width), MofNCompleteColumn(), TaskProgressColumn())
    note = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    bars = Progress(*columns, note, console=console, auto_refresh=False, speed_estimate_period=10)
    submitted = bars.add_task("submitted", total=begun.total, note="")
    finished = bars.add_task("finished", total=begun.total, note="")
    warned = False

    def draw(limit: str) -> None:
        done = _ended(progress)
        bars.update(submitted, completed=done + len(progress.tracker), note=limit)
        bars.update(finished, completed=done, note=_state(progress, bars.tasks[finished].speed or 0.0))

    with suppress(OSError):  # a terminal that goes away does not stop the run
        head = f"batchrun  {config.input} → {output}  {config.settings.model}\n{output}: {headline(begun)}"
        console.print(head, highlight=False, markup=False, soft_wrap=True)
    with suppress(OSError), bars:
        try:
            while True:
                draw(_limit(progress))
                if progress.tracker.lapse_from is not None and not warned:
                    warned = True
                    when = datetime.fromtimestamp(progress.tracker.lapse_from)
                    console.print(f"open answers lapse from {when:%d %b %H:%M}; let this run go on", highlight=False)
                bars.refresh()
                await asyncio.sleep(REFRESH_S)
        finally:
            draw("")


def _ended(progress: job.Progress) -> int:
    return sum(progress.backlog.counts[state] for state in ENDED)


def _limit(progress: job.Progress) -> str:
    if progress.stop.is_requested:
        return "stopping: nothing new is sent; Ctrl-C again leaves at once"
    sent = _ended(progress) + len(progress.tracker)
    if progress.begun.total is not None and sent >= progress.begun.total:
        return "everything is sent"
    return f"limited by: {progress.submitter.waits_for() or 'room for open operations'}"


def _state(progress: job.Progress, per_s: float) -> str:
    counts = {"open": len(progress.tracker), "not found": progress.tracker.troubled}
    counts |= {state: progress.backlog.counts[state] for state in ENDED if state is not State.DONE}
    return f"{per_s:.1f}/s" + "".join(f"  {name} {count}" for name, count in counts.items() if count)
