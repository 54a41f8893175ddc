"""Starts runs without their imports, which are most of a short run: one process has loaded them all, and forks.

Each run is still a process of its own, with its own folder, environment, output and end, and what it executes is
``python -m batchrun``. As a script, this file is the process that forks.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

MODULES = (
    *(f"batchrun.cli.{verb}" for verb in ("run", "resume", "retry", "check", "status", "verify", "export", "preview")),
    *("batchrun.job", "aiohttp", "uvloop", "jinja2.sandbox"),
)
MOST_BYTES = 1 << 20
NUMBER_BYTES = 4
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Forker:
    """The process that forks, seen from the tests."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests

    def start(
        self, words: Sequence[str], *, cwd: Path, env: Mapping[str, str], output: tuple[int, int], ignore: Sequence[int]
    ) -> Forked:
        """Run ``batchrun`` with these words. ``output`` are its standard output and error."""
        told, teller = socket.socketpair()
        with teller:
            request = {"words": words, "cwd": str(cwd), "env": dict(env), "ignore": [*map(int, ignore)]}
            socket.send_fds(self._requests, [json.dumps(request).encode(), b"\n"], [*output, teller.fileno()])
        return Forked(told)


@contextmanager
def open_forker(env: Mapping[str, str]) -> Iterator[Forker]:
    """The environment is for what modules look up when they are loaded."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        yield Forker(ours)
    process.wait(timeout=10)


class Forked:
    """A run at work, as ``subprocess.Popen`` shows one: its forker tells first its ID, and then how it ended."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        self._returncode: int | None = None
        self.pid = self._number()

    def poll(self) -> int | None:
        has_ended = self._returncode is None and select.select([self._told], [], [], 0)[0]
        return self.wait() if has_ended else self._returncode

    def wait(self, timeout: float | None = None) -> int:
        if self._returncode is None:
            self._told.settimeout(timeout)
            self._returncode = self._number()
            self._told.close()
        return self._returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _number(self) -> int:
        told = self._told.recv(NUMBER_BYTES)
        assert told, "the process that forks is gone"
        return int.from_bytes(told, sys.byteorder, signed=True)


# --- in the process that forks ---


def serve(requests: socket.socket) -> bool:
    """Fork for each request. Returns True in every run, ready to begin, and False here once no more can come."""
    running: dict[int, socket.socket] = {}
    has_ended, wake = socket.socketpair()
    for end in (has_ended, wake):
        end.setblocking(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake.fileno())
    while True:
        readable, _, _ = select.select([requests, has_ended], [], [])
        if has_ended in readable:
            has_ended.recv(MOST_BYTES)
            tell_ends(running)
        if requests in readable:
            request, fds, _, _ = socket.recv_fds(requests, MOST_BYTES, 3)
            if not request:
                return False
            assert request.endswith(b"\n"), "half a request"
            out, err, teller = fds
            pid = os.fork()
            if not pid:
                for opened in (requests, has_ended, wake, *running.values()):
                    opened.close()
                os.close(teller)
                get_ready(json.loads(request), out, err)
                return True
            os.close(out)
            os.close(err)
            running[pid] = socket.socket(fileno=teller)
            tell(running[pid], pid)


def tell_ends(running: dict[int, socket.socket]) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with running.pop(pid) as teller:
                tell(teller, os.waitstatus_to_exitcode(status))


def tell(teller: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it any more
        teller.send(number.to_bytes(NUMBER_BYTES, sys.byteorder, signed=True))


def get_ready(request: Any, out: int, err: int) -> None:
    """Be what the interpreter would be as it comes to the first line of batchrun."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in request["ignore"] else signal.SIG_DFL)
    if signal.SIGINT not in request["ignore"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for fd, stands_for in ((out, 1), (err, 2)):
        os.dup2(fd, stands_for)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[0] = request["cwd"]
    sys.argv = ["batchrun", *request["words"]]


def main() -> None:
    for name in MODULES:
        with suppress(ImportError):  # uvloop may not be there
            import_module(name)
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        is_run = serve(requests)
    if is_run:
        runpy.run_module("batchrun", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
