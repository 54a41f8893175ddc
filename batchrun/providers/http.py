"""One HTTP exchange, and how much of it may have happened. The only code that knows aiohttp.

aiohttp is imported when the first connection is wanted: it takes longer to load than all the rest.
"""

from __future__ import annotations

import os
import re
import ssl
import time
from asyncio import IncompleteReadError
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from weakref import WeakSet

from batchrun import __version__
from batchrun.errors import CredentialsRefused, UsageProblem
from batchrun.record import Ambiguous, Unreachable

if TYPE_CHECKING:
    import aiohttp

MAX_RETRY_AFTER_S = 300.0

_REASONS = {  # by the name of an error's class
    "ClientConnectorDNSError": "name lookup failed",
    "ConnectionTimeoutError": "no connection in time",
    "SocketTimeoutError": "silent for too long",
    "TimeoutError": "no reply in time",
    "ClientSSLError": "connection closed during the TLS handshake",
    "ClientPayloadError": "reply cut short",
    "ServerDisconnectedError": "connection closed before the reply",
    "ClientResponseError": "the reply is not HTTP",
}
_BASE_URL = re.compile(
    r"https?://(\[::1\]|([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63})(:[0-9]+)?(/[a-z0-9_.~:%/-]*)?", re.ASCII | re.IGNORECASE
)
_LOOPBACK = re.compile(r"localhost|::1|127(\.[0-9]{1,3}){3}")


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer, whatever it says."""

    status: int
    body: bytes
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Oversize:
    """An answer that was cut off because it was too long."""

    status: int
    max_bytes: int


Exchange = Reply | Oversize | Unreachable | Ambiguous
"""A complete answer, whatever it says; or none, and what that means for a request that was to leave."""


class Http:
    """Two pools of connections to one service, one for POSTs and one for GETs.

    They are apart because a POST on a connection that the server has just closed looks exactly like a lost
    request: POSTs drop idle connections early. Redirects, cookies, and proxies or ``.netrc`` of the
    environment are not for us.

    Args:
        headers: Sent with every request.
        workers: POSTs at the same time; of GETs, twice as many; no more connections than that are ever open.
    """

    connect_s = 10.0
    post_s = 60.0  # a POST that times out may have been accepted, so its limits are wide
    post_silence_s = 30.0
    post_idle_s = 10.0
    get_s = 30.0
    get_idle_s = 30.0
    max_body_bytes = 32 * 1024 * 1024

    def __init__(self, headers: Mapping[str, str], *, workers: int) -> None:
        self._headers = {**headers, "Accept-Encoding": "identity", "User-Agent": f"batchrun/{__version__}"}
        self._workers = workers
        self._connections = WeakSet[Any]()

    async def __aenter__(self) -> Self:
        self._submit = self._session(self._workers, self.post_idle_s, self.post_s, self.post_silence_s)
        self._poll = self._session(2 * self._workers, self.get_idle_s, self.get_s, None)
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._submit.close()
        finally:
            await self._poll.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Exchange:
        """POST once: no redirect, no retry.

        Raises:
            CredentialsRefused: TLS does not work; nothing left.
            ValueError: A header holds a line break; nothing left.
        """
        return await self._exchange(self._submit, "POST", url, data=body, headers=headers)

    async def get(self, url: str) -> Exchange:
        """GET. It costs nothing, so aiohttp may replace a kept connection that turns out closed."""
        return await self._exchange(self._poll, "GET", url)

    def _session(self, workers: int, idle_s: float, total_s: float, silence_s: float | None) -> aiohttp.ClientSession:
        import aiohttp

        return aiohttp.ClientSession(
            connector=_only_in_step(workers, idle_s, self._connections),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=total_s, connect=self.connect_s, sock_read=silence_s),
            trust_env=False,
            auto_decompress=False,
        )

    async def _exchange(self, session: aiohttp.ClientSession, method: str, url: str, **content: Any) -> Exchange:
        import aiohttp
        from yarl import URL

        try:
            async with session.request(method, URL(url, encoded=True), allow_redirects=False, **content) as response:
                return await self._read(response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:  # there was no connection yet
            if isinstance(error, aiohttp.ClientSSLError):
                _refuse_bad_tls(error)
            return Unreachable(_reason(error))
        except (aiohttp.ClientError, OSError) as error:
            return Ambiguous(_reason(error))

    def drop_connections(self) -> None:
        """Use none of those that are open now for another request: their replies may lag behind their requests, and
        the next record would get this one's. Whatever is on its way on them goes on.
        """
        for connection in self._connections:
            connection.force_close()

    async def _read(self, response: aiohttp.ClientResponse) -> Reply | Oversize:
        try:
            await response.content.readexactly(self.max_body_bytes + 1)
            return Oversize(response.status, self.max_body_bytes)
        except IncompleteReadError as whole:  # it ended before that
            wait_s = retry_after_s(response.headers.get("Retry-After"), now=time.time())
            return Reply(response.status, whole.partial, wait_s)


def _reason(error: Exception) -> str:
    """A few words of ours, or the system's. Never the exception's own: it may print the request with its headers."""
    known = (_REASONS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _REASONS)
    is_of_tls = isinstance(error.__cause__, ssl.SSLError)  # whose numbers are not the system's
    number = None if is_of_tls else getattr(error, "errno", None)
    return next(known, os.strerror(number).lower() if number else "connection lost")


def _only_in_step(workers: int, idle_s: float, opened: WeakSet[Any]) -> aiohttp.TCPConnector:
    """A pool that gives out no connection again once bytes have arrived that nobody asked for: they would be read as
    the reply to the next request, and a record would get the operation of another. aiohttp looks when it puts a
    connection by, not when it takes it out.
    """
    import aiohttp

    class InStep(aiohttp.TCPConnector):
        async def connect(self, *request: Any, **named: Any) -> aiohttp.connector.Connection:
            while True:
                connection = await super().connect(*request, **named)
                protocol: Any = connection.protocol
                if protocol not in opened or not protocol.should_close:
                    opened.add(protocol)
                    return connection
                connection.close()

    return InStep(limit=workers, keepalive_timeout=idle_s)


def check_endpoint(url: str) -> str:
    """The base URL without its trailing slash.

    Raises:
        UsageProblem: It is neither ``https://`` nor ``http://`` to this machine, or it has more than a path.
    """
    remedy = "give an https:// base URL; plain http:// is for 127.0.0.1 and localhost only"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        is_sound = _BASE_URL.fullmatch(url) and port != 0 and (not re.fullmatch(r"[0-9.]+", host) or ip_address(host))
    except ValueError:
        is_sound = False
    if not is_sound:
        raise UsageProblem("the endpoint is not the base URL of a service", remedy=remedy)
    if parts.scheme == "http" and not is_loopback(url):
        cause = f"the endpoint is plain http:// to {host}: key and prompts would travel readable"
        raise UsageProblem(cause, remedy=remedy)
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    return _LOOPBACK.fullmatch(urlsplit(url).hostname or "") is not None


def retry_after_s(value: str | None, *, now: float) -> float:
    """Seconds that a ``Retry-After`` header asks for, at most 300; 0 without one, or if it makes no sense."""
    text = "" if value is None else value.strip()
    try:
        asked_s = float(text) if re.fullmatch(r"[0-9]{1,9}", text) else parsedate_to_datetime(text).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return min(max(asked_s, 0.0), MAX_RETRY_AFTER_S)


def _refuse_bad_tls(error: aiohttp.ClientSSLError) -> None:
    if isinstance(error.__cause__, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return  # the peer hung up in the middle: passes, like any lost connection
    remedy = "check this machine's clock, its CA certificates and what stands between it and the service"
    cause = f"no trusted TLS connection to {error.host}: nothing was sent"
    raise CredentialsRefused(cause, remedy=remedy) from error
