"""Room on disk, looked at once a second: an operation ID that cannot be written is money lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from batchrun.errors import DiskProblem
from batchrun.stop import Stop
from batchrun.storage.jobdir import JobPaths

KEEP_FREE_BYTES = 64 << 20  # below this nothing is sent
MUST_BE_FREE_BYTES = 16 << 20  # below this the run ends: what is on its way still needs room
LOOK_EVERY_S = 1.0


class Disk:
    """The free room where a job's files are."""

    def __init__(self, paths: JobPaths) -> None:
        self._paths = paths
        self.free_bytes = self._look()

    @property
    def has_room(self) -> bool:
        """Whether there is room for one more operation."""
        return self.free_bytes >= KEEP_FREE_BYTES

    async def watch(self, stop: Stop, nothing_open: Callable[[], bool]) -> None:
        """Keep looking; ask for the stop when it is nearly full, or too full to send and nothing is left to collect."""
        while True:
            self.free_bytes = self._look()
            if self.free_bytes < MUST_BE_FREE_BYTES or (not self.has_room and nothing_open()):
                cause = f"only {self.free_bytes >> 20} MiB are free for {self._paths.output} and its ledger; stopped"
                remedy = f"free some space, {KEEP_FREE_BYTES >> 20} MiB at least, and run the same command"
                stop.request(DiskProblem(cause, remedy=remedy))
            await asyncio.sleep(LOOK_EVERY_S)

    def _look(self) -> int:
        return min(_free_bytes(self._paths.ledger), _free_bytes(self._paths.output))


def _free_bytes(path: Path) -> int:
    """Bytes an ordinary user may still write where this path is.

    Raises:
        DiskProblem: the path is gone.
    """
    try:
        found = os.statvfs(path)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise DiskProblem(f"{path} is gone ({reason})", remedy="put it back, then run again") from error
    return found.f_bavail * found.f_frsize
