"""A local server that plays the asynchronous text-generation API of Yandex Cloud AI Studio, faults on demand.

It is written from the published wire format alone and imports nothing else of ``batchrun``: the clients'
second opinion. Importing this package does not import aiohttp; starting a server does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .faults import Settings

if TYPE_CHECKING:
    from .serving import serve_forever, start

__all__ = ["Settings", "serve_forever", "start"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    return getattr(import_module(".serving", __name__), name)
