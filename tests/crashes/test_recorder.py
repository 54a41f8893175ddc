"""What is recorded is what happened: all of it, in this order."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crashes.job import GIVEN, INPUT, Bench
from tests.crashes.recorder import Call, MakeDirectory, Rename, Sync, Truncate, Unlink, Write
from tests.crashes.replay import Disk, Kind
from tests.crashes.test_crashes import EITHER_RUN, Run

TRACED = {
    "pwrite64": "Write",
    "write": "Write",
    "fsync": "Sync",
    "fdatasync": "Sync",
    "ftruncate": "Truncate",
    "mkdir": "MakeDirectory",
    "rename": "Rename",
    "unlink": "Unlink",
    "rmdir": "Unlink",
}


@EITHER_RUN
def test_a_recording_replayed_is_what_stands_on_the_disk(bench: Bench, run: Run) -> None:
    recording = run(bench)
    assert Disk.after(recording.events, recording.start.disk).contents() == bench.found()


@pytest.mark.parametrize("call", list(Call))
def test_so_it_is_when_a_call_fails(bench: Bench, call: Call) -> None:
    recording = bench.record_refused(call, 0 if call is Call.UNLINK else 4)
    if recording is not None:
        assert Disk.after(recording.events).contents() == bench.found()


def test_a_kill_at_the_end_leaves_everything(bench: Bench) -> None:
    recording = bench.record()
    before = bench.found()
    *_, end = recording.crashes(Kind.KILL)
    end.disk.put_into(bench.folder, keep=GIVEN)
    assert bench.found() == before


def test_two_runs_do_the_same(bench: Bench) -> None:
    """So the crashes that a fixed seed selects are the same everywhere."""

    def steps() -> list[tuple[str, str]]:
        return [(type(event).__name__, getattr(event, "path", "")) for event in bench.record().events]

    assert steps() == steps()


def test_the_kernel_saw_what_was_recorded(bench: Bench, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None or platform.machine() != "x86_64":
        pytest.skip("there is no strace, or the calls have other names")
    log = tmp_path / "strace.log"
    command = [strace, "-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={','.join(TRACED)}"]
    script = f"from tests.crashes.test_recorder import show; show({str(bench.folder)!r})"
    child = subprocess.run([*command, sys.executable, "-c", script], capture_output=True, text=True)
    if "ptrace" in child.stderr:
        pytest.skip("strace may not trace here")
    assert child.returncode == 0, child.stderr
    assert traced(log, bench.folder) == child.stdout.splitlines()


def show(folder: str) -> None:
    """Print what a recorder sees of a whole run, in the words of ``traced``."""
    for event in Bench(Path(folder)).record().events:
        if isinstance(event, Write | Sync | Truncate | MakeDirectory | Rename | Unlink):
            print(type(event).__name__, event.path)


def traced(log: Path, folder: Path) -> list[str]:
    """The calls that changed the job's files or synced them, in the kernel's order; not those that failed."""
    ours = re.compile(rf'(\w+)\((?:\d+<|"){re.escape(str(folder))}(?:/([^">]*))?[">].* = \d+')
    calls = [call for line in log.read_text().splitlines() if (call := ours.search(line))]
    return [f"{TRACED[call[1]]} {call[2] or '.'}" for call in calls if not is_ours_alone(call[2] or "")]


def is_ours_alone(path: str) -> bool:
    """Made by the test, or SQLite's shared memory, which is not recorded."""
    return path == INPUT or path.endswith("-shm")
