"""Yandex Cloud AI Studio: asynchronous text generation (``completionAsync`` and its operations)."""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from batchrun import record
from batchrun.errors import CredentialsRefused, UsageProblem
from batchrun.log import event
from batchrun.providers.http import Exchange, Http, Oversize, Reply, check_endpoint
from batchrun.record import Answer, Failure, JsonObject, PollReply, Prompt, Settings, SubmitReply, Usage
from batchrun.redact import Redactor

OPERATION_HOST = "https://operation.api.cloud.yandex.net"
ACCEPTANCES_KEPT = 1000  # a reply that comes twice comes next on its connection
MAX_TOKENS = 1 << 40  # more than any answer has: a number above it is nonsense

NO_ANSWER = record.Malformed("finished without an answer or an error that can be read")
OPERATION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_FOLDER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PASSING_CODES = frozenset({2, 4, 8, 13, 14, 15})
_REFUSALS = frozenset({*range(300, 500), 501} - {408, 499})  # with any other status, a gateway may have forwarded it
_HTML = "an HTML page"
_ASKS_FOR_JSON = {"jsonObject", "json_object", "jsonSchema", "json_schema"}
_FINISH_REASONS = {"final": "stop", "truncated_final": "length"} | {  # an enum may come as its number
    str(number): reason
    for number, reason in enumerate(("unspecified", "partial", "length", "stop", "content_filter", "tool_calls"))
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are: the value of the ``Authorization`` header, and the folder that pays."""

    authorization: str = field(repr=False)
    folder: str


def credentials_from(environ: Mapping[str, str]) -> Credentials:
    """The credentials the environment holds; an API key before an IAM token.

    Raises:
        CredentialsRefused: There is no key, or it holds what no key holds.
        UsageProblem: There is no folder, or it cannot be one.
    """
    given = {name: environ.get(name, "").strip() for name in ("YC_API_KEY", "YC_IAM_TOKEN", "YC_FOLDER_ID")}
    name, scheme = ("YC_API_KEY", "Api-Key") if given["YC_API_KEY"] else ("YC_IAM_TOKEN", "Bearer")
    key, folder = given[name], given["YC_FOLDER_ID"]
    if not key:
        remedy = "README, 'Use it'. To try without an account: --provider emulator, and another -o"
        raise CredentialsRefused("no API key: YC_API_KEY and YC_IAM_TOKEN are empty", remedy=remedy)
    if not re.fullmatch(r"[!-~]+", key):
        cause = f"{name} holds a space, a line break or a letter that no key has"
        raise CredentialsRefused(cause, remedy=f"copy the key into {name} once more, alone and on one line")
    if not _FOLDER.fullmatch(folder):
        remedy = "set it to the ID of the key's folder (b1g…, 20 letters and digits), not to its name"
        raise UsageProblem("YC_FOLDER_ID is empty, or not the ID of a folder", remedy=remedy)
    return Credentials(f"{scheme} {key}", folder)


class Yandex:
    """The asynchronous mode of text generation.

    Args:
        endpoint: One base URL for submit and operations; ``None`` means the service's own two hosts.
        workers: POSTs at the same time.
    """

    retention_s = 3 * 24 * 3600.0
    host = "https://ai.api.cloud.yandex.net"
    path = "/foundationModels/v1/completionAsync"
    options = ("completionOptions", "completion_options")

    def __init__(self, credentials: Credentials, *, endpoint: str | None = None, workers: int = 1) -> None:
        base = None if endpoint is None else check_endpoint(endpoint)
        self._submit_url = f"{self.host if base is None else base}{self.path}"
        self._operations_url = f"{OPERATION_HOST if base is None else base}/operations"
        self._folder = credentials.folder
        key = credentials.authorization.partition(" ")[2]
        self._redact = Redactor((credentials.authorization, key, credentials.folder))
        headers = {"Authorization": credentials.authorization, "x-data-logging-enabled": "false"}
        self._http = Http(headers, workers=workers)
        self._accepted = deque[str](maxlen=ACCEPTANCES_KEPT)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.__aexit__(*error)

    # --- pure -----------------------------------------------------------------------------------------------

    def build(self, prompt: Prompt, settings: Settings) -> bytes:
        """The request body: what the record says, then what it leaves open from the settings."""
        wanted = {
            name: getattr(settings, name) if (own := getattr(prompt, name)) is None else own
            for name in ("model", "system", "temperature", "max_tokens")
        }
        body = self._body_of(prompt.text) if prompt.body is None else dict(prompt.body)
        self._fill(body, wanted["model"], wanted["system"])
        _fill_options(body, self.options, wanted["temperature"], wanted["max_tokens"])
        if settings.schema is not None and not body.keys() & _ASKS_FOR_JSON:
            body["jsonSchema"] = {"schema": orjson.Fragment(settings.schema)}
        return orjson.dumps(body)

    def _body_of(self, text: str | None) -> JsonObject:
        return {"messages": [{"role": "user", "text": text}]}

    def _fill(self, body: JsonObject, model: str, system: str | None) -> None:
        if not body.get("modelUri") and not body.get("model_uri"):
            body["modelUri"] = model if "://" in model else f"gpt://{self._folder}/{model}"
        messages = body["messages"]
        if system and all(message["role"] != "system" for message in messages):
            body["messages"] = [{"role": "system", "text": system}, *messages]

    def read(self, operation: Any) -> PollReply:
        """What an operation says of itself. ``null``, missing and default mean the same everywhere."""
        match operation:
            case {"done": True, "error": {"code": code} as error} if _integer(code):
                return record.Finished(self._failure(_integer(code) or 0, error.get("message")))
            case {"done": True, "response": {"alternatives": [dict() as alternative, *_]} as response}:
                return self._read_alternative(alternative, response)
            case {"done": True}:
                return NO_ANSWER
            case {"id": str()} if not operation.get("done"):
                return record.StillRunning()
            case _:
                return record.PollFailed("the reply is not an operation", status=200)

    def _failure(self, code: int, message: Any) -> Failure:
        kind = {1: "cancelled", 3: "invalid_argument"}.get(code, "provider_error")
        text = self._redact(message) if isinstance(message, str) else ""
        return Failure(kind, text or "the service gave no reason", code, retryable=code in _PASSING_CODES)

    def _read_alternative(self, alternative: JsonObject, response: JsonObject) -> PollReply:
        usage = _usage(response.get("usage"))
        finish_reason = self._finish_reason(alternative.get("status"))
        if finish_reason == "content_filter":
            said = "the service's content filter stopped the answer"
            return record.Finished(Failure("content_filter", said, finish_reason=finish_reason, usage=usage))
        message = alternative.get("message") or {}
        if not isinstance(message, dict) or not isinstance(message.get("text"), str | None):
            return NO_ANSWER
        calls = message.get("toolCallList")
        try:
            orjson.dumps(calls)
        except TypeError:  # nested too deep
            return NO_ANSWER
        text = (message.get("text") or "") if calls is None else message.get("text")
        version = response.get("modelVersion")
        model_version = self._redact(version) if isinstance(version, str) and version else None
        return record.Finished(Answer(text, finish_reason, usage, model_version, json=calls))

    def _finish_reason(self, status: Any) -> str:
        """The service's word in lower case and without its prefix, or the common one; enums come by name or number."""
        word = self._redact(str(status)) if isinstance(status, str | int) else ""
        name = word.removeprefix("ALTERNATIVE_STATUS_")[:64].lower()
        return _FINISH_REASONS.get(name, name or "unspecified")

    # --- on the wire ----------------------------------------------------------------------------------------

    async def submit(self, body: bytes, request_id: str) -> SubmitReply:
        """POST the body once."""
        headers = {"Content-Type": "application/json", "x-client-request-id": request_id}
        exchange = await self._http.post(self._submit_url, body, headers)
        reply = self._read_submitted(exchange)
        if isinstance(reply, record.Accepted) and reply.operation_id not in self._accepted:
            self._accepted.append(reply.operation_id)
        elif isinstance(exchange, Reply | Oversize):
            self._http.drop_connections()  # it may be the reply to another request
        return reply

    def _read_submitted(self, exchange: Exchange) -> SubmitReply:
        match exchange:
            case Reply(status, body) if 200 <= status < 300:
                match parse_json(body):
                    case {"id": str(found)} if OPERATION_ID.fullmatch(found) and self._redact(found) == found:
                        return record.Accepted(found)
                event("submit_reply_unreadable", logging.WARNING, status=status, bytes=len(body))
                return record.Ambiguous(f"HTTP {status} without an operation ID")
            case Reply(status, body, wait_s) if status in _REFUSALS:
                code, message = read_error(body)
                return record.Refused(status, self._redact(message), code, wait_s)
            case Reply(status):
                return record.Ambiguous(f"HTTP {status}")
            case Oversize(max_bytes=max_bytes):
                return record.Ambiguous(f"the reply is longer than {max_bytes} bytes")
            case lost:
                return lost

    async def poll(self, operation_id: str) -> PollReply:
        """GET the operation once."""
        if not OPERATION_ID.fullmatch(operation_id):
            return record.Malformed("the operation ID in the ledger cannot be one of the service")
        match await self._http.get(f"{self._operations_url}/{operation_id}"):
            case record.Unreachable(reason) | record.Ambiguous(reason):
                return record.PollFailed(reason)
            case Oversize(200, max_bytes):
                return record.Finished(Failure("oversize", f"the answer is longer than {max_bytes} bytes"))
            case Oversize(status):
                return record.PollFailed("an oversize error page", status)
            case Reply(200, body, _):
                operation = parse_json(body)
                if isinstance(operation, dict) and operation.get("id") not in (None, operation_id):
                    self._http.drop_connections()  # it lags behind: this says nothing about our operation
                    return record.PollFailed("the reply is about another operation")
                return self.read(operation)
            case Reply(404, body) if _plain(body) != _HTML:  # a page comes from a proxy, which knows no operations
                return record.NotFound()
            case Reply(status, body, wait_s):
                return record.PollFailed(self._redact(read_error(body)[1]), status, wait_s)


def read_error(body: bytes) -> tuple[int | None, str]:
    """The gRPC code and the message (not yet redacted) of an error body, in any of the shapes met."""
    match parse_json(body):
        case {"error": {} as error}:  # A, of the streaming calls; OpenAI's has no grpcCode
            code, message = error.get("grpcCode"), error.get("message")
        case {} as error:  # B, whose `error` repeats the message, and C, everywhere else
            code, message = error.get("code"), error.get("message", error.get("error"))
        case _:
            code, message = None, _plain(body)
    return _integer(code), message if isinstance(message, str) and message else "no reason given"


def _plain(body: bytes) -> str:
    """What a proxy says; a page is not quoted."""
    text = body[:8192].decode(errors="replace").strip().lstrip("\ufeff")
    return _HTML if text.startswith("<") else text


def _fill_options(body: JsonObject, names: tuple[str, str], temperature: float | None, max_tokens: int | None) -> None:
    """Temperature and length limit, where the body has none under either spelling."""
    where = names[body.get(names[1]) is not None]
    options = dict(body.get(where) or {})
    if temperature is not None and options.get("temperature") is None:
        options["temperature"] = temperature
    if max_tokens is not None and options.get("maxTokens") is None and options.get("max_tokens") is None:
        options["maxTokens"] = str(max_tokens)
    if options:
        body[where] = options


def _usage(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("completionTokensDetails")
    return Usage(
        input_tokens=count(usage.get("inputTextTokens")),
        output_tokens=count(usage.get("completionTokens")),
        reasoning_tokens=count(details.get("reasoningTokens")) if isinstance(details, dict) else None,
        total_tokens=count(usage.get("totalTokens")),
    )


def count(value: Any) -> int | None:
    """A number of tokens; ``None`` for what cannot be one."""
    number = 0 if value is None else _integer(value)
    return number if number is not None and 0 <= number <= MAX_TOKENS else None


def _integer(value: Any) -> int | None:
    """An int64 as JSON may carry it: a number, or a string of digits."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
        return int(value)
    return value if type(value) is int and abs(value) < 1 << 63 else None


def parse_json(body: bytes) -> Any:
    """The JSON in these bytes, or ``None``.

    Broken characters (half a surrogate pair, bad UTF-8) become U+FFFD: a paid answer is worth reading.
    """
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(body)
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(body.decode(errors="replace"), strict=False), ensure_ascii=False)
        return orjson.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return None
