"""A template's file: its head, its text, and what is wrong with them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from batchrun.cli.run import config_of, run
from batchrun.errors import Interrupted, UsageProblem
from batchrun.job import _interrupt
from batchrun.lines import BadLine
from batchrun.record import Settings
from batchrun.stop import on_signals
from batchrun.template import compiled, read_template

HEAD = """+++
system = "S"
model = "m/latest"
schema = {type = "object"}
[options]
temperature = 0
max_tokens = 5
+++
"""


def test_the_text_stays_as_it_is_but_for_the_end_of_its_file_and_keeps_its_lines(tmp_path: Path) -> None:
    (tmp_path / "t.j2").write_text(HEAD + "<b>{{ a }}\n\n")
    assert compiled(read_template(tmp_path / "t.j2").text)({"a": "&"}) == "<b>&\n"
    (tmp_path / "t.j2").write_text(HEAD + "x\n{{ }}")
    with pytest.raises(UsageProblem, match=r"t\.j2:10: "):
        read_template(tmp_path / "t.j2")


def test_a_signal_while_a_prompt_is_made_is_no_fault_of_the_record() -> None:
    """Fails if whatever a template raises makes a bad line: the run would go on, with one record fewer."""

    class Slow:
        def __str__(self) -> str:
            signal.raise_signal(signal.SIGTERM)
            return "never"

    with on_signals(_interrupt), pytest.raises(Interrupted):
        compiled("{{ a }}")({"a": Slow()})


def test_a_template_has_no_chance_in_it() -> None:
    with pytest.raises(BadLine, match="'lipsum' is not in the record"):
        compiled("{{ lipsum() }}")({})


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ record[body] }}", "what it looks up is not in the record; fields here: body. "),
        ("{{ '' | attr(body) | upper }}", "what it looks up is not in the record; fields here: body. "),
        ("{{ ('{0.' ~ body ~ '}').format(1) }}", "what it looks up is not in the record; fields here: body. "),
        ("{{ record['__' ~ body ~ '__'] }}", "what it looks up is not in the record; fields here: body. "),
        ("{{ [1] | map(body) | list }}", "does not work with this record"),
        ("{{ [1] | select(body) | list }}", "does not work with this record"),
        ("{{ '' | urlize(extra_schemes=[body]) }}", "does not work with this record"),
        ("{% include body %}", "does not work with this record"),
    ],
)
def test_no_message_holds_a_text_of_the_record(template: str, said: str) -> None:
    """Fails if Jinja's words are passed on: they quote what a filter or a name was made of."""
    with pytest.raises(BadLine) as caught:
        compiled("\n" + template)({"body": "a secret"})
    assert caught.value.reason.startswith(f"template line 2: {said}")
    assert "secret" not in caught.value.reason


def settings(tmp_path: Path, *options: str) -> Settings:
    (tmp_path / "t.j2").write_text(HEAD + "{{ a }}")
    words = ["in.jsonl", "-o", str(tmp_path / "out.jsonl"), "-t", str(tmp_path / "t.j2"), *options]
    return config_of(run.make_context("run", words).params).settings


def test_options_of_the_command_win_over_the_head(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert (found.system, found.model, found.temperature, found.max_tokens) == ("S", "m/latest", 0.0, 5)
    assert found.schema == '{"type": "object"}'
    found = settings(tmp_path, "-s", "", "-m", "n", "--temperature", "1", "--max-tokens", "7")
    assert (found.system, found.model, found.temperature, found.max_tokens) == ("", "n", 1.0, 7)
    with pytest.raises(UsageProblem, match="both --template and --prompt-column"):
        settings(tmp_path, "--prompt-column", "a")


def test_a_schema_may_stand_in_a_file_beside_the_template(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "string",\n "title": "ё"}')
    (tmp_path / "t.j2").write_text('+++\nschema = "s.json"\n+++\n')
    assert json.loads(read_template(tmp_path / "t.j2").schema or "") == {"type": "string", "title": "ё"}


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        pytest.param('+++\nsytem = "S"\n+++\n', "unknown in the head: sytem", "it may have system, model", id="typo"),
        pytest.param("+++\ntemperature = 0\n+++\n", "temperature", "under [options] temperature", id="place"),
        pytest.param("+++\nx = 1\n", "the head has no end", "", id="no end"),
        pytest.param("+++\nx =\n+++\n", "the head is no TOML", "", id="no TOML"),
        pytest.param("+++\n[options]\ntemperature = nan\n+++\n", "NaN", "", id="NaN"),
        pytest.param("+++\n[options]\nmax_tokens = 0\n+++\n", "max_tokens must be an integer above 0", "", id="limit"),
        pytest.param("+++\noptions = 1\n+++\n", "unknown in the head: options", "", id="options"),
        pytest.param("+++\nschema = 1\n+++\n", "a schema is an object", "", id="schema"),
        pytest.param(
            '+++\nschema = "none.json"\n+++\n',
            "the schema cannot be read: not a file of at most 4 MiB",
            "a file of JSON beside the template",
            id="schema file",
        ),
        pytest.param('+++\nschema = "pipe"\n+++\n', "not a file of at most 4 MiB", "", id="schema of a pipe"),
        pytest.param('+++\nschema = "large"\n+++\n', "not a file of at most 4 MiB", "", id="large schema"),
        pytest.param('+++\nschema = "../HERE/s.json"\n+++\n', "the schema cannot be read", "", id="schema elsewhere"),
        pytest.param("+++\n[options]\ntop = 1\n+++\n", "unknown in the head: top", "", id="option"),
        pytest.param("+++\nschema = {least = nan}\n+++\n", "the schema cannot be read", "", id="NaN in a schema"),
        pytest.param("{% for %}", "t.j2:1: ", "mend the template", id="syntax"),
        pytest.param("{{ a | nonsense }}", "t.j2:1: No filter named 'nonsense'", "", id="filter"),
        pytest.param("{{ [1, 2] | random }}", "t.j2:1: No filter named 'random'", "", id="chance"),
        pytest.param("{{ " + "(" * 5000, "nested too deep", "", id="nesting"),
    ],
)
def test_what_is_wrong_with_a_template_is_said(tmp_path: Path, text: str, cause: str, remedy: str) -> None:
    (tmp_path / "t.j2").write_text(text.replace("HERE", tmp_path.name))
    (tmp_path / "s.json").write_text("{}")
    (tmp_path / "large").write_text("{}" + " " * (4 << 20))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageProblem) as told:
        read_template(tmp_path / "t.j2")
    assert cause in told.value.cause
    assert remedy in told.value.remedy
