"""The whole command line in this process, a service that answers with what it was asked, and no time that passes."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from batchrun import job, tracker
from batchrun.cli import main
from batchrun.config import JobConfig
from batchrun.errors import BUG
from batchrun.log import LOGGER, keep_secret
from batchrun.providers.http import Exchange, Reply
from batchrun.providers.yandex import Yandex, credentials_from
from batchrun.storage import disk
from tests.conftest import credentials_below
from tests.crashes import service as clocks

KEY = "AQVNhostile-key-that-nobody-may-see"
FOLDER = "b1g0123456789abcdef0"
ENVIRONMENT = {"YC_API_KEY": KEY, "YC_FOLDER_ID": FOLDER, "PATH": os.defpath, "LANG": "C.UTF-8"}
CODES = frozenset({0, 1, 2, 3, 4, 5, 74, 75})
"""What a command may end with when nobody sends it a signal; 70 is a bug."""
LONGEST_RUN_S = 20_000.0  # an hour behind the quota, 15 minutes of outage, 10 of patience


class Service:
    """Stands where the connections are: accepts every POST, and answers at once with the text of its last message.

    ``answers`` may say otherwise for a prompt: it is given the operation and returns what the poll brings.
    """

    def __init__(self) -> None:
        self.asked: dict[str, str] = {}
        self.submits = 0
        self.urls: list[str] = []
        self.answer: Callable[[str, str], Exchange] = lambda operation_id, text: finished(operation_id, text)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Exchange:
        self.urls.append(url)
        self.submits += 1
        operation_id = f"op{uuid.uuid4().hex}"
        self.asked[operation_id] = json.loads(body)["messages"][-1]["text"]
        return reply({"id": operation_id, "done": False})

    async def get(self, url: str) -> Exchange:
        self.urls.append(url)
        operation_id = url.rpartition("/")[2]
        if operation_id not in self.asked:
            return reply({"code": 5, "message": "operation not found"}, status=404)
        return self.answer(operation_id, self.asked[operation_id])

    def drop_connections(self) -> None:
        """There are none."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


def reply(document: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(document).encode())


def finished(operation_id: str, text: str, **fields: Any) -> Reply:
    alternative = {"message": {"role": "assistant", "text": text}, "status": "ALTERNATIVE_STATUS_FINAL"}
    usage = {"inputTextTokens": "3", "completionTokens": "4", "totalTokens": "7"}
    response = {"alternatives": [alternative], "usage": usage, "modelVersion": "1", **fields}
    return reply({"id": operation_id, "done": True, "response": response})


@dataclass(frozen=True, slots=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


class Here:
    """A folder, and ``batchrun`` in it."""

    def __init__(self, folder: Path, service: Service | None = None) -> None:
        self.folder = folder
        self.service = Service() if service is None else service
        self.input = folder / "in.jsonl"
        self.output = folder / "out.jsonl"
        self.failures = folder / "out.errors.ndjson"
        self.state = folder / "out.jsonl.batchrun"

    def records(self, *texts: str) -> None:
        self.input.write_text("".join(json.dumps({"id": text, "prompt": text}) + "\n" for text in texts))

    def run(self, *options: str) -> Said:
        return self("in.jsonl", "-o", "out.jsonl", "--rps", "1000", "--read-rps", "1000", "--rph", "1000000", *options)

    def __call__(self, *words: str) -> Said:
        """Run a command to its end. It must end well: in words, with a documented code, and not as a bug."""
        said = self.ended(*words)
        self._check_manners(words, said)
        return said

    def ended(self, *words: str) -> Said:
        """Run a command to its end, whatever that is."""
        out, err = io.StringIO(), io.StringIO()
        loggers = [LOGGER, logging.getLogger()]
        before = [(logger, logger.level, [*logger.handlers]) for logger in loggers]
        with (
            _in_folder(self.folder),
            patch.dict(os.environ, ENVIRONMENT, clear=True),
            patch("sys.argv", ["batchrun", *words]),
            _served_by(self.service),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as left:
                code = left.code
            finally:
                keep_secret(())
                for logger, level, handlers in before:
                    for handler in {*logger.handlers} - {*handlers}:
                        with suppress(OSError):
                            handler.close()
                    logger.setLevel(level)
                    logger.handlers[:] = handlers
        return Said(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())

    def _check_manners(self, words: tuple[str, ...], said: Said) -> None:
        bugs = [path.read_text() for path in self.folder.glob("batchrun-bug-*")]
        assert said.code != BUG, f"{words}: {said.err}\n" + "\n".join(bugs)
        assert said.code in CODES, f"{words}: exit code {said.code}\n{said.err}"
        assert "Traceback" not in said.out + said.err, said
        lines = [line for line in said.err.split("\n") if line and not line.startswith("in.jsonl:")]
        assert "-v" in words or len(lines) <= 2, said.err
        for shown in (said.out, said.err):
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown), repr(shown)
            assert KEY not in shown
            assert FOLDER not in shown

    def results(self) -> list[dict[str, Any]]:
        return json_lines(self.output)

    def check_secrets(self) -> None:
        """Neither key nor folder stands in any file."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                content = path.read_bytes().lower()
                assert KEY[-20:].lower().encode() not in content, path
                assert FOLDER.encode() not in content, path


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file as a reader of JSON Lines splits them: at LF, and nowhere else."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line] if path.exists() else []


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder that is gone afterwards, in memory where there is such a place: no disk is tested here."""
    where = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=where if os.access(where, os.W_OK) else None) as folder:
        yield Path(folder)
        found = credentials_below(Path(folder))
        assert not found, f"credentials stand in {found}"


def copy_of(job: Path, folder: Path) -> Path:
    """The same job once more; its input is another file with the same bytes."""
    return Path(shutil.copytree(job, folder))


@contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _served_by(service: Service) -> Iterator[None]:
    """The client is the product's own; what it would send goes to the service instead of a socket."""

    @asynccontextmanager
    async def open_provider(config: JobConfig, environ: Mapping[str, str]) -> AsyncIterator[Yandex]:
        client = Yandex(credentials_from(environ), endpoint=config.endpoint, workers=8)
        client._http = service  # type: ignore[assignment]
        async with client as provider:
            yield provider

    clock = clocks.Clock()
    with ExitStack() as patches:
        patches.enter_context(patch.object(clocks, "LONGEST_RUN_S", LONGEST_RUN_S))
        patches.enter_context(patch.object(tracker, "TIMER_GRAIN_S", 10.0))  # a look costs, even on that clock
        patches.enter_context(patch.object(disk, "LOOK_EVERY_S", 100.0))
        patches.enter_context(patch.object(job, "open_provider", open_provider))
        patches.enter_context(patch.object(job, "loop_factory", lambda: clock.loop))
        patches.enter_context(patch.object(job, "Storage", clock.open_storage))
        patches.enter_context(patch.object(time, "monotonic", clock.monotonic))
        yield
