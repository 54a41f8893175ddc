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

from batchrun import config
from batchrun.cli import CONTEXT
from batchrun.inputs import Shape
from batchrun.spool import TABLES

SETTINGS = CONTEXT | {"auto_envvar_prefix": "BATCHRUN"}


def option(
    form: str, help: str, kind: Any = None, default: Any = None, *, shown: str | None = None, **more: Any
) -> click.Option:
    """``form``: its names and its metavar as the help shows them; without a metavar it is a flag.

    ``shown``: what holds without it, where that is not its ``default``.
    """
    names, _, metavar = form.partition(" ")
    if metavar:
        more |= {"metavar": metavar, "default": default, "show_default": shown or bool(default)}
    return click.Option(names.split(","), help=help, type=kind, is_flag=not metavar, **more)


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

by_hand = partial(option, allow_from_autoenv=False)
"""What may cost money twice is not for the environment to say."""

OUTPUT = click.Argument(["output"], type=PATH)
STATE_DIR = option("--state-dir DIR", "where the job's ledger is, if not beside OUTPUT", PATH)
END = (
    option("--deadline WHEN", "stop cleanly at 06:00, or after 5h or 90m; exit 75", deadline),
    option("--collect-only", "fetch the answers that are paid for, send nothing"),
)
SCREEN = (
    option("-q,--quiet", "errors only"),
    option("-v,--verbose", "log each operation, to stderr unless --log-file is given"),
    option("--log-file FILE", "append the log to this file", PATH),
)
OF_RUN = {
    "Input and output": (
        option("-o,--output OUTPUT", "answers, one JSON object a line, as they finish (required)", PATH),
        option("--format NAME", f"what the lines are: {', '.join(FORMATS)}", click.Choice(["auto", *FORMATS]), "auto"),
        option("--prompt-column NAME", "field that holds the prompt; all others travel along"),
        option("-t,--template FILE", "Jinja2 template that makes the prompt of a record's fields", PATH),
        option("--limit N", "only the first N records", COUNT),
        option("--strict", "refuse the whole input if any line is bad"),
        option("--state-dir DIR", "ledger and lock", PATH, shown="OUTPUT.batchrun"),
    ),
    "Model": (
        option("--provider NAME", "yandex, yandex-instruct, or emulator: invented answers", PROVIDER, "yandex"),
        option("-m,--model NAME", "model, short or as gpt://FOLDER/NAME", shown=MODEL),
        option("-s,--system TEXT|@FILE", "system message put before each prompt that has none"),
        option("--temperature X", "sampling temperature", Number(0, 1)),
        option("--max-tokens N", "limit of one answer", COUNT),
        option("--endpoint URL", "another base URL for submissions and operations"),
        option("--emulator-faults K=V,…", "what goes wrong with --provider emulator (docs/emulator.md)", default=""),
    ),
    "Pace": (
        option("--rps N", "submissions per second, at most", RATE, config.DEFAULT_RPS),
        option("--rph N", "submissions in any 60 minutes, at most", COUNT, config.DEFAULT_RPH),
        option("--read-rps N", "polls per second, at most", RATE, shown=READ_RATE),
        option("--concurrency N", "submissions on their way at once", WORKERS, config.DEFAULT_CONCURRENCY),
    ),
    "Resume and doubt": (
        option("--on-ambiguous WHAT", "a submission whose reply was lost: resubmit or hold", DOUBT, "resubmit"),
        by_hand("--new-run", "put the old results aside and pay for everything again"),
        by_hand("--rebuild-output", "the output is gone or edited: fetch again what is missing, send nothing twice"),
        by_hand("--accept-changed", "the input was edited: send the changed lines again and pay for them again"),
        by_hand("--if-finished WHAT", "keep a finished job, or new: put it aside and begin anew", FINISHED, "keep"),
    ),
    "This run": (
        option("--dry-run", "check, count and estimate; send nothing and make no file"),
        option("--max-failures N|P%", "exit 0 up to so many failed records", share, "0"),
        *END,
    ),
    "Screen and log": SCREEN,
}
