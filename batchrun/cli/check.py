"""``batchrun check``: the whole input, before anything is paid for."""

from __future__ import annotations

import os
from pathlib import Path

import click

from batchrun.cli.options import SETTINGS
from batchrun.cli.preview import preview
from batchrun.cli.report import print_lines
from batchrun.cli.run import run
from batchrun.config import DEFAULT_MODEL, JobConfig
from batchrun.inputs import Shape
from batchrun.record import Settings
from batchrun.storage.jobdir import JobPaths
from batchrun.template import read_template

OPTIONS = ("input", "format", "prompt_column", "template", "limit", "strict")


@click.command(context_settings=SETTINGS, params=[each for each in run.params if each.name in OPTIONS])
def check(
    input: Path, format: str, prompt_column: str | None, template: Path | None, limit: int | None, strict: bool
) -> None:
    """Read the whole of INPUT as a run would, and say what is in it and what is wrong. Exit 3 if a run would refuse it.

    \b
    Examples:
      batchrun check reviews.jsonl
      batchrun check reviews.jsonl --strict

    Nothing is sent, and no file is made.
    """
    text = None if template is None else read_template(template).text
    provider = "yandex-instruct" if format == Shape.INSTRUCT else "yandex"
    settings = Settings(provider, DEFAULT_MODEL, format=format, prompt_column=prompt_column, template=text)
    config = JobConfig(input, JobPaths.of(Path(os.devnull)), settings, limit, strict)
    print_lines(preview(config, is_job=False))
