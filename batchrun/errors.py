"""Errors meant for people: what is wrong, what to do, and the exit code. All else is a bug and keeps its traceback."""

from __future__ import annotations

import signal
from collections.abc import Sequence

USAGE = 2
INPUT = 3
DECISION = 4
CREDENTIALS = 5
BUG = 70
DISK = 74
RUN_AGAIN = 75


class BatchrunError(Exception):
    """Two lines for a person: the cause, then the remedy. ``before``: lines that come first, one for each cause.

    ``exit_code`` is the process's; docs/exit-codes.md lists them all.
    """

    exit_code = BUG
    label = "error: "

    def __init__(self, cause: str, *, remedy: str, before: Sequence[str] = ()) -> None:
        super().__init__(cause)
        self.before = before
        self.cause = cause
        self.remedy = remedy


class UsageProblem(BatchrunError):
    """The command, its options or the environment do not fit together."""

    exit_code = USAGE


class InputProblem(BatchrunError):
    """The input is bad, or it, the output or the ledger changed between two runs or during one."""

    exit_code = INPUT


class CredentialsRefused(BatchrunError):
    """The service does not accept who we are, or we do not accept who it is."""

    exit_code = CREDENTIALS


class DiskProblem(BatchrunError):
    """Files cannot be written, or what they hold cannot be trusted."""

    exit_code = DISK


class TryLater(BatchrunError):
    """Nothing is wrong with the job: the same command will do, later."""

    exit_code = RUN_AGAIN


class NoSuccess(TryLater):
    """The service did not answer usefully for too long."""

    def __init__(self, limit_s: float, last: str) -> None:
        cause = f"no success for {round(limit_s / 60)} min (last: {last}); what was accepted stays open at the service"
        super().__init__(cause, remedy="run the same command again later")


class DeadlineReached(TryLater):
    """The time that was given is over."""

    label = ""

    def __init__(self) -> None:
        super().__init__("stopped at the deadline", remedy="run the same command again to continue")


class Interrupted(BatchrunError):
    """A signal asked for the end. The exit code is the shell's: 128 and the signal's number."""

    label = ""

    def __init__(self, signal_number: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}", remedy="run the same command again to continue")
        self.exit_code = 128 + signal_number
