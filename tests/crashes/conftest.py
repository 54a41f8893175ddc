"""The folder in which everything happens: in memory where there is such a place, for no real disk is tested here."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import credentials_below
from tests.crashes.job import Bench
from tests.crashes.sqlite_files import CannotWatch, find_file_layer

IN_MEMORY = Path("/dev/shm")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    if hasattr(fcntl, "F_FULLFSYNC"):
        pytest.skip("this system syncs by another call than those that are recorded")
    try:
        find_file_layer()
    except CannotWatch as reason:
        pytest.skip(str(reason))
    where = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Bench(Path(folder))
        found = credentials_below(Path(folder))
        assert not found, f"credentials stand in {found}"
