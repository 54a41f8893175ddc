"""Disks that fill up or fail: a small file system in memory, and calls that are changed inside the run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[Path]:
    """A file system of its own at this new folder."""
    folder.mkdir(mode=0o700)
    options = f"size={size_mib}m,mode=700"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, *, leave_mib: int = 0) -> Path:
    """Take all room but so much, at once. Deleting the file that is returned frees it again."""
    filler = folder / "filler"
    found = os.statvfs(folder)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave_mib * MIB)
    return filler


def with_changes(code: str) -> tuple[str, ...]:
    """The program that runs this code, which may replace any function, and then batchrun: for ``program=``."""
    return "-c", f"{code}\nfrom batchrun.__main__ import main\nmain()"
