"""Progress bars on a terminal. Only a run that somebody watches imports this, and rich with it."""

from __future__ import annotations

import asyncio
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

from batchrun import job
from batchrun.config import JobConfig
from batchrun.record import State

REFRESH_S = 0.2
ENDED = (State.DONE, State.FAILED, State.HELD, State.EXPIRED)


def show(config: JobConfig) -> job.Screen:
    """A screen for this job."""

    async def screen(progress: job.Progress) -> None:
        console = Console(stderr=True)
        names = f"{config.input} → {config.paths.output}"
        console.print(f"batchrun  {names}  {config.settings.model}", highlight=False, markup=False, soft_wrap=True)
        columns = (TextColumn("{task.description:>9}"), BarColumn(32), MofNCompleteColumn(), TaskProgressColumn())
        bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=console, auto_refresh=False)
        total = progress.total
        submitted = bars.add_task("submitted", total=total, note="")
        finished = bars.add_task("finished", total=total, note="")
        rate = _Rate()
        with bars:
            try:
                while True:
                    done = sum(progress.backlog.counts[state] for state in ENDED)
                    rate.note(done)
                    bars.update(submitted, completed=done + len(progress.tracker), note=_limit(progress))
                    bars.update(finished, completed=done, note=_state(progress, rate))
                    bars.refresh()
                    await asyncio.sleep(REFRESH_S)
            finally:
                done = sum(progress.backlog.counts[state] for state in ENDED)
                bars.update(submitted, completed=done + len(progress.tracker), note="")
                bars.update(finished, completed=done, note=_state(progress, rate))

    return screen


class _Rate:
    """Records per second over the last ten seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def note(self, done: int) -> None:
        now = time.monotonic()
        self._seen = [(at, count) for at, count in self._seen if now - at < 10.0] + [(now, done)]

    def per_s(self) -> float:
        (first, before), (last, now) = self._seen[0], self._seen[-1]
        return (now - before) / (last - first) if last > first else 0.0


def _limit(progress: job.Progress) -> str:
    if progress.stop.is_requested:
        return "stopping: nothing new is sent; Ctrl-C again leaves at once"
    return f"limited by: {progress.pacer.limited_by(time.monotonic())}"


def _state(progress: job.Progress, rate: _Rate) -> str:
    failed = progress.backlog.counts[State.FAILED]
    return f"{rate.per_s():.1f}/s  open {len(progress.tracker)}" + (f"  failed {failed}" if failed else "")
