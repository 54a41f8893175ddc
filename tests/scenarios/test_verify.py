"""``batchrun verify`` finds every way in which an output may differ, and names it."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.scenarios.bench import Bench

Lines = list[bytes]


def _flip_a_byte(lines: Lines) -> Lines:
    return [lines[0], lines[1].replace(b"Invented", b"Invenued"), lines[2]]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_flip_a_byte, ["out.jsonl:2: changed, or not written by this job", "{0[id]}) is missing"]),
        (lambda lines: [lines[0], lines[2]], ["the answer to line {0[line]} of the input (id {0[id]}) is missing"]),
        (
            lambda lines: [*lines[:2], lines[1], lines[2]],
            ["out.jsonl:3: line {0[line]} of the input (id {0[id]}) is answered twice"],
        ),
        (lambda lines: [lines[0], b'{"id": "x"}\n', *lines[1:]], ["out.jsonl:2: changed, or not written by this job"]),
    ],
    ids=["a_flipped_byte", "a_deleted_line", "a_doubled_line", "an_alien_line"],
)
def test_verify_names_the_difference(finished: Bench, damage: Callable[[Lines], Lines], named: list[str]) -> None:
    second = finished.results()[1]
    lines = finished.output.read_bytes().splitlines(keepends=True)
    finished.output.write_bytes(b"".join(damage(lines)))
    verified = finished.verify()
    assert verified.exit_code == 3
    assert [each for each in named if each.format(second) not in verified.stdout] == []


def test_verify_names_a_changed_input_line(finished: Bench) -> None:
    finished.input.write_text(finished.input.read_text().replace('"prompt": "b"', '"prompt": "B"'))
    verified = finished.verify()
    assert verified.exit_code == 3
    assert "in.jsonl:2: changed since it was sent" in verified.stdout


def test_a_file_that_is_not_there_is_named_with_what_brings_it_back(finished: Bench) -> None:
    """Fails if a missing input sends people to ``--rebuild-output``, which cannot bring it back."""
    remedy = "  put it back, or see to its permissions; an output is fetched again by a run with --rebuild-output"
    for gone in (finished.input, finished.output):
        aside = gone.rename(finished.folder / "aside")
        said = [f"error: {gone.name} cannot be read (No such file or directory)", remedy]
        for words in (("verify", "out.jsonl"), ("export", "out.jsonl", "--with-errors", "-o", "-")):
            ran = finished.spawn(*words).wait()
            assert (ran.exit_code, ran.stderr.splitlines()) == (2, said)
        aside.rename(gone)


def test_a_pipe_that_nobody_reads_does_not_make_a_difference_look_like_none(finished: Bench) -> None:
    """Fails if a broken pipe decides the exit code: 0 would mean that all agree."""
    finished.output.write_bytes(finished.output.read_bytes().replace(b"stop", b"pots", 1))
    ours, theirs = os.pipe()
    os.close(ours)
    running = finished.spawn("verify", "out.jsonl", shown_on=theirs)
    os.close(theirs)
    assert running.wait().exit_code == 3
