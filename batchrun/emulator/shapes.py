"""Every shape the emulator answers with. Pure: values in, JSON-ready dictionaries out.

Marks: [P] official proto or documentation, [R] recorded traffic, [W] seen in the wild, [I] inferred or
invented.
"""

import random
import time
from typing import Any

from .faults import Settings
from .operations import Operation

Json = dict[str, Any]

HTML_ERROR = b"<html><head><title>Oops</title></head><body><h1>Something went wrong</h1></body></html>"  # [I]

# [P] HTTP to google.rpc.Code
CODE_OF_HTTP = {400: 3, 401: 16, 403: 7, 404: 5, 409: 10, 429: 8, 499: 1, 500: 13, 501: 12, 503: 14, 504: 4}


def operation_document(operation: Operation, settings: Settings, *, done: bool) -> Json:
    """[P] an Operation, [R] with ``done: false`` and ``metadata: null`` spelt out, with its result when it is done.

    The settings give it one of the looks that real services show.
    """
    document = {
        "id": operation.id,
        "description": "Async GPT Completion",
        "createdAt": _timestamp(operation.accepted_at),
        "createdBy": "ajeemulator000000000",  # [P] a service account's id: 20 characters
        "modifiedAt": _timestamp(operation.finishes_at if done else operation.accepted_at),
        "done": done,
        "metadata": None,
    }
    if done and operation.ending == "fail":  # [P] google.rpc.Status, [I] its text
        message = f"generation failed with code {operation.fail_code}"
        document["error"] = {"code": operation.fail_code, "message": message, "details": []}
    elif done and operation.ending != "neither":
        document["response"] = _response(operation, settings)
    if settings.null_timestamps:  # [W] as image generation answers
        document |= {"createdAt": None, "modifiedAt": None}
    if settings.omit_null:  # [P] a missing field means the same as a null one
        document = {key: value for key, value in document.items() if value is not None}
    if settings.random_key_order:  # [W] the order differs between services
        document = dict(random.sample(list(document.items()), len(document)))
    return document


def _timestamp(at: float) -> str:
    """[R] RFC 3339, UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _response(operation: Operation, settings: Settings) -> Json:
    """[P] a CompletionResponse or InstructResponse inside ``Any``, int64 as strings; [R] one alternative; [I] values.

    [I] the text: stable for a request, plain about its origin, and never more than 60 characters of the prompt.
    """
    origin = f"Invented by the emulator, no model was asked ({operation.request[:8]})."
    text, status = f"{origin} You wrote: {operation.text[:60]}", "FINAL"
    if operation.ending == "filter":
        text = "Invented by the emulator: this answer was held back by the content filter."
        status = "CONTENT_FILTER"
    elif operation.ending == "truncate":
        text, status = text[: len(text) // 2], "TRUNCATED_FINAL"
    prompt_tokens, answer_tokens = max(1, operation.characters // 3), max(1, len(text) // 3)
    if operation.api == "instruct":  # [P] has no status; [I] the name of the type
        return {
            "@type": "type.googleapis.com/yandex.cloud.ai.llm.v1alpha.InstructResponse",
            "alternatives": [{"text": text, "score": -0.5, "numTokens": str(answer_tokens)}],
            "numPromptTokens": str(prompt_tokens),
        }
    details = {"completionTokensDetails": {"reasoningTokens": "0"}}
    return {
        "@type": "type.googleapis.com/yandex.cloud.ai.foundation_models.v1.CompletionResponse",
        "alternatives": [{"message": {"role": "assistant", "text": text}, "status": f"ALTERNATIVE_STATUS_{status}"}],
        "usage": {
            "inputTextTokens": str(prompt_tokens),
            "completionTokens": str(answer_tokens),
            "totalTokens": str(prompt_tokens + answer_tokens),
            **({} if settings.no_reasoning_details else details),  # [R] without them in 2024
        },
        "modelVersion": "09.02.2025",  # [P] a date-like string
    }


def error(http: int, message: str, request_id: str, *, of_submit: bool) -> Json:
    message = message.encode(errors="replace").decode()  # what a header holds beside UTF-8 is in no JSON
    status = {"code": CODE_OF_HTTP.get(http, 2), "message": message}
    if of_submit:  # shape B: [W] for image generation, [I] for text generation, which is unary as well
        return {"error": message, **status, "details": []}
    # shape C: [P] the general Yandex Cloud error, which the operation endpoint uses
    return {**status, "details": [{"@type": "type.googleapis.com/google.rpc.RequestInfo", "requestId": request_id}]}


NO_CREDENTIALS = "Authorization header is missing or malformed."  # [I]
BAD_TOKEN = "Token is invalid or has expired."  # [P]
NOT_FOUND = "Operation not found"  # [I] the real text is not known
# [W] many times, [P] on the documentation's error page
FOLDER_MISMATCH = "Specified folder ID '{}' does not match with service account folder ID '{}'"
# [W] the pattern, [I] the quota's name (RequestsPerSecond or the like): none is public
QUOTA_EXCEEDED = "ai.textGenerationAsync{}.rate rate quota limit exceed: allowed {} requests"
TEXTS = {  # [W] and [P], of errors asked for by their HTTP status
    403: "Permission to [resource-manager.folder b1gexamplefolder0000, resource-manager.cloud b1gemulator000] denied",
    429: QUOTA_EXCEEDED.format("RequestsPerSecond", 10),
}


def unknown_api_key(key: str) -> str:
    """[W] the wording and the mask; [I] always the same number in brackets."""
    return f"Unknown api key '{key[:4]}****{key[-4:]} (CE9D1A49)'"
