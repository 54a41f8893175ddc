"""The body of a submit: read as the official proto parser does, then checked as the service does. Pure."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

MAX_TEXT_CHARACTERS = 100_000
_MODEL_URI = re.compile(r"(?:gpt|ds)://([^/\s]+)/[^/\s]+(?:/[^/\s]+)?")
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,19}")

# CompletionRequest [P]. A field holds a scalar (`dict` is a Struct), an enum as a tuple of its names, a list as a list
# of one item, or a message as a dictionary.
_REQUEST = {
    "modelUri": str,
    "completionOptions": {
        "stream": bool,
        "temperature": float,
        "maxTokens": int,
        "reasoningOptions": {"mode": ("REASONING_MODE_UNSPECIFIED", "DISABLED", "ENABLED_HIDDEN")},
    },
    "messages": [
        {
            "role": str,  # a plain string in the proto; which ones the service takes is not checked
            "text": str,
            "toolCallList": {"toolCalls": [{"functionCall": {"name": str, "arguments": dict}}]},
            "toolResultList": {"toolResults": [{"functionResult": {"name": str, "content": str}}]},
        }
    ],
    "tools": [{"function": {"name": str, "description": str, "parameters": dict, "strict": bool}}],
    "jsonObject": bool,
    "jsonSchema": {"schema": dict},
    "parallelToolCalls": bool,
    "toolChoice": {"mode": ("TOOL_CHOICE_MODE_UNSPECIFIED", "NONE", "AUTO", "REQUIRED"), "functionName": str},
}
_ONE_OF = (("text", "toolCallList", "toolResultList"), ("jsonObject", "jsonSchema"), ("mode", "functionName"))


class InvalidRequest(ValueError):
    """Refused with code 3; the text is the one the service would give, or one in its manner."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What the emulator needs of one request."""

    sha256: str  # of the body as JSON with sorted keys: what makes a request distinct
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
    request = _read_message(document, _REQUEST, "request")
    folder = _folder(request.get("modelUri", ""))
    _check_options(request.get("completionOptions", {}))
    texts = [_checked_text(message) for message in request.get("messages", [])]
    if not texts:
        raise InvalidRequest("messages must not be empty")
    return CompletionRequest(hashlib.sha256(canonical).hexdigest(), folder, texts[-1], sum(map(len, texts)))


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


def _read_message(value: object, fields: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A proto message: names in either spelling, null is absent, nothing unknown, at most one of a oneof."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{place}: must be an object")
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = _camel_case(key)
        if name not in fields:
            raise InvalidRequest(f'{place}: unknown field "{key}"')
        if name in found:
            raise InvalidRequest(f'{place}: field "{name}" is given twice')
        if item is not None:
            found[name] = _read(item, fields[name], name)
    for names in _ONE_OF:
        if sum(name in found for name in names) > 1:
            raise InvalidRequest(f"{place}: only one of {', '.join(names)} may be set")
    return found


def _camel_case(key: str) -> str:
    """``max_tokens`` and ``maxTokens`` are the official spellings; what mixes the two stays as it is."""
    return re.sub("_([a-z])", lambda match: match[1].upper(), key) if key.islower() else key


def _read(value: Any, kind: Any, place: str) -> Any:
    """A value that is not null, as its kind wants it: int64 and double may come as text, an enum as a number."""
    if isinstance(kind, dict):
        return _read_message(value, kind, place)
    if isinstance(kind, list):
        if not isinstance(value, list) or None in value:
            raise InvalidRequest(f"{place}: must be a list without nulls")
        return [_read(each, kind[0], place) for each in value]
    if isinstance(kind, tuple):
        if value not in kind and type(value) is not int:
            raise InvalidRequest(f"{place}: not one of {', '.join(kind)}")
        return value
    if kind is int:
        return _int64(value, place)
    if kind is float:
        return _double(value, place)
    if not isinstance(value, kind):
        raise InvalidRequest(f"{place}: wrong type")
    return value


def _int64(value: object, place: str) -> int:
    if (isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value)) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise InvalidRequest(f"{place}: not a 64-bit whole number")
    return value


def _double(value: object, place: str) -> float:
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise InvalidRequest(f"{place}: not a number")
