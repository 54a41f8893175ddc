"""A whole run on one screen: recover, then reader -> submitter -> tracker -> writer around one ledger."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from batchrun.channel import Channel
from batchrun.config import JobConfig
from batchrun.errors import DISK, BatchrunError, DeadlineReached, DiskProblem, InputProblem, Interrupted
from batchrun.log import event
from batchrun.pacing import HOUR_S, HourWindow, Outage, Pacer
from batchrun.providers.base import Provider
from batchrun.providers.instruct import Instruct
from batchrun.providers.yandex import Credentials, Yandex, credentials_from
from batchrun.reader import Reader
from batchrun.record import Record, State
from batchrun.recovery import Recovered, recover
from batchrun.run import Backlog, Run
from batchrun.stop import SIGNALS, Stop, on_signals
from batchrun.storage.disk import Disk
from batchrun.storage.ledger import Ledger
from batchrun.storage.thread import Storage
from batchrun.submitter import Submitter
from batchrun.summary import Summary, summarize
from batchrun.tracker import Answered, Tracker
from batchrun.writer import write_answers, write_failures

QUEUE_RECORDS = 1024
QUEUE_BYTES = 64 << 20
MAX_OUTAGE_S = 900.0
GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """The live parts of a run that a screen may read. The ledger is the truth; these are quicker to ask."""

    begun: Summary
    backlog: Backlog
    tracker: Tracker
    submitter: Submitter
    stop: Stop


Screen = Callable[[Progress], Coroutine[Any, Any, None]]
"""Shows a run until it is cancelled."""


def run(config: JobConfig, environ: Mapping[str, str], screen: Screen | None = None) -> Summary:
    """Work on the job until it is finished or has to stop. The summary's ``exit_code`` describes the job.

    Raises:
        BatchrunError: why the run ended early; what was reached is in ledger and output.
    """
    started_at = time.time()
    if (config.new_run or config.if_finished == "new") and config.settings.provider != "emulator":
        credentials_from(environ)  # without them, what is there stays where it is
    with on_signals(_interrupt), recover(config, started_at) as recovered:
        ledger, problem = recovered.ledger, None
        if ledger.job().options != config.remembered():
            with ledger.transaction():
                ledger.save(options=config.remembered())
        if recovered.has_work:
            problem = work_through(work(config, recovered, environ, screen))
        if config.new_run and problem is not None:
            problem.remedy += "; leave out --new-run then, it would begin anew"
        with on_signals(lambda number: None):  # a few files are left to bring in step
            done, asked, answered = ledger.totals()
            summary = replace(summarize(ledger, recovered.source.records), input_tokens=asked, output_tokens=answered)
            if problem is None and summary.unsent and config.limit is None and not config.collect_only:
                problem = _damaged(config, f"says that all is done, and {summary.unsent:,} were never sent")
            elif done != summary.counts[State.DONE]:
                problem = _damaged(config, "has rows that its index does not know")
            code = summary.job_exit_code(config.max_failures) if problem is None else problem.exit_code
            if code != DISK:  # a disk that has failed is not written to again; the next start looks closely
                close_job(config, recovered, code, problem)
        event("finished", exit_code=code, **{str(state): count for state, count in summary.counts.items()})
    lines_gone, seconds = recovered.lines_gone, time.time() - started_at
    return replace(summary, exit_code=code, problem=problem, lines_gone=lines_gone, seconds=seconds)


def _damaged(config: JobConfig, how: str) -> DiskProblem:
    remedy = "it is damaged; --new-run begins anew and pays again"
    return DiskProblem(f"the ledger `{config.paths.ledger}` {how}", remedy=remedy)


def close_job(config: JobConfig, recovered: Recovered, code: int, problem: BatchrunError | None) -> None:
    """Bring the failures file in step, say how the run ended, and empty the ledger's log."""
    recovered.lines_gone += write_failures(recovered.ledger, recovered.source, config.paths)
    with recovered.ledger.transaction():
        recovered.ledger.end_run(recovered.run_id, code, time.time(), problem)
    recovered.ledger.checkpoint()


def work_through(stages: Coroutine[Any, Any, BatchrunError | None]) -> BatchrunError | None:
    """Run the event loop. Returns why it stopped early, if it did."""
    problem = None
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            problem = runner.run(stages)
    except* BatchrunError as group:
        problem = _first(group)
    return problem


async def work(
    config: JobConfig, recovered: Recovered, environ: Mapping[str, str], screen: Screen | None
) -> BatchrunError | None:
    """Drive every record to a settled state; safe to call again after a crash."""
    ledger, results, source = recovered.ledger, recovered.results, recovered.source
    operations, begun = ledger.open_operations(), summarize(ledger, source.records)
    pacer = Pacer(config.rps, _hour_window(config, ledger))
    stop = Stop()
    if config.deadline is not None:
        wait_s = max(0.0, config.deadline - time.monotonic())
        asyncio.get_running_loop().call_later(wait_s, stop.request, DeadlineReached())
    records = Channel[Record](QUEUE_RECORDS, QUEUE_BYTES)
    answers = Channel[Answered](QUEUE_RECORDS, QUEUE_BYTES)
    event("begun", open=len(operations), to_send=0 if config.collect_only else begun.unsent)

    with on_signals(stop.on_signal), closing(Storage(ledger, results)) as storage:
        async with open_provider(config, environ) as provider:
            backlog, outage, disk = Backlog(begun.counts), Outage(MAX_OUTAGE_S), Disk(config.paths)
            run = Run(config, source, provider, storage, backlog, stop, outage, disk)
            tracker = Tracker(run, operations)
            submitter = Submitter(run, pacer, tracker)
            async with asyncio.TaskGroup() as stages:
                reading = stages.create_task(Reader(run).run(records), name="reader")
                sending = stages.create_task(submitter.run(records), name="submitter")
                polling = stages.create_task(tracker.run(answers), name="tracker")
                watching = [
                    end_well(run, records, tracker, sending, polling),
                    disk.watch(stop, lambda: not len(tracker)),
                ]
                if screen is not None:
                    watching.append(screen(Progress(begun, backlog, tracker, submitter, stop)))
                watchers = [stages.create_task(each) for each in watching]
                recovered.lines_gone += await write_answers(run, answers)
                await asyncio.wait([reading, sending, polling])
                for watcher in watchers:
                    watcher.cancel()
    if stop.error is None:
        results.check_is_ours()  # the last append may be long ago
    return stop.error


async def end_well(
    run: Run, records: Channel[Record], tracker: Tracker, sending: asyncio.Task[None], polling: asyncio.Task[None]
) -> None:
    """Once a stop is requested: send nothing new, wait for the replies on their way, then let go of them."""
    await run.stop.requested.wait()
    event("stopping", reason=type(run.stop.error).__name__)
    records.close(discard=True)
    run.backlog.end()
    tracker.looked_at_all.set()
    hurry = asyncio.create_task(run.stop.hurried.wait())
    await asyncio.wait([sending, hurry], timeout=GRACE_S, return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    sending.cancel()
    polling.cancel()


@asynccontextmanager
async def open_provider(config: JobConfig, environ: Mapping[str, str]) -> AsyncIterator[Provider]:
    """The service that was asked for; ``emulator`` is started in this process, and keeps its operations in a file."""
    service = Instruct if config.settings.provider == "yandex-instruct" else Yandex
    connect = partial(service, workers=config.concurrency)
    if config.settings.provider != "emulator":
        async with connect(credentials_from(environ), endpoint=config.endpoint) as provider:
            yield provider
        return
    from batchrun.emulator import Settings, server

    nobody = Credentials("Api-Key of-nobody", "b1gemulator000000000")
    faults = Settings.parse(config.emulator_faults)
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(server.start(faults, journal=config.paths.emulator_journal))
        except (OSError, ValueError) as error:
            raise DiskProblem(f"the emulator cannot start: {error}", remedy="see to its file, or --new-run") from error
        yield await stack.enter_async_context(connect(nobody, endpoint=url))


def _hour_window(config: JobConfig, ledger: Ledger) -> HourWindow:
    """The submissions of the last hour, of jobs beside this one too, moved from the wall clock to our monotonic one."""
    wall, now = time.time(), time.monotonic()
    past = ledger.submissions_since(wall - HOUR_S - 1)
    for path in config.beside:
        with suppress(DiskProblem, InputProblem), closing(Ledger.read_only(path)) as other:  # a signal is neither
            past += other.submissions_since(wall - HOUR_S - 1)
    ends = ((now - max(0.0, wall - second - 1), posts) for second, posts in sorted(past))
    return HourWindow(config.rph, ends)


def _interrupt(number: int) -> None:
    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda *_: None)  # what is undone now is undone whole
    raise Interrupted(number)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop where it is installed, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _first(group: BaseExceptionGroup[BatchrunError]) -> BatchrunError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
