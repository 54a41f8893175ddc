"""One log line is a fixed event name plus fields: never a prompt's text, never a key."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from batchrun.redact import Redactor

LOGGER = logging.getLogger("batchrun")
LOGGER.addHandler(logging.NullHandler())
LOGGER.propagate = False

redact = Redactor()
"""What every log line and message goes through."""
keep_secret = redact.learn


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event: DEBUG for one operation or request, INFO for the job, WARNING for what a person may need."""
    LOGGER.log(level, name, extra={"fields": fields})


class LineFormatter(logging.Formatter):
    """``2026-11-22T14:03:01.123Z INFO first_post line=1``; redacted, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = getattr(record, "fields", {})
        tail = "".join(f" {name}={json.dumps(value, default=str)}" for name, value in fields.items())
        line = redact(f"{stamp}.{int(record.msecs):03d}Z {record.levelname} {record.getMessage()}{tail}")
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    {redact(part)}" for part in trace)
        return line
