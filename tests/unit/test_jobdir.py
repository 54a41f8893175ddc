"""A job's places: their names, who may read them, and who holds them."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchrun.errors import DiskProblem
from batchrun.recovery import refuse_foreign_failures
from batchrun.storage.jobdir import AlreadyRunning, JobDir, JobPaths, file_system_of, is_locked, read_holder
from batchrun.storage.ledger import Ledger

from .jobfiles import NOW


@pytest.fixture
def paths(tmp_path: Path) -> JobPaths:
    return JobPaths.of(tmp_path / "out.jsonl")


# --- names ---

NAMES = {
    "JSONL": ("out.jsonl", "out.errors.ndjson", "out.jsonl.batchrun"),
    "NDJSON": ("out.ndjson", "out.ndjson.errors.ndjson", "out.ndjson.batchrun"),
    "no ending": ("out", "out.errors.ndjson", "out.batchrun"),
    "JSON": ("out.json", "out.json.errors.ndjson", "out.json.batchrun"),
    "packed": ("out.json.gz", "out.json.gz.errors.ndjson", "out.json.gz.batchrun"),
    "two dots": ("2025.11.jsonl", "2025.11.errors.ndjson", "2025.11.jsonl.batchrun"),
    "another ending": ("out.txt", "out.txt.errors.ndjson", "out.txt.batchrun"),
    "nothing but an ending": (".jsonl", ".errors.ndjson", ".jsonl.batchrun"),
}


@pytest.mark.parametrize(("output", "failures", "state"), NAMES.values(), ids=NAMES)
def test_everything_stands_beside_the_output(output: str, failures: str, state: str) -> None:
    paths = JobPaths.of(Path("folder") / output)
    assert paths.failures == Path("folder") / failures
    assert paths.state == Path("folder") / state
    assert {paths.ledger.parent, paths.lock.parent, paths.quarantine.parent} == {paths.state}


@pytest.mark.parametrize(("output", "twin"), [("x", "x.jsonl"), ("x.jsonl", "x"), ("x.json", "x.json.jsonl")])
def test_one_other_output_would_have_the_same_failures(output: str, twin: str) -> None:
    paths, other = JobPaths.of(Path(output)), JobPaths.of(Path(twin))
    assert (paths.twin, paths.failures) == (other.state, other.failures)


def test_its_own_state_is_no_other_job(tmp_path: Path) -> None:
    paths = JobPaths.of(tmp_path / "answers.jsonl", tmp_path / "answers.batchrun")
    paths.state.mkdir()
    paths.ledger.touch()
    refuse_foreign_failures(paths)


def test_the_state_may_stand_elsewhere() -> None:
    paths = JobPaths.of(Path("folder/out.jsonl"), Path("/var/state"))
    assert (paths.state, paths.ledger) == (Path("/var/state"), Path("/var/state/ledger.db"))
    assert paths.failures == Path("folder/out.errors.ndjson")


def test_a_job_is_named_so_that_another_command_finds_it() -> None:
    """Fails if the state's own place is left out: ``retry`` and ``status`` would find no job."""
    assert JobPaths.of(Path("folder/out.jsonl")).named == "folder/out.jsonl"
    assert JobPaths.of(Path("my out.jsonl"), Path("/var/st")).named == "'my out.jsonl' --state-dir /var/st"


# --- the ledger's log ---


def test_only_what_sqlite_would_read_of_a_log_is_written_anew(paths: JobPaths) -> None:
    """Fails if a log with a hole is written to its end: the hole would fill the disk."""
    paths.output.touch()
    jobdir = JobDir.take(paths)
    paths.ledger.write_bytes(b"ledger")
    log = paths.state / "ledger.db-wal"
    with log.open("wb") as file:
        file.write(b"frames")
        file.truncate(1 << 40)
    jobdir.make_ledger_file()
    jobdir.release()
    with log.open("rb") as file:
        assert file.read(6) == b"frames"
    assert log.stat().st_blocks * 512 <= 2 << 20


# --- the lock ---

HOLD = """
import sys
from pathlib import Path
from batchrun.storage.jobdir import JobDir, JobPaths
JobDir.take(JobPaths.of(Path(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another_process(paths: JobPaths) -> Iterator[int]:
    """Until the block is left; the process's id."""
    command = [sys.executable, "-c", HOLD, str(paths.output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        yield child.pid
        child.communicate()


def test_a_job_held_by_another_process_is_refused_with_its_name(paths: JobPaths) -> None:
    with held_by_another_process(paths) as pid:
        assert is_locked(paths)
        with pytest.raises(AlreadyRunning, match=rf"in use by process {pid} on .+ since \d\d:\d\d") as caught:
            JobDir.take(paths)
        assert caught.value.exit_code == 75
        assert f"batchrun status {paths.output}" in caught.value.remedy
    assert not is_locked(paths)
    JobDir.take(paths).release()


def test_the_lock_of_a_killed_process_is_free(paths: JobPaths) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(paths.output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    assert read_holder(paths)["pid"] == child.pid  # the file stays, and says so
    JobDir.take(paths).release()


def test_a_second_take_in_the_same_process_is_refused(paths: JobPaths) -> None:
    first = JobDir.take(paths)
    with pytest.raises(AlreadyRunning, match=f"by process {os.getpid()} on"):
        JobDir.take(paths)
    assert is_locked(paths)
    first.release()
    assert paths.lock.exists()  # a lock that is deleted can be held twice
    assert not is_locked(paths)


def test_a_job_in_use_is_named_so_that_status_finds_it(tmp_path: Path) -> None:
    paths = JobPaths.of(tmp_path / "out.jsonl", tmp_path / "elsewhere")
    first = JobDir.take(paths)
    with pytest.raises(AlreadyRunning) as caught:
        JobDir.take(paths)
    assert caught.value.remedy.endswith(f"batchrun status {paths.output} --state-dir {paths.state}")
    first.release()


def test_asking_who_holds_it_does_not_take_or_break_the_lock(paths: JobPaths) -> None:
    assert not is_locked(paths)
    assert not paths.state.exists()
    jobdir = JobDir.take(paths)
    assert [is_locked(paths) for _ in range(3)] == [True] * 3
    jobdir.release()


def test_a_child_process_does_not_inherit_the_lock(paths: JobPaths) -> None:
    jobdir = JobDir.take(paths)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        jobdir.release()
        JobDir.take(paths).release()
        child.communicate()


HOLDERS = {
    "nothing yet": b"",
    "no JSON": b"\x00\xff{",
    "no object": b"[1]",
    "a pid and nothing else": b'{"pid": 17}',
    "a start that is no time": b'{"pid": 17, "host": "a", "started_at": 1e300}',
    "a start that is no number": b'{"pid": 17, "host": "a", "started_at": NaN}',
    "a start in words": b'{"pid": 17, "host": "a", "started_at": "noon"}',
    "far too much": b" " * 5_000_000,
}


@pytest.mark.parametrize("written", HOLDERS.values(), ids=HOLDERS)
def test_whatever_the_holder_wrote_of_itself_the_job_is_in_use(paths: JobPaths, written: bytes) -> None:
    jobdir = JobDir.take(paths)
    paths.lock.write_bytes(written)
    with pytest.raises(AlreadyRunning, match="is in use"):
        JobDir.take(paths)
    jobdir.release()


# --- who may look ---


def link_state(paths: JobPaths) -> None:
    elsewhere = paths.output.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    paths.state.symlink_to(elsewhere)


def link_lock(paths: JobPaths) -> None:
    elsewhere = paths.output.parent / "elsewhere"
    elsewhere.touch()
    paths.state.mkdir(mode=0o700)
    paths.lock.symlink_to(elsewhere)


def make_with_mode(paths: JobPaths, mode: int) -> None:
    paths.state.mkdir()
    paths.state.chmod(mode)


def lock_is_a_directory(paths: JobPaths) -> None:
    paths.lock.mkdir(parents=True)
    paths.state.chmod(0o700)


UNTRUSTED: dict[str, tuple[Callable[[JobPaths], object], str]] = {
    "a linked directory": (link_state, "is not a directory"),
    "a file in its place": (lambda paths: paths.state.touch(), "is not a directory"),
    "a linked lock": (link_lock, "cannot be made"),
    "a directory for a lock": (lock_is_a_directory, "cannot be made"),
    "readable by the group": (lambda paths: make_with_mode(paths, 0o740), "open to other users"),
    "open to the world": (lambda paths: make_with_mode(paths, 0o777), "open to other users"),
    "in a folder where anyone may rename": (lambda paths: paths.state.parent.chmod(0o777), "anyone may rename"),
}


@pytest.mark.parametrize(("make", "reason"), UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_directory_that_cannot_be_trusted_is_refused(
    paths: JobPaths, make: Callable[[JobPaths], object], reason: str
) -> None:
    make(paths)
    with pytest.raises(DiskProblem, match=reason) as caught:
        JobDir.take(paths)
    assert caught.value.exit_code == 74


def test_a_folder_for_everyone_is_fine_if_only_owners_may_rename(paths: JobPaths) -> None:
    paths.state.parent.chmod(0o1777)
    JobDir.take(paths).release()


def test_the_folder_of_the_state_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DiskProblem, match="cannot be made"):
        JobDir.take(JobPaths.of(tmp_path / "missing" / "out.jsonl"))


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal", "ledger.db-shm"])
def test_a_linked_ledger_is_refused(paths: JobPaths, name: str) -> None:
    jobdir = JobDir.take(paths)
    (paths.state / name).symlink_to(paths.output.parent / "precious")
    with pytest.raises(DiskProblem, match="not a plain file"):
        Ledger.open(jobdir.make_ledger_file())
    assert not (paths.output.parent / "precious").exists()
    jobdir.release()


# --- putting aside ---


def test_the_old_job_is_put_aside_under_one_dated_name_and_nothing_is_lost(paths: JobPaths) -> None:
    for now in (NOW, NOW):
        jobdir = JobDir.take(paths)
        paths.output.write_text("answers")
        paths.failures.write_text("failures")
        suffix = jobdir.free_suffix(now)
        jobdir.put_aside(suffix)
        jobdir.release()
        assert re.fullmatch(r"\.\d{8}T\d{6}\+*", suffix)
        assert Path(f"{paths.output}{suffix}").read_text() == "answers"
        assert Path(f"{paths.failures}{suffix}").read_text() == "failures"
        assert Path(f"{paths.state}{suffix}/lock").exists()
    assert len(list(paths.output.parent.iterdir())) == 6


def test_a_ledger_that_was_just_made_is_known_to_be_ours_when_a_signal_comes(paths: JobPaths) -> None:
    """Fails if the signal comes between the two: an empty ledger would stay, in the way of the job put aside."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    jobdir, close = JobDir.take(paths), os.close

    def interrupted(fd: int) -> None:
        close(fd)
        signal.raise_signal(signal.SIGTERM)

    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "close", interrupted)
            with pytest.raises(KeyboardInterrupt):
                jobdir.make_ledger_file()
    finally:
        signal.signal(signal.SIGTERM, before)
    jobdir.discard_if_made()
    assert not paths.state.exists()
    jobdir.release()


def test_a_state_that_cannot_be_locked_is_not_left_in_the_way(paths: JobPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the lock stays: the state that was to come back there would stay aside, its answers be paid again."""
    old = JobDir.take(paths)
    old.put_aside(".old")
    for call in ("pwrite", "open"):
        with monkeypatch.context() as broken:
            broken.setattr(os, call, full(getattr(os, call), paths.lock))
            with pytest.raises(DiskProblem, match="cannot be made"):
                JobDir.take(paths)
        assert not paths.state.exists()
    old.put_back(".old")
    assert paths.lock.exists()
    with pytest.raises(AlreadyRunning):
        JobDir.take(paths)
    for _ in range(2):
        old.release()
    JobDir.take(paths).release()


def full(call: Callable[..., Any], lock: Path) -> Callable[..., Any]:
    """A disk without room for the lock."""

    def refuses(target: Any, *given: Any, **named: Any) -> Any:
        if target == lock or given[1:] == (0,):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(target, *given, **named)

    return refuses


def test_a_job_without_failures_is_put_aside_too(paths: JobPaths) -> None:
    jobdir = JobDir.take(paths)
    suffix = jobdir.free_suffix(NOW)
    jobdir.put_aside(suffix)
    assert [entry.name for entry in paths.output.parent.iterdir()] == [f"out.jsonl.batchrun{suffix}"]
    jobdir.release()


def test_every_quarantine_has_a_name_of_its_own_in_a_private_folder(paths: JobPaths) -> None:
    jobdir = JobDir.take(paths)
    names = []
    for _ in range(3):
        names.append(jobdir.new_quarantine(NOW))
        names[-1].touch()
    assert len(set(names)) == 3
    assert paths.quarantine.stat().st_mode & 0o777 == 0o700
    jobdir.release()


def test_the_file_system_of_a_path_is_that_of_its_mount() -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
    assert file_system_of(Path("/")) not in ("", "proc")
