"""Options with values that no person would type: refused in two lines, or taken for what they are."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import AsyncMock, patch

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.cli import emulator
from batchrun.cli.run import run
from batchrun.emulator import Settings
from tests.hostile import IS_LONG, drawn
from tests.hostile.here import Here, in_memory

OPTIONS = [param.opts[-1] for param in run.params if isinstance(param, click.Option) and not param.is_flag]
FLAGS = [param.opts[-1] for param in run.params if isinstance(param, click.Option) and param.is_flag]
STRANGE = (
    "",
    " ",
    "-",
    "--",
    "-1",
    "0",
    "1e999",
    "nan",
    "-inf",
    "9" * 5000,
    "0x10",
    "١٢",
    "true",
    "null",
    "x" * 300,
    "x" * 5000,
    "in.jsonl",
    "./in.jsonl",
    "out.jsonl",
    ".",
    "sub",
    "sub/x",
    "missing/x",
    "in.jsonl/x",
    "\udcff",
    "a\nb",
    "\x1b[2J",
    "\u202egnp",
    "@",
    "@missing",
    "@in.jsonl",
    "@.",
    "@\udcff",
    "https://",
    "http://127.0.0.1:99999",
    "http://[::1",
    "https://user:pass@host",
    "https://host/../..",
    "yandex",
    "emulator",
    "hold",
    "lost=2",
    "p50=nan",
    "seed=" + "9" * 400,
    "retention=-1,lost",
    "gpt:///",
    "://",
)
"""No NUL: no program can be given one."""
TELLING = (
    "",
    "-1",
    "nan",
    "1e999",
    "9" * 5000,
    "x" * 300,
    ".",
    "in.jsonl",
    "in.jsonl/x",
    "\udcff",
    "a\nb",
    "@.",
    "://",
)
VALUES = st.sampled_from(STRANGE) | st.text(
    st.characters(exclude_characters="\x00/", exclude_categories=["Cs"]), max_size=20
)


@pytest.fixture(autouse=True, scope="module")
def no_server_is_started() -> Iterator[None]:
    with patch.object(emulator, "serve", AsyncMock()):
        yield


def stays_here(value: str) -> bool:
    return not os.path.normpath(value).startswith(("..", "/"))


def names_something(value: str) -> bool:
    return stays_here(value) and Path(value).name != "" and len(value.splitlines()) == 1


@pytest.mark.parametrize("option", OPTIONS)
def test_any_strange_value_of_an_option_is_taken_or_refused_in_words(option: str) -> None:
    """Fails if its value is used before it was looked at."""
    with in_memory() as folder:
        here = Here(folder)
        here.records("a")
        (folder / "sub").mkdir()
        before = here.input.read_bytes()
        for number, value in enumerate(STRANGE if IS_LONG else TELLING):
            output = ("-o", f"{number}.jsonl") if option != "--output" else ()
            here("in.jsonl", *output, "--rps", "1000", option, value)
            assert here.input.read_bytes() == before, value


@given(st.lists(st.tuples(st.sampled_from(OPTIONS), VALUES), min_size=1, max_size=3), st.sets(st.sampled_from(FLAGS)))
@drawn(30)
def test_any_value_of_any_option_is_taken_or_refused_in_words(given: list[tuple[str, str]], flags: set[str]) -> None:
    """Fails if an option's value is used before it was looked at."""
    with in_memory() as folder:
        here = Here(folder)
        here.records("a", "b")
        (folder / "sub").mkdir()
        before = here.input.read_bytes()
        words = [word for option, value in given if stays_here(value) for word in (option, value)]
        here("in.jsonl", "-o", "answers.jsonl", "--rps", "1000", *words, *sorted(flags - {"--verbose"}))
        assert here.input.read_bytes() == before


@given(st.lists(VALUES.filter(stays_here), max_size=4))
@drawn(50)
def test_any_words_are_a_command_or_refused_in_words(words: list[str]) -> None:
    """Fails if a word that names no file and no command is no usage error."""
    with in_memory() as folder:
        here = Here(folder)
        (folder / "sub").mkdir()
        said = here.ended(*words)
        assert said.code in (0, 2, 74)
        assert "Traceback" not in said.out + said.err
        assert not here.service.submits


@given(
    st.sampled_from(["status", "verify", "emulator"]), st.lists(VALUES.filter(names_something), min_size=1, max_size=3)
)
@drawn(40)
def test_any_words_behind_a_verb_are_understood_or_refused_in_words(verb: str, words: list[str]) -> None:
    with in_memory() as folder:
        here = Here(folder)
        (folder / "sub").mkdir()
        here.records("a")
        said = here.ended(verb, *words)
        assert said.code in (0, 2, 74)
        assert len(said.err.splitlines()) <= 2
        assert "Traceback" not in said.out + said.err


@given(st.text(max_size=30) | st.from_regex(r"(p50|p99|lost|seed|rps|fail_code|status)=[-0-9.einfa_]{0,12}(,\w+=\w+)?"))
@drawn(80)
def test_any_faults_are_understood_or_refused_in_words(text: str) -> None:
    """Fails if the emulator takes a number that is none."""
    with suppress(ValueError):
        taken = Settings.parse(text)
        assert 0 <= taken.p50 < math.inf
        assert 0 <= taken.p99 < math.inf
        assert 0 <= taken.lost <= 1


@pytest.mark.parametrize(
    "words", [("status", ""), ("status", "."), ("verify", "/"), ("in.jsonl", "-o", ".", "--log-file", "run.log")]
)
def test_an_output_without_a_name_is_refused_in_words(words: tuple[str, ...]) -> None:
    """Fails if ``JobPaths.of`` names what stands beside a path without a look at the path."""
    with in_memory() as folder:
        here = Here(folder)
        here.records("a")
        assert here(*words).code == 2


def test_a_name_with_a_line_end_in_it_is_refused_in_two_lines() -> None:
    """Fails if the lines of a message are found by cutting it at line ends."""
    with in_memory() as folder:
        assert Here(folder)("verify", "a\nb").code == 2
