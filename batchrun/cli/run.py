"""``batchrun run``: the default command."""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.types import OptionHelpExtra

from batchrun import config as defaults
from batchrun.cli import PATH, SETTINGS
from batchrun.cli.emulator import settings_of
from batchrun.cli.report import duration, report_problem, say
from batchrun.config import JobConfig, read_rps_for
from batchrun.errors import DiskProblem, UsageProblem
from batchrun.inputs import Shape
from batchrun.log import LOGGER, LineFormatter
from batchrun.providers.http import check_endpoint, is_loopback
from batchrun.record import Prompt, Settings, State
from batchrun.spool import TABLES
from batchrun.storage.jobdir import JobPaths
from batchrun.summary import Summary, details, headline
from batchrun.template import read_template


class Sections(click.Command):
    """Prints the options in named groups, each from the option that begins it."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        title = ""
        for param in self.get_params(ctx):
            title = SECTIONS.get(param.opts[-1], title)
            if isinstance(param, click.Option) and (row := param.get_help_record(ctx)):
                sections.setdefault(title, []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


SECTIONS = {
    "--output": "Input and output",
    "--provider": "Model",
    "--rps": "Pace",
    "--on-ambiguous": "Resume and doubt",
    "--dry-run": "This run",
    "--quiet": "Screen and log",
    "--help": "Other",
}


class Option(click.Option):
    """Says behind its help what holds without it, not what values it takes."""

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        shown = self.show_default or self.default
        if isinstance(shown, float):
            shown = f"{shown:g}"
        return {"range": str(shown)} if shown and isinstance(shown, str | int) else {}


class Number(click.FloatRange):
    """A number, and not the float that is none."""

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


COUNT = click.IntRange(min=1)
RATE = Number(0.001, 100_000)  # what a clock can keep
READ_RATE = f"{defaults.DEFAULT_READ_RPS:g}, or {defaults.READS_PER_SUBMIT} x --rps if more"
option = partial(click.option, cls=Option)
OF_EVERY_START = (
    option("--deadline", type=deadline, metavar="WHEN", help="stop cleanly at 06:00, or after 5h or 90m; exit 75"),
    option("--collect-only", is_flag=True, help="fetch the answers that are paid for, send nothing"),
    option("-q", "--quiet", is_flag=True, help="errors only"),
    option("-v", "--verbose", is_flag=True, help="log each operation, to stderr unless --log-file is given"),
    option("--log-file", type=PATH, metavar="FILE", help="append the log to this file"),
)


def of_every_start(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options that ``run`` and ``resume`` share."""
    for each in reversed(OF_EVERY_START):
        command = each(command)
    return command


@click.command(cls=Sections, context_settings=SETTINGS)
@click.argument("input", type=PATH)
@option(
    "-o",
    "--output",
    type=PATH,
    metavar="OUTPUT",
    show_default="required",
    help="answers, one JSON object per line, in order of completion",
)
@option(
    "--format",
    type=click.Choice(["auto", *map(str, Shape), *TABLES]),
    default="auto",
    metavar="NAME",
    help=f"what the lines are: {', '.join([*Shape, *TABLES])}",
)
@option("--prompt-column", metavar="NAME", help="field that holds the prompt; all others travel along")
@option(
    "-t", "--template", type=PATH, metavar="FILE", help="Jinja2 template that makes the prompt of a record's fields"
)
@option("--limit", type=COUNT, metavar="N", help="only the first N records")
@option("--strict", is_flag=True, help="refuse the whole input if any line is bad")
@option("--state-dir", type=PATH, metavar="DIR", show_default="OUTPUT.batchrun", help="ledger and lock")
@option(
    "--provider",
    type=click.Choice([*defaults.MODELS]),
    default="yandex",
    metavar="NAME",
    help="yandex, yandex-instruct (its older API), or emulator: a local one that invents answers",
)
@option(
    "-m",
    "--model",
    metavar="NAME",
    show_default=f"{defaults.DEFAULT_MODEL}; general with yandex-instruct",
    help="model, short or as gpt://FOLDER/NAME",
)
@option("-s", "--system", metavar="TEXT|@FILE", help="system message put before each prompt that has none")
@option("--temperature", type=Number(0, 1), metavar="X", help="0 to 1")
@option("--max-tokens", type=COUNT, metavar="N", help="limit of one answer")
@option("--endpoint", metavar="URL", help="another base URL for submissions and operations")
@option(
    "--emulator-faults", default="", metavar="K=V,…", help="what goes wrong with --provider emulator (docs/emulator.md)"
)
@option("--rps", type=RATE, default=defaults.DEFAULT_RPS, metavar="N", help="submissions per second, at most")
@option("--rph", type=COUNT, default=defaults.DEFAULT_RPH, metavar="N", help="submissions in any 60 minutes, at most")
@option("--read-rps", type=RATE, metavar="N", show_default=READ_RATE, help="polls per second, at most")
@option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=defaults.DEFAULT_CONCURRENCY,
    metavar="N",
    help="submissions on their way at once: what a crash can put in doubt",
)
@option(
    "--on-ambiguous",
    type=click.Choice(["resubmit", "hold"]),
    default="resubmit",
    metavar="WHAT",
    help="a submission whose reply was lost: resubmit or hold",
)
@option(
    "--new-run", is_flag=True, allow_from_autoenv=False, help="put the old results aside and pay for everything again"
)
@option(
    "--rebuild-output",
    is_flag=True,
    allow_from_autoenv=False,
    help="the output is gone or edited: fetch again what is missing, send nothing twice",
)
@option(
    "--accept-changed",
    is_flag=True,
    allow_from_autoenv=False,
    help="the input was edited: send the changed lines again and pay for them again",
)
@option(
    "--if-finished",
    type=click.Choice(["keep", "new"]),
    default="keep",
    metavar="WHAT",
    allow_from_autoenv=False,
    help="the job is finished: keep it, or new: put it aside and begin anew",
)
@option("--dry-run", is_flag=True, help="check, count and estimate; send nothing and make no file")
@option("--max-failures", type=share, default="0", metavar="N|P%", help="exit 0 up to so many failed records")
@of_every_start
def run(**options: Any) -> int:
    """Send every record of INPUT once and write the answers to OUTPUT.

    The same command again continues where the last one stopped.

    \b
    Examples:
      batchrun reviews.jsonl -o answers.jsonl -m yandexgpt/latest
      batchrun reviews.jsonl -o answers.jsonl -m yandexgpt/latest --dry-run
      batchrun reviews.jsonl -o first.jsonl --limit 10
      batchrun reviews.csv -o answers.jsonl -t classify.j2
      zcat reviews.jsonl.gz | batchrun - -o answers.jsonl --limit 10
      batchrun reviews.jsonl -o try.jsonl --provider emulator

    Every option can also come from the environment as BATCHRUN_<OPTION>, except --new-run,
    --if-finished, --rebuild-output and --accept-changed.
    """
    config = config_of(options)
    if options["dry_run"]:
        from batchrun.cli.preview import show

        show(config, is_job=True)
        return 0
    start_log(options["log_file"], verbose=options["verbose"])
    return run_job(config, quiet=options["quiet"])


def run_job(config: JobConfig, *, quiet: bool, always_say: bool = False) -> int:
    """Run it, show it where somebody watches, and return the exit code."""
    from batchrun import job

    on_terminal = sys.stderr.isatty() and not quiet
    speaks = on_terminal or always_say
    screen = None  # beside a log on stderr, bars would spoil both
    if on_terminal and not any(getattr(handler, "stream", None) is sys.stderr for handler in LOGGER.handlers):
        from batchrun.cli.screen import show

        screen = show(config)
    config = replace(config, tell=say) if on_terminal else config
    return conclude(job.run(config, os.environ, screen), config, speaks=speaks)


def conclude(summary: Summary, config: JobConfig, *, speaks: bool) -> int:
    """Say how it ended, as far as somebody wants to know. Returns the exit code."""
    if speaks:
        print_summary(summary, config)
    if summary.problem is not None:
        return report_problem(summary.problem)
    if (summary.exit_code or summary.lost_meta) and not speaks:
        say_unwell(summary, config.paths)
    return summary.exit_code or 0


def say_unwell(summary: Summary, paths: JobPaths) -> None:
    """The two lines of a job whose end somebody should know of."""
    say(f"batchrun: {headline(summary)}")
    unsure = [state for state in (State.HELD, State.EXPIRED) if summary.counts[state]]
    if unsure:
        say(f"  batchrun retry {paths.output} --only {unsure[0]} sends them again, and may pay for them twice")
    else:
        say(f"  see {paths.failures}, or: batchrun status {paths.output}")


def print_summary(summary: Summary, config: JobConfig) -> None:
    """What was reached, and where it is."""
    say(f"{headline(summary)}   {duration(summary.seconds)}")
    for line in details(summary):
        say(line)
    if summary.put_aside:
        say(f"the job before is kept as {config.paths.output}{summary.put_aside}")
    say(f"answers  {config.paths.output}")
    if config.paths.failures.exists():
        say(f"failures {config.paths.failures}")


def config_of(options: dict[str, Any]) -> JobConfig:
    """The options, checked as a whole.

    Raises:
        UsageProblem: they do not fit together.
    """
    refuse_unknown_settings(os.environ)
    if options["output"] is None:
        raise UsageProblem("where should the answers go?", remedy="add -o answers.jsonl")
    refuse_strange_text(options)
    if options["output"].is_dir():
        raise UsageProblem(f"{options['output']} is a directory", remedy="name a file with -o")
    if not options["output"].parent.is_dir():
        raise DiskProblem(f"there is no folder {options['output'].parent}", remedy="make it, or choose another -o")
    if options["collect_only"] and (options["new_run"] or options["if_finished"] == "new"):
        raise UsageProblem("--collect-only begins no new job", remedy="leave out --new-run and --if-finished")
    if options["accept_changed"] and options["limit"] is not None:
        raise UsageProblem("--accept-changed is for the whole input", remedy="leave out --limit")
    if options["rebuild_output"] and (options["new_run"] or options["if_finished"] == "new"):
        raise UsageProblem("--rebuild-output is for the job that is there", remedy="leave out --new-run, --if-finished")
    if options["emulator_faults"] and options["provider"] != "emulator":
        raise UsageProblem("--emulator-faults goes with --provider emulator", remedy="leave one of them out")
    if options["provider"] == "emulator":
        settings_of(options["emulator_faults"], "--emulator-faults")
    if options["template"] is not None and options["prompt_column"] is not None:
        raise UsageProblem("both --template and --prompt-column would make the prompt", remedy="leave one of them out")
    template = None if options["template"] is None else read_template(options["template"])
    if template is not None and template.schema is not None and options["provider"] == "yandex-instruct":
        raise UsageProblem(f"{options['template']}: the older API takes no schema", remedy="leave it out of the head")
    asked = Prompt("") if template is None else template.options
    model = options["model"] or asked.model
    endpoint = None if options["endpoint"] is None else check_endpoint(options["endpoint"])
    given = {name: options[name] for name in JobConfig.__dataclass_fields__ if name in options}
    given["read_rps"] = options["read_rps"] or read_rps_for(options["rps"])
    settings = Settings(
        options["provider"],
        model or defaults.MODELS[options["provider"]],
        asked.system if options["system"] is None else system_text(options["system"]),
        asked.temperature if options["temperature"] is None else options["temperature"],
        asked.max_tokens if options["max_tokens"] is None else options["max_tokens"],
        on_this_machine=endpoint is not None and is_loopback(endpoint),
        model_given=model is not None,
        format=options["format"],
        prompt_column=options["prompt_column"],
        template=None if template is None else template.text,
        schema=None if template is None else template.schema,
    )
    return JobConfig(paths=JobPaths.of(options["output"], options["state_dir"]), settings=settings, **given)


def refuse_strange_text(options: dict[str, Any]) -> None:
    """Raise UsageProblem for names and texts that are no UTF-8, and for a log file that is one of the job."""
    for name in ("input", "output", "state_dir", "model", "system", "prompt_column", "template"):
        try:
            str(options[name]).encode()
            if isinstance(options[name], Path):
                options[name].exists()
        except (UnicodeEncodeError, OSError) as error:
            raise UsageProblem(
                f"--{name.replace('_', '-')} cannot be used as it is", remedy="give a name or text in UTF-8 that fits"
            ) from error
    log = options["log_file"]
    if log is not None:
        paths = JobPaths.of(options["output"], options["state_dir"])
        taken = {path.resolve() for path in (options["input"], paths.output, paths.failures)}
        if log.resolve() in taken or paths.state.resolve() in log.resolve().parents or log.is_fifo():
            raise UsageProblem(f"{log} cannot be the log: it is a file of the job, or a pipe", remedy="choose another")


def refuse_unknown_settings(environ: Mapping[str, str]) -> None:
    """Raise UsageProblem for a BATCHRUN_… that no option reads: a typo there would cost money unseen."""
    known = [f"BATCHRUN_{param.name}".upper() for param in run.params]
    for name in environ:
        if name.startswith("BATCHRUN_") and name not in known:
            alike = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {alike[0]}?" if alike else "unset it; batchrun run --help lists the options"
            raise UsageProblem(f"{name} is set, and is no setting of batchrun", remedy=hint)


def system_text(given: str | None) -> str | None:
    """The system message: the text itself, or the contents of ``@FILE``."""
    if given is None or not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(
            f"{given[1:]} cannot be read as UTF-8 text", remedy="name a text file after the @"
        ) from error


def start_log(path: Path | None, *, verbose: bool) -> None:
    """Send events to the file, or with ``-v`` to stderr; without both, nowhere."""
    if path is None and not verbose:
        return
    try:
        handler: logging.Handler = (
            logging.StreamHandler() if path is None else logging.FileHandler(path, encoding="utf-8")
        )
    except OSError as error:
        raise DiskProblem(f"{path} cannot be written", remedy="choose another --log-file") from error
    handler.setFormatter(LineFormatter())
    LOGGER.addHandler(handler)
    logging.getLogger().addHandler(handler)  # what libraries say, redacted as well
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)
