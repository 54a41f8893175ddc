"""The output file: whole lines, synced once, at the end and nowhere else."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.errors import DiskProblem, InputProblem
from batchrun.storage.results import BLOCK_BYTES, Results, lines_of, read_back, write_at, write_new, writing

LINES = [b'{"line":1}\n', '{"line":2,"text":"да"}\n'.encode(), b"\n", b'{"line":4,"text":"' + b"x" * 5000 + b'"}\n']
WHOLE = b"".join(LINES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def results(path: Path) -> Iterator[Results]:
    results = Results.open(path, create=True)
    yield results
    results.close()


def raises(error: OSError) -> Callable[..., int]:
    def call(*args: object) -> int:
        raise error

    return call


# --- appending ---


def test_lines_are_appended_where_the_last_ended(results: Results, path: Path) -> None:
    places = results.append(LINES[:2]) + results.append(LINES[2:])
    assert path.read_bytes() == WHOLE
    assert results.end == results.size() == len(WHOLE)
    for line, place in zip(LINES, places, strict=True):
        assert WHOLE[place.offset : place.offset + place.length] == line
        assert place.crc32 == zlib.crc32(line)
        assert read_back(results.fd, place) == line


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_a_write_in_as_many_pieces_as_the_kernel_likes_is_whole(pieces: list[int]) -> None:
    sizes, real = cycle(pieces), os.pwrite

    def a_little(fd: int, data: memoryview, offset: int) -> int:
        return real(fd, bytes(data)[: next(sizes)], offset)

    with tempfile.TemporaryFile() as file:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwrite", a_little)
            write_at(file.fileno(), WHOLE[:1000], 7)
        assert file.read() == bytes(7) + WHOLE[:1000]


def test_short_writes_complete_every_line(results: Results, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[:7], offset))
    results.append(LINES)
    assert path.read_bytes() == WHOLE


def test_a_failed_sync_is_raised_and_never_tried_again(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    results.append(LINES[:1])
    tried: list[int] = []

    def broken(fd: int) -> None:
        tried.append(fd)
        raise OSError(errno.EIO, "the disk says no")

    monkeypatch.setattr(os, "fdatasync", broken)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="the disk says no"):
        results.append(LINES[1:])
    assert tried == [results.fd]
    assert results.end == len(LINES[0])  # what follows is not believed


def test_a_failed_write_leaves_the_end_where_it_was(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    results.append(LINES[:1])
    monkeypatch.setattr(os, "pwrite", raises(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        results.append(LINES[1:])
    assert results.end == len(LINES[0])


def test_every_append_is_synced_once_after_its_last_byte(
    results: Results, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable: list[bytes] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: durable.append(path.read_bytes()))
    results.append(LINES[:2])
    results.append(LINES[2:])
    assert durable == [b"".join(LINES[:2]), WHOLE]


def test_a_new_output_and_its_name_are_synced_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    Results.open(path, create=True).close()
    assert synced == [str(path.parent)]


def test_a_full_disk_is_told_in_words_with_the_remedy(path: Path) -> None:
    with pytest.raises(DiskProblem) as raised, writing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    problem = raised.value
    assert "No space left on device" in problem.cause
    assert "free some space" in problem.remedy
    assert problem.exit_code == 74


# --- has it been touched since? ---

TOUCHED = {
    "a byte changed": lambda data: data.replace(b"2", b"3", 1),
    "the end is missing": lambda data: data[: len(LINES[0]) + 5],
    "all is missing": lambda data: b"",
    "moved by a byte": lambda data: b" " + data,
}


@pytest.mark.parametrize("touch", TOUCHED.values(), ids=TOUCHED)
def test_a_line_that_was_touched_is_not_read_back(
    results: Results, path: Path, touch: Callable[[bytes], bytes]
) -> None:
    _, second = results.append(LINES[:2])
    path.write_bytes(touch(path.read_bytes()))
    assert read_back(results.fd, second) is None


# --- opening ---


def test_a_second_run_cannot_open_the_output(results: Results, path: Path) -> None:
    with pytest.raises(BlockingIOError):
        Results.open(path, create=False)


def test_a_run_in_another_process_cannot_open_the_output(results: Results, path: Path) -> None:
    code = f"from batchrun.storage.results import *; Results.open(Path({str(path)!r}), create=False)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 1
    assert "BlockingIOError" in child.stderr


def test_creating_never_takes_a_file_that_is_there(path: Path) -> None:
    path.write_bytes(b"precious\n")
    with pytest.raises(FileExistsError):
        Results.open(path, create=True)
    assert path.read_bytes() == b"precious\n"


def test_the_output_follows_the_umask_for_other_peoples_loaders_read_it(path: Path) -> None:
    before = os.umask(0o027)
    try:
        Results.open(path, create=True).close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def make_link(path: Path) -> None:
    (path.parent / "elsewhere").write_bytes(b"")
    path.symlink_to(path.parent / "elsewhere")


def make_second_name(path: Path) -> None:
    (path.parent / "elsewhere").write_bytes(b"")
    path.hardlink_to(path.parent / "elsewhere")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


NO_PLAIN_FILES: dict[str, tuple[Callable[[Path], None], type[Exception]]] = {
    "a link": (make_link, OSError),
    "a file with a second name": (make_second_name, InputProblem),
    "a FIFO": (make_fifo, InputProblem),
    "a directory": (Path.mkdir, OSError),
    "nothing": (lambda path: None, FileNotFoundError),
}


@pytest.mark.parametrize(("make", "refusal"), NO_PLAIN_FILES.values(), ids=NO_PLAIN_FILES)
def test_what_is_no_plain_file_is_refused(path: Path, make: Callable[[Path], None], refusal: type[Exception]) -> None:
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(refusal):
        Results.open(path, create=False)
    assert len(os.listdir("/proc/self/fd")) == before


# --- reading line by line ---

TEXTS = st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")), max_size=20)


@given(lines=TEXTS, rest=st.binary(max_size=40), start=st.integers(0, 50), block=st.integers(1, 30))
def test_every_line_is_read_with_its_offset_whatever_the_blocks(
    lines: list[bytes], rest: bytes, start: int, block: int
) -> None:
    data = bytes(start) + b"".join(line + b"\n" for line in lines) + rest
    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        os.pwrite(file.fileno(), data, 0)
        patch.setattr("batchrun.storage.results.BLOCK_BYTES", block)
        found = list(lines_of(file.fileno(), start))
    assert b"".join(line for _, line in found) == data[start:]
    assert [line.count(b"\n") for _, line in found[:-1]] == [1] * (len(found) - 1 if found else 0)
    assert [offset for offset, _ in found] == [
        start + sum(len(line) for _, line in found[:number]) for number in range(len(found))
    ]


def test_reading_ends_where_it_is_told_to(results: Results) -> None:
    results.append(LINES)
    assert [line for _, line in lines_of(results.fd, 0, len(LINES[0]) + 3)] == [LINES[0], LINES[1][:3]]


def test_a_line_longer_than_a_block_is_one_line(results: Results) -> None:
    long = b"x" * (2 * BLOCK_BYTES + 5) + b"\n"
    results.append([long, LINES[0]])
    assert list(lines_of(results.fd, 0)) == [(0, long), (len(long), LINES[0])]


# --- mending the tail ---


def test_what_is_kept_is_written_anew_and_synced_and_the_rest_is_put_aside(
    results: Results, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.append(LINES)
    aside = path.parent / "aside"
    start, end = len(LINES[0]), len(LINES[0]) + len(LINES[1])
    written: list[tuple[int, bytes, int]] = []
    synced: list[int] = []
    real_write, real_sync = os.pwrite, os.fdatasync

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        written.append((fd, bytes(data), offset))
        return real_write(fd, data, offset)

    def fdatasync(fd: int) -> None:
        synced.append(fd)
        real_sync(fd)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    assert results.keep_until(start, end, aside) == len(WHOLE) - end
    assert path.read_bytes() == WHOLE[:end]
    assert aside.read_bytes() == WHOLE[end:]
    assert aside.stat().st_mode & 0o777 == 0o600
    assert written[-1] == (results.fd, LINES[1], start)
    assert synced[-1] == results.fd
    assert len(synced) == 2
    assert results.end == end


def test_a_tail_that_is_all_good_is_written_anew_and_nothing_is_put_aside(results: Results, path: Path) -> None:
    results.append(LINES)
    assert results.keep_until(len(LINES[0]), len(WHOLE), path.parent / "aside") == 0
    assert path.read_bytes() == WHOLE
    assert not (path.parent / "aside").exists()


def test_nothing_is_cut_before_it_is_safe_elsewhere(
    results: Results, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.append(LINES)
    monkeypatch.setattr(os, "fdatasync", raises(OSError(errno.EIO, "no")))
    with pytest.raises(DiskProblem, match="Input/output error"):
        results.keep_until(0, len(LINES[0]), path.parent / "aside")
    assert path.read_bytes() == WHOLE


def test_what_is_not_durable_by_name_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raises(OSError(errno.EIO, "the disk")))
    with pytest.raises(OSError, match="the disk"):
        write_new(tmp_path / "new", LINES)
    assert list(tmp_path.iterdir()) == []


def test_what_was_put_aside_before_is_never_written_over(results: Results, path: Path) -> None:
    results.append(LINES)
    (path.parent / "aside").write_bytes(b"older")
    with pytest.raises(DiskProblem, match="File exists"):
        results.keep_until(0, len(LINES[0]), path.parent / "aside")
    assert (path.parent / "aside").read_bytes() == b"older"
    assert path.read_bytes() == WHOLE


@pytest.mark.parametrize("over", [0, 1, 17])
def test_a_long_tail_is_mended_in_pieces(results: Results, path: Path, over: int) -> None:
    kept, cut = b"k" * (2 * BLOCK_BYTES + over) + b"\n", b"c" * (BLOCK_BYTES + over)
    results.append([kept])
    write_at(results.fd, cut, len(kept))
    assert results.keep_until(0, len(kept), path.parent / "aside") == len(cut)
    assert path.read_bytes() == kept
    assert (path.parent / "aside").read_bytes() == cut
