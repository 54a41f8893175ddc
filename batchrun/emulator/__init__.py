"""A local server that plays the asynchronous text-generation API of Yandex Cloud AI Studio, faults on demand.

It is written from the published wire format alone and imports nothing else of ``batchrun``: the clients'
second opinion. Importing this package does not import aiohttp; starting a server does.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from .faults import Settings

if TYPE_CHECKING:
    from .serving import Emulator as Emulator

__all__ = ["Settings", "serve_forever", "start"]


async def start(
    settings: Settings, *, host: str = "127.0.0.1", port: int = 0, journal: Path | None = None
) -> "Emulator":
    """Start an emulator in this event loop: ``async with await start(Settings()) as emulator: emulator.url``.

    Args:
        port: 0 takes a free one.
        journal: Accepted operations are kept in this file and read back from it; without it they die with
            the process.
    Raises:
        ValueError: ``host`` is not a loopback address, or the journal is none.
        OSError: the port is taken, or the journal cannot be opened.
    """
    from .serving import Emulator

    return await Emulator.start(settings, host=host, port=port, journal=journal)


def serve_forever(settings: Settings, *, host: str, port: int, journal: Path | None) -> None:
    """Serve until SIGINT or SIGTERM. The first line on stdout is ``listening on http://127.0.0.1:N``."""
    from .serving import serve_forever

    serve_forever(settings, host=host, port=port, journal=journal)
