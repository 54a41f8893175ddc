"""Every way an exchange can end, played by real servers on this machine."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from email.utils import format_datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import pytest

from batchrun.errors import CredentialsRefused, UsageProblem
from batchrun.providers.http import (
    Exchange,
    Http,
    Oversize,
    Reply,
    check_endpoint,
    retry_after_s,
)
from batchrun.record import Ambiguous, Unreachable

Script = Callable[["Peer"], Awaitable[None]]
KEY = "Api-Key AQVNsecretsecretsecret"
SHORT = {"connect_s": 5.0, "post_s": 5.0, "post_silence_s": 5.0, "get_s": 5.0}


class Peer:
    """The server's end of one connection."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer

    async def hear(self) -> bytes:
        """One whole request; empty if there is none any more."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
        request = head + await self._reader.readexactly(length)
        self._server.requests.append(request)
        return request

    async def say(self, *parts: bytes) -> None:
        self._writer.write(b"".join(parts))
        await self._writer.drain()

    async def answer(self, status: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        fields = {"Content-Length": str(len(body)), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self.say(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode(), body)

    def reset(self) -> None:
        """Close so that the other side sees a reset."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the client has hung up."""
        await self._reader.read()


class Server:
    """Plays a script on every connection; keeps what it heard."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self.requests: list[bytes] = []
        self.connections = 0
        self.heard = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._meet, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/do"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._script(Peer(self, reader, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def http(*, max_body_bytes: int = 1000, headers: Mapping[str, str] = MappingProxyType({}), **limits_s: float) -> Http:
    client = Http({"Authorization": KEY, **headers}, workers=2)
    client.max_body_bytes = max_body_bytes
    for name, seconds in (SHORT | limits_s).items():
        setattr(client, name, seconds)
    return client


def post_to(script: Script, **options: Any) -> tuple[Exchange, Server]:
    """What one POST to a server playing this script gives."""

    async def run() -> tuple[Exchange, Server]:
        async with Server(script) as server, http(**options) as client:
            return await client.post(server.url, b'{"a":1}', {"x-client-request-id": "r1"}), server

    return asyncio.run(run())


# --- an answer that is whole --------------------------------------------------------------------------------


def answering(status: str, body: bytes = b"", **headers: str) -> Script:
    async def script(peer: Peer) -> None:
        while await peer.hear():
            await peer.answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return script


COMPLETE = {
    "json": (answering("200 OK", b'{"id":"x"}'), Reply(200, b'{"id":"x"}')),
    "an HTML page": (answering("200 OK", b"<html>log in</html>"), Reply(200, b"<html>log in</html>")),
    "no body": (answering("503 Service Unavailable"), Reply(503, b"")),
    "an answer that refuses": (answering("400 Bad Request", b"{}"), Reply(400, b"{}")),
    "wait, in seconds": (answering("429 Too Many Requests", b"{}", Retry_After="7"), Reply(429, b"{}", 7.0)),
    "wait far too long": (answering("429 Too Many Requests", Retry_After="86400"), Reply(429, b"", 300.0)),
    "wait, nonsense": (answering("429 Too Many Requests", Retry_After="soon"), Reply(429, b"", 0.0)),
    "compressed although told not to": (
        answering("200 OK", b"\x1f\x8b\x00", Content_Encoding="gzip"),
        Reply(200, b"\x1f\x8b\x00"),
    ),
    "exactly the limit": (answering("200 OK", b"a" * 1000), Reply(200, b"a" * 1000)),
}


@pytest.mark.parametrize(("script", "expected"), COMPLETE.values(), ids=COMPLETE)
def test_a_complete_answer_is_a_reply(script: Script, expected: Reply) -> None:
    assert post_to(script)[0] == expected


def test_an_answer_in_chunks_is_put_together() -> None:
    async def script(peer: Peer) -> None:
        await peer.hear()
        await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await peer.say(b"2\r\nde\r\n0\r\n\r\n")

    assert post_to(script)[0] == Reply(200, b"abcde")


def test_a_redirect_is_an_answer_and_nobody_follows_it() -> None:
    async def run() -> None:
        async with Server(answering("200 OK")) as other:
            moved = answering("307 Temporary Redirect", Location=other.url)
            async with Server(moved) as server, http() as client:
                assert await client.post(server.url, b"{}", {}) == Reply(307, b"")
                assert await client.get(server.url) == Reply(307, b"")
            assert len(server.requests) == 2
            assert other.connections == 0

    asyncio.run(run())


def test_a_refusal_that_comes_before_the_body_is_read_is_still_an_answer() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer("413 Content Too Large", b"{}", {"Connection": "close"})
        await peer.gone()

    assert post_to(script)[0] == Reply(413, b"{}")


# --- no answer: may the request have left? ------------------------------------------------------------------


async def hang_up_unheard(peer: Peer) -> None:
    peer.reset()


async def hang_up(peer: Peer) -> None:
    await peer.hear()


async def reset(peer: Peer) -> None:
    await peer.hear()
    peer.reset()


async def cut_the_head(peer: Peer) -> None:
    await peer.hear()
    await peer.say(b"HTTP/1.1 200 OK\r\nContent-Le")


async def cut_the_body(peer: Peer) -> None:
    await peer.hear()
    await peer.say(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id":"d7q"}')


async def cut_the_refusal(peer: Peer) -> None:
    await peer.hear()
    await peer.say(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 100\r\n\r\n{")


async def cut_a_chunk(peer: Peer) -> None:
    await peer.hear()
    await peer.say(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n{"id":"d7q"}\r\n')


async def reset_in_the_body(peer: Peer) -> None:
    await peer.hear()
    await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    peer.reset()


async def babble(peer: Peer) -> None:
    await peer.hear()
    await peer.say(b"220 mail.example ESMTP\r\n\r\n")


async def lie_about_the_length(peer: Peer) -> None:
    await peer.hear()
    await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}")


async def send_a_huge_header(peer: Peer) -> None:
    await peer.hear()
    await peer.say(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 100_000, b"\r\n\r\n")


async def send_a_broken_chunk(peer: Peer) -> None:
    await peer.hear()
    await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")


LOST = {"connection reset by peer", "connection closed before the reply", "connection lost"}
NOT_HTTP = {"the reply is not HTTP"}
AMBIGUOUS = {
    "reset before it read anything": (hang_up_unheard, LOST),
    "closed after the request": (hang_up, {"connection closed before the reply"}),
    "reset after the request": (reset, {"connection reset by peer"}),
    "cut within the headers": (cut_the_head, LOST | NOT_HTTP),
    "cut within the body": (cut_the_body, {"reply cut short"}),
    "a refusal cut within the body": (cut_the_refusal, {"reply cut short"}),
    "cut between two chunks": (cut_a_chunk, {"reply cut short"}),
    "reset within the body": (reset_in_the_body, {"reply cut short", "connection reset by peer"}),
    "not HTTP": (babble, NOT_HTTP),
    "a length that is no number": (lie_about_the_length, NOT_HTTP),
    "a header of 100 kB": (send_a_huge_header, NOT_HTTP),
    "a chunk without a length": (send_a_broken_chunk, NOT_HTTP | {"reply cut short"}),
}


@pytest.mark.parametrize(("script", "reasons"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_post_without_a_complete_answer_may_have_left(script: Script, reasons: set[str]) -> None:
    exchange, server = post_to(script)
    assert isinstance(exchange, Ambiguous)
    assert exchange.reason in reasons
    assert server.connections == 1  # and nobody tried again


def test_a_post_that_is_never_answered_ends_after_the_silence() -> None:
    async def script(peer: Peer) -> None:
        await peer.hear()
        await peer.gone()

    exchange, _ = post_to(script, post_silence_s=0.05)
    assert exchange == Ambiguous("silent for too long")


async def trickle(peer: Peer) -> None:
    await peer.hear()
    await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    while True:
        await peer.say(b" ")
        await asyncio.sleep(0)


def test_a_reply_that_trickles_meets_the_total_limit() -> None:
    exchange, _ = post_to(trickle, post_s=0.1, max_body_bytes=10**9)
    assert exchange == Ambiguous("no reply in time")


def test_a_poll_that_trickles_meets_the_total_limit() -> None:
    async def run() -> Exchange:
        async with Server(trickle) as server, http(get_s=0.1, max_body_bytes=10**9) as client:
            return await client.get(server.url)

    assert asyncio.run(run()) == Ambiguous("no reply in time")


@pytest.mark.parametrize("status", [200, 503])
def test_an_answer_that_is_too_long_is_cut_off_and_its_connection_not_used_again(status: int) -> None:
    async def script(peer: Peer) -> None:
        await peer.hear()
        await peer.say(f"HTTP/1.1 {status} X\r\nContent-Length: 1000000000\r\n\r\n".encode(), b"a" * 1001)
        await peer.gone()

    async def run() -> None:
        async with Server(script) as server, http() as client:
            for _ in range(2):
                assert await client.post(server.url, b"{}", {}) == Oversize(status, 1000)
                assert await client.get(server.url) == Oversize(status, 1000)
            assert server.connections == 4

    asyncio.run(run())


def test_a_kept_connection_that_closes_under_a_post_is_ambiguous_and_not_retried() -> None:
    async def once(peer: Peer) -> None:
        await peer.hear()
        await peer.answer("200 OK")
        await peer.hear()

    async def run() -> None:
        async with Server(once) as server, http() as client:
            assert await client.post(server.url, b"{}", {}) == Reply(200, b"")
            assert await client.post(server.url, b"{}", {}) == Ambiguous("connection closed before the reply")
            assert (server.connections, len(server.requests)) == (1, 2)

    asyncio.run(run())


def test_a_kept_connection_on_which_something_came_unasked_is_not_used_again() -> None:
    """Else a stray refusal would be taken for the reply to the next POST, which may have been accepted."""

    async def run() -> None:
        idle = asyncio.Event()

        async def script(peer: Peer) -> None:
            while True:
                await peer.hear()
                await peer.answer("200 OK")
                await idle.wait()
                await peer.answer("400 Bad Request")

        async with Server(script) as server, http() as client:
            assert await client.post(server.url, b"{}", {}) == Reply(200, b"")
            idle.set()
            while not any(each.should_close for each in client._connections):  # noqa: ASYNC110  aiohttp tells nobody
                await asyncio.sleep(0)
            assert await client.post(server.url, b"{}", {}) == Reply(200, b"")
            assert server.connections == 2

    asyncio.run(run())


@pytest.mark.parametrize(("idle_s", "connections"), [(9.9, 1), (10.1, 2)], ids=["just before", "just after"])
def test_a_post_uses_no_connection_that_was_idle_for_ten_seconds(
    idle_s: float, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("aiohttp.connector.monotonic", lambda: now)

    async def run() -> None:
        nonlocal now
        async with Server(answering("200 OK")) as server, http() as client:
            await client.post(server.url, b"{}", {})
            now += idle_s
            await client.post(server.url, b"{}", {})
            assert server.connections == connections

    asyncio.run(run())


def test_a_cancelled_post_stays_cancelled() -> None:
    heard = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.hear()
        heard.set()
        await peer.gone()

    async def run() -> None:
        async with Server(script) as server, http() as client:
            post = asyncio.create_task(client.post(server.url, b"{}", {}))
            await heard.wait()
            post.cancel()
            with pytest.raises(asyncio.CancelledError):
                await post

    asyncio.run(run())


# --- nothing left -------------------------------------------------------------------------------------------


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def test_a_refused_connection_let_nothing_out() -> None:
    async def run() -> Exchange:
        async with http() as client:
            return await client.post(f"http://127.0.0.1:{unused_port()}/", b"{}", {})

    assert asyncio.run(run()) == Unreachable("connection refused")


def tls_post_to(script: Script, **limits_s: Any) -> Exchange:
    """A POST that speaks TLS to a server that does not."""

    async def run() -> Exchange:
        async with Server(script) as server, http(**limits_s) as client:
            return await client.post(server.url.replace("http:", "https:"), b"{}", {})

    return asyncio.run(run())


def test_a_tls_handshake_that_never_ends_let_nothing_out() -> None:
    assert tls_post_to(Peer.gone, connect_s=0.05) == Unreachable("no connection in time")


def test_a_tls_handshake_broken_off_let_nothing_out_and_may_work_next_time() -> None:
    exchange = tls_post_to(hang_up_unheard)
    assert isinstance(exchange, Unreachable)
    assert exchange.reason in {"connection reset by peer", "connection closed during the TLS handshake"}


def test_a_server_that_speaks_no_tls_stops_the_run() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer("400 Bad Request")
        await peer.gone()

    with pytest.raises(CredentialsRefused, match=r"no trusted TLS connection to 127\.0\.0\.1: nothing was sent"):
        tls_post_to(script)


def test_a_certificate_nobody_vouches_for_stops_the_run(tmp_path: Path) -> None:
    context = self_signed(tmp_path)

    async def run() -> None:
        async with Server(answering("200 OK"), tls=context) as server, http() as client:
            with pytest.raises(CredentialsRefused):
                await client.post(server.url, b"{}", {})
            with pytest.raises(CredentialsRefused):
                await client.get(server.url)
            assert server.requests == []

    asyncio.run(run())


def self_signed(folder: Path) -> ssl.SSLContext:
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = folder / "self-signed.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


# --- what is sent -------------------------------------------------------------------------------------------


def fields_of(request: bytes) -> dict[str, str]:
    lines = request.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines)


def test_a_post_carries_these_headers_and_no_others() -> None:
    _, server = post_to(answering("200 OK"))
    fields = fields_of(server.requests[0])
    assert fields.pop("Host") == f"127.0.0.1:{server.port}"
    assert fields.pop("User-Agent").startswith("batchrun/")
    assert fields == {
        "Authorization": KEY,
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "x-client-request-id": "r1",
        "Content-Length": "7",
        "Content-Type": "application/octet-stream",
    }
    assert server.requests[0].startswith(b"POST /do HTTP/1.1\r\n")
    assert server.requests[0].endswith(b'\r\n\r\n{"a":1}')


def test_cookies_are_not_kept_and_the_environment_is_not_asked_for_proxies_or_logins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    async def run() -> None:
        script = answering("200 OK", Set_Cookie="a=b; Path=/")
        async with Server(script) as server, http() as client:
            for _ in range(2):
                assert await client.get(server.url) == Reply(200, b"")
            assert [fields_of(request).get("Cookie") for request in server.requests] == [None, None]
            assert [fields_of(request)["Authorization"] for request in server.requests] == [KEY, KEY]

    asyncio.run(run())


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\x00b"])
def test_a_header_that_could_smuggle_another_is_not_sent(value: str) -> None:
    async def run() -> None:
        async with Server(answering("200 OK")) as server:
            async with http(headers={"folder": value}) as client:
                with pytest.raises(ValueError, match="header") as caught:
                    await client.get(server.url)
            async with http() as client:
                with pytest.raises(ValueError, match="header"):
                    await client.post(server.url, b"{}", {"x-client-request-id": value})
            assert value not in str(caught.value)
            assert server.requests == []

    asyncio.run(run())


def test_a_path_is_sent_as_it_is_given() -> None:
    async def run() -> None:
        async with Server(answering("200 OK")) as server, http() as client:
            await client.get(f"{server.url}/%41%2f..%2e")
            assert server.requests[0].startswith(b"GET /do/%41%2f..%2e HTTP/1.1\r\n")

    asyncio.run(run())


def test_aiohttp_is_loaded_only_when_there_is_something_to_send() -> None:
    program = "import batchrun.providers.yandex, sys; sys.exit('aiohttp' in sys.modules or 'yarl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- pure ---------------------------------------------------------------------------------------------------

NOW = datetime.datetime(2026, 11, 22, 12, 0, 0, tzinfo=datetime.UTC)
RETRY_AFTER = {
    "none": (None, 0.0),
    "seconds": ("120", 120.0),
    "seconds with blanks": (" 120 ", 120.0),
    "zero": ("0", 0.0),
    "over the limit": ("301", 300.0),
    "a date": (format_datetime(NOW + datetime.timedelta(seconds=42), usegmt=True), 42.0),
    "a date in the past": (format_datetime(NOW - datetime.timedelta(hours=1), usegmt=True), 0.0),
    "a date far ahead": (format_datetime(NOW + datetime.timedelta(days=9), usegmt=True), 300.0),
    "a date that never was": ("Wed, 99 Nov 2026 25:00:00 GMT", 0.0),
    "a year beyond all clocks": ("Wed, 21 Oct 99999 07:28:00 GMT", 0.0),
    "negative": ("-5", 0.0),
    "not a number": ("nan", 0.0),
    "endless": ("inf", 0.0),
    "a thousand digits": ("9" * 1000, 0.0),
    "other digits": ("١٢", 0.0),
    "empty": ("", 0.0),
}


@pytest.mark.parametrize(("value", "expected"), RETRY_AFTER.values(), ids=RETRY_AFTER)
def test_retry_after(value: str | None, expected: float) -> None:
    assert retry_after_s(value, now=NOW.timestamp()) == expected


GOOD_ENDPOINTS = {
    "https": ("https://gateway.example.com", "https://gateway.example.com"),
    "a trailing slash": ("https://gateway.example.com/", "https://gateway.example.com"),
    "a path": ("https://gateway.example.com:8443/yc/", "https://gateway.example.com:8443/yc"),
    "a path with a colon": ("https://gateway.example.com/a:b", "https://gateway.example.com/a:b"),
    "https to an address": ("https://10.0.0.1", "https://10.0.0.1"),
    "this machine": ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    "this machine, another address": ("http://127.9.9.9", "http://127.9.9.9"),
    "this machine by name": ("http://localhost:8080/", "http://localhost:8080"),
    "this machine, IPv6": ("http://[::1]:8080", "http://[::1]:8080"),
    "capitals": ("HTTP://LOCALHOST:1", "HTTP://LOCALHOST:1"),
}


@pytest.mark.parametrize(("url", "expected"), GOOD_ENDPOINTS.values(), ids=GOOD_ENDPOINTS)
def test_an_endpoint_that_is_accepted(url: str, expected: str) -> None:
    assert check_endpoint(url) == expected


BAD_ENDPOINTS = {
    "empty": "",
    "no scheme": "gateway.example.com",
    "another scheme": "ftp://127.0.0.1",
    "a file": "file:///etc/passwd",
    "plain http": "http://gateway.example.com",
    "plain http to a private address": "http://10.0.0.1",
    "plain http to any address": "http://0.0.0.0:8080",
    "a name that begins like an address": "http://127.0.0.1.example.com",
    "a name that begins like localhost": "http://localhost.example.com",
    "an address in disguise": "http://[::ffff:127.0.0.1]",
    "IPv6 of another machine": "https://[2001:db8::1]",
    "an address beyond all": "http://127.0.0.256",
    "an address with a zero too many": "https://10.0.0.010",
    "a short address": "http://127.1",
    "an address as a number": "http://2130706433",
    "a user": "http://127.0.0.1@example.com",
    "a login": "https://user:hunter2@example.com",
    "a query": "https://example.com/?a=b",
    "an empty query": "https://example.com/?",
    "a fragment": "https://example.com/#x",
    "a backslash": "http://127.0.0.1\\@example.com",
    "a line break": "https://example.com\r\nX: 1",
    "a blank": " https://example.com",
    "no host": "https:///path",
    "a bad port": "https://example.com:port",
    "a port too far": "https://example.com:65536",
    "no port": "https://example.com:0",
    "half a bracket": "https://[::1",
    "an encoded host": "http://127.0.0.1%2eexample.com",
    "an address with a zone": "http://[::1%25lo]",
    "a label too long": f"https://{'a' * 64}.example.com",
    "letters beyond ASCII": "https://пример.example.com",
}


@pytest.mark.parametrize("url", BAD_ENDPOINTS.values(), ids=BAD_ENDPOINTS)
def test_an_endpoint_that_is_not_accepted(url: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        check_endpoint(url)
    assert "hunter2" not in caught.value.cause
