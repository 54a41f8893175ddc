"""What a run was asked to do: flags over environment over defaults, frozen, checked once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchrun.record import OnAmbiguous, Settings
from batchrun.storage.jobdir import JobPaths

DEFAULT_MODEL = "yandexgpt/latest"
MODELS = {"yandex": DEFAULT_MODEL, "yandex-instruct": "general", "emulator": DEFAULT_MODEL}  # when none is named
DEFAULT_RPS: float = 9  # the quota is 10 a second and 5,000 an hour: room for the clock of the other side
DEFAULT_RPH = 4970
DEFAULT_READ_RPS = 40.0
READS_PER_SUBMIT = 4.4
DEFAULT_CONCURRENCY = 8
REMEMBERED = tuple(
    "endpoint rps rph read_rps concurrency on_ambiguous limit max_failures emulator_faults".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class JobConfig:
    """One run, fully decided. Rates are per second, ``rph`` per 60 minutes, ``deadline`` is on the monotonic clock.

    ``beside`` are the ledgers of the jobs that share the hour with this one.
    """

    input: Path
    paths: JobPaths
    settings: Settings
    limit: int | None = None
    strict: bool = False
    new_run: bool = False
    rebuild_output: bool = False
    accept_changed: bool = False
    goes_on: bool = False  # with a job that is there, and begins none
    retry: str | None = None  # send settled records again: those of a kind, or with "" all that are worth it
    endpoint: str | None = None
    emulator_faults: str = ""
    rps: float = DEFAULT_RPS
    rph: int = DEFAULT_RPH
    read_rps: float = DEFAULT_READ_RPS
    concurrency: int = DEFAULT_CONCURRENCY
    on_ambiguous: OnAmbiguous = "resubmit"
    max_failures: str = "0"
    if_finished: str = "keep"
    collect_only: bool = False
    deadline: float | None = None
    beside: tuple[Path, ...] = ()
    tell: Callable[[str], None] = lambda text: None  # a line for whoever watches, before anything is sent

    def remembered(self) -> str:
        """What ``batchrun resume`` must know beside the settings, as JSON."""
        return json.dumps({name: getattr(self, name) for name in REMEMBERED})


def read_rps_for(rps: float) -> float:
    """The read rate that goes with a submit rate: enough polls for every operation that is accepted."""
    return max(DEFAULT_READ_RPS, READS_PER_SUBMIT * rps)
