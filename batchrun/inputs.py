"""What one line asks: its shape, its prompt, its options, or in plain words why it is bad (pure)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from batchrun.lines import BadLine, shown, strict_json
from batchrun.record import Failure, JsonObject, Prompt, RecordId, State, after_request

MAX_ID_BYTES = 256
USUAL_BYTES = 64 * 1024


class Shape(StrEnum):
    """What the lines of an input look like. The first record decides for the whole file."""

    PROMPT = "prompt"  # {"prompt": …}, with options and other fields
    STRING = "string"  # "…"
    MESSAGES = "messages"  # {"messages": […]}, with any field of a request body
    OPENAI = "openai"  # a line for OpenAI's batches
    DATASET = "yandex-dataset"  # {"request": […], "response": …}
    INSTRUCT = "instruct"  # {"requestText": …}, a request body of the older API
    FAILURES = "failures"  # a line of a failures file of ours: its `input` is taken


class Parsed(NamedTuple):
    """What a good line says. ``meta`` holds every field that is neither the id nor part of the prompt."""

    id: RecordId
    prompt: Prompt
    meta: JsonObject
    maybe_paid: int = 0  # what a failures file says was perhaps paid for it, in another job


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

    @property
    def is_of_prompts(self) -> bool:
        """Whether an object with a ``prompt`` is a record of the shape *prompt*."""
        return self.shape in (None, Shape.PROMPT) and self.prompt_column is None and self.render is None

    def fixed_by(self, raw: bytes) -> Reading:
        """The same, once the first record of the file is known."""
        with suppress(BadLine):
            return replace(self, shape=self.shape or _shape_of(strict_json(raw)) or Shape.PROMPT)
        return self


AS_EACH_IS = Reading()


def parse(raw: bytes, reading: Reading = AS_EACH_IS) -> Parsed:
    """What one line asks.

    Raises:
        BadLine: It is not strict JSON, is of another shape, or asks for what the service would refuse.
    """
    value = strict_json(raw)
    # The most usual line gets the same answer, quicker; a long one may have long names, which no cache shall hold.
    is_usual = reading.is_of_prompts and type(value) is dict and len(raw) <= USUAL_BYTES
    if is_usual and _are_plain(tuple(value)):
        prompt = Prompt(_checked_text(value.pop("prompt"), "prompt"))
        return Parsed(_take_id(value), prompt, value)
    return _parsed(value, reading)


@lru_cache(maxsize=16)
def _are_plain(names: tuple[str, ...]) -> bool:
    """Whether a record of these fields is a prompt without options, and with no field that was meant as one."""
    return "prompt" in names and not any(
        name in _ELSEWHERE or _nearest_option(name) for name in names if name != "prompt"
    )


def _parsed(value: Any, reading: Reading) -> Parsed:
    if (found := _shape_of(value)) is Shape.FAILURES and reading.shape in (None, found):
        if value["input"] is None:
            raise BadLine("this failure does not hold its record: mend the line in the input it came from")
        parsed = _parsed(value["input"], replace(reading, shape=None))  # the record that failed, as it was read then
        return parsed._replace(maybe_paid=parsed.maybe_paid + _perhaps_paid(value))
    if reading.prompt_column is not None or reading.render is not None:
        prompt, meta = _from_fields(value, reading)
    elif found is not None and reading.shape not in (None, found):
        raise BadLine(f"a line of shape {found}, in a file of shape {reading.shape}")
    else:
        shape = reading.shape or found or Shape.PROMPT
        prompt, meta = _FROM[shape](value)
        if prompt.body is not None and (shape is Shape.INSTRUCT) is not reading.for_instruct:
            remedy = "instruct is for --provider yandex-instruct (check: --format instruct), messages for the others"
            raise BadLine(f"a request body of shape {shape}, for the other API", remedy=f"{remedy}; nothing was sent")
        if prompt.body is not None and reading.model_given:  # the model of another service, most likely
            prompt = prompt._replace(model=None)
    return Parsed(_take_id(meta), prompt, meta)


def _perhaps_paid(failed: JsonObject) -> int:
    """Payments that may have happened before this record is sent again, by its failure."""
    kind, before = failed["error"].get("kind"), failed.get("maybe_paid")
    state = State(kind) if kind in (State.HELD, State.EXPIRED) else State.FAILED
    failure = Failure(str(kind), "", retryable=failed["error"].get("retryable") is True)
    again = after_request(state, failure, accepted=failed["operation_id"] is not None)
    return again.adds_maybe_paid + (before if type(before) is int and 0 < before < 1000 else 0)


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


# --- the fields of each shape, and what their values must be unless they are null ---------------------------


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _is_model(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


def _is_limit(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_limit_of_a_body(value: Any) -> bool:
    """The API writes 64-bit integers as texts."""
    return _is_limit(int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,19}", value) else value)


_Rule = tuple[str, Callable[[Any], bool]]
_ANY: _Rule = ("anything", lambda value: True)  # the service judges it, or what reads it here
_TEXT: _Rule = ("a text", lambda value: isinstance(value, str))
_MODEL: _Rule = ("the name of a model", _is_model)
_TEMPERATURE: _Rule = ("a number from 0 to 1", lambda value: type(value) in (int, float) and 0 <= value <= 1)
_LIMIT: _Rule = ("an integer above 0", _is_limit)
_LIMIT_OF_A_BODY: _Rule = ("an integer above 0", _is_limit_of_a_body)
_OPTIONS: _Rule = ("an object", lambda value: isinstance(value, dict))


def _in_both_cases(**fields: _Rule) -> dict[str, _Rule]:
    """The API takes its fields in camel case and in snake case."""
    return fields | {re.sub("[A-Z]", lambda big: f"_{big[0].lower()}", name): rule for name, rule in fields.items()}


_OWN = {"system": _TEXT, "model": _MODEL, "temperature": _TEMPERATURE, "max_tokens": _LIMIT}
_PROMPT_FIELDS = _OWN | {"prompt": _ANY}
_MESSAGES_FIELDS = _OWN | {"messages": _ANY, "max_completion_tokens": _LIMIT, "response_format": _ANY}
_MESSAGES_FIELDS |= _in_both_cases(modelUri=_MODEL, completionOptions=_OPTIONS, jsonObject=_ANY, jsonSchema=_ANY)
_MESSAGES_FIELDS |= _in_both_cases(tools=_ANY, toolChoice=_ANY, parallelToolCalls=_ANY)
_INSTRUCT_FIELDS = _in_both_cases(requestText=_TEXT, instructionText=_TEXT, instructionUri=_TEXT)
_INSTRUCT_FIELDS |= _in_both_cases(generationOptions=_OPTIONS) | {"model": _MODEL}
_FIELDS_OF_OPTIONS = _in_both_cases(maxTokens=_LIMIT_OF_A_BODY)
_FIELDS_OF_OPTIONS |= {"temperature": _TEMPERATURE, "stream": _ANY, "partialResults": _ANY}
_ALL_FIELDS = frozenset(_PROMPT_FIELDS | _MESSAGES_FIELDS | _INSTRUCT_FIELDS)
_MODEL_URIS = ("modelUri", "model_uri")
_LIMITS = ("max_tokens", "max_completion_tokens")
_SAID_TWICE = [
    *product(["model"], _MODEL_URIS),
    *product(["temperature", *_LIMITS], ["completionOptions", "completion_options"]),
    *product(["response_format"], ["jsonObject", "jsonSchema", "json_object", "json_schema"]),
    _LIMITS,
]
_ELSEWHERE: JsonObject = {"top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
_ELSEWHERE |= dict.fromkeys(("top_k", "stop", "logit_bias", "reasoning_effort"))
"""Options of other services that shape the answer and cannot be said here, with the value at which they do not."""
_OPENAI_HARMLESS: JsonObject = _ELSEWHERE | {"n": 1, "stream": False, "logprobs": False}
_OPENAI_ALONG = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
_NO_COUNTERPART = "has no counterpart here, leave it out"
ID_FIELDS = ("id", "custom_id", "key")
_CONTENTS = ("text", "content", "toolCallList", "tool_call_list", "toolResultList", "tool_result_list")


def _split(fields: JsonObject, known: Mapping[str, _Rule], shape: str) -> tuple[JsonObject, JsonObject]:
    """The fields of a request, and those that only travel along.

    One of these that was meant as an option is refused: ignored, it would cost money.
    """
    given, others = {}, {}
    for name, value in fields.items():
        rule = known.get(name)
        if rule is None:
            others[name] = value
            if value is not None:
                _refuse_a_lost_option(name, value, shape)
            continue
        given[name] = value
        what, fits = rule
        if value is not None and not fits(value):
            raise BadLine(f"{name} must be {what}")
        if value is not None and rule is _OPTIONS:
            _split(value, _FIELDS_OF_OPTIONS, name)
    return given, others


def _refuse_a_lost_option(name: str, value: Any, shape: str) -> None:
    if name in _ELSEWHERE and value not in ([], {}, _ELSEWHERE[name]):
        raise BadLine(f"{name} {_NO_COUNTERPART}")
    option = _nearest_option(name) if len(name) <= MAX_ID_BYTES else None  # it is kept: no long names
    if option in _MODEL_URIS and shape == "prompt":
        option = "model"
    if option == name:
        raise BadLine(f"{name} does not go with {shape}")
    if option:
        raise BadLine(f"unknown field '{shown(name)}': did you mean '{option}'?")


# --- shapes: each gives what is asked, and the fields that only travel along --------------------------------


_Asked = tuple[Prompt, JsonObject]


def _from_string(text: str) -> _Asked:
    return Prompt(_checked_text(text, "the prompt")), {}


def _from_fields(value: Any, reading: Reading) -> _Asked:
    """A record whose prompt is made of its fields; all of them travel along, but for the column that is the prompt."""
    if not isinstance(value, dict):
        raise BadLine("with a template or a prompt column, a record is an object in { }")
    match value.get(""):
        case [int(cells), int(columns)] if len(value) == 1:  # a row of a table that is none
            reason = f"the row has {cells} cells, and there are {columns} columns"
            raise BadLine(reason if cells != columns else "not UTF-8, or a NUL byte: save the table as UTF-8")
    meta = dict(value)
    if reading.render is not None:
        text = _checked_text(reading.render(value), "the prompt made by the template")
    else:
        name = reading.prompt_column or ""
        if name not in value:
            raise BadLine(f"no field '{shown(name)}'; fields here: {names_of(value)}")
        text = _checked_text(meta.pop(name), shown(name))
    return Prompt(text), meta


def _from_prompt(fields: JsonObject) -> _Asked:
    given, meta = _split(fields, _PROMPT_FIELDS, "prompt")
    if "prompt" not in given:
        raise _no_prompt(fields)
    text = _checked_text(given.pop("prompt"), "prompt")
    if given.get("temperature") is not None:
        given["temperature"] = float(given["temperature"])  # 0 and 0.0 make the same request
    return Prompt(text, **given), meta


def _no_prompt(fields: JsonObject) -> BadLine:
    """With the field that looks most like a prompt: the longest text."""
    texts = [name for name, value in fields.items() if isinstance(value, str) and name.isidentifier()]
    best = shown(max(texts, key=lambda name: len(fields[name]), default=""))
    remedy = f"--prompt-column {best}, or -t FILE with {{{{ {best} }}}}; nothing was sent" if best else None
    return BadLine(f"no prompt; fields here: {names_of(fields)}", remedy=remedy)


def _from_messages(fields: JsonObject) -> _Asked:
    given, meta = _split(fields, _MESSAGES_FIELDS, "messages")
    return _of_messages(given), meta


def _of_messages(given: JsonObject, called: str = "messages") -> Prompt:
    """A request in the words of this API or of OpenAI's, which mean the same by them."""
    for names in _SAID_TWICE:
        if all(given.get(name) is not None for name in names):
            raise BadLine(f"both {' and '.join(names)}: keep one")
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadLine(f"{called} must be a list of at least one message")
    given["messages"] = [_message(message, place) for place, message in enumerate(messages, 1)]
    limits = [given.pop(name, None) for name in _LIMITS]
    options = {name: given.pop(name, None) for name in ("system", "model", "temperature")}
    if options["system"] is not None and any(each["role"] == "system" for each in given["messages"]):
        raise BadLine("both system and a message of that role: keep one")
    given |= _response_format(given.pop("response_format", None))
    if isinstance(given.get("tools"), list):
        given["tools"] = [_tool(each) for each in given["tools"]]
    match given.get("tool_choice"):
        case "none" | "auto" | "required" as mode:
            given["tool_choice"] = {"mode": mode.upper()}
        case {"type": "function", "function": {"name": name}}:
            given["tool_choice"] = {"functionName": name}
    return Prompt(None, given, **options, max_tokens=next((limit for limit in limits if limit is not None), None))


def _tool(tool: Any) -> Any:
    match tool:
        case {"type": str(kind)} if kind != "function":
            raise BadLine("tools: only those of type function can be named here")
        case dict():
            return {name: value for name, value in tool.items() if name != "type"}
    return tool


def _response_format(wanted: Any) -> JsonObject:
    match wanted:
        case {"type": "json_object"}:
            return {"jsonObject": True}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"jsonSchema": {"schema": schema}}
        case None | {"type": "text"}:
            return {}
    raise BadLine("response_format must be of type text, json_object or json_schema")


def _from_openai(line: JsonObject) -> _Asked:
    """A line for OpenAI's batches. What shapes the answer there and has no counterpart here is refused."""
    meta = dict(line)
    body = meta.pop("body", None)
    if not isinstance(body, dict):
        raise BadLine("body must be an object, with the messages")
    if meta.pop("method", None) not in (None, "POST"):
        raise BadLine("method must be POST")
    if not str(meta.pop("url", None) or "/chat/completions").endswith("/chat/completions"):
        raise BadLine("url must be /v1/chat/completions: nothing else can be asked here")
    given, along = _split(body, _MESSAGES_FIELDS, "body")
    for name, value in along.items():
        if name in _OPENAI_ALONG:
            meta[name] = value
        elif value not in (None, [], {}, _OPENAI_HARMLESS.get(name)):
            raise BadLine(f"body.{shown(name)} {_NO_COUNTERPART}")
    return _of_messages(given), meta


def _from_dataset(fields: JsonObject) -> _Asked:
    """Messages under another name, and the answer that is wanted."""
    given, meta = _split(fields, _MESSAGES_FIELDS, "messages")
    given["messages"] = meta.pop("request", None)
    if "response" in meta and "reference" not in meta:
        meta["reference"] = meta.pop("response")
    return _of_messages(given, "request"), meta


def _from_instruct(fields: JsonObject) -> _Asked:
    given, meta = _split(fields, _INSTRUCT_FIELDS, "requestText")
    _checked_text(given.get("requestText", given.get("request_text")), "requestText")
    return Prompt(None, given), meta


_FROM: dict[Shape, Callable[[Any], _Asked]] = {
    Shape.PROMPT: _from_prompt,
    Shape.STRING: _from_string,
    Shape.MESSAGES: _from_messages,
    Shape.OPENAI: _from_openai,
    Shape.DATASET: _from_dataset,
    Shape.INSTRUCT: _from_instruct,
    Shape.FAILURES: _from_prompt,
}


def names_of(fields: JsonObject) -> str:
    """What a message says of the fields that are there."""
    names = ", ".join(shown(name) for name in [*fields][:8]) or "none"
    return f"{names}, …" if len(fields) > 8 else names


def _take_id(meta: JsonObject) -> RecordId:
    for name in ID_FIELDS:
        if (value := meta.pop(name, None)) is not None:
            break
    if value is None or type(value) is int:
        return value
    if not isinstance(value, str):
        raise BadLine(f"{name} must be a text or an integer")
    if not 1 <= len(value.encode()) <= MAX_ID_BYTES:
        raise BadLine(f"{name} must have 1 to {MAX_ID_BYTES} bytes")
    if not value.isprintable() and _CONTROL.search(value):
        raise BadLine(f"{name} holds a control character")
    return value


def _checked_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadLine(f"{name} must be a text")
    if not value or value.isspace():
        raise BadLine(f"{name} is empty")
    return value


def _message(message: Any, place: int) -> JsonObject:
    if not isinstance(message, dict):
        raise BadLine(f"message {place} must be an object")
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ("system", "user", "assistant"):
        raise BadLine(f"message {place}: role must be system, user or assistant")
    said = {name: value for name, value in message.items() if name != "role" and value not in (None, [])}
    name, value = next(iter(said.items())) if len(said) == 1 else ("", None)
    if name not in _CONTENTS:
        wanted = "one text, toolCallList or toolResultList and nothing else"
        raise BadLine(f"message {place} must have {wanted}; has {names_of(message)}")
    if name == "content" and isinstance(value, list):
        value = "\n".join(_text_of_part(part, place) for part in value)
    if name in ("text", "content"):
        return {"role": role, "text": _checked_text(value, f"message {place}: {name}")}
    return {"role": role, name: value}


def _text_of_part(part: Any, place: int) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
    raise BadLine(f"message {place}: the parts of content must be of type text")


# --- misspelt options ---------------------------------------------------------------------------------------


def _folded(name: str) -> str:
    return re.sub(r"[_\-. ]", "", name).lower()


_FOLDED = {_folded(name): name for name in sorted(_ALL_FIELDS, key=lambda name: ("_" not in name, name))}
_LONGEST = max(map(len, _FOLDED)) + 6


@lru_cache(maxsize=4096)  # the same few names stand on every line
def _nearest_option(name: str) -> str | None:
    """The option a field's name is or was surely meant to be; ``None`` for an ordinary word."""
    if name in _ALL_FIELDS:
        return name
    if name == "message" or not 4 <= len(name) <= _LONGEST:  # "message" is a usual column, though close to an option
        return None
    folded = _folded(name)
    for option in _FOLDED:
        if sorted(folded) == sorted(option):  # another case, a missing underscore, two letters swapped
            return _FOLDED[option]
    cutoff = 0.87 if len(folded) >= 8 else 0.9  # modelUrl is close enough, mode is not
    for close in difflib.get_close_matches(folded, _FOLDED, n=1, cutoff=cutoff):
        if not re.fullmatch(re.escape(_FOLDED[close]) + r"(s|[_\-. \dA-Z].*)", name):  # models, temperature_c
            return _FOLDED[close]
    return None
