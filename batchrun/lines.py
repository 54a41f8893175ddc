"""Lines of JSON in a file of bytes: where each begins, what it says, and what is no such file at all (pure).

``LineSplitter`` makes lines of blocks of bytes; ``strict_json`` makes a value of a line or says in plain words why
not; ``sniff`` recognises, before any line is read, a file that holds no lines of JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from typing import Any, NamedTuple, NoReturn

import orjson

from batchrun.record import JsonObject

MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_NESTING = 64
_TOO_DEEP = f"nested deeper than {MAX_NESTING} levels"
_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\r\n"  # what JSON calls whitespace, and nothing else


class BadLine(Exception):
    """One line cannot be used. ``column`` is the byte in the line, from 1, where it has a place.

    ``remedy``: what to do if the whole file is like that.
    """

    def __init__(self, reason: str, column: int | None = None, *, remedy: str | None = None) -> None:
        super().__init__(reason, column)
        self.reason = reason
        self.column = column
        self.remedy = remedy

    def __str__(self) -> str:
        return self.reason if self.column is None else f"{self.reason} at byte {self.column}"


# --- lines --------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One line without its LF, a CR before it, and a BOM at the start of the file.

    ``number`` counts from 1; ``raw`` begins at ``offset`` in the file, and is empty when ``too_long``.
    """

    number: int
    offset: int
    raw: bytes
    too_long: bool


class LineSplitter:
    """Cuts blocks of bytes into lines, at LF only; holds at most ``MAX_LINE_BYTES`` and one block.

    ``position`` is the (number, offset) of the line that has not ended yet.
    """

    def __init__(self, *, offset: int = 0, number: int = 1) -> None:
        """``offset``: where in the file the first block begins; it is the start of line ``number``."""
        self.position = number, offset
        self._held: list[bytes] = []  # the beginning of the line that has no LF yet
        self._held_bytes = 0  # its true length: what is over the limit is counted, not kept

    def feed(self, block: bytes) -> list[Line]:
        """The lines that end in this block."""
        *ended, rest = block.split(b"\n")
        lines, (number, offset) = list[Line](), self.position
        for raw in ended:
            size = len(raw)
            if self._held_bytes:  # it began in an earlier block
                self._hold(raw)
                raw, size = b"".join(self._held), self._held_bytes
                self._held, self._held_bytes = [], 0
            if too_long := size > MAX_LINE_BYTES:
                raw = b""
            elif offset == 0 and raw.startswith(_BOM):
                raw, offset, size = raw[len(_BOM) :], len(_BOM), size - len(_BOM)
            lines.append(Line(number, offset, raw.removesuffix(b"\r"), too_long))
            number, offset = number + 1, offset + size + 1
        self.position = number, offset
        self._hold(rest)
        return lines

    def end(self) -> list[Line]:
        """The last line, when no LF ends it."""
        return self.feed(b"\n") if self._held_bytes else []

    def _hold(self, piece: bytes) -> None:
        self._held_bytes += len(piece)
        if self._held_bytes > MAX_LINE_BYTES:
            self._held.clear()
        else:
            self._held.append(piece)


def digest(raw: bytes) -> bytes:
    """16 bytes that tell whether a line is still the one that was sent."""
    return hashlib.blake2b(raw, digest_size=16).digest()


# --- strict JSON --------------------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise BadLine(f"'{shown(twice)}' is given twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise BadLine("an integer is over 64 bits: write it as a text, in quotes")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise BadLine("a number is too large: write it as a text, in quotes")
    return number


def _constant(name: str) -> NoReturn:
    raise BadLine(f"not JSON: {name} is not a JSON number, write null")


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
)

_UP_TO_LONE_SURROGATE = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*+", re.DOTALL
)


def strict_json(raw: bytes) -> Any:
    """The one JSON value of a line, exactly as written: nothing rounded, dropped or repaired.

    The fast parser finds nothing else wrong than the slow one, but does not see keys given twice, and rounds integers
    over 64 bits. Where it may have done so, or refuses, the slow one says what is wrong.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _slowly(raw)
    quotes = raw.count(b'"')
    if b"\\" in raw:
        quotes -= raw.replace(rb"\\", b"").count(rb"\"")
    return value if 2 * _texts(value, MAX_NESTING) == quotes else _slowly(raw)


def _slowly(raw: bytes) -> Any:
    try:
        text = raw.decode()
    except UnicodeDecodeError as exc:
        raise BadLine(f"not UTF-8: wrong byte 0x{raw[exc.start]:02x}", exc.start + 1) from None
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as exc:
        reason, at = _what_is_wrong(text, exc)
        raise BadLine(f"not JSON: {reason}", len(text[:at].encode()) + 1) from None
    except RecursionError:
        raise BadLine(_TOO_DEEP) from None
    _texts(value, MAX_NESTING)
    good = _UP_TO_LONE_SURROGATE.match(raw)
    if good and good.end() < len(raw):
        raise BadLine(r"half of a \ud800-\udfff pair: it is no character", good.end() + 1)
    return value


def _texts(value: Any, levels: int) -> float:
    """How many texts a value holds, keys among them: fewer than the line if a key was given twice.

    Minus infinity if a number may have been an integer over 64 bits, which the fast parser rounds.

    Raises:
        BadLine: The value has more levels than these.
    """
    kind = type(value)
    if kind is str:
        return 1
    if kind is dict or kind is list:
        if not levels:
            raise BadLine(_TOO_DEEP)
        found: float = len(value) if kind is dict else 0
        for each in value.values() if kind is dict else value:
            found += 1 if type(each) is str else 0 if type(each) is int else _texts(each, levels - 1)
        return found
    return -math.inf if kind is float and abs(value) >= 2**63 else 0


def _what_is_wrong(text: str, error: json.JSONDecodeError) -> tuple[str, int]:
    """The parser's complaint, and the character it is about; what cannot be seen on a screen has words of ours."""
    if error.msg.startswith("Unterminated") or not text[error.pos :].strip(_SPACE):
        return "unexpected end of line", len(text)
    if text.startswith("\ufeff", error.pos):
        return "a byte order mark (U+FEFF): remove it", error.pos
    if error.msg.startswith("Invalid control"):
        return r"a raw control character inside a text (a tab is written \t)", error.pos
    return error.msg[0].lower() + error.msg[1:], error.pos


def shown(key: str, most: int = 40) -> str:
    """A key as it may stand in a message: cut, and without anything a terminal would obey."""
    cut = key if len(key) <= most else key[:most] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


# --- the whole file -----------------------------------------------------------------------------------------

_FORMATS = (
    (b"\x1f\x8b", "a gzip file: name it .gz, or unpack it"),
    (b"PK\x03\x04", "a zip file (or a spreadsheet): save the records as JSONL"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: name it .zst, or unpack it"),
    (b"\x00\x00\x00\x00", "zero bytes: the file was not written to its end, make it again"),
)
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a]")
_CUT_BY_CR = re.compile(rb"""[}"][ \t]*\r\s*[{"]""")  # inside of JSON, a comma or a colon stands between
_QUOTED_COLUMN = re.compile(rb'"(?:[^"\\]|\\.|"")*+"[ \t]*[,;\t]', re.DOTALL)


def sniff(head: bytes) -> str | None:
    """Why a file is no JSONL at all, from its first 4 KiB; ``None``: nothing speaks against it.

    One broken line is none of its business, and a file whose first line is a record always passes.
    """
    for magic, reason in _FORMATS:
        if head.startswith(magic):
            return reason
    if b"\0" in head[:4] or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        bits = 32 if b"\0\0" in head[:4] else 16
        return f"UTF-{bits} text: save it as UTF-8"
    text = head.lstrip(_BOM + b" \t\r\n")
    first, *others = [line.strip(b" \t\r") for line in text.split(b"\n")]
    if first.startswith(b"["):
        return "one JSON array: put one object on each line"
    if others and first.startswith(b"{") and first.endswith((b"{", b"[", b",", b":")):
        return "pretty-printed JSON: put one object on each line"
    if not others and _CUT_BY_CR.search(first):
        return "line ends are CR only: convert the line ends to LF"
    if not first or first.startswith(b"{") or any(line.startswith(b"{") for line in others):
        return None
    if _NO_TEXT.search(head):
        return "binary data: save the records as JSONL"
    if _QUOTED_COLUMN.match(first) or (not first.startswith(b'"') and re.search(rb"[,;\t]", first)):
        return "looks like CSV: name it .csv or .tsv, or name its --format"
    if not first.startswith(b'"'):
        return "looks like plain text: write each prompt as a JSON text on its own line"
    return None
