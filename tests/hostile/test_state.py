"""A folder laid out by somebody else: nothing of theirs is read, written or waited for, and nothing is sent."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from batchrun.emulator.operations import Book
from tests.hostile.here import Here, Said, in_memory

STATE = "out.jsonl.batchrun"
VICTIM = b'{"id": "v", "prompt": "precious"}\n' * 50


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def link_to_nowhere(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("nothing"))


def second_name(path: Path, victim: Path) -> None:
    os.link(victim, path)


def directory(path: Path, victim: Path) -> None:
    path.mkdir(mode=0o700)


def fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path, 0o600)


def listening(path: Path, victim: Path) -> None:
    with socket.socket(socket.AF_UNIX) as ear:
        before = Path.cwd()
        os.chdir(path.parent)  # the name of a socket may have 108 bytes
        ear.bind(path.name)
        os.chdir(before)


def device(path: Path, victim: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to make a device")
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero


def huge(path: Path, victim: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)
    path.chmod(0o600)


def unreadable(path: Path, victim: Path) -> None:
    if not os.geteuid():
        pytest.skip("needs a user who may not read everything")
    path.touch(0o000)


KINDS = (link, link_to_nowhere, second_name, directory, fifo, listening, device, huge, unreadable)
Kind = Callable[[Path, Path], None]

STOPS = {
    f"{STATE}/lock": {link, link_to_nowhere, second_name, directory, fifo, listening, device, unreadable},
    f"{STATE}/ledger.db": {*KINDS},
    f"{STATE}/ledger.db-wal": {*KINDS} - {huge},
    f"{STATE}/ledger.db-shm": {*KINDS} - {huge},
    f"{STATE}/ledger.db-journal": {*KINDS} - {huge},
    f"{STATE}/quarantine": {*KINDS} - {directory},
    f"{STATE}/spool": set(),
    "out.jsonl": {*KINDS},
    "out.errors.ndjson": {directory},
    ".out.errors.ndjson.new": {directory},
}
"""What keeps a run from sending anything; the rest is harmless, as a failures file that is replaced by a rename."""
AFTERWARDS = {("out.errors.ndjson", directory), (".out.errors.ndjson.new", directory)}
"""Noticed when the failures are written: what was sent is safe by then."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with an answer, a failure, a torn tail, and a record still to be sent."""
    here = Here(tmp_path_factory.mktemp("job"))
    here.input.write_text('{"id": "a", "prompt": "a"}\nno record\n{"id": "b", "prompt": "b"}\n')
    assert here.run("--limit", "2").code == 1
    with here.output.open("ab") as output:
        output.write(b'{"id": "b", "te')
    with closing(sqlite3.connect(here.state / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE run SET ended_at = NULL")  # killed, as one that leaves half a line
    return here.folder


@contextmanager
def nobody_waits() -> Iterator[Callable[[Path], None]]:
    """Whoever waits at one of these pipes is let go after two seconds, and found out."""
    pipes: list[Path] = []
    done = threading.Event()
    waited: list[Path] = []

    def let_go() -> None:
        done.wait(2)
        while not done.wait(0.05):
            for pipe in pipes:
                try:
                    os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                    waited.append(pipe)
                except OSError:  # nobody is there
                    pass

    watcher = threading.Thread(target=let_go)
    watcher.start()
    try:
        yield pipes.append
    finally:
        done.set()
        watcher.join()
    assert not waited, f"it would wait for ever at {waited[0].name}"


def laid_out(model: Path, folder: Path, name: str, kind: Kind) -> tuple[Here, Path]:
    """A copy of the job in which this name is of that kind; and the victim."""
    here = Here(Path(shutil.copytree(model, folder / "job")))
    victim = folder / "victim"
    victim.write_bytes(VICTIM)
    victim.chmod(0o600)
    path = here.folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    kind(path, victim)
    return here, victim


def cases() -> Iterator[object]:
    for name in STOPS:
        for kind in KINDS:
            yield pytest.param(name, kind, id=f"{name.removeprefix(STATE + '/')}-{kind.__name__}")


@pytest.mark.parametrize(("name", "kind"), [*cases()])
def test_a_name_that_is_not_what_it_should_be_harms_nobody(model: Path, name: str, kind: Kind) -> None:
    """Fails if a name is opened without a look at what it is, or its link is followed."""
    with in_memory() as folder, nobody_waits() as watch:
        here, victim = laid_out(model, folder, name, kind)
        if kind is fifo:
            watch(here.folder / name)
        here("status", "out.jsonl")
        if not (kind is huge and name == "out.jsonl"):
            here("verify", "out.jsonl")
        said = here.run()
        assert victim.read_bytes() == VICTIM
        assert sorted(path.name for path in folder.iterdir()) == ["job", "victim"]
        check_sent(here, name, kind, said)


def check_sent(here: Here, name: str, kind: Kind, said: Said) -> None:
    if kind in STOPS[name]:
        assert said.code in (2, 3, 74)
        assert here.service.submits == ((name, kind) in AFTERWARDS)
    else:
        assert said.code == 1
        assert [result["text"] for result in here.results()] == ["a", "b"]
        assert b"precious" not in here.output.read_bytes() + here.failures.read_bytes()


@pytest.mark.parametrize("kind", [link, link_to_nowhere, second_name, device, huge, unreadable])
def test_an_input_of_any_kind_is_read_as_a_file_or_refused(model: Path, kind: Kind) -> None:
    """Fails if a device is read."""
    with in_memory() as folder:
        here, victim = laid_out(model, folder, "in.jsonl", kind)
        assert here.run().code in (2, 3)
        assert not here.service.submits
        assert victim.read_bytes() == VICTIM


def test_verify_does_not_wait_at_a_pipe(model: Path) -> None:
    """Fails if the input is opened without ``O_NONBLOCK`` there."""
    with in_memory() as folder, nobody_waits() as watch:
        here, _ = laid_out(model, folder, "in.jsonl", fifo)
        watch(here.input)
        assert here("verify", "out.jsonl").code == 2


def journal_naming(victim: Path, ledger: Path) -> bytes:
    """A rollback journal with nothing to roll back, which says that it is one of several and names their head."""
    magic = bytes.fromhex("d9d505f920a163d7")
    page_bytes, name = 4096, os.fsencode(victim)
    header = magic + struct.pack(">IIIII", 0, 0, ledger.stat().st_size // page_bytes, 512, page_bytes)
    lock_page = (1 << 30) // page_bytes + 1
    tail = struct.pack(">I", lock_page) + name + struct.pack(">II", len(name), sum(name)) + magic
    return header.ljust(512, b"\x00") + tail


def test_no_journal_beside_the_ledger_makes_us_delete_a_file(model: Path) -> None:
    """Fails if nobody looks whether a journal names a head: SQLite deletes the file of that name."""
    with in_memory() as folder:
        here = Here(Path(shutil.copytree(model, folder / "job")))
        victim = folder / "victim"
        victim.write_bytes(VICTIM)
        (here.state / "ledger.db-journal").write_bytes(journal_naming(victim, here.state / "ledger.db"))
        here("status", "out.jsonl")
        here.run()
        assert victim.exists()


def test_an_output_that_is_now_elsewhere_is_not_followed(model: Path) -> None:
    """Fails if the output is opened without ``O_NOFOLLOW``: its bytes are right, so nothing else tells."""
    with in_memory() as folder:
        here = Here(Path(shutil.copytree(model, folder / "job")))
        before = here.output.read_bytes()
        here.output.rename(folder / "victim")
        here.output.symlink_to(folder / "victim")
        assert here.run().code == 3
        assert not here.service.submits
        assert (folder / "victim").read_bytes() == before


def elsewhere(state: Path) -> None:
    state.rename(state.with_name("moved"))
    state.symlink_to("moved")


def of_another(state: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to give a folder away")
    os.chown(state, 12345, -1)


@pytest.mark.parametrize("spoil", [elsewhere, of_another, lambda state: state.chmod(0o707)])
def test_a_state_that_others_could_change_is_not_used(model: Path, spoil: Callable[[Path], None]) -> None:
    """Fails if the folder of the state is followed through a link, or its owner or mode is not looked at."""
    with in_memory() as folder:
        here = Here(Path(shutil.copytree(model, folder / "job")))
        before = here.output.read_bytes()
        spoil(here.state)
        assert here.run().code == 74
        assert not here.service.submits
        assert here.output.read_bytes() == before


@pytest.mark.parametrize("kind", [link, link_to_nowhere, directory, listening])
def test_a_journal_of_the_emulator_is_never_written_through_a_link(kind: Kind) -> None:
    """Fails if the journal is opened without ``O_NOFOLLOW``."""
    with in_memory() as folder:
        victim = folder / "victim"
        victim.write_bytes(VICTIM)
        kind(folder / "emulator.jsonl", victim)
        with pytest.raises(OSError, match=r"emulator\.jsonl"):
            Book(folder / "emulator.jsonl")
        assert victim.read_bytes() == VICTIM
        assert not (folder / "nothing").exists()
