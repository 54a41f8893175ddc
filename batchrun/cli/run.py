"""``batchrun run``: the default command."""

from __future__ import annotations

import difflib
import logging
import math
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import click
from click.types import OptionHelpExtra

from batchrun import config as defaults
from batchrun.cli.emulator import settings_of
from batchrun.cli.report import report_problem, say
from batchrun.config import JobConfig, read_rps_for
from batchrun.errors import DiskProblem, UsageProblem
from batchrun.log import LOGGER, LineFormatter
from batchrun.providers.http import check_endpoint, is_loopback
from batchrun.record import OnAmbiguous, Settings
from batchrun.storage.jobdir import JobPaths
from batchrun.summary import Summary, details, headline


class Sections(click.Command):
    """Prints the options in named groups; a group that names none gets the rest."""

    def __init__(self, *args: Any, sections: dict[str, tuple[str, ...]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rest = {option.name: option for option in self.get_params(ctx) if isinstance(option, click.Option)}
        for title, names in self.sections.items():
            options = [rest.pop(name) for name in names] or list(rest.values())
            rows = [row for option in options if (row := option.get_help_record(ctx))]
            with formatter.section(title):
                formatter.write_dl(rows)


SECTIONS = {
    "Input and output": ("output", "limit", "strict", "state_dir"),
    "Model": ("provider", "model", "system", "temperature", "max_tokens", "endpoint", "emulator_faults"),
    "Pace": ("rps", "rph", "read_rps", "concurrency"),
    "Resume and doubt": ("on_ambiguous", "new_run"),
    "Screen and log": ("quiet", "verbose", "log_file"),
    "Other": (),
}


class Option(click.Option):
    """Says in its own words what values it takes, without click's ranges behind them."""

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


option = partial(click.option, cls=Option)


class Rate(click.FloatRange):
    """A number of requests per second that a clock can keep."""

    def __init__(self) -> None:
        super().__init__(min=0.001, max=100_000)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        rate = super().convert(value, param, ctx)
        if math.isnan(rate):
            self.fail("is not a number", param, ctx)
        return rate


@click.command(
    cls=Sections,
    sections=SECTIONS,
    context_settings={"auto_envvar_prefix": "BATCHRUN", "max_content_width": 96, "help_option_names": ["-h", "--help"]},
)
@click.argument("input", type=click.Path(path_type=Path))
@option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUTPUT",
    help="answers, one JSON object per line, in order of completion  [required]",
)
@option("--limit", type=click.IntRange(min=1), metavar="N", help="only the first N records")
@option("--strict", is_flag=True, help="refuse the whole input if any line is bad")
@option("--state-dir", type=click.Path(path_type=Path), metavar="DIR", help="ledger and lock  [OUTPUT.batchrun]")
@option(
    "--provider",
    type=click.Choice(["yandex", "emulator"]),
    default="yandex",
    metavar="NAME",
    help="yandex, or emulator: a local one that invents answers  [yandex]",
)
@option(
    "-m",
    "--model",
    default=defaults.DEFAULT_MODEL,
    metavar="NAME",
    help=f"model, short or as gpt://FOLDER/NAME  [{defaults.DEFAULT_MODEL}]",
)
@option("-s", "--system", metavar="TEXT|@FILE", help="system message put before each prompt that has none")
@option("--temperature", type=click.FloatRange(0, 1), metavar="X", help="0 to 1")
@option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="limit of one answer")
@option("--endpoint", metavar="URL", help="another base URL for submissions and operations")
@option(
    "--emulator-faults", default="", metavar="K=V,…", help="what goes wrong with --provider emulator (docs/emulator.md)"
)
@option(
    "--rps",
    type=Rate(),
    default=defaults.DEFAULT_RPS,
    metavar="N",
    help=f"submissions per second, at most  [{defaults.DEFAULT_RPS:g}]",
)
@option(
    "--rph",
    type=click.IntRange(min=1),
    default=defaults.DEFAULT_RPH,
    metavar="N",
    help=f"submissions in any 60 minutes, at most  [{defaults.DEFAULT_RPH}]",
)
@option(
    "--read-rps",
    type=Rate(),
    metavar="N",
    help=f"polls per second, at most  [{defaults.DEFAULT_READ_RPS:g}, or {defaults.READS_PER_SUBMIT} x --rps if more]",
)
@option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=defaults.DEFAULT_CONCURRENCY,
    metavar="N",
    help=f"submissions on their way at once: what a crash can put in doubt  [{defaults.DEFAULT_CONCURRENCY}]",
)
@option(
    "--on-ambiguous",
    type=click.Choice(["resubmit", "hold"]),
    default="resubmit",
    metavar="WHAT",
    help="a submission whose reply was lost: resubmit or hold  [resubmit]",
)
@option(
    "--new-run", is_flag=True, allow_from_autoenv=False, help="put the old results aside and pay for everything again"
)
@option("-q", "--quiet", is_flag=True, help="errors only")
@option("-v", "--verbose", is_flag=True, help="log each operation, to stderr unless --log-file is given")
@option("--log-file", type=click.Path(path_type=Path), metavar="FILE", help="append the log to this file")
def run(**options: Any) -> None:
    """Send every record of INPUT once and write the answers to OUTPUT.

    The same command again continues where the last one stopped.

    \b
    Examples:
      batchrun reviews.jsonl -o answers.jsonl -m yandexgpt/latest
      batchrun reviews.jsonl -o first.jsonl --limit 10
      batchrun reviews.jsonl -o try.jsonl --provider emulator

    Every option can also come from the environment as BATCHRUN_<OPTION>, except --new-run.
    """
    config = config_of(options)
    start_log(options["log_file"], verbose=options["verbose"])
    sys.exit(run_job(config, quiet=options["quiet"]))


def run_job(config: JobConfig, *, quiet: bool, always_say: bool = False) -> int:
    """Run it, show it where somebody watches, and return the exit code."""
    from batchrun import job

    on_terminal = sys.stderr.isatty() and not quiet
    screen = None
    if on_terminal and not any(isinstance(handler, TerminalHandler) for handler in LOGGER.handlers):
        from batchrun.cli.screen import show

        screen = show(config)
    summary = job.run(config, os.environ, screen)
    speaks = on_terminal or always_say
    if speaks:
        print_summary(summary, config)
    if summary.problem is not None:
        return report_problem(summary.problem)
    if summary.exit_code and not speaks:
        say(f"batchrun: {headline(summary)}")
        say(f"  see {config.paths.failures}, or: batchrun status {config.paths.output}")
    return summary.exit_code or 0


def print_summary(summary: Summary, config: JobConfig) -> None:
    """What was reached, and where it is."""
    say(f"{headline(summary)}   {_duration(summary.seconds)}")
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
    if options["emulator_faults"] and options["provider"] != "emulator":
        raise UsageProblem("--emulator-faults goes with --provider emulator", remedy="leave one of them out")
    if options["provider"] == "emulator":
        settings_of(options["emulator_faults"], "--emulator-faults")
    endpoint = None if options["endpoint"] is None else check_endpoint(options["endpoint"])
    on_ambiguous: OnAmbiguous = options["on_ambiguous"]
    return JobConfig(
        input=options["input"],
        paths=JobPaths.of(options["output"], options["state_dir"]),
        settings=Settings(
            options["provider"],
            options["model"],
            system_text(options["system"]),
            options["temperature"],
            options["max_tokens"],
            on_this_machine=endpoint is not None and is_loopback(endpoint),
        ),
        limit=options["limit"],
        strict=options["strict"],
        new_run=options["new_run"],
        endpoint=options["endpoint"],
        emulator_faults=options["emulator_faults"],
        rps=options["rps"],
        rph=options["rph"],
        read_rps=options["read_rps"] or read_rps_for(options["rps"]),
        concurrency=options["concurrency"],
        on_ambiguous=on_ambiguous,
    )


def refuse_strange_text(options: dict[str, Any]) -> None:
    """Raise UsageProblem for names and texts that are no UTF-8, for a temperature that is no number, and for a log
    file that is the input or the output."""
    for name in ("input", "output", "state_dir", "model", "system"):
        try:
            str(options[name]).encode()
            if isinstance(options[name], Path):
                options[name].exists()
        except (UnicodeEncodeError, OSError) as error:
            raise UsageProblem(
                f"--{name.replace('_', '-')} cannot be used as it is", remedy="give a name or text in UTF-8 that fits"
            ) from error
    if options["temperature"] is not None and math.isnan(options["temperature"]):
        raise UsageProblem("--temperature is not a number", remedy="give one from 0 to 1")
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


class TerminalHandler(logging.StreamHandler[TextIO]):
    """The log on stderr: bars beside it would spoil both."""


def start_log(path: Path | None, *, verbose: bool) -> None:
    """Send events to the file, or with ``-v`` to stderr; without both, nowhere."""
    if path is None and not verbose:
        return
    try:
        handler = TerminalHandler() if path is None else logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise DiskProblem(f"{path} cannot be written", remedy="choose another --log-file") from error
    handler.setFormatter(LineFormatter())
    LOGGER.addHandler(handler)
    logging.getLogger().addHandler(handler)  # what libraries say, redacted as well
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
