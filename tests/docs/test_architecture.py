"""docs/architecture.md against record.py and the tree; docs/decisions/0004-pace.md against the constants."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import pytest

from batchrun import record
from batchrun.record import MOVES, PollPolicy, State
from batchrun.storage.jobdir import JobPaths
from tests.docs.pages import ROOT, table

PAGE = ROOT / "docs" / "architecture.md"
PACE = ROOT / "docs" / "decisions" / "0004-pace.md"


def states_in_code() -> dict[str, str]:
    """Each state and the comment beside it."""
    source = (ROOT / "batchrun" / "record.py").read_text("utf-8")
    return dict(re.findall(r'^    ([A-Z]+) = "[a-z]+"  # (.+)$', source, re.MULTILINE))


def test_each_state_means_in_the_docs_what_its_comment_says() -> None:
    assert set(states_in_code()) == set(State.__members__)
    assert {state: meaning for state, meaning, _ in table(PAGE, "state")} == states_in_code()


def test_the_moves_in_the_docs_are_the_legal_ones() -> None:
    documented = {
        State[state]: frozenset(State[name] for name in cell.split(", ") if name)
        for state, _, cell in table(PAGE, "state")
    }
    assert documented == MOVES


def test_every_module_of_the_table_is_there_and_none_is_left_out() -> None:
    named = {name for cell, _ in table(PAGE, "module") for name in cell.split(", ")}
    for name in named:
        assert (ROOT / name).exists(), name
    small = {"__init__.py", "__main__.py", "py.typed", "__pycache__", "channel.py", "log.py", "redact.py"}
    parts = {path.name for path in (ROOT / "batchrun").iterdir()} - small
    assert parts == {name.removeprefix("batchrun/").rstrip("/") for name in named}


def test_the_files_of_the_docs_are_those_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = JobPaths.of(ROOT / "OUTPUT")
    documented = {cell for cell, _ in table(PAGE, "path")}
    own = [
        paths.output,
        paths.new_output,
        paths.state,
        paths.ledger,
        paths.lock,
        paths.quarantine,
        paths.spool,
        paths.emulator_journal,
    ]
    named = {str(path.relative_to(ROOT)) for path in own}
    assert {cell.rstrip("/") for cell in documented if " " not in cell} == named
    assert f"OUTPUT without .jsonl + {paths.failures.name.removeprefix('OUTPUT')}" in documented


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, value, _ in table(PACE, "constant")])
def test_the_pace_in_the_docs_is_the_one_in_the_code(name: str, value: str) -> None:
    module, *path = name.split(".")
    held: Any = import_module(f"batchrun.{module}")
    for part in path:
        held = PollPolicy(retention_s=0.0) if held is record and part == "PollPolicy" else getattr(held, part)
    assert held == float(value)


def test_no_constant_of_the_pace_is_left_without_a_reason() -> None:
    named = {name for name, *_ in table(PACE, "constant")}
    source = (ROOT / "batchrun" / "pacing.py").read_text("utf-8")
    constants = {f"pacing.{name}" for name in re.findall(r"^([A-Z_0-9]+) = ", source, re.MULTILINE)} - {"pacing.HOUR_S"}
    policy = {f"record.PollPolicy.{name}" for name in PollPolicy.__slots__} - {"record.PollPolicy.retention_s"}
    assert constants | policy <= named
