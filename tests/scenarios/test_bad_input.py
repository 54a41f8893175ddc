"""Inputs that are refused, in whole or line by line. Nothing is ever sent before all of it was checked."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from tests.scenarios.bench import Bench, as_owner, record

GOOD = record("good")
DEEP = b'{"prompt": "deep", "x": ' + b"[" * 64 + b"]" * 64 + b"}"
BAD_LINES = {
    b"\xef\xbb\xbf" + record("bom").encode(): "byte order mark",
    b'{"prompt": "\xff"}': "not UTF-8: wrong byte 0xff at byte 13",
    b'{"prompt": "\xc0\xaf"}': "not UTF-8: wrong byte 0xc0 at byte 13",
    b'{"prompt": "\xed\xa0\x80"}': "not UTF-8: wrong byte 0xed at byte 13",
    rb'{"prompt": "\ud800"}': r"half of a \ud800-\udfff pair",
    rb'{"prompt": "a", "\udfff": 1}': r"half of a \ud800-\udfff pair",
    b'{"prompt": "a\x00"}': "a raw control character",
    b'{"prompt": "a\x1b[2J"}': "a raw control character",
    b'{"prompt": "a\tb"}': "a raw control character",
    b'{"prompt": "a", "x": NaN}': "NaN",
    b'{"prompt": "a", "x": -Infinity}': "Infinity",
    b'{"prompt": "a", "x": 1e999}': "a number is too large",
    b'{"prompt": "a", "x": 18446744073709551616}': "an integer is over 64 bits",
    b'{"prompt": "a", "prompt": "b"}': "'prompt' is given twice",
    DEEP: "nested deeper than 64 levels",
    b'"' + b"a" * (4 << 20) + b'"': "longer than 4 MiB",
    b'["a"]': "a record is an object",
    b"7": "a record is an object",
    b"true": "a record is an object",
    b"null": "a record is an object",
    b'{"prompt": "a"} {"prompt": "b"}': "not JSON: extra data",
    b'{"prompt": "a",}': "not JSON: ",
    b"{'prompt': 'a'}": "not JSON: expecting property name enclosed in double quotes",
    b'{"prompt": "a"} // why': "not JSON: extra data",
    b'{"sku": 1}': "no prompt; fields here: sku",
    b'{"prompt": "a", "messages": []}': "messages does not go with prompt",
    b'{"prompt": ""}': "prompt is empty",
    b'{"prompt": " "}': "prompt is empty",
    b'{"messages": [{"role": "user", "text": "a"}]}': "a line of shape messages, in a file of shape prompt",
    b'"a"': "a line of shape string, in a file of shape prompt",
    b'{"prompt": "a", "temprature": 0}': "did you mean 'temperature'?",
    b'{"prompt": "a", "temperature": 2}': "temperature must be a number from 0 to 1",
    b'{"prompt": "a", "max_tokens": 0}': "max_tokens must be an integer above 0",
    b'{"prompt": "a", "max_tokens": "9"}': "max_tokens must be an integer above 0",
    b'{"prompt": "a", "top_p": 0.5}': "top_p has no counterpart here",
    b'{"prompt": "a", "id": 1.5}': "id must be a text or an integer",
    b'{"prompt": "a", "id": {}}': "id must be a text or an integer",
    rb'{"prompt": "a", "id": "a\u0007"}': "id holds a control character",
    b'{"prompt": "a", "id": "' + b"i" * 257 + b'"}': "id must have 1 to 256 bytes",
}
MESSAGE = b'{"role": "user", "text": "a"}'
BAD_MESSAGES = {
    b'{"messages": "a"}': "messages must be a list",
    b'{"messages": []}': "messages must be a list of at least one message",
    b'{"messages": ["a"]}': "message 1 must be an object",
    b'{"messages": [{"role": "bot", "text": "a"}]}': "message 1: role must be system, user or assistant",
    b'{"messages": [{"role": "user", "text": 7}]}': "message 1: text must be a text",
    b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}': "parts of content must be of type text",
    b'{"messages": [%s], "temprature": 0}' % MESSAGE: "did you mean 'temperature'?",
    b'{"messages": [%s], "completionOptions": {"maxToken": 9}}' % MESSAGE: "did you mean 'max_tokens'?",
    b'{"messages": [%s], "prompt": "a"}' % MESSAGE: "a line of shape prompt, in a file of shape messages",
    b'{"requestText": "a"}': "a line of shape instruct, in a file of shape messages",
}
BATCH = (
    b'{"custom_id": "x", "method": "%s", "url": "/v1/%s", "body": {"messages": [{"role": "user", "content": "a"}]%s}}'
)
BAD_BATCH_LINES = {
    BATCH % (b"POST", b"embeddings", b""): "url must be /v1/chat/completions",
    BATCH % (b"GET", b"chat/completions", b""): "method must be POST",
    BATCH % (b"POST", b"chat/completions", b', "n": 2'): "body.n has no counterpart here",
    BATCH % (b"POST", b"chat/completions", b', "max_token": 9'): "did you mean 'max_tokens'?",
    b'{"custom_id": "x", "method": "POST", "body": {}}': "messages must be a list",
}
MOST_BAD_LINES = 10


def asking(shape: str, text: str) -> bytes:
    """A good line of a shape."""
    messages = [{"role": "user", "content": text}]
    whole = {"prompt": {"id": text, "prompt": text}, "messages": {"id": text, "messages": messages}}
    batch = {"custom_id": text, "method": "POST", "url": "/v1/chat/completions", "body": {"messages": messages}}
    return json.dumps(whole.get(shape, batch)).encode()


def in_parts(bad: dict[bytes, str]) -> list[dict[bytes, str]]:
    lines = list(bad.items())
    return [dict(lines[first : first + MOST_BAD_LINES]) for first in range(0, len(lines), MOST_BAD_LINES)]


@pytest.mark.parametrize(
    ("shape", "bad"),
    [
        *(pytest.param("prompt", part, id=f"prompt{number}") for number, part in enumerate(in_parts(BAD_LINES))),
        pytest.param("messages", BAD_MESSAGES, id="messages"),
        pytest.param("openai", BAD_BATCH_LINES, id="openai"),
    ],
)
def test_a_bad_line_fails_alone_and_costs_nothing(bench: Bench, shape: str, bad: dict[bytes, str]) -> None:
    """Fails if ``parse`` lets one of them pass, or if the reader sends what the check found bad."""
    lines = [asking(shape, "before"), *bad, asking(shape, "after")]
    bench.input.write_bytes(b"".join(line + b"\n" for line in lines))
    assert bench.run().exit_code == 1
    assert bench.emulator.submissions == {"before": 1, "after": 1}
    assert bench.result_ids() == {"before", "after"}
    told = {failure["line"]: failure["error"] for failure in bench.failures()}
    assert {error["kind"] for error in told.values()} == {"bad_input"}
    for number, reason in enumerate(bad.values(), 2):
        assert reason in told[number]["message"]
    bench.check()


def test_a_prompt_longer_than_the_model_takes_fails_alone(bench: Bench) -> None:
    """Fails if its length is judged here, where nobody knows the model's, or if a 400 ends the run."""
    bench.lines(record("a"), json.dumps({"id": "long", "prompt": "x" * 100_001}), record("b"))
    assert bench.run("--concurrency", "1").exit_code == 1
    assert bench.kinds() == {"long": "invalid_argument"}
    assert bench.emulator.submissions == {"a": 1, "b": 1}
    bench.check()


def test_the_input_must_not_be_a_file_of_the_job(bench: Bench) -> None:
    """Fails if only the output is compared with the input, or if a link to a file is another file."""
    bench.lines(record("a"), "{oops")
    assert bench.run().exit_code == 1
    os.symlink("out.errors.ndjson", bench.folder / "link.jsonl")
    before = {path: path.read_bytes() for path in bench.folder.glob("out*") if path.is_file()}
    for name in ("out.jsonl", "out.errors.ndjson", "out.jsonl.batchrun/ledger.db", "link.jsonl"):
        ran = bench.spawn(name, *bench.command()[1:]).wait()
        assert ran.exit_code == 2, name
        assert "would be written over the input" in ran.stderr, name
        assert {path: path.read_bytes() for path in before} == before, name
    assert bench.emulator.count("submits_received") == 1


def test_what_is_odd_but_clear_is_sent_as_it_is(bench: Bench) -> None:
    """Fails if lines are split anywhere but at LF, or if what JSON may say is not said to the service."""
    texts = ["crlf", "a\u2028b\u2029c\u0085d", "nul \x00 inside", "no id", "no id either", "no line end"]
    lines = [json.dumps({"id": number, "prompt": text, "x": [text]}) for number, text in enumerate(texts)]
    lines[0] += "\r"
    lines[1] = json.dumps({"id": 1, "prompt": texts[1], "x": [texts[1]]}, ensure_ascii=False)
    lines[3:5] = json.dumps({"prompt": texts[3]}), json.dumps({"prompt": texts[4]})
    bench.input.write_bytes(("\ufeff" + "\n\n".join(lines)).encode())
    assert bench.run("--log-file", "run.log").exit_code == 0
    assert bench.emulator.submissions == dict.fromkeys(texts, 1)
    assert (bench.folder / "run.log").read_text().count("first_line_with_nul=5\n") == 1
    by_line = {result["line"]: result for result in bench.results()}
    assert [by_line[1 + 2 * number]["id"] for number in range(len(texts))] == [0, 1, 2, None, None, 5]
    assert [by_line[1 + 2 * number]["meta"].get("x") for number in range(3)] == [[text] for text in texts[:3]]
    bench.check()


def test_the_same_prompt_under_two_ids_is_two_records(bench: Bench) -> None:
    """Fails if records are known by their text, or if nobody is told that they ask the same."""
    bench.lines('{"id": "a", "prompt": "same"}', '{"id": "b", "prompt": "same", "note": 1}')
    assert bench.run("--log-file", "run.log").exit_code == 0
    assert " repeats=1 " in (bench.folder / "run.log").read_text()
    assert bench.emulator.submissions == {"same": 2}
    assert bench.result_ids() == {"a", "b"}
    assert [(row["state"], row["maybe_paid"]) for row in bench.rows()] == [("done", 0)] * 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("\r".join([record("a"), record("b")]).encode(), "line ends are CR only", id="cr_only"),
        pytest.param(GOOD.encode("utf-16"), "UTF-16", id="utf16"),
        pytest.param(GOOD.encode("utf-32"), "UTF-32", id="utf32"),
        pytest.param(gzip.compress(GOOD.encode()), "a gzip file", id="gzip"),
        pytest.param(b"PK\x03\x04\x14\x00", "a zip file", id="zip"),
        pytest.param(json.dumps({"prompt": "a"}, indent=1).encode(), "pretty-printed", id="pretty"),
        pytest.param(b"Hello there\nWhat is new?\n", "plain text", id="text"),
    ],
)
def test_a_file_that_is_no_jsonl_is_refused_by_its_name(bench: Bench, content: bytes, said: str) -> None:
    """Fails if ``sniff`` does not know it."""
    bench.input.write_bytes(content)
    ran = bench.run()
    assert ran.exit_code == 3
    assert said in ran.stderr
    assert bench.is_untouched()
    assert not bench.output.exists()


@pytest.mark.parametrize("content", ["", "\n \n\r\n"], ids=["empty", "blank_lines"])
def test_an_input_without_records_is_finished_at_once(bench: Bench, content: str) -> None:
    """Fails if an empty input is an error: tonight's file may have nothing in it."""
    bench.input.write_text(content)
    ran = bench.run()
    assert (ran.exit_code, bench.output.read_bytes()) == (0, b"")
    assert ran.is_silent
    assert bench.is_untouched()


@pytest.mark.parametrize("kind", ["directory", "device"])
def test_an_input_that_is_no_file_is_a_mistake_in_the_command(bench: Bench, kind: str) -> None:
    """Fails if the input is not asked for its type."""
    match kind:
        case "directory":
            bench.input.mkdir()
        case _:
            bench.input.symlink_to("/dev/zero")
    ran = bench.run()
    assert ran.exit_code == 2
    assert len(ran.stderr.splitlines()) == 2
    assert bench.is_untouched()
    assert not bench.output.exists()


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


def test_an_input_that_may_not_be_read_is_a_mistake_in_the_command(bench: Bench) -> None:
    """Fails if the error of the system is shown as a bug, or as a fault of the disk."""
    bench.records("a")
    closed = bench.folder / "closed"
    closed.mkdir()
    (closed / "in.jsonl").touch()
    for path, name in ((bench.input, "in.jsonl"), (closed, "closed/in.jsonl")):
        path.chmod(0)
        ran = bench.spawn(name, *bench.command()[1:], within=as_owner()).wait()
        path.chmod(0o700)
        assert (ran.exit_code, ran.stderr.splitlines()[0]) == (2, f"error: {name}: Permission denied")
    assert not bench.state.exists()


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


def test_other_settings_before_anything_was_accepted_look_at_the_whole_input_again(bench: Bench) -> None:
    """Fails if ``settle_settings`` keeps the last check: what was a bad line then would stay one."""
    bench.lines('{"id": 1, "title": "a"}', '{"id": 2, "body": "b"}')
    first = ("--prompt-column", "title")
    assert bench.run(*first, env={**bench.environment, "YC_API_KEY": "wrong\u00e9"}).exit_code == 5
    (bench.folder / "any.j2").write_text("{{ title | default(body) }}")
    assert bench.run("-t", "any.j2").exit_code == 0
    assert bench.emulator.submissions == {"a": 1, "b": 1}


@pytest.mark.parametrize("name", [".out.jsonl.new", ".out.errors.ndjson.new"])
def test_the_input_must_not_have_a_name_that_a_run_uses_meanwhile(bench: Bench, name: str) -> None:
    """Fails if ``open_input`` does not know the temporary names: the run would delete its input."""
    bench.records("a")
    bench.input.rename(bench.folder / name)
    ran = bench.spawn(name, *bench.command()[1:]).wait()
    assert (ran.exit_code, (bench.folder / name).exists()) == (2, True)
    assert bench.emulator.count("submits_received") == 0
