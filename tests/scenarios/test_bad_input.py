"""Inputs that are refused, in whole or line by line. Nothing is ever sent before all of it was checked."""

from __future__ import annotations

import os

import pytest

from tests.scenarios.bench import Bench, record

GOOD = record("good")


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        pytest.param(("{oops", GOOD), (), "in.jsonl:1: ", id="the_first_line_is_bad"),
        pytest.param((GOOD, *["{oops"] * 11), (), "in.jsonl:12: ", id="more_than_ten_are_bad"),
        pytest.param((GOOD, "{oops"), ("--strict",), "in.jsonl:2: ", id="one_is_bad_and_strict"),
        pytest.param((GOOD, record("b"), GOOD), (), "in.jsonl:3: id 'good' was on line 1", id="an_id_twice"),
        pytest.param(
            ('{"id": 1, "prompt": "a"}', '{"id": "1", "prompt": "b"}'), (), "in.jsonl:2: id '1'", id="1_and_'1'"
        ),
        pytest.param(("[", GOOD, "]"), (), "in.jsonl: ", id="one_big_array"),
        pytest.param(("id,prompt", "1,hello"), (), "in.jsonl: ", id="csv"),
    ],
)
def test_a_bad_input_is_refused_whole(
    bench: Bench, lines: tuple[str, ...], options: tuple[str, ...], said: str
) -> None:
    """Fails if ``_judge`` leaves out that reason."""
    bench.lines(*lines)
    ran = bench.run(*options)
    assert ran.exit_code == 3
    assert said in ran.stderr
    assert ran.stdout == ""
    assert bench.is_untouched()
    assert not bench.output.exists()


def test_a_few_bad_lines_fail_alone(bench: Bench) -> None:
    """Fails if one bad line refuses the whole input, or is left out of the failures."""
    bench.lines(record("a"), '{"id": "b", "prompt": ""}', "{oops", record("d"), '{"id": "e", "temprature": 1}', "")
    ran = bench.run()
    assert ran.exit_code == 1
    assert bench.result_ids() == {"a", "d"}
    assert {failure["line"]: failure["error"]["kind"] for failure in bench.failures()} == dict.fromkeys(
        (2, 3, 5), "bad_input"
    )
    assert bench.emulator.submissions == {"a": 1, "d": 1}
    bench.check()
    assert bench.resume().exit_code == 1
    assert bench.emulator.count("submits_received") == 2


def test_an_input_that_is_not_there_is_a_mistake_in_the_command(bench: Bench) -> None:
    ran = bench.run()
    assert ran.exit_code == 2
    assert ran.stderr.startswith("error: in.jsonl: no such file")
    assert bench.is_untouched()
    assert not bench.state.exists()


@pytest.mark.parametrize("name", ["in.jsonl", "./in.jsonl", "link.jsonl", "hardlink.jsonl"])
def test_the_output_must_not_be_the_input(bench: Bench, name: str) -> None:
    """Fails if the two are compared by name."""
    bench.records("a")
    content = bench.input.read_bytes()
    os.symlink("in.jsonl", bench.folder / "link.jsonl")
    os.link(bench.input, bench.folder / "hardlink.jsonl")
    ran = bench.spawn("in.jsonl", "-o", name, "--endpoint", bench.emulator.url).wait()
    assert ran.exit_code == 2
    assert "would be written over the input" in ran.stderr
    assert bench.input.read_bytes() == content
    assert bench.is_untouched()
