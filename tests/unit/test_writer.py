"""Answers become lines that nothing can take for two, failures a file that is never half written."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.check import Source
from batchrun.errors import DiskProblem
from batchrun.lines import digest
from batchrun.record import Answer, Failure, Move, Place, Prompt, Record, RecordId, Settings, State, Usage
from batchrun.storage.jobdir import JobPaths
from batchrun.storage.ledger import Ledger
from batchrun.tracker import Answered
from batchrun.writer import one_line, read_again, result_of, utc, write_failures

from .jobfiles import NOW, make_ledger

SETTINGS = Settings("yandex", "yandexgpt/latest")
ANSWER = Answer("Да", "stop", Usage(12, 3, None, 15), "08.11.2025")
BAD_PROMPT = Failure("invalid_argument", "temperature is odd", 3)


class Desk:
    """A job whose records are given line by line."""

    def __init__(self, folder: Path) -> None:
        self.input = folder / "in.jsonl"
        self.input.touch()
        self.ledger = make_ledger(folder / "ledger.db")
        self.paths = JobPaths.of(folder / "out.jsonl")
        self.fd = os.open(self.input, os.O_RDONLY)
        self.source = Source(self.input, self.fd, end=0, records=None, checked=None)
        self._lines = 0

    def record(self, raw: bytes, *, id: RecordId = None) -> int:
        """One more line of input, which was accepted as operation ``op<seq>``."""
        place = self._append(raw)
        with self.ledger.transaction():
            seq = self.ledger.record_intent(
                Record(place, id, digest(raw), Prompt("not looked at")), "request", NOW - 60
            )
            self.ledger.record_operation(seq, f"op{seq}", NOW - 60)
        return seq

    def fail(self, raw: bytes, failure: Failure = BAD_PROMPT, *, id: RecordId = None, to: State = State.FAILED) -> int:
        seq = self.record(raw, id=id)
        with self.ledger.transaction():
            self.ledger.move(seq, State.OPEN, Move(to, failure=failure), NOW)
        return seq

    def bad_line(self, raw: bytes) -> None:
        with self.ledger.transaction():
            self.ledger.refuse_line(self._append(raw), digest(raw), Failure("bad_input", "not JSON"), NOW)

    def _append(self, raw: bytes) -> Place:
        offset = self.input.stat().st_size
        with self.input.open("ab") as file:
            file.write(raw + b"\n")
        self._lines += 1
        return Place(self._lines, offset, len(raw))

    def write_failures(self) -> list[dict[str, object]]:
        write_failures(self.ledger, self.source, self.paths)
        if not self.paths.failures.exists():
            return []
        return [json.loads(line) for line in self.paths.failures.read_bytes().splitlines()]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    os.close(desk.fd)
    desk.ledger.close()


# --- one line ---


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=80), max_size=5))
def test_a_line_is_one_line_for_every_reader_and_says_the_same(value: dict[str, str]) -> None:
    line = one_line(value)
    assert line.endswith(b"\n")
    assert len(line.splitlines()) == len(line.decode().splitlines()) == 1
    assert all(byte >= 0x20 for byte in line[:-1])
    assert json.loads(line) == orjson.loads(line) == value


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_whatever_the_service_answers_is_utf_8_that_every_reader_reads(text: str) -> None:
    line = one_line({"text": text})
    assert json.loads(line) == orjson.loads(line)
    assert len(line.decode().splitlines()) == 1


def test_numbers_no_vendor_should_send_are_written_all_the_same() -> None:
    assert json.loads(one_line({"json": {"n": 2**80}})) == {"json": {"n": 2**80}}


INSTANTS = {
    "none": (None, None),
    "the epoch": (0.0, "1970-01-01T00:00:00Z"),
    "whole seconds": (NOW, "2025-06-15T15:06:40Z"),
    "fractions are cut": (NOW + 0.999, "2025-06-15T15:06:40Z"),
}


@pytest.mark.parametrize(("at", "text"), INSTANTS.values(), ids=INSTANTS)
def test_instants_are_in_utc(at: float | None, text: str | None) -> None:
    assert utc(at) == text


# --- a result ---


def test_a_result_has_every_field_in_its_order(desk: Desk) -> None:
    seq = desk.record(b'{"id": 7, "prompt": "2 + 2 = 4?", "topic": {"a": [1, null]}}', id=7)
    row = desk.ledger.row(seq)
    result = result_of(Answered(seq, "op1", ANSWER), row, read_again(desk.source, row), SETTINGS, NOW)
    assert list(result.items()) == [
        ("id", 7),
        ("line", 1),
        ("text", "Да"),
        ("json", None),
        ("finish_reason", "stop"),
        ("model", "yandexgpt/latest"),
        ("model_version", "08.11.2025"),
        ("usage", {"input_tokens": 12, "output_tokens": 3, "reasoning_tokens": None, "total_tokens": 15}),
        ("meta", {"topic": {"a": [1, None]}}),
        ("operation_id", "op1"),
        ("provider", "yandex"),
        ("attempt", 1),
        ("maybe_paid", 0),
        ("submitted_at", "2025-06-15T15:05:40Z"),
        ("finished_at", "2025-06-15T15:06:40Z"),
    ]


MODELS = {
    "the job's": (b'{"prompt": "x"}', "yandexgpt/latest"),
    "the record's": (b'{"prompt": "x", "model": "yandexgpt-lite/latest"}', "yandexgpt-lite/latest"),
    "the record's, in full": (b'{"prompt": "x", "model": "gpt://b1gfolder/llama/latest"}', "llama/latest"),
    "a body's": (
        b'{"modelUri": "gpt://b1gfolder/llama/rc", "messages": [{"role": "user", "text": "x"}]}',
        "llama/rc",
    ),
}


@pytest.mark.parametrize(("raw", "model"), MODELS.values(), ids=MODELS)
def test_a_result_names_the_model_and_never_the_folder(desk: Desk, raw: bytes, model: str) -> None:
    row = desk.ledger.row(desk.record(raw))
    assert result_of(Answered(1, "op1", ANSWER), row, read_again(desk.source, row), SETTINGS, NOW)["model"] == model


def test_an_answer_is_written_even_if_its_line_was_edited_meanwhile(desk: Desk) -> None:
    row = desk.ledger.row(desk.record(b'{"id": 1, "prompt": "x"}', id=1))
    desk.input.write_bytes(b'{"id": 1, "prompt": "y"}\n')
    assert read_again(desk.source, row) is None
    result = result_of(Answered(1, "op1", ANSWER), row, None, SETTINGS, NOW)
    assert (result["id"], result["text"], result["meta"]) == (1, "Да", None)


# --- the failures file ---


def test_without_failures_there_is_no_failures_file(desk: Desk) -> None:
    desk.record(b'"fine"')
    assert desk.write_failures() == []
    assert not desk.paths.failures.exists()


def test_a_failure_has_every_field_in_its_order_and_the_record_as_it_was_read(desk: Desk) -> None:
    raw = '{ "id":"a", "prompt" : "Я", "topic": 1.50 }'.encode()
    desk.fail(raw, Failure("provider_error", "try again", 14, True, None, Usage(5, 0)), id="a")
    (failure,) = desk.write_failures()
    assert list(failure.items()) == [
        ("id", "a"),
        ("line", 1),
        ("meta", {"topic": 1.5}),
        ("operation_id", "op1"),
        ("attempt", 1),
        ("maybe_paid", 0),
        ("text", None),
        ("finish_reason", None),
        ("usage", {"input_tokens": 5, "output_tokens": 0, "reasoning_tokens": None, "total_tokens": None}),
        ("error", {"kind": "provider_error", "code": 14, "message": "try again", "retryable": True}),
        ("input", json.loads(raw)),
    ]
    assert raw in desk.paths.failures.read_bytes()


def test_failures_stand_in_the_order_of_the_input(desk: Desk) -> None:
    desk.fail(b'"one"', Failure("expired", "no longer kept"), to=State.EXPIRED)
    desk.record(b'"two"')
    desk.bad_line(b"{three")
    desk.fail(b'"four"', Failure("held", "in doubt"), to=State.HELD)
    failures = desk.write_failures()
    assert [failure["line"] for failure in failures] == [1, 3, 4]
    assert [failure["input"] for failure in failures] == ["one", None, "four"]


def test_line_ends_of_some_readers_are_escaped_in_the_input_too(desk: Desk) -> None:
    desk.fail('"one\u2028two\u0085three"'.encode())
    (failure,) = desk.write_failures()
    assert failure["input"] == "one\u2028two\u0085three"
    assert len(desk.paths.failures.read_text().splitlines()) == 1


def test_a_message_that_is_no_utf_8_does_not_cost_the_file(desk: Desk) -> None:
    desk.fail(b'"one"', Failure("provider_error", "cut: \ud83d"))
    (failure,) = desk.write_failures()
    assert failure["input"] == "one"


def test_failures_that_are_over_take_their_file_with_them(desk: Desk) -> None:
    seq = desk.fail(b'"one"')
    assert len(desk.write_failures()) == 1
    with desk.ledger.transaction():
        desk.ledger.reopen(seq)
    assert desk.write_failures() == []
    assert not desk.paths.failures.exists()


def test_a_temporary_file_of_a_killed_run_is_in_nobodys_way(desk: Desk) -> None:
    desk.fail(b'"one"')
    temporary = desk.paths.failures.with_name(f".{desk.paths.failures.name}.new")
    temporary.write_bytes(b"half of a longer file than the one to come" * 100)
    assert len(desk.write_failures()) == 1
    assert not temporary.exists()


def test_what_cannot_be_written_whole_leaves_the_old_file_as_it_was(desk: Desk) -> None:
    desk.fail(b'"one"')
    desk.write_failures()
    before = desk.paths.failures.read_bytes()
    for number in range(20):
        desk.fail(b'"%d"' % number)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(DiskProblem, match="cannot be written"):
            write_failures(desk.ledger, desk.source, desk.paths)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert desk.paths.failures.read_bytes() == before
    assert not desk.paths.new_failures.exists(), "half a file stays behind"
    assert len(desk.write_failures()) == 21


def test_the_failures_file_is_durable_before_it_takes_the_name(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.fail(b'"one"')
    steps: list[str] = []
    real_replace = os.replace

    def replace(source: Path, target: Path) -> None:
        steps.append("renamed")
        real_replace(source, target)

    monkeypatch.setattr(os, "fdatasync", lambda fd: steps.append("file synced"))
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append("folder synced"))
    monkeypatch.setattr(os, "replace", replace)
    desk.write_failures()
    assert steps == ["file synced", "folder synced", "renamed", "folder synced"]


def test_a_link_in_the_place_of_the_failures_file_is_replaced_and_not_followed(desk: Desk) -> None:
    precious = desk.paths.failures.with_name("precious")
    precious.write_bytes(b"precious")
    desk.paths.failures.symlink_to(precious)
    desk.fail(b'"one"')
    desk.write_failures()
    assert precious.read_bytes() == b"precious"
    assert not desk.paths.failures.is_symlink()


def test_a_failures_file_of_many_lines_is_complete(desk: Desk) -> None:
    raw = b'"again"'
    with desk.ledger.transaction():
        for _ in range(1500):
            desk.ledger.refuse_line(desk._append(raw), digest(raw), BAD_PROMPT, NOW)
    assert [failure["line"] for failure in desk.write_failures()] == list(range(1, 1501))


def test_a_ledger_of_another_time_is_read_too(desk: Desk) -> None:
    desk.fail(b'"one"')
    reader = Ledger.read_only(desk.ledger.path)
    write_failures(reader, desk.source, desk.paths)
    reader.close()
    assert desk.paths.failures.exists()


@pytest.mark.parametrize(
    ("text", "parsed"),
    [('{"a":\n 1}', {"a": 1}), ("[]", []), ("Да", None), ("[NaN]", None), ('{"a": 1, "a": 2}', None), ("", None)],
)
def test_with_a_schema_an_answer_is_parsed_if_it_is_strict_json(desk: Desk, text: str, parsed: object) -> None:
    seq = desk.record(b'"x"')
    answered = Answered(seq, "op1", replace(ANSWER, text=text))
    asked = replace(SETTINGS, schema="{}")
    assert result_of(answered, desk.ledger.row(seq), None, asked, NOW)["json"] == parsed
    assert result_of(answered, desk.ledger.row(seq), None, SETTINGS, NOW)["json"] is None
