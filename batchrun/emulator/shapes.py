"""Every shape the emulator answers with. Pure: values in, JSON-ready dictionaries out.

Marks: [P] official proto or documentation, [R] recorded traffic, [W] seen in the wild, [I] inferred or
invented.
"""

import random
import time
import zlib
from typing import Any

Json = dict[str, Any]

CLOUD_ID = "b1gemulator000000000"  # [I]
CREATED_BY = "ajeemulator000000000"  # [P] a service account's id: 20 characters
MODEL_VERSION = "09.02.2025"  # [P] a date-like string
RESPONSE_TYPE = "type.googleapis.com/yandex.cloud.ai.foundation_models.v1.CompletionResponse"  # [P]
HTML_ERROR = b"<html><head><title>Oops</title></head><body><h1>Something went wrong</h1></body></html>"  # [I]

INTERNAL = 13
HTTP_OF_CODE = {  # [P] google.rpc.Code to HTTP
    3: 400, 16: 401, 7: 403, 5: 404, 10: 409, 8: 429, 1: 499, 13: 500, 12: 501, 14: 503, 4: 504,
}  # fmt: skip
CODE_OF_HTTP = {http: code for code, http in HTTP_OF_CODE.items()}


def timestamp(at: float) -> str:
    """[R] RFC 3339, UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def operation(operation_id: str, *, created_at: float, modified_at: float, done: bool) -> Json:
    """[P] an Operation, [R] with ``done: false`` and ``metadata: null`` spelt out; without its result."""
    return {
        "id": operation_id,
        "description": "Async GPT Completion",
        "createdAt": timestamp(created_at),
        "createdBy": CREATED_BY,
        "modifiedAt": timestamp(modified_at),
        "done": done,
        "metadata": None,
    }


def completion(text: str, *, status: str, prompt_characters: int) -> Json:
    """[P] a CompletionResponse inside ``Any``; [R] one alternative, counts as strings; [I] their values."""
    prompt_tokens, answer_tokens = _tokens(prompt_characters), _tokens(len(text))
    return {
        "@type": RESPONSE_TYPE,
        "alternatives": [{"message": {"role": "assistant", "text": text}, "status": f"ALTERNATIVE_STATUS_{status}"}],
        "usage": {
            "inputTextTokens": str(prompt_tokens),
            "completionTokens": str(answer_tokens),
            "totalTokens": str(prompt_tokens + answer_tokens),
            "completionTokensDetails": {"reasoningTokens": "0"},
        },
        "modelVersion": MODEL_VERSION,
    }


def _tokens(characters: int) -> int:
    return max(1, characters // 3)


def answer_text(last_message: str, request_sha256: str) -> str:
    """[I] stable for a request, plain about its origin, and never more than 60 characters of the prompt."""
    origin = f"Invented by the emulator, no model was asked ({request_sha256[:8]})."
    return f"{origin} You wrote: {last_message[:60]}"


FILTERED_TEXT = "Invented by the emulator: this answer was held back by the content filter."  # [I]


def failure(code: int) -> Json:
    """[P] google.rpc.Status inside a finished operation, [I] its text."""
    message = "internal error" if code == INTERNAL else f"generation failed with code {code}"
    return {"code": code, "message": message, "details": []}


def submit_error(code: int, message: str) -> Json:
    """Shape B: [W] for image generation, [I] for ``completionAsync``, which is unary as well."""
    return {"error": message, "code": code, "message": message, "details": []}


def operation_error(code: int, message: str, request_id: str) -> Json:
    """Shape C: [P] the general Yandex Cloud error, which the operation endpoint uses."""
    request_info = {"@type": "type.googleapis.com/google.rpc.RequestInfo", "requestId": request_id}
    return {"code": code, "message": message, "details": [request_info]}


NO_CREDENTIALS = "Authorization header is missing or malformed."  # [I]
BAD_TOKEN = "Token is invalid or has expired."  # [P]
NOT_FOUND = "Operation not found"  # [I] the real text is not known
UNAVAILABLE = "service is unavailable"  # [I]


def unknown_api_key(key: str) -> str:
    """[W] the wording and the mask; [I] that the number in brackets is a CRC-32."""
    return f"Unknown api key '{key[:4]}****{key[-4:]} ({zlib.crc32(key.encode()):08X})'"


def folder_mismatch(given: str, own: str) -> str:
    """[W] many times, [P] on the documentation's error page."""
    return f"Specified folder ID '{given}' does not match with service account folder ID '{own}'"


def permission_denied(folder: str) -> str:
    """[W] many times."""
    return f"Permission to [resource-manager.folder {folder}, resource-manager.cloud {CLOUD_ID}] denied"


def quota_exceeded(per: str, allowed: int) -> str:
    """[W] the pattern, [I] the quota's name (``per``: RequestsPerSecond or the like): none is public."""
    return f"ai.textGenerationAsync{per}.rate rate quota limit exceed: allowed {allowed} requests"


def text_for_status(http: int, folder: str) -> str:
    """What an error asked for by its HTTP status says: [W] and [P] where a text is known, else [I]."""
    texts = {
        400: "Failed to get model",
        401: BAD_TOKEN,
        403: permission_denied(folder or "b1gexamplefolder0000"),
        429: quota_exceeded("RequestsPerSecond", 10),
        503: UNAVAILABLE,
    }
    return texts.get(http, f"the emulator was told to answer {http}")


def without_nulls(document: Json) -> Json:
    """[P] a missing field means the same as a null one."""
    return {key: value for key, value in document.items() if value is not None}


def with_null_timestamps(document: Json) -> Json:
    """[W] as image generation answers."""
    return {**document, "createdAt": None, "modifiedAt": None}


def without_reasoning_details(document: Json) -> Json:
    """[R] as in 2024: ``usage`` has no ``completionTokensDetails``."""
    if "response" not in document:
        return document
    response = document["response"]
    usage = {key: value for key, value in response["usage"].items() if key != "completionTokensDetails"}
    return {**document, "response": {**response, "usage": usage}}


def in_random_key_order(document: Json) -> Json:
    """[W] the order differs between services; here the inner objects are shuffled as well."""
    keys = random.sample(list(document), len(document))
    return {key: _shuffled(document[key]) for key in keys}


def _shuffled(value: Any) -> Any:
    return in_random_key_order(value) if isinstance(value, dict) else value
