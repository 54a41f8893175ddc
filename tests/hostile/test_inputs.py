"""Input that is broken on purpose: each line is a record, a named fault, or reason to refuse the whole file."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.check import check_input, is_record, read_lines
from batchrun.errors import InputProblem
from batchrun.inputs import AS_EACH_IS, Reading, parse
from batchrun.lines import MAX_LINE_BYTES, BadLine
from batchrun.storage.inventory import Inventory
from batchrun.storage.ledger import Ledger
from tests.hostile import drawn
from tests.hostile.here import Here, in_memory, json_lines
from tests.unit.jobfiles import make_ledger

GOOD = (
    b'{"prompt": "plain"}',
    b'{"id": 7, "prompt": "a\\u0000b\\u2028c", "meta": [1, {"x": null}]}',
    '{"prompt": "жёлтый \U0001f600", "temperature": 0.5, "max_tokens": 10}'.encode(),
    b'"only a text"',
    b'{"messages": [{"role": "user", "text": "hello"}], "completionOptions": {"maxTokens": "5"}}',
    b'{"prompt": "\\ud83d\\ude00 pair", "system": "", "model": "m"}',
)
PIECES = (
    b"\n",
    b"\r",
    b"\r\n",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe2\x80\xa8",
    b"\\ud800",
    b"\\u0000",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[" * 70,
    b"[" * 100_000,
    b'{"a":' * 70,
    b"1" * 5000,
    b"-9223372036854775809",
    b"18446744073709551616",
    b"1e999",
    b"NaN",
    b'"prompt": "twice"',
    b"\x1b[2J",
)


def spliced(base: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """The bytes after each edit: at a place, so many taken away, and these put there."""
    for at, gone, piece in edits:
        at %= len(base) + 1
        base = base[:at] + piece + base[at + gone :]
    return base


def of_one_shape(lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if AS_EACH_IS.fixed_by(line) == AS_EACH_IS.fixed_by(lines[0])]


EDITS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 12), st.sampled_from(PIECES) | st.binary(max_size=3)), max_size=5
)
FILES = st.builds(
    lambda mark, lines, end, edits: mark + spliced(end.join(lines) + end, edits),
    st.sampled_from((b"", b"", b"\xef\xbb\xbf")),
    st.lists(st.sampled_from(GOOD), min_size=1, max_size=12).map(of_one_shape),
    st.sampled_from((b"\n", b"\r\n", b"\n\n")),
    EDITS,
) | st.binary(max_size=200)


def as_json_says(raw: bytes) -> Any:
    """The text that a line asks, read by another parser; an object's prompt or its last message."""
    value = json.loads(raw)
    if isinstance(value, str):
        return value
    return value["prompt"] if "prompt" in value else value["messages"][-1]["text"]


def asked(raw: bytes, reading: Reading = AS_EACH_IS) -> str | None:
    prompt = parse(raw, reading).prompt
    return prompt.text if prompt.body is None else prompt.body["messages"][-1]["text"]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with closing(make_ledger(tmp_path_factory.mktemp("ledger") / "ledger.db")) as ledger:
        yield ledger


@given(FILES)
@drawn(90)
def test_lines_tile_the_file_and_each_is_a_record_or_a_named_fault(ledger: Ledger, tmp_path: Path, data: bytes) -> None:
    """Fails if the CR of a line is not part of what is skipped behind it, or ``parse`` rounds or repairs a text."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        lines = list(read_lines(fd, len(data)))
        at = 0
        good = []
        for line in lines:
            start = at + (3 if at == 0 and data.startswith(b"\xef\xbb\xbf") else 0)
            assert line.offset == start
            end = start + len(line.raw)
            assert data[start:end] == line.raw
            at = data.index(b"\n", end) + 1 if b"\n" in data[end:] else len(data)
            assert data[end:at] in (b"\n", b"\r\n", b"", b"\r")
            with suppress(BadLine):
                assert asked(line.raw) == as_json_says(line.raw)
                good.append(line.number)
        assert at == len(data)
        with suppress(InputProblem):
            checked = check_input(path, fd, len(data), Inventory(ledger), AS_EACH_IS, strict=False, into_inventory=True)
            assert checked.records == sum(map(is_record, lines))
            assert [row[0] for row in ledger.connection.execute("SELECT line FROM inventory ORDER BY line")] == good
    finally:
        os.close(fd)


@given(FILES)
@drawn(25)
def test_of_any_file_exactly_the_good_lines_are_sent(data: bytes) -> None:
    """Fails if the reader sends a line that the check called bad, or sends another text than the line holds."""
    with in_memory() as folder:
        send_what_is_good(Here(folder), data)


def send_what_is_good(here: Here, data: bytes) -> None:
    here.input.write_bytes(data)
    said = here.run()
    assert said.code in (0, 1, 3)
    assert here.input.read_bytes() == data
    if said.code == 3:
        assert not here.service.submits
        return
    wanted: Counter[str] = Counter()
    lines = [line.removesuffix(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    reading = AS_EACH_IS.fixed_by(next(filter(bytes.strip, lines), b""))
    for line in lines:
        try:
            wanted[str(asked(line, reading))] += 1
        except BadLine:
            continue
    assert Counter(here.service.asked.values()) == wanted
    assert Counter(result["text"] for result in here.results()) == wanted
    assert {failure["error"]["kind"] for failure in json_lines(here.failures)} <= {"bad_input"}
    assert here("verify", "out.jsonl").code == 0


def test_lines_at_the_edge_of_their_length_are_sent_or_named(tmp_path: Path) -> None:
    """Fails if the limit of a line is off by one between the check and the reader."""
    here = Here(tmp_path)
    frame = len(b'"')
    longest = b'"' + b"x" * (MAX_LINE_BYTES - 2 * frame) + b'"'
    here.input.write_bytes(b"\n".join([longest, longest[:-1] + b'x"', b'"short"', longest[:9]]))
    assert here.run().code == 1
    assert sorted(len(text) for text in here.service.asked.values()) == [5, MAX_LINE_BYTES - 2]
    kinds = {failure["line"]: failure["error"]["message"] for failure in json_lines(here.failures)}
    assert kinds == {2: "longer than 4 MiB", 4: "not JSON: unexpected end of line at byte 10"}
