"""Answers that no service should give: always one of the known replies, no address but ours, no secret."""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import re
import sqlite3
from collections.abc import Coroutine
from contextlib import closing
from typing import Any, TypeVar, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.providers.http import MAX_RETRY_AFTER_S, Exchange, Reply
from batchrun.providers.yandex import Credentials, Yandex
from batchrun.record import Accepted, Answer, Failure, Finished, PollFailed, PollReply, Refused, SubmitReply
from batchrun.writer import one_line
from tests.hostile import drawn
from tests.hostile.here import FOLDER, KEY, Here, Service, finished, in_memory, reply
from tests.unit.test_http import Peer, Server, http

T = TypeVar("T")
OPERATION_ID = "d7qexample0000000001"
RUNNING: dict[str, Any] = {"id": OPERATION_ID, "description": "x", "createdAt": "2026-01-01T00:00:00Z", "done": False}
ANSWERED: dict[str, Any] = {
    **RUNNING,
    "done": True,
    "response": {
        "@type": "type.googleapis.com/yandex.cloud.ai.foundation_models.v1.CompletionResponse",
        "alternatives": [{"message": {"role": "assistant", "text": "hello"}, "status": "ALTERNATIVE_STATUS_FINAL"}],
        "usage": {
            "inputTextTokens": "3",
            "completionTokens": "4",
            "totalTokens": "7",
            "completionTokensDetails": {"reasoningTokens": "0"},
        },
        "modelVersion": "09.02.2025",
    },
}
FAILED: dict[str, Any] = {**RUNNING, "done": True, "error": {"code": 13, "message": "internal", "details": []}}
NOT_OK: dict[str, Any] = {"error": {"grpcCode": 3, "httpCode": 400, "message": "bad", "httpStatus": "Bad Request"}}
BODIES = (
    RUNNING,
    ANSWERED,
    FAILED,
    NOT_OK,
    {"error": "text", "code": 3, "message": "text"},
    {"code": 5, "message": "no"},
)

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(("", "x" * 5000, "\x00\x1b[2J", "-1", "9" * 18, "9" * 30, "ALTERNATIVE_STATUS_", KEY, FOLDER))
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, from the outside in."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places_in(each, (*path, key)))]


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """A real body in which values were replaced or taken away, or any JSON at all."""
    if draw(st.integers(0, 4)) == 0:
        return draw(VALUES)
    document = copy.deepcopy(draw(st.sampled_from(BODIES)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(places_in(document)))
        if not place:
            continue
        holder = document
        for key in place[:-1]:
            holder = holder[key]
        if draw(st.booleans()):
            holder[place[-1]] = draw(VALUES)
        else:
            del holder[place[-1]]
    return document


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A document as bytes, some of them spoilt."""
    body = json.dumps(draw(documents()), ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    if draw(st.integers(0, 2)) == 0:
        at = draw(st.integers(0, len(body)))
        spoilt = draw(st.binary(max_size=4) | st.sampled_from((b"NaN", b"1e999", b"[" * 20_000, b"\\ud800", b"\x00")))
        body = body[:at] + spoilt + body[at + draw(st.integers(0, 3)) :]
    return body


class Saying(Service):
    """Gives every request the same answer."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange

    async def post(self, url: str, body: bytes, headers: Any) -> Exchange:
        self.urls.append(url)
        return self._exchange

    async def get(self, url: str) -> Exchange:
        self.urls.append(url)
        return self._exchange


def client(exchange: Exchange) -> tuple[Yandex, Saying]:
    provider = Yandex(Credentials(f"Api-Key {KEY}", FOLDER))
    service = Saying(exchange)
    provider._http = service  # type: ignore[assignment]
    return provider, service


def at_once(call: Coroutine[Any, Any, T]) -> T:
    """What a call returns that never has to wait."""
    try:
        call.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("it waits")


def is_short_and_clean(text: str) -> bool:
    return (
        len(text.encode()) <= 2048
        and KEY not in text
        and FOLDER not in text
        and "\x1b" not in text
        and "\n" not in text
    )


@given(
    bodies(),
    st.sampled_from((200, 200, 200, 201, 302, 400, 401, 403, 404, 418, 429, 500, 501, 503)) | st.integers(200, 599),
)
@drawn(100)
def test_any_body_is_one_of_the_known_replies(body: bytes, status: int) -> None:
    """Fails if any field of an operation or an error is used without a look at what it is."""
    check_replies(body, status)


ODD: tuple[Any, ...] = (None, True, 0, -1, 1e300, 1 << 70, "", "x", [], [None], {}, {"a": 1}, {"code": {}}, [[]])


@pytest.mark.parametrize("body", BODIES, ids=["running", "answered", "failed", "nested_error", "flat_error", "status"])
def test_any_odd_value_in_any_place_is_one_of_the_known_replies(body: dict[str, Any]) -> None:
    """Fails if any one field is used without a look at what it is."""
    for place in places_in(body):
        for odd in ODD:
            document: Any = copy.deepcopy(body) if place else odd
            holder = document
            for key in place[:-1]:
                holder = holder[key]
            if place:
                holder[place[-1]] = odd
            for status in (200, 400):
                check_replies(json.dumps(document).encode(), status)


def check_replies(body: bytes, status: int) -> None:
    provider, service = client(Reply(status, body))
    submitted = at_once(provider.submit(b"{}", "request"))
    polled = at_once(provider.poll(OPERATION_ID))
    assert isinstance(submitted, get_args(SubmitReply))
    assert isinstance(polled, get_args(PollReply))
    match submitted:
        case Accepted(operation_id):
            assert re.fullmatch(r"[A-Za-z0-9_-]{1,128}", operation_id)
        case Refused(message=message):
            assert is_short_and_clean(message)
    match polled:
        case Finished(Answer() as answer):
            assert (
                one_line({"text": answer.text, "json": answer.json, "finish_reason": answer.finish_reason}).count(b"\n")
                == 1
            )
            assert all(n is None or 0 <= n <= 1 << 40 for n in (answer.usage.input_tokens, answer.usage.output_tokens))
            assert is_short_and_clean(answer.finish_reason)
        case Finished(Failure(message=message)) | PollFailed(reason=message):
            assert is_short_and_clean(message)
    assert service.urls == [
        "https://ai.api.cloud.yandex.net/foundationModels/v1/completionAsync",
        f"https://operation.api.cloud.yandex.net/operations/{OPERATION_ID}",
    ]


STRANGE_IDS = (
    "",
    "../../secret",
    "a/b",
    "a?b",
    "a#b",
    "a%2e%2e",
    "@evil.example",
    "//evil.example",
    "a\r\nX: y",
    "a\x00",
    "a\n",
    "ж",
    "١٢٣",
    "a" * 129,
    "http://evil.example/",
    " a",
)


@given(st.sampled_from(STRANGE_IDS) | st.text(max_size=130) | st.from_regex(r"[A-Za-z0-9_-]{1,130}\n?"))
@drawn(60)
def test_a_strange_operation_id_is_never_accepted_and_enters_no_address(operation_id: str) -> None:
    """Fails if the check of an ID lets a line end at its end pass, or letters of another script."""
    is_one = re.fullmatch(r"[A-Za-z0-9_-]{1,128}\Z", operation_id) is not None
    provider, service = client(reply({"id": operation_id, "done": False}))
    assert isinstance(at_once(provider.submit(b"{}", "request")), Accepted) == is_one
    service.urls.clear()
    at_once(provider.poll(operation_id))
    assert service.urls == ([f"https://operation.api.cloud.yandex.net/operations/{operation_id}"] if is_one else [])


class Spoilt(Service):
    """Accepts everything. Every poll brings these bytes; but no operation runs for ever."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self._body = body

    async def get(self, url: str) -> Exchange:
        self.urls.append(url)
        operation_id = url.rpartition("/")[2]
        if self.urls.count(url) > 300:
            return finished(operation_id, "at last")
        return Reply(200, self._body.replace(OPERATION_ID.encode(), operation_id.encode()))


@given(bodies())
@drawn(10)
def test_whatever_a_poll_brings_a_run_ends_and_hides_no_payment(body: bytes) -> None:
    """Fails if a poll can neither settle its operation nor count as a failure."""
    with in_memory() as folder:
        here = Here(folder, Spoilt(body))
        here.records("a", "b")
        code = here.run("--log-file", "run.log").code
        assert code in (0, 1, 4, 5, 75)
        with closing(sqlite3.connect(here.state / "ledger.db")) as ledger:
            (allowed,) = ledger.execute("SELECT sum(1 + maybe_paid + failed_operations) FROM record").fetchone()
        assert here.service.submits <= allowed
        assert here("verify", "out.jsonl").code == 0


# --- on the wire ---------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
LATER = b"HTTP/1.1 429 No\r\nRetry-After: "
BOMB = gzip.compress(bytes(5_000_000))
ANSWERS: dict[str, bytes] = {
    "a header of 100 KB": OK + b"X-Long: " + b"x" * 100_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    "100,000 headers": OK + b"X: y\r\n" * 100_000 + b"Content-Length: 2\r\n\r\n{}",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}",
    "a negative length": OK + b"Content-Length: -1\r\n\r\n{}",
    "a huge length": OK + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n{}",
    "a length in words": OK + b"Content-Length: two\r\n\r\n{}",
    "a length and chunks": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a chunk of no size": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk of a huge size": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 100 + b"\r\n{}",
    "a negative chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "an endless trailer": OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 50_000,
    "an endless chunk extension": OK
    + b"Transfer-Encoding: chunked\r\n\r\n2;"
    + b"x" * 100_000
    + b"\r\n{}\r\n0\r\n\r\n",
    "a gzip bomb": OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB,
    "gzip that is none": OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "an unknown encoding": OK + b"Content-Encoding: \xff, br, \x01\r\nContent-Length: 2\r\n\r\n{}",
    "a strange type": OK + b"Content-Type: \xff\x80/;;;=,charset=\x7f\r\nContent-Length: 2\r\n\r\n{}",
    "a strange charset": OK + b"Content-Type: text/html; charset=utf-7000\r\nContent-Length: 2\r\n\r\n{}",
    "retry after for ever": b"HTTP/1.1 429 No\r\nRetry-After: " + b"9" * 5000 + b"\r\nContent-Length: 0\r\n\r\n",
    "retry after before time began": LATER + b"Mon, 01 Jan 0001 00:00:00 -9999\r\nContent-Length: 0\r\n\r\n",
    "two retry afters": b"HTTP/1.1 429 No\r\nRetry-After: \xff\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n",
    "a status of its own": b"HTTP/1.1 99999 What\r\nContent-Length: 0\r\n\r\n",
    "a status of no number": b"HTTP/1.1 abc\r\n\r\n",
    "another protocol": b"HTTP/9.9 200 OK\r\n\r\n",
    "only early hints": b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" * 500,
    "another protocol's upgrade": b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n\x00\x01",
    "a header without a name": OK + b": x\r\nContent-Length: 2\r\n\r\n{}",
    "a folded header": OK + b"X: a\r\n b\r\n\tc\r\nContent-Length: 2\r\n\r\n{}",
    "a bare CR": OK + b"X: a\rY: b\r\nContent-Length: 2\r\n\r\n{}",
    "NULs": OK + b"X: \x00\x00\r\nContent-Length: 2\r\n\r\n{}",
    "a cookie": OK + b"Set-Cookie: a=\xff\x01; Domain=; Max-Age=x" + b";" * 5000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    "a location that is none": b"HTTP/1.1 302 No\r\nLocation: http://[::1/\xff%zz\r\nContent-Length: 0\r\n\r\n",
    "nothing but line ends": b"\r\n" * 10_000,
    "no line end": b"x" * 100_000,
    "binary": bytes(range(256)) * 100,
    "a second answer behind the first": (OK + b"Content-Length: 2\r\n\r\n{}") * 2,
}


async def exchanges(raw: bytes) -> tuple[Exchange, Exchange]:
    """What a POST and a GET become when the service says this and closes."""

    async def script(peer: Peer) -> None:
        if await peer.hear():
            await peer.say(raw)

    async with Server(script) as server, http(max_body_bytes=100_000) as wire:
        return await wire.post(server.url, b"{}", {}), await wire.get(server.url)


def check_exchanges(raw: bytes) -> None:
    for exchange in asyncio.run(exchanges(raw)):
        assert isinstance(exchange, get_args(Exchange))
        if isinstance(exchange, Reply):
            assert len(exchange.body) <= 100_000
            assert 0 <= exchange.retry_after_s <= MAX_RETRY_AFTER_S
        else:
            reason = getattr(exchange, "reason", "")
            assert reason.isprintable()
            assert "AQVN" not in reason


@pytest.mark.parametrize("raw", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_breaks_the_protocol_is_an_exchange_like_any_other(raw: bytes) -> None:
    """Fails if the client lets an exception of the HTTP library through."""
    check_exchanges(raw)


def test_nothing_is_unpacked() -> None:
    """Fails if the HTTP library may undo an encoding: a few bytes could become any number."""
    for exchange in asyncio.run(exchanges(ANSWERS["a gzip bomb"])):
        assert exchange == Reply(200, BOMB)


@given(
    st.sampled_from([*ANSWERS.values()]).map(lambda raw: raw[:2000]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 9), st.binary(max_size=6)), min_size=1, max_size=4),
)
@drawn(40)
def test_any_spoilt_answer_is_an_exchange_like_any_other(raw: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    for at, gone, piece in edits:
        at %= len(raw) + 1
        raw = raw[:at] + piece + raw[at + gone :]
    check_exchanges(raw)
