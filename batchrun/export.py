"""Answers taken away: rows of the ledger in the order asked for, each line of the output in another shape."""

from __future__ import annotations

import csv
import heapq
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import orjson

from batchrun.check import Source
from batchrun.errors import InputProblem
from batchrun.providers.instruct import INSTRUCTIONS
from batchrun.providers.yandex import Credentials, Yandex
from batchrun.record import JsonObject, Prompt, Settings, State
from batchrun.storage.jobdir import JobPaths
from batchrun.storage.ledger import Ledger, Row
from batchrun.storage.results import read_back
from batchrun.writer import failure_of, one_line, read_again

FORMATS = ("jsonl", "openai", "yandex-dataset", "csv", "txt")
CSV_COLUMNS = ("id", "line", "text", "finish_reason", "input_tokens", "output_tokens", "maybe_paid", "operation_id")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_SERVICE = Yandex(Credentials("-", "-"))  # builds requests, and sends none
_LINE_END = re.compile("\r\n|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")


@dataclass(slots=True)
class Export:
    """A job's answers in one format. ``left_out`` counts those for which the format has no place.

    ``output_fd`` is the open output, ``source`` the input, which only failures and datasets need.
    """

    ledger: Ledger
    paths: JobPaths
    output_fd: int
    source: Source
    settings: Settings
    format: str
    with_errors: bool
    left_out: int = 0

    def lines(self, order: str) -> Iterator[bytes]:
        """Every line, made as it is asked for: in the order of the input, or ``finish``.

        Raises:
            InputProblem: an answer is not as it was written, or its record not as it was sent.
        """
        if self.format == "csv":
            yield _cells([*CSV_COLUMNS, *["error"] * self.with_errors, "meta"])
        for row in self._rows(order):
            line = self._answer(row) if row.state is State.DONE else b""
            try:
                if self.format != "jsonl" or not line:
                    line = self._shaped(row, orjson.loads(line) if line else failure_of(row, self.source))
            except (ValueError, TypeError, LookupError, AttributeError) as error:  # whoever wrote it, it was not us
                raise self._differs(row, "is none of ours") from error
            self.left_out += not line
            yield line

    def _rows(self, order: str) -> Iterator[Row]:
        rows = self.ledger.walk("rows_in_order")
        if order == "finish":  # answers as they stand in the output, failures where their time puts them
            both = self.ledger.walk("rows_done"), self.ledger.walk("rows_unwell_in_time")
            rows = heapq.merge(*both, key=lambda row: row.finished_at or 0.0)
        return (row for row in rows if row.state is State.DONE or (self.with_errors and row.failure is not None))

    def _answer(self, row: Row) -> bytes:
        line = read_back(self.output_fd, row.written)
        if line is None:
            raise self._differs(row, "is not as it was written")
        return line

    def _differs(self, row: Row, how: str) -> InputProblem:
        cause = f"{self.paths.output}: the answer to {row.named} {how}; the export ends here"
        return InputProblem(cause, remedy=f"batchrun verify {self.paths.named} names every difference")

    def _shaped(self, row: Row, found: JsonObject) -> bytes:
        match self.format:
            case "openai":
                return one_line(_openai(row, found))
            case "txt":
                return _LINE_END.sub(r"\\n", found["text"] or "").encode() + b"\n"
            case "csv":
                meta = None if found["meta"] is None else orjson.dumps(found["meta"]).decode()
                kind = [found.get("error", {}).get("kind")] * self.with_errors
                return _cells([*((found | found["usage"])[name] for name in CSV_COLUMNS), *kind, meta])
            case "yandex-dataset":
                return self._dataset(row, found)
        return one_line(found)

    def _dataset(self, row: Row, found: JsonObject) -> bytes:
        """The request as it was sent, and its answer; nothing if either holds tool calls."""
        parsed = read_again(self.source, row)
        if parsed is None:
            remedy = "put it back as it was: yandex-dataset takes the requests from it"
            raise InputProblem(f"{self.source.path}:{row.place.line}: changed since it was sent", remedy=remedy)
        messages = messages_of(parsed.prompt, self.settings)
        request = [{"role": message["role"], "text": message.get("text")} for message in messages]
        has_place = found["text"] is not None and all(message["text"] is not None for message in request)
        return one_line({"request": request, "response": found["text"]}) if has_place else b""


def messages_of(prompt: Prompt, settings: Settings) -> list[JsonObject]:
    """The messages of a request, the system message included; the older API's request has two of another name."""
    body = prompt.body or {}
    if text := body.get("requestText") or body.get("request_text"):
        prompt = Prompt(text, system=next((body[name] for name in INSTRUCTIONS if body.get(name) is not None), None))
    messages: list[JsonObject] = orjson.loads(_SERVICE.build(prompt, settings))["messages"]
    return messages


def _openai(row: Row, found: JsonObject) -> JsonObject:
    error, operation_id = found.get("error"), found["operation_id"]
    name = f"line-{row.place.line}" if row.id is None else str(row.id)
    line = {"id": f"batch_req_{row.place.line}", "custom_id": name, "response": None, "error": None}
    if error is not None:
        return line | {"error": {"code": error["kind"], "message": error["message"]}}
    message = {"role": "assistant", "content": found["text"]}
    if found["finish_reason"] == "tool_calls" and (calls := (found["json"] or {}).get("toolCalls")):
        message["tool_calls"] = [_tool_call(at, each["functionCall"]) for at, each in enumerate(calls)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": found["finish_reason"]}
    body = {"id": operation_id, "object": "chat.completion", "created": int(row.finished_at or 0)}
    body |= {"model": found["model"], "system_fingerprint": found["model_version"], "choices": [choice]}
    names = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens", "total_tokens": "total_tokens"}
    body |= {"usage": {there: found["usage"][here] for there, here in names.items()}}
    return line | {"response": {"status_code": 200, "request_id": operation_id, "body": body}}


def _tool_call(at: int, call: JsonObject) -> JsonObject:
    function = {"name": call["name"], "arguments": orjson.dumps(call.get("arguments", {})).decode()}
    return {"id": f"call_{at}", "type": "function", "function": function}


def _cells(values: Iterable[object]) -> bytes:
    """One row of CSV. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(f"'{each}" if str(each).startswith(_FORMULA) else each for each in values)
    return text.getvalue().encode()
