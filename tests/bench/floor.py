"""What the exchanges of a job cost alone: POST and GET in a loop, nothing kept. Prints the CPU seconds.

``python -m tests.bench.floor URL COUNT`` uses aiohttp; with ``--streams`` asyncio's own streams and no HTTP library at
all: what a transport written for this one service could come to.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import aiohttp

from batchrun.job import loop_factory

WORKERS = 16
SUBMIT = "/foundationModels/v1/completionAsync"
HEADERS = {"Authorization": "Api-Key bench", "Content-Type": "application/json"}

Exchange = Callable[[str, str, str | None], Awaitable[bytes]]
"""Method, path and body -> the body of the reply."""


@asynccontextmanager
async def with_aiohttp(url: str) -> AsyncIterator[Exchange]:
    async with aiohttp.ClientSession(
        headers=HEADERS,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(),
    ) as session:

        async def exchange(method: str, path: str, body: str | None) -> bytes:
            async with session.request(method, url + path, data=body) as reply:
                return await reply.read()

        yield exchange


@asynccontextmanager
async def with_streams(url: str) -> AsyncIterator[Exchange]:
    """One connection; the reply has a Content-Length."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())

    async def exchange(method: str, path: str, body: str | None) -> bytes:
        data = (body or "").encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {address.netloc}\r\n{lines}Content-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        told = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(told.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return await reader.readexactly(size)

    yield exchange
    writer.close()


async def main(url: str, count: int, *, streams: bool) -> float:
    numbers = iter(range(count))

    async def work(exchange: Exchange) -> None:
        for number in numbers:
            message = {"role": "user", "text": f"floor {number} " + "x" * 200}
            body = json.dumps({"modelUri": "gpt://bench/yandexgpt/latest", "messages": [message]})
            operation = json.loads(await exchange("POST", SUBMIT, body))["id"]
            await exchange("GET", f"/operations/{operation}", None)

    async with AsyncExitStack() as opened:
        if streams:
            exchanges = [await opened.enter_async_context(with_streams(url)) for _ in range(WORKERS)]
        else:
            exchanges = [await opened.enter_async_context(with_aiohttp(url))] * WORKERS
        began = time.process_time()
        await asyncio.gather(*map(work, exchanges))
        return time.process_time() - began


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        print(runner.run(main(sys.argv[1], int(sys.argv[2]), streams="--streams" in sys.argv)))
