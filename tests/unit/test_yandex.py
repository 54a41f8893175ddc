"""Bytes out, bytes in: what is asked of Yandex Cloud, and what its answers mean."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import logging
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp import ClientConnectorDNSError, ConnectionTimeoutError
from aiohttp.client_reqrep import ConnectionKey
from aioresponses import aioresponses
from yarl import URL

from batchrun.errors import BatchrunError, CredentialsRefused, UsageProblem
from batchrun.providers.base import Provider
from batchrun.providers.http import Reply
from batchrun.providers.yandex import NO_ANSWER, Credentials, Yandex, credentials_from, parse_json, read_error
from batchrun.record import (
    Accepted,
    Ambiguous,
    Answer,
    Failure,
    Finished,
    JsonObject,
    Malformed,
    NotFound,
    PollFailed,
    PollReply,
    Prompt,
    Refused,
    Settings,
    StillRunning,
    SubmitReply,
    Unreachable,
    Usage,
)
from tests.unit.test_http import Peer, Script, Server, answering

KEY = "AQVNw1cFakeKey0123456789"
FOLDER = "b1gabcdefghij0123456"
CREDENTIALS = Credentials(f"Api-Key {KEY}", FOLDER)
BASE = "http://127.0.0.1:8080"
SUBMIT = f"{BASE}/foundationModels/v1/completionAsync"
OPERATION_ID = "d7qexample0000000001"
OPERATION = f"{BASE}/operations/{OPERATION_ID}"


def yandex(endpoint: str | None = BASE) -> Yandex:
    return Yandex(CREDENTIALS, endpoint=endpoint)


def as_provider() -> Provider:
    """mypy checks here that the class keeps the protocol."""
    return yandex()


# --- build --------------------------------------------------------------------------------------------------

PLAIN = Settings(provider="yandex", model="yandexgpt-lite/latest")
FULL = Settings(provider="yandex", model="yandexgpt", system="Be brief.", temperature=0.5, max_tokens=100)
URI = f"gpt://{FOLDER}/yandexgpt-lite/latest"
USER = {"role": "user", "text": "Hi"}
SYSTEM = {"role": "system", "text": "Be brief."}
FULL_URI = f"gpt://{FOLDER}/yandexgpt"
FULL_OPTIONS = {"temperature": 0.5, "maxTokens": "100"}

PROMPTS: dict[str, tuple[Prompt, Settings, JsonObject]] = {
    "a prompt and nothing else": (Prompt("Hi"), PLAIN, {"messages": [USER], "modelUri": URI}),
    "everything from the settings": (
        Prompt("Hi"),
        FULL,
        {"messages": [SYSTEM, USER], "modelUri": FULL_URI, "completionOptions": FULL_OPTIONS},
    ),
    "everything from the record": (
        Prompt("Hi", system="Rhyme.", model="aliceai-llm", temperature=0.9, max_tokens=7),
        FULL,
        {
            "messages": [{"role": "system", "text": "Rhyme."}, USER],
            "modelUri": f"gpt://{FOLDER}/aliceai-llm",
            "completionOptions": {"temperature": 0.9, "maxTokens": "7"},
        },
    ),
    "temperature 0 of the record is a temperature": (
        Prompt("Hi", temperature=0.0),
        FULL,
        {
            "messages": [SYSTEM, USER],
            "modelUri": FULL_URI,
            "completionOptions": {"temperature": 0.0, "maxTokens": "100"},
        },
    ),
    "an empty system text of the record means none": (
        Prompt("Hi", system=""),
        FULL,
        {"messages": [USER], "modelUri": FULL_URI, "completionOptions": FULL_OPTIONS},
    ),
    "a whole model URI": (
        Prompt("Hi", model="gpt://other/yandexgpt/rc@tuned1"),
        PLAIN,
        {"messages": [USER], "modelUri": "gpt://other/yandexgpt/rc@tuned1"},
    ),
    "a schema": (
        Prompt("Hi"),
        replace(PLAIN, schema='{"type": "object"}'),
        {"messages": [USER], "modelUri": URI, "jsonSchema": {"schema": {"type": "object"}}},
    ),
    "a schema, and a body that asks for JSON of its own": (
        Prompt(None, body={"messages": [USER], "jsonObject": True}),
        replace(PLAIN, schema='{"type": "object"}'),
        {"messages": [USER], "modelUri": URI, "jsonObject": True},
    ),
    "only the length": (
        Prompt("Hi", max_tokens=9_007_199_254_740_993),
        PLAIN,
        {"messages": [USER], "modelUri": URI, "completionOptions": {"maxTokens": "9007199254740993"}},
    ),
}


@pytest.mark.parametrize(("prompt", "settings", "expected"), PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_becomes_a_body(prompt: Prompt, settings: Settings, expected: JsonObject) -> None:
    assert json.loads(yandex().build(prompt, settings)) == expected


WHOLE = {
    "modelUri": "gpt://other/m",
    "messages": [{"role": "system", "text": "S"}, USER],
    "completionOptions": {"stream": True, "temperature": 0, "maxTokens": 5},
    "jsonObject": True,
}
BODIES: dict[str, tuple[JsonObject, JsonObject]] = {
    "nothing to fill": (WHOLE, WHOLE),
    "only messages": (
        {"messages": [USER]},
        {"messages": [SYSTEM, USER], "modelUri": FULL_URI, "completionOptions": FULL_OPTIONS},
    ),
    "null is absent": (
        {"messages": [USER], "modelUri": None, "completionOptions": None},
        {"messages": [SYSTEM, USER], "modelUri": FULL_URI, "completionOptions": FULL_OPTIONS},
    ),
    "null options are absent": (
        {**WHOLE, "completionOptions": {"temperature": None, "maxTokens": None}},
        {**WHOLE, "completionOptions": FULL_OPTIONS},
    ),
    "an empty model is absent": ({**WHOLE, "modelUri": ""}, {**WHOLE, "modelUri": FULL_URI}),
    "snake_case": (
        {"model_uri": "gpt://other/m", "completion_options": {"max_tokens": 5}, "messages": [SYSTEM]},
        {
            "model_uri": "gpt://other/m",
            "completion_options": {"max_tokens": 5, "temperature": 0.5},
            "messages": [SYSTEM],
        },
    ),
    "other options are kept": (
        {**WHOLE, "completionOptions": {"reasoningOptions": {"mode": "DISABLED"}}},
        {**WHOLE, "completionOptions": {"reasoningOptions": {"mode": "DISABLED"}, **FULL_OPTIONS}},
    ),
    "a system message anywhere is one": (
        {**WHOLE, "messages": [USER, {"role": "system", "text": "S"}]},
        {**WHOLE, "messages": [USER, {"role": "system", "text": "S"}]},
    ),
    "a tool result is not one": (
        {**WHOLE, "messages": [{"role": "user", "toolResultList": {"toolResults": []}}]},
        {**WHOLE, "messages": [SYSTEM, {"role": "user", "toolResultList": {"toolResults": []}}]},
    ),
}


@pytest.mark.parametrize(("body", "expected"), BODIES.values(), ids=BODIES)
def test_a_body_is_passed_through_and_only_its_gaps_are_filled(body: JsonObject, expected: JsonObject) -> None:
    before = copy.deepcopy(body)
    assert json.loads(yandex().build(Prompt(None, body=body), FULL)) == expected
    assert body == before  # the record is not changed


def test_a_body_is_filled_from_the_record_before_the_settings() -> None:
    prompt = Prompt(None, body={"messages": [USER]}, system="Rhyme.", model="m", temperature=0.1, max_tokens=1)
    assert json.loads(yandex().build(prompt, FULL)) == {
        "messages": [{"role": "system", "text": "Rhyme."}, USER],
        "modelUri": f"gpt://{FOLDER}/m",
        "completionOptions": {"temperature": 0.1, "maxTokens": "1"},
    }


# --- read ---------------------------------------------------------------------------------------------------

FINAL = "ALTERNATIVE_STATUS_FINAL"
COMPLETION = "type.googleapis.com/yandex.cloud.ai.foundation_models.v1.CompletionResponse"


def operation(**fields: Any) -> bytes:
    return json.dumps({"id": OPERATION_ID, "createdAt": None, "metadata": None} | fields).encode()


def answered(status: Any = FINAL, message: Any = None, **response: Any) -> bytes:
    message = {"role": "assistant", "text": "Belgrade"} if message is None else message
    alternatives = [{"message": message, "status": status}]
    return operation(done=True, response={"@type": COMPLETION, "alternatives": alternatives, **response})


def failed(code: Any, message: Any = "out of luck", **fields: Any) -> bytes:
    return operation(done=True, error={"code": code, "message": message, "details": []}, **fields)


def text(finish_reason: str, text: str | None = "Belgrade", **fields: Any) -> Finished:
    return Finished(Answer(text, finish_reason, fields.pop("usage", Usage()), **fields))


def failure(kind: str, code: int, *, retryable: bool = False, message: str = "out of luck") -> Finished:
    return Finished(Failure(kind, message, code, retryable))


USAGE = {
    "inputTextTokens": "21",
    "completionTokens": "2",
    "totalTokens": "23",
    "completionTokensDetails": {"reasoningTokens": "0"},
}
CALLS = {"toolCalls": [{"functionCall": {"name": "weather", "arguments": {"city": "Belgrade"}}}]}
NOT_AN_OPERATION = PollFailed("the reply is not an operation", status=200)
FILTERED = "the service's content filter stopped the answer"

READS: dict[str, tuple[bytes, PollReply]] = {
    # running
    "not done": (operation(done=False), StillRunning()),
    "done is missing": (operation(), StillRunning()),
    "done is null": (operation(done=None), StillRunning()),
    "an error while not done": (operation(done=False, error={"code": 13, "message": "x"}), StillRunning()),
    "an answer while not done": (
        operation(done=False, response={"@type": COMPLETION, "alternatives": []}),
        StillRunning(),
    ),
    # answers
    "final": (answered(), text("stop")),
    "truncated": (answered("ALTERNATIVE_STATUS_TRUNCATED_FINAL"), text("length")),
    "partial": (answered("ALTERNATIVE_STATUS_PARTIAL"), text("partial")),
    "a status by number": (answered(3), text("stop")),
    "filtered, by its number": (
        answered(4),
        Finished(Failure("content_filter", FILTERED, finish_reason="content_filter")),
    ),
    "a status yet to be invented": (answered("ALTERNATIVE_STATUS_BORED"), text("bored")),
    "a status of another style": (answered("Paused"), text("paused")),
    "no status": (answered(None), text("unspecified")),
    "a status that is a novel": (answered("A" * 100), text("a" * 64)),
    "a status that is an object": (answered({}), text("unspecified")),
    "tool calls": (
        answered("ALTERNATIVE_STATUS_TOOL_CALLS", {"role": "assistant", "toolCallList": CALLS}),
        text("tool_calls", None, json=CALLS),
    ),
    "tool calls, with a null text": (
        answered("ALTERNATIVE_STATUS_TOOL_CALLS", {"text": None, "toolCallList": CALLS}),
        text("tool_calls", None, json=CALLS),
    ),
    "an empty text": (answered(message={"role": "assistant", "text": ""}), text("stop", "")),
    "a text left out": (answered(message={"role": "assistant"}), text("stop", "")),
    "a message left out": (
        operation(done=True, response={"@type": COMPLETION, "alternatives": [{"status": FINAL}]}),
        text("stop", ""),
    ),
    "error is null": (answered().replace(b'"done": true', b'"done": true, "error": null'), text("stop")),
    "an error of code 0 is none": (
        answered().replace(b'"done": true', b'"done": true, "error": {"code": 0, "message": ""}'),
        text("stop"),
    ),
    "an empty error is none": (
        answered().replace(b'"done": true', b'"done": true, "error": {}'),
        text("stop"),
    ),
    "a version": (answered(modelVersion="09.02.2025"), text("stop", model_version="09.02.2025")),
    "an empty version": (answered(modelVersion=""), text("stop")),
    "the second alternative does not count": (
        operation(
            done=True,
            response={
                "@type": COMPLETION,
                "alternatives": [
                    {"message": {"text": "one"}, "status": FINAL},
                    {"message": {"text": "two"}, "status": FINAL},
                ],
            },
        ),
        text("stop", "one"),
    ),
    "without an ID": (b'{"done":true,"response":{"alternatives":[{}]}}', text("unspecified", "")),
    # usage
    "usage as strings": (answered(usage=USAGE), text("stop", usage=Usage(21, 2, 0, 23))),
    "usage as numbers": (
        answered(usage={"inputTextTokens": 21, "completionTokens": 2, "totalTokens": 23}),
        text("stop", usage=Usage(21, 2, None, 23)),
    ),
    "usage without its zeros": (
        answered(usage={"inputTextTokens": "21", "completionTokensDetails": {}}),
        text("stop", usage=Usage(21, 0, 0, 0)),
    ),
    "usage is null": (answered(usage=None), text("stop")),
    "usage that is nonsense loses no answer": (
        answered(usage={"inputTextTokens": "many", "completionTokens": -1, "totalTokens": True}),
        text("stop", usage=Usage(None, None, None, None)),
    ),
    # the text itself
    "a NUL and line separators": (answered(message={"text": "a\x00b\u2028c"}), text("stop", "a\x00b\u2028c")),
    "half a surrogate pair": (answered(message={"text": "a\ud800b"}), text("stop", "a\ufffdb")),
    "a whole surrogate pair": (answered(message={"text": "\U0001f600"}), text("stop", "\U0001f600")),
    "broken UTF-8": (answered().replace(b"Belgrade", b"Bel\xffgrade"), text("stop", "Bel\ufffdgrade")),
    # blocked
    "content filter": (
        answered("ALTERNATIVE_STATUS_CONTENT_FILTER", usage=USAGE),
        Finished(Failure("content_filter", FILTERED, finish_reason="content_filter", usage=Usage(21, 2, 0, 23))),
    ),
    # failed
    **{
        f"code {code} may pass": (failed(code), failure("provider_error", code, retryable=True))
        for code in (2, 4, 8, 13, 14, 15)
    },
    **{
        f"code {code} is final": (failed(code), failure("provider_error", code))
        for code in (5, 6, 7, 9, 10, 11, 12, 16, 99)
    },
    "cancelled": (failed(1), failure("cancelled", 1)),
    "invalid argument": (failed(3), failure("invalid_argument", 3)),
    "a code in a string": (failed("13"), failure("provider_error", 13, retryable=True)),
    "an error beside an answer": (
        failed(13, response={"alternatives": []}),
        failure("provider_error", 13, retryable=True),
    ),
    "an error without a message": (
        failed(3, None),
        failure("invalid_argument", 3, message="the service gave no reason"),
    ),
    "an error that quotes secrets": (
        failed(3, f"folder '{FOLDER}',\n key {KEY}"),
        failure("invalid_argument", 3, message="folder '[redacted]', key [redacted]"),
    ),
    "an endless error": (failed(3, "a" * 5000), failure("invalid_argument", 3, message="a" * 2048)),
    # neither
    "done with neither": (operation(done=True), NO_ANSWER),
    "done with two nulls": (operation(done=True, error=None, response=None), NO_ANSWER),
    "done with an error of code 0 only": (failed(0), NO_ANSWER),
    "done with an error that is a text": (operation(done=True, error="x"), NO_ANSWER),
    "done with an answer that is a text": (operation(done=True, response="x"), NO_ANSWER),
    "an empty answer": (operation(done=True, response={}), NO_ANSWER),
    "no alternatives": (operation(done=True, response={"alternatives": []}), NO_ANSWER),
    "alternatives are null": (operation(done=True, response={"alternatives": None}), NO_ANSWER),
    "an alternative that is a text": (operation(done=True, response={"alternatives": ["x"]}), NO_ANSWER),
    "a message that is a text": (answered(message="x"), NO_ANSWER),
    "a text that is a number": (answered(message={"text": 5}), NO_ANSWER),
    "tool calls without a bottom": (
        answered(5, {"toolCallList": json.loads("[" * 300 + "]" * 300)}),
        NO_ANSWER,
    ),
    # not an operation
    "nothing": (b"", NOT_AN_OPERATION),
    "a page": (b"<html></html>", NOT_AN_OPERATION),
    "half an operation": (answered()[:-10], NOT_AN_OPERATION),
    "a list": (b"[]", NOT_AN_OPERATION),
    "another object": (b'{"error":"log in"}', NOT_AN_OPERATION),
    "a done that is a word": (operation(done="yes"), NOT_AN_OPERATION),
    "brackets without end": (b"[" * 100_000, NOT_AN_OPERATION),
}


@pytest.mark.parametrize(("body", "expected"), READS.values(), ids=READS)
def test_read(body: bytes, expected: PollReply) -> None:
    assert yandex().read(parse_json(body)) == expected


def test_a_key_of_any_shape_is_redacted_when_it_is_ours() -> None:
    provider = Yandex(Credentials("Bearer opaque-token", "f"))
    reply = provider.read(parse_json(failed(16, "opaque-token has expired")))
    assert reply == failure("provider_error", 16, message="[redacted] has expired")


# --- errors -------------------------------------------------------------------------------------------------

ERRORS = {
    "A, of streaming calls": (
        b'{"error":{"grpcCode":8,"httpCode":429,"message":"quota","httpStatus":"Too Many Requests"}}',
        (8, "quota"),
    ),
    "B, of unary calls": (b'{"error":"bad","code":3,"message":"bad","details":[]}', (3, "bad")),
    "C, of operations": (b'{"code":16,"message":"Token is invalid","details":[]}', (16, "Token is invalid")),
    "OpenAI's": (b'{"error":{"message":"no","type":"x","code":"model_call_error"}}', (None, "no")),
    "a code in a string": (b'{"code":"5","message":"gone"}', (5, "gone")),
    "a message without a code": (b'{"message":"Forbidden"}', (None, "Forbidden")),
    "null": (b'{"error":null,"code":3,"message":"bad"}', (3, "bad")),
    "no message": (b'{"code":3}', (3, "no reason given")),
    "a message that is an object": (b'{"error":{"message":{}}}', (None, "no reason given")),
    "a list": (b"[1]", (None, "[1]")),
    "HTML": (b"\n <!DOCTYPE html><title>502</title>", (None, "an HTML page")),
    "HTML after a byte order mark": ("\ufeff<html>".encode(), (None, "an HTML page")),
    "plain text": (b"upstream connect error\n", (None, "upstream connect error")),
    "not text": (b"\xff\xfe", (None, "\ufffd\ufffd")),
    "nothing": (b"", (None, "no reason given")),
}


@pytest.mark.parametrize(("body", "expected"), ERRORS.values(), ids=ERRORS)
def test_read_error(body: bytes, expected: tuple[int | None, str]) -> None:
    assert read_error(body) == expected


# --- submit and poll ----------------------------------------------------------------------------------------


_WANTS_WRITER = "stream_writer" in inspect.signature(aiohttp.ClientResponse.__init__).parameters


class _MockedResponse(aiohttp.ClientResponse):
    """aioresponses 0.7 does not know this parameter of aiohttp 3.14, and every mocked reply would raise."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if _WANTS_WRITER:
            kwargs.setdefault("stream_writer", Mock(output_size=0))
        super().__init__(*args, **kwargs)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    """Plays the service without a socket: only complete answers, and errors before anything left."""
    monkeypatch.setattr("aioresponses.core.ClientResponse", _MockedResponse)
    with aioresponses() as mocked:
        yield mocked


def submit(service: aioresponses, **reply: Any) -> SubmitReply:
    service.post(SUBMIT, **reply)

    async def run() -> SubmitReply:
        async with yandex() as provider:
            return await provider.submit(b"{}", str(uuid.uuid4()))

    return asyncio.run(run())


def poll(service: aioresponses, operation_id: str = OPERATION_ID, **reply: Any) -> PollReply:
    service.get(f"{BASE}/operations/{operation_id}", **reply)

    async def run() -> PollReply:
        async with yandex() as provider:
            return await provider.poll(operation_id)

    return asyncio.run(run())


B = b'{"error":"no","code":3,"message":"no","details":[]}'
NO_ID = "HTTP 200 without an operation ID"
SUBMITS: dict[str, tuple[dict[str, Any], SubmitReply]] = {
    "accepted": ({"body": operation(done=False)}, Accepted(OPERATION_ID)),
    "accepted and done at once": ({"body": answered()}, Accepted(OPERATION_ID)),
    "accepted and failed at once": ({"body": failed(13)}, Accepted(OPERATION_ID)),
    "accepted, 202": ({"status": 202, "body": operation()}, Accepted(OPERATION_ID)),
    "200, a page": ({"body": b"<html>log in</html>"}, Ambiguous(NO_ID)),
    "200, nothing": ({"body": b""}, Ambiguous(NO_ID)),
    "200, cut JSON": ({"body": b'{"id":"d7q"'}, Ambiguous(NO_ID)),
    "200, no ID": ({"body": b"{}"}, Ambiguous(NO_ID)),
    "200, an error": ({"body": B}, Ambiguous(NO_ID)),
    "200, a list": ({"body": b"[]"}, Ambiguous(NO_ID)),
    "200, an ID that is a path": ({"body": b'{"id":"../../secret"}'}, Ambiguous(NO_ID)),
    "200, an ID with a line break": ({"body": b'{"id":"d7q\\n"}'}, Ambiguous(NO_ID)),
    "200, an ID beyond ASCII": ({"body": '{"id":"д"}'.encode()}, Ambiguous(NO_ID)),
    "200, an empty ID": ({"body": b'{"id":""}'}, Ambiguous(NO_ID)),
    "200, an ID of 129 letters": ({"body": operation(id="a" * 129)}, Ambiguous(NO_ID)),
    "an ID of 128 letters": ({"body": operation(id="a" * 128)}, Accepted("a" * 128)),
    **{
        f"{status} refuses": ({"status": status, "body": B}, Refused(status, "no", 3))
        for status in (
            300,
            301,
            302,
            304,
            307,
            308,
            400,
            401,
            402,
            403,
            404,
            409,
            413,
            422,
            425,
            429,
            431,
            501,
        )
    },
    **{
        f"{status} says nothing": ({"status": status, "body": B}, Ambiguous(f"HTTP {status}"))
        for status in (408, 499, 500, 502, 503, 504, 505, 520, 599)
    },
    "429, wait": (
        {"status": 429, "body": b"{}", "headers": {"Retry-After": "12"}},
        Refused(429, "no reason given", None, 12.0),
    ),
    "403, a page": ({"status": 403, "body": b"<html>"}, Refused(403, "an HTML page")),
    "401, with our key in it": (
        {"status": 401, "body": json.dumps({"code": 16, "message": f"Unknown api key '{KEY}'"}).encode()},
        Refused(401, "Unknown api key '[redacted]'", 16),
    ),
}


@pytest.mark.parametrize(("reply", "expected"), SUBMITS.values(), ids=SUBMITS)
def test_submit(reply: dict[str, Any], expected: SubmitReply, service: aioresponses) -> None:
    assert submit(service, **reply) == expected


@pytest.mark.parametrize("status", range(100, 600))
def test_of_all_statuses_only_these_say_that_nothing_was_accepted(status: int) -> None:
    reply = yandex()._read_submitted(Reply(status, B))
    certain = status == 501 or (300 <= status < 500 and status not in (408, 499))
    assert isinstance(reply, Refused) == certain
    assert isinstance(reply, Ambiguous) != certain


def test_nothing_left_when_the_name_is_not_found(service: aioresponses) -> None:
    where = ConnectionKey("example.com", 443, True, True, None, None, None, None)
    error = ClientConnectorDNSError(where, OSError("no such name"))
    assert submit(service, exception=error) == Unreachable("name lookup failed")


def test_nothing_left_when_no_connection_came_about(service: aioresponses) -> None:
    reply = submit(service, exception=ConnectionTimeoutError("a secret"))
    assert reply == Unreachable("no connection in time")


def test_a_submit_is_named_and_marked_private(service: aioresponses) -> None:
    submit(service, body=operation())
    (call,) = service.requests["POST", URL(SUBMIT)]
    assert call.kwargs["data"].decode() == "{}"
    assert call.kwargs["allow_redirects"] is False
    assert call.kwargs["headers"]["Content-Type"] == "application/json"
    uuid.UUID(call.kwargs["headers"]["x-client-request-id"])
    assert yandex()._http._headers["Authorization"] == f"Api-Key {KEY}"
    assert yandex()._http._headers["x-data-logging-enabled"] == "false"


def test_of_an_unreadable_acceptance_no_word_is_logged(service: aioresponses, caplog: pytest.LogCaptureFixture) -> None:
    page = f"<html>\x1b[31m{KEY}".encode() + b"a" * 10_000
    submit(service, body=page)
    (entry,) = [entry for entry in caplog.records if entry.levelno == logging.WARNING]
    assert entry.getMessage() == "submit_reply_unreadable"
    assert entry.__dict__["fields"] == {"status": 200, "bytes": len(page)}


C = b'{"code":5,"message":"operation not found","details":[]}'
POLLS: dict[str, tuple[dict[str, Any], PollReply]] = {
    "running": ({"body": operation(done=False)}, StillRunning()),
    "answered": ({"body": answered()}, text("stop")),
    "answered for somebody else": (
        {"body": answered().replace(OPERATION_ID.encode(), b"d7qanother")},
        PollFailed("the reply is about another operation"),
    ),
    "not found": ({"status": 404, "body": C}, NotFound()),
    "not found, without a word": ({"status": 404, "body": b""}, NotFound()),
    "a page that is not found": ({"status": 404, "body": b"<html>"}, PollFailed("an HTML page", 404)),
    "401": ({"status": 401, "body": b'{"code":16,"message":"bad"}'}, PollFailed("bad", 401)),
    "403": ({"status": 403, "body": b'{"code":7,"message":"denied"}'}, PollFailed("denied", 403)),
    "429, wait": (
        {"status": 429, "body": B, "headers": {"Retry-After": "3"}},
        PollFailed("no", 429, 3.0),
    ),
    "503": ({"status": 503, "body": b"<html>"}, PollFailed("an HTML page", 503)),
    "307": ({"status": 307, "body": b"", "headers": {"Location": "/x"}}, PollFailed("no reason given", 307)),
    "204": ({"status": 204, "body": b""}, PollFailed("no reason given", 204)),
    "200, a page": ({"body": b"<html>"}, NOT_AN_OPERATION),
    "no connection": ({"exception": ConnectionTimeoutError()}, PollFailed("no connection in time")),
}


@pytest.mark.parametrize(("reply", "expected"), POLLS.values(), ids=POLLS)
def test_poll(reply: dict[str, Any], expected: PollReply, service: aioresponses) -> None:
    assert poll(service, **reply) == expected


@pytest.mark.parametrize("operation_id", ["", "../secret", "a/b", "a?b", "a#b", "a b", "a\r\nb", "д", "a" * 129])
def test_an_id_that_could_lead_elsewhere_enters_no_url(operation_id: str, service: aioresponses) -> None:
    async def run() -> PollReply:
        async with yandex() as provider:
            return await provider.poll(operation_id)

    assert isinstance(asyncio.run(run()), Malformed)
    assert service.requests == {}


def test_a_reply_of_more_than_32_mib_is_not_read_to_its_end() -> None:
    body = b" " * (32 * 1024 * 1024 + 1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        status = 503 if b"broken" in request else 200
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 1000000000\r\n\r\n".encode())
        writer.write(body)
        await reader.read()
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with yandex(endpoint) as provider:
                assert await provider.poll("long") == Finished(
                    Failure("oversize", "the answer is longer than 33554432 bytes")
                )
                assert await provider.poll("broken") == PollFailed("an oversize error page", 503)
                assert await provider.submit(b"{}", "r1") == Ambiguous("the reply is longer than 33554432 bytes")

    asyncio.run(run())


NO_NEW_ACCEPTANCE = {
    "the acceptance before": answering("200 OK", operation()),
    "a page": answering("200 OK", b"<html>"),
    "a refusal": answering("400 Bad Request", b"{}"),
}


@pytest.mark.parametrize("script", NO_NEW_ACCEPTANCE.values(), ids=NO_NEW_ACCEPTANCE)
def test_after_anything_but_a_new_acceptance_no_connection_is_used_again(script: Script) -> None:
    async def run() -> None:
        async with Server(script) as server, yandex(server.url.removesuffix("/do")) as provider:
            await provider.submit(b"{}", "r1")
            await provider.submit(b"{}", "r2")
            before = server.connections
            await provider.submit(b"{}", "r3")
            assert server.connections == before + 1

    asyncio.run(run())


def test_a_connection_is_used_again_after_new_acceptances() -> None:
    async def accepting(peer: Peer) -> None:
        while await peer.hear():
            await peer.answer("200 OK", operation(id=uuid.uuid4().hex))

    async def run() -> None:
        async with Server(accepting) as server, yandex(server.url.removesuffix("/do")) as provider:
            for _ in range(3):
                await provider.submit(b"{}", "r1")
            assert server.connections == 1

    asyncio.run(run())


def test_the_service_has_two_hosts_of_its_own(service: aioresponses) -> None:
    service.post("https://ai.api.cloud.yandex.net/foundationModels/v1/completionAsync", body=operation())
    service.get(f"https://operation.api.cloud.yandex.net/operations/{OPERATION_ID}", body=operation())

    async def run() -> None:
        async with yandex(endpoint=None) as provider:
            assert await provider.submit(b"{}", "r1") == Accepted(OPERATION_ID)
            assert await provider.poll(OPERATION_ID) == StillRunning()

    asyncio.run(run())


def test_an_endpoint_that_would_show_the_key_is_refused() -> None:
    with pytest.raises(UsageProblem):
        yandex("http://gateway.example.com")


# --- credentials --------------------------------------------------------------------------------------------

IN_ORDER = {"YC_FOLDER_ID": FOLDER, "YC_API_KEY": KEY, "YC_IAM_TOKEN": "t1.token"}
ENVIRONMENTS = {
    "a key": ({**IN_ORDER, "YC_IAM_TOKEN": ""}, f"Api-Key {KEY}"),
    "a key before a token": (IN_ORDER, f"Api-Key {KEY}"),
    "a token": ({**IN_ORDER, "YC_API_KEY": ""}, "Bearer t1.token"),
    "a blank key is none": ({**IN_ORDER, "YC_API_KEY": " \n"}, "Bearer t1.token"),
    "blanks around": ({"YC_FOLDER_ID": f" {FOLDER}\n", "YC_API_KEY": f"\t{KEY}\r\n"}, f"Api-Key {KEY}"),
}


@pytest.mark.parametrize(("environ", "authorization"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_credentials_from_the_environment(environ: dict[str, str], authorization: str) -> None:
    assert credentials_from(environ) == Credentials(authorization, FOLDER)


BAD_ENVIRONMENTS: dict[str, tuple[dict[str, str], type[BatchrunError], str]] = {
    "nothing": ({}, CredentialsRefused, "no API key: YC_API_KEY and YC_IAM_TOKEN are empty"),
    "no folder": ({"YC_API_KEY": KEY}, UsageProblem, "YC_FOLDER_ID is empty"),
    "a folder's name": ({**IN_ORDER, "YC_FOLDER_ID": "my folder"}, UsageProblem, "YC_FOLDER_ID is empty, or not"),
    "a folder that is a path": ({**IN_ORDER, "YC_FOLDER_ID": "../x"}, UsageProblem, "YC_FOLDER_ID is empty, or not"),
    "a folder of 65": ({**IN_ORDER, "YC_FOLDER_ID": "a" * 65}, UsageProblem, "YC_FOLDER_ID is empty, or not"),
    "a key of two lines": (
        {**IN_ORDER, "YC_API_KEY": f"{KEY}\r\nX: 1"},
        CredentialsRefused,
        "YC_API_KEY holds",
    ),
    "a key with its scheme": (
        {**IN_ORDER, "YC_API_KEY": f"Api-Key {KEY}"},
        CredentialsRefused,
        "YC_API_KEY holds",
    ),
    "a key beyond ASCII": ({**IN_ORDER, "YC_API_KEY": f"{KEY}ключ"}, CredentialsRefused, "YC_API_KEY holds"),
    "a token with a NUL": (
        {"YC_FOLDER_ID": FOLDER, "YC_IAM_TOKEN": f"{KEY}\x00"},
        CredentialsRefused,
        "YC_IAM_TOKEN holds",
    ),
}


@pytest.mark.parametrize(("environ", "kind", "cause"), BAD_ENVIRONMENTS.values(), ids=BAD_ENVIRONMENTS)
def test_credentials_that_cannot_be_used(environ: dict[str, str], kind: type[BatchrunError], cause: str) -> None:
    with pytest.raises(kind) as caught:
        credentials_from(environ)
    assert caught.value.cause.startswith(cause)
    assert caught.value.remedy
    assert KEY not in caught.value.cause + caught.value.remedy


def test_credentials_do_not_show_the_key() -> None:
    assert KEY not in repr(CREDENTIALS)
    assert KEY not in repr(yandex())
