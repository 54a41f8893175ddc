"""What one line asks: its shape, its prompt, its options, or in plain words why it is bad (pure)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

from batchrun.lines import BadLine, shown, strict_json
from batchrun.record import JsonObject, Prompt, RecordId

MAX_ID_BYTES = 256


class Shape(StrEnum):
    """What the lines of an input look like. The first record decides for the whole file."""

    PROMPT = "prompt"  # {"prompt": …}, with options and other fields
    STRING = "string"  # "…"
    MESSAGES = "messages"  # {"messages": […]}, with any field of a request body
    OPENAI = "openai"  # a line for OpenAI's batches
    DATASET = "yandex-dataset"  # {"request": […], "response": …}
    INSTRUCT = "instruct"  # {"requestText": …}, a request body of the older API
    FAILURES = "failures"  # a line of a failures file of ours: its `input` is taken


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a good line says. ``meta`` holds every field that is neither the id nor part of the prompt."""

    id: RecordId
    prompt: Prompt
    meta: JsonObject


@dataclass(frozen=True, slots=True)
class Reading:
    """How the lines of one input are understood: the same for all of them.

    ``shape`` None: none is fixed, each line may have any. ``prompt_column`` and ``render`` make the prompt of any
    object's fields; then it has no options of its own. ``model_given``: the model of an OpenAI line gives way to ours.
    ``for_instruct``: full bodies are those of the older API.
    """

    shape: Shape | None = None
    prompt_column: str | None = None
    render: Callable[[JsonObject], str] | None = None
    model_given: bool = False
    for_instruct: bool = False

    def fixed_by(self, raw: bytes) -> Reading:
        """The same, once the first record of the file is known."""
        if self.shape is None:
            try:
                return replace(self, shape=_shape_of(strict_json(raw)) or Shape.PROMPT)
            except BadLine:
                pass
        return self


AS_EACH_IS = Reading()


def parse(raw: bytes, reading: Reading = AS_EACH_IS) -> Parsed:
    """What one line asks.

    Raises:
        BadLine: It is not strict JSON, is of another shape, or asks for what the service would refuse.
    """
    value = strict_json(raw)
    found = _shape_of(value)
    if found is Shape.FAILURES and reading.shape in (None, found):  # the record that failed, as it was read then
        value, reading = value["input"], replace(reading, shape=None)
        if value is None:
            raise BadLine("this failure does not hold its record: mend the line in the input it came from")
        found = _shape_of(value)
    if reading.prompt_column is not None or reading.render is not None:
        return _from_fields(value, reading)
    if found is not None and reading.shape not in (None, found):
        raise BadLine(f"a line of shape {found}, in a file of shape {reading.shape}")
    shape = reading.shape or found or Shape.PROMPT
    parsed = _FROM[shape](value)
    if parsed.prompt.body is not None and (shape is Shape.INSTRUCT) is not reading.for_instruct:
        raise BadLine(_OTHER_API[reading.for_instruct])
    if reading.model_given and shape is Shape.OPENAI:
        return replace(parsed, prompt=replace(parsed.prompt, model=None))
    return parsed


def _shape_of(value: Any) -> Shape | None:
    """The shape a value bears the marks of; None for an object that bears none."""
    match value:
        case str():
            return Shape.STRING
        case {"prompt": _}:
            return Shape.PROMPT
        case {"messages": _}:
            return Shape.MESSAGES
        case {"requestText": _} | {"request_text": _}:
            return Shape.INSTRUCT
        case {"body": dict()} if value.keys() & {"custom_id", "method", "url"}:
            return Shape.OPENAI
        case {"request": list()}:
            return Shape.DATASET
        case {"error": dict(), "input": _, "operation_id": _}:
            return Shape.FAILURES
        case dict():
            return None
        case _:
            raise BadLine("a record is an object in { } or a text in quotes, nothing else")


def identity(id: RecordId) -> str | None:
    """The text under which ids are compared: ``1`` and ``"1"`` are the same."""
    return None if id is None else str(id)


# --- shapes -------------------------------------------------------------------------------------------------


_PROMPT_FIELDS = frozenset({"prompt", "system", "model", "temperature", "max_tokens"})
_BODY_FIELDS = frozenset(
    {"messages", "tools", "modelUri", "completionOptions", "jsonObject", "jsonSchema", "parallelToolCalls"}
    | {"toolChoice", "model_uri", "completion_options", "json_object", "json_schema", "parallel_tool_calls"}
    | {"tool_choice"}
)
_COMPLETION_OPTIONS = ("completionOptions", "completion_options")
_GENERATION_OPTIONS = ("generationOptions", "generation_options")
_INSTRUCT_FIELDS = frozenset(
    {"model", "instructionText", "instructionUri", "requestText", "generationOptions"}
    | {"instruction_text", "instruction_uri", "request_text", "generation_options"}
)
_OPENAI_URL = "/v1/chat/completions"
_OPENAI_ALONG = ("user", "metadata")  # say nothing to the model
_OPENAI_HARMLESS = {"n": 1, "stream": False, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
_OPENAI_HARMLESS |= {"logprobs": False, "store": False}
_OTHER_API = (
    "a request body for --provider yandex-instruct",
    "--provider yandex-instruct takes prompts or its own request bodies, no messages",
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ID_FIELDS = ("id", "custom_id", "key")
_ROLES = ("system", "user", "assistant")
_CONTENTS = ("text", "toolCallList", "tool_call_list", "toolResultList", "tool_result_list")


def _from_string(text: str) -> Parsed:
    return Parsed(None, Prompt(_checked_text(text, "the prompt")), {})


def _from_fields(value: Any, reading: Reading) -> Parsed:
    """A record whose prompt is made of its fields; all of them travel along, but for the column that is the prompt."""
    if not isinstance(value, dict):
        raise BadLine("with a template or a prompt column, a record is an object in { }")
    meta = dict(value)
    if reading.render is not None:
        text = _checked_text(reading.render(value), "the prompt made by the template")
    else:
        name = reading.prompt_column or ""
        if name not in value:
            raise BadLine(f"no field '{shown(name)}'; fields here: {_names(value)}")
        text = _checked_text(meta.pop(name), shown(name))
    return Parsed(_take_id(meta), Prompt(text), meta)


def _from_prompt(fields: JsonObject) -> Parsed:
    if "messages" in fields and "prompt" in fields:
        raise BadLine("both prompt and messages: keep one")
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


def _from_messages(fields: JsonObject) -> Parsed:
    meta = _others(fields, _BODY_FIELDS)
    body = {name: value for name, value in fields.items() if name in _BODY_FIELDS}
    body["messages"] = _messages(fields.get("messages"))
    _check(body, _RULES)
    for name in _COMPLETION_OPTIONS:
        _check(body.get(name) or {}, _RULES_OF_COMPLETION)
    return Parsed(_take_id(meta), Prompt(None, body), meta)


def _from_openai(line: JsonObject) -> Parsed:
    """A line for OpenAI's batches. What shapes the answer there and has no counterpart here is refused."""
    fields, body = dict(line), line.get("body")
    if not isinstance(body, dict):
        raise BadLine("body must be an object, with the messages")
    if fields.pop("method", "POST") != "POST":
        raise BadLine("method must be POST")
    if fields.pop("url", _OPENAI_URL) != _OPENAI_URL:
        raise BadLine(f"url must be {_OPENAI_URL}: nothing else can be asked here")
    body = {name: value for name, value in body.items() if value is not None}
    limit = body.pop("max_completion_tokens", body.pop("max_tokens", None))
    options = {"model": body.pop("model", None), "temperature": body.pop("temperature", None), "max_tokens": limit}
    _check(options, _RULES)
    request = {"messages": _messages(body.pop("messages", None))} | _response_format(
        body.pop("response_format", {"type": "text"})
    )
    del fields["body"]
    id_, along = _take_id(fields), {name: body.pop(name) for name in _OPENAI_ALONG if name in body}
    for name, value in body.items():
        if name not in _OPENAI_HARMLESS or value != _OPENAI_HARMLESS[name]:
            raise BadLine(f"body.{shown(name)} has no counterpart here: leave it out")
    return Parsed(id_, Prompt(None, request, **options), fields | along)


def _response_format(wanted: Any) -> JsonObject:
    match wanted:
        case {"type": "json_object"}:
            return {"jsonObject": True}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"jsonSchema": {"schema": schema}}
        case {"type": "text"}:
            return {}
    raise BadLine("body.response_format must be of type text, json_object or json_schema")


def _from_dataset(fields: JsonObject) -> Parsed:
    meta = dict(fields)
    messages = _messages(meta.pop("request", None), "request")
    if "response" in meta:
        meta["reference"] = meta.pop("response")
    return Parsed(_take_id(meta), Prompt(None, {"messages": messages}), meta)


def _from_instruct(fields: JsonObject) -> Parsed:
    meta = {name: value for name, value in fields.items() if name not in _INSTRUCT_FIELDS}
    body = {name: value for name, value in fields.items() if name in _INSTRUCT_FIELDS}
    _checked_text(body.get("requestText", body.get("request_text")), "requestText")
    _check(body, _RULES)
    for name in _GENERATION_OPTIONS:
        _check(body.get(name) or {}, _RULES_OF_COMPLETION)
    return Parsed(_take_id(meta), Prompt(None, body), meta)


_FROM: dict[Shape, Callable[[Any], Parsed]] = {
    Shape.PROMPT: _from_prompt,
    Shape.STRING: _from_string,
    Shape.MESSAGES: _from_messages,
    Shape.OPENAI: _from_openai,
    Shape.DATASET: _from_dataset,
    Shape.INSTRUCT: _from_instruct,
    Shape.FAILURES: _from_prompt,
}


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
            raise BadLine(f"unknown field '{shown(name)}': did you mean '{option}'?")
    return others


def _names(fields: JsonObject) -> str:
    names = ", ".join(shown(name) for name in [*fields][:8])
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


def _messages(messages: Any, name: str = "messages") -> list[JsonObject]:
    """The messages, each with one of the contents the API knows; ``content`` is another word for ``text``."""
    if not isinstance(messages, list) or not messages:
        raise BadLine(f"{name} must be a list of at least one message")
    return [_message(message, place) for place, message in enumerate(messages, 1)]


def _message(message: Any, place: int) -> JsonObject:
    if not isinstance(message, dict):
        raise BadLine(f"message {place} must be an object")
    if message.get("role") not in _ROLES:
        raise BadLine(f"message {place}: role must be system, user or assistant")
    contents = [name for name in (*_CONTENTS, "content") if name in message]
    if len(contents) != 1:
        raise BadLine(f"message {place} must have one text, toolCallList or toolResultList; has {_names(message)}")
    if contents[0] in ("text", "content"):
        _checked_text(message[contents[0]], f"message {place}: {contents[0]}")
    if contents[0] == "content":
        return {("text" if name == "content" else name): value for name, value in message.items()}
    return message


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
_RULES |= dict.fromkeys(_COMPLETION_OPTIONS + _GENERATION_OPTIONS, ("an object", lambda value: isinstance(value, dict)))
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
