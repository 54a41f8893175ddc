"""What one line asks: its shape, its prompt, its options, or in plain words why it is bad (pure)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import product
from typing import Any

from batchrun.lines import BadLine, shown, strict_json
from batchrun.record import Failure, JsonObject, Prompt, RecordId, State, after_request

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
    return _parsed(strict_json(raw), reading)


def _parsed(value: Any, reading: Reading) -> Parsed:
    if (found := _shape_of(value)) is Shape.FAILURES and reading.shape in (None, found):
        if value["input"] is None:
            raise BadLine("this failure does not hold its record: mend the line in the input it came from")
        parsed = _parsed(value["input"], replace(reading, shape=None))  # the record that failed, as it was read then
        return replace(parsed, maybe_paid=parsed.maybe_paid + _perhaps_paid(value))
    if reading.prompt_column is not None or reading.render is not None:
        return _from_fields(value, reading)
    if found is not None and reading.shape not in (None, found):
        raise BadLine(f"a line of shape {found}, in a file of shape {reading.shape}")
    shape = reading.shape or found or Shape.PROMPT
    parsed = _FROM[shape](value)
    if parsed.prompt.body is not None and (shape is Shape.INSTRUCT) is not reading.for_instruct:
        raise BadLine(_OTHER_API[reading.for_instruct])
    if reading.model_given and parsed.prompt.body is not None:  # the model of another service, most likely
        return replace(parsed, prompt=replace(parsed.prompt, model=None))
    return parsed


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


# --- shapes -------------------------------------------------------------------------------------------------


_PROMPT_FIELDS = frozenset({"prompt", "system", "model", "temperature", "max_tokens"})
_COMPLETION_OPTIONS = ("completionOptions", "completion_options")
_GENERATION_OPTIONS = ("generationOptions", "generation_options")
_MODEL_URIS = ("modelUri", "model_uri")
_FORMATS = ("jsonObject", "jsonSchema", "json_object", "json_schema")
_BODY_FIELDS = frozenset(
    {"messages", "tools", "parallelToolCalls", "parallel_tool_calls", "toolChoice", "tool_choice"}
    | {*_MODEL_URIS, *_COMPLETION_OPTIONS, *_FORMATS}
)
_LIMITS = ("max_tokens", "max_completion_tokens")
_MESSAGES_FIELDS = _BODY_FIELDS | _PROMPT_FIELDS - {"prompt"} | {"max_completion_tokens", "response_format"}
_INSTRUCT_FIELDS = frozenset(
    {"model", "instructionText", "instructionUri", "requestText", *_GENERATION_OPTIONS}
    | {"instruction_text", "instruction_uri", "request_text"}
)
_OPTIONS = _PROMPT_FIELDS | _MESSAGES_FIELDS | _INSTRUCT_FIELDS
_OPTIONS_OF_COMPLETION = frozenset({"temperature", "maxTokens", "max_tokens", "stream", "partialResults"})
_SAID_TWICE = [
    *product(["model"], _MODEL_URIS),
    *product(["temperature", *_LIMITS], _COMPLETION_OPTIONS),
    *product(["response_format"], _FORMATS),
    _LIMITS,
]
_ELSEWHERE: JsonObject = {"top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
_ELSEWHERE |= dict.fromkeys(("top_k", "stop", "logit_bias", "reasoning_effort"))
"""Options of other services that shape the answer and cannot be said here, with the value at which they do not."""
_OPENAI_HARMLESS: JsonObject = _ELSEWHERE | {"n": 1, "stream": False, "logprobs": False}
_OPENAI_ALONG = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
_OTHER_API = (
    "a request body for --provider yandex-instruct",
    "--provider yandex-instruct takes prompts or its own request bodies, no messages",
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ID_FIELDS = ("id", "custom_id", "key")
_ROLES = ("system", "user", "assistant")
_CONTENTS = ("text", "content", "toolCallList", "tool_call_list", "toolResultList", "tool_result_list")


def _from_string(text: str) -> Parsed:
    return Parsed(None, Prompt(_checked_text(text, "the prompt")), {})


def _from_fields(value: Any, reading: Reading) -> Parsed:
    """A record whose prompt is made of its fields; all of them travel along, but for the column that is the prompt."""
    if not isinstance(value, dict):
        raise BadLine("with a template or a prompt column, a record is an object in { }")
    if value.keys() == {""}:
        raise BadLine(str(value[""]))  # a row of a table that is none, and why
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
    if fields.get("messages") is not None and "prompt" in fields:
        raise BadLine("both prompt and messages: keep one")
    meta = _others(fields, _PROMPT_FIELDS, "prompt")
    if "prompt" not in fields:
        raise _no_prompt(fields)
    text = _checked_text(fields["prompt"], "prompt")
    options = {name: value for name, value in fields.items() if name in _PROMPT_FIELDS and name != "prompt"}
    _check(options, _RULES)
    if options.get("temperature") is not None:
        options["temperature"] = float(options["temperature"])  # 0 and 0.0 make the same request
    return Parsed(_take_id(meta), Prompt(text, **options), meta)


def _no_prompt(fields: JsonObject) -> BadLine:
    """With the field that looks most like a prompt: the longest text."""
    texts = [name for name, value in fields.items() if isinstance(value, str) and name.isidentifier()]
    best = shown(max(texts, key=lambda name: len(fields[name]), default=""))
    remedy = f"--prompt-column {best}, or -t FILE with {{{{ {best} }}}}; nothing was sent" if best else None
    reason = f"no prompt; fields here: {_names(fields)}" if fields else "no prompt; the object is empty"
    return BadLine(reason, remedy=remedy)


def _from_messages(fields: JsonObject) -> Parsed:
    meta = _others(fields, _MESSAGES_FIELDS, "messages")
    prompt = _of_messages({name: value for name, value in fields.items() if name in _MESSAGES_FIELDS})
    return Parsed(_take_id(meta), prompt, meta)


def _of_messages(given: JsonObject) -> Prompt:
    """A request in the words of this API or of OpenAI's, which mean the same by them."""
    for names in _SAID_TWICE:
        if all(given.get(name) is not None for name in names):
            raise BadLine(f"both {' and '.join(names)}: keep one")
    given["messages"] = _messages(given.get("messages"))
    _check_body(given, _COMPLETION_OPTIONS)
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


def _from_openai(line: JsonObject) -> Parsed:
    """A line for OpenAI's batches. What shapes the answer there and has no counterpart here is refused."""
    meta = dict(line)
    body = meta.pop("body", None)
    if not isinstance(body, dict):
        raise BadLine("body must be an object, with the messages")
    if meta.pop("method", None) not in (None, "POST"):
        raise BadLine("method must be POST")
    if not str(meta.pop("url", None) or "/chat/completions").endswith("/chat/completions"):
        raise BadLine("url must be /v1/chat/completions: nothing else can be asked here")
    for name, value in body.items():
        if name in _OPENAI_ALONG:
            meta[name] = value
        elif name not in _MESSAGES_FIELDS and not _says_nothing(name, value, _OPENAI_HARMLESS):
            option = _nearest_option(name, _MESSAGES_FIELDS)
            raise BadLine(f"body.{shown(name)}: " + (f"did you mean '{option}'?" if option else _NO_COUNTERPART))
    prompt = _of_messages({name: value for name, value in body.items() if name in _MESSAGES_FIELDS})
    return Parsed(_take_id(meta), prompt, meta)


_NO_COUNTERPART = "has no counterpart here, leave it out"


def _says_nothing(name: str, value: Any, harmless: JsonObject) -> bool:
    return value in (None, [], {}) or (name in harmless and value == harmless[name])


def _from_dataset(fields: JsonObject) -> Parsed:
    """Messages under another name, and the answer that is wanted."""
    given = dict(fields)
    given["messages"] = _messages(given.pop("request", None), "request")
    if "response" in given and "reference" not in given:
        given["reference"] = given.pop("response")
    return _from_messages(given)


def _from_instruct(fields: JsonObject) -> Parsed:
    meta = _others(fields, _INSTRUCT_FIELDS, "requestText")
    body = {name: value for name, value in fields.items() if name in _INSTRUCT_FIELDS}
    _checked_text(body.get("requestText", body.get("request_text")), "requestText")
    _check_body(body, _GENERATION_OPTIONS)
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


def _others(fields: JsonObject, known: frozenset[str], shape: str) -> JsonObject:
    """The fields that only travel along. One meant as an option is refused: ignored, it would cost money."""
    others = {name: value for name, value in fields.items() if name not in known}
    for name, value in others.items():
        if value is None:
            continue
        if name in _ELSEWHERE and not _says_nothing(name, value, _ELSEWHERE):
            raise BadLine(f"{name} {_NO_COUNTERPART}")
        option = _nearest_option(name, _OPTIONS)
        if option in _MODEL_URIS and shape == "prompt":
            option = "model"
        if option == name:
            raise BadLine(f"{name} does not go with {shape}")
        if option:
            raise BadLine(f"unknown field '{shown(name)}': did you mean '{option}'?")
    return others


def _names(fields: JsonObject) -> str:
    names = ", ".join(shown(name) for name in [*fields][:8])
    return f"{names}, …" if len(fields) > 8 else names


def _take_id(meta: JsonObject) -> RecordId:
    value = None
    for name in _ID_FIELDS:
        if value is None:
            value, taken = meta.pop(name, None), name
    if value is None or type(value) is int:
        return value
    if not isinstance(value, str):
        raise BadLine(f"{taken} must be a text or an integer")
    if not 1 <= len(value.encode()) <= MAX_ID_BYTES:
        raise BadLine(f"{taken} must have 1 to {MAX_ID_BYTES} bytes")
    if _CONTROL.search(value):
        raise BadLine(f"{taken} holds a control character")
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
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in _ROLES:
        raise BadLine(f"message {place}: role must be system, user or assistant")
    said = {name: value for name, value in message.items() if name != "role" and value not in (None, [])}
    name, value = next(iter(said.items())) if len(said) == 1 else ("", None)
    if name not in _CONTENTS:
        wanted = "one text, toolCallList or toolResultList and nothing else"
        raise BadLine(f"message {place} must have {wanted}; has {_names(message)}")
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
}
_RULES |= dict.fromkeys(_LIMITS, ("an integer above 0", _is_limit))
_RULES |= dict.fromkeys(("model", *_MODEL_URIS), ("the name of a model", _is_model))
_RULES |= dict.fromkeys(_COMPLETION_OPTIONS + _GENERATION_OPTIONS, ("an object", lambda value: isinstance(value, dict)))
_RULES_OF_COMPLETION = _RULES | dict.fromkeys(("maxTokens", "max_tokens"), ("an integer above 0", _is_limit_of_a_body))


def _check(options: JsonObject, rules: _Rules) -> None:
    for name, value in options.items():
        what, fits = rules.get(name, ("", None))
        if value is not None and fits is not None and not fits(value):
            raise BadLine(f"{name} must be {what}")


def _check_body(body: JsonObject, places_of_options: tuple[str, ...]) -> None:
    _check(body, _RULES)
    for place in places_of_options:
        options = body.get(place) or {}
        _check(options, _RULES_OF_COMPLETION)
        for name in options.keys() - _OPTIONS_OF_COMPLETION:
            if option := _nearest_option(name, _OPTIONS_OF_COMPLETION):
                raise BadLine(f"unknown field '{shown(name)}' in {place}: did you mean '{option}'?")


# --- misspelt options ---------------------------------------------------------------------------------------


def _folded(name: str) -> str:
    return re.sub(r"[_\-. ]", "", name).lower()


@lru_cache(maxsize=4096)  # the same few names stand on every line
def _nearest_option(name: str, options: frozenset[str]) -> str | None:
    """The option a field's name is or was surely meant to be; ``None`` for an ordinary word."""
    if name in options:
        return name
    known = {_folded(option): option for option in sorted(options, key=lambda option: ("_" not in option, option))}
    longest = max(map(len, known)) + 6
    if name == "message" or not 4 <= len(name) <= longest:  # "message" is a usual column, though close to an option
        return None
    folded = _folded(name)
    letters = "".join(sorted(folded))
    for option in known:
        if letters == "".join(sorted(option)):  # another case, a missing underscore, two letters swapped
            return known[option]
    cutoff = 0.87 if len(folded) >= 8 else 0.9  # modelUrl is close enough, mode is not
    for close in difflib.get_close_matches(folded, known, n=1, cutoff=cutoff):
        option = known[close]
        if not re.fullmatch(re.escape(option) + r"(s|[_\-. \dA-Z].*)", name):  # models, temperature_c
            return option
    return None
