"""The service says our key back to us, in every place where it can: nobody reads it afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchrun.cli.run import run
from batchrun.providers.http import Exchange, Reply
from batchrun.record import Ambiguous
from tests.hostile.here import FOLDER, KEY, Here, Service, finished, in_memory, reply
from tests.scenarios.bench import Bench
from tests.scenarios.emulator import Emulator

FORGED = "2026-01-01T00:00:00.000Z INFO forged line=1"
SAID = f"bad key {KEY} of {FOLDER}\r\n{FORGED} \x1b[2J\u2028 Authorization: Api-Key {KEY}"
PAGE = f"<html><body>{SAID}{KEY * 1000}</body></html>".encode()
MAX_LOG_LINE_BYTES = 2048
ENOUGH = 30  # refusals; a quota would be waited for as long as it takes


def error(status: int) -> Reply:
    return reply({"error": {"grpcCode": 3, "httpCode": status, "message": SAID, "details": [SAID]}}, status)


def operation(operation_id: str, **fields: Any) -> Reply:
    return reply({"id": operation_id, "done": True, **fields})


class Telltale(Service):
    """Repeats the key to every POST, or to every poll."""

    def __init__(
        self,
        *,
        posted: Exchange | None = None,
        accepts_first: bool = False,
        polled: Callable[[str], Exchange] | None = None,
    ) -> None:
        super().__init__()
        self._posted = posted
        self._accepts_first = accepts_first
        self._polled = polled

    async def post(self, url: str, body: bytes, headers: Any) -> Exchange:
        accepted = await super().post(url, body, headers)
        is_kind = (self._accepts_first and self.submits == 1) or self.submits > ENOUGH
        return accepted if self._posted is None or is_kind else self._posted

    async def get(self, url: str) -> Exchange:
        return await super().get(url) if self._polled is None else self._polled(url.rpartition("/")[2])


def with_status(operation_id: str) -> Reply:
    alternative = {"message": {"role": "assistant", "text": "hello"}, "status": f"ALTERNATIVE_STATUS_{KEY}"}
    return operation(operation_id, response={"alternatives": [alternative]})


POSTS = {str(status): error(status) for status in (400, 401, 403, 404, 409, 429, 500, 503)} | {
    "a page with 200": Reply(200, PAGE),
    "a page with 403": Reply(403, PAGE),
    "plain text with 400": Reply(400, SAID.encode()),
    "a redirect": Reply(307, SAID.encode()),
    "an ID that is none": reply({"id": SAID}),
    "the key for an ID": reply({"id": KEY, "done": False}),
    "the key alone with 400": reply({"message": f"bad {KEY}", "code": 3}, 400),
    "a text for an error": reply({"error": SAID, "code": 3, "message": SAID}, 400),
    "a text of a megabyte": reply({"message": "x" * 3000 + KEY + "x" * (1 << 20) + KEY, "code": 3}, 400),
    "a key cut in two": reply({"message": f"{KEY[:9]}\x1b[31m{KEY[9:]} or {KEY[:5]}\u200b{KEY[5:]}", "code": 3}, 400),
    "lost": Ambiguous("connection reset"),
}
POLLS: dict[str, Callable[[str], Exchange]] = {
    "an error": lambda id: operation(id, error={"code": 3, "message": SAID, "details": [SAID]}),
    "a passing error": lambda id: operation(id, error={"code": 13, "message": SAID}),
    "a status": with_status,
    "another ID": lambda id: operation(KEY, response={}),
    "a page with 200": lambda id: Reply(200, PAGE),
    "a page with 404": lambda id: Reply(404, PAGE),
    "401": lambda id: error(401),
    "403": lambda id: error(403),
    "500": lambda id: error(500),
    "a description": lambda id: reply(
        {**json.loads(finished(id, "hello").body), "description": SAID, "metadata": SAID}
    ),
    "a model's version": lambda id: finished(id, "hello", modelVersion=SAID),
}


def check_log(here: Here) -> None:
    for line in (here.folder / "run.log").read_bytes().split(b"\n"):
        assert len(line) <= MAX_LOG_LINE_BYTES
        text = line.decode()
        assert text.isprintable(), text
        assert " forged " not in text[:40], "an event that the service made up"
    here.check_secrets()


@pytest.mark.parametrize("accepts_first", [False, True], ids=["from_the_first", "later"])
@pytest.mark.parametrize("posted", POSTS.values(), ids=POSTS)
def test_a_key_in_the_reply_to_a_post_is_read_by_nobody(tmp_path: Path, posted: Exchange, accepts_first: bool) -> None:
    """Fails if any of the service's words goes anywhere without the redactor."""
    here = Here(tmp_path, Telltale(posted=posted, accepts_first=accepts_first))
    here.records(*"abcd")
    here.run("-v", "--log-file", "run.log")
    check_log(here)
    here("status", "out.jsonl")


@pytest.mark.parametrize("polled", POLLS.values(), ids=POLLS)
def test_a_key_in_the_reply_to_a_poll_is_read_by_nobody(polled: Callable[[str], Exchange]) -> None:
    """Fails if any of the service's words goes anywhere without the redactor."""
    with in_memory() as folder:
        here = Here(folder, Telltale(polled=polled))
        here.records(*"abcd")
        here.run("-v", "--log-file", "run.log")
        check_log(here)
        here("status", "out.jsonl")


class Buggy(Service):
    """Fails in a way that nobody thought of, with the key in its words."""

    async def get(self, url: str) -> Exchange:
        try:
            raise RuntimeError(f"headers={{'Authorization': 'Api-Key {KEY}'}} {KEY * 200} {FOLDER}")
        except RuntimeError as inner:
            raise ValueError(SAID) from inner


def test_a_key_in_an_exception_is_read_by_nobody(tmp_path: Path) -> None:
    """Fails if a traceback is printed or kept without the redactor."""
    here = Here(tmp_path, Buggy())
    here.records("a")
    said = here.ended("in.jsonl", "-o", "out.jsonl", "-v", "--log-file", "run.log")
    assert said.code == 70
    assert len(said.err.splitlines()) == 2
    assert KEY not in said.out + said.err
    (bug,) = tmp_path.glob("batchrun-bug-*")
    assert "RuntimeError" in bug.read_text()
    assert bug.stat().st_mode & 0o777 == 0o600
    here.check_secrets()


def test_no_option_takes_a_key() -> None:
    """Fails if there comes an option for what every user of the machine could then read."""
    names = " ".join(name for param in run.params for name in (*param.opts, *param.secondary_opts))
    assert not re.search("key|iam|secret|auth|folder|header", names)


def test_a_key_is_in_no_list_of_processes(tmp_path: Path, emulator: Emulator, request: pytest.FixtureRequest) -> None:
    """Fails if the run starts itself or another program with a key among its words."""
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("needs /proc")
    emulator.begin()
    emulator.change(stuck=1)
    bench = Bench(tmp_path, emulator, request.node.nodeid)
    bench.records("a")
    running = bench.start_until(open=1)
    shown = [Path(f"/proc/{running.pid}/cmdline"), Path(f"/proc/{running.pid}/comm")]
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    for path in (*shown, *(Path(f"/proc/{child}/cmdline") for child in children)):
        assert bench.environment["YC_API_KEY"].encode() not in path.read_bytes()
        assert bench.cloud_folder.encode() not in path.read_bytes()
    bench.end()
