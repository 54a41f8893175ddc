"""batchrun with the service inside its own process and no network: what everything but HTTP costs.

``python -m tests.bench.served_within [--stuck] [--profile] WORDS…`` is ``batchrun WORDS…``. Its last line on stderr
is JSON: CPU seconds of the process and of its storage thread, and with ``--profile`` the seconds spent in the own code
of each module.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import pstats
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path

import batchrun
from batchrun import job, tracker
from batchrun.cli import cli
from batchrun.providers.http import Reply
from batchrun.providers.yandex import Credentials, Yandex
from batchrun.storage.thread import Storage

ACCEPTED = b'{"id":"d7qbench%015d","description":"Async GPT Completion","done":false,"metadata":null}'
RUNNING = b'{"id":"%s","done":false}'
FINISHED = (
    b'{"id":"%s","done":true,"response":{"alternatives":[{"message":{"role":"assistant","text":"'
    + b"An answer of some hundred characters. " * 3
    + b'"},"status":"ALTERNATIVE_STATUS_FINAL"}],"usage":{"inputTextTokens":"31","completionTokens":"10",'
    b'"totalTokens":"41"},"modelVersion":"09.02.2025"}}'
)
ROOT = Path(batchrun.__file__).parent

profiles: list[cProfile.Profile] = []
storage_s: list[float] = []


class Within:
    """In place of HTTP: takes every request, and finishes it at once or, ``stuck``, never."""

    def __init__(self, *, stuck: bool) -> None:
        self._operation = RUNNING if stuck else FINISHED
        self._ids = count(time.time_ns())

    async def post(self, url: str, body: bytes, headers: object) -> Reply:
        await asyncio.sleep(0)
        return Reply(200, ACCEPTED % (next(self._ids) % 10**15))

    async def get(self, url: str) -> Reply:
        await asyncio.sleep(0)
        return Reply(200, self._operation % url.rpartition("/")[2].encode())


class Measured(Storage):
    """The storage thread, which notes its own CPU seconds."""

    def _work(self) -> None:
        with profiled():
            super()._work()
        storage_s.append(time.thread_time())


@contextmanager
def profiled() -> Iterator[None]:
    profile = cProfile.Profile(time.thread_time)
    if wants_profile:
        profiles.append(profile)
        profile.enable()
    try:
        yield
    finally:
        profile.disable()


def seconds_by_module() -> dict[str, float]:
    """Own time of every function, with that of the C functions it calls, by the module it stands in."""
    found: Counter[str] = Counter()
    for profile in profiles:
        for (path, _, _), (_, _, own_s, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
            for place, spent in [(path, own_s)] if path != "~" else [(by[0], of[2]) for by, of in callers.items()]:
                is_ours = ROOT in Path(place).parents
                found[str(Path(place).relative_to(ROOT)) if is_ours else "Python and libraries"] += spent
    return dict(found.most_common())


def main(words: list[str]) -> int:
    nobody = Credentials("Api-Key of-nobody", "b1gnobody00000000000")

    @asynccontextmanager
    async def open_provider(config: object, environ: object) -> AsyncIterator[Yandex]:
        provider = Yandex(nobody)
        setattr(provider, "_http", Within(stuck=is_stuck))  # noqa: B010  it is no Http
        yield provider

    job.open_provider = open_provider
    setattr(job, "Storage", Measured)  # noqa: B010  it is no name that job gives away
    tracker.MAX_OPEN = 10**9
    with profiled():
        code = cli.main(words, standalone_mode=False)
    told = {"cpu_s": time.process_time(), "storage_s": sum(storage_s), "modules": seconds_by_module()}
    print(json.dumps(told), file=sys.stderr)
    return code or 0


if __name__ == "__main__":
    words = sys.argv[1:]
    is_stuck, wants_profile = "--stuck" in words, "--profile" in words
    sys.exit(main([word for word in words if word not in ("--stuck", "--profile")]))
