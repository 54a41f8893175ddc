"""``batchrun emulator``: the local server that plays the API."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from batchrun.cli import CONTEXT
from batchrun.cli.options import PATH
from batchrun.emulator import Settings
from batchrun.errors import UsageProblem


@click.command(context_settings=CONTEXT)
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="port on 127.0.0.1  [a free one]")
@click.option("--faults", default="", metavar="K=V,…", help="latency, quotas and faults (docs/emulator.md)")
@click.option("--journal", type=PATH, metavar="FILE", help="keep accepted operations in this file")
def emulator(port: int, faults: str, journal: Path | None) -> None:
    """Serve an imitation of the API on this machine until Ctrl-C. Answers are invented.

    \b
    Example:
      batchrun emulator --port 8080 --faults lost=0.02,refuse=0.03,seed=7
      YC_API_KEY=any YC_FOLDER_ID=any batchrun in.jsonl -o out.jsonl --endpoint http://127.0.0.1:8080
    """
    from batchrun.job import loop_factory

    settings = settings_of(faults, "--faults")
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serve(settings, port, journal))
    except (OSError, ValueError) as error:
        raise UsageProblem(f"the emulator cannot start: {error}", remedy="another --port or --journal") from error


async def serve(settings: Settings, port: int, journal: Path | None) -> None:
    """Serve until SIGINT or SIGTERM. The first line on stdout is ``listening on http://127.0.0.1:N``."""
    from batchrun.emulator.server import start

    stopped = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    async with start(settings, port=port, journal=journal) as url:
        print(f"listening on {url}", flush=True)
        await stopped.wait()


def settings_of(text: str, option: str) -> Settings:
    """The faults an option names.

    Raises:
        UsageProblem: the emulator does not know one of them.
    """
    try:
        return Settings.parse(text)
    except ValueError as error:
        raise UsageProblem(f"{option}: {error}", remedy="docs/emulator.md lists them") from error
