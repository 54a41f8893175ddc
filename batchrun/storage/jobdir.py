"""A job's places on disk: names, locks, and the checks before anything is trusted."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import stat
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from io import FileIO
from itertools import takewhile
from pathlib import Path
from shlex import quote
from typing import Self

from batchrun.errors import DiskProblem, TryLater, UsageProblem
from batchrun.stop import signals_held
from batchrun.storage.ledger import check_files, files_of
from batchrun.storage.results import AS_IT_IS, blocks_of, sync_directory, write_anew, writing

LOCK_TRIES = 5
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p2000", "fuse.sshfs", "fuse.rclone"})


class AlreadyRunning(TryLater):
    """Another process works on this job. ``since`` is its start in Unix seconds, where it could be read."""

    def __init__(self, paths: JobPaths, holder: dict[str, object]) -> None:
        since, pid = holder.get("started_at"), holder.get("pid")
        self.since = since if isinstance(since, int) and 0 <= since < 1 << 33 else None
        who = f" by process {pid} on {holder.get('host')}" if isinstance(pid, int) else " by another run"
        when = f" since {datetime.fromtimestamp(self.since):%H:%M}" if self.since is not None else ""
        remedy = "wait for it" + f", or: batchrun status {paths.named}" * bool(holder)  # else it may have another state
        super().__init__(f"`{paths.output}` is in use{who}{when}", remedy=remedy)


@dataclass(frozen=True, slots=True)
class JobPaths:
    """Every path of a job, from the one the user gave."""

    output: Path
    failures: Path
    state: Path

    @classmethod
    def of(cls, output: Path, state_dir: Path | None = None) -> Self:
        if output.name in ("", "-"):
            raise UsageProblem(f"'{output}' is not the name of a file", remedy="name the one with the answers")
        state = state_dir or _state_of(output.parent, output.name)
        if state.resolve() in (Path.cwd(), *output.resolve().parents):
            raise UsageProblem(f"the state cannot be in '{state}', where other files are", remedy="name a new folder")
        if output.name.endswith(".errors.ndjson"):
            raise UsageProblem(f"'{output}' is a name for failures", remedy="choose another -o")
        return cls(output, output.with_name(f"{output.name.removesuffix('.jsonl')}.errors.ndjson"), state)

    @property
    def named(self) -> str:
        """The words that name this job to another command."""
        is_elsewhere = self.state != _state_of(self.output.parent, self.output.name)
        return quote(str(self.output)) + f" --state-dir {quote(str(self.state))}" * is_elsewhere

    @property
    def ledger(self) -> Path:
        return self.state / "ledger.db"

    @property
    def lock(self) -> Path:
        return self.state / "lock"

    @property
    def beside_it(self) -> tuple[Path, ...]:
        """Output and failures, and what they are called while they are made."""
        return self.output, self.new_output, self.failures, self.new_failures

    @property
    def twin(self) -> Path:
        """The state of the other output whose failures would stand in the same file: `x` beside `x.jsonl`."""
        stem = self.failures.name.removesuffix(".errors.ndjson")
        return _state_of(self.output.parent, stem + ".jsonl" * (stem == self.output.name))

    @property
    def new_failures(self) -> Path:
        return self.failures.with_name(f".{self.failures.name}.new")

    @property
    def new_output(self) -> Path:
        """The output to be, while lines are taken out of it."""
        return self.output.with_name(f".{self.output.name}.new")

    @property
    def quarantine(self) -> Path:
        return self.state / "quarantine"

    @property
    def spool(self) -> Path:
        return self.state / "spool"

    @property
    def emulator_journal(self) -> Path:
        return self.state / "emulator.jsonl"


def _state_of(folder: Path, output: str) -> Path:
    """Where the state of an output stands, if nobody named another place."""
    return folder / f"{output}.batchrun"


class JobDir:
    """The locked state directory. The lock file stays while the job does: a deleted lock could be held twice."""

    def __init__(self, paths: JobPaths, lock_fd: int, *, was_made: bool) -> None:
        self.paths = paths
        self._was_made = was_made
        self._made_ledger = False
        self._lock_fd = lock_fd

    @classmethod
    def take(cls, paths: JobPaths) -> Self:
        """Make the directory if need be, check it, and lock it.

        Raises:
            AlreadyRunning: another process holds the lock.
            DiskProblem: it cannot be made, or cannot be trusted.
        """
        was_made = _make_private_directory(paths.state)
        with ExitStack() as refused:
            try:
                fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | AS_IT_IS, 0o600)
                refused.callback(os.close, fd)
                _lock(fd)
                found = os.fstat(fd)
                if not os.path.exists(paths.lock) or not os.path.samestat(found, os.stat(paths.lock)):
                    raise AlreadyRunning(paths, {})  # discarded between open and lock
                if was_made:
                    refused.callback(_discard, paths)
                if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                    raise DiskProblem(f"{paths.lock} is not a plain file of one name", remedy="move it away")
                holder = {"pid": os.getpid(), "host": socket.gethostname(), "started_at": int(time.time())}
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps(holder).encode(), 0)
            except BlockingIOError as error:
                raise AlreadyRunning(paths, read_holder(paths)) from error
            except OSError as error:  # a full disk, or no plain file
                if was_made:
                    with suppress(OSError):
                        paths.state.rmdir()
                raise _cannot(paths.lock, error) from error
            refused.pop_all()
        return cls(paths, fd, was_made=was_made)

    def make_ledger_file(self) -> Path:
        """The ledger's file, with its mode before SQLite writes to it (its log inherits the mode).

        Its name is durable with the first commit: SQLite syncs the directory together with the log. The log that a
        killed run left is made durable before anybody believes it: a gap in it would also hide what comes after.
        """
        path = self.paths.ledger
        check_files(path)
        with writing(path), suppress(FileNotFoundError):
            log = os.open(f"{path}-wal", os.O_RDWR | AS_IT_IS)
            try:
                frames = takewhile(any, blocks_of(log, 0))  # where zeros begin, SQLite reads no further
                write_anew(log, 0, sum(map(len, frames)))
            finally:
                os.close(log)
        try:
            with signals_held():
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                self._made_ledger = True
        except FileExistsError:
            pass
        except OSError as error:
            raise _cannot(path, error) from error
        return path

    def new_quarantine(self, now: float) -> Path:
        """A fresh name for bytes cut from the output."""
        _make_private_directory(self.paths.quarantine)
        stamp = datetime.fromtimestamp(now).strftime("%Y%m%dT%H%M%S")
        with writing(self.paths.quarantine):
            taken = len(os.listdir(self.paths.quarantine))
        return self.paths.quarantine / f"{stamp}-{taken}"

    def put_aside(self, suffix: str) -> None:
        """Rename output, failures and state directory, all with one suffix.

        The state directory goes last: until then the next start sees a job whose output is gone. The names are durable
        when those of the new job are, which is before anything is sent.
        """
        for path in self._all():
            if path == self.paths.state:
                sync_directory(self.paths.output.parent)  # no output may come back without its ledger
            if os.path.lexists(path):
                os.rename(path, f"{path}{suffix}")

    def put_back(self, suffix: str) -> None:
        """Undo ``put_aside``, in the other order, while its lock is held. Anything in the way leaves the rest aside."""
        with suppress(OSError):
            for path in reversed(self._all()):
                if os.path.lexists(f"{path}{suffix}") and not os.path.lexists(self.paths.output):
                    os.rename(f"{path}{suffix}", path)

    def free_suffix(self, now: float) -> str:
        """A dated one that none of the job's files has."""
        suffix = datetime.fromtimestamp(now).strftime(".%Y%m%dT%H%M%S")
        while any(os.path.lexists(f"{path}{suffix}") for path in self._all()):
            suffix += "+"
        return suffix

    def _all(self) -> tuple[Path, ...]:
        return self.paths.output, self.paths.new_output, self.paths.failures, self.paths.state

    def discard_if_made(self) -> None:
        """Leave nothing behind of a job that was refused at its first start, before anything was sent."""
        with suppress(OSError):
            if self._made_ledger:  # one that was there is never ours to delete
                for path in files_of(self.paths.ledger):
                    path.unlink(missing_ok=True)
            if self._was_made:
                self.paths.spool.unlink(missing_ok=True)
                _discard(self.paths)

    def release(self) -> None:
        """Let go of the lock; once more does nothing."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd = -1


def _discard(paths: JobPaths) -> None:
    """Delete the lock, which we hold, and its folder if nothing else is in it."""
    with suppress(OSError):
        paths.lock.unlink(missing_ok=True)
        paths.state.rmdir()


def read_holder(paths: JobPaths) -> dict[str, object]:
    """Who says to hold the lock; empty if it cannot be read."""
    try:
        with _opened_lock(paths) as lock:
            holder = json.loads(lock.read(1000) or b"")
        return holder if isinstance(holder, dict) else {}
    except (OSError, ValueError):
        return {}


def is_locked(paths: JobPaths) -> bool:
    """Whether a run is at work on this job right now."""
    try:
        with _opened_lock(paths) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _opened_lock(paths: JobPaths) -> FileIO:
    return FileIO(paths.lock, opener=lambda path, _: os.open(path, os.O_RDONLY | AS_IT_IS))


def _lock(fd: int) -> None:
    for _ in range(LOCK_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)  # `status` and others hold it for a moment, to see whether it is free
    raise BlockingIOError


def _make_private_directory(path: Path) -> bool:
    """Make a 0700 directory, or check the one that is there. True if it was made."""
    was_made = False
    try:
        _check_parent(path.parent)
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
            was_made = True
        sync_directory(path.parent)  # also if it was there: who made it may have been killed before this
        found = os.lstat(path)
    except OSError as error:
        raise _cannot(path, error) from error
    if not stat.S_ISDIR(found.st_mode):
        raise DiskProblem(f"`{path}` is not a directory", remedy="move it away, or --state-dir")
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise DiskProblem(f"`{path}` is open to other users", remedy=f"chmod 700 {path}, if it is yours")
    return was_made


def _check_parent(parent: Path) -> None:
    mode = parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise DiskProblem(f"anyone may rename files in `{parent}`", remedy=f"chmod o-w {parent}, or another folder")
    kind = file_system_of(parent)
    if kind in NETWORK_FILE_SYSTEMS:
        raise DiskProblem(f"`{parent}` is on {kind}; its locks cannot be trusted", remedy="--state-dir on a local disk")


def file_system_of(path: Path) -> str:
    """The type of the mount that holds the path, as Linux names it; empty where there is no mount table."""
    try:
        table = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    wanted = str(path.resolve())
    best, kind = "", ""
    for line in table.splitlines():
        head, _, tail = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), head.split()[4])
        if (wanted == mount or wanted.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, tail.split()[0]
    return kind


def _cannot(path: Path, error: OSError) -> DiskProblem:
    reason = os.strerror(error.errno or 0)
    return DiskProblem(f"`{path}` cannot be made ({reason})", remedy="choose another place with -o or --state-dir")
