"""What the tests talk to the emulator with: a plain HTTP client, a raw socket where HTTP hides too much."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import aiohttp

from batchrun.emulator import Settings
from batchrun.emulator.server import start

ROOT = Path(__file__).parents[2]
AT_ONCE = "p50=0,p99=0"
SUBMIT_PATH = "/foundationModels/v1/completionAsync"


def body(text: str = "Capital of Serbia?", **changes: Any) -> dict[str, Any]:
    return {
        "modelUri": "gpt://b1gexamplefolder0000/yandexgpt-lite/latest",
        "completionOptions": {"stream": False, "temperature": 0.2, "maxTokens": "800"},
        "messages": [{"role": "system", "text": "One word."}, {"role": "user", "text": text}],
    } | changes


def instruction(text: str = "Capital of Serbia?", **changes: Any) -> dict[str, Any]:
    return {
        "model": "general",
        "generationOptions": {"partialResults": False, "temperature": 0.2, "maxTokens": "800"},
        "instructionText": "One word.",
        "requestText": text,
    } | changes


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Any
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Client:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def request(self, method: str, path: str, data: bytes | IO[bytes] | None = None, **headers: str) -> Reply:
        options: Any = {"data": data, "headers": {"Authorization": "Api-Key AQVNexample"} | headers}
        async with self._session.request(method, self.url + path, allow_redirects=False, **options) as reply:
            return Reply(reply.status, reply.headers, await reply.read())

    async def submit(self, text: str = "Capital of Serbia?", **changes: Any) -> Reply:
        return await self.request("POST", SUBMIT_PATH, json.dumps(body(text, **changes)).encode())

    async def submit_for_id(self, text: str = "Capital of Serbia?") -> str:
        reply = await self.submit(text)
        assert reply.status == 200, reply.raw
        operation_id: str = reply.json["id"]
        return operation_id

    async def poll(self, operation_id: str) -> Reply:
        return await self.request("GET", f"/operations/{operation_id}")

    async def answer(self, text: str = "Capital of Serbia?") -> dict[str, Any]:
        """The finished operation of a new request."""
        operation: dict[str, Any] = (await self.poll(await self.submit_for_id(text))).json
        assert operation["done"]
        return operation

    async def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = (await self.request("GET", "/_stats")).json
        return stats

    async def change(self, **faults: Any) -> Reply:
        return await self.request("PUT", "/_faults", json.dumps(faults).encode())

    async def until(self, is_reached: Callable[[dict[str, Any]], bool]) -> None:
        async with asyncio.timeout(10):
            while not is_reached(await self.stats()):
                pass  # each look is a round trip, in which the emulator gets on


def visit(story: Callable[[Client], Awaitable[None]], settings: str = AT_ONCE, journal: Path | None = None) -> None:
    """Tell one story to a fresh emulator."""

    async def main() -> None:
        async with start(Settings.parse(settings), journal=journal) as url, aiohttp.ClientSession() as session:
            await story(Client(url, session))

    asyncio.run(main())


def visit_url(story: Callable[[Client], Awaitable[None]], url: str) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            await story(Client(url, session))

    asyncio.run(main())


async def raw_submit(url: str, authorisation: bytes = b"Api-Key k") -> bytes:
    """All bytes the emulator sends for one submit until it closes the connection.

    Raises:
        ConnectionResetError: it ended with a TCP reset.
    """
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    content = json.dumps(body()).encode()
    head = f"POST {SUBMIT_PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n"
    writer.write(head.encode() + b"Authorization: " + authorisation + b"\r\n\r\n" + content)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.contextmanager
def emulator_process(settings: str, journal: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """An emulator in a process of its own, with its address; killed at the end if it still lives."""
    command = [sys.executable, "-m", "batchrun", "emulator", "--faults", settings, "--journal", str(journal)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().removeprefix("listening on ").strip()
        finally:
            process.kill()
