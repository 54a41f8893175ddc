"""A local server that plays the asynchronous text-generation API of Yandex Cloud AI Studio, faults on demand.

It is written from the published wire format alone and imports nothing else of ``batchrun``: the clients'
second opinion. Importing this package does not import aiohttp; ``batchrun.emulator.server`` does.
"""

from .faults import Settings

__all__ = ["Settings"]
