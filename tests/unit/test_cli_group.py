"""The command as a whole: what runs when no verb is named, what a typo leads to, what every --help looks like."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import batchrun
from batchrun.cli import VERBS, main
from batchrun.cli.run import run
from batchrun.log import LOGGER

NAMES = [*VERBS]


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """``batchrun ...`` in an empty folder and a clean environment."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("BATCHRUN_", "YC_")):
            monkeypatch.delenv(name)
    loggers = LOGGER, logging.getLogger()
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]

    def call(*arguments: str) -> Said:
        monkeypatch.setattr("sys.argv", ["batchrun", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return Said(int(left.value.code or 0), said.out, said.err)

    yield call
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('"one"\n"two"\n')
    return path


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    """An input with nothing to send, so that a run is over at once."""
    path = tmp_path / "empty.jsonl"
    path.touch()
    return path


# --- without a verb ---


def test_a_file_without_a_verb_is_run(command: Command, prompts: Path, tmp_path: Path) -> None:
    emulated = ("--provider", "emulator", "--emulator-faults", "p50=0,p99=0", "--rps", "1000")
    assert command("in.jsonl", "-o", "out.jsonl", *emulated).code == 0
    assert len([json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]) == 2


SAME = {
    "no output": ("in.jsonl",),
    "no such file": ("missing.jsonl", "-o", "out.jsonl"),
    "an unknown option": ("in.jsonl", "--no-such-option"),
    "an option first": ("--limit", "0", "in.jsonl"),
}


@pytest.mark.parametrize("arguments", SAME.values(), ids=SAME)
def test_with_and_without_run_is_the_same(command: Command, prompts: Path, arguments: tuple[str, ...]) -> None:
    with_verb, without = command("run", *arguments), command(*arguments)
    assert with_verb == without
    assert with_verb.code == 2


VERBOSE = {
    "before": ("-v", "empty.jsonl", "-o", "out.jsonl"),
    "between": ("empty.jsonl", "-v", "-o", "out.jsonl"),
    "after": ("empty.jsonl", "-o", "out.jsonl", "--verbose"),
    "with the verb": ("run", "-v", "empty.jsonl", "-o", "out.jsonl"),
}


@pytest.mark.parametrize("arguments", VERBOSE.values(), ids=VERBOSE)
def test_verbose_may_stand_anywhere(command: Command, nothing: Path, arguments: tuple[str, ...]) -> None:
    said = command(*arguments)
    assert said.code == 0
    assert "recovered" in said.err


def test_a_file_called_like_nothing_else_is_run_whatever_its_name(command: Command, tmp_path: Path) -> None:
    (tmp_path / "stats").write_text('"one"\n')
    assert "where should the answers go?" in command("stats").err
    assert "no such file" in command("./statsu", "-o", "out.jsonl").err


# --- typos ---

TYPOS = {
    "sttus": "status",
    "statu": "status",
    "verfy": "verify",
    "rum": "run",
    "emulater": "emulator",
}


@pytest.mark.parametrize(("word", "verb"), TYPOS.items(), ids=TYPOS)
def test_a_mistyped_verb_is_told_what_was_meant(command: Command, word: str, verb: str) -> None:
    said = command(word, "answers.jsonl")
    assert said.code == 2
    assert said.err.splitlines()[0] == f"error: no command and no file is called '{word}'"
    assert said.err.splitlines()[1].startswith(f"  did you mean: batchrun {verb}")
    assert said.out == ""


def test_a_word_like_no_verb_is_told_where_the_verbs_are(command: Command) -> None:
    said = command("frobnicate")
    assert said.code == 2
    assert "batchrun --help" in said.err


# --- the environment ---


def test_an_option_may_come_from_the_environment(
    command: Command, nothing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHRUN_RPS", "-1")
    said = command("empty.jsonl", "-o", "out.jsonl")
    assert said.code == 2
    assert "--rps" in said.err
    monkeypatch.setenv("BATCHRUN_RPS", "1000")
    monkeypatch.setenv("BATCHRUN_OUTPUT", "out.jsonl")
    assert command("empty.jsonl").code == 0


def test_a_flag_wins_over_the_environment(command: Command, nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHRUN_RPS", "-1")
    assert command("empty.jsonl", "-o", "out.jsonl", "--rps", "1").code == 0


def test_money_is_not_spent_again_because_of_the_environment(
    command: Command, nothing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("empty.jsonl", "-o", "out.jsonl").code == 0
    for name in ("NEW_RUN", "IF_FINISHED", "REBUILD_OUTPUT", "ACCEPT_CHANGED"):
        with monkeypatch.context() as changed:
            changed.setenv(f"BATCHRUN_{name}", "new")
            said = command("empty.jsonl", "-o", "out.jsonl")
        assert (said.code, f"BATCHRUN_{name} is set" in said.err, "by hand" in said.err) == (2, True, True)
    assert len(list(tmp_path.glob("out.jsonl*"))) == 2  # the output and its state, nothing put aside


def test_collecting_begins_no_job(command: Command, nothing: Path, tmp_path: Path) -> None:
    for others in ((), ("--new-run",), ("--if-finished", "new")):
        said = command("empty.jsonl", "-o", "out.jsonl", "--collect-only", *others)
        assert (said.code, said.out) == (2, "")
    assert list(tmp_path.iterdir()) == [nothing]


def test_a_folder_without_jobs_has_nothing_to_go_on_with(command: Command, tmp_path: Path) -> None:
    assert command("resume", str(tmp_path)) == Said(0, "", f"batchrun: no job below {tmp_path}\n")
    assert "typo has no job" in command("resume", "typo/").err
    assert "one output" in command("resume", str(tmp_path), "--state-dir", "state").err


# --- help ---


@pytest.mark.parametrize("columns", ["40", "80", "300"])
@pytest.mark.parametrize("verb", [(), *((name,) for name in NAMES)], ids=["batchrun", *NAMES])
def test_help_fits_100_columns_and_is_no_error(
    command: Command, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    said = command(*verb, "--help")
    assert (said.code, said.err) == (0, "")
    assert max(len(line) for line in said.out.splitlines()) <= 100
    assert command(*verb, "-h") == said


def test_help_names_every_verb_with_a_sentence(command: Command) -> None:
    said = command("--help").out
    for name, text in VERBS.items():
        assert re.search(rf"^ +{name} +{re.escape(text[:40])}", said, re.MULTILINE), name


def test_every_option_of_run_stands_in_its_help(command: Command) -> None:
    said = command("run", "--help").out
    options = [option for parameter in run.params if isinstance(parameter, click.Option) for option in parameter.opts]
    assert [option for option in (*options, "-h", "--help") if not re.search(rf"{option}[ ,\n]", said)] == []


def test_without_arguments_the_help_is_shown(command: Command) -> None:
    said = command()
    assert "batchrun prompts.jsonl -o answers.jsonl" in said.out + said.err


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version(command: Command, flag: str) -> None:
    assert command(flag) == Said(0, f"batchrun {batchrun.__version__}\n", "")


# --- problems ---


def test_a_problem_is_two_lines_and_a_code(command: Command, prompts: Path) -> None:
    said = command("status", prompts.name)
    assert said.code == 2
    assert re.fullmatch(rf"error: {prompts.name} has no job .*\n  .+\n", said.err)
    assert said.out == ""


def test_a_bug_leaves_its_details_in_a_private_file(
    command: Command, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("with the key Api-Key AQVNsecretsecretsecret")

    monkeypatch.setattr("batchrun.job.run", broken)
    said = command("in.jsonl", "-o", "out.jsonl")
    (log,) = tmp_path.glob("batchrun-bug-*.log")
    assert said.code == 70
    assert log.name in said.err
    assert "RuntimeError" in log.read_text()
    assert "AQVNsecret" not in log.read_text() + said.err
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_plain_input_needs_no_temporary_folder(
    command: Command, nothing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a run, or a look, asks for a place that only a copy of an archive needs."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError("no folder")))
    assert command("empty.jsonl", "-o", "out.jsonl").code == 0
    assert command("check", "empty.jsonl").code == 0
