"""The emulator as a process of its own: it stands in for a service that no kill of ours reaches."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchrun.emulator import Settings

AT_ONCE = "p50=0,p99=0"


class Emulator:
    """One process for many tests, one after the other: ``begin`` gives each a healthy service and counters from 0.

    Requests of two tests never meet: each bench has a folder of its own, and the folder is part of every body.
    """

    def __init__(self, folder: Path) -> None:
        self._journal = folder / "emulator.jsonl"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "batchrun", "emulator", "--journal", str(self._journal)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().removeprefix("listening on ").strip()
        self._begun_at = 0
        self._counted: dict[str, Any] = {}
        self._earlier = b""

    def begin(self, faults: str = AT_ONCE) -> None:
        """Forget the faults, counters and payments of the test before."""
        self.change(**asdict(Settings.parse(faults)), rules=[])
        self._counted = self._totals()
        self._begun_at = self._journal.stat().st_size
        self._earlier = b""

    def change(self, **faults: Any) -> None:
        """Other faults from now on; ``rules=`` gives some prompts faults of their own."""
        body = json.dumps(faults).encode()
        request = urllib.request.Request(f"{self.url}/_faults", data=body, method="PUT")
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.status == 200

    def count(self, name: str) -> int:
        """One counter of ``GET /_stats`` since ``begin``."""
        return int(self._totals()[name] - self._counted[name])

    def _totals(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/_stats", timeout=10) as reply:
            totals: dict[str, Any] = json.load(reply)
        return totals

    @property
    def submissions(self) -> Counter[str]:
        """How often each prompt was accepted, and so paid for, since ``begin``."""
        return submissions_in(self.journal())

    def journal(self) -> bytes:
        """What was accepted since ``begin``, a line per operation. It is written before the client is answered."""
        with self._journal.open("rb") as file:
            file.seek(self._begun_at)
            return self._earlier + file.read()

    def remember(self, journal: bytes) -> None:
        """Count these acceptances as well: the job of this test was begun in another one."""
        self._earlier = journal

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=10)


def operations_in(journal: bytes) -> list[dict[str, Any]]:
    """The whole lines of an emulator's journal."""
    return [json.loads(line) for line in journal.splitlines(keepends=True) if line.endswith(b"\n")]


def submissions_in(journal: bytes) -> Counter[str]:
    """How often each prompt was accepted."""
    return Counter(operation["text"] for operation in operations_in(journal))
