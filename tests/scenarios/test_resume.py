"""``batchrun resume``: one job, or every unfinished job below a folder."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchrun.cli.status import status
from tests.scenarios.bench import Bench, Ran, Running, as_owner, wait_until
from tests.scenarios.emulator import Emulator, operations_in
from tests.scenarios.forker import Forker


class Nights:
    """A folder of jobs, each in a folder of its own."""

    def __init__(self, folder: Path, emulator: Emulator, name: str, forker: Forker | None) -> None:
        self.emulator = emulator
        self._name = name
        self._forker = forker
        self._here = Bench(folder, emulator, name, forker)
        self.jobs: dict[str, Bench] = {}

    def job(self, name: str, *texts: str) -> Bench:
        folder = self._here.folder / "out" / name
        folder.mkdir(parents=True)
        self.jobs[name] = bench = Bench(folder, self.emulator, self._name, self._forker)
        bench.records(*texts)
        return bench

    def interrupted(self, name: str, *texts: str, **states: int) -> Bench:
        """A job that was killed when so many of its records were accepted."""
        bench = self.job(name, *texts)
        self.emulator.change(poll_status=503)
        bench.kill_once("--concurrency", "1", "--rps", "5", **(states or {"open": 1}))
        self.emulator.change(poll_status=0)
        return bench

    def start(self, *words: str, **surroundings: Any) -> Running:
        return self._here.spawn("resume", *(words or ("out",)), **surroundings)

    def start_and_poll(self) -> Running:
        """Start, and wait until the first job is at work."""
        polls = self.emulator.count("polls_received")
        running = self.start()
        wait_until(lambda: self.emulator.count("polls_received") > polls, "it asks", while_alive=running)
        return running

    def resume(self, *words: str, **surroundings: Any) -> Ran:
        return self.start(*words, **surroundings).wait()

    def end(self) -> None:
        for bench in (self._here, *self.jobs.values()):
            bench.end()


@pytest.fixture
def nights(
    tmp_path: Path, emulator: Emulator, forker: Forker | None, request: pytest.FixtureRequest
) -> Iterator[Nights]:
    emulator.begin()
    nights = Nights(tmp_path, emulator, request.node.nodeid, forker)
    yield nights
    nights.end()


def set_back(bench: Bench, seconds: int) -> None:
    """Let what is open have been accepted earlier."""
    with bench.ledger(write=True) as connection:
        connection.execute("UPDATE record SET submitted_at = submitted_at - ?", (seconds,))


def test_each_job_of_a_folder_gets_what_it_needs(nights: Nights) -> None:
    """Fails if a finished job has a say, one that waits for a person has none, or one ends the rest."""
    failed = nights.job("failed", "a1", "a2")
    failed.expect("a2", fail=1, fail_code=3)
    assert failed.run().exit_code == 1
    held = nights.job("held", "h1", "h2")
    held.expect("h2", lost=1)
    assert held.run("--on-ambiguous", "hold").exit_code == 4
    nights.emulator.change(rules=[])
    younger = nights.interrupted("b_younger", *(f"b{number}" for number in range(6)))
    older = nights.interrupted("c_older", *(f"c{number}" for number in range(6)))
    set_back(older, 3600)
    never = nights.job("never", "n1")
    never.state.mkdir(mode=0o700)
    (never.state / "ledger.db").touch(mode=0o600)
    sent_before = len(operations_in(nights.emulator.journal()))

    ran = nights.resume()

    assert ran.exit_code == 2
    assert ran.stderr.splitlines() == [
        "batchrun: 1 written, 0 failed, 1 held, 0 possibly paid twice",
        "  batchrun retry out/held/out.jsonl --only held sends them again, and may pay for them twice",
        "error: the job of out/never/out.jsonl has not begun",
        "  run it first",
    ]
    for bench in (younger, older):
        assert len(bench.result_ids()) == 6
        bench.check()
    sent = [operation["text"][0] for operation in operations_in(nights.emulator.journal())[sent_before:]]
    assert sent == sorted(sent, reverse=True)
    assert set(sent) == {"b", "c"}
    assert nights.resume("out/b_younger", "out/c_older", "out/failed").is_silent
    assert nights.resume("out/failed/out.jsonl").exit_code == 1
    (never.state / "ledger.db").unlink()
    assert nights.resume().exit_code == 4


def test_two_resumes_of_a_folder_share_the_work_and_pay_for_nothing_twice(nights: Nights) -> None:
    """Fails if a job that another run holds ends the others, or if its 75 is said aloud."""
    first = nights.interrupted("a", "a1", "a2", "a3", "a4")
    second = nights.interrupted("b", "b1", "b2", "b3", "b4")
    nights.emulator.change(poll_status=503)
    at_work = nights.start_and_poll()
    at_work.signal(signal.SIGSTOP)
    nights.emulator.change(poll_status=0)
    ran = nights.resume()
    assert (ran.exit_code, ran.is_silent) == (75, True)
    second.check()
    at_work.signal(signal.SIGCONT)
    assert at_work.wait().exit_code == 0
    first.check()


def test_a_resume_that_is_killed_is_begun_again(nights: Nights) -> None:
    """Fails if ``resume`` keeps anything of its own that a kill could leave behind."""
    jobs = [nights.interrupted(name, *(f"{name}{number}" for number in range(4))) for name in "ab"]
    at_work = nights.start()
    wait_until(lambda: jobs[0].states()["done"] > 0, "the first job goes on", while_alive=at_work)
    assert at_work.stop(signal.SIGKILL).exit_code == -signal.SIGKILL
    output = str(jobs[0].output)
    assert f"next: batchrun resume {output}" in CliRunner().invoke(status, [output]).output
    assert nights.resume().exit_code == 0
    for bench in jobs:
        bench.check()


def test_the_deadline_ends_all(nights: Nights) -> None:
    """Fails if the next job is begun after the deadline, or if anything is said of it."""
    jobs = [nights.interrupted(name, *(f"{name}{number}" for number in range(4))) for name in "ab"]
    before = jobs[1].rows()
    nights.emulator.change(poll_status=503)
    ran = nights.resume("out", "--deadline", "1s")
    assert (ran.exit_code, ran.is_silent) == (75, True)
    assert jobs[1].rows() == before
    nights.emulator.change(poll_status=0)
    assert nights.resume("out", "--deadline", "5h").exit_code == 0
    for bench in jobs:
        bench.check()


def test_a_signal_ends_all(nights: Nights) -> None:
    """Fails if the next job is begun after a signal."""
    jobs = [nights.interrupted(name, *(f"{name}{number}" for number in range(4))) for name in "ab"]
    nights.emulator.change(poll_status=503)
    at_work = nights.start_and_poll()
    before = jobs[1].rows()
    ran = at_work.stop(signal.SIGTERM)
    assert ran.exit_code == 143
    assert ran.stderr.splitlines()[0] == "out/a/out.jsonl: stopped by SIGTERM"
    assert jobs[1].rows() == before


def test_without_its_input_a_job_can_still_be_collected(nights: Nights) -> None:
    """Fails if the missing input of one job stops another, or if collecting needs it, or sends anything."""
    gone = nights.interrupted("gone", "a1", "a2", "a3", "a4", "a5")
    other = nights.interrupted("other", "b1", "b2")
    content = gone.input.read_bytes()
    gone.input.unlink()
    ran = nights.resume()
    assert (ran.exit_code, ran.stderr.splitlines()) == (
        2,
        [
            "error: out/gone/out.jsonl: out/gone/in.jsonl: no such file",
            "  put it back, or --collect-only fetches what was sent already",
        ],
    )
    other.check()
    sent = nights.emulator.count("submits_received")

    collected = nights.resume("out", "--collect-only")

    assert collected.exit_code == 0
    fetched = len(gone.results())
    assert f"twice; {fetched} of them without meta or input: their lines are gone or changed\n" in collected.stderr
    assert collected.stderr.endswith("batchrun status out/gone/out.jsonl\n")
    assert nights.emulator.count("submits_received") == sent
    assert {result["meta"] is None for result in gone.results()} == {True}
    assert gone.states().keys() <= {"done", "new"}
    assert nights.resume("out", "--collect-only").is_silent
    gone.input.write_bytes(content)
    assert nights.resume().exit_code == 0
    gone.check()


def test_a_folder_that_cannot_be_looked_into_is_told(nights: Nights) -> None:
    """Fails if a folder of another user counts as empty, or keeps the other jobs from their turn."""
    job = nights.interrupted("a", "a1", "a2")
    closed = nights.job("closed", "b").folder
    closed.chmod(0)
    ran = nights.resume(within=as_owner())
    closed.chmod(0o700)
    assert (ran.exit_code, ran.stderr.splitlines()[0]) == (74, "error: out/closed: Permission denied")
    job.check()


def test_a_job_that_was_cut_before_its_failures_were_told_is_not_finished(nights: Nights) -> None:
    """Fails if a folder's job counts as finished by its records alone: nobody would ever see its failures."""
    job = nights.job("cut", "a", "b")
    job.expect("b", fail=1, fail_code=3)
    assert job.run().exit_code == 1
    (job.folder / "out.errors.ndjson").unlink()
    with job.ledger(write=True) as ledger:
        ledger.execute("UPDATE run SET ended_at = NULL, exit_code = NULL")
    assert nights.resume("out").exit_code == 1
    assert job.kinds() == {"b": "invalid_argument"}
    assert nights.resume("out").exit_code == 0


def test_a_job_that_has_reached_its_limit_is_silent_though_its_input_is_gone(bench: Bench) -> None:
    """Fails if the input of every job is looked for, and not only of those that have something to do."""
    bench.records("a", "b", "c")
    assert bench.run("--limit", "2").exit_code == 0
    bench.input.rename(bench.folder / "kept")
    ran = bench.spawn("resume", ".").wait()
    assert (ran.exit_code, ran.is_silent) == (0, True), ran
    (bench.folder / "kept").rename(bench.input)
    bench.check(unsent=1)
