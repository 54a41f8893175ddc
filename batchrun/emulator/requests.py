"""The body of a submit: read as the official proto parser does, then checked as the service does. Pure."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

MAX_TEXT_CHARACTERS = 100_000
_MODEL_URI = re.compile(r"(?:gpt|ds)://([^/\s]+)/[^/\s]+(?:/[^/\s]+)?")
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,19}")

Reader = Callable[[object, str], Any]
"""Takes a JSON value that is not null and its place; gives the value under its official names, or raises."""


class InvalidRequest(ValueError):
    """Refused with code 3; the text is the one the service would give, or one in its manner."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What the emulator needs of one request."""

    digest: bytes  # SHA-256 of the body as JSON with sorted keys: what makes a request distinct
    folder: str
    text: str  # of the last message; "" when it carries tool results
    characters: int  # of all messages


def read_completion_request(body: bytes) -> CompletionRequest:
    """Read and check one body.

    Raises:
        InvalidRequest: it is not JSON, not a CompletionRequest, or breaks a limit of the service.
    """
    try:
        document = orjson.loads(body)
        canonical = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as exc:
        raise InvalidRequest(f"cannot read the body as JSON: {exc}") from exc
    request = _completion_request(document, "request")
    folder = _folder(request.get("modelUri", ""))
    _check_options(request.get("completionOptions", {}))
    texts = [_checked_text(message) for message in request.get("messages", [])]
    if not texts:
        raise InvalidRequest("messages must not be empty")
    return CompletionRequest(hashlib.sha256(canonical).digest(), folder, texts[-1], sum(map(len, texts)))


def _folder(model_uri: str) -> str:
    match = _MODEL_URI.fullmatch(model_uri)
    if match is None:
        raise InvalidRequest("Failed to parse model URI" if model_uri else "invalid model_uri")
    return match[1]


def _check_options(options: Mapping[str, Any]) -> None:
    if not 0 <= options.get("temperature", 0) <= 1:
        raise InvalidRequest(f"temperature must lie in [0, 1], got {options['temperature']}")
    if options.get("maxTokens", 1) <= 0:
        raise InvalidRequest(f"max_tokens must be positive, got {options['maxTokens']}")


def _checked_text(message: Mapping[str, Any]) -> str:
    if "toolCallList" in message or "toolResultList" in message:
        return ""
    text: str = message.get("text", "")
    if not text:
        raise InvalidRequest("empty message text")
    if len(text) > MAX_TEXT_CHARACTERS:
        limits = f"(0, {MAX_TEXT_CHARACTERS}]"
        raise InvalidRequest(f"text length is {len(text)}, which is outside the range {limits}")
    return text


def _exactly(kind: type) -> Reader:
    def read(value: object, place: str) -> object:
        if not isinstance(value, kind):
            raise InvalidRequest(f"{place}: wrong type")
        return value

    return read


def _int64(value: object, place: str) -> int:
    is_whole_text = isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value)
    if isinstance(value, str | float) and (is_whole_text or (isinstance(value, float) and value.is_integer())):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise InvalidRequest(f"{place}: not a 64-bit whole number")
    return value


def _double(value: object, place: str) -> float:
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise InvalidRequest(f"{place}: not a number")


def _enum(*names: str) -> Reader:
    def read(value: object, place: str) -> object:
        if value in names or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise InvalidRequest(f"{place}: not one of {', '.join(names)}")

    return read


def _list_of(item: Reader) -> Reader:
    def read(value: object, place: str) -> list[Any]:
        if not isinstance(value, list) or None in value:
            raise InvalidRequest(f"{place}: must be a list without nulls")
        return [item(each, place) for each in value]

    return read


def _object(fields: Mapping[str, Reader], *, one_of: tuple[str, ...] = ()) -> Reader:
    """A proto message: names in either spelling, null is absent, nothing unknown, at most one of a oneof."""
    official = {spelling: name for name in fields for spelling in (name, _snake_case(name))}

    def read(value: object, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise InvalidRequest(f"{place}: must be an object")
        found: dict[str, Any] = {}
        for key, item in value.items():
            name = official.get(key)
            if name is None:
                raise InvalidRequest(f'{place}: unknown field "{key}"')
            if name in found:
                raise InvalidRequest(f'{place}: field "{name}" is given twice')
            if item is not None:
                found[name] = fields[name](item, name)
        if sum(name in found for name in one_of) > 1:
            raise InvalidRequest(f"{place}: only one of {', '.join(one_of)} may be set")
        return found

    return read


def _snake_case(name: str) -> str:
    return re.sub(r"[A-Z]", lambda capital: "_" + capital[0].lower(), name)


_text, _boolean, _struct = _exactly(str), _exactly(bool), _exactly(dict)

# The messages of CompletionRequest [P], the inner ones first.
_reasoning_mode = _enum("REASONING_MODE_UNSPECIFIED", "DISABLED", "ENABLED_HIDDEN")
_options = _object({
    "stream": _boolean,
    "temperature": _double,
    "maxTokens": _int64,
    "reasoningOptions": _object({"mode": _reasoning_mode}),
})  # fmt: skip
_tool_call = _object({"functionCall": _object({"name": _text, "arguments": _struct})})
_tool_result = _object({"functionResult": _object({"name": _text, "content": _text})})
_message = _object(
    {
        "role": _text,  # a plain string in the proto; which ones the service takes is not checked
        "text": _text,
        "toolCallList": _object({"toolCalls": _list_of(_tool_call)}),
        "toolResultList": _object({"toolResults": _list_of(_tool_result)}),
    },
    one_of=("text", "toolCallList", "toolResultList"),
)
_function = _object({"name": _text, "description": _text, "parameters": _struct, "strict": _boolean})
_tool_choice_mode = _enum("TOOL_CHOICE_MODE_UNSPECIFIED", "NONE", "AUTO", "REQUIRED")
_completion_request = _object(
    {
        "modelUri": _text,
        "completionOptions": _options,
        "messages": _list_of(_message),
        "tools": _list_of(_object({"function": _function})),
        "jsonObject": _boolean,
        "jsonSchema": _object({"schema": _struct}),
        "parallelToolCalls": _boolean,
        "toolChoice": _object({"mode": _tool_choice_mode, "functionName": _text}, one_of=("mode", "functionName")),
    },
    one_of=("jsonObject", "jsonSchema"),
)
