"""What ``resume`` makes of a ledger: the options of the last start, and nothing that a stranger wrote into it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest

from batchrun import job
from batchrun.cli import exit_code_of
from batchrun.cli.options import deadline, share
from batchrun.cli.report import report_problem
from batchrun.cli.resume import SERIOUS, config_of_job, jobs_of, resume
from batchrun.cli.run import config_of, run
from batchrun.cli.status import describe, open_job
from batchrun.config import REMEMBERED, JobConfig
from batchrun.errors import DiskProblem, Interrupted, UsageProblem
from batchrun.stop import on_signals
from batchrun.storage.jobdir import JobPaths
from batchrun.storage.ledger import Ledger
from tests.docs.test_exit_codes import documented_codes

from .jobfiles import NOW, SETTINGS, a_record, make_ledger

TOLD = {"rps": 3, "rph": 7, "read-rps": 5, "concurrency": 2, "on-ambiguous": "hold", "limit": 4, "max-failures": "1%"}
WHERE = ({"provider": "emulator", "emulator-faults": "p50=0"}, {"endpoint": "http://127.0.0.1:9"})


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobPaths:
    monkeypatch.delenv("BATCHRUN_ENDPOINT", raising=False)
    paths = JobPaths.of(tmp_path / "out.jsonl")
    paths.state.mkdir(mode=0o700)
    return paths


@pytest.fixture
def ledger(paths: JobPaths) -> Iterator[Ledger]:
    with closing(make_ledger(paths.ledger)) as ledger:
        yield ledger


def remember(ledger: Ledger, options: str) -> None:
    with ledger.transaction():
        ledger.save(options=options)


@pytest.mark.parametrize("where", WHERE, ids=["emulator", "endpoint"])
def test_whatever_a_run_was_told_is_known_to_the_next(
    ledger: Ledger, paths: JobPaths, monkeypatch: pytest.MonkeyPatch, where: dict[str, str]
) -> None:
    """Fails if an option is not remembered, or if the environment has a say in it."""
    words = [f"--{name}={value}" for name, value in (TOLD | where).items()]
    told = config_of(run.make_context("run", [*words, "-o", str(paths.output), "in.jsonl"]).params)
    with ledger.transaction():
        ledger.save_settings(told.settings)
    remember(ledger, told.remembered())
    monkeypatch.setenv("BATCHRUN_RPS", "1000")
    monkeypatch.setenv("BATCHRUN_STRICT", "1")
    known = config_of_job(ledger, paths)
    assert {name: getattr(known, name) for name in REMEMBERED} == {name: getattr(told, name) for name in REMEMBERED}
    assert known.settings.model == SETTINGS.model
    assert not known.strict
    defaults = JobConfig(told.input, paths, SETTINGS)
    elsewhere = {"endpoint", "emulator_faults"} - {name.replace("-", "_") for name in where}
    assert {name for name in REMEMBERED if getattr(told, name) == getattr(defaults, name)} == elsewhere


def test_a_job_that_was_killed_in_its_first_moment_has_nothing_to_go_on_with(ledger: Ledger, paths: JobPaths) -> None:
    with pytest.raises(UsageProblem, match="never started"):
        config_of_job(ledger, paths)
    assert [*describe(ledger, paths)][-1] == "  next: the same command again"


def test_a_ledger_does_not_say_who_is_given_the_key(
    ledger: Ledger, paths: JobPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger.transaction():
        ledger.save_settings(replace(SETTINGS, provider="yandex"))
    remember(ledger, json.dumps({"endpoint": "https://elsewhere.example"}))
    with pytest.raises(UsageProblem, match=r"sent to https://elsewhere\.example"):
        config_of_job(ledger, paths)
    monkeypatch.setenv("BATCHRUN_ENDPOINT", "https://elsewhere.example")
    assert config_of_job(ledger, paths).endpoint == "https://elsewhere.example"


@pytest.mark.parametrize(
    "options",
    [
        {"rps": "fast"},
        {"rps": [1]},
        {"limit": -1},
        {"endpoint": "http://127.0.0.1:9/?x"},
        {"endpoint": {"a": 1}},
        {"emulator_faults": "p50=x"},
        {"max_failures": "200%"},
    ],
)
def test_hostile_options_are_refused_in_words(ledger: Ledger, paths: JobPaths, options: dict[str, Any]) -> None:
    remember(ledger, json.dumps(options))
    with pytest.raises((UsageProblem, click.ClickException)):
        config_of_job(ledger, paths)


def test_only_known_options_are_taken(ledger: Ledger, paths: JobPaths) -> None:
    remember(ledger, json.dumps({"rps": 2, "new_run": True, "if_finished": "new", "output": "/etc/passwd"}))
    config = config_of_job(ledger, paths)
    assert (config.rps, config.new_run, config.if_finished, config.paths) == (2, False, "keep", paths)


@pytest.mark.parametrize("options", ["[]", "{", "1"])
def test_options_that_are_none_are_damage(ledger: Ledger, paths: JobPaths, options: str) -> None:
    remember(ledger, options)
    with pytest.raises(DiskProblem):
        config_of_job(ledger, paths)


@pytest.mark.parametrize("change", [{"system": 1}, {"model": "another"}, {"template": "{% if"}])
def test_settings_that_are_not_as_they_were_written_are_damage(
    ledger: Ledger, paths: JobPaths, change: dict[str, Any]
) -> None:
    """Fails if ``settings_of`` does not look at the digest."""
    with ledger.transaction():
        ledger.save(settings=json.dumps(asdict(SETTINGS) | change))
    with pytest.raises(DiskProblem, match="damaged"):
        config_of_job(ledger, paths)


@pytest.mark.parametrize("change", [{"template": "{% if"}, {"schema": 5}, {"system": 1}, {"prompt_column": 7}])
def test_settings_that_somebody_wrote_with_their_digest_are_damage(
    ledger: Ledger, paths: JobPaths, change: dict[str, Any]
) -> None:
    """Fails if ``settings_of`` looks at nothing but the digest, which anybody can make."""
    with ledger.transaction():
        ledger.save_settings(replace(SETTINGS, **change))
    with pytest.raises(DiskProblem, match="damaged"):
        config_of_job(ledger, paths)


def test_every_exit_code_has_its_place_among_those_of_several_jobs() -> None:
    assert set(SERIOUS) == set(documented_codes())
    assert SERIOUS[:6] == (70, 74, 5, 2, 3, 75)


# --- which jobs there are ---


def a_job(output: Path, state: Path | None = None, *, records: int | None = None, job_id: str = "") -> JobPaths:
    """A job of one record that was begun; with ``records=0`` one that is finished."""
    output.parent.mkdir(exist_ok=True)
    (output.parent / "in.jsonl").write_text('"one"\n')
    paths = JobPaths.of(output, state)
    paths.state.mkdir(mode=0o700)
    with closing(make_ledger(paths.ledger)) as ledger, ledger.transaction():
        options = json.dumps({"emulator_faults": "p50=0,p99=0"})
        ledger.save(options=options, input_records=records, job_id=job_id or output.name)
    if state is None:
        output.touch()
    return paths


def resumed(*words: object) -> int:
    """The exit code of ``batchrun resume`` with these words."""
    return exit_code_of(lambda: resume.main([str(word) for word in words], standalone_mode=False))


def nobody(error: OSError) -> None:
    raise AssertionError(error)


def test_a_job_that_is_gone_by_its_turn_is_not_begun_anew(ledger: Ledger, paths: JobPaths) -> None:
    """Fails if ``resume`` or ``retry`` pays for a whole file because another run put the old job aside meanwhile."""
    remember(ledger, json.dumps({"rps": 2}))
    config = config_of_job(ledger, paths)
    config.input.write_text('{"prompt": "a"}\n')
    shutil.rmtree(paths.state)
    with pytest.raises(UsageProblem, match="has no job yet"):
        job.run(config, {})
    assert not paths.state.exists()


@pytest.mark.parametrize(
    ("name", "cause", "told"),
    [
        ("a", "the ledger is damaged", "a: the ledger is damaged"),
        ("my out", "`my out` is in use by another run", "`my out` is in use by another run"),
        (
            "out",
            "the ledger `out.batchrun/ledger.db` is damaged",
            "out: the ledger `out.batchrun/ledger.db` is damaged",
        ),
    ],
)
def test_of_several_jobs_each_is_named_once(
    capsys: pytest.CaptureFixture[str], name: str, cause: str, told: str
) -> None:
    assert report_problem(DiskProblem(cause, remedy="mend it"), Path(name)) == 74
    assert capsys.readouterr().err == f"error: {told}\n  mend it\n"


def test_of_several_jobs_the_first_line_names_the_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_problem(DiskProblem("in:2: gone", remedy="mend it", before=["in:1: changed"]), Path("a")) == 74
    assert capsys.readouterr().err == "a: in:1: changed\nin:2: gone\n  mend it\n"


def test_a_folder_without_a_job_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if ``resume`` of a wrong folder looks like one of a folder where all is done."""
    (tmp_path / "other").mkdir()
    a_job(tmp_path / "done" / "out.jsonl", records=0)
    assert [resumed(tmp_path / name) for name in ("other", "done")] == [0, 0]
    assert capsys.readouterr().err == f"batchrun: no job below {tmp_path / 'other'}\n"
    assert resumed(tmp_path / "other", "-q") == 0
    assert capsys.readouterr().err == ""


def test_a_job_that_is_found_without_its_output_is_not_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if a state directory says by its name where the answers go: they would be in two files."""
    a_job(tmp_path / "answers.jsonl", tmp_path / "st.batchrun")
    a_job(tmp_path / "answers.jsonl", tmp_path / ".batchrun")
    assert resumed(tmp_path) == 3
    cause, _ = capsys.readouterr().err.splitlines()
    assert cause == f"error: {tmp_path / 'st'} is not there, and {tmp_path / 'st.batchrun'} holds a job"
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "st.batchrun", ".batchrun"}


def test_a_copy_of_a_job_is_not_paid_for_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if two ledgers of one job are both sent for, or the unfinished one beside the one that has finished."""
    done = a_job(tmp_path / "done.jsonl", records=0, job_id="first")
    a_job(tmp_path / "bak" / "done.jsonl", job_id="first")
    assert resumed(tmp_path) == 3
    assert f"error: {tmp_path / 'bak/done.jsonl'} and {done.output} are copies of one job" in capsys.readouterr().err
    assert resumed(tmp_path / "bak" / "done.jsonl", done.output) == 3
    assert resumed(tmp_path / "bak") == 0
    assert [path.stat().st_size > 0 for path in (done.output, tmp_path / "bak/done.jsonl")] == [False, True]


def test_the_state_directory_of_a_job_is_as_good_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if ``resume`` ends well with nothing found, because the name was completed to the wrong one."""
    job = a_job(tmp_path / "out.jsonl")
    assert jobs_of((job.state,), None, nobody) == jobs_of((tmp_path,), None, nobody) == [(job, False)]
    monkeypatch.chdir(job.state)
    with pytest.raises(UsageProblem, match="the state cannot be in"):
        jobs_of((Path("."),), None, nobody)


@pytest.mark.parametrize(
    "name", ["a.jsonl", ".a.jsonl.new", "a.errors.ndjson", "a.jsonl.batchrun/log", "in.jsonl", "pipe"]
)
def test_the_log_is_no_file_of_any_job(tmp_path: Path, name: str) -> None:
    """Fails if only the jobs that go on are asked, or if the log is opened before: of a pipe, for ever."""
    a_job(tmp_path / "a.jsonl", records=0)
    a_job(tmp_path / "b" / "b.jsonl")
    os.mkfifo(tmp_path / "pipe")
    log = tmp_path / name
    assert resumed(tmp_path, "--log-file", log) == 2
    assert resumed(tmp_path / "a.jsonl", "--log-file", log) == 2
    words = [tmp_path / "in.jsonl", "-o", tmp_path / "a.jsonl", "--log-file", log]
    with pytest.raises(UsageProblem, match="cannot be the log"):
        config_of(run.make_context("run", [str(word) for word in words]).params)
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "a.jsonl.batchrun", "b", "in.jsonl", "pipe"}
    assert [(tmp_path / path).stat().st_size for path in ("a.jsonl", "in.jsonl")] == [0, 6]


def test_a_job_that_has_not_begun_is_closed_again(tmp_path: Path) -> None:
    job = a_job(tmp_path / "out.jsonl")
    job.ledger.write_bytes(b"")
    with pytest.raises(UsageProblem, match="has not begun") as told:
        open_job(job)
    assert told.traceback
    assert str(job.ledger) not in {
        str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()
    }


# --- options ---

AT_NIGHT = datetime(2026, 11, 21, 23, 30).timestamp()
WHEN = {
    "5h": 18_000,
    "90m": 5400,
    "1.5h": 5400,
    "30s": 30,
    "23:31": 60,
    "6:00": 23_400,
    "06:00": 23_400,
    "23:30": 86_400,
}


@pytest.mark.parametrize(("value", "seconds"), WHEN.items())
def test_a_deadline_is_the_next_such_time_or_so_long_from_now(
    monkeypatch: pytest.MonkeyPatch, value: str, seconds: float
) -> None:
    monkeypatch.setattr(time, "time", lambda: AT_NIGHT)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    assert deadline(value) == pytest.approx(1000 + seconds)


NO_DEADLINE = ("", "6", "24:00", "06:60", "-5h", "5 h", "06:00:00", "nan h")
NO_SHARE = ("", "-1", "1.5", "101%", "1 %", "nan%", "%")


@pytest.mark.parametrize(
    ("read", "value"),
    [(read, value) for read, values in ((deadline, NO_DEADLINE), (share, NO_SHARE)) for value in values],
)
def test_what_is_no_deadline_or_share_is_refused(read: Callable[[str], object], value: str) -> None:
    with pytest.raises(click.BadParameter):
        read(value)


# --- the hour ---


def test_jobs_beside_one_another_share_the_hour(ledger: Ledger, paths: JobPaths, tmp_path: Path) -> None:
    """Fails if ``_hour_window`` does not look at ``beside``."""
    (tmp_path / "other").mkdir()
    with closing(make_ledger(tmp_path / "other" / "ledger.db")) as other:
        for number, each in enumerate((ledger, other, other), 1):
            with each.transaction():
                each.record_intent(a_record(number), "request", time.time() - 60 * number)
        with other.transaction():
            other.record_intent(a_record(4), "request", NOW)  # long ago
    beside = (tmp_path / "other" / "ledger.db", tmp_path / "gone" / "ledger.db")
    config = JobConfig(tmp_path / "in.jsonl", paths, SETTINGS, rph=5)
    alone = job._hour_window(config, ledger)
    shared = job._hour_window(JobConfig(config.input, paths, SETTINGS, rph=5, beside=beside), ledger)
    assert (alone.used(time.monotonic()), shared.used(time.monotonic())) == (1, 3)


def test_a_signal_while_the_jobs_beside_are_read_ends_the_run(
    ledger: Ledger, paths: JobPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if it counts as a ledger that cannot be read: the run would send as if nobody had said a word."""
    config = JobConfig(paths.output, paths, SETTINGS, beside=(paths.ledger,))
    monkeypatch.setattr(Ledger, "read_only", lambda path: signal.raise_signal(signal.SIGTERM))
    with on_signals(job._interrupt), pytest.raises(Interrupted):
        job._hour_window(config, ledger)
