"""A running emulator: in this event loop, or in a process of its own."""

import asyncio
import contextlib
import ipaddress
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from .faults import Settings
from .operations import Book
from .server import Service

MAX_BODY_BYTES = 8 * 1024 * 1024
KEEP_ALIVE_S = 75.0


class Emulator:
    """A running emulator; close it, or use it as an async context manager."""

    def __init__(self, url: str, service: Service, runner: web.ServerRunner, book: Book) -> None:
        self.url = url
        self._service = service
        self._runner = runner
        self._book = book

    @classmethod
    async def start(cls, settings: Settings, *, host: str, port: int, journal: Path | None) -> Self:
        address = _loopback(host)
        book = Book.open(journal)
        service = Service(settings, book)
        server = web.Server(
            service.answer, request_factory=_make_request, keepalive_timeout=KEEP_ALIVE_S, access_log=None
        )
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        try:
            await runner.setup()
            await web.TCPSite(runner, address, port, backlog=1024).start()
        except BaseException:
            await runner.cleanup()
            book.close()
            raise
        bound_port = runner.addresses[0][1]
        shown = f"[{address}]" if ":" in address else address
        return cls(f"http://{shown}:{bound_port}", service, runner, book)

    def stats(self) -> dict[str, Any]:
        """What ``GET /_stats`` answers."""
        return self._service.stats(totals_only=False)

    async def close(self) -> None:
        await self._runner.cleanup()
        self._book.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


def _make_request(*parts: Any) -> web.BaseRequest:
    message, payload, protocol, writer, task = parts
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY_BYTES)


def _loopback(host: str) -> str:
    address = "127.0.0.1" if host == "localhost" else host
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(address).is_loopback:
            return address
    raise ValueError(f"`{host}` is not a loopback address: the emulator serves this machine only")


def serve_forever(settings: Settings, *, host: str, port: int, journal: Path | None) -> None:
    with asyncio.Runner(loop_factory=_fastest_event_loop()) as runner:
        runner.run(_serve(settings, host=host, port=port, journal=journal))


def _fastest_event_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    with contextlib.suppress(ImportError):
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
        return factory
    return asyncio.new_event_loop


async def _serve(settings: Settings, *, host: str, port: int, journal: Path | None) -> None:
    stopped = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    async with await Emulator.start(settings, host=host, port=port, journal=journal) as emulator:
        print(f"listening on {emulator.url}", flush=True, file=sys.stdout)
        await stopped.wait()
