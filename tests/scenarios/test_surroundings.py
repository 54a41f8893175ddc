"""What is around a run: a terminal that goes away, a pause, readers and children; and a bug in any part of it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import termios
import time

import pytest

from tests.scenarios.bench import KEY, Bench, Running, wait_until
from tests.scenarios.disks import with_changes
from tests.scenarios.emulator import operations_in


def own_terminal() -> None:
    """Make what the new process prints to its controlling terminal, as a login does."""
    os.setsid()
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)


def start_on_a_terminal(bench: Bench, ignore: tuple[int, ...]) -> tuple[Running, int]:
    here, there = pty.openpty()
    env = {**bench.environment, "TERM": "xterm"}
    running = bench.spawn(*bench.command(), env=env, shown_on=there, ignore=ignore, before=own_terminal)
    os.close(there)
    return running, here


def test_a_terminal_that_is_closed_ends_a_run_well_unless_hangups_are_ignored(bench: Bench) -> None:
    """Fails if SIGHUP is not among ``SIGNALS``, or if the screen stops a run that nobody can watch any more."""
    bench.records("a", "b", "c")
    bench.emulator.change(p50=3, p99=3)
    for ignore, exit_code in (((), 129), ((signal.SIGHUP,), 0)):
        running, terminal = start_on_a_terminal(bench, ignore)
        wait_until(lambda: bench.states()["open"] > 0, "one is open", while_alive=running)
        assert b"in.jsonl" in os.read(terminal, 4096)
        os.close(terminal)
        assert running.wait().exit_code == exit_code
    assert bench.emulator.submissions == {"a": 1, "b": 1, "c": 1}
    bench.check()


def test_a_terminal_that_goes_away_before_anything_was_shown_does_not_stop_a_run(bench: Bench) -> None:
    """Fails if any line of the screen is printed outside its ``suppress(OSError)``."""
    bench.records("a")
    here, there = pty.openpty()
    os.close(here)
    seen = with_changes("import sys\nsys.stderr.isatty = lambda: True")  # it was there when the run looked
    running = bench.spawn(*bench.command(), program=seen, shown_on=there)
    os.close(there)
    assert running.wait().exit_code == 0
    bench.check()


def test_a_run_that_was_stopped_for_a_while_does_not_make_up_for_the_time(bench: Bench) -> None:
    """Fails if the pacer hands out the permits of the time that has passed: ``start`` in ``Pacer.take``."""
    bench.records(*(f"prompt {number}" for number in range(30)))
    running = bench.start_until("--rps", "10", open=3)
    running.signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    wait_until(lambda: time.monotonic() > stopped_at + 3, "30 permits have gone by")
    running.signal(signal.SIGCONT)
    assert running.wait().exit_code == 0
    accepted_at = [operation["accepted_at"] for operation in operations_in(bench.emulator.journal())]
    busiest = max(sum(start <= at < start + 1 for at in accepted_at) for start in accepted_at)
    assert busiest <= 10 + 5  # a machine under load delivers late, and then together
    assert set(bench.emulator.submissions.values()) == {1}
    bench.check()


def test_what_a_library_has_to_say_is_not_shown(bench: Bench) -> None:
    """Fails if ``main`` leaves logging's last resort in place, which prints warnings as they are."""
    bench.records("a")
    chatty = "import logging, batchrun.job; batchrun.job.loop_factory = lambda: logging.getLogger('x').warning('AQVN')"
    ran = bench.run(program=with_changes(chatty))
    assert (ran.exit_code, ran.stderr) == (0, "")
    bench.check()


def test_no_open_file_is_handed_down_to_a_child(bench: Bench) -> None:
    """A child would keep lock and output locked. Fails if any file of a run is made inheritable."""
    if not os.path.isdir("/proc/self/fdinfo"):
        pytest.skip("needs /proc, to see the flags of another process's files")
    bench.records("a")
    running = bench.start_until("--log-file", "run.log", open=1)
    handed_down = []
    for name in os.listdir(f"/proc/{running.pid}/fdinfo"):
        with open(f"/proc/{running.pid}/fdinfo/{name}") as file:
            flags = next(int(line.split()[1], 8) for line in file if line.startswith("flags:"))
        if int(name) > 2 and not flags & os.O_CLOEXEC:
            handed_down.append(os.readlink(f"/proc/{running.pid}/fd/{name}"))
    assert handed_down == []
    assert running.wait().exit_code == 0
    bench.check()


def test_a_reader_that_looks_at_one_moment_all_the_time_does_not_disturb_a_run(finished: Bench) -> None:
    """Fails if a checkpoint that a reader holds up is an error."""
    finished.append("d", "e")
    with finished.ledger() as reader:
        reader.execute("BEGIN")
        seen = reader.execute("SELECT count(*) FROM record").fetchone()[0]
        assert finished.run().exit_code == 0
        assert reader.execute("SELECT count(*) FROM record").fetchone()[0] == seen == 3
    assert finished.emulator.submissions == dict.fromkeys("abcde", 1)
    finished.check()


BUGS = {
    "recovery": ("batchrun.recovery", "settle_input", 0),
    "reader": ("batchrun.reader", "Reader._record", 1),
    "submitter": ("batchrun.submitter", "Submitter._open", 1),
    "tracker": ("batchrun.tracker", "Tracker._note", 1),
    "writer": ("batchrun.storage.thread", "Storage.write_lines", 1),
    "storage thread": ("batchrun.storage.ledger", "Ledger.record_done", 1),
    "watcher": ("batchrun.storage.disk", "Disk._look", 1),
}
"""Where, and after how many calls that go well."""


def bug_in(module: str, function: str, after: int) -> str:
    """Code that makes a function raise what quotes the key."""
    return f"""
import os
import {module} as module
calls, real = iter(range({after})), module.{function}
def fail(*given, **named):
    if next(calls, None) is None:
        raise RuntimeError("boom " + os.environ["YC_API_KEY"])
    return real(*given, **named)
module.{function} = fail
"""


def test_a_bug_in_any_part_ends_the_run_and_the_next_continues_it(bench: Bench) -> None:
    """Fails if the storage thread dies of an exception that is no problem of the disk, or if ``LineFormatter`` does
    not redact a traceback."""
    bench.records("the first")
    for place, bug in BUGS.items():
        bench.append(*(f"{place} {number}" for number in range(3)))
        ran = bench.run(program=with_changes(bug_in(*bug)))
        assert ran.exit_code == 70, f"{place}: {ran}"
        assert ran.stderr.startswith("error: this is a bug in batchrun ("), place
        assert len(ran.stderr.splitlines()) == 2, place
        [details] = bench.folder.glob("batchrun-bug-*.log")
        assert "RuntimeError: boom [redacted]" in details.read_text(), place
        assert KEY not in details.read_text() + ran.stderr
        details.unlink()
    assert bench.run().exit_code == 0
    bench.check()
