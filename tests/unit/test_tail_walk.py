"""After a crash: whatever the tail of the output looks like, its whole good lines are kept and every other byte too."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.config import JobConfig
from batchrun.errors import InputProblem
from batchrun.record import State, Usage
from batchrun.recovery import close_the_books
from batchrun.storage.jobdir import JobDir, JobPaths
from batchrun.storage.ledger import Ledger
from batchrun.storage.results import Results, read_back
from batchrun.tail import walk_tail
from batchrun.writer import one_line

from .jobfiles import NOW, SETTINGS, a_record, operation_of

IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Hundreds of wrecks, and no power cut: their files need no disk."""

many = settings(max_examples=60)

RECORDS = 6
COMMITTED = 2
"""Lines 1 and 2 are committed, 3 to 6 are open: their answers may stand in the tail."""


def answer_to(line: int, operation_id: str | None = None, **changed: Any) -> bytes:
    usage = {"input_tokens": 3, "output_tokens": 4, "reasoning_tokens": None, "total_tokens": 7}
    result = {"line": line, "operation_id": operation_id or operation_of(line), "text": f"Ответ {line}", "usage": usage}
    return one_line({**result, **changed})


ANSWERS = [answer_to(line) for line in range(1, RECORDS + 1)]
BOOKED, TAIL = ANSWERS[:COMMITTED], ANSWERS[COMMITTED:]


@dataclass
class Wreck:
    """A job as a killed process left it."""

    config: JobConfig
    jobdir: JobDir
    ledger: Ledger
    results: Results

    def resume(self) -> None:
        close_the_books(self.ledger, self.results, self.jobdir, self.config, NOW)

    def states(self) -> list[State]:
        return [self.ledger.row(seq).state for seq in range(1, RECORDS + 1)]

    def output(self) -> bytes:
        return self.config.paths.output.read_bytes()

    def quarantined(self) -> bytes:
        folder = self.config.paths.quarantine
        return b"".join(file.read_bytes() for file in sorted(folder.iterdir())) if folder.exists() else b""


@contextmanager
def wreck(tail: bytes) -> Iterator[Wreck]:
    """Six records, two lines committed, and these bytes behind them."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        paths = JobPaths.of(Path(folder) / "out.jsonl")
        jobdir = JobDir.take(paths)
        ledger = Ledger.open(jobdir.make_ledger_file())
        ledger.create(job_id="job", input_path="in.jsonl", settings=SETTINGS, now=NOW)
        results = Results.open(paths.output, create=True)
        with ledger.transaction():
            ledger.begin_run("0.1.0", NOW)
            for line in range(1, RECORDS + 1):
                seq = ledger.record_intent(a_record(line), "request", NOW)
                ledger.record_operation(seq, operation_of(seq), NOW)
        for seq, (answer, place) in enumerate(zip(BOOKED, results.append(BOOKED), strict=True), 1):
            usage = usage_of(answer)
            with ledger.transaction():
                ledger.record_done([(seq, operation_of(seq), place, usage, NOW)])
        with paths.output.open("ab") as file:
            file.write(tail)
        config = JobConfig(Path(folder) / "in.jsonl", paths, SETTINGS)
        yield Wreck(config, jobdir, ledger, results)
        results.close()
        ledger.close()
        jobdir.release()


def usage_of(line: bytes) -> Usage:
    usage = json.loads(line)["usage"]
    return Usage(usage["input_tokens"], usage["output_tokens"])


def check(job: Wreck, tail: bytes, kept: list[bytes]) -> None:
    """These lines of the tail are kept and DONE, all else is in quarantine and open still."""
    assert job.output() == b"".join(BOOKED + kept)
    assert b"".join(kept) + job.quarantined() == tail
    lines = {json.loads(line)["line"] for line in BOOKED + kept}
    assert job.states() == [State.DONE if line in lines else State.OPEN for line in range(1, RECORDS + 1)]
    assert job.ledger.job().out_committed == job.results.end == len(job.output())
    for line, data in zip((json.loads(line)["line"] for line in kept), kept, strict=True):
        row = job.ledger.row(line)
        assert read_back(job.results.fd, row.written) == data
    assert job.ledger.fetch("totals")[0]["input_tokens"] == 3 * len(lines)


# --- any wreck ---

WHOLE_TAILS = st.permutations(TAIL).flatmap(lambda lines: st.integers(0, len(lines)).map(lambda n: lines[:n]))
GARBAGE = {
    "half a line": answer_to(6)[:-20],
    "a whole line without its LF": answer_to(6)[:-1],
    "zeros": bytes(40),
    "zeros and LF": bytes(40) + b"\n",
    "noise": b"\x85\xff\n\x00{",
    "an empty line": b"\n",
    "JSON that is no result": b"[1, 2]\n",
    "a text": b'"line 6"\n',
    "a number": b"17\n",
    "no operation": b'{"line": 6, "usage": {"input_tokens": 1, "output_tokens": 1}}\n',
    "no usage": b'{"line": 6, "operation_id": "op000006"}\n',
    "usage of nothing": answer_to(6, usage=None),
    "JSON of another program": answer_to(6, "an-operation-of-its-own"),
    "a constant that is no JSON": b'{"line": 6, "operation_id": "op000006", "usage": NaN}\n',
    "another record's operation": answer_to(6, operation_of(5)),
    "an operation that is done": answer_to(1),
    "a result with CRLF in the middle": answer_to(6).replace(b"line", b"li\r\nne", 1),
    "two results in one line": answer_to(6)[:-1] + answer_to(5),
}


@many
@given(lines=WHOLE_TAILS, garbage=st.sampled_from(sorted(GARBAGE)), more=WHOLE_TAILS)
def test_only_what_comes_before_the_first_bad_line_is_kept(lines: list[bytes], garbage: str, more: list[bytes]) -> None:
    tail = b"".join([*lines, GARBAGE[garbage], *more])
    with wreck(tail) as job:
        job.resume()
        check(job, tail, lines)


@many
@given(data=st.data(), lines=st.permutations(TAIL))
def test_an_output_cut_at_any_byte_loses_no_whole_line(data: st.DataObject, lines: list[bytes]) -> None:
    tail = b"".join(lines)[: data.draw(st.integers(0, len(b"".join(lines))), label="cut")]
    with wreck(tail) as job:
        job.resume()
        check(job, tail, lines[: tail.count(b"\n")])


@many
@given(data=st.data(), length=st.integers(1, 5000))
def test_zeros_from_any_byte_on_are_put_aside(data: st.DataObject, length: int) -> None:
    whole = b"".join(TAIL)
    cut = data.draw(st.integers(0, len(whole)), label="zeros from")
    tail = whole[:cut] + bytes(length)
    with wreck(tail) as job:
        job.resume()
        check(job, tail, TAIL[: whole[:cut].count(b"\n")])


@many
@given(kept=st.integers(0, 4), noise=st.binary(max_size=300))
def test_noise_is_put_aside_byte_for_byte(kept: int, noise: bytes) -> None:
    tail = b"".join(TAIL[:kept]) + noise
    with wreck(tail) as job:
        job.resume()
        check(job, tail, TAIL[:kept])


@many
@given(st.lists(st.sampled_from(ANSWERS), max_size=8))
def test_a_line_is_kept_once_and_the_walk_ends_where_it_is_repeated(lines: list[bytes]) -> None:
    kept: list[bytes] = []
    for line in lines:
        if line in kept or line in BOOKED:
            break
        kept.append(line)
    with wreck(b"".join(lines)) as job:
        job.resume()
        check(job, b"".join(lines), kept)


# --- single rows ---


@pytest.mark.parametrize(
    "between", [b"", b'{"torn\n', bytes(7) + b"\n"], ids=["at once", "behind a torn line", "behind zeros"]
)
def test_an_answer_that_the_ledger_does_not_know_stops_the_run_and_nothing_is_touched(between: bytes) -> None:
    """An older ledger, or another job's: to put the line aside would mean to pay for it again in silence."""
    tail = TAIL[0] + between + answer_to(6, "op-of-another-job", provider="yandex", attempt=1, maybe_paid=0)
    with wreck(tail) as job:
        before = job.output()
        with pytest.raises(InputProblem, match="does not know"):
            job.resume()
        assert job.output() == before


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_put_aside(garbage: bytes) -> None:
    tail = TAIL[0] + garbage + TAIL[1]
    with wreck(tail) as job:
        job.resume()
        check(job, tail, TAIL[:1])


KEPT = {
    "a plain answer": answer_to(3),
    "line ends for some readers": answer_to(3, text="one\u2028two\u2029three\u0085four\rfive"),
    "half a surrogate pair": answer_to(3, text="cut in two: \ud83d"),
    "no usage told": answer_to(3, usage={"input_tokens": 3, "output_tokens": None}),
    "a long answer": answer_to(3, text="я" * 800_000),
}


@pytest.mark.parametrize("line", KEPT.values(), ids=KEPT)
def test_a_line_that_batchrun_wrote_is_kept(line: bytes) -> None:
    with wreck(line + TAIL[1]) as job:
        job.resume()
        check(job, line + TAIL[1], [line, TAIL[1]])


def test_a_second_resume_finds_nothing_left_to_do() -> None:
    with wreck(TAIL[0] + b"half") as job:
        job.resume()
        job.resume()
        check(job, TAIL[0] + b"half", TAIL[:1])
        assert job.ledger.job().epoch == 2  # committed even though nothing changed


def test_what_is_cut_twice_in_a_second_is_put_aside_twice() -> None:
    with wreck(b"first") as job:
        job.resume()
        with job.config.paths.output.open("ab") as file:
            file.write(b"second")
        job.resume()
        assert job.quarantined() == b"firstsecond"
        assert job.output() == b"".join(BOOKED)


def test_a_walk_alone_changes_nothing() -> None:
    with wreck(TAIL[0] + b"half") as job:
        before = job.output()
        kept, end = walk_tail(job.ledger, job.results, sum(map(len, BOOKED)), NOW)
        assert [seq for seq, *_ in kept] == [3]
        assert end == sum(map(len, BOOKED)) + len(TAIL[0])
        assert job.output() == before
        assert job.states()[2] is State.OPEN


def test_records_on_their_way_are_in_doubt_after_the_closing_commit() -> None:
    with wreck(b"") as job:
        with job.ledger.transaction():
            seq = job.ledger.record_intent(a_record(RECORDS + 1), "request", NOW)
        job.resume()
        row = job.ledger.row(seq)
        assert (row.state, row.history.maybe_paid, row.history.lost_replies) == (State.NEW, 1, 0)
