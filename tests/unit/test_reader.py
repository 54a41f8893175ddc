"""The reader beside the other stages of a run, and what a template may do to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from batchrun.channel import Channel
from batchrun.check import Source
from batchrun.inputs import Reading
from batchrun.lines import BadLine
from batchrun.reader import Reader
from batchrun.record import Record, State
from batchrun.run import Backlog, Run
from batchrun.stop import Stop
from batchrun.storage.results import Results
from batchrun.storage.thread import Storage

from .jobfiles import LINE_BYTES, a_line, make_ledger, record_in

PATIENCE_S = 5.0


async def read(folder: Path, render: Callable[[], str], *, has_row: bool) -> tuple[list[str | None], Stop]:
    """The prompts of a job of one record, which is sent anew or for the first time, and how the run is asked to end."""
    path = folder / "in.jsonl"
    path.write_bytes(a_line(1) + b"\n")
    with closing(make_ledger(folder / "ledger.db")) as ledger, path.open("rb") as file:
        if has_row:
            record_in(ledger, State.NEW)
        results, reading = Results.open(folder / "out.jsonl", create=True), Reading(render=lambda fields: render())
        source = Source(path, file.fileno(), LINE_BYTES, 1, None, reading=reading)
        with closing(results), closing(Storage(ledger, results)) as storage:
            nobody = cast(Any, None)
            run = Run(nobody, source, nobody, storage, Backlog(dict.fromkeys(State, 0)), Stop(), nobody, nobody)
            run.backlog.end()
            queue = Channel[Record](2, 1 << 20)
            await Reader(run).run(queue)
            return [record.prompt.text for record in await queue.get_all()], run.stop


@pytest.mark.parametrize("has_row", [False, True], ids=["first time", "again"])
def test_while_a_template_takes_its_time_the_other_stages_have_theirs(tmp_path: Path, has_row: bool) -> None:
    async def story() -> None:
        loop, heard = asyncio.get_running_loop(), threading.Event()

        def render() -> str:
            loop.call_soon_threadsafe(heard.set)
            return "heard" if heard.wait(PATIENCE_S) else "alone"

        assert (await read(tmp_path, render, has_row=has_row))[0] == ["heard"]

    asyncio.run(story())


def test_a_record_that_is_none_any_more_ends_the_run_in_words(tmp_path: Path) -> None:
    def render() -> str:
        raise BadLine("the filter is gone")

    prompts, stop = asyncio.run(read(tmp_path, render, has_row=True))
    assert prompts == []
    assert stop.error is not None
    assert stop.error.cause == f"{tmp_path}/in.jsonl:1: the filter is gone"
    assert stop.error.exit_code == 3
