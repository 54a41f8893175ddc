"""Lines, shapes and refusals: what becomes of every kind of input line."""

from __future__ import annotations

import bz2
import gzip
import json
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.check import is_record
from batchrun.inputs import Parsed, Reading, Shape, _parsed, identity, parse
from batchrun.lines import MAX_LINE_BYTES, BadLine, Line, LineSplitter, digest, sniff, strict_json
from batchrun.record import JsonObject, Prompt

BOM = b"\xef\xbb\xbf"


def lines_of(*blocks: bytes) -> list[Line]:
    splitter = LineSplitter()
    return [line for block in blocks for line in splitter.feed(block)] + splitter.end()


def refusal(raw: bytes) -> BadLine:
    with pytest.raises(BadLine) as caught:
        parse(raw)
    return caught.value


def refused_or_none(raw: bytes) -> BadLine | None:
    try:
        parse(raw)
    except BadLine as bad:
        return bad
    return None


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


# --- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", [], id="an empty file has no lines"),
        pytest.param(b"a\nb\n", [(1, 0, b"a"), (2, 2, b"b")], id="LF ends"),
        pytest.param(b"a\nb", [(1, 0, b"a"), (2, 2, b"b")], id="last line without LF"),
        pytest.param(b"a\r\nb\r", [(1, 0, b"a"), (2, 3, b"b")], id="CR before LF is cut"),
        pytest.param(b"a\r\r\n", [(1, 0, b"a\r")], id="only one CR is cut"),
        pytest.param(b"a\rb\n", [(1, 0, b"a\rb")], id="CR alone ends nothing"),
        pytest.param(BOM + b"a\nb\n", [(1, 3, b"a"), (2, 5, b"b")], id="BOM on line 1 is cut"),
        pytest.param(BOM + BOM + b"a\n", [(1, 3, BOM + b"a")], id="BOM is cut once"),
        pytest.param(b"a\n" + BOM + b"b\n", [(1, 0, b"a"), (2, 2, BOM + b"b")], id="BOM elsewhere stays"),
        pytest.param(b"\n \t\r\na\n", [(1, 0, b""), (2, 1, b" \t"), (3, 5, b"a")], id="blank lines count"),
        pytest.param(
            "a\u2028b\u2029c\u0085d\x0be\n".encode(),
            [(1, 0, "a\u2028b\u2029c\u0085d\x0be".encode())],
            id="other line separators end nothing",
        ),
    ],
)
def test_lines_end_at_lf_only(data: bytes, expected: list[tuple[int, int, bytes]]) -> None:
    assert lines_of(data) == [Line(number, offset, raw, False) for number, offset, raw in expected]


BYTES_OF_LINES = st.lists(st.sampled_from([b"a", b"\n", b"\r", b" ", BOM, b"\xef", b"\xd0\xb6"])).map(b"".join)


@given(BYTES_OF_LINES, st.lists(st.integers(min_value=0, max_value=40)))
def test_the_lines_do_not_depend_on_the_blocks(data: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    lines = lines_of(*(data[start:stop] for start, stop in pairwise(places)))
    assert lines == lines_of(data)
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert all(data.startswith(line.raw, line.offset) for line in lines)


@given(BYTES_OF_LINES)
def test_splitting_can_start_at_any_line(data: bytes) -> None:
    lines = lines_of(data)
    for start in lines:
        if start.offset == len(data):
            continue  # a file of one BOM: nothing is left behind it
        splitter = LineSplitter(offset=start.offset, number=start.number)
        rest = splitter.feed(data[start.offset :]) + splitter.end()
        assert rest == lines[start.number - 1 :]


@pytest.mark.parametrize("block_bytes", [1 << 16, 1 << 18, 1 << 23])
@pytest.mark.parametrize("over", [-1, 0, 1, 300_000])
@pytest.mark.parametrize("tail", [b"", b"\n", b"\nnext"])
def test_a_line_over_the_limit_is_reported_empty(block_bytes: int, over: int, tail: bytes) -> None:
    data = b"first\n" + b"x" * (MAX_LINE_BYTES + over) + tail
    lines = lines_of(*(data[i : i + block_bytes] for i in range(0, len(data), block_bytes)))
    kept = b"" if over > 0 else data[6 : 6 + MAX_LINE_BYTES + over]
    expected = [Line(1, 0, b"first", False), Line(2, 6, kept, over > 0)]
    if tail == b"\nnext":
        expected.append(Line(3, len(data) - 4, b"next", False))
    assert lines == expected


def test_a_line_over_the_limit_is_never_held_whole() -> None:
    block_bytes = 1 << 18
    splitter = LineSplitter()
    tracemalloc.start()
    for _ in range(100):
        assert splitter.feed(bytes(block_bytes)) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MAX_LINE_BYTES + 3 * block_bytes
    assert splitter.feed(b"\n") == [Line(1, 0, b"", True)]


@pytest.mark.parametrize(
    ("raw", "blank"), [(b"", True), (b" \t\r", True), (b"{}", False), (b"\x0c", False), (b"\x00", False)]
)
def test_a_blank_line_holds_only_spaces_tabs_and_cr(raw: bytes, blank: bool) -> None:
    assert is_record(Line(1, 0, raw, False)) is not blank


def test_a_digest_tells_lines_apart() -> None:
    assert digest(b'{"prompt": "a"}') == digest(b'{"prompt": "a"}') != digest(b'{"prompt":"a"}')
    assert len(digest(b"")) == 16


# --- strict JSON ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "reason", "column"),
    [
        pytest.param(BOM + b'{"prompt":"a"}', "byte order mark", 1, id="5: BOM not on line 1"),
        pytest.param(b'{"prompt":"\xff"}', "not UTF-8: wrong byte 0xff", 12, id="7: no UTF-8"),
        pytest.param("{'prompt':'ж'}".encode("cp1251"), "not UTF-8: wrong byte 0xe6", 12, id="7: cp1251"),
        pytest.param(b'{"prompt":"\xd0', "not UTF-8: wrong byte 0xd0", 12, id="7: cut in a letter"),
        pytest.param(b'{"prompt":"\xc0\xaf"}', "not UTF-8: wrong byte 0xc0", 12, id="7: overlong"),
        pytest.param(b'{"prompt":"\xed\xa0\x80"}', "not UTF-8: wrong byte 0xed", 12, id="7: surrogate"),
        pytest.param(rb'{"prompt":"a\ud800"}', r"half of a \ud800-\udfff pair", 13, id="8: high half"),
        pytest.param(rb'{"prompt":"\uDFFF a"}', r"half of a \ud800-\udfff pair", 12, id="8: low half"),
        pytest.param(rb'{"prompt":"\ud83d\ud83d\ude00"}', "half of a", 12, id="8: half before a pair"),
        pytest.param(rb'{"prompt":"\\\ud800"}', "half of a", 14, id="8: behind a backslash"),
        pytest.param(rb'{"prompt":"a","\udc00":1}', "half of a", 16, id="8: in a key"),
        pytest.param(rb'{"prompt":"a","b":[{"c":"\ud800"}]}', "half of a", 26, id="8: deep in meta"),
        pytest.param(b'{"prompt":"a\x00"}', "not JSON: a raw control character", 13, id="9: NUL"),
        pytest.param(b'{"prompt":"\x1b[0m"}', "not JSON: a raw control character", 12, id="9: escape"),
        pytest.param(b'{"prompt":"a\tb"}', "not JSON: a raw control character", 13, id="9: tab"),
        pytest.param(b'{"prompt":"a\nb"}', "not JSON: a raw control character", 13, id="9: LF"),
        pytest.param(b'\x00{"prompt":"a"}', "not JSON: expecting value", 1, id="9: NUL outside a text"),
        pytest.param(b'{"prompt":"a","x":NaN}', "not JSON: NaN", None, id="12: NaN"),
        pytest.param(b'{"prompt":"a","x":-Infinity}', "not JSON: -Infinity", None, id="12: Infinity"),
        pytest.param(b'{"prompt":"a","x":1e999}', "a number is too large", None, id="12: 1e999"),
        pytest.param(b'{"prompt":"a","x":18446744073709551616}', "over 64 bits", None, id="13: 2**64"),
        pytest.param(b'{"prompt":"a","x":-9223372036854775809}', "over 64 bits", None, id="13: -2**63-1"),
        pytest.param(b'{"id":' + b"9" * 100_000 + b"}", "over 64 bits", None, id="13: 100,000 digits"),
        pytest.param(b'{"prompt":"a","prompt":"b"}', "'prompt' is given twice", None, id="14: at the top"),
        pytest.param(b'{"prompt":"a","x":[{"b":1,"b":1}]}', "'b' is given twice", None, id="14: inside"),
        pytest.param(b'{"a":1,"\\u0061":2}', "'a' is given twice", None, id="14: once escaped"),
        pytest.param(b'{"\\u001b[0m":1,"\\u001b[0m":2}', r"'\x1b[0m' is given twice", None, id="14: control"),
        pytest.param(b'{"p":' + b"[" * 64 + b"]" * 64 + b"}", "nested deeper than 64", None, id="15: 65 levels"),
        pytest.param(b"[" * 100_000, "nested deeper than 64", None, id="15: 100,000 brackets"),
        pytest.param(b'{"a":' * 100_000, "nested deeper than 64", None, id="15: 100,000 objects"),
        pytest.param(b"[" * 600 + b"]" * 600, "nested deeper than 64", None, id="15: 600 levels"),
        pytest.param(
            b'{"x":1e300,"p":' + b"[" * 64 + b"]" * 64 + b"}", "nested deeper", None, id="15: behind a number"
        ),
        pytest.param(b"[1]", "a record is an object", None, id="17: array"),
        pytest.param(b"12", "a record is an object", None, id="17: number"),
        pytest.param(b"true", "a record is an object", None, id="17: true"),
        pytest.param(b"null", "a record is an object", None, id="17: null"),
        pytest.param(b'{"prompt":"a"} {"prompt":"b"}', "not JSON: extra data", 16, id="18: two objects"),
        pytest.param(b'{"prompt":"a"}"b"', "not JSON: extra data", 15, id="18: object and text"),
        pytest.param(b'{"prompt":"a"},', "not JSON: extra data", 15, id="18: comma after the object"),
        pytest.param(b'{"prompt":"a"}}', "not JSON: extra data", 15, id="18: bracket too many"),
        pytest.param(b'// a\t{"prompt":"a"}', "not JSON: expecting value", 1, id="18: comment before"),
        pytest.param(b'{"prompt":"a"} # a', "not JSON: extra data", 16, id="18: comment after"),
        pytest.param(b'{"prompt": /* a */ "a"}', "not JSON: expecting value", 12, id="18: comment inside"),
        pytest.param(b"{'prompt':'a'}", "in double quotes", 2, id="18: single quotes"),
        pytest.param(b"{\"prompt\":'a'}", "not JSON: expecting value", 11, id="18: single quotes for a text"),
        pytest.param(b"{prompt:1}", "in double quotes", 2, id="bare key"),
        pytest.param(b'{"x":True}', "not JSON: expecting value", 6, id="Python's True"),
        pytest.param(b'{"prompt" "a"}', "expecting ':'", 11, id="no colon"),
        pytest.param(b'{"prompt":"a "b" c"}', "expecting ','", 15, id="quote inside a text"),
        pytest.param(rb'{"prompt":"C:\dir"}', r"invalid \escape", 14, id="lone backslash"),
        pytest.param(b'{"id":"r1",', "not JSON: unexpected end of line", 12, id="cut after a comma"),
        pytest.param(b'{"id":"r1","prompt":"Na', "not JSON: unexpected end of line", 24, id="cut in a text"),
        pytest.param('{"prompt":"Жук"'.encode(), "not JSON: unexpected end", 19, id="columns are bytes"),
        pytest.param(b"", "not JSON: unexpected end of line", 1, id="nothing"),
        pytest.param(b"hello", "not JSON: expecting value", 1, id="bare word"),
    ],
)
def test_what_is_not_strict_json_is_refused(raw: bytes, reason: str, column: int | None) -> None:
    refused = refusal(raw)
    assert reason in refused.reason
    assert refused.column == column


@pytest.mark.parametrize("raw", [b'{"prompt":"a" , }', b'{"prompt":"a","x":[1,]}'], ids=["object", "list"])
def test_a_comma_before_a_bracket_is_refused(raw: bytes) -> None:
    """Row 18; which byte is named depends on the version of Python."""
    assert refusal(raw).reason.startswith("not JSON: ")


def test_a_refusal_reads_as_one_sentence() -> None:
    assert str(refusal(b'{"id":"r1",')) == "not JSON: unexpected end of line at byte 12"
    assert str(refusal(b"[1]")) == "a record is an object in { } or a text in quotes, nothing else"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        pytest.param(rb'{"prompt":"a\u0000b"}', "a\x00b", id="10: escaped NUL"),
        pytest.param('{"prompt":"a\u2028\u2029\u0085\ufeffb"}'.encode(), "a\u2028\u2029\u0085\ufeffb", id="11: U+2028"),
        pytest.param(rb'{"prompt":"\ud83d\uDE00 \\ud800"}', "\U0001f600 \\ud800", id="8: a whole pair"),
        pytest.param(b' \t{ "prompt" :\r"a" } \r', "a", id="space between"),
        pytest.param(b'"' + b"[{" * 1000 + b'"', "[{" * 1000, id="15: brackets in a text"),
        pytest.param(b'"a \\"' + b"[" * 100 + b'"', 'a "' + "[" * 100, id="15: brackets behind a quote"),
        pytest.param(b' "a" ', "a", id="17: a text is a prompt"),
    ],
)
def test_what_is_strict_json_is_taken_as_it_is(raw: bytes, text: str) -> None:
    assert parse(raw).prompt == Prompt(text)


@pytest.mark.parametrize("number", ["-9223372036854775808", "18446744073709551615", "1e308", "0.1", "-0", "1e-400"])
def test_numbers_that_fit_are_kept(number: str) -> None:
    assert parse(b'{"prompt":"a","x":%s}' % number.encode()).meta == {"x": json.loads(number)}


def test_64_levels_are_accepted() -> None:
    assert parse(b'{"prompt":"a","x":' + b"[" * 63 + b"]" * 63 + b"}").prompt == Prompt("a")


def test_too_many_levels_are_refused_however_many_python_can_take() -> None:
    """Fails if only the fast parser's values are looked through: it refuses what is deeper than 1024 levels."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(9000)
    try:
        assert refusal(b"[" * 1500 + b"]" * 1500).reason == "nested deeper than 64 levels"
    finally:
        sys.setrecursionlimit(limit)


def test_a_reason_never_holds_the_prompt() -> None:
    secret = "s3cret"
    raw = line(id=7, prompt=secret, temperature=0.5)
    for cut in range(len(raw)):
        assert secret not in str(refusal(raw[:cut]))


# --- shapes ---------------------------------------------------------------------------------------

HELLO = [{"role": "user", "text": "hello"}]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"prompt": "a"}, Parsed(None, Prompt("a"), {}), id="a prompt alone"),
        pytest.param(
            {
                "id": "r1",
                "prompt": "a",
                "system": "s",
                "model": "m",
                "temperature": 0,
                "max_tokens": 5,
                "sku": [1],
            },
            Parsed("r1", Prompt("a", None, "s", "m", 0.0, 5), {"sku": [1]}),
            id="24: every option, and meta",
        ),
        pytest.param(
            {"prompt": "a", "system": None, "model": None, "temperature": None, "max_tokens": None},
            Parsed(None, Prompt("a"), {}),
            id="null leaves an option to the job",
        ),
        pytest.param(
            {
                "modelUri": "gpt://f/m",
                "completionOptions": {"maxTokens": "9"},
                "messages": HELLO,
                "lang": "ru",
            },
            Parsed(
                None,
                Prompt(
                    None,
                    {"modelUri": "gpt://f/m", "completionOptions": {"maxTokens": "9"}, "messages": HELLO},
                ),
                {"lang": "ru"},
            ),
            id="a full body is kept as given",
        ),
        pytest.param(
            {
                "key": 4,
                "messages": HELLO,
                "completion_options": {"temperature": 1, "max_tokens": 9},
                "json_object": True,
            },
            Parsed(
                4,
                Prompt(
                    None,
                    {
                        "messages": HELLO,
                        "completion_options": {"temperature": 1, "max_tokens": 9},
                        "json_object": True,
                    },
                ),
                {},
            ),
            id="a full body in snake case",
        ),
        pytest.param(
            {"prompt": "a", "key": "k", "custom_id": "c", "id": "i"},
            Parsed("i", Prompt("a"), {"key": "k", "custom_id": "c"}),
            id="id comes first",
        ),
        pytest.param({"prompt": "a", "key": "k", "custom_id": 3}, Parsed(3, Prompt("a"), {"key": "k"}), id="custom_id"),
        pytest.param(
            {"prompt": "a", "id": None, "key": "k"},
            Parsed("k", Prompt("a"), {}),
            id="a null id is none",
        ),
        pytest.param({"prompt": "a", "id": "ж" * 128}, Parsed("ж" * 128, Prompt("a"), {}), id="28: an id of 256 bytes"),
        pytest.param(
            {"prompt": "a", "input": {"prompt": "b"}, "error": {}},
            Parsed(None, Prompt("a"), {"input": {"prompt": "b"}, "error": {}}),
            id="input and error are ordinary fields",
        ),
    ],
)
def test_a_record_is_a_prompt_or_a_body(fields: JsonObject, expected: Parsed) -> None:
    assert parse(line(**fields)) == expected


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "text": "a"},
        {"role": "assistant", "toolCallList": {"toolCalls": []}},
        {"role": "user", "tool_result_list": {}},
    ],
)
def test_a_message_is_text_or_tool_calls_or_tool_results(message: JsonObject) -> None:
    assert parse(line(messages=[message])).prompt.body == {"messages": [message]}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"sku": 1, "body": 2, "lang": 3}, "no prompt; fields here: sku, body, lang", id="21: neither"),
        pytest.param(
            {f"f{i}": i for i in range(9)},
            "no prompt; fields here: f0, f1, f2, f3, f4, f5, f6, f7, …",
            id="21: 8 names",
        ),
        pytest.param({"x" * 50: 1, "a\nb": 1}, f"no prompt; fields here: {'x' * 40}…, a\\nb", id="21: odd names"),
        pytest.param({}, "no prompt; fields here: none", id="21: nothing"),
        pytest.param({"prompt": "a", "messages": HELLO}, "messages does not go with prompt", id="21: both"),
        pytest.param({"prompt": ""}, "prompt is empty", id="22: empty"),
        pytest.param({"prompt": " \n\u00a0"}, "prompt is empty", id="22: blank"),
        pytest.param({"prompt": None}, "prompt must be a text", id="22: null"),
        pytest.param({"prompt": ["a"]}, "prompt must be a text", id="22: list"),
        pytest.param({"messages": {}}, "messages must be a list of at least one message", id="23: no list"),
        pytest.param({"messages": []}, "messages must be a list of at least one message", id="23: empty"),
        pytest.param({"messages": ["a"]}, "message 1 must be an object", id="23: no object"),
        pytest.param(
            {"messages": [*HELLO, {"role": "User", "text": "a"}]},
            "message 2: role must be system, user or assistant",
            id="23: unknown role",
        ),
        pytest.param(
            {"messages": [{"role": ["user"], "text": "a"}]},
            "message 1: role must be system, user or assistant",
            id="23: role is a list",
        ),
        pytest.param({"messages": [{"role": "user", "text": 1}]}, "message 1: text must be a text", id="23: text"),
        pytest.param({"messages": [{"role": "user", "text": " "}]}, "message 1: text is empty", id="23: blank text"),
        pytest.param({"messages": [{"role": "user", "content": " "}]}, "message 1: content is empty", id="23: content"),
        pytest.param(
            {"messages": [{"role": "user", "content": "a", "text": "a"}]},
            "message 1 must have one text, toolCallList or toolResultList and nothing else; has role, content, text",
            id="23: content and text",
        ),
        pytest.param(
            {"messages": [{"role": "user", "text": "a", "tool_call_list": {}}]},
            "message 1 must have one text, toolCallList or toolResultList and nothing else; "
            "has role, text, tool_call_list",
            id="23: two contents",
        ),
        pytest.param({"prompt": "a", "system": 1}, "system must be a text", id="system is a number"),
        pytest.param({"prompt": "a", "model": ""}, "model must be the name of a model", id="model is empty"),
        pytest.param({"prompt": "a", "model": "m\x00"}, "model must be the name of a model", id="model with NUL"),
        pytest.param({"messages": HELLO, "modelUri": 1}, "modelUri must be the name of a model", id="modelUri"),
        *(
            pytest.param({"prompt": "a", "temperature": t}, "temperature must be a number from 0 to 1", id=f"25: {t!r}")
            for t in (-0.1, 1.01, True, "0.3")
        ),
        *(
            pytest.param({"prompt": "a", "max_tokens": n}, "max_tokens must be an integer above 0", id=f"25: {n!r}")
            for n in (0, -1, True, "9", 1.0)
        ),
        *(
            pytest.param(
                {"messages": HELLO, "completionOptions": {"maxTokens": n}},
                "maxTokens must be an integer above 0",
                id=f"25: maxTokens {n!r:.12}",
            )
            for n in (0, "0", "-1", "many", "", 1.5, "9" * 9999, "٣")
        ),
        pytest.param(
            {"messages": HELLO, "completionOptions": {"temperature": 2}},
            "temperature must be a number from 0 to 1",
            id="25: temperature in a body",
        ),
        pytest.param(
            {"messages": HELLO, "completionOptions": 1},
            "completionOptions must be an object",
            id="25: options",
        ),
        *(
            pytest.param({"prompt": "a", name: i}, f"{name} must be a text or an integer", id=f"28: {name} {i!r}")
            for name, i in [("id", 1.0), ("id", True), ("custom_id", {}), ("key", [])]
        ),
        pytest.param({"prompt": "a", "id": ""}, "id must have 1 to 256 bytes", id="28: empty"),
        pytest.param({"prompt": "a", "id": "ж" * 128 + "a"}, "id must have 1 to 256 bytes", id="28: 257 bytes"),
        pytest.param({"prompt": "a", "id": "a\x7f"}, "id holds a control character", id="28: DEL"),
        pytest.param({"prompt": "a", "id": "a\n"}, "id holds a control character", id="28: LF"),
    ],
)
def test_what_would_be_refused_later_is_refused_now(fields: JsonObject, reason: str) -> None:
    assert refusal(line(**fields)).reason == reason


def test_a_blank_text_is_no_prompt() -> None:
    assert refusal(b'" "').reason == "the prompt is empty"


def test_ids_are_compared_as_texts() -> None:
    assert identity(1) == identity("1") == "1"
    assert identity("01") != identity(1)
    assert identity(None) is None


# --- the words of other services ------------------------------------------------------------------

ASKED: dict[str, tuple[JsonObject, Prompt]] = {
    "content is text": ({"messages": [{"role": "user", "content": "hello"}]}, Prompt(None, {"messages": HELLO})),
    "parts of a text are its lines": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        Prompt(None, {"messages": [{"role": "user", "text": "a\nb"}]}),
    ),
    "a developer speaks for the system": (
        {"messages": [{"role": "developer", "content": "s"}, *HELLO]},
        Prompt(None, {"messages": [{"role": "system", "text": "s"}, *HELLO]}),
    ),
    "what is null or empty in a message is not there": (
        {"messages": [{"role": "user", "content": "hello", "refusal": None, "annotations": [], "tool_calls": []}]},
        Prompt(None, {"messages": HELLO}),
    ),
    "options": (
        {"messages": HELLO, "model": "m", "temperature": 0.5, "max_completion_tokens": 5, "system": "s"},
        Prompt(None, {"messages": HELLO}, "s", "m", 0.5, 5),
    ),
    "null options": (
        {"messages": HELLO, "model": None, "temperature": None, "max_tokens": None, "max_completion_tokens": 7},
        Prompt(None, {"messages": HELLO}, max_tokens=7),
    ),
    "a schema": (
        {
            "messages": HELLO,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        },
        Prompt(None, {"messages": HELLO, "jsonSchema": {"schema": {"type": "object"}}}),
    ),
    "any JSON": (
        {"messages": HELLO, "response_format": {"type": "json_object"}},
        Prompt(None, {"messages": HELLO, "jsonObject": True}),
    ),
    "tools": (
        {
            "messages": HELLO,
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        },
        Prompt(
            None,
            {
                "messages": HELLO,
                "tools": [{"function": {"name": "f"}}],
                "tool_choice": {"mode": "REQUIRED"},
                "parallel_tool_calls": False,
            },
        ),
    ),
    "one tool": (
        {"messages": HELLO, "tool_choice": {"type": "function", "function": {"name": "f"}}},
        Prompt(None, {"messages": HELLO, "tool_choice": {"functionName": "f"}}),
    ),
}


@pytest.mark.parametrize(("body", "prompt"), ASKED.values(), ids=ASKED)
def test_what_another_service_would_be_asked_is_asked_here(body: JsonObject, prompt: Prompt) -> None:
    assert parse(line(**body)) == Parsed(None, prompt, {})
    batch = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": body}
    assert parse(line(**batch)) == Parsed("c", prompt, {})
    request = {"request": body["messages"], **{name: value for name, value in body.items() if name != "messages"}}
    assert parse(line(**request)) == Parsed(None, prompt, {})


SAY = {"messages": HELLO}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"messages": [{**HELLO[0], "name": "Ann"}]}, "message 1 must have one text"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "message 1 must have one text"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "t"}]}, "role must be system, user or assist"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "the parts of content must be of type text",
        ),
        ({"messages": [{"role": "user", "image": "aGk="}]}, "message 1 must have one text"),
        (SAY | {"response_format": {"type": "xml"}}, "response_format must be of type"),
        (SAY | {"tools": [{"type": "web_search"}]}, "tools: only those of type function"),
        (SAY | {"temperature": 1.5}, "temperature must be a number from 0 to 1"),
        (SAY | {"max_completion_tokens": 0}, "max_completion_tokens must be an integer above 0"),
        (SAY | {"max_tokens": 5, "max_completion_tokens": 5}, "both max_tokens and max_completion_tokens: keep one"),
        (SAY | {"model": "m", "modelUri": "gpt://f/m"}, "both model and modelUri: keep one"),
        (SAY | {"temperature": 0, "completionOptions": {}}, "both temperature and completionOptions: keep one"),
        (SAY | {"response_format": {}, "jsonObject": True}, "both response_format and jsonObject: keep one"),
        ({"messages": [{"role": "system", "text": "a"}], "system": "b"}, "both system and a message of that role"),
        (SAY | {"completionOptions": {"temprature": 0}}, "unknown field 'temprature': did you mean 'temperature'?"),
        (SAY | {"completionOptions": {"max_token": 0}}, "unknown field 'max_token': did you mean 'max_tokens'?"),
        (SAY | {"completionOptions": {"model": "m"}}, "model does not go with completionOptions"),
        (SAY | {"temprature": 0}, "did you mean 'temperature'?"),
        (SAY | {"top_p": 0.9}, "top_p"),
        (SAY | {"reasoning_effort": "low"}, "reasoning_effort"),
    ],
)
def test_what_cannot_be_asked_here_is_refused(body: JsonObject, reason: str) -> None:
    batch = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": body}
    for fields in (body, batch):
        assert reason in refusal(line(**fields)).reason


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({"url": "/v1/embeddings"}, "url must be /v1/chat/completions"),
        ({"method": "GET"}, "method must be POST"),
        ({"body": {**SAY, "n": 2}}, "body.n has no counterpart here"),
        ({"body": {**SAY, "seed": 7}}, "body.seed has no counterpart here"),
        ({"body": {**SAY, "temprature": 0}}, "unknown field 'temprature': did you mean 'temperature'?"),
        ({"body": {"model": "m"}}, "messages must be a list"),
        ({"body": {}}, "messages must be a list"),
    ],
)
def test_a_batch_line_that_cannot_be_asked_here_is_refused(batch: JsonObject, reason: str) -> None:
    whole = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": SAY} | batch
    assert reason in refusal(line(**whole)).reason


def test_what_a_batch_line_says_to_the_service_alone_travels_along() -> None:
    body = {**SAY, "user": "u", "metadata": {"a": 1}, "n": 1, "top_p": 1.0, "stop": [], "stream": False, "seed": None}
    assert parse(line(custom_id="c", url="/chat/completions", body=body, lang="ru", user="v")) == Parsed(
        "c", Prompt(None, SAY), {"lang": "ru", "user": "u", "metadata": {"a": 1}}
    )


def test_a_model_named_on_the_command_line_goes_before_that_of_another_service() -> None:
    given = Reading(model_given=True)
    batch = line(custom_id="c", url="/v1/chat/completions", body={**SAY, "model": "gpt-4o"})
    assert parse(batch).prompt.model == "gpt-4o"
    assert parse(batch, given).prompt.model is None
    assert parse(line(**SAY, model="gpt-4o"), given).prompt.model is None
    assert parse(line(prompt="a", model="m"), given).prompt.model == "m"
    assert parse(line(**SAY, modelUri="gpt://f/m"), given).prompt.body == {**SAY, "modelUri": "gpt://f/m"}


def test_the_answer_in_a_dataset_is_kept_as_a_reference() -> None:
    assert parse(line(request=HELLO, response="a", lang="ru")) == Parsed(
        None, Prompt(None, SAY), {"lang": "ru", "reference": "a"}
    )
    assert parse(line(request=HELLO, response="a", reference=1)).meta == {"response": "a", "reference": 1}


# --- one shape for a file -------------------------------------------------------------------------

OF_EACH_SHAPE: dict[Shape, JsonObject | str] = {
    Shape.PROMPT: {"id": "i", "prompt": "hello"},
    Shape.STRING: "hello",
    Shape.MESSAGES: {"id": "i", "messages": HELLO},
    Shape.OPENAI: {"custom_id": "i", "method": "POST", "url": "/v1/chat/completions", "body": SAY},
    Shape.DATASET: {"id": "i", "request": HELLO, "response": "a"},
    Shape.FAILURES: {"id": 1, "error": {"kind": "held"}, "operation_id": None, "input": {"id": "i", "messages": HELLO}},
}


@pytest.mark.parametrize("shape", OF_EACH_SHAPE)
def test_the_first_record_decides_and_a_line_of_another_shape_is_bad(shape: Shape) -> None:
    raw = json.dumps(OF_EACH_SHAPE[shape]).encode()
    reading = Reading().fixed_by(raw)
    assert reading == Reading(shape)
    assert parse(raw, reading).prompt in (Prompt("hello"), Prompt(None, SAY))
    for other in OF_EACH_SHAPE.keys() - {shape}:
        with pytest.raises(BadLine, match=f"a line of shape {other}, in a file of shape {shape}"):
            parse(json.dumps(OF_EACH_SHAPE[other]).encode(), reading)


def test_a_format_that_is_named_is_not_changed_by_the_first_record() -> None:
    assert Reading(Shape.MESSAGES).fixed_by(b'{"prompt": "a"}') == Reading(Shape.MESSAGES)
    assert Reading().fixed_by(b'{"text": "a"}') == Reading(Shape.PROMPT)
    assert Reading().fixed_by(b"{oops") == Reading()


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_failure_of_a_failure_asks_what_the_record_asked(times: int) -> None:
    value: Any = {"id": "i", "prompt": "hello", "temperature": 0.5, "sku": "ж"}
    wanted = parse(json.dumps(value).encode())
    for _ in range(times):
        value = {"id": "i", "operation_id": None, "error": {}, "input": value}
    raw = json.dumps(value).encode()
    assert parse(raw, Reading().fixed_by(raw)) == wanted


def test_with_a_prompt_column_every_other_field_travels_along() -> None:
    reading = Reading(prompt_column="body")
    raw = line(id=3, body="hello", temperature="warm", prompt="ask", messages="none")
    assert parse(raw, reading.fixed_by(raw)) == Parsed(
        3, Prompt("hello"), {"temperature": "warm", "prompt": "ask", "messages": "none"}
    )
    with pytest.raises(BadLine, match="no field 'body'; fields here: text"):
        parse(line(text="hello"), reading)
    with pytest.raises(BadLine, match="body is empty"):
        parse(line(body=""), reading)


def test_a_text_under_an_empty_name_is_no_reason_and_stays_out_of_the_message() -> None:
    with pytest.raises(BadLine) as told:
        parse(b'{"": "a private text"}', Reading(prompt_column="body"))
    assert "private" not in str(told.value)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"sku": "1", "body": "a long text", "lang": 3}, "--prompt-column body, or -t FILE with {{ body }}"),
        ({"Отзыв": "хорошо", "n": 5}, "--prompt-column Отзыв, or -t FILE with {{ Отзыв }}"),
        ({"two words": "x"}, None),
        ({"n": 5}, None),
        ({}, None),
    ],
)
def test_an_object_without_a_prompt_says_which_field_may_be_one(fields: JsonObject, remedy: str | None) -> None:
    found = refusal(line(**fields)).remedy
    assert found == remedy if remedy is None else (found or "").startswith(remedy)


# --- misspelt options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("temperatur", "temperature"),
        ("tempreature", "temperature"),
        ("Temperature", "temperature"),
        ("maxtokens", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("max-tokens", "max_tokens"),
        ("max_token", "max_tokens"),
        ("promt", "prompt"),
        ("Prompt", "prompt"),
        ("promtp", "prompt"),
        ("sytem", "system"),
        ("messsages", "messages"),
        ("modle", "model"),
        ("modelUri", "model"),
        ("model_uri", "model"),
        ("modelUrl", "model"),
        ("completionOption", "completionOptions"),
        ("jsonShema", "jsonSchema"),
    ],
)
def test_a_misspelt_option_is_refused_with_the_right_name(name: str, meant: str) -> None:
    assert refusal(line(prompt="a", **{name: "x"})).reason == f"unknown field '{name}': did you mean '{meant}'?"


def test_beside_messages_the_names_of_the_body_are_meant() -> None:
    assert refusal(line(messages=HELLO, modelUrl="x")).reason == "unknown field 'modelUrl': did you mean 'modelUri'?"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "a", "completionOptions": {}}, "completionOptions does not go with prompt"),
        ({"prompt": "a", "tools": []}, "tools does not go with prompt"),
        ({"prompt": "a", "response_format": {}}, "response_format does not go with prompt"),
        ({"messages": HELLO, "requestText": "a"}, "requestText does not go with messages"),
        ({"requestText": 1}, "requestText must be a text"),
        ({"requestText": "a", "instruction_text": True}, "instruction_text must be a text"),
        ({"requestText": "a", "temperature": 0}, "temperature does not go with requestText"),
        ({"prompt": "a", "top_p": 0.9}, "top_p has no counterpart here, leave it out"),
        ({"messages": HELLO, "stop": ["x"]}, "stop has no counterpart here, leave it out"),
    ],
)
def test_an_option_of_the_other_shape_is_not_ignored(fields: JsonObject, reason: str) -> None:
    assert refusal(line(**fields)).reason == reason


ORDINARY = """
    lang sku source text title item prompts_count models keys ids date topic messages_count mode
    system_id temp label body name url uri category tags score rating author user role content message
    prompts systems temperatures temperature_c temperatureF model_year model2 system_prompt tokens
    token_count max min maximum modem modal price comment review summary question answer answers context
    document language country city version split expected target reference metadata created_at
    updated_at index row_number group tool choice options schema json template язык модель _prompt_hash
"""


@pytest.mark.parametrize("shape", [{"prompt": "a"}, {"messages": HELLO}], ids=["prompt", "messages"])
def test_ordinary_names_stay_meta(shape: JsonObject) -> None:
    meta = dict.fromkeys(ORDINARY.split(), "x")
    assert len(meta) > 60
    assert parse(line(**shape, **meta)).meta == meta


# --- the whole file -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        pytest.param("{}".encode("utf-16"), "UTF-16", id="6: UTF-16 with BOM"),
        pytest.param('{"a":"ж"}'.encode("utf-16-le"), "UTF-16", id="6: UTF-16 LE"),
        pytest.param('{"a":"ж"}'.encode("utf-16-be"), "UTF-16", id="6: UTF-16 BE"),
        pytest.param("{}".encode("utf-32"), "UTF-32", id="6: UTF-32 with BOM"),
        pytest.param('\ufeff{"a":"ж"}'.encode("utf-32-be"), "UTF-32", id="6: UTF-32 BE with BOM"),
        pytest.param('{"a":"ж"}'.encode("utf-32-le"), "UTF-32", id="6: UTF-32 LE"),
        pytest.param('{"a":"ж"}'.encode("utf-32-be"), "UTF-32", id="6: UTF-32 BE"),
        pytest.param(gzip.compress(b"{}"), "a gzip file", id="6: gzip"),
        pytest.param(b"PK\x03\x04\x14\x00", "a zip file", id="6: zip"),
        pytest.param(b"\x28\xb5\x2f\xfd\x04", "a zstd file", id="6: zstd"),
        pytest.param(bz2.compress(b"{}"), "binary data", id="6: bzip2"),
        pytest.param(b"\xfd7zXZ\x00\x00", "binary data", id="6: xz"),
        pytest.param(b"PAR1\x15\x04", "binary data", id="6: parquet"),
        pytest.param(bytes(4096), "zero bytes", id="zeros"),
        pytest.param(b"\x7fELF\x02\x01", "binary data", id="a program"),
        pytest.param(b'{"prompt":"a"}\r{"prompt":"b"}\r', "convert the line ends", id="4: CR only"),
        pytest.param(b'"a" \r\r "b"', "convert the line ends", id="4: CR only, texts"),
        pytest.param(BOM + b'[{"prompt":"a"},\n', "one JSON array", id="19: array"),
        pytest.param(b"\n [\n  {\n", "one JSON array", id="19: array over lines"),
        pytest.param(b'{\n  "prompt": "a"\n}\n', "pretty-printed", id="19: pretty-printed"),
        pytest.param(b'{"prompt": "a",\r\n "id": 1}\r\n', "pretty-printed", id="19: pretty-printed, CRLF"),
        pytest.param(b"id,prompt\n1,a\n", "looks like CSV", id="20: CSV"),
        pytest.param(b'"id";"prompt"\n"1";"a"\n', "looks like CSV", id="20: CSV in quotes"),
        pytest.param(b'"say ""hi""","b"\n', "looks like CSV", id="20: CSV with quotes in quotes"),
        pytest.param("номер\tтекст\n".encode(), "looks like CSV", id="20: TSV"),
        pytest.param(b"Name one fruit\nName one tree\n", "looks like plain text", id="20: plain text"),
    ],
)
def test_a_file_that_is_no_jsonl_is_named(head: bytes, reason: str) -> None:
    found = sniff(head)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"", id="empty"),
        pytest.param(BOM + b"\r\n \n", id="blank"),
        pytest.param(b'{"prompt":"a"\n{"prompt":"b"}\n', id="first line broken"),
        pytest.param(b'// notes\n{"prompt":"b"}\n', id="comment first"),
        pytest.param(b'{"prompt":"\xff"}\n', id="not UTF-8"),
        pytest.param(b'"a, b"\n', id="a text with a comma"),
        pytest.param(b'{"prompt":\r"a"}\r', id="CR between the fields of one record"),
        pytest.param(b'"a"\t\t\n"b"', id="a text and tabs"),
    ],
)
def test_a_broken_line_does_not_make_another_format(head: bytes) -> None:
    assert sniff(head) is None


# --- properties -----------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8"))
PROMPTS = TEXTS.filter(lambda text: text != "" and not text.isspace())
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(PROMPTS, st.booleans())
def test_any_text_survives_as_a_prompt(text: str, ascii_only: bool) -> None:
    assert parse(json.dumps(text, ensure_ascii=ascii_only).encode()).prompt.text == text
    assert parse(json.dumps({"prompt": text}, ensure_ascii=ascii_only).encode()).prompt.text == text


@given(VALUES, st.booleans())
def test_any_value_survives_in_meta(value: Any, ascii_only: bool) -> None:
    raw = json.dumps({"prompt": "a", "data": value}, ensure_ascii=ascii_only).encode()
    assert parse(raw).meta == {"data": value}


@given(st.text(st.sampled_from('a\\"u\ud83d\ude00\ud800\udc00d8'), min_size=1))
def test_a_text_is_accepted_exactly_when_it_can_be_sent(text: str) -> None:
    raw = line(prompt=text)
    read = json.loads(raw)["prompt"]  # two halves side by side have become one character
    if any("\ud800" <= c <= "\udfff" for c in read):
        assert "half of a" in refusal(raw).reason
    else:
        assert parse(raw).prompt.text == read


WORDS = rb"""{"prompt":"a", "x": "id": "messages": "role":"user" { } [ ] , : " "a" ' / # \ \ud800 \u0000
    1 - 0 .5 e9 99999999999999999999 NaN true null""".split()
ODD_BYTES = [b" ", b"\t", b"\n", b"\x00", b"\xff", b"\xed\xa0\x80", "ж".encode(), BOM]
PIECES = st.sampled_from([*WORDS, *ODD_BYTES])


@given(st.binary() | st.lists(PIECES).map(b"".join))
def test_any_bytes_are_parsed_or_refused_in_plain_words(raw: bytes) -> None:
    sniff(raw)
    bad = refused_or_none(raw)
    if bad is not None:
        assert bad.reason
        assert bad.reason.isprintable()
        assert bad.column is None or 1 <= bad.column <= len(raw) + 1


@given(VALUES, st.integers(min_value=0), PIECES, st.integers(0, 3))
def test_what_is_accepted_another_strict_parser_reads_alike(value: Any, at: int, piece: bytes, cut: int) -> None:
    raw = json.dumps({"prompt": "a", "data": value}, ensure_ascii=False).encode()
    at %= len(raw)
    raw = raw[:at] + piece + raw[at + cut :]
    if refused_or_none(raw):
        return
    parsed, read = parse(raw), orjson.loads(raw)
    text = read if isinstance(read, str) else read["prompt"]
    rest = {name: read[name] for name in read if name != "prompt"} if isinstance(read, dict) else {}
    assert (parsed.prompt.text, parsed.meta) == (text, rest)


@given(
    st.lists(PROMPTS | st.dictionaries(TEXTS, VALUES, max_size=3), min_size=1, max_size=5),
    st.sampled_from(["", "\ufeff", "\n", " \r\n\n"]),
    st.sampled_from(["\n", "\r\n", "\n\n", " \t\n"]),
    st.booleans(),
    st.integers(1, 4096),
)
def test_a_good_file_is_never_taken_for_another_format(
    records: list[Any], start: str, end: str, ascii_only: bool, length: int
) -> None:
    data = start.encode()
    for record in records:
        shaped = record if isinstance(record, str) else {**record, "prompt": "a"}
        data += (json.dumps(shaped, ensure_ascii=ascii_only) + end).encode()
    assert sniff(data[:length]) is None


def outcome(take: Callable[[], Parsed]) -> Parsed | str:
    try:
        return take()
    except BadLine as bad:
        return f"{bad}; {bad.remedy}"


NAMES = [
    "prompt",
    "id",
    "custom_id",
    "key",
    "sku",
    "system",
    "model",
    "temprature",
    "Prompt",
    "message",
    "top_p",
    "stop",
]
VALUES = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "a", "\0", " ", "\u2028"]) | st.just([])
FIELDS = st.builds(lambda others: {"prompt": "a"} | others, st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2))


@given(FIELDS, st.sampled_from([None, *Shape]))
def test_the_short_way_of_a_plain_prompt_leads_where_the_long_one_does(fields: JsonObject, shape: Shape | None) -> None:
    """Fails if ``parse`` lets through, refuses or reads anything otherwise than ``_parsed``."""
    raw, reading = json.dumps(fields).encode(), Reading(shape)
    assert outcome(lambda: parse(raw, reading)) == outcome(lambda: _parsed(strict_json(raw), reading))
