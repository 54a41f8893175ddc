"""Outcomes -> result lines, handed to storage; and the failures file, derived from the ledger."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from batchrun.channel import Channel
from batchrun.check import Source
from batchrun.inputs import Parsed, parse
from batchrun.lines import BadLine, digest, strict_json
from batchrun.log import event
from batchrun.record import Prompt, Settings
from batchrun.run import Run
from batchrun.storage.jobdir import JobPaths
from batchrun.storage.ledger import Ledger, Row
from batchrun.storage.results import replace_file, writing
from batchrun.storage.thread import Line
from batchrun.tracker import Answered

_LINE_ENDS = ((b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"), (b"\xc2\x85", rb"\u0085"))
"""Characters that some readers take for a line end: a result must stay one line for them too."""


async def write_answers(run: Run, answers: Channel[Answered]) -> int:
    """Write them as they come, as many at a time as have come. Returns how many lack their ``meta``."""
    lines_gone = 0
    while batch := await answers.get_all():
        lines, without_meta = await run.storage.do(_lines_of, batch, run.source, run.config.settings)
        await run.storage.write_lines(lines)
        lines_gone += without_meta
    return lines_gone


def _lines_of(ledger: Ledger, batch: Sequence[Answered], source: Source, settings: Settings) -> tuple[list[Line], int]:
    lines, without_meta, now = [], 0, time.time()
    rows = ledger.rows([answered.seq for answered in batch])
    for answered in batch:
        row = rows[answered.seq]
        parsed = read_again(source, row, with_prompt=False)
        if parsed is None:
            without_meta += 1
            event("input_line_changed", logging.WARNING, line=row.place.line)
        result = result_of(answered, row, parsed, settings, now)
        lines.append(Line(row.seq, answered.operation_id, one_line(result), answered.answer.usage, now))
    return lines, without_meta


def result_of(answered: Answered, row: Row, parsed: Parsed | None, settings: Settings, now: float) -> dict[str, Any]:
    """One result, with all its fields; ``meta`` is null if the input line is no longer there to be read."""
    answer = answered.answer
    return {
        "id": row.id,
        "line": row.place.line,
        "text": answer.text,
        "json": _parsed(answer.text) if answer.json is None and settings.schema is not None else answer.json,
        "finish_reason": answer.finish_reason,
        "model": _model(parsed.prompt if parsed else None, settings),
        "model_version": answer.model_version,
        "usage": asdict(answer.usage),
        "meta": parsed.meta if parsed else None,
        "operation_id": answered.operation_id,
        "provider": settings.provider,
        "attempt": row.history.attempt,
        "maybe_paid": row.history.maybe_paid,
        "submitted_at": utc(row.submitted_at),
        "finished_at": utc(now),
    }


def _parsed(text: str | None) -> Any:
    """What an answer says that was to be JSON; None if it is none."""
    try:
        return strict_json((text or "").encode(errors="replace"))
    except BadLine:
        return None


def one_line(value: dict[str, Any]) -> bytes:
    """One JSON object as one line of UTF-8, with its LF, that nothing can take for two."""
    try:
        data = orjson.dumps(value)
    except TypeError:  # half a surrogate pair is no character: every reader would stumble over it
        text = json.dumps(value, ensure_ascii=False)
        data = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    for raw, escaped in _LINE_ENDS:
        data = data.replace(raw, escaped)
    return data + b"\n"


def utc(at: float | None) -> str | None:
    """Unix seconds as RFC 3339 in UTC, whole seconds."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_again(source: Source, row: Row, *, with_prompt: bool = True) -> Parsed | None:
    """The record, read again from its place; None if the line is no longer the one that was sent, or is no record.

    ``with_prompt`` False: a template, which may take its time, is not asked for the prompt once more.
    """
    reading = source.reading
    if reading.render is not None and not with_prompt:
        reading = replace(reading, render=lambda fields: "-")
    raw = os.pread(source.fd, row.place.length, row.place.offset)
    if digest(raw) != row.digest:
        return None
    try:
        return parse(raw, reading)
    except BadLine:
        return None


def _model(prompt: Prompt | None, settings: Settings) -> str:
    asked = prompt or Prompt(None)
    body = asked.body or {}
    named = asked.model or body.get("modelUri") or body.get("model_uri") or body.get("model") or settings.model
    return re.sub(r"^gpt://[^/]*/", "", named)


def write_failures(ledger: Ledger, source: Source, paths: JobPaths) -> int:
    """Bring the failures file in step with the ledger, in one rename; no failures, no file.

    Returns how many have no ``input`` although they were records: their line is gone.
    """
    lines_gone = 0

    def made() -> Iterator[bytes]:
        nonlocal lines_gone
        for row in ledger.walk("rows_unwell"):
            failure = failure_of(row, source)
            lines_gone += failure["input"] is None and failure["error"]["kind"] != "bad_input"
            yield one_line(failure)

    if next(ledger.walk("rows_unwell"), None) is not None:
        replace_file(paths.failures, made(), meanwhile=paths.new_failures)
    else:
        with writing(paths.failures):
            paths.failures.unlink(missing_ok=True)
    return lines_gone


def failure_of(row: Row, source: Source) -> dict[str, Any]:
    """One failure, with all its fields; ``meta`` and ``input`` are null if the line is no longer there to be read."""
    failure = row.failure
    assert failure is not None, "the schema forbids it"
    parsed = None if failure.kind == "bad_input" else read_again(source, row, with_prompt=False)
    as_read = None
    if parsed:
        raw = os.pread(source.fd, row.place.length, row.place.offset)
        as_read = orjson.Fragment(raw.replace(b"\r", b" "))  # between tokens, if anywhere
    return {
        "id": row.id,
        "line": row.place.line,
        "meta": parsed.meta if parsed else None,
        "operation_id": row.operation_id,
        "attempt": row.history.attempt,
        "maybe_paid": row.history.maybe_paid,
        "text": None,
        "finish_reason": failure.finish_reason,
        "usage": asdict(failure.usage),
        "error": {
            "kind": failure.kind,
            "code": failure.code,
            "message": failure.message.encode(errors="replace").decode(),
            "retryable": failure.retryable,
        },
        "input": as_read,
    }
