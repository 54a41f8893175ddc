"""The routes of the emulator: reads requests, asks the pure rooms what to answer, performs the faults."""

import asyncio
import socket
import struct
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from . import shapes
from .faults import COUNTED_FAULTS, Draws, Settings
from .operations import Book, is_used_up
from .requests import Refused, read_request

ADDRESS = "127.0.0.1"  # it serves this machine only
SUBMITS = {"POST /foundationModels/v1/completionAsync": "completion", "POST /llm/v1alpha/instructAsync": "instruct"}
POLL = "GET /operations/"
QUOTAS = {"rps": ("RequestsPerSecond", 1), "rph": ("RequestsPerHour", 3600), "read_rps": ("ResultRequestsPerSecond", 1)}
COUNTED = (
    *("submits_received", "refused_quota", "final"),
    *("polls_received", "polls_refused_quota", "polls_running", "polls_done", "polls_not_found"),
)


@asynccontextmanager
async def start(settings: Settings, *, port: int = 0, journal: Path | None = None) -> AsyncIterator[str]:
    """A running emulator in this event loop, by its URL; stopped when the context is left.

    Args:
        port: 0 takes a free one.
        journal: Accepted operations are kept in this file and read back from it; without it they die with
            the process.
    Raises:
        ValueError: the journal is none.
        OSError: the port is taken, or the journal cannot be opened.
    """
    answer = Service(settings, Book(journal)).answer
    kind = partial(web.BaseRequest, loop=asyncio.get_running_loop(), client_max_size=8 * 1024 * 1024)
    server = web.Server(answer, request_factory=kind, keepalive_timeout=75, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, ADDRESS, port, backlog=1024).start()
        yield f"http://{ADDRESS}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Service:
    """The emulated service: one instance per server, used from one event loop."""

    def __init__(self, settings: Settings, book: Book) -> None:
        self._settings = settings
        self._rules: list[dict[str, Any]] = []  # settings over the common ones, for requests that hold a text
        self._book = book
        self._polls = Counter[str]()  # of each operation
        self._counts = Counter[str](dict.fromkeys((*COUNTED, *COUNTED_FAULTS), 0))
        self._admitted_at = defaultdict[str, list[float]](list)  # when, by the counter of those that a quota refused

    async def answer(self, request: web.BaseRequest) -> web.Response:
        call = f"{request.method} {request.path}"
        try:
            if call == "PUT /_faults":  # not part of the real service, as the next one
                return self._change_faults(await request.read())
            if call == "GET /_stats":
                return self._stats()
            if call in SUBMITS:
                return await self._submit(request, SUBMITS[call])
            if call.startswith(POLL):
                return await self._poll(request, call.removeprefix(POLL))
            raise Refused(404, "Not Found")
        except Refused as refused:
            http, text = refused.args
        headers = {"x-request-id": str(uuid.uuid4())}
        if http == 429 and self._settings.retry_after:
            headers["Retry-After"] = str(self._settings.retry_after)
        error = shapes.error(http, text, headers["x-request-id"], of_submit=call in SUBMITS)
        return _response(error, http, **headers)

    async def _submit(self, request: web.BaseRequest, api: str) -> web.Response:
        self._counts["submits_received"] += 1
        self._authorise(request)
        wanted = read_request(await request.read(), api)
        own = self._settings.folder
        for given in (wanted.folder or own, request.headers.get("x-folder-id", own)):
            if own not in ("", given):
                raise Refused(400, shapes.FOLDER_MISMATCH.format(given, own))
        settings = self._settings_for(wanted.text)
        draws = Draws(settings, wanted.sha256, self._book.seen[wanted.sha256])
        meet = partial(self._meet, request, draws)
        self._keep_quotas("refused_quota", "rps", "rph")
        self._book.seen[wanted.sha256] += 1
        if dropped := await meet("status", "reset", "refuse", "error_before"):
            return dropped
        earlier_id = next(reversed(self._book.operations), None)
        operation = self._book.accept(wanted, draws)  # paid from here on, whatever the client gets to see
        self._counts[operation.ending] += 1
        document = shapes.operation_document(operation, settings, done=False)
        if earlier_id and draws.hit("same_id"):
            self._counts["same_id"] += 1
            document["id"] = earlier_id
        body = orjson.dumps(document)
        return await meet("slow", "lost", "cut", "garbled", "error_after", body=body) or _response(body)

    async def _poll(self, request: web.BaseRequest, operation_id: str) -> web.Response:
        self._counts["polls_received"] += 1
        self._authorise(request)
        operation = self._book.operations.get(operation_id)
        settings = self._settings_for(operation.text) if operation else self._settings
        seen = (operation.request, operation.occurrence) if operation else ("unknown", 0)
        self._keep_quotas("polls_refused_quota", "read_rps")
        self._polls[operation_id] += 1
        meet = partial(self._meet, request, Draws(settings, *seen, self._polls[operation_id]))
        if reply := await meet("poll_status", "poll_reset", "poll_refuse", "poll_error", "poll_garbled"):
            return reply
        now = time.time()
        if operation is None or operation.ending == "missing" or now >= operation.accepted_at + settings.retention:
            self._counts["polls_not_found"] += 1
            raise Refused(404, shapes.NOT_FOUND)
        done = operation.ending != "stuck" and now >= operation.finishes_at
        self._counts["polls_done" if done else "polls_running"] += 1
        return _response(shapes.operation_document(operation, settings, done=done))

    # For both

    def _authorise(self, request: web.BaseRequest) -> None:
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        complaints = {"api-key": shapes.unknown_api_key(secret), "bearer": shapes.BAD_TOKEN} if secret else {}
        if scheme.lower() not in complaints or self._settings.api_key not in ("", secret):
            raise Refused(401, complaints.get(scheme.lower(), shapes.NO_CREDENTIALS))

    def _keep_quotas(self, counter: str, *names: str) -> None:
        now, admitted_at = time.monotonic(), self._admitted_at[counter]
        for name in names:
            quota, (called, span_s) = getattr(self._settings, name), QUOTAS[name]
            if is_used_up(quota, admitted_at, span_s=span_s, now=now):
                self._counts[counter] += 1
                raise Refused(429, shapes.QUOTA_EXCEEDED.format(called, quota))
        admitted_at.append(now)

    async def _meet(
        self, request: web.BaseRequest, draws: Draws, *faults: str, body: bytes = b""
    ) -> web.Response | None:
        """Meet these faults in their order. Those that happen are counted; the first that can answer does.

        Raises:
            Refused: it answers with an error.
        """
        for fault in filter(draws.hit, faults):
            self._counts[fault] += 1
            match fault.removeprefix("poll_"):
                case "slow":
                    await asyncio.sleep(draws.settings.slow)
                case "reset" | "lost" as kind:
                    return _dropped(request, with_reset=kind == "reset")
                case "cut":  # promise the whole body, send half of it, close the connection
                    cut = _response(body[: len(body) // 2], 200, **{"Content-Length": str(len(body))})
                    cut.force_close()
                    return cut
                case "garbled":
                    return _response(shapes.HTML_ERROR, content_type="text/html")
                case kind:
                    http = {"status": getattr(draws.settings, fault), "refuse": 429}.get(kind, 503)
                    raise Refused(http, shapes.TEXTS.get(http, f"the emulator was told to answer {http}"))
        return None

    # Control, at the emulator only

    def _change_faults(self, body: bytes) -> web.Response:
        """Settings, and rules if they are named: all of them, or none if one is wrong."""
        try:
            change = orjson.loads(body)
            settings = self._settings.updated(change, besides="rules")
            rules = list(change.get("rules", self._rules))
            for rule in rules:
                settings.updated(rule, besides="text")
        except (ValueError, TypeError) as exc:
            return _response({"error": str(exc)}, http=400)
        self._settings, self._rules = settings, rules
        return _response(settings)

    def _stats(self) -> web.Response:
        payments = self._book.payments()
        of_book = {"accepted": len(self._book.operations), "distinct": len(payments), "payments": payments}
        return _response({**self._counts, **of_book})

    def _settings_for(self, text: str) -> Settings:
        """Those of the first rule that matches, else the common ones."""
        matching = (rule for rule in self._rules if str(rule.get("text", "")) in text)
        return next((self._settings.updated(rule, besides="text") for rule in matching), self._settings)


def _response(content: Any, http: int = 200, content_type: str = "application/json", **headers: str) -> web.Response:
    """[P] with the two ids that the service puts on every response."""
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    ids = {"x-request-id": str(uuid.uuid4()), "x-server-trace-id": str(uuid.uuid4())}
    return web.Response(body=body, status=http, content_type=content_type, headers=ids | headers)


def _dropped(request: web.BaseRequest, *, with_reset: bool) -> web.Response:
    """Drop the connection without a byte: with a TCP reset, or as an orderly end of the stream."""
    if (transport := request.transport) is not None:
        if with_reset:
            linger_for_no_time = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_no_time)
        transport.abort()
    return web.Response()  # the handler must return one; there is nobody to get it
