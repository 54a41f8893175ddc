"""A line of the input file: where it stands, what it asks, or why it is bad (pure).

``LineSplitter`` makes lines of blocks of bytes; ``parse`` makes a prompt of a line or says in plain words
why not; ``sniff`` recognises, before any line is read, a file that holds no lines of JSON.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from batchrun.record import JsonObject, Prompt, RecordId

MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_NESTING = 64
MAX_ID_BYTES = 256
_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\r\n"  # what JSON calls whitespace, and nothing else


class BadLine(Exception):
    """One line cannot be used. ``column`` is the byte in the line, from 1, where it has a place."""

    def __init__(self, reason: str, column: int | None = None) -> None:
        super().__init__(reason, column)
        self.reason = reason
        self.column = column

    def __str__(self) -> str:
        return self.reason if self.column is None else f"{self.reason} at byte {self.column}"


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a good line says. ``meta`` holds every field that is neither the id nor part of the prompt."""

    id: RecordId
    prompt: Prompt
    meta: JsonObject


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

    Args:
        offset: Where in the file the first block begins; it is the start of a line.
        number: The number of that line.
    """

    def __init__(self, *, offset: int = 0, number: int = 1) -> None:
        self._offset = offset
        self._number = number
        self._held: list[bytes] = []  # the beginning of the line that has no LF yet
        self._held_bytes = 0  # its true length: what is over the limit is counted, not kept

    def feed(self, block: bytes) -> list[Line]:
        """The lines that end in this block."""
        pieces = block.split(b"\n")
        rest = pieces.pop()
        if not pieces:
            self._hold(rest)
            return []
        self._hold(pieces[0])
        lines = [self._held_line()]
        offset, number = self._offset, self._number
        for raw in pieces[1:]:
            size = len(raw)
            if size > MAX_LINE_BYTES:
                lines.append(Line(number, offset, b"", True))
            else:
                lines.append(Line(number, offset, raw[:-1] if raw.endswith(b"\r") else raw, False))
            offset += size + 1
            number += 1
        self._offset, self._number = offset, number
        self._hold(rest)
        return lines

    @property
    def position(self) -> tuple[int, int]:
        """(number, offset) of the line that has not ended yet."""
        return self._number, self._offset

    def end(self) -> list[Line]:
        """The last line, when no LF ends it."""
        return [self._held_line()] if self._held_bytes else []

    def _hold(self, piece: bytes) -> None:
        self._held_bytes += len(piece)
        if self._held_bytes > MAX_LINE_BYTES:
            self._held.clear()
        elif piece:
            self._held.append(piece)

    def _held_line(self) -> Line:
        raw, size, offset, number = b"".join(self._held), self._held_bytes, self._offset, self._number
        self._held.clear()
        self._held_bytes = 0
        self._offset += size + 1
        self._number += 1
        if size > MAX_LINE_BYTES:
            return Line(number, offset, b"", True)
        if offset == 0 and raw.startswith(_BOM):
            raw, offset = raw[len(_BOM) :], len(_BOM)
        return Line(number, offset, raw.removesuffix(b"\r"), False)


def is_blank(raw: bytes) -> bool:
    """Whether a line holds nothing but spaces, tabs and CR: it is counted, and is no record."""
    return not raw.strip(b" \t\r")


def digest(raw: bytes) -> bytes:
    """16 bytes that tell whether a line is still the one that was sent."""
    return hashlib.blake2b(raw, digest_size=16).digest()


# --- strict JSON --------------------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise BadLine(f"'{_shown(twice)}' is given twice in one object")
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


_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
).raw_decode

_TEXT_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[][{}]', re.DOTALL)
_UP_TO_LONE_SURROGATE = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*+", re.DOTALL
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _strict_json(raw: bytes) -> Any:
    """The one JSON value of a line, exactly as written: nothing rounded, dropped or repaired."""
    if raw.count(b"{") + raw.count(b"[") > MAX_NESTING:
        _check_nesting(raw)
    try:
        text = raw.decode()
    except UnicodeDecodeError as exc:
        raise BadLine(f"not UTF-8: wrong byte 0x{raw[exc.start]:02x}", exc.start + 1) from None
    if text.startswith("\ufeff"):
        raise BadLine("a byte order mark (U+FEFF) where a record begins: remove it", 1)
    start = 0 if text.startswith("{") else len(text) - len(text.lstrip(_SPACE))
    try:
        value, end = _decode(text, start)
    except json.JSONDecodeError as exc:
        reason, at = _what_is_wrong(text, exc.pos, exc.msg)
        raise BadLine(f"not JSON: {reason}", _column(text, at)) from None
    if end != len(text) and (rest := text[end:].lstrip(_SPACE)):
        raise BadLine(f"not JSON: {_what_follows(rest)}", _column(text, len(text) - len(rest)))
    if b"\\ud" in raw or b"\\uD" in raw:
        _check_surrogates(raw)
    return value


def _check_nesting(raw: bytes) -> None:
    depth = 0
    for found in _TEXT_OR_BRACKET.finditer(raw):
        match found[0]:
            case b"{" | b"[":
                depth += 1
                if depth > MAX_NESTING:
                    raise BadLine(f"nested deeper than {MAX_NESTING} levels", found.start() + 1)
            case b"}" | b"]":
                depth -= 1


def _check_surrogates(raw: bytes) -> None:
    good = _UP_TO_LONE_SURROGATE.match(raw)
    if good and good.end() < len(raw):
        raise BadLine(r"half of a \ud800-\udfff pair: it is no character", good.end() + 1)


_REASONS = (
    ("Expecting property name", "expected a key in double quotes"),
    ("Expecting ':'", "expected a colon after the key"),
    ("Expecting ','", r"expected a comma or a closing bracket (a quote inside a text is written \")"),
    ("Invalid \\", r"wrong escape after a backslash (a backslash itself is written \\)"),
)


def _what_is_wrong(text: str, at: int, message: str) -> tuple[str, int]:
    """The parser's complaint in the words of a person who made the file, and the character it is about."""
    before, here = text[:at].rstrip(_SPACE)[-1:], text[at : at + 1]
    if message.startswith("Unterminated"):
        return "unexpected end of line inside a text", len(text)
    if not text[at:].strip(_SPACE):
        return "unexpected end of line", len(text)
    if before == "," and here in "}]":
        return "a comma before the closing bracket", len(text[:at].rstrip(_SPACE)) - 1
    if message.startswith("Illegal trailing comma"):  # Python 3.13 and later
        return "a comma before the closing bracket", at
    if message.startswith("Invalid control"):
        what = "tab" if here == "\t" else "control character"
        return rf"a raw {what} inside a text (a tab is written \t)", at
    if here == "'":
        return "single quotes, JSON wants double quotes", at
    if here in "/#":
        return "JSON has no comments", at
    for start, reason in _REASONS:
        if message.startswith(start):
            return reason, at
    if text.startswith(("True", "False", "None"), at):
        return "JSON writes true, false and null in small letters", at
    return "expected a value", at


def _what_follows(rest: str) -> str:
    match rest[0]:
        case "{" | "[" | '"':
            return "more than one value on the line, put each on its own"
        case ",":
            return "a comma after the record"
        case "/" | "#":
            return "JSON has no comments"
        case _:
            return "something follows the record"


def _column(text: str, at: int) -> int:
    return len(text[:at].encode()) + 1


def _shown(key: str) -> str:
    """A key as it may stand in a message: cut, and without anything a terminal would obey."""
    cut = key if len(key) <= 40 else key[:40] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


# --- shapes -------------------------------------------------------------------------------------------------

_PROMPT_FIELDS = frozenset({"prompt", "system", "model", "temperature", "max_tokens"})
_BODY_FIELDS = frozenset(
    {"messages", "tools", "modelUri", "completionOptions", "jsonObject", "jsonSchema", "parallelToolCalls"}
    | {"toolChoice", "model_uri", "completion_options", "json_object", "json_schema", "parallel_tool_calls"}
    | {"tool_choice"}
)
_COMPLETION_OPTIONS = ("completionOptions", "completion_options")
_ID_FIELDS = ("id", "custom_id", "key")
_ROLES = ("system", "user", "assistant")
_CONTENTS = ("text", "toolCallList", "tool_call_list", "toolResultList", "tool_result_list")


def parse(raw: bytes) -> Parsed:
    """What one line asks.

    Raises:
        BadLine: It is not strict JSON, fits no shape, or asks for what the service would refuse.
    """
    match _strict_json(raw):
        case dict(fields):
            return _from_body(fields) if "messages" in fields else _from_prompt(fields)
        case str(text):
            return Parsed(None, Prompt(_checked_text(text, "the prompt")), {})
        case _:
            raise BadLine("a record is an object in { } or a text in quotes, nothing else")


def identity(id: RecordId) -> str | None:
    """The text under which ids are compared: ``1`` and ``"1"`` are the same."""
    return None if id is None else str(id)


def _from_prompt(fields: JsonObject) -> Parsed:
    meta = _others(fields, _PROMPT_FIELDS)
    if "prompt" not in fields:
        hint = ": did you mean 'prompt' instead of 'text'?" if "text" in fields else ""
        raise BadLine(f"no prompt; fields here: {_names(fields)}{hint}" if fields else "no prompt; the object is empty")
    text = _checked_text(fields["prompt"], "prompt")
    options = {name: value for name, value in fields.items() if name in _PROMPT_FIELDS and name != "prompt"}
    _check(options, _RULES)
    if options.get("temperature") is not None:
        options["temperature"] = float(options["temperature"])  # 0 and 0.0 make the same request
    return Parsed(_take_id(meta), Prompt(text, **options), meta)


def _from_body(fields: JsonObject) -> Parsed:
    if "prompt" in fields:
        raise BadLine("both prompt and messages: keep one")
    meta = _others(fields, _BODY_FIELDS)
    _check_messages(fields["messages"])
    body = {name: value for name, value in fields.items() if name in _BODY_FIELDS}
    _check(body, _RULES)
    for name in _COMPLETION_OPTIONS:
        _check(body.get(name) or {}, _RULES_OF_COMPLETION)
    return Parsed(_take_id(meta), Prompt(None, body), meta)


def _others(fields: JsonObject, known: frozenset[str]) -> JsonObject:
    """The fields that only travel along. One meant as an option is refused: ignored, it would cost money."""
    others = {name: value for name, value in fields.items() if name not in known}
    here, there = ("prompt", "messages") if known is _PROMPT_FIELDS else ("messages", "prompt")
    for name in others:
        option = _nearest_option(name)
        if option in ("modelUri", "model_uri") and here == "prompt":
            option = "model"
        if option == name:
            raise BadLine(f"{name} goes with {there}, not with {here}")
        if option:
            raise BadLine(f"unknown field '{_shown(name)}': did you mean '{option}'?")
    return others


def _names(fields: JsonObject) -> str:
    names = ", ".join(_shown(name) for name in [*fields][:8])
    return f"{names}, …" if len(fields) > 8 else names


def _take_id(meta: JsonObject) -> RecordId:
    name = next((name for name in _ID_FIELDS if name in meta), None)
    value = None if name is None else meta.pop(name)
    if value is None or type(value) is int:
        return value
    if not isinstance(value, str):
        raise BadLine(f"{name} must be a text or an integer")
    if not 1 <= len(value.encode()) <= MAX_ID_BYTES:
        raise BadLine(f"{name} must have 1 to {MAX_ID_BYTES} bytes")
    if _CONTROL.search(value):
        raise BadLine(f"{name} holds a control character")
    return value


def _checked_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadLine(f"{name} must be a text")
    if not value or value.isspace():
        raise BadLine(f"{name} is empty")
    return value


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadLine("messages must be a list of at least one message")
    for place, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise BadLine(f"message {place} must be an object")
        if message.get("role") not in _ROLES:
            raise BadLine(f"message {place}: role must be system, user or assistant")
        contents = [name for name in _CONTENTS if name in message]
        if len(contents) != 1:
            hint = ": did you mean 'text' instead of 'content'?" if "content" in message and not contents else ""
            raise BadLine(
                f"message {place} must have one text, toolCallList or toolResultList; has {_names(message)}{hint}"
            )
        if contents == ["text"]:
            _checked_text(message["text"], f"message {place}: text")


def _is_model(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and not _CONTROL.search(value)


def _is_limit(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_limit_of_a_body(value: Any) -> bool:
    """The API writes 64-bit integers as texts."""
    return _is_limit(int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,19}", value) else value)


_Rules = dict[str, tuple[str, Callable[[Any], bool]]]
_RULES: _Rules = {  # what an option must be, unless it is null
    "system": ("a text", lambda value: isinstance(value, str)),
    "temperature": ("a number from 0 to 1", lambda value: type(value) in (int, float) and 0 <= value <= 1),
    "max_tokens": ("an integer above 0", _is_limit),
}
_RULES |= dict.fromkeys(("model", "modelUri", "model_uri"), ("the name of a model", _is_model))
_RULES |= dict.fromkeys(_COMPLETION_OPTIONS, ("an object", lambda value: isinstance(value, dict)))
_RULES_OF_COMPLETION = _RULES | dict.fromkeys(("maxTokens", "max_tokens"), ("an integer above 0", _is_limit_of_a_body))


def _check(options: JsonObject, rules: _Rules) -> None:
    for name, value in options.items():
        what, fits = rules.get(name, ("", None))
        if value is not None and fits is not None and not fits(value):
            raise BadLine(f"{name} must be {what}")


# --- misspelt options ---------------------------------------------------------------------------------------


def _folded(name: str) -> str:
    return re.sub(r"[_\-. ]", "", name).lower()


_OPTIONS = {_folded(name): name for name in _PROMPT_FIELDS | _BODY_FIELDS if "_" not in name or name == "max_tokens"}
_OPTIONS_BY_LETTERS = {"".join(sorted(folded)): name for folded, name in _OPTIONS.items()}
_LONGEST = max(map(len, _OPTIONS)) + 6


@lru_cache(maxsize=4096)  # the same few names stand on every line
def _nearest_option(name: str) -> str | None:
    """The option a field's name is or was surely meant to be; ``None`` for an ordinary word."""
    if name in _PROMPT_FIELDS or name in _BODY_FIELDS:
        return name
    if name == "message" or not 4 <= len(name) <= _LONGEST:  # "message" is a usual column, though close to an option
        return None
    folded = _folded(name)
    letters = "".join(sorted(folded))
    if letters in _OPTIONS_BY_LETTERS:  # another case, a missing underscore, two letters swapped
        return _OPTIONS_BY_LETTERS[letters]
    cutoff = 0.87 if len(folded) >= 8 else 0.9  # modelUrl is close enough, mode is not
    for close in difflib.get_close_matches(folded, _OPTIONS, n=1, cutoff=cutoff):
        option = _OPTIONS[close]
        if not re.fullmatch(re.escape(option) + r"(s|[_\-. \dA-Z].*)", name):  # models, temperature_c
            return option
    return None


# --- the whole file -----------------------------------------------------------------------------------------

_RESAVE = " text: save it as UTF-8"
_FORMATS = (
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"PK\x03\x04", "a zip file (or a spreadsheet): save the records as JSONL"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first"),
    (b"BZh", "a bzip2 file: unpack it first"),
    (b"\xfd7zXZ\x00", "an xz file: unpack it first"),
    (b"\x00\x00\x00\x00", "zero bytes: the file was not written to its end, make it again"),
    (b"PAR1", "a parquet file: save the records as JSONL"),
    (b"\xff\xfe\x00\x00", "UTF-32" + _RESAVE),
    (b"\x00\x00\xfe\xff", "UTF-32" + _RESAVE),
    (b"\xff\xfe", "UTF-16" + _RESAVE),
    (b"\xfe\xff", "UTF-16" + _RESAVE),
)
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a]")
_QUOTED_COLUMN = re.compile(rb'"(?:[^"\\]|\\.|"")*+"[ \t]*[,;\t]', re.DOTALL)


def sniff(head: bytes) -> str | None:
    """Why a file is no JSONL at all, from its first 4 KiB; ``None``: nothing speaks against it.

    One broken line is none of its business, and a file whose first line is a record always passes.
    """
    for magic, reason in _FORMATS:
        if head.startswith(magic):
            return reason
    if b"\x00" in head[:4]:
        return "UTF-32" + _RESAVE if head[:4].count(0) == 3 else "UTF-16" + _RESAVE
    text = head.lstrip(_BOM + b" \t\r\n")
    first, *others = [line.strip(b" \t\r") for line in text.split(b"\n")]
    if first.startswith(b"["):
        return "one JSON array: put one object on each line"
    if others and first.startswith(b"{") and first.endswith((b"{", b"[", b",", b":")):
        return "pretty-printed JSON: put one object on each line"
    if not others and _is_cut_by_cr(first):
        return "line ends are CR only: convert the line ends to LF"
    if not first or first.startswith(b"{") or any(line.startswith(b"{") for line in others):
        return None
    if _NO_TEXT.search(head):
        return "binary data: save the records as JSONL"
    if _QUOTED_COLUMN.match(first) or (not first.startswith(b'"') and re.search(rb"[,;\t]", first)):
        return "looks like CSV: write each row as a JSON object on its own line"
    if not first.startswith(b'"'):
        return "looks like plain text: write each prompt as a JSON text on its own line"
    return None


def _is_cut_by_cr(text: bytes) -> bool:
    first, _, rest = text.partition(b"\r")
    if not rest.strip(b" \t\r"):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True
