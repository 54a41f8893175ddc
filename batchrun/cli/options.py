"""Every option of ``run`` in the order of its help; other commands take theirs from here."""

from __future__ import annotations

import math
import re
import time
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.types import OptionHelpExtra

from batchrun import config
from batchrun.cli import CONTEXT
from batchrun.inputs import Shape
from batchrun.spool import TABLES

SETTINGS = CONTEXT | {"auto_envvar_prefix": "BATCHRUN"}


class Option(click.Option):
    """``form``: its names and its metavar as the help shows them; without a metavar it is a flag.

    ``shown``: what holds without it, where that is not its ``default``.
    """

    def __init__(
        self, form: str, help: str, kind: Any = None, default: Any = None, *, shown: str | None = None, **more: Any
    ) -> None:
        names, _, metavar = form.partition(" ")
        of_its_kind: dict[str, Any] = {"metavar": metavar, "default": default} if metavar else {"is_flag": True}
        super().__init__(names.split(","), help=help, type=kind, **of_its_kind, **more)
        self._shown = shown or default

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        return {"range": str(self._shown)} if self._shown else {}


class Number(click.FloatRange):
    """A number, and not the float that is none."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("is not a number", param, ctx)
        return number


def deadline(value: str) -> float:
    """When ``06:00``, ``5h``, ``90m`` or ``30s`` is, on the monotonic clock."""
    if found := re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([hms])", value):
        return time.monotonic() + float(found[1]) * {"h": 3600, "m": 60, "s": 1}[found[2]]
    if not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", value):
        raise click.BadParameter(f"'{value}' is neither a time as 06:00 nor a while as 5h, 90m or 30s")
    hour, minute = map(int, value.split(":"))
    now = datetime.fromtimestamp(time.time())
    at = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return time.monotonic() + (at if at > now else at + timedelta(days=1)).timestamp() - now.timestamp()


def share(value: str) -> str:
    """``60`` or ``1%``."""
    if not re.fullmatch(r"\d{1,12}|(100|\d{1,2}(\.\d+)?)%", value):
        raise click.BadParameter(f"'{value}' is neither a number nor a share as 1%")
    return value


PATH = click.Path(path_type=Path, readable=False)  # whoever opens it says what is wrong
COUNT = click.IntRange(min=1)
RATE = Number(0.001, 100_000)  # what a clock can keep
WORKERS = click.IntRange(1, 256)
PROVIDER = click.Choice([*config.MODELS])
DOUBT = click.Choice(["resubmit", "hold"])
FINISHED = click.Choice(["keep", "new"])
FORMATS = (*map(str, Shape), *TABLES)
MODEL = f"{config.DEFAULT_MODEL}; general with yandex-instruct"
READ_RATE = f"{config.DEFAULT_READ_RPS:g}, or {config.READS_PER_SUBMIT} x --rps if more"

by_hand = partial(Option, allow_from_autoenv=False)
"""What may cost money twice is not for the environment to say."""

OUTPUT = click.Argument(["output"], type=PATH)
STATE_DIR = Option("--state-dir DIR", "where the job's ledger is, if not beside OUTPUT", PATH)
END = (
    Option("--deadline WHEN", "stop cleanly at 06:00, or after 5h or 90m; exit 75", deadline),
    Option("--collect-only", "fetch the answers that are paid for, send nothing"),
)
SCREEN = (
    Option("-q,--quiet", "errors only"),
    Option("-v,--verbose", "log each operation, to stderr unless --log-file is given"),
    Option("--log-file FILE", "append the log to this file", PATH),
)
OF_RUN = {
    "Input and output": (
        Option(
            "-o,--output OUTPUT", "answers, one JSON object per line, in order of completion", PATH, shown="required"
        ),
        Option("--format NAME", f"what the lines are: {', '.join(FORMATS)}", click.Choice(["auto", *FORMATS]), "auto"),
        Option("--prompt-column NAME", "field that holds the prompt; all others travel along"),
        Option("-t,--template FILE", "Jinja2 template that makes the prompt of a record's fields", PATH),
        Option("--limit N", "only the first N records", COUNT),
        Option("--strict", "refuse the whole input if any line is bad"),
        Option("--state-dir DIR", "ledger and lock", PATH, shown="OUTPUT.batchrun"),
    ),
    "Model": (
        Option(
            "--provider NAME",
            "yandex, yandex-instruct (its older API), or emulator: a local one that invents answers",
            PROVIDER,
            "yandex",
        ),
        Option("-m,--model NAME", "model, short or as gpt://FOLDER/NAME", shown=MODEL),
        Option("-s,--system TEXT|@FILE", "system message put before each prompt that has none"),
        Option("--temperature X", "0 to 1", Number(0, 1)),
        Option("--max-tokens N", "limit of one answer", COUNT),
        Option("--endpoint URL", "another base URL for submissions and operations"),
        Option("--emulator-faults K=V,…", "what goes wrong with --provider emulator (docs/emulator.md)", default=""),
    ),
    "Pace": (
        Option("--rps N", "submissions per second, at most", RATE, config.DEFAULT_RPS),
        Option("--rph N", "submissions in any 60 minutes, at most", COUNT, config.DEFAULT_RPH),
        Option("--read-rps N", "polls per second, at most", RATE, shown=READ_RATE),
        Option(
            "--concurrency N",
            "submissions on their way at once: what a crash can put in doubt",
            WORKERS,
            config.DEFAULT_CONCURRENCY,
        ),
    ),
    "Resume and doubt": (
        Option("--on-ambiguous WHAT", "a submission whose reply was lost: resubmit or hold", DOUBT, "resubmit"),
        by_hand("--new-run", "put the old results aside and pay for everything again"),
        by_hand("--rebuild-output", "the output is gone or edited: fetch again what is missing, send nothing twice"),
        by_hand("--accept-changed", "the input was edited: send the changed lines again and pay for them again"),
        by_hand(
            "--if-finished WHAT", "the job is finished: keep it, or new: put it aside and begin anew", FINISHED, "keep"
        ),
    ),
    "This run": (
        Option("--dry-run", "check, count and estimate; send nothing and make no file"),
        Option("--max-failures N|P%", "exit 0 up to so many failed records", share, "0"),
        *END,
    ),
    "Screen and log": SCREEN,
}
