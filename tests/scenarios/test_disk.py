"""Disks that are full, slow or failing, and files that are not what they were: nothing is lost, nothing is hidden."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.scenarios.bench import Bench, as_owner, record, wait_until
from tests.scenarios.disks import fill, small_disk, with_changes
from tests.scenarios.test_output_changes import uncommit_the_last_line

UNWATCHED = with_changes("import batchrun.storage.disk as disk\ndisk.LOOK_EVERY_S = 3600")
"""A run that looks at the room on disk only when it starts: it meets the full disk when it writes."""


# --- full disks ---


def test_an_output_on_a_full_disk_ends_the_run_and_only_half_a_line_is_put_aside(bench: Bench) -> None:
    """Fails if ``_append`` lets the OSError through, or if ``_mend`` leaves the half line where it is."""
    long = {"note": "n" * 8000}  # more than the room left in the last page
    bench.lines(record("a"), record("b", **long), record("c", **long))
    bench.emulator.change(rules=[{"text": text, "p50": 4, "p99": 4} for text in "bc"])
    with small_disk(bench.folder / "small", 80) as small:
        bench.output = small / "out.jsonl"
        (small / "out.jsonl.batchrun").symlink_to(bench.state)  # where a verification looks
        elsewhere = ("-o", "small/out.jsonl", "--state-dir", "out.jsonl.batchrun")
        running = bench.start(*elsewhere, program=UNWATCHED)
        wait_until(lambda: bench.states() == {"done": 1, "open": 2}, "a is written", while_alive=running)
        committed = bench.output.read_bytes()
        filler = fill(small)
        ran = running.wait()
        assert ran.exit_code == 74
        assert "`small/out.jsonl` cannot be written (No space left on device); stopped" in ran.stderr
        assert bench.states() == {"done": 1, "open": 2}
        torn = bench.output.read_bytes().removeprefix(committed)
        assert torn
        filler.unlink()
        assert bench.resume().exit_code == 0
        [quarantined] = (bench.state / "quarantine").iterdir()
        assert quarantined.read_bytes() == torn
        assert bench.emulator.submissions == {"a": 1, "b": 1, "c": 1}
        assert {row["maybe_paid"] for row in bench.rows()} == {0}
        bench.check()


def test_a_ledger_on_a_full_disk_puts_only_what_was_on_its_way_in_doubt(bench: Bench) -> None:
    """Then, with little room, what is open is collected and nothing is sent.

    Fails if ``after_crash`` does not count, or if ``has_room`` does not look at the disk.
    """
    bench.records("a", "b", "c")
    late = {"p50": 4, "p99": 4}
    bench.emulator.change(**late, rules=[{"text": "b", "slow": 1, **late}])
    with small_disk(bench.state, 80):
        running = bench.start(program=UNWATCHED)
        wait_until(
            lambda: bench.emulator.submissions["b"] == 1 and bench.states()["open"] == 2,
            "a and c are open, and b is not yet answered",
            while_alive=running,
        )
        filler = fill(bench.state)
        ran = running.wait()
        filler.unlink()
        assert ran.exit_code == 74
        assert "cannot be used (SQLITE_FULL)" in ran.stderr
        assert bench.states() == {"open": 2, "intent": 1}

        bench.emulator.change(rules=[])
        filler = fill(bench.state, leave_mib=40)
        ran = bench.resume()
        assert ran.exit_code == 74
        assert "MiB are free" in ran.stderr
        assert bench.result_ids() == {"a", "c"}
        assert bench.emulator.submissions == {"a": 1, "b": 1, "c": 1}

        filler.unlink()
        assert bench.resume().exit_code == 0
        assert bench.emulator.submissions == {"a": 1, "b": 2, "c": 1}
        assert {row["id"]: row["maybe_paid"] for row in bench.rows()} == {"a": 0, "b": 1, "c": 0}
        bench.check()


def test_a_disk_that_is_nearly_full_stops_a_run_while_it_can_still_write(bench: Bench) -> None:
    """Fails if ``Disk.watch`` does not look at ``MUST_BE_FREE_BYTES``: the run would wait for its operations."""
    bench.records("a", "b")
    late = {"p50": 5, "p99": 5}
    bench.emulator.change(**late, rules=[{"text": "b", "slow": 2.5, **late}])
    with small_disk(bench.state, 80):
        running = bench.start()
        wait_until(lambda: bench.emulator.submissions["b"] == 1, "b is on its way", while_alive=running)
        filler = fill(bench.state, leave_mib=10)
        ran = running.wait()
        assert ran.exit_code == 74
        assert "MiB are free" in ran.stderr
        assert bench.states() == {"open": 2}
        filler.unlink()
        assert bench.resume().exit_code == 0
        assert bench.emulator.submissions == {"a": 1, "b": 1}
        assert {row["maybe_paid"] for row in bench.rows()} == {0}
        bench.check()


# --- limits ---


def test_a_limit_on_the_size_of_files_ends_a_run_in_words(bench: Bench) -> None:
    """Fails if ``_append`` or ``transaction`` does not translate its error, or if SIGXFSZ is no longer ignored."""
    bench.lines(*(record(f"prompt {number}") for number in range(12)), record("the last", note="n" * 1_000_000))
    in_doubt = 0
    for kib, said in (
        (70, "ledger.db` cannot be used (SQLITE_IOERR_WRITE)"),
        (900, "`out.jsonl` cannot be written (File too large)"),
    ):
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (kib << 10, kib << 10))
        ran = bench.run(before=limit, python=("-B",))  # the interpreter would leave cut bytecode behind
        assert ran.exit_code == 74
        assert said in ran.stderr
        assert len(ran.stderr.splitlines()) == 2
        in_doubt += bench.states()["intent"]
    assert bench.run().exit_code == 0
    assert sum(row["maybe_paid"] for row in bench.rows()) == in_doubt
    bench.check()


def test_a_run_out_of_descriptors_waits_for_them_and_pays_once(bench: Bench) -> None:
    """Fails if a POST that got no connection for want of a descriptor counts as ambiguous."""
    bench.records(*(f"prompt {number}" for number in range(12)))
    bench.emulator.change(slow=0.3)  # so that one connection is not enough
    running = bench.start_until("--rps", "10", "-v", "--log-file", "run.log", open=1)
    before = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    log = bench.folder / "run.log"
    wait_until(lambda: re.search("Unreachable|Ambiguous", log.read_text()) is not None, "a POST has failed")
    resource.prlimit(running.pid, resource.RLIMIT_NOFILE, before)
    assert running.wait().exit_code == 0
    assert set(bench.emulator.submissions.values()) == {1}
    assert {row["maybe_paid"] for row in bench.rows()} == {0}
    bench.check()


# --- calls that fail, or take their time ---


def test_writes_of_a_few_bytes_each_complete_every_line(bench: Bench) -> None:
    """Fails if ``write_at`` takes the first write for the whole."""
    bench.records("a", "b", "c")
    bench.emulator.change(rules=[{"text": "c", "fail": 1, "fail_code": 3}])
    few = "import os\nreal = os.pwrite\nos.pwrite = lambda fd, data, offset: real(fd, data[:7], offset)"
    assert bench.run(program=with_changes(few)).exit_code == 1
    assert bench.result_ids() == {"a", "b"}
    assert bench.kinds() == {"c": "invalid_argument"}
    bench.check()


def test_an_output_that_cannot_be_read_or_cut_stops_a_resume_before_anything_is_sent(finished: Bench) -> None:
    """Fails if ``_mend`` passes over an error."""
    finished.append("d")
    line = uncommit_the_last_line(finished)
    torn = finished.output.read_bytes()[:-9]
    finished.output.write_bytes(torn)
    for call, said in (("pread", "Input/output error"), ("ftruncate", "`out.jsonl` cannot be written (Input/output")):
        failing = f"""
import errno, os
real = os.{call}
def fail(*given):
    if given[-1] == 0:  # the lock is emptied, too
        return real(*given)
    raise OSError(errno.EIO, os.strerror(errno.EIO))
os.{call} = fail
"""
        ran = finished.run(program=with_changes(failing))
        assert ran.exit_code == 74
        assert said in ran.stderr
        assert finished.output.read_bytes() == torn
    assert finished.is_untouched()
    assert finished.emulator.count("polls_received") == 0
    assert finished.run().exit_code == 0
    assert finished.output.read_bytes().startswith(torn.removesuffix(line[:-9]))
    assert finished.emulator.submissions == dict.fromkeys("abcd", 1)
    finished.check()


def test_while_the_disk_hangs_a_signal_is_understood_and_nothing_more_is_sent(bench: Bench) -> None:
    """Fails if the output is synced in the event loop: no signal would be seen before the disk is back."""
    hanging = """
import os, time
real = os.fdatasync
def hang(fd):
    open("syncing", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    real(fd)
os.fdatasync = hang
"""
    bench.records(*(f"prompt {number}" for number in range(60)))
    running = bench.start("--rps", "10", "--log-file", "run.log", program=with_changes(hanging))
    wait_until((bench.folder / "syncing").exists, "the disk hangs", while_alive=running)
    sent = bench.emulator.count("submits_received")
    waited_from = time.monotonic()
    wait_until(lambda: time.monotonic() > waited_from + 0.5, "five more permits are given", while_alive=running)
    assert bench.emulator.count("submits_received") <= sent + 1, "an INTENT was committed while the disk hung"
    running.signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in bench.log(), "the signal is understood", while_alive=running)
    (bench.folder / "go").touch()
    ran = running.wait()
    assert ran.exit_code == 143
    assert len(ran.stderr.splitlines()) == 2
    assert bench.states()["intent"] == 0
    assert bench.states()["done"] >= 1
    sent = len(bench.emulator.submissions)
    assert sent == len(bench.rows()) < 60
    assert bench.run("--limit", str(sent)).exit_code == 0
    assert set(bench.emulator.submissions.values()) == {1}
    bench.check(unsent=60 - sent)


# --- files that cannot be written, or are not what they were ---


@contextmanager
def mode_of(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    yield
    path.chmod(before)


def test_a_file_or_folder_without_permission_stops_a_run_before_anything_is_sent(finished: Bench) -> None:
    """Fails if a file is opened only when it is first written to."""
    finished.append("d")
    (finished.folder / "closed").mkdir()
    (finished.folder / "empty.jsonl").touch()
    for path, mode, output, said in (
        ("out.jsonl", 0o400, "out.jsonl", "`out.jsonl` cannot be written (Permission denied)"),
        ("out.jsonl.batchrun", 0o500, "out.jsonl", "ledger.db` cannot be"),
        ("closed", 0o000, "closed/out.jsonl", "Permission denied"),
        ("closed", 0o500, "closed/out.jsonl", "`closed/out.jsonl.batchrun` cannot be made (Permission denied)"),
        ("empty.jsonl", 0o400, "empty.jsonl", "`empty.jsonl` cannot be written (Permission denied)"),
        ("closed", 0o700, "missing/out.jsonl", "there is no folder missing"),
    ):
        with mode_of(finished.folder / path, mode):
            ran = finished.run("-o", output, within=as_owner())
        assert (ran.exit_code, len(ran.stderr.splitlines())) == (74, 2), f"{path}: {ran}"
        assert said in ran.stderr
    assert finished.is_untouched()
    assert {path.name for path in finished.folder.glob("*")} == {
        *("in.jsonl", "out.jsonl", "out.jsonl.batchrun", "closed", "empty.jsonl", "captured")
    }
    assert finished.run().exit_code == 0
    assert finished.emulator.submissions == dict.fromkeys("abcd", 1)
    finished.check()


def overwrite(path: Path, start: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(length))


def another_output(bench: Bench) -> None:
    other = bench.folder / "other.jsonl"
    other.write_bytes(b"x" * (bench.output.stat().st_size - 1) + b"\n")
    other.replace(bench.output)


def broken_in_the_middle(bench: Bench) -> None:
    """A value that no start asks for, and a run that did not end well: then the whole ledger is looked at."""
    with bench.ledger(write=True) as connection:
        connection.execute("UPDATE run SET ended_at = NULL, exit_code = NULL")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE record SET attempt = 0")


def written_by_a_newer_version(bench: Bench) -> None:
    with bench.ledger(write=True) as connection:
        [version] = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version + 1}")


DAMAGE: dict[str, tuple[Callable[[Bench], object], int, str]] = {
    "another output of the same size": (another_output, 3, "was edited"),
    "no state": (lambda bench: shutil.rmtree(bench.state), 3, "no ledger that knows it"),
    "no ledger": (lambda bench: (bench.state / "ledger.db").unlink(), 3, "no ledger that knows it"),
    "no header": (lambda bench: overwrite(bench.state / "ledger.db", 0, 100), 74, "is damaged"),
    "broken in the middle": (broken_in_the_middle, 74, "is damaged"),
    "cut in half": (
        lambda bench: os.truncate(bench.state / "ledger.db", (bench.state / "ledger.db").stat().st_size // 2),
        74,
        "is damaged",
    ),
    "a newer version": (written_by_a_newer_version, 3, "was written by a newer batchrun"),
}


def test_a_job_is_not_finished_if_an_index_has_lost_one_of_its_rows(finished: Bench) -> None:
    """Fails if ``job.run`` believes ``tally`` what is DONE: a record that may have been paid would count as written."""
    ledger = finished.state / "ledger.db"
    with finished.ledger(write=True) as connection:
        [page] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'record_notable'").fetchone()
        [size] = connection.execute("PRAGMA page_size").fetchone()
        empty = ledger.read_bytes()[(page - 1) * size : page * size]
        connection.execute("UPDATE record SET state = 'intent' WHERE seq = 1")
    with ledger.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(empty)
    ran = finished.run()
    assert ran.exit_code == 74
    assert "rows that its index does not know" in ran.stderr
    assert finished.emulator.submissions == dict.fromkeys("abc", 1)


def files(bench: Bench) -> dict[str, bytes]:
    """Output and state; the lock names whoever was there last."""
    paths = [bench.output, *bench.state.rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file() and path.name != "lock"}


def test_an_output_or_a_ledger_that_was_damaged_or_exchanged_is_refused_and_left_as_it_is(finished: Bench) -> None:
    """Fails if ``open_output`` does not look at the last line, ``refuse_foreign_file`` at the output's size,
    ``_check_schema`` at the version, or ``close_the_books`` at the whole ledger."""
    finished.append("d")
    shutil.copytree(finished.state, finished.folder / "kept")
    shutil.copy(finished.output, finished.folder / "kept.jsonl")
    for name, (damage, exit_code, said) in DAMAGE.items():
        damage(finished)
        before = files(finished)
        ran = finished.run()
        assert ran.exit_code == exit_code, f"{name}: {ran}"
        assert said in ran.stderr, name
        assert files(finished).items() >= before.items(), name
        shutil.rmtree(finished.state, ignore_errors=True)
        shutil.copytree(finished.folder / "kept", finished.state)
        shutil.copy(finished.folder / "kept.jsonl", finished.output)
    assert finished.is_untouched()
    assert finished.run().exit_code == 0
    assert finished.emulator.submissions == dict.fromkeys("abcd", 1)
    finished.check()


def test_a_ledger_that_went_away_from_its_log_is_missed(bench: Bench) -> None:
    """Fails if ``check_files`` does not look for the log alone: SQLite would throw away what was paid."""
    bench.records("a", "b")
    bench.emulator.change(p50=3, p99=3)
    bench.kill_once(open=2)
    ledger, log, aside = bench.state / "ledger.db", bench.state / "ledger.db-wal", bench.folder / "aside"
    before = log.read_bytes()
    assert before
    ledger.rename(aside)
    for is_empty in (False, True):
        if is_empty:
            ledger.touch()
        ran = bench.run()
        assert ran.exit_code == 74
        assert "its ledger is gone or empty" in ran.stderr
        assert log.read_bytes() == before
    aside.replace(ledger)
    assert bench.run().exit_code == 0
    assert bench.emulator.submissions == {"a": 1, "b": 1}
    bench.check()


def test_a_ledger_that_forgot_where_to_go_on_does_not_end_as_if_all_were_done(bench: Bench) -> None:
    """Fails if a run that has nothing left to do does not count what was never sent."""
    bench.records("a", "b", "c")
    bench.expect("a", p50=2, p99=2)
    assert bench.start_until("--rps", "0.5", open=1).stop(signal.SIGTERM).exit_code == 143
    sent = len(bench.rows())
    with bench.ledger(write=True) as connection:
        line, offset = connection.execute("SELECT low_water_line, low_water_offset FROM job").fetchone()
        connection.execute("UPDATE job SET low_water_line = 4, low_water_offset = input_size")
    ran = bench.run()
    assert ran.exit_code == 74
    assert f"{3 - sent} were never sent" in ran.stderr
    with bench.ledger(write=True) as connection:
        connection.execute("UPDATE job SET low_water_line = ?, low_water_offset = ?", (line, offset))
    assert bench.run().exit_code == 0
    assert bench.emulator.submissions == {"a": 1, "b": 1, "c": 1}
    bench.check()


def test_a_database_that_is_no_ledger_is_refused_and_left_as_it_is(bench: Bench) -> None:
    """Fails if ``Ledger.open`` writes to a file before ``_check_schema`` has looked at it."""
    bench.records("a")
    bench.state.mkdir(mode=0o700)
    connection = sqlite3.connect(bench.state / "ledger.db")
    connection.execute("CREATE TABLE somebody (work TEXT)")
    connection.close()
    before = files(bench)
    ran = bench.run()
    assert ran.exit_code == 3
    assert "is not a ledger of batchrun" in ran.stderr
    assert files(bench) == before
