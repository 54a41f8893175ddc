"""Seeds for the tests that draw, and a last look through everything the tests have left: no credential stands in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

CREDENTIALS = re.compile(rb"that-nobody-may-see|b1g[0-9a-f]{17}")
"""In every key, and every folder of the service, that tests use for a whole job."""

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one is no failure
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=1, help="how often each test that draws is run")
    parser.addoption("--seed", type=int, default=0, help="the first seed: --seed 17 replays what failed with 17")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a ``seed`` is run with each."""
    if "seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("--seed")
        metafunc.parametrize("seed", range(first, first + metafunc.config.getoption("--seeds")))


@pytest.fixture(scope="session", autouse=True)
def no_credential_is_left_anywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Logs, ledgers, outputs, failures, state and captured screens: all that the tests of this process have made."""
    yield
    found = credentials_below(tmp_path_factory.getbasetemp())
    assert not found, f"credentials stand in {found}"


def is_small(path: Path) -> bool:
    """Whether it is a file, and not a hole as large as a disk."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30


def credentials_below(folder: Path) -> list[str]:
    """The files that hold one, by name or content."""
    return [
        str(path)
        for path in folder.rglob("*")
        if CREDENTIALS.search(os.fsencode(path.name)) or (is_small(path) and CREDENTIALS.search(content_of(path)))
    ]


def content_of(path: Path) -> bytes:
    """All of a file of ours, also of one that a test has forbidden us to read."""
    if not os.access(path, os.R_OK):
        path.chmod(0o600)
    return path.read_bytes()
