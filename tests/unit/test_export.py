"""Answers taken away: in which order, in which shape, and what becomes of the file when something is not as it was."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from batchrun.check import Source
from batchrun.cli.export import export
from batchrun.errors import BatchrunError
from batchrun.export import CSV_COLUMNS, FORMATS, Export, messages_of
from batchrun.inputs import parse
from batchrun.lines import digest
from batchrun.record import Answer, Failure, Move, Place, Prompt, Record, Settings, State, Usage
from batchrun.storage.jobdir import JobDir, JobPaths
from batchrun.storage.ledger import QUERIES
from batchrun.storage.results import Results
from batchrun.tracker import Answered
from batchrun.writer import one_line, result_of, write_failures

from .jobfiles import NOW, make_ledger, sql

SETTINGS = Settings("yandex", "yandexgpt/latest", "Be brief.")
CALLS = {"toolCalls": [{"functionCall": {"name": "weather", "arguments": {"city": "Belgrade"}}}]}
FAILED, HELD, EXPIRED = State.FAILED, State.HELD, State.EXPIRED
LINES = [
    b'{"prompt": "one"}',
    b'{"id": "r2", "prompt": "two", "system": "In Russian.", "sku": 1}',
    b"no record",
    b'{"custom_id": 4, "prompt": "four", "system": "Of its own."}',
    b'{"id": "r5", "prompt": "five", "sku": 5}',
    b'{"id": "r6", "prompt": "six"}',
    b'{"id": "r7", "prompt": "seven"}',
    b'{"id": "r8", "prompt": "not sent"}',
]
UNWELL = {3: "bad_input", 5: "content_filter", 6: "expired"}
TEXTS = {4: "four\r\nlines", 1: "=1+1", 2: "два"}
"""In the order in which they were answered; line 7 is on its way, line 8 was not sent."""


class Shelf:
    """A stopped job, made without a run: ``put`` writes an answer, ``lose`` a failure."""

    def __init__(self, folder: Path, lines: list[bytes]) -> None:
        self.paths = JobPaths.of(folder / "out.jsonl")
        self.input = folder / "in.jsonl"
        self.input.write_bytes(b"".join(line + b"\n" for line in lines))
        self.paths.state.mkdir(mode=0o700)
        self.ledger = make_ledger(self.paths.ledger)
        with self.ledger.transaction():
            self.ledger.save_settings(SETTINGS)
        self._results = Results.open(self.paths.output, create=True)
        self._now = NOW
        starts = [sum(len(line) + 1 for line in lines[:at]) for at in range(len(lines))]
        self._places = {at + 1: Place(at + 1, starts[at], len(line)) for at, line in enumerate(lines)}
        self._lines = lines

    def send(self, line: int) -> int:
        raw = self._lines[line - 1]
        record = Record(self._places[line], parse(raw).id, digest(raw), Prompt("not looked at"))
        with self.ledger.transaction():
            seq = self.ledger.record_intent(record, "request", NOW)
            self.ledger.record_operation(seq, f"op-{line}", NOW)
        return seq

    def put(self, line: int, answer: Answer) -> None:
        seq = self.send(line)
        self._now += 1
        found = Answered(seq, f"op-{line}", answer)
        result = result_of(found, self.ledger.row(seq), parse(self._lines[line - 1]), SETTINGS, self._now)
        (written,) = self._results.append([one_line(result)])
        with self.ledger.transaction():
            self.ledger.record_done([(seq, f"op-{line}", written, answer.usage, self._now)])

    def lose(self, line: int, kind: str, to: State = FAILED) -> None:
        failure, self._now = Failure(kind, "it is gone", 3), self._now + 1
        with self.ledger.transaction():
            if kind == "bad_input":
                self.ledger.refuse_line(self._places[line], digest(self._lines[line - 1]), failure, self._now)
                return
        seq = self.send(line)
        with self.ledger.transaction():
            self.ledger.move(seq, State.OPEN, Move(to, failure=failure), self._now)

    def written(self) -> list[bytes]:
        return self.paths.output.read_bytes().splitlines(keepends=True)

    def failures(self) -> dict[int, bytes]:
        """The lines of the failures file, by line of the input."""
        source = Source(self.input, os.open(self.input, os.O_RDONLY), 0, None, None)
        write_failures(self.ledger, source, self.paths)
        os.close(source.fd)
        return {json.loads(line)["line"]: line for line in self.paths.failures.read_bytes().splitlines(keepends=True)}

    def call(self, *words: str) -> Result:
        return CliRunner().invoke(export, [str(self.paths.output), *words])

    def take(self, *words: str) -> bytes:
        said = self.call(*words, "-o", "-")
        assert said.exit_code == 0, said.exception
        return said.stdout_bytes

    def refuse(self, *words: str) -> BatchrunError:
        problem = self.call(*words).exception
        assert isinstance(problem, BatchrunError), problem
        return problem

    def names(self) -> list[str]:
        return sorted(path.name for path in self.input.parent.iterdir())

    def close(self) -> None:
        self.ledger.close()
        self._results.close()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path, LINES)
    shelf.lose(3, "bad_input")
    for line, text in TEXTS.items():
        shelf.put(line, Answer(text, "stop", Usage(12, 3, 0, 15), "08.11.2025"))
        if line == 4:
            shelf.lose(6, "expired", EXPIRED)
    shelf.lose(5, "content_filter")
    shelf.send(7)
    yield shelf
    shelf.close()


def json_lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


# --- order ---


def test_in_order_of_finish_the_answers_are_the_output_byte_for_byte(shelf: Shelf) -> None:
    assert shelf.take("--order", "finish") == shelf.paths.output.read_bytes()


def test_in_order_of_input_the_lines_of_the_output_are_sorted(shelf: Shelf) -> None:
    four, one, two = shelf.written()
    assert shelf.take() == shelf.take("--order", "input") == one + two + four


@pytest.mark.parametrize(("order", "lines"), [("input", [1, 2, 3, 4, 5, 6]), ("finish", [3, 4, 6, 1, 2, 5])])
def test_with_errors_every_failure_stands_in_its_place_as_in_the_failures_file(
    shelf: Shelf, order: str, lines: list[int]
) -> None:
    written = {json.loads(line)["line"]: line for line in shelf.written()} | shelf.failures()
    assert shelf.take("--with-errors", "--order", order) == b"".join(written[line] for line in lines)


def test_a_clock_that_went_back_leaves_the_answers_in_the_order_of_the_output(shelf: Shelf) -> None:
    sql(shelf.paths.ledger, "UPDATE record SET finished_at = finished_at - 1000 WHERE line = 2")
    lines = [each["line"] for each in json_lines(shelf.take("--order", "finish", "--with-errors"))]
    assert [line for line in lines if line in TEXTS] == [*TEXTS]


def test_the_order_of_the_input_comes_from_an_index_and_is_not_sorted(shelf: Shelf) -> None:
    plan = shelf.ledger.connection.execute(f"EXPLAIN QUERY PLAN {QUERIES['rows_in_order']}").fetchall()
    assert [row["detail"] for row in plan] == ["SCAN record USING INDEX record_line"]


def test_one_answer_at_a_time_is_in_memory(tmp_path: Path) -> None:
    count, size = 100, 30_000
    shelf = Shelf(tmp_path, [b'"%d"' % line for line in range(1, count + 1)])
    for line in range(count, 0, -1):
        shelf.put(line, Answer("x" * size, "stop", Usage()))
    fd = os.open(shelf.paths.output, os.O_RDONLY)
    answers = Export(shelf.ledger, shelf.paths, fd, Source(shelf.input, fd, 0, None, None), SETTINGS, "csv", False)
    tracemalloc.start()
    written = sum(map(len, answers.lines("input")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written > count * size
    assert peak < 20 * size
    os.close(fd)
    shelf.close()


# --- shapes ---


def test_openai_is_the_output_of_a_batch(shelf: Shelf) -> None:
    first, second, fourth = json_lines(shelf.take("--format", "openai"))
    assert second == {
        "id": "batch_req_2",
        "custom_id": "r2",
        "response": {
            "status_code": 200,
            "request_id": "op-2",
            "body": {
                "id": "op-2",
                "object": "chat.completion",
                "created": int(NOW) + 5,
                "model": "yandexgpt/latest",
                "system_fingerprint": "08.11.2025",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "два"},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
            },
        },
        "error": None,
    }
    assert (first["custom_id"], fourth["custom_id"]) == ("line-1", "4")  # no id of another; always a text


def test_openai_fills_error_and_leaves_response_null_where_there_is_no_answer(shelf: Shelf) -> None:
    lines = {line["id"]: line for line in json_lines(shelf.take("--format", "openai", "--with-errors"))}
    assert list(lines) == [f"batch_req_{line}" for line in range(1, 7)]
    for line, kind in UNWELL.items():
        assert lines[f"batch_req_{line}"]["response"] is None
        assert lines[f"batch_req_{line}"]["error"] == {"code": kind, "message": "it is gone"}


def test_a_dataset_holds_the_messages_as_they_were_sent_and_the_answer(shelf: Shelf) -> None:
    assert json_lines(shelf.take("--format", "yandex-dataset")) == [
        {
            "request": [{"role": "system", "text": "Be brief."}, {"role": "user", "text": "one"}],
            "response": "=1+1",
        },
        {
            "request": [{"role": "system", "text": "In Russian."}, {"role": "user", "text": "two"}],
            "response": "два",
        },
        {
            "request": [{"role": "system", "text": "Of its own."}, {"role": "user", "text": "four"}],
            "response": "four\r\nlines",
        },
    ]


OLDER = {
    "the settings' instruction": ({"requestText": "x"}, ["Be brief.", "x"]),
    "one of its own": ({"request_text": "x", "instruction_text": "Rhyme."}, ["Rhyme.", "x"]),
    "none": ({"requestText": "x", "instructionText": ""}, ["x"]),
}


@pytest.mark.parametrize(("body", "texts"), OLDER.values(), ids=OLDER)
def test_an_instruction_and_its_request_are_messages_too(body: dict[str, Any], texts: list[str]) -> None:
    messages = messages_of(Prompt(None, body), replace(SETTINGS, provider="yandex-instruct"))
    assert [message["text"] for message in messages] == texts
    assert [message["role"] for message in messages] == ["system", "user"][-len(texts) :]


def test_csv_has_a_row_for_each_answer_that_every_reader_reads(shelf: Shelf) -> None:
    rows = list(csv.DictReader(io.StringIO(shelf.take("--format", "csv").decode(), newline="")))
    assert list(rows[0]) == [*CSV_COLUMNS, "meta"]
    assert list(rows[1].values()) == ["r2", "2", "два", "stop", "12", "3", "0", "op-2", '{"sku":1}']
    assert [(row["id"], row["line"], row["text"]) for row in rows] == [
        ("", "1", "'=1+1"),
        ("r2", "2", "два"),
        ("4", "4", "four\r\nlines"),
    ]


def test_csv_with_errors_has_a_column_for_their_kind(shelf: Shelf) -> None:
    rows = list(csv.DictReader(io.StringIO(shelf.take("--format", "csv", "--with-errors").decode(), newline="")))
    assert list(rows[0]) == [*CSV_COLUMNS, "error", "meta"]
    assert {int(row["line"]): row["error"] for row in rows if row["error"]} == UNWELL
    assert [row["meta"] for row in rows] == ["{}", '{"sku":1}', "", "{}", '{"sku":5}', "{}"]


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path, first: str) -> None:
    shelf = Shelf(tmp_path, [json.dumps({"prompt": "x", "id": f"{first if first > ' ' else ''}id"}).encode()])
    shelf.put(1, Answer(f"{first}text", "stop", Usage()))
    row = next(csv.DictReader(io.StringIO(shelf.take("--format", "csv").decode(), newline="")))
    assert row["text"] == f"'{first}text"
    assert row["id"] == (f"'{first}id" if first > " " else "id")
    shelf.close()


def test_txt_is_a_line_for_each_answer_and_with_errors_one_for_each_record(shelf: Shelf) -> None:
    assert shelf.take("--format", "txt").decode() == "=1+1\nдва\nfour\\nlines\n"
    assert shelf.take("--format", "txt", "--with-errors").decode() == "=1+1\nдва\n\nfour\\nlines\n\n\n"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_no_line_of_a_txt_is_two_for_any_reader(tmp_path: Path, end: str) -> None:
    shelf = Shelf(tmp_path, [b'"x"'])
    shelf.put(1, Answer(f"a{end}b{end}", "stop", Usage()))
    assert shelf.take("--format", "txt") == b"a\\nb\\n\n"
    shelf.close()


def test_tool_calls_are_kept_by_openai_and_counted_where_there_is_no_place_for_them(tmp_path: Path) -> None:
    asks = {"messages": [{"role": "user", "text": "x"}, {"role": "assistant", "toolCallList": CALLS}]}
    plain = json.dumps({"messages": [{"role": "user", "text": "x"}]}).encode()
    shelf = Shelf(tmp_path, [plain, plain, json.dumps(asks).encode(), plain])
    shelf.put(1, Answer("fine", "stop", Usage()))
    shelf.put(2, Answer(None, "tool_calls", Usage(), json=CALLS))
    shelf.put(3, Answer("sunny", "stop", Usage()))
    shelf.put(4, Answer("", "tool_calls", Usage(), json={}))
    messages = [
        line["response"]["body"]["choices"][0]["message"] for line in json_lines(shelf.take("--format", "openai"))
    ]
    weather = {"name": "weather", "arguments": '{"city":"Belgrade"}'}
    call = {"id": "call_0", "type": "function", "function": weather}
    assert messages == [
        {"role": "assistant", "content": "fine"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": "sunny"},
        {"role": "assistant", "content": ""},
    ]
    said = shelf.call("--format", "yandex-dataset", "-o", str(tmp_path / "dataset.jsonl"))
    assert [line["response"] for line in json_lines((tmp_path / "dataset.jsonl").read_bytes())] == ["fine", ""]
    assert said.stderr == "batchrun: tool calls have no place in yandex-dataset; answers left out: 2\n"
    assert shelf.take("--format", "txt") == b"fine\n\nsunny\n\n"
    shelf.close()


# --- what is not as it was ---


@pytest.mark.parametrize(("format", "broken"), [*((format, 2) for format in FORMATS), ("jsonl", 0), ("jsonl", 1)])
def test_an_answer_that_changed_is_named_and_nothing_half_written_stays(
    shelf: Shelf, tmp_path: Path, format: str, broken: int
) -> None:
    lines = shelf.written()
    lines[broken] = lines[broken].replace(b'"stop"', b'"stap"')
    shelf.paths.output.write_bytes(b"".join(lines))
    before = shelf.names()
    problem = shelf.refuse("--format", format, "-o", str(tmp_path / "new"))
    line = [*TEXTS][broken]
    assert problem.exit_code == 3
    assert f"the answer to line {line} of the input{['', ' (id r2)', ' (id 4)'][[1, 2, 4].index(line)]} " in str(
        problem
    )
    assert shelf.names() == before


@pytest.mark.parametrize("size", [-1, 0])
def test_an_output_that_was_cut_is_named(shelf: Shelf, size: int) -> None:
    data = shelf.paths.output.read_bytes()
    shelf.paths.output.write_bytes(data[:size])
    assert shelf.refuse("-o", "-").exit_code == 3


def test_bytes_behind_the_last_commit_are_no_answer(shelf: Shelf) -> None:
    before = shelf.take("--order", "finish")
    with shelf.paths.output.open("ab") as file:
        file.write(b"half a li")
    assert shelf.take("--order", "finish") == before


def test_a_line_with_the_right_checksum_that_is_no_answer_is_refused_in_words(shelf: Shelf) -> None:
    place = Results.place(b"[1]\n", 0)
    shelf.paths.output.write_bytes(b"[1]\n")
    sql(
        shelf.paths.ledger,
        f"UPDATE record SET out_offset = 0, out_length = 4, out_crc32 = {place.crc32} WHERE state = 'done'",
    )
    assert "is none of ours" in str(shelf.refuse("--format", "csv", "-o", "-"))


def test_a_dataset_of_an_input_that_changed_is_refused_and_the_other_formats_do_not_mind(shelf: Shelf) -> None:
    shelf.input.write_bytes(shelf.input.read_bytes().replace(b"two", b"TWO"))
    problem = shelf.refuse("--format", "yandex-dataset", "-o", "-")
    assert (problem.exit_code, "in.jsonl:2: changed since it was sent" in str(problem)) == (3, True)
    shelf.input.unlink()
    assert shelf.refuse("--format", "yandex-dataset", "-o", "-").exit_code == 2
    assert shelf.refuse("--with-errors", "-o", "-").exit_code == 2
    for format in set(FORMATS) - {"yandex-dataset"}:
        assert shelf.take("--format", format)


def test_failures_whose_line_changed_are_told_without_it(shelf: Shelf) -> None:
    shelf.input.write_bytes(shelf.input.read_bytes().replace(b"five", b"FIVE"))
    lines = {line["line"]: line for line in json_lines(shelf.take("--with-errors"))}
    assert lines[5]["input"] is None


# --- where it goes ---


def test_a_file_is_made_in_one_rename_after_it_is_durable(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_replace = os.replace

    def replace(source: Path, target: Path) -> None:
        steps.append("renamed")
        real_replace(source, target)

    monkeypatch.setattr(os, "fdatasync", lambda fd: steps.append("synced"))
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append("name synced"))
    monkeypatch.setattr(os, "replace", replace)
    before = shelf.names()
    assert shelf.call("-o", str(tmp_path / "new.jsonl")).stdout == ""
    assert steps == ["synced", "name synced", "renamed", "name synced"]
    assert (tmp_path / "new.jsonl").read_bytes() == shelf.take()
    assert shelf.names() == sorted([*before, "new.jsonl"])


TAKEN = {
    "a file": "there",
    "a link to nothing": "link",
    "a folder": "folder",
    "the output": "out.jsonl",
    "the input, which is gone": "in.jsonl",
    "where the failures go": "out.errors.ndjson",
    "the state": "out.jsonl.batchrun",
    "a place in the state": "out.jsonl.batchrun/new",
    "a place in the state, by a link": "way/new",
    "no folder": "nowhere/new",
}


@pytest.mark.parametrize("name", TAKEN.values(), ids=TAKEN)
def test_no_file_is_overwritten_and_no_place_of_the_job_is_taken(shelf: Shelf, tmp_path: Path, name: str) -> None:
    (tmp_path / "there").write_text("precious")
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "way").symlink_to("out.jsonl.batchrun")
    (tmp_path / "folder").mkdir()
    shelf.input.unlink()  # its place stays taken
    before = shelf.names(), sorted(shelf.paths.state.iterdir())
    problem = shelf.refuse("-o", str(tmp_path / name))
    how = {"nowhere/new": "no folder", "there": "there already", "link": "there already", "folder": "there already"}
    assert (problem.exit_code, how.get(name, "belongs to the job") in problem.cause) == (2, True)
    assert (shelf.names(), sorted(shelf.paths.state.iterdir())) == before
    assert (tmp_path / "there").read_text() == "precious"


def test_a_file_that_cannot_be_written_to_its_end_is_not_there(shelf: Shelf, tmp_path: Path) -> None:
    before = shelf.names()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        problem = shelf.refuse("-o", str(tmp_path / "new"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (problem.exit_code, "new` cannot be written" in str(problem)) == (74, True)
    assert shelf.names() == before


def test_a_dataset_has_no_place_for_failures(shelf: Shelf) -> None:
    assert shelf.refuse("--format", "yandex-dataset", "--with-errors", "-o", "-").exit_code == 2


def test_while_a_run_is_at_work_nothing_is_exported(shelf: Shelf) -> None:
    lock = JobDir.take(shelf.paths)
    assert shelf.refuse("-o", "-").exit_code == 2
    lock.release()
    assert shelf.take()


def test_without_a_job_there_is_nothing_to_export(tmp_path: Path) -> None:
    problem = CliRunner().invoke(export, [str(tmp_path / "out.jsonl"), "-o", "-"]).exception
    assert isinstance(problem, BatchrunError)
    assert problem.exit_code == 2


def test_a_state_that_stands_elsewhere_is_named(shelf: Shelf, tmp_path: Path) -> None:
    beside = shelf.take()
    os.rename(shelf.paths.state, tmp_path / "elsewhere")
    assert shelf.call("-o", "-").exit_code != 0
    assert shelf.take("--state-dir", str(tmp_path / "elsewhere")) == beside
    shelf.paths.output.write_bytes(shelf.paths.output.read_bytes().replace(b'"stop"', b'"stap"'))
    problem = shelf.refuse("--state-dir", str(tmp_path / "elsewhere"), "-o", "-")
    assert f"batchrun verify {shelf.paths.output} --state-dir {tmp_path / 'elsewhere'} names" in problem.remedy
