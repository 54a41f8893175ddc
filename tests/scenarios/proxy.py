"""A proxy between a run and the emulator. It knows where a request begins and ends, and fails where a test wants it.

It runs in a thread of the test. What it does with each request is a coroutine, its ``script``: one of those at the end
of this file, or one of the test's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Script = Callable[["Exchange"], Awaitable[None]]


@dataclass(frozen=True)
class Arrived:
    """A request whose head has come."""

    at: float
    method: str
    authorization: str


class Proxy:
    """Refuses connections until ``listen``; its port is its own from the start."""

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        self.script: Script = passed_on
        self.arrived: list[Arrived] = []
        self.connections = 0
        self.prompts: dict[str, str] = {}
        """What was asked, by the path of the operation made of it."""
        self.upstream_port = urlsplit(upstream).port
        self._tls = tls
        self._port_holder = socket.socket()
        self._port_holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._port_holder.bind(("127.0.0.1", 0))
        self.port: int = self._port_holder.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ending = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def listen(self) -> None:
        self._do(self.start_listening())

    def end(self) -> None:
        self._do(self._let_go())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._port_holder.close()

    def count(self, method: str) -> int:
        return sum(request.method == method for request in self.arrived)

    # --- in the thread ---

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def start_listening(self) -> None:
        if self._listener is not None or self._is_ending:
            return
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)

    def stop_listening(self) -> None:
        """Accept no new connection; those that stand go on."""
        if self._listener is not None:
            self._accept()  # not one that stands is dropped: it may carry a request
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                connected, _ = self._listener.accept()
                self.connections += 1
                task = self._loop.create_task(self._meet(connected))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _let_go(self) -> None:
        self._is_ending = True
        self.stop_listening()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # what they have closed goes now

    async def _meet(self, connected: socket.socket) -> None:
        """Play the script for each request of a connection, until either side hangs up or the test is over."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        with contextlib.suppress(OSError, EOFError):
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connected, ssl=self._tls)
            writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
            is_reused = False
            try:
                while not writer.is_closing():
                    head = await reader.readuntil(b"\r\n\r\n")
                    exchange = Exchange(self, reader, writer, head, is_reused=is_reused)
                    self.arrived.append(Arrived(time.monotonic(), exchange.method, exchange.header("Authorization")))
                    await self.script(exchange)
                    is_reused = True
            finally:
                writer.close()


class Exchange:
    """One request at the proxy: its head has been read, the rest is up to the script."""

    def __init__(
        self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, *, is_reused: bool
    ) -> None:
        self.proxy = proxy
        self.is_reused = is_reused
        self.method, self.path = head.decode().split(" ", 2)[:2]
        self.length = int(self._header(head, "Content-Length") or 0)
        self._reader = reader
        self._writer = writer
        self._head = head
        self._body: bytes | None = None

    def header(self, name: str) -> str:
        return self._header(self._head, name)

    @staticmethod
    def _header(head: bytes, name: str) -> str:
        found = re.search(rf"(?i)\r\n{name}: *([^\r]*)", head.decode("latin-1"))
        return found[1] if found else ""

    @property
    def connection(self) -> asyncio.StreamWriter:
        """What the client has its end of."""
        return self._writer

    async def body(self) -> bytes:
        if self._body is None:
            self._body = await self._reader.readexactly(self.length)
        return self._body

    async def prompt(self) -> str:
        """The text that this POST sends, or to which this GET wants the answer."""
        if self.method == "GET":
            return self.proxy.prompts[self.path]
        return str(json.loads(await self.body())["messages"][-1]["text"])

    async def forward(self) -> bytes:
        """Send the whole request to the emulator; its whole reply."""
        request = self._head + await self.body()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.upstream_port)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(self._header(head, "Content-Length") or 0))
        finally:
            writer.close()
        if self.method == "POST" and b'"id"' in body:
            self.proxy.prompts[f"/operations/{json.loads(body)['id']}"] = await self.prompt()
        return head + body

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, status: str, body: bytes = b"", *headers: str) -> None:
        """A reply of our own."""
        lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", "")
        await self.say("\r\n".join(lines).encode() + body)

    def hang_up(self) -> None:
        """What was said arrives, then the end."""
        self._writer.close()

    def reset(self) -> None:
        """The other side sees a reset; what has not arrived yet is lost."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the client has hung up."""
        await self._reader.read()


def with_body(reply: bytes, body: bytes) -> bytes:
    """A reply of the emulator with another body."""
    head = reply.partition(b"\r\n\r\n")[0]
    return re.sub(rb"(?i)(\r\nContent-Length:) *\d+", rb"\1 %d" % len(body), head) + b"\r\n\r\n" + body


# --- scripts ---


async def passed_on(exchange: Exchange) -> None:
    await exchange.say(await exchange.forward())


async def late(exchange: Exchange) -> None:
    await asyncio.sleep(0.2)
    await passed_on(exchange)


async def reset_at_its_head(exchange: Exchange) -> None:
    """Nothing reaches the emulator, and of the body nothing is read."""
    exchange.reset()


async def reset_unsent(exchange: Exchange) -> None:
    """The whole request has come, and nothing reaches the emulator."""
    await exchange.body()
    exchange.reset()


async def reply_lost(exchange: Exchange) -> None:
    """The emulator has done its part; nothing of its reply arrives."""
    await exchange.forward()
    exchange.reset()


async def reply_cut(exchange: Exchange) -> None:
    """All but the last bytes of the reply arrive, then the end."""
    reply = await exchange.forward()
    await exchange.say(reply[:-20])
    exchange.hang_up()


async def reply_reset(exchange: Exchange) -> None:
    """The first bytes of the reply arrive, then a reset."""
    reply = await exchange.forward()
    await exchange.say(reply[:20])
    exchange.reset()


async def closed_as_it_was_reused(exchange: Exchange) -> None:
    """The server has closed a connection that the client still holds for good. A fresh one works."""
    await (reset_at_its_head if exchange.is_reused else passed_on)(exchange)


async def silent(exchange: Exchange) -> None:
    """The emulator has done its part, and nobody says so."""
    await exchange.forward()
    await exchange.gone()


async def trickling(exchange: Exchange) -> None:
    """The reply comes, a byte at a time."""
    for byte in await exchange.forward():
        await exchange.say(bytes([byte]))
        await asyncio.sleep(0.05)


async def refused_for_a_while(exchange: Exchange) -> None:
    """This request goes through, and no new connection for a third of a second."""
    exchange.proxy.stop_listening()
    try:
        await passed_on(exchange)
        await asyncio.sleep(0.3)
    finally:
        await exchange.proxy.start_listening()
