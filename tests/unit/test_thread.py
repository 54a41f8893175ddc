"""The storage thread: answers are durable before the ledger says so, and the first failure is the last."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchrun.errors import DiskProblem
from batchrun.record import Failure, Move, State, Usage
from batchrun.storage.ledger import Ledger, StateConflict, Written
from batchrun.storage.results import Results
from batchrun.storage.thread import Line, Storage

from .jobfiles import NOW, make_ledger, operation_of, record_in


class NotedLedger(Ledger):
    """A ledger that notes what it is told, and each commit once it is over."""

    notes: list[str]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with super().transaction():
            yield
        self.notes.append("committed")

    def record_operations(self, accepted: Sequence[tuple[int, str, float]]) -> list[bool]:
        self.notes += [f"operation {seq}" for seq, _, _ in accepted]
        return super().record_operations(accepted)

    def record_done(self, done: Sequence[tuple[int, str, Written, Usage, float]]) -> None:
        self.notes += [f"done {each[0]}" for each in done]
        super().record_done(done)


class NotedResults(Results):
    """An output that notes each append, and can be full."""

    notes: list[str]
    is_full = False

    def append(self, lines: Sequence[bytes]) -> list[Written]:
        self.notes.append(f"{len(lines)} appended")
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        places = super().append(lines)
        self.notes.append("synced")
        return places


class Files:
    """Ledger and output of a job with open operations, and everything done to them, in order."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"
        make_ledger(self.path).close()
        self.ledger = NotedLedger.open(self.path)
        self.results = NotedResults.open(folder / "out.jsonl", create=True)
        self.notes: list[str] = []
        self.ledger.notes = self.results.notes = []
        self.opened = [record_in(self.ledger, State.OPEN, line) for line in (1, 2, 3)]
        self.sent = [record_in(self.ledger, State.INTENT, line) for line in (4, 5, 6)]
        self.ledger.notes = self.results.notes = self.notes

    def lines(self, *seqs: int) -> list[Line]:
        return [Line(seq, operation_of(seq), b'{"seq":%d}\n' % seq, Usage(1, 2), NOW) for seq in seqs]

    def output(self) -> bytes:
        return self.results.path.read_bytes()

    def state(self, seq: int) -> State:
        """As another process would read it."""
        reader = Ledger.read_only(self.path)
        state = reader.row(seq).state
        reader.close()
        return state

    def close(self) -> None:
        self.results.close()
        self.ledger.close()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path)
    yield files
    files.close()


def play(files: Files, story: Callable[[Storage], Awaitable[None]]) -> None:
    """Tell a story to a storage thread; a thread that hangs fails the test."""

    async def told() -> None:
        storage = Storage(files.ledger, files.results)
        try:
            await asyncio.wait_for(story(storage), 5)
        finally:
            storage.close()
        assert not storage._thread.is_alive()

    asyncio.run(told())


@contextmanager
def meanwhile(storage: Storage) -> Iterator[None]:
    """Whatever is asked for in this block arrives while the thread is busy, and so comes in one batch."""
    busy, go = threading.Event(), threading.Event()

    def be_busy(ledger: Ledger) -> None:
        busy.set()
        go.wait(5)

    storage.do(be_busy)
    busy.wait(5)
    yield
    go.set()


# --- what comes first ---


def test_a_line_is_synced_before_its_record_is_done(files: Files) -> None:
    async def story(storage: Storage) -> None:
        await storage.write_lines(files.lines(*files.opened[:2]))
        assert files.output() == b'{"seq":1}\n{"seq":2}\n'
        assert files.state(1) is files.state(2) is State.DONE

    play(files, story)
    assert files.notes == ["2 appended", "synced", "done 1", "done 2", "committed"]
    job = files.ledger.job()
    assert (job.out_committed, job.out_last_seq) == (len(files.output()), 2)


def test_what_arrives_during_a_commit_goes_into_the_next_together(files: Files) -> None:
    async def story(storage: Storage) -> None:
        with meanwhile(storage):
            asked: list[asyncio.Future[Any]] = [
                storage.write_lines(files.lines(1)),
                storage.do(Ledger.next_epoch),
                storage.write_lines(files.lines(3)),
                storage.do(Ledger.record_operation, 4, "op-new", NOW),
            ]
        assert await asyncio.gather(*asked) == [None, 1, None, True]

    play(files, story)
    assert files.notes == ["committed", "2 appended", "synced", "operation 4", "done 1", "done 3", "committed"]
    assert files.output() == b'{"seq":1}\n{"seq":3}\n'


def test_operation_ids_go_ahead_of_everything_that_came_before_them(files: Files) -> None:
    def note(ledger: Ledger) -> None:
        files.notes.append("something else")

    async def story(storage: Storage) -> None:
        with meanwhile(storage):
            storage.do(note)
            storage.do(note)
            storage.do(Ledger.record_operation, 5, "op-a", NOW)
            last = storage.do(Ledger.record_operation, 4, "op-b", NOW)
        await last

    play(files, story)
    assert files.notes[1:] == ["operation 5", "operation 4", "something else", "something else", "committed"]


def test_a_call_returns_when_its_effect_can_be_read_by_others(files: Files) -> None:
    async def story(storage: Storage) -> None:
        assert await storage.do(Ledger.record_operation, 4, "op-new", NOW)
        assert files.state(4) is State.OPEN
        assert not await storage.do(Ledger.record_operation, 5, "op-new", NOW)
        assert files.state(5) is State.HELD

    play(files, story)


def test_the_event_loop_goes_on_while_the_disk_is_slow(files: Files) -> None:
    async def story(storage: Storage) -> None:
        with meanwhile(storage):
            asked = storage.do(Ledger.last_line)
            for _ in range(3):
                await asyncio.sleep(0)
            assert not asked.done()
        assert await asked == 6

    play(files, story)


# --- failures ---


def test_ids_that_come_with_a_failing_append_still_go_to_disk(files: Files) -> None:
    files.results.is_full = True

    async def story(storage: Storage) -> None:
        with meanwhile(storage):
            asked: list[asyncio.Future[Any]] = [
                storage.write_lines(files.lines(1)),
                storage.do(Ledger.next_epoch),
                storage.do(Ledger.record_operation, 4, "op-a", NOW),
                storage.do(Ledger.record_operation, 5, "op-b", NOW),
            ]
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in errors] == [DiskProblem] * 4
        assert "No space left" in str(errors[0])

    play(files, story)
    assert files.notes.count("1 appended") == 1
    assert [files.state(seq) for seq in (1, 4, 5, 6)] == [State.OPEN, State.OPEN, State.OPEN, State.INTENT]
    assert files.ledger.job().epoch == files.ledger.job().out_committed == 0


def test_an_id_of_a_batch_that_failed_is_kept_though_another_id_was_the_reason(files: Files) -> None:
    async def story(storage: Storage) -> None:
        with meanwhile(storage):
            wrong = storage.do(Ledger.record_operation, 1, "op-wrong", NOW)  # is open already
            right = storage.do(Ledger.record_operation, 4, "op-right", NOW)
        for asked in (wrong, right):
            with pytest.raises(StateConflict):
                await asked

    play(files, story)
    assert files.state(4) is State.OPEN


def test_an_id_for_a_record_that_is_not_on_its_way_is_told_to_who_asked(files: Files) -> None:
    async def story(storage: Storage) -> None:
        with pytest.raises(StateConflict):
            await storage.do(Ledger.record_operation, 1, "op-wrong", NOW)

    play(files, story)


def test_after_one_failure_every_later_call_raises_it_and_touches_nothing(files: Files) -> None:
    async def story(storage: Storage) -> None:
        files.results.is_full = True
        with pytest.raises(DiskProblem):
            await storage.write_lines(files.lines(1))
        files.results.is_full = False  # somebody freed some space: too late for this run
        for later in (
            storage.write_lines(files.lines(2)),
            storage.do(Ledger.next_epoch),
            storage.do(Ledger.record_operation, 4, "op-new", NOW),
        ):
            with pytest.raises(DiskProblem, match="No space left"):
                await later

    play(files, story)
    assert files.notes == ["1 appended"]
    assert files.output() == b""


def test_a_failed_sync_is_the_end_and_is_not_tried_again(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def broken(fd: int) -> None:
        tried.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)

    async def story(storage: Storage) -> None:
        for _ in range(2):
            with pytest.raises(DiskProblem, match="Input/output error"):
                await storage.write_lines(files.lines(1))

    play(files, story)
    assert len(tried) == 1
    assert files.state(1) is State.OPEN


PASSED_OVER = State.FAILED, Move(State.NEW), 0.0


def test_a_step_that_does_not_fit_undoes_its_whole_batch(files: Files) -> None:
    async def story(storage: Storage) -> None:
        with meanwhile(storage):
            asked: list[asyncio.Future[Any]] = [storage.do(Ledger.next_epoch), storage.do(Ledger.move, 1, *PASSED_OVER)]
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in errors] == [StateConflict] * 2

    play(files, story)
    assert files.ledger.job().epoch == 0


def test_an_answer_for_a_record_that_moved_meanwhile_is_not_committed(files: Files) -> None:
    async def story(storage: Storage) -> None:
        with pytest.raises(StateConflict):
            await storage.write_lines(files.lines(1, 4))  # 4 has no operation yet

    play(files, story)
    assert files.state(1) is State.OPEN
    assert files.ledger.job().out_committed == 0  # its line is in the tail, for the next start to judge


# --- the end ---


def test_closing_finishes_what_has_arrived(files: Files) -> None:
    async def story(storage: Storage) -> None:
        with meanwhile(storage):
            asked = [storage.do(Ledger.next_epoch) for _ in range(50)]
            asked_last = storage.write_lines(files.lines(2))
        await asyncio.to_thread(storage.close)
        assert await asyncio.gather(*asked) == list(range(1, 51))
        await asked_last

    play(files, story)
    assert files.state(2) is State.DONE


def test_a_caller_that_gave_up_does_not_take_the_others_with_it(files: Files) -> None:
    async def story(storage: Storage) -> None:
        with meanwhile(storage):
            given_up, other = storage.do(Ledger.next_epoch), storage.do(Ledger.next_epoch)
            given_up.cancel()
        assert await other == 2  # what was asked for was done all the same

    play(files, story)


def test_a_failure_comes_to_the_caller_as_it_was_written(files: Files) -> None:
    async def story(storage: Storage) -> None:
        row = await storage.do(Ledger.row, 1)
        assert (row.seq, row.state, row.failure) == (1, State.OPEN, None)
        place = row.place
        await storage.do(Ledger.refuse_line, place, b"\0" * 16, Failure("bad_input", "no JSON"), NOW)
        assert (await storage.do(Ledger.row, 7)).state is State.FAILED

    play(files, story)
