"""What the unit tests of the providers share."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aioresponses import aioresponses

_WANTS_WRITER = "stream_writer" in inspect.signature(aiohttp.ClientResponse.__init__).parameters


class _MockedResponse(aiohttp.ClientResponse):
    """aioresponses 0.7 does not know this parameter of aiohttp 3.14, and every mocked reply would raise."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if _WANTS_WRITER:
            kwargs.setdefault("stream_writer", Mock(output_size=0))
        super().__init__(*args, **kwargs)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    """Plays the service without a socket: only complete answers, and errors before anything left."""
    monkeypatch.setattr("aioresponses.core.ClientResponse", _MockedResponse)
    with aioresponses() as mocked:
        yield mocked
