"""Who may know whom: imports point one way, SQL and HTTP stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import batchrun
from batchrun.storage.jobdir import JobPaths

from .jobfiles import make_ledger

ROOT = Path(batchrun.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
PURE = ("batchrun.record", "batchrun.pacing", "batchrun.lines", "batchrun.inputs")
LEVELS = {
    **dict.fromkeys(("errors", "redact", "record", "pacing", "lines", "inputs", "channel", "emulator"), 0),
    **dict.fromkeys(("log", "stop"), 1),
    **dict.fromkeys(("storage", "providers"), 2),
    **dict.fromkeys(("config", "check", "spool", "template", "intake", "tail", "recovery"), 3),
    **dict.fromkeys(("reader", "submitter", "tracker", "writer", "run", "summary", "verify", "export"), 3),
    "job": 4,
    "cli": 5,
    **dict.fromkeys(("api", "__main__"), 6),
}
"""Nobody imports what stands on a higher level; `batchrun` itself holds the public names only."""


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imported(module: str) -> Iterator[str]:
    """The modules that a module imports, wherever in it."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            name = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                yield full if (full := f"{name}.{alias.name}") in MODULES else name


def ours(module: str) -> set[str]:
    return {name for name in imported(module) if name.split(".")[0] == "batchrun"} - {module}


def level(module: str) -> int:
    return LEVELS[module.split(".")[1]] if "." in module else 0


def test_the_pure_modules_know_nothing_but_the_record() -> None:
    assert {module: ours(module) for module in PURE} == {
        "batchrun.record": set(),
        "batchrun.pacing": set(),
        "batchrun.lines": {"batchrun.record"},
        "batchrun.inputs": {"batchrun.lines", "batchrun.record"},
    }


@pytest.mark.parametrize("module", ["batchrun.errors", "batchrun.channel", "batchrun.redact"])
def test_nothing_of_ours_is_needed_by(module: str) -> None:
    assert ours(module) <= {"batchrun.errors"}


def test_the_emulator_is_a_second_opinion_and_knows_only_itself() -> None:
    for module in MODULES:
        if module.startswith("batchrun.emulator"):
            assert {name for name in ours(module) if not name.startswith("batchrun.emulator")} == set(), module


def test_imports_point_one_way() -> None:
    upwards = [
        (module, name) for module in MODULES for name in ours(module) if "." in module and level(name) > level(module)
    ]
    assert upwards == []


def test_no_module_imports_itself_round_a_corner() -> None:
    """But for the package: its public names are loaded when they are used."""
    TopologicalSorter({module: ours(module) - {"batchrun"} for module in MODULES}).prepare()


def speaks_sql(module: str) -> bool:
    if "sqlite3" in imported(module):
        return True
    return any(
        (isinstance(node, ast.Attribute) and node.attr in ("execute", "executemany", "executescript"))
        or (isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".sql"))
        for node in ast.walk(tree_of(module))
    )


def test_only_storage_speaks_sql() -> None:
    speakers = {module for module in MODULES if speaks_sql(module)}
    assert {name for name in speakers if not name.startswith("batchrun.storage.")} == set()
    assert "batchrun.storage.ledger" in speakers


def test_only_one_file_and_the_emulator_know_aiohttp() -> None:
    knowing = {module for module in MODULES if any(name.split(".")[0] == "aiohttp" for name in imported(module))}
    assert {name for name in knowing if not name.startswith("batchrun.emulator")} == {"batchrun.providers.http"}


# --- what a command costs before it begins, and the package ---

COMMAND = """
import sys
from batchrun.cli import main
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def modules_of(folder: Path, *arguments: str) -> set[str]:
    """Run a command in a process of its own; the libraries it needed."""
    environment = {"PATH": "", "PYTHONPATH": str(ROOT.parent)}
    command = [sys.executable, "-c", COMMAND, *arguments]
    child = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert child.returncode == 0, child.stderr
    return set(child.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("run", "--help"),
        ("status", "out.jsonl"),
        ("run", "empty.jsonl", "-o", "answers.jsonl"),
        ("resume", "."),
    ],
    ids=["--help", "run --help", "status", "a run with nothing to do", "a resume with nothing to do"],
)
def test_a_command_that_sends_nothing_loads_no_http(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    paths = JobPaths.of(tmp_path / "out.jsonl")
    paths.state.mkdir(mode=0o700)
    with closing(make_ledger(paths.ledger)) as ledger, ledger.transaction():
        ledger.save(input_inode=1, input_mtime_ns=1, input_size=0, input_digest=b"", input_records=0)
    (tmp_path / "empty.jsonl").touch()
    loaded = modules_of(tmp_path, *arguments)
    assert "click" in loaded
    assert loaded.isdisjoint({"aiohttp", "uvloop", "yarl"})


@pytest.mark.parametrize(
    ("statement", "unloaded"),
    [
        ("import batchrun", {"asyncio", "click", "orjson", "sqlite3", "aiohttp"}),
        ("import batchrun; batchrun.Client(api_key='k', folder_id='f')", {"click", "rich", "aiohttp", "uvloop"}),
    ],
    ids=["the package", "a client that is not open"],
)
def test_the_package_loads_what_is_used(statement: str, unloaded: set[str]) -> None:
    script = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    child = subprocess.run([sys.executable, "-c", script], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert unloaded.isdisjoint(child.stdout.split())
