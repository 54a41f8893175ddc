"""The README: its commands run as they stand there, its figures and names are those of the program."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchrun import job
from batchrun.cli import demo
from batchrun.cli.demo import FAULTS, OUTPUT, RPS, sample_prompts
from batchrun.cli.run import config_of, run
from batchrun.summary import details, headline
from tests.docs.pages import README, ROOT, blocks, table
from tests.docs.test_exit_codes import documented_codes
from tests.scenarios.emulator import Emulator

SETS_UP = ("make ", "python3 -m venv ", "pip install ", "export ")
TIME = re.compile(r" {3}[0-9]+ s$")


def lines_to_type() -> list[str]:
    return [line for block in blocks(README, "sh") for line in block.splitlines() if line.strip()]


def commands() -> list[str]:
    return [line for line in lines_to_type() if not line.startswith(SETS_UP)]


class Reader:
    """Somebody who types the README's commands into one folder, from top to bottom, without an account.

    The lines are typed as they stand; the environment points them at the emulator.
    """

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder = folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHRUN_", "YC_"))}
        path = f"{sysconfig.get_path('scripts')}{os.pathsep}{clean['PATH']}"
        account = {"YC_API_KEY": "any", "YC_FOLDER_ID": "b1greadme"}
        self._environ = clean | account | {"PATH": path, "BATCHRUN_ENDPOINT": endpoint}
        (folder / "reviews.jsonl").write_text(blocks(README, "jsonl")[0], "utf-8")
        self.typed = {line: self._type(line) for line in commands()}

    def _type(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self._environ, capture_output=True, text=True, timeout=60
        )

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "answers.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    emulator = Emulator(tmp_path)
    emulator.begin()
    folder = tmp_path / "reader"
    folder.mkdir()
    yield Reader(folder, emulator.url)
    emulator.end()


def test_whoever_types_the_commands_of_the_readme_gets_what_it_shows(reader: Reader) -> None:
    assert len(reader.typed) >= 4
    for line, ran in reader.typed.items():
        is_question = line.startswith(("batchrun status", "batchrun verify")) or "--dry-run" in line
        assert (ran.returncode, ran.stderr, bool(ran.stdout)) == (0, "", is_question), line
    records = blocks(README, "jsonl")[0].splitlines()
    results = {result["line"]: result for result in reader.results()}
    assert sorted(results) == list(range(1, len(records) + 1))
    shown = json.loads(blocks(README, "json")[0])
    assert_same_but_for_what_a_model_says(shown, results[shown["line"]])


def assert_same_but_for_what_a_model_says(shown: dict[str, Any], written: dict[str, Any]) -> None:
    assert list(shown) == list(written)
    assert list(shown["usage"]) == list(written["usage"])
    differing = {name for name in shown if shown[name] != written[name]}
    assert differing <= {"text", "model_version", "usage", "operation_id", "submitted_at", "finished_at"}


def test_what_is_not_run_here_only_sets_up() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in lines_to_type():
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert words[1] in targets
        elif line.startswith("export"):
            assert {word.partition("=")[0] for word in words[1:]} == {"YC_API_KEY", "YC_FOLDER_ID"}


def test_the_transcript_is_what_the_demo_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transcript = blocks(README, "text")[0].splitlines()
    words = shlex.split(transcript[0])
    assert words[1:] == [
        *("sample_inputs/prompts.jsonl", "-o", str(OUTPUT), "--provider", "emulator"),
        *("--emulator-faults", FAULTS, "--rps", RPS),
    ]
    (tmp_path / OUTPUT.parent).mkdir()
    monkeypatch.chdir(tmp_path)
    faster = [str(ROOT / words[1]), *words[2:], "--rps", "400"]  # the faults do not depend on the pace

    summary = job.run(config_of(run.make_context("run", faster).params), {})

    assert len(sample_prompts().read_bytes().splitlines()) == sum(summary.counts.values()) == 200
    assert [TIME.sub("", line) for line in transcript[2:-2]] == [headline(summary), *details(summary)]
    assert transcript[-2] == f"answers  {OUTPUT}"
    assert all(f'"{line}"' in inspect.getsource(demo) for line in (transcript[1], transcript[-1]))


def test_the_options_of_the_readme_have_the_defaults_that_help_shows() -> None:
    help_text = " ".join(run.get_help(run.make_context("run", ["in.jsonl"])).split())
    for option, default, _ in table(README, "option"):
        shown = re.search(rf"{option} [A-Z]+ [^\[]*\[default: \(?([^;)\]]+)", help_text)
        assert shown is not None, option
        assert shown[1] == default.replace(" times ", " x "), option


def test_the_exit_codes_of_the_readme_are_those_of_the_program() -> None:
    codes = [int(code) for cell, *_ in table(README, "code") for code in cell.split(",")]
    assert sorted(codes) == sorted(documented_codes())
    again = {int(code) for cell, _, again in table(README, "code") if "as it is" in again for code in cell.split(",")}
    assert again == {75, 129, 130, 143}
