"""A bench for each test, and one emulator for all tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.bench import Bench
from tests.scenarios.emulator import Emulator


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    process = Emulator(tmp_path_factory.mktemp("emulator"))
    yield process
    process.end()


@pytest.fixture
def bench(tmp_path: Path, emulator: Emulator, request: pytest.FixtureRequest) -> Iterator[Bench]:
    emulator.begin()
    bench = Bench(tmp_path, emulator, request.node.nodeid)
    yield bench
    bench.end()


@pytest.fixture(scope="session")
def finished_job(tmp_path_factory: pytest.TempPathFactory, emulator: Emulator) -> tuple[Bench, bytes]:
    """A finished job of the records a, b and c, and the journal of its payments."""
    emulator.begin()
    job = Bench(tmp_path_factory.mktemp("finished"), emulator, "finished")
    job.records("a", "b", "c")
    assert job.run().exit_code == 0
    job.check()
    return job, emulator.journal()


@pytest.fixture
def finished(finished_job: tuple[Bench, bytes], bench: Bench) -> Bench:
    """A bench with a copy of the finished job of a, b and c."""
    bench.take_over(*finished_job)
    return bench
