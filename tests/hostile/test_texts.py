"""Whatever text a record holds, it is asked and answered unchanged, one line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.providers.http import Exchange
from tests.hostile import drawn
from tests.hostile.here import Here, finished, in_memory, json_lines, reply

HOSTILE = (
    "a\x00b\x00",
    "line\u2028paragraph\u2029next\x85line",
    "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "\u202egnp.exe\u202c \u2066isolated\u2069 \ufeff\u200b",
    "\U0001f600 \U0010ffff e\u0301 क्षि 👩‍👩‍👧",
    "\ufffe\uffff\ufdd0",
    '{"id": "x", "line": 1, "text": "not a result", "operation_id": "op000001"}\n',
    "../../etc/passwd",
    "'; DROP TABLE record; --",
    "=cmd|' /C calc'!A0",
    "%00%0a%s{0}${HOME}`id`$(id)",
    "one\r\ntwo\rthree\nfour\n\n",
    '\\"\\\\\\n\\u0000 "quoted" \\',
    "\t\v\f\x1c\x1d\x1e.",
    "</script><script>alert(1)</script>&amp;",
    "x" * (1 << 20),
    "жё\U0001f600\x00\u2028" * 30_000,
    " leading and trailing ",
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: not text.isspace()
)


def to_id(text: str) -> str:
    """As much of a text as an id may hold."""
    printable = "".join(c for c in text if c >= " " and not "\x7f" <= c <= "\x9f")
    return printable.encode()[:200].decode(errors="ignore") or "-"


def in_this_mood(operation_id: str, text: str) -> Exchange:
    """Answers with the text itself, or fails for good."""
    if text.startswith("fail:"):
        return reply({"id": operation_id, "done": True, "error": {"code": 3, "message": "no, not this one"}})
    return finished(operation_id, text)


def lines_of(texts: list[str], *, ascii_only: bool) -> list[bytes]:
    records = []
    for number, text in enumerate(texts):
        meta = {"note": text[:1000], "deep": {text[:1000]: [text[:1000], number]}}
        for mood in ("", "fail:"):
            record = {"id": f"{mood}{number}:{to_id(text)}", "prompt": mood + text, **meta}
            records.append(json.dumps(record, ensure_ascii=ascii_only).encode())
    return records


def check_all_comes_back(folder: Path, texts: list[str], *, ascii_only: bool) -> None:
    here = Here(folder)
    here.service.answer = in_this_mood
    lines = lines_of(texts, ascii_only=ascii_only)
    here.input.write_bytes(b"\n".join(lines))
    assert here.run().code == 1
    by_id: dict[Any, dict[str, Any]] = {(given := json.loads(line))["id"]: given for line in lines}
    results, failures = here.results(), json_lines(here.failures)
    assert {failure["error"]["kind"] for failure in failures} == {"invalid_argument"}, [
        f["error"] for f in failures if f["id"] is None
    ]
    assert sorted(line["id"] for line in (*results, *failures)) == sorted(by_id)
    for result in results:
        given = by_id[result["id"]]
        assert result["text"] == given["prompt"]
        assert result["meta"] == {"note": given["note"], "deep": given["deep"]}
    for failure in failures:
        given = by_id[failure["id"]]
        assert failure["input"] == given
        assert failure["meta"] == {"note": given["note"], "deep": given["deep"]}
    for path in (here.output, here.failures):
        read_by_another = path.read_bytes().decode().splitlines()  # takes U+2028, U+0085 and form feeds for line ends
        assert len(read_by_another) == len(texts)
    assert here("verify", "out.jsonl").code == 0
    here("status", "out.jsonl")


@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "raw"])
def test_hostile_texts_come_back_as_they_were(tmp_path: Path, ascii_only: bool) -> None:
    """Fails if ``one_line`` leaves a line end of some reader as it is, or drops a character."""
    check_all_comes_back(tmp_path, list(HOSTILE), ascii_only=ascii_only)


@given(st.lists(TEXTS, min_size=1, max_size=5), st.booleans())
@drawn(8)
def test_any_text_comes_back_as_it_was(texts: list[str], ascii_only: bool) -> None:
    with in_memory() as folder:
        check_all_comes_back(folder, texts, ascii_only=ascii_only)
