"""The older API against the service's own definitions: what is asked can be read, what is answered is understood."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.providers.yandex import NO_ANSWER
from batchrun.record import Answer, Finished, JsonObject, Prompt, Settings, Usage
from tests.contract.test_replies import is_theirs
from tests.contract.test_requests import int64s, lengths, merged, spelled, temperatures, texts, value_of
from tests.unit import test_instruct as cases

json_format = pytest.importorskip("google.protobuf.json_format")
operations = pytest.importorskip("yandex.cloud.operation.operation_pb2")
service = pytest.importorskip("yandex.cloud.ai.llm.v1alpha.llm_service_pb2")

PROVIDER = cases.instruct()
models = st.sampled_from(["general", "yagpt-2.0:hq"])
settings = st.builds(
    Settings,
    provider=st.just("yandex-instruct"),
    model=models,
    system=st.none() | texts,
    temperature=st.none() | temperatures,
    max_tokens=st.none() | lengths,
)
prompts = st.builds(
    Prompt,
    text=texts,
    body=st.none(),
    system=st.none() | st.text(max_size=50),
    model=st.none() | models,
    temperature=st.none() | temperatures,
    max_tokens=st.none() | lengths,
)
instructions = spelled("instructionText", "instruction_text", st.text(max_size=50))
instructions |= spelled("instructionUri", "instruction_uri", texts)
bodies = merged(
    st.sampled_from(["requestText", "request_text"]).flatmap(lambda name: texts.map(lambda text: {name: text})),
    spelled("model", "model", models),
    instructions,
    spelled(
        "generationOptions",
        "generation_options",
        merged(
            spelled("temperature", "temperature", temperatures),
            spelled("maxTokens", "max_tokens", int64s),
            spelled("partialResults", "partial_results", st.booleans()),
        ),
    ),
)


def parsed(body: bytes) -> Any:
    """The message, as the strict parser sees it: unknown and doubled fields are errors."""
    return json_format.Parse(body, service.InstructRequest())


@given(prompts, settings)
def test_a_prompt_asks_for_exactly_what_was_meant(prompt: Prompt, settings: Settings) -> None:
    request = parsed(PROVIDER.build(prompt, settings))
    system = settings.system if prompt.system is None else prompt.system
    assert request.request_text == prompt.text
    assert request.WhichOneof("Instruction") == ("instruction_text" if system else None)
    assert request.instruction_text == (system or "")
    assert request.model == (settings.model if prompt.model is None else prompt.model)
    temperature = settings.temperature if prompt.temperature is None else prompt.temperature
    max_tokens = settings.max_tokens if prompt.max_tokens is None else prompt.max_tokens
    assert value_of(request.generation_options, "temperature") == temperature
    assert value_of(request.generation_options, "max_tokens") == max_tokens
    assert not request.generation_options.partial_results


@given(bodies, settings)
def test_a_body_keeps_what_it_says_and_gains_what_it_leaves_open(body: JsonObject, settings: Settings) -> None:
    expected = parsed(json.dumps(body).encode())
    request = parsed(PROVIDER.build(Prompt(None, body=body), settings))
    expected.model = expected.model or settings.model
    if settings.system and expected.WhichOneof("Instruction") is None:
        expected.instruction_text = settings.system
    for field in ("temperature", "max_tokens"):
        wanted = getattr(settings, field)
        if wanted is not None and not expected.generation_options.HasField(field):
            getattr(expected.generation_options, field).value = wanted
    for message in (request, expected):
        message.generation_options.SetInParent()
    assert request == expected


BEYOND_THE_PROTOS = {"usage that is nonsense loses no answer"}
UNDERSTOOD = {name: body for name, (body, reply) in cases.READS.items() if isinstance(reply, Finished)}


@pytest.mark.parametrize(("name", "body"), UNDERSTOOD.items(), ids=UNDERSTOOD)
def test_a_reply_that_the_client_understands_is_one_that_the_service_can_give(name: str, body: bytes) -> None:
    assert is_theirs(body) == (name not in BEYOND_THE_PROTOS)


counts = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 10_000)
alternatives = st.builds(
    lambda **fields: service.InstructResponse().alternatives.add(**fields),
    text=st.text(max_size=50),
    score=st.floats(),
    num_tokens=counts,
)


@given(st.lists(alternatives, max_size=3), counts, st.booleans())
def test_every_answer_that_their_definitions_can_make_is_understood(
    alternatives: list[Any], prompt_tokens: int, has_defaults: bool
) -> None:
    operation = operations.Operation(id="d7q", done=True)
    operation.response.Pack(service.InstructResponse(alternatives=alternatives, num_prompt_tokens=prompt_tokens))
    body = json_format.MessageToJson(operation, always_print_fields_with_no_presence=has_defaults)
    reply = PROVIDER.read(json.loads(body))
    if not alternatives:
        assert reply == NO_ANSWER
        return
    usage = (n if 0 <= n <= 1 << 40 else None for n in (prompt_tokens, alternatives[0].num_tokens))
    assert reply == Finished(Answer(alternatives[0].text, "unspecified", Usage(*usage)))
