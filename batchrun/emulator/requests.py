"""The body of a submit: read as the official proto parser does, then checked as the service does. Pure."""

import hashlib
import re
from contextlib import suppress
from typing import Any, NamedTuple

import orjson

_MODEL_URI = re.compile(r"(?:gpt|ds)://([^/\s]+)/[^/\s]+(?:/[^/\s]+)?")

# CompletionRequest and InstructRequest [P]. A field holds a scalar (`dict` is an object that is not looked into), a
# number as its kind with the least and the most, an enum as a set of its names, a list as a list of one item, or a
# message as a dictionary. A role is a plain string in the proto; which ones the service takes is not checked.
_COMPLETION_REQUEST = {
    "modelUri": str,
    "completionOptions": {
        "stream": bool,
        "temperature": (float, 0, 1),
        "maxTokens": (int, 1, 2**63 - 1),
        "reasoningOptions": {"mode": {"REASONING_MODE_UNSPECIFIED", "DISABLED", "ENABLED_HIDDEN"}},
    },
    "messages": [{"role": str, "text": str, "toolCallList": dict, "toolResultList": dict}],
    "tools": [dict],
    "jsonObject": bool,
    "jsonSchema": {"schema": dict},
    "parallelToolCalls": bool,
    "toolChoice": {"mode": {"TOOL_CHOICE_MODE_UNSPECIFIED", "NONE", "AUTO", "REQUIRED"}, "functionName": str},
}
_INSTRUCT_REQUEST = {
    "model": str,
    "generationOptions": {"partialResults": bool, "temperature": (float, 0, 1), "maxTokens": (int, 1, 7400)},
    "instructionText": str,
    "instructionUri": str,
    "requestText": str,
}
_ONE_OF = (
    *({"text", "toolCallList", "toolResultList"}, {"jsonObject", "jsonSchema"}, {"mode", "functionName"}),
    {"instructionText", "instructionUri"},
)


class Refused(Exception):
    """The call ends here, with an HTTP status and a text: the one the service would give, or one in its manner."""


class Request(NamedTuple):
    """What the emulator needs of one request."""

    sha256: str  # of the body as JSON with sorted keys: what makes a request distinct
    api: str  # "completion" or "instruct"
    folder: str  # "" when the request names none
    text: str  # of the last message, or the request's; "" for tool results
    characters: int  # of all texts


def read_request(body: bytes, api: str) -> Request:
    """Read and check one body of an API: ``completion`` or ``instruct``.

    Raises:
        Refused: it is not JSON, not a request of this API, or breaks a limit of the service.
    """
    try:
        document = orjson.loads(body)
        canonical = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as exc:
        raise Refused(400, f"cannot read the body as JSON: {exc}") from exc
    fields, read = _READERS[api]
    folder, texts = read(_message(document, fields, "request"))
    for text in texts:
        if len(text) > 100_000:
            raise Refused(400, f"text length is {len(text)}, which is outside the range (0, 100000]")
    return Request(hashlib.sha256(canonical).hexdigest(), api, folder, texts[-1], sum(map(len, texts)))


def _completion(request: dict[str, Any]) -> tuple[str, list[str]]:
    """The folder, and the text of each message: "" for tool calls and their results."""
    match, messages = _MODEL_URI.fullmatch(request.get("modelUri", "")), request.get("messages")
    if match is None:
        raise Refused(400, "Failed to parse model URI")
    if not messages:
        raise Refused(400, "messages must not be empty")
    if not all(message.keys() & {"toolCallList", "toolResultList"} or message.get("text") for message in messages):
        raise Refused(400, "empty message text")
    return match[1], [message.get("text", "") for message in messages]


def _instruct(request: dict[str, Any]) -> tuple[str, list[str]]:
    """No folder, which only the key or a header can tell; the instruction and the request."""
    if not 0 < len(request.get("model", "")) <= 50:  # [P] the most; [I] that a model must be named
        raise Refused(400, "model must have 1 to 50 characters")
    if not request.get("requestText"):
        raise Refused(400, "empty request text")
    return "", [request.get("instructionText", ""), request["requestText"]]


_READERS = {"completion": (_COMPLETION_REQUEST, _completion), "instruct": (_INSTRUCT_REQUEST, _instruct)}


def _message(value: object, fields: dict[str, Any], place: str) -> dict[str, Any]:
    """A proto message: names in either spelling, null is absent, nothing unknown, at most one of a oneof."""
    if not isinstance(value, dict):
        raise Refused(400, f"{place}: must be an object")
    found: dict[str, Any] = {}
    for key, item in value.items():
        # `max_tokens` and `maxTokens` are the official spellings; what mixes the two stays as it is
        name = re.sub("_([a-z])", lambda match: match[1].upper(), key) if key.islower() else key
        if name not in fields:
            raise Refused(400, f'{place}: unknown field "{key}"')
        if name in found:
            raise Refused(400, f'{place}: field "{name}" is given twice')
        if item is not None:
            found[name] = _value(item, fields[name], name)
    for names in _ONE_OF:
        if len(names & found.keys()) > 1:
            raise Refused(400, f"{place}: only one of {', '.join(sorted(names))} may be set")
    return found


def _value(value: Any, kind: Any, place: str) -> Any:
    """A value that is not null, as its kind wants it: a number may come as text, an enum as a number."""
    match kind:
        case dict():
            return _message(value, kind, place)
        case [item] if isinstance(value, list) and None not in value:
            return [_value(each, item, place) for each in value]
        case set() if type(value) is int or (isinstance(value, str) and value in kind):
            return value
        case type() if isinstance(value, kind):
            return value
        case wanted, least, most if type(value) in (int, float, str):
            with suppress(ValueError):
                number = wanted(value)
                if least <= number <= most and (number == value or isinstance(value, str)):
                    return number
    raise Refused(400, f"{place}: not a value that it can have")
