"""``batchrun check``: the whole input, before anything is paid for."""

from __future__ import annotations

import os
from typing import Any

import click

from batchrun.cli.options import SETTINGS
from batchrun.cli.preview import preview
from batchrun.cli.report import print_lines
from batchrun.cli.run import config_of, run
from batchrun.inputs import Shape

OPTIONS = ("input", "format", "prompt_column", "template", "limit", "strict")


@click.command(context_settings=SETTINGS, params=[each for each in run.params if each.name in OPTIONS])
def check(**options: Any) -> None:
    """Read the whole of INPUT as a run would, and say what is in it and what is wrong. Exit 3 if a run would refuse it.

    \b
    Examples:
      batchrun check reviews.jsonl
      batchrun check reviews.jsonl --strict

    Nothing is sent, and no file is made.
    """
    words = ["-o", os.devnull, "--provider", "yandex-instruct" if options["format"] == Shape.INSTRUCT else "yandex"]
    as_run = run.make_context("run", [*words, "--", os.devnull], auto_envvar_prefix=None).params
    print_lines(preview(config_of(as_run | options), is_job=False))
