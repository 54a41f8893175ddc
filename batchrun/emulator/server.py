"""The routes of the emulator: reads requests, asks the pure rooms what to answer, performs the faults."""

import asyncio
import socket
import struct
import time
import uuid
from collections import Counter
from functools import partial
from typing import Any

import orjson
from aiohttp import web

from . import shapes
from .faults import COUNTED_FAULTS, Draws, Ending, Plan, Settings, ending, latency_s
from .operations import KEPT_CHARACTERS, Book, Operation, SlidingWindow, new_operation_id
from .requests import CompletionRequest, InvalidRequest, read_completion_request

SUBMIT = "POST /foundationModels/v1/completionAsync"
POLL = "GET /operations/"
OTHER_COUNTERS = (
    *("submits_received", "submits_unauthorised", "submits_invalid", "refused_quota"),
    *("polls_received", "polls_unauthorised", "polls_refused_quota"),
    *("polls_running", "polls_done", "polls_not_found"),
)


class Refused(Exception):
    """A request ends here, with an error in the shape of its endpoint."""

    def __init__(self, http: int, settings: Settings, message: str | None = None) -> None:
        super().__init__(message or shapes.text_for_status(http, settings.folder))
        self.http = http
        self.headers: dict[str, str] = {}
        if http == 429 and settings.retry_after:
            self.headers["Retry-After"] = str(settings.retry_after)


class Service:
    """The emulated service: one instance per server, used from one event loop."""

    def __init__(self, settings: Settings, book: Book) -> None:
        self._plan = Plan(settings)
        self._book = book
        self._polls = Counter[str]()  # of each operation
        self._counts = Counter[str](dict.fromkeys((*OTHER_COUNTERS, *COUNTED_FAULTS), 0))
        self._received_in_second, self._received_in_hour = SlidingWindow(1), SlidingWindow(3600)
        self._admitted_in_second, self._admitted_in_hour = SlidingWindow(1), SlidingWindow(3600)
        self._reads_in_second = SlidingWindow(1)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        call = f"{request.method} {request.path}"
        if call == "PUT /_faults":  # not part of the real service, as the next one
            return self._change_faults(await request.read())
        if call == "GET /_stats":
            return _response(orjson.dumps(self._stats(totals_only=request.query.get("totals") == "1")))
        try:
            if call == SUBMIT:
                return await self._submit(request)
            if call.startswith(POLL):
                return await self._poll(request, _readable(call.removeprefix(POLL)))
            raise Refused(404, self._plan.settings, "Not Found")
        except Refused as refused:
            headers = {"x-request-id": str(uuid.uuid4()), **refused.headers}
            if 300 <= refused.http < 400:  # a redirect to itself: a client that follows it is counted again
                headers["Location"] = request.path
            error = shapes.error(refused.http, str(refused), headers["x-request-id"], of_submit=call == SUBMIT)
            return _response(orjson.dumps(error), http=refused.http, **headers)

    # Submitting

    async def _submit(self, request: web.BaseRequest) -> web.StreamResponse:
        now = time.monotonic()
        self._counts["submits_received"] += 1
        self._received_in_second.add(now)
        self._received_in_hour.add(now)
        self._authorise(request, counter="submits_unauthorised")
        wanted = await self._read_submit(request)
        settings = self._plan.for_text(wanted.text)
        self._refuse_with_status(settings, "status")
        self._keep_quotas(
            settings,
            "refused_quota",
            (self._admitted_in_second, settings.rps, "RequestsPerSecond"),
            (self._admitted_in_hour, settings.rph, "RequestsPerHour"),
        )
        occurrence = self._book.seen[wanted.sha256]
        self._book.seen[wanted.sha256] += 1
        draws = Draws(settings.seed, bytes.fromhex(wanted.sha256), str(occurrence))
        happens = partial(self._happens, settings, draws)
        if happens("reset"):
            return _dropped(request, with_reset=True)
        if happens("refuse"):
            raise Refused(429, settings)
        if happens("error_before"):
            raise Refused(503, settings)
        earlier_id = next(reversed(self._book.operations), None)
        operation = self._accept(wanted, occurrence, settings, draws)
        await self._wait(settings, "slow")
        if happens("lost"):
            return _dropped(request, with_reset=False)
        document = shapes.operation_document(operation, done=False)
        if earlier_id and happens("same_id"):
            document["id"] = earlier_id
        body = orjson.dumps(shapes.styled(document, settings))
        if happens("cut"):
            return _cut_response(body)
        if happens("garbled"):
            return _garbled_response()
        if happens("error_after"):
            raise Refused(503, settings)
        return _response(body)

    async def _read_submit(self, request: web.BaseRequest) -> CompletionRequest:
        settings = self._plan.settings
        try:
            wanted = read_completion_request(await request.read())
            for given in (wanted.folder, _readable(request.headers.get("x-folder-id", settings.folder))):
                if settings.folder and given != settings.folder:
                    raise InvalidRequest(shapes.folder_mismatch(given, settings.folder))
        except InvalidRequest as exc:
            self._counts["submits_invalid"] += 1
            raise Refused(400, settings, str(exc)) from exc
        return wanted

    def _accept(self, wanted: CompletionRequest, occurrence: int, settings: Settings, draws: Draws) -> Operation:
        """From here on the request is paid for, whatever the client gets to see."""
        now = time.time()
        operation = Operation(
            id=new_operation_id(),
            request=wanted.sha256,
            text=wanted.text[:KEPT_CHARACTERS],
            characters=wanted.characters,
            occurrence=occurrence,
            accepted_at=now,
            finishes_at=now + latency_s(settings, draws),
            ending=ending(settings, draws, failures=self._book.failures[wanted.sha256]),
            fail_code=settings.fail_code,
        )
        self._book.accept(operation)
        if operation.ending is not Ending.FINAL:
            self._counts[operation.ending] += 1
        return operation

    # Polling

    async def _poll(self, request: web.BaseRequest, operation_id: str) -> web.StreamResponse:
        self._counts["polls_received"] += 1
        self._authorise(request, counter="polls_unauthorised")
        operation = self._book.operations.get(operation_id)
        settings = self._plan.for_text(operation.text) if operation else self._plan.settings
        self._refuse_with_status(settings, "poll_status")
        quota = self._reads_in_second, settings.read_rps, "ResultRequestsPerSecond"
        self._keep_quotas(settings, "polls_refused_quota", quota)
        self._polls[operation_id] += 1
        digest = bytes.fromhex(operation.request) if operation else operation_id.encode()
        occasion = f"{operation.occurrence if operation else 'unknown'} poll {self._polls[operation_id]}"
        happens = partial(self._happens, settings, Draws(settings.seed, digest, occasion))
        if happens("poll_reset"):
            return _dropped(request, with_reset=True)
        if happens("poll_refuse"):
            raise Refused(429, settings)
        if happens("poll_error"):
            raise Refused(503, settings)
        await self._wait(settings, "poll_slow")
        if happens("poll_garbled"):
            return _garbled_response()
        now = time.time()
        if operation is None or not operation.is_known(now, settings.retention):
            self._counts["polls_not_found"] += 1
            raise Refused(404, settings, shapes.NOT_FOUND)
        done = operation.is_done(now)
        self._counts["polls_done" if done else "polls_running"] += 1
        document = shapes.operation_document(operation, done=done)
        return _response(orjson.dumps(shapes.styled(document, settings)))

    # For both

    def _authorise(self, request: web.BaseRequest, *, counter: str) -> None:
        settings = self._plan.settings
        scheme, _, secret = _readable(request.headers.get("Authorization", "")).partition(" ")
        scheme = scheme.lower()
        if scheme not in ("api-key", "bearer") or not secret:
            text = shapes.NO_CREDENTIALS
        elif settings.api_key in ("", secret):
            return
        else:
            text = shapes.unknown_api_key(secret) if scheme == "api-key" else shapes.BAD_TOKEN
        self._counts[counter] += 1
        raise Refused(401, settings, text)

    def _refuse_with_status(self, settings: Settings, name: str) -> None:
        if http := getattr(settings, name):
            self._counts[name] += 1
            raise Refused(http, settings)

    def _keep_quotas(self, settings: Settings, counter: str, *quotas: tuple[SlidingWindow, int, str]) -> None:
        now = time.monotonic()
        for window, allowed, per in quotas:
            if not window.has_room(now, allowed):
                self._counts[counter] += 1
                raise Refused(429, settings, shapes.quota_exceeded(per, allowed))
        for window, _, _ in quotas:
            window.add(now)

    def _happens(self, settings: Settings, draws: Draws, fault: str) -> bool:
        """Whether a fault is drawn; if so, it is counted."""
        hit = draws.hit(settings, fault)
        self._counts[fault] += hit
        return hit

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
            return _response(orjson.dumps({"error": str(exc)}), http=400)
        return _response(orjson.dumps(self._plan.settings))

    def _stats(self, *, totals_only: bool) -> dict[str, Any]:
        totals: dict[str, Any] = {
            **self._counts,
            "accepted": len(self._book.operations),
            "distinct": len(self._book.paid),
            "refused_injected": self._counts["refuse"],
            "polls_refused_injected": self._counts["poll_refuse"],
            "max_submits_in_one_second": self._received_in_second.busiest,
            "max_submits_in_one_hour": self._received_in_hour.busiest,
        }
        return totals if totals_only else {**totals, "payments": self._book.payments()}


def _readable(text: str) -> str:
    """Bytes outside UTF-8 come as lone surrogates, which no JSON may carry: question marks instead."""
    return text.encode(errors="replace").decode()


def _response(body: bytes, *, http: int = 200, content_type: str = "application/json", **headers: str) -> web.Response:
    """[P] with the two ids that the service puts on every response."""
    ids = {"x-request-id": str(uuid.uuid4()), "x-server-trace-id": str(uuid.uuid4())}
    return web.Response(body=body, status=http, content_type=content_type, headers=ids | headers)


def _garbled_response() -> web.Response:
    return _response(shapes.HTML_ERROR, content_type="text/html")


def _cut_response(body: bytes) -> web.Response:
    """Promise the whole body, send half of it, close the connection."""
    response = _response(body[: len(body) // 2])
    response.headers["Content-Length"] = str(len(body))
    response.force_close()
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
