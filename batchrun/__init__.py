"""Send files of prompts to an asynchronous LLM API; get every answer once, crash or no crash."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchrun.api import Client, MaybeAccepted, Operation, OperationFailed, OperationStatus, run_job
    from batchrun.errors import BatchrunError, TryLater

__version__ = "0.1.0"
__all__ = [
    "BatchrunError",
    "Client",
    "MaybeAccepted",
    "Operation",
    "OperationFailed",
    "OperationStatus",
    "TryLater",
    "run_job",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """The public names are loaded when they are used: a command needs none of them."""
        if name not in __all__:
            raise AttributeError(f"module 'batchrun' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("batchrun.api"), name)
