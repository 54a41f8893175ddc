"""A running emulator: in this event loop, or in a process of its own."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, closing, suppress
from functools import partial
from pathlib import Path

from .faults import Settings
from .operations import Book

ADDRESS = "127.0.0.1"  # it serves this machine only


class Emulator(AsyncExitStack):
    """A running emulator, stopped when it is left."""

    url: str


async def start(settings: Settings, *, port: int = 0, journal: Path | None = None) -> Emulator:
    """Start an emulator in this event loop: ``async with await start(Settings()) as emulator: emulator.url``.

    Args:
        port: 0 takes a free one.
        journal: Accepted operations are kept in this file and read back from it; without it they die with
            the process.
    Raises:
        ValueError: the journal is none.
        OSError: the port is taken, or the journal cannot be opened.
    """
    from aiohttp import web

    from .server import Service

    async with Emulator() as stack:
        answer = Service(settings, stack.enter_context(closing(Book(journal)))).answer
        kind = partial(web.BaseRequest, loop=asyncio.get_running_loop(), client_max_size=8 * 1024 * 1024)
        server = web.Server(answer, request_factory=kind, keepalive_timeout=75, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, ADDRESS, port, backlog=1024).start()
        emulator = stack.pop_all()
    emulator.url = f"http://{ADDRESS}:{runner.addresses[0][1]}"
    return emulator


def serve_forever(settings: Settings, *, port: int, journal: Path | None) -> None:
    """Serve until SIGINT or SIGTERM. The first line on stdout is ``listening on http://127.0.0.1:N``."""

    async def serve() -> None:
        stopped = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, stopped.set)
        async with await start(settings, port=port, journal=journal) as emulator:
            print(f"listening on {emulator.url}", flush=True)
            await stopped.wait()

    run: Callable[..., None] = asyncio.run
    with suppress(ImportError):  # the fastest there is
        import uvloop

        run = uvloop.run
    run(serve())
