"""Bytes out, bytes in, for the older API: what differs from the newer one."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest
from aioresponses import aioresponses

from batchrun.inputs import Reading, parse
from batchrun.providers.base import Provider
from batchrun.providers.instruct import Instruct
from batchrun.providers.yandex import NO_ANSWER, parse_json
from batchrun.record import (
    Accepted,
    Answer,
    Finished,
    JsonObject,
    PollFailed,
    PollReply,
    Prompt,
    Settings,
    StillRunning,
    Usage,
)
from batchrun.writer import _model
from tests.unit.test_yandex import BASE, CREDENTIALS, OPERATION_ID, failed, failure, operation
from tests.unit.test_yandex import service as service


def instruct(endpoint: str | None = BASE) -> Instruct:
    return Instruct(CREDENTIALS, endpoint=endpoint)


def as_provider() -> Provider:
    """mypy checks here that the class keeps the protocol."""
    return instruct()


# --- build --------------------------------------------------------------------------------------------------

PLAIN = Settings(provider="yandex-instruct", model="general")
FULL = Settings(provider="yandex-instruct", model="general", system="Be brief.", temperature=0.5, max_tokens=100)
OPTIONS = {"temperature": 0.5, "maxTokens": "100"}
WHOLE = {
    "model": "yagpt-2.0:hq",
    "instructionText": "Rhyme.",
    "requestText": "Hi",
    "generationOptions": {"partialResults": False, "temperature": 0, "maxTokens": 5},
}
BODIES: dict[str, tuple[Prompt, Settings, JsonObject]] = {
    "a prompt and nothing else": (Prompt("Hi"), PLAIN, {"requestText": "Hi", "model": "general"}),
    "everything from the settings": (
        Prompt("Hi"),
        FULL,
        {"requestText": "Hi", "model": "general", "instructionText": "Be brief.", "generationOptions": OPTIONS},
    ),
    "everything from the record": (
        Prompt("Hi", system="Rhyme.", model="yagpt-2.0:hq", temperature=0.0, max_tokens=7),
        FULL,
        {
            "requestText": "Hi",
            "model": "yagpt-2.0:hq",
            "instructionText": "Rhyme.",
            "generationOptions": {"temperature": 0.0, "maxTokens": "7"},
        },
    ),
    "an empty system text of the record means none": (
        Prompt("Hi", system=""),
        FULL,
        {"requestText": "Hi", "model": "general", "generationOptions": OPTIONS},
    ),
    "a body with nothing to fill": (Prompt(None, body=WHOLE), FULL, WHOLE),
    "a body with a request only": (
        Prompt(None, body={"requestText": "Hi"}),
        FULL,
        {"requestText": "Hi", "model": "general", "instructionText": "Be brief.", "generationOptions": OPTIONS},
    ),
    "null is absent": (
        Prompt(None, body={"requestText": "Hi", "model": None, "instructionText": None, "generationOptions": None}),
        FULL,
        {"requestText": "Hi", "model": "general", "instructionText": "Be brief.", "generationOptions": OPTIONS},
    ),
    "an instruction by URI is one": (
        Prompt(None, body={"requestText": "Hi", "instructionUri": "ds://i"}),
        FULL,
        {"requestText": "Hi", "model": "general", "instructionUri": "ds://i", "generationOptions": OPTIONS},
    ),
    "an empty instruction means none": (
        Prompt(None, body={"requestText": "Hi", "instruction_text": ""}),
        FULL,
        {"requestText": "Hi", "model": "general", "instruction_text": "", "generationOptions": OPTIONS},
    ),
    "snake_case": (
        Prompt(None, body={"request_text": "Hi", "instruction_uri": "i", "generation_options": {"max_tokens": 5}}),
        FULL,
        {
            "request_text": "Hi",
            "instruction_uri": "i",
            "model": "general",
            "generation_options": {"max_tokens": 5, "temperature": 0.5},
        },
    ),
}


@pytest.mark.parametrize(("prompt", "settings", "expected"), BODIES.values(), ids=BODIES)
def test_only_the_gaps_of_a_request_are_filled(prompt: Prompt, settings: Settings, expected: JsonObject) -> None:
    before = copy.deepcopy(prompt.body)
    assert json.loads(instruct().build(prompt, settings)) == expected
    assert prompt.body == before  # the record is not changed


MODELS = {
    "of the record": ({"prompt": "Hi", "model": "yagpt-2.0:hq"}, "yagpt-2.0:hq"),
    "of the body": ({"requestText": "Hi", "model": "yagpt-2.0:hq"}, "yagpt-2.0:hq"),
    "of the settings": ({"requestText": "Hi"}, "general"),
}


@pytest.mark.parametrize(("line", "expected"), MODELS.values(), ids=MODELS)
def test_a_result_names_the_model_that_was_asked(line: JsonObject, expected: str) -> None:
    prompt = parse(json.dumps(line).encode(), Reading(for_instruct=True)).prompt
    assert json.loads(instruct().build(prompt, PLAIN))["model"] == expected
    assert _model(prompt, PLAIN) == expected


# --- read ---------------------------------------------------------------------------------------------------

INSTRUCT = "type.googleapis.com/yandex.cloud.ai.llm.v1alpha.InstructResponse"
BELGRADE = {"text": "Belgrade", "score": -0.5, "numTokens": "2"}


def answered(*alternatives: Any, **response: Any) -> bytes:
    response = {"@type": INSTRUCT, "alternatives": alternatives, "numPromptTokens": "21"} | response
    return operation(done=True, response=response)


def text(text: str, *counts: int | None) -> Finished:
    return Finished(Answer(text, "unspecified", Usage(*counts)))


READS: dict[str, tuple[bytes, PollReply]] = {
    "running": (operation(done=False), StillRunning()),
    "answered": (answered(BELGRADE), text("Belgrade", 21, 2)),
    "numbers as numbers": (answered({**BELGRADE, "numTokens": 2}, numPromptTokens=21), text("Belgrade", 21, 2)),
    "a score in a string": (answered({**BELGRADE, "score": "0.99"}), text("Belgrade", 21, 2)),
    "a score that is no number": (answered({**BELGRADE, "score": "NaN"}), text("Belgrade", 21, 2)),
    "without its zeros": (operation(done=True, response={"@type": INSTRUCT, "alternatives": [{}]}), text("", 0, 0)),
    "nulls": (
        answered({"text": None, "score": None, "numTokens": None}, numPromptTokens=None),
        text("", 0, 0),
    ),
    "usage that is nonsense loses no answer": (
        answered({"text": "x", "numTokens": -1}, numPromptTokens="many"),
        text("x", None, None),
    ),
    "the second alternative does not count": (answered(BELGRADE, {"text": "Novi Sad"}), text("Belgrade", 21, 2)),
    "failed": (failed(13), failure("provider_error", 13, retryable=True)),
    "done with neither": (operation(done=True), NO_ANSWER),
    "no alternatives": (answered(), NO_ANSWER),
    "alternatives are null": (answered(alternatives=None), NO_ANSWER),
    "an alternative that is a text": (answered("Belgrade"), NO_ANSWER),
    "a text that is a number": (answered({"text": 7}), NO_ANSWER),
    "a text that is false": (answered({"text": False}), NO_ANSWER),
    "not an operation": (b"<html>", PollFailed("the reply is not an operation", status=200)),
}


@pytest.mark.parametrize(("body", "expected"), READS.values(), ids=READS)
def test_read(body: bytes, expected: PollReply) -> None:
    assert instruct().read(parse_json(body)) == expected


# --- on the wire --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "submit", "operations"),
    [
        (None, "https://llm.api.cloud.yandex.net", "https://operation.api.cloud.yandex.net"),
        (BASE, BASE, BASE),
    ],
    ids=["the service's own", "one base URL"],
)
def test_it_has_a_path_of_its_own_and_the_operations_of_both(
    endpoint: str | None, submit: str, operations: str, service: aioresponses
) -> None:
    service.post(f"{submit}/llm/v1alpha/instructAsync", body=operation())
    service.get(f"{operations}/operations/{OPERATION_ID}", body=answered(BELGRADE))

    async def run() -> None:
        async with instruct(endpoint) as provider:
            assert await provider.submit(b"{}", "r1") == Accepted(OPERATION_ID)
            assert await provider.poll(OPERATION_ID) == text("Belgrade", 21, 2)

    asyncio.run(run())
