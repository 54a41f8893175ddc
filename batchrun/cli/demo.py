"""``batchrun demo``: 200 prompts through the local emulator, some replies lost on purpose."""

from __future__ import annotations

from pathlib import Path

import click

import batchrun
from batchrun.cli import CONTEXT
from batchrun.cli.report import say
from batchrun.cli.run import config_of, run, run_job

OUTPUT = Path("demo/out.jsonl")
FAULTS = "lost=0.02,refuse=0.01,seed=7"
RPS = "40"


@click.command(context_settings=CONTEXT)
def demo() -> int:
    """Send 200 sample prompts to a server on this machine that loses 2 % of its replies.

    Nothing leaves this machine and no account is needed. The answers are invented.
    """
    OUTPUT.parent.mkdir(exist_ok=True)
    prompts = sample_prompts()
    words = [str(prompts), "-o", str(OUTPUT), "--provider", "emulator", "--emulator-faults", FAULTS, "--rps", RPS]
    if OUTPUT.exists():
        say("demo/ is there already: this goes on with it; rm -r demo begins anew")
    say(f"batchrun {' '.join(words)}")
    say("the emulator runs in this process, loses 2 % of its replies on purpose, and invents the answers")
    code = run_job(config_of(run.make_context("run", words, auto_envvar_prefix=None).params), always_say=True)
    say("for real answers: README, 'Use it'")
    return code


def sample_prompts() -> Path:
    """The sample input: in the checkout, or inside the installed package."""
    package = Path(batchrun.__file__).parent
    beside = package.parent / "sample_inputs" / "prompts.jsonl"
    path = beside if beside.exists() else package / "sample_inputs" / "prompts.jsonl"
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
