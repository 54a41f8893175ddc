"""The command line: one file per verb, each of which parses, calls, prints, and leaves with an exit code."""

from __future__ import annotations

import difflib
import logging
import os
import resource
import sys
from collections.abc import Callable
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

import click

import batchrun
from batchrun.cli.report import report_bug, report_problem, say
from batchrun.errors import DISK, BatchrunError, UsageProblem
from batchrun.log import keep_secret, redact

VERBS = {
    "run": "send a file; what is done when no command is named",
    "resume": "continue a job, or every unfinished job below a folder, with its stored settings",
    "retry": "send failed, held or expired records again",
    "check": "read the whole input and say what is wrong with it; send nothing",
    "status": "progress, failures and what to do next, from any terminal",
    "verify": "prove that input, ledger and output agree",
    "export": "answers as jsonl, openai, yandex-dataset, csv or txt",
    "demo": "200 prompts through the local emulator, with faults",
    "emulator": "local server that plays the API, with faults on demand",
}
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 96}


class Verbs(click.Group):
    """Loads a verb when it is called, and runs ``run`` when none is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        command: click.Command | None = getattr(import_module(f"batchrun.cli.{name}"), name) if name in VERBS else None
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {*VERBS, "-h", "--help", "-V", "--version"}
        if args and args[0] not in own:
            self._refuse_typo(args[0])
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def _refuse_typo(self, word: str) -> None:
        """A lone word that is no file was meant as a command."""
        if word.startswith("-") or any(mark in word for mark in "./\\") or os.path.exists(word):
            return
        alike = difflib.get_close_matches(word, VERBS, n=1)
        hint = f"did you mean: batchrun {alike[0]}" if alike else "batchrun --help lists the commands"
        raise UsageProblem(f"no command and no file is called '{word}'", remedy=hint)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings=CONTEXT, invoke_without_command=False)
@click.version_option(batchrun.__version__, "-V", "--version", message="batchrun %(version)s")
def cli() -> None:
    """Send files of prompts to an asynchronous LLM API; get every answer once, crash or no crash.

    \b
      batchrun prompts.jsonl -o answers.jsonl   same as: batchrun run prompts.jsonl -o answers.jsonl
      batchrun status answers.jsonl             how far it is, what is wrong, what to do next

    Run the same command again to continue. 'batchrun run --help' lists all options.
    """


def main() -> None:
    """The console script."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the key and the prompts
    logging.raiseExceptions = False  # a log that cannot be written is no reason to say so on the screen
    logging.getLogger().addHandler(logging.NullHandler())  # else warnings of libraries go to stderr as they are
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the start
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  it stays open as long as the process
        if isinstance(stream := getattr(sys, name), TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    keep_secret(os.environ.get(name, "").strip() for name in ("YC_API_KEY", "YC_IAM_TOKEN", "YC_FOLDER_ID"))
    code = exit_code_of(lambda: cli.main(prog_name="batchrun", standalone_mode=False))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads any more: that must not change the exit code
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def exit_code_of(command: Callable[[], int | None], about: Path | None = None) -> int:
    """Do it. Whatever ends it early is told in words. ``about``: the output of the job, if it is one of several."""
    try:
        return command() or 0
    except SystemExit:  # click's, when a pipe broke: of `status | head`, the reader has seen enough
        return 0
    except click.exceptions.NoArgsIsHelpError as problem:
        problem.show()
        return problem.exit_code
    except click.ClickException as problem:
        say(f"error: {redact(problem.format_message())}")
        say("  batchrun COMMAND --help lists what there is; options also come from the environment (BATCHRUN_RPS)")
        return problem.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BatchrunError as problem:
        return report_problem(problem, about)
    except OSError as error:
        say(f"error: {redact(str(error.filename or 'the output'))}: {os.strerror(error.errno or 0)}")
        say("  see to the disk or the file, then run the same command")
        return DISK
    except Exception as bug:
        return report_bug(bug)
