"""``batchrun run``: the default command."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from batchrun.cli.emulator import settings_of
from batchrun.cli.options import OF_RUN, PATH, SETTINGS
from batchrun.cli.report import print_lines, say
from batchrun.config import MODELS, JobConfig, read_rps_for
from batchrun.errors import DiskProblem, UsageProblem
from batchrun.log import LOGGER, LineFormatter
from batchrun.providers.http import check_endpoint, is_loopback
from batchrun.record import Prompt, Settings
from batchrun.storage.jobdir import JobPaths
from batchrun.summary import Summary, details, duration, headline, retry_of_doubtful
from batchrun.template import read_template, text_in


class Sections(click.Command):
    """Prints its options in their sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, options in (*OF_RUN.items(), ("Other", [self.get_help_option(ctx)])):
            with formatter.section(title):
                formatter.write_dl([row for each in options if each and (row := each.get_help_record(ctx))])


@click.command(
    cls=Sections,
    context_settings=SETTINGS,
    params=[click.Argument(["input"], type=PATH), *chain.from_iterable(OF_RUN.values())],
)
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
        from batchrun.cli.preview import preview

        print_lines(preview(config, is_job=True))
        return 0
    start_log(options["log_file"], verbose=options["verbose"])
    return run_job(config, quiet=options["quiet"])


def run_job(config: JobConfig, *, quiet: bool = False, always_say: bool = False) -> int:
    """Run it, show it where somebody watches, say how it ended, and return the exit code.

    Raises:
        BatchrunError: why it ended early.
    """
    from batchrun import job

    on_terminal = sys.stderr.isatty() and not quiet
    screen = None
    if on_terminal:
        config = replace(config, tell=say)
        # beside a log on stderr, bars would spoil both
        if not any(getattr(handler, "stream", None) is sys.stderr for handler in LOGGER.handlers):
            from batchrun.cli.screen import show

            screen = partial(show, config)
    summary = job.run(config, os.environ, screen)
    if on_terminal or always_say:
        print_summary(summary, config)
    elif summary.problem is None and (summary.exit_code or summary.lines_gone):
        say_unwell(summary, config.paths)
    if summary.problem is not None:
        raise summary.problem
    return summary.exit_code or 0


def say_unwell(summary: Summary, paths: JobPaths) -> None:
    """The two lines of a job whose end somebody should know of."""
    say(f"batchrun: {headline(summary)}")
    look = f"see {paths.failures}, or: " * paths.failures.exists() + f"batchrun status {paths.named}"
    say(f"  {retry_of_doubtful(summary, paths.named) or look}")


def print_summary(summary: Summary, config: JobConfig) -> None:
    """What was reached, and where it is."""
    say(f"{headline(summary)}   {duration(summary.seconds)}")
    for line in details(summary):
        say(line)
    say(f"answers  {config.paths.output}")
    if config.paths.failures.exists():
        say(f"failures {config.paths.failures}")
    if again := retry_of_doubtful(summary, config.paths.named):
        say(again)


def config_of(options: dict[str, Any]) -> JobConfig:
    """The options, checked as a whole.

    Raises:
        UsageProblem: they do not fit together.
    """
    given = SimpleNamespace(**options)
    refuse_unknown_settings()
    if given.output is None:
        raise UsageProblem("where should the answers go?", remedy="add -o answers.jsonl")
    if os.path.isdir(given.output):
        raise UsageProblem(f"{given.output} is a directory", remedy="name a file with -o")
    if not os.path.isdir(given.output.parent):
        cause = f"there is no folder {given.output.parent}, or it may not be entered"
        raise DiskProblem(cause, remedy="make it, or choose another -o")
    try:
        "".join(map(str, options.values())).encode()
    except UnicodeEncodeError as error:
        raise UsageProblem("a name or text among the options is not in UTF-8", remedy="give it in UTF-8") from error
    paths = JobPaths.of(given.output, given.state_dir)
    refuse_log(given.log_file, paths, given.input)
    refuse_contradictions(given)
    template = None if given.template is None else read_template(given.template)
    text, asked, schema = (template.text, template.options, template.schema) if template else (None, Prompt(""), None)
    if schema is not None and given.provider == "yandex-instruct":
        raise UsageProblem(f"{given.template}: the older API takes no schema", remedy="leave it out of the head")
    model = given.model or asked.model
    settings = Settings(
        given.provider,
        model or MODELS[given.provider],
        asked.system if given.system is None else system_text(given.system),
        asked.temperature if given.temperature is None else given.temperature,
        asked.max_tokens if given.max_tokens is None else given.max_tokens,
        on_this_machine=given.endpoint is not None and is_loopback(check_endpoint(given.endpoint)),
        model_given=model is not None,
        format=given.format,
        prompt_column=given.prompt_column,
        template=text,
        schema=schema,
    )
    of_the_run = {name: options[name] for name in JobConfig.__dataclass_fields__ if name in options}
    of_the_run["read_rps"] = given.read_rps or read_rps_for(given.rps)
    return JobConfig(paths=paths, settings=settings, **of_the_run)


def refuse_log(path: Path | None, job: JobPaths, *inputs: Path) -> None:
    """Raise UsageProblem for a log that would be written into a file of the job."""
    if path is None:
        return
    log, taken = path.resolve(), {each.resolve() for each in (*inputs, *job.beside_it)}
    if log in taken or job.state.resolve() in log.parents or log.is_fifo():
        raise UsageProblem(f"{path} cannot be the log: it is a file of the job, or a pipe", remedy="choose another")


def refuse_contradictions(given: SimpleNamespace) -> None:
    """Raise UsageProblem for options that cannot be meant together."""
    begins_anew = given.new_run or given.if_finished == "new"
    is_emulated = given.provider == "emulator"
    for is_so, problem in (
        (given.collect_only and begins_anew, "--collect-only begins no new job"),
        (given.collect_only and given.dry_run, "--collect-only sends nothing, so there is nothing to look at"),
        (given.rebuild_output and begins_anew, "--rebuild-output is for the job that is there, and begins no new one"),
        (given.accept_changed and given.limit, "--accept-changed is for the whole input, without --limit"),
        (given.emulator_faults and not is_emulated, "--emulator-faults goes with --provider emulator"),
        (given.endpoint and is_emulated, "--provider emulator and --endpoint name two servers"),
        (
            given.template and given.prompt_column is not None,
            "both --template and --prompt-column would make the prompt",
        ),
    ):
        if is_so:
            raise UsageProblem(problem, remedy="leave out one of them; BATCHRUN_… in the environment counts as well")
    if is_emulated:
        settings_of(given.emulator_faults, "--emulator-faults")


def refuse_unknown_settings() -> None:
    """Raise UsageProblem for a BATCHRUN_… that no option reads: a typo there would cost money unseen."""
    options = [each for each in run.params if isinstance(each, click.Option)]
    is_read = {f"BATCHRUN_{option.name}".upper() for option in options if option.allow_from_autoenv}
    for name in os.environ:
        if name.startswith("BATCHRUN_") and name not in is_read:
            remedy = "unset it; batchrun run --help lists the options, and which are only given by hand"
            raise UsageProblem(f"{name} is set, and is no setting of batchrun", remedy=remedy)


def system_text(given: str) -> str:
    """The system message: the text itself, or the contents of ``@FILE``."""
    return text_in(Path(given[1:]), "-s").strip() if given.startswith("@") else given


def start_log(path: Path | None, *, verbose: bool) -> None:
    """Send events to the file, or with ``-v`` to stderr; without both, nowhere."""
    if path is None and not verbose:
        return
    try:
        handler: logging.Handler = logging.FileHandler(path, encoding="utf-8") if path else logging.StreamHandler()
    except OSError as error:
        raise DiskProblem(f"{path} cannot be written", remedy="choose another --log-file") from error
    handler.setFormatter(LineFormatter())
    LOGGER.addHandler(handler)
    logging.getLogger().addHandler(handler)  # what libraries say, redacted as well
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)
