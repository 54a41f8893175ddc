"""A bench for each test; one emulator, and one process that forks the runs, for all tests of a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.bench import NO_AUTHORITIES, Bench
from tests.scenarios.emulator import Emulator
from tests.scenarios.forker import Forker, open_forker


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    process = Emulator(tmp_path_factory.mktemp("emulator"))
    yield process
    process.end()


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker | None]:
    """None where everything is asked for: then each run is an interpreter of its own."""
    if os.environ.get("FAULTS") == "all":
        yield None
        return
    with open_forker({"PATH": os.defpath, "LANG": "C.UTF-8", **NO_AUTHORITIES}) as forker:
        yield forker


@pytest.fixture
def bench(tmp_path: Path, emulator: Emulator, forker: Forker | None, request: pytest.FixtureRequest) -> Iterator[Bench]:
    emulator.begin()
    bench = Bench(tmp_path, emulator, request.node.nodeid, forker)
    yield bench
    bench.end()


@pytest.fixture(scope="session")
def finished_job(
    tmp_path_factory: pytest.TempPathFactory, emulator: Emulator, forker: Forker | None
) -> tuple[Bench, bytes]:
    """A finished job of the records a, b and c, and the journal of its payments."""
    emulator.begin()
    job = Bench(tmp_path_factory.mktemp("finished"), emulator, "finished", forker)
    job.records("a", "b", "c")
    assert job.run().exit_code == 0
    job.check()
    return job, emulator.journal()


@pytest.fixture
def finished(finished_job: tuple[Bench, bytes], bench: Bench) -> Bench:
    """A bench with a copy of the finished job of a, b and c."""
    bench.take_over(*finished_job)
    return bench
