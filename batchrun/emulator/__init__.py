"""A local server that plays the asynchronous text-generation API of Yandex Cloud AI Studio, faults on demand.

It is written from the published wire format alone and imports nothing else of ``batchrun``: the clients'
second opinion. Importing this package does not import aiohttp; starting a server does.
"""

from .faults import Settings
from .serving import serve_forever, start

__all__ = ["Settings", "serve_forever", "start"]
