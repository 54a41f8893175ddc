"""Takes secrets and control characters out of text before anyone reads it (pure)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress

MAX_TEXT_BYTES = 2048
GONE = "[redacted]"

_LOOKED_AT = 16 * MAX_TEXT_BYTES
_SHORTEST_SECRET = 4
_BLANKS = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029][ \t\n\v\f\r\x85\u2028\u2029]*")
_UNPRINTABLE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # terminal colours and cursor moves, whole
    r"|[\x00-\x1f\x7f-\x9f]|[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]|[\ud800-\udfff]"
)
_SECRETS = (
    (r"(?i)(authorization\\?[\"']?\s*[:=,]\s*(?:b?\\?[\"'])?)([\w-]{2,12}\s+)?[^\s\"',;}]+", rf"\1{GONE}"),
    (r"(?i)\b(bearer|api-key)\s+[^\s\"',;}]+", rf"\1 {GONE}"),
    (r"(?<![\w-])AQVN[\w-]{6,}", GONE),  # API keys
    (r"(?<![\w.-])t1\.[\w.=-]{8,}", GONE),  # IAM tokens
    (r"(?<![\w-])y[0-3]_[\w-]{8,}", GONE),  # OAuth tokens
    (r"(?<![\w.-])eyJ[\w-]{4,}\.[\w.-]*", GONE),  # JWT
    (r"(?<![A-Za-z0-9])b1g[a-z0-9]{17}(?![A-Za-z0-9])", GONE),  # folders and clouds
)


_PLAIN = re.compile(r"(?!(?i:.*(?:authorization|bearer|api-key)))(?:(?!AQVN|t1\.|y[0-3]_|eyJ|b1g)[ -~])*+")
"""What no pattern can match: most texts are so, and there are many."""


class Redactor:
    """Redacts, and knows the exact secrets in use: a key of a new shape is caught as well."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: list[str] = []
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """From now on these exact texts are taken out as well, whatever their shape."""
        known = {*self._secrets, *(secret for secret in secrets if len(secret) >= _SHORTEST_SECRET)}
        self._secrets = sorted(known, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text on one line, without secrets and control characters, at most 2 KiB of UTF-8."""
        if len(text) <= MAX_TEXT_BYTES and _PLAIN.fullmatch(text) and not any(map(text.__contains__, self._secrets)):
            return text
        text = _UNPRINTABLE.sub("", _BLANKS.sub(" ", text))  # first: they could split a secret in two
        for secret in self._secrets:
            text = text.replace(secret, GONE)
        text = text[:_LOOKED_AT]
        for pattern, instead in _SECRETS:
            text = re.sub(pattern, instead, text)
        return text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")


ECHO_LENGTH = 12
_ODD = re.compile(r"[\W_]+")
_JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*+"')


def without_echo(message: str, request: str) -> str:
    """The service's message, or a word about it if it quotes the request: prompts go into no log and no ledger.

    ``request`` is JSON; its texts are looked for as they are written there and as they are read, and without what
    redaction may have changed: blanks, and what cannot be seen.
    """
    sent = request
    with suppress(ValueError):
        sent += "\n" + "\n".join(json.loads(text) for text in _JSON_TEXT.findall(request))
    sent, said = _ODD.sub("", sent), _ODD.sub("", message)
    quotes = (said[at : at + ECHO_LENGTH] for at in range(len(said) - ECHO_LENGTH + 1))
    return "the service's message quotes the request" if any(quote in sent for quote in quotes) else message
