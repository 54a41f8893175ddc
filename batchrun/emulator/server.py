"""The routes of the emulator: reads requests, asks the pure rooms what to answer, performs the faults."""

import asyncio
import socket
import struct
import time
import uuid
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import orjson
from aiohttp import web

from . import shapes
from .faults import COUNTED_FAULTS, Draws, Ending, Plan, Settings, ending, latency_s
from .operations import Book, DistinctRequest, Operation, SlidingWindow, new_operation_id, operation_document
from .requests import CompletionRequest, InvalidRequest, read_completion_request

SUBMIT_PATH = "/foundationModels/v1/completionAsync"
OPERATION_PREFIX = "/operations/"
OTHER_COUNTERS = (
    *("submits_received", "submits_unauthorised", "submits_invalid", "refused_quota"),
    *("polls_received", "polls_unauthorised", "polls_refused_quota"),
    *("polls_running", "polls_done", "polls_not_found"),
)


class Refused(Exception):
    """A request ends here, with an error in the shape of its endpoint."""

    def __init__(self, http: int, message: str, *, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.http = http
        self.message = message
        self.headers = (
            {"Retry-After": str(retry_after_s)} if http == HTTPStatus.TOO_MANY_REQUESTS and retry_after_s else {}
        )


class Service:
    """The emulated service: one instance per server, used from one event loop."""

    def __init__(self, settings: Settings, book: Book) -> None:
        self._plan = Plan(settings)
        self._book = book
        self._counts = Counter[str](dict.fromkeys((*OTHER_COUNTERS, *COUNTED_FAULTS), 0))
        self._received_in_second, self._received_in_hour = SlidingWindow(1), SlidingWindow(3600)
        self._admitted_in_second, self._admitted_in_hour = SlidingWindow(1), SlidingWindow(3600)
        self._reads_in_second = SlidingWindow(1)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path, method = request.path, request.method
        if method == "POST" and path == SUBMIT_PATH:
            return await self._answer_submit(request)
        if method == "GET" and path.startswith(OPERATION_PREFIX):
            return await self._answer_poll(request, _readable(path.removeprefix(OPERATION_PREFIX)))
        if method == "PUT" and path == "/_faults":  # not part of the real service, as the next one
            return self._change_faults(await request.read())
        if method == "GET" and path == "/_stats":
            totals_only = parse_qs(request.query_string).get("totals") == ["1"]
            return _json_response(self.stats(totals_only=totals_only))
        return _json_response(shapes.operation_error(5, "Not Found", str(uuid.uuid4())), http=404)

    # Submitting

    async def _answer_submit(self, request: web.BaseRequest) -> web.StreamResponse:
        now = time.monotonic()
        self._counts["submits_received"] += 1
        self._received_in_second.add(now)
        self._received_in_hour.add(now)
        try:
            self._authorise(request, counter="submits_unauthorised")
            wanted = await self._read_submit(request)
            return await self._submit(request, wanted)
        except Refused as refused:
            body = shapes.submit_error(shapes.CODE_OF_HTTP.get(refused.http, 2), refused.message)
            return _json_response(body, http=refused.http, headers=refused.headers)

    async def _read_submit(self, request: web.BaseRequest) -> CompletionRequest:
        try:
            wanted = read_completion_request(await request.read())
        except InvalidRequest as exc:
            self._counts["submits_invalid"] += 1
            raise Refused(400, str(exc)) from exc
        own = self._plan.settings.folder
        for given in (wanted.folder, _readable(request.headers.get("x-folder-id", own))):
            if own and given != own:
                self._counts["submits_invalid"] += 1
                raise Refused(400, shapes.folder_mismatch(given, own))
        return wanted

    async def _submit(self, request: web.BaseRequest, wanted: CompletionRequest) -> web.StreamResponse:
        settings = self._plan.for_text(wanted.text)
        self._refuse_with_status(settings, "status", request)
        self._keep_submit_quotas(settings)
        known = self._book.meet(wanted)
        draws = Draws(self._plan.settings.seed, known.digest, str(known.times_seen))
        known.times_seen += 1
        happens = self._happens(settings, draws)
        if happens("reset"):
            return _dropped(request, with_reset=True)
        self._refuse_or_break(settings, happens, refuse="refuse", error="error_before")
        earlier_id = self._book.latest_id
        operation = self._accept(known, settings, draws)
        await self._wait(settings, "slow")
        if happens("lost"):
            return _dropped(request, with_reset=False)
        shown_id = earlier_id if earlier_id and happens("same_id") else operation.id
        document = shapes.operation(
            shown_id, created_at=operation.accepted_at, modified_at=operation.accepted_at, done=False
        )
        if happens("cut"):
            return await _cut_response(request, orjson.dumps(_styled(document, settings)))
        if happens("garbled"):
            return _html_response()
        if happens("error_after"):
            raise Refused(503, shapes.UNAVAILABLE)
        return _json_response(_styled(document, settings))

    def _keep_submit_quotas(self, settings: Settings) -> None:
        now, retry_after_s = time.monotonic(), settings.retry_after
        for window, allowed, per in (
            (self._admitted_in_second, self._plan.settings.rps, "RequestsPerSecond"),
            (self._admitted_in_hour, self._plan.settings.rph, "RequestsPerHour"),
        ):
            if not window.has_room(now, allowed):
                self._counts["refused_quota"] += 1
                raise Refused(429, shapes.quota_exceeded(per, allowed), retry_after_s=retry_after_s)
        self._admitted_in_second.add(now)
        self._admitted_in_hour.add(now)

    def _accept(self, known: DistinctRequest, settings: Settings, draws: Draws) -> Operation:
        """From here on the request is paid for, whatever the client gets to see."""
        now = time.time()
        operation = Operation(
            id=new_operation_id(),
            request=known,
            occurrence=known.times_seen - 1,
            accepted_at=now,
            finishes_at=now + latency_s(settings, draws),
            ending=ending(settings, draws, failures=known.failures),
            fail_code=settings.fail_code,
        )
        self._book.accept(operation)
        if operation.ending is not Ending.FINAL:
            self._counts[operation.ending] += 1
        return operation

    # Polling

    async def _answer_poll(self, request: web.BaseRequest, operation_id: str) -> web.StreamResponse:
        self._counts["polls_received"] += 1
        try:
            self._authorise(request, counter="polls_unauthorised")
            return await self._poll(request, operation_id)
        except Refused as refused:
            request_id = str(uuid.uuid4())
            code = shapes.CODE_OF_HTTP.get(refused.http, 2)
            body = shapes.operation_error(code, refused.message, request_id)
            return _json_response(body, http=refused.http, headers=refused.headers, request_id=request_id)

    async def _poll(self, request: web.BaseRequest, operation_id: str) -> web.StreamResponse:
        operation = self._book.operations.get(operation_id)
        settings = self._plan.for_text(operation.request.text) if operation else self._plan.settings
        self._refuse_with_status(settings, "poll_status", request)
        now, allowed = time.monotonic(), self._plan.settings.read_rps
        if not self._reads_in_second.has_room(now, allowed):
            self._counts["polls_refused_quota"] += 1
            text = shapes.quota_exceeded("ResultRequestsPerSecond", allowed)
            raise Refused(429, text, retry_after_s=settings.retry_after)
        self._reads_in_second.add(now)
        happens = self._happens(settings, self._poll_draws(operation, operation_id))
        if happens("poll_reset"):
            return _dropped(request, with_reset=True)
        self._refuse_or_break(settings, happens, refuse="poll_refuse", error="poll_error")
        await self._wait(settings, "poll_slow")
        if happens("poll_garbled"):
            return _html_response()
        return self._operation_response(operation, settings)

    def _poll_draws(self, operation: Operation | None, operation_id: str) -> Draws:
        seed = self._plan.settings.seed
        if operation is None:
            return Draws(seed, operation_id.encode(), "unknown")
        operation.polls += 1
        return Draws(seed, operation.request.digest, f"{operation.occurrence} poll {operation.polls}")

    def _operation_response(self, operation: Operation | None, settings: Settings) -> web.Response:
        now = time.time()
        if operation is None or not operation.is_known(now, settings.retention):
            self._counts["polls_not_found"] += 1
            raise Refused(404, shapes.NOT_FOUND)
        done = operation.is_done(now)
        self._counts["polls_done" if done else "polls_running"] += 1
        return _json_response(_styled(operation_document(operation, done=done), settings))

    # For both

    def _authorise(self, request: web.BaseRequest, *, counter: str) -> None:
        scheme, _, secret = _readable(request.headers.get("Authorization", "")).partition(" ")
        scheme, own = scheme.lower(), self._plan.settings.api_key
        if scheme in ("api-key", "bearer") and secret and (not own or secret == own):
            return
        self._counts[counter] += 1
        if scheme not in ("api-key", "bearer") or not secret:
            raise Refused(401, shapes.NO_CREDENTIALS)
        raise Refused(401, shapes.unknown_api_key(secret) if scheme == "api-key" else shapes.BAD_TOKEN)

    def _refuse_with_status(self, settings: Settings, name: str, request: web.BaseRequest) -> None:
        http: int = getattr(settings, name)
        if http == 0:
            return
        self._counts[name] += 1
        text = shapes.text_for_status(http, settings.folder)
        refused = Refused(http, text, retry_after_s=settings.retry_after)
        if http < HTTPStatus.BAD_REQUEST:  # a redirect to itself: a client that follows it is counted again
            refused.headers["Location"] = request.path
        raise refused

    def _refuse_or_break(self, settings: Settings, happens: Callable[[str], bool], *, refuse: str, error: str) -> None:
        if happens(refuse):
            text = shapes.text_for_status(HTTPStatus.TOO_MANY_REQUESTS, settings.folder)
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, text, retry_after_s=settings.retry_after)
        if happens(error):
            raise Refused(503, shapes.UNAVAILABLE)

    def _happens(self, settings: Settings, draws: Draws) -> Callable[[str], bool]:
        """A question that counts each fault it answers with yes."""

        def happens(fault: str) -> bool:
            hit = draws.hit(settings, fault)
            self._counts[fault] += hit
            return hit

        return happens

    async def _wait(self, settings: Settings, name: str) -> None:
        delay_s: float = getattr(settings, name)
        if delay_s > 0:
            self._counts[name] += 1
            await asyncio.sleep(delay_s)

    # Control, at the emulator only

    def _change_faults(self, body: bytes) -> web.Response:
        try:
            change = orjson.loads(body)
            if not isinstance(change, dict):
                raise ValueError("the body must be a JSON object")
            self._plan = self._plan.updated(change)
        except ValueError as exc:  # a JSONDecodeError is one
            return _json_response({"error": str(exc)}, http=400)
        return _json_response({name: getattr(self._plan.settings, name) for name in Settings.__slots__})

    def stats(self, *, totals_only: bool) -> dict[str, Any]:
        totals: dict[str, Any] = {
            **self._counts,
            "accepted": len(self._book.operations),
            "distinct": self._book.distinct_paid,
            "refused_injected": self._counts["refuse"],
            "polls_refused_injected": self._counts["poll_refuse"],
            "max_submits_in_one_second": self._received_in_second.busiest,
            "max_submits_in_one_hour": self._received_in_hour.busiest,
        }
        return totals if totals_only else {**totals, "payments": self._book.payments()}


def _readable(text: str) -> str:
    """Bytes outside UTF-8 come as lone surrogates, which no JSON may carry: question marks instead."""
    return text.encode(errors="replace").decode()


_STYLE_OF = {
    "null_timestamps": shapes.with_null_timestamps,
    "omit_null": shapes.without_nulls,
    "no_reasoning_details": shapes.without_reasoning_details,
    "random_key_order": shapes.in_random_key_order,
}


def _styled(document: shapes.Json, settings: Settings) -> shapes.Json:
    for name, style in _STYLE_OF.items():
        if getattr(settings, name):
            document = style(document)
    return document


def _headers(request_id: str | None = None) -> dict[str, str]:
    """[P] the two ids that the service puts on every response."""
    return {"x-request-id": request_id or str(uuid.uuid4()), "x-server-trace-id": str(uuid.uuid4())}


def _json_response(
    document: shapes.Json,
    *,
    http: int = 200,
    headers: dict[str, str] | None = None,
    request_id: str | None = None,
) -> web.Response:
    return web.Response(
        body=orjson.dumps(document),
        status=http,
        headers={**_headers(request_id), **(headers or {})},
        content_type="application/json",
    )


def _html_response() -> web.Response:
    return web.Response(body=shapes.HTML_ERROR, headers=_headers(), content_type="text/html")


async def _cut_response(request: web.BaseRequest, body: bytes) -> web.StreamResponse:
    """Promise the whole body, send half of it, close the connection."""
    response = web.StreamResponse(headers={**_headers(), "Content-Type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


def _dropped(request: web.BaseRequest, *, with_reset: bool) -> web.Response:
    """Drop the connection without a byte: with a TCP reset, or as an orderly end of the stream."""
    transport = request.transport
    if transport is not None:
        if with_reset:
            linger_for_no_time = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_no_time)
        transport.abort()
    return web.Response()  # the handler must return one; there is nobody to get it
