"""What aiohttp alone costs: POST and GET in a loop, nothing kept. Prints the CPU seconds."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp

from batchrun.job import loop_factory

WORKERS = 16


async def main(url: str, count: int) -> float:
    numbers = iter(range(count))
    async with aiohttp.ClientSession(
        headers={"Authorization": "Api-Key bench"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(),
    ) as session:

        async def work() -> None:
            for number in numbers:
                message = {"role": "user", "text": f"floor {number} " + "x" * 200}
                body = json.dumps({"modelUri": "gpt://bench/yandexgpt/latest", "messages": [message]})
                headers = {"Content-Type": "application/json"}
                path = "/foundationModels/v1/completionAsync"
                async with session.post(url + path, data=body, headers=headers) as reply:
                    operation = json.loads(await reply.read())["id"]
                async with session.get(f"{url}/operations/{operation}") as reply:
                    await reply.read()

        began = time.process_time()
        await asyncio.gather(*(work() for _ in range(WORKERS)))
        return time.process_time() - began


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        print(runner.run(main(sys.argv[1], int(sys.argv[2]))))
