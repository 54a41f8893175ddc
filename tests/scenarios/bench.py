"""The test bench: a folder, an emulator, and the real command line as a process that may be killed at any moment.

``check`` is what every scenario ends with: no record lost or doubled, no second payment without its flag.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchrun.cli.verify import verify
from tests.scenarios.emulator import Emulator, operations_in
from tests.scenarios.forker import Forked, Forker

KEY = "scenario-key-that-nobody-may-see"
FAST = ("--rps", "500", "--read-rps", "2000", "--rph", "1000000")
PATIENCE_S = 30.0
PASSING_CODES = frozenset({2, 4, 8, 13, 14, 15})
LOOK_EVERY_S = 0.004
PLAIN = (sys.executable, "-m", "batchrun")
NO_AUTHORITIES = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
"""Nobody whom the system trusts takes part, and to read them all is a sixth of the work of a short run."""


def wait_until(holds: Callable[[], bool], what: str, *, while_alive: Running | None = None) -> None:
    """The only place where time passes: look again and again until it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if while_alive is not None and not while_alive.is_alive and not holds():
            raise AssertionError(f"the run ended before {what}: {while_alive.wait()}")
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(LOOK_EVERY_S)


@dataclass(frozen=True)
class Ran:
    """A run that has ended. A signal that killed it is a negative exit code."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def is_silent(self) -> bool:
        return not self.stdout and not self.stderr


class Running:
    """A run at work. What it prints is kept in files."""

    def __init__(
        self,
        command: list[str],
        *,
        cwd: Path,
        env: dict[str, str],
        captured: Path,
        ignore: tuple[int, ...] = (),
        shown_on: int | None = None,
        before: Callable[[], None] | None = None,
        forker: Forker | None = None,
    ) -> None:
        self._captured = captured
        self._began_at = time.monotonic()
        self._process: subprocess.Popen[bytes] | Forked
        with captured.with_suffix(".out").open("wb") as out, captured.with_suffix(".err").open("wb") as err:
            if forker is not None:
                output = out.fileno(), err.fileno()
                self._process = forker.start(command, cwd=cwd, env=env, output=output, ignore=ignore)
                return
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out if shown_on is None else shown_on,
                stderr=err if shown_on is None else shown_on,
                preexec_fn=lambda: _get_ready(ignore, before),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> Ran:
        """Wait for its end."""
        exit_code = self._process.wait(timeout=60)
        seconds = time.monotonic() - self._began_at
        return Ran(
            exit_code,
            self._captured.with_suffix(".out").read_text(),
            self._captured.with_suffix(".err").read_text(),
            seconds,
        )

    def stop(self, number: int) -> Ran:
        """Send a signal and wait for the end; ``seconds`` count from the signal."""
        self._began_at = time.monotonic()
        self.signal(number)
        return self.wait()


def _get_ready(ignore: tuple[int, ...], before: Callable[[], None] | None) -> None:
    """A run starts with the signals of an interactive shell, however the tests were started."""
    if before is not None:
        before()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number in ignore else signal.SIG_DFL)


def as_owner() -> tuple[str, ...]:
    """A command in which permissions hold, for root as well."""
    if os.geteuid():
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, to be stopped by permissions as root")
    return "setpriv", "--bounding-set", "-dac_override,-dac_read_search"


class Bench:
    """One job in one folder: ``in.jsonl`` -> ``out.jsonl``."""

    def __init__(self, folder: Path, emulator: Emulator, name: str, forker: Forker | None = None) -> None:
        self.folder = folder
        self.forker = forker
        self.emulator = emulator
        self.endpoint = emulator.url
        self.cloud_folder = "b1g" + hashlib.sha256(name.encode()).hexdigest()[:17]
        self.input = folder / "in.jsonl"
        self.output = folder / "out.jsonl"
        self.state = folder / "out.jsonl.batchrun"
        self._captured = folder / "captured"
        self._captured.mkdir(exist_ok=True)
        self._runs: list[Running] = []
        self._options: tuple[str, ...] = ()

    # --- the input ---

    def records(self, *texts: str) -> None:
        """An input with these prompts, each its own id."""
        self.lines(*map(record, texts))

    def lines(self, *lines: str) -> None:
        """An input of these lines, written over the file that is there."""
        self.input.write_text("".join(f"{line}\n" for line in lines))

    def append(self, *texts: str) -> None:
        with self.input.open("a") as file:
            file.writelines(f"{record(text)}\n" for text in texts)

    def expect(self, text: str, **faults: Any) -> None:
        """Give one prompt faults of its own, the others none."""
        self.emulator.change(rules=[{"text": text, **faults}])

    # --- runs ---

    def start(self, *options: str, **surroundings: Any) -> Running:
        """Start ``batchrun in.jsonl -o out.jsonl`` with these options, in such surroundings (see ``spawn``)."""
        self._options = options
        return self.spawn(*self.command(*options), **surroundings)

    def command(self, *options: str) -> list[str]:
        where = () if "--provider" in options else ("--endpoint", self.endpoint)
        return ["in.jsonl", "-o", "out.jsonl", *where, *FAST, *options]

    def spawn(
        self,
        *words: str,
        env: dict[str, str] | None = None,
        ignore: tuple[int, ...] = (),
        python: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "batchrun"),
        within: tuple[str, ...] = (),
        shown_on: int | None = None,
        before: Callable[[], None] | None = None,
    ) -> Running:
        """Start any batchrun command: forked where there is a forker and nothing of the following is asked for.

        Args:
            ignore: Signals it inherits as ignored.
            python: Options for the interpreter.
            program: What the interpreter runs: batchrun, or a script that changes its surroundings and then runs it.
            within: A command that runs the interpreter, as ``unshare`` does.
            shown_on: A terminal or pipe for what it prints, instead of files.
            before: Done in the new process just before it becomes the command: limits, another user.
        """
        captured = self._captured / str(len(self._runs))
        interpreter = (*within, sys.executable, *python, *program)
        if self.forker is not None and (interpreter, env, shown_on, before) == (PLAIN, None, None, None):
            running = Running(
                [*words], cwd=self.folder, env=self.environment, captured=captured, ignore=ignore, forker=self.forker
            )
        else:
            running = Running(
                [*interpreter, *words],
                cwd=self.folder,
                env=self.environment if env is None else env,
                captured=captured,
                ignore=ignore,
                shown_on=shown_on,
                before=before,
            )
        self._runs.append(running)
        return running

    def run(self, *options: str, **surroundings: Any) -> Ran:
        """Run the job to its end."""
        return self.start(*options, **surroundings).wait()

    def resume(self) -> Ran:
        """The same command again."""
        return self.run(*self._options)

    def retry(self, *options: str) -> Ran:
        return self.spawn("retry", "out.jsonl", *options).wait()

    def verify(self) -> Ran:
        return self.spawn("verify", "out.jsonl").wait()

    def start_until(self, *options: str, ignore: tuple[int, ...] = (), **states: int) -> Running:
        """Start, and wait until the ledger shows so many records: ``start_until(open=3)``."""
        running = self.start(*options, ignore=ignore)
        self.wait_for(running, **states)
        return running

    def wait_for(self, running: Running, **states: int) -> None:
        """Wait until the ledger shows so many records."""
        wanted = Counter(states)
        wait_until(lambda: self.states() >= wanted, f"the ledger shows {states}", while_alive=running)

    def kill_once(self, *options: str, **states: int) -> None:
        """Start, and SIGKILL as soon as the ledger shows so many records."""
        assert self.start_until(*options, ignore=(), **states).stop(signal.SIGKILL).exit_code == -signal.SIGKILL

    @property
    def environment(self) -> dict[str, str]:
        """A bare environment with credentials."""
        return {**self.environment_without_credentials, "YC_API_KEY": KEY, "YC_FOLDER_ID": self.cloud_folder}

    @property
    def environment_without_credentials(self) -> dict[str, str]:
        return {"PATH": os.defpath, "HOME": str(self.folder), "LANG": "C.UTF-8", **NO_AUTHORITIES}

    def end(self) -> None:
        """Kill what a failed test left behind."""
        for running in self._runs:
            if running.is_alive:
                running.stop(signal.SIGKILL)

    # --- what a run leaves ---

    def results(self) -> list[dict[str, Any]]:
        return _json_lines(self.output)

    def result_ids(self) -> set[Any]:
        return {result["id"] for result in self.results()}

    def failures(self) -> list[dict[str, Any]]:
        return _json_lines(self.folder / "out.errors.ndjson")

    def kinds(self) -> dict[Any, str]:
        """Why each failed record failed, by id."""
        return {failure["id"]: failure["error"]["kind"] for failure in self.failures()}

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the ledger, in the order of their lines; none while there is no ledger."""
        try:
            with self.ledger() as connection:
                found = [dict(row) for row in connection.execute("SELECT * FROM record ORDER BY line")]
        except sqlite3.OperationalError:
            return []
        return [{**row, "id": None if row["id"] is None else json.loads(row["id"])} for row in found]

    def row(self, id: str) -> dict[str, Any]:
        return next(row for row in self.rows() if row["id"] == id)

    def states(self) -> Counter[str]:
        """How many records the ledger shows in each state."""
        try:
            with self.ledger() as connection:
                return Counter(dict(connection.execute("SELECT state, count(*) FROM record GROUP BY state").fetchall()))
        except sqlite3.OperationalError:
            return Counter()

    @contextlib.contextmanager
    def ledger(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """The ledger: for reading beside a live run, or for writing when none is at work."""
        uri = f"{(self.state / 'ledger.db').as_uri()}?mode={'rw' if write else 'ro'}"
        connection = sqlite3.connect(uri, uri=True)
        connection.row_factory = sqlite3.Row
        with contextlib.closing(connection), connection:
            yield connection

    def log(self) -> list[str]:
        """The events in ``run.log``, where a test sent the log."""
        return [line.split()[2] for line in (self.folder / "run.log").read_text().splitlines()]

    # --- what always holds ---

    def check(self, *, journal: Path | None = None, unsent: int = 0) -> None:
        """Each record stands once in output or failures, and no payment is hidden.

        Args:
            journal: That of an emulator which ran inside the job.
            unsent: Records at the end of the input that were not to be sent.
        """
        accepted = self.emulator.journal() if journal is None else journal.read_bytes()
        self._check_records(unsent)
        self._check_payments(accepted)
        self._check_ledger()
        self._check_secrets()

    def _check_records(self, unsent: int) -> None:
        lines = [number for number, line in enumerate(self.input.read_bytes().split(b"\n"), 1) if line.strip()]
        wanted = Counter(row["line"] for row in self.rows())
        assert wanted == Counter(lines[: len(lines) - unsent])
        names = Counter(str(row["id"] or row["line"]) for row in self.rows())
        assert Counter(str(each["id"] or each["line"]) for each in (*self.results(), *self.failures())) == names

    def _check_payments(self, journal: bytes) -> None:
        """An operation that failed in passing is not charged."""
        operations = operations_in(journal)
        paid = Counter(operation["text"] for operation in operations if not _is_free(operation))
        text_of_operation = {operation["id"]: operation["text"] for operation in operations}
        lines = self.input.read_bytes().split(b"\n")
        for row in self.rows():
            text = _prompt(lines[row["line"] - 1])[:200]
            allowed = 1 + row["maybe_paid"]
            assert paid[text] <= allowed, f"{text!r} was paid {paid[text]} times, the ledger allows {allowed}"
            if row["state"] == "done":
                assert text_of_operation[row["operation_id"]] == text, "the answer to another prompt"
        written = Counter(result["operation_id"] for result in self.results())
        assert written == Counter(row["operation_id"] for row in self.rows() if row["state"] == "done")

    def _check_ledger(self) -> None:
        with self.ledger() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        verified = CliRunner().invoke(verify, [str(self.output)])
        assert verified.exit_code == 0, verified.exception or verified.output

    def _check_secrets(self) -> None:
        """Neither key nor folder stands in any file, nor in anything that was printed."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert KEY.encode() not in content, path
                assert self.cloud_folder.encode() not in content, path

    def is_untouched(self) -> bool:
        """Whether nothing at all was sent."""
        return self.emulator.count("submits_received") == 0

    # --- a job that is finished already ---

    def take_over(self, other: Bench, journal: bytes) -> None:
        """Go on with a copy of another bench's job, for which ``journal`` was paid."""
        shutil.copytree(other.folder, self.folder, dirs_exist_ok=True)
        with self.ledger(write=True) as connection:
            connection.execute("UPDATE job SET input_inode = ?", (self.input.stat().st_ino,))
        self.emulator.remember(journal)


def record(text: str, **fields: Any) -> str:
    """An input line: a prompt that is its own id."""
    return json.dumps({"id": text, "prompt": text, **fields})


def _is_free(operation: dict[str, Any]) -> bool:
    """Whether an operation of the emulator's journal has failed, or will fail, in passing."""
    return operation["ending"] == "fail" and operation["fail_code"] in PASSING_CODES


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _prompt(line: bytes) -> str:
    """The prompt of an input line of any shape, or its last message; of a bad line, nothing."""
    try:
        parsed = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(parsed, dict):
        return str(parsed)
    asked = parsed.get("input") or parsed.get("body") or parsed
    last = (asked.get("messages") or asked.get("request") or [{}])[-1] if isinstance(asked, dict) else {}
    said = last.get("text", last.get("content")) if isinstance(last, dict) else None
    if isinstance(said, list):
        return "\n".join(part.get("text", "") for part in said)
    named = ("prompt", "requestText", "request_text") if isinstance(asked, dict) else ()
    return str(said or next((asked[name] for name in named if name in asked), ""))
