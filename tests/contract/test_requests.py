"""Our request bodies, read by the service's own definitions, in strict JSON mode."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.providers.yandex import Credentials, Yandex
from batchrun.record import JsonObject, Prompt, Settings

json_format = pytest.importorskip("google.protobuf.json_format")
service = pytest.importorskip("yandex.cloud.ai.foundation_models.v1.text_generation.text_generation_service_pb2")

FOLDER = "b1gabcdefghij0123456"
PROVIDER = Yandex(Credentials("Api-Key k", FOLDER))

texts = st.text(min_size=1, max_size=50)
models = st.sampled_from(["yandexgpt/latest", "yandexgpt-lite", "gpt://other/yandexgpt/rc@tuned1"])
temperatures = st.floats(min_value=0, max_value=1)
lengths = st.integers(min_value=1, max_value=2**63 - 1)
settings = st.builds(
    Settings,
    provider=st.just("yandex"),
    model=models,
    system=st.none() | texts,
    temperature=st.none() | temperatures,
    max_tokens=st.none() | lengths,
)
prompts = st.builds(
    Prompt,
    text=texts,
    body=st.none(),
    system=st.none() | texts,
    model=st.none() | models,
    temperature=st.none() | temperatures,
    max_tokens=st.none() | lengths,
)
int64s = lengths | lengths.map(str)


def spelled(camel: str, snake: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[JsonObject]:
    """A field under one of its two names, null, or left out."""
    field = st.tuples(st.sampled_from([camel, snake]), st.none() | values)
    return st.just({}) | field.map(lambda pair: {pair[0]: pair[1]})


def merged(*parts: st.SearchStrategy[JsonObject]) -> st.SearchStrategy[JsonObject]:
    return st.tuples(*parts).map(lambda found: {name: value for part in found for name, value in part.items()})


options = merged(
    spelled("temperature", "temperature", temperatures),
    spelled("maxTokens", "max_tokens", int64s),
    spelled("stream", "stream", st.booleans()),
    spelled("reasoningOptions", "reasoning_options", st.just({"mode": "DISABLED"})),
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "text": texts}),
    min_size=1,
)
bodies = merged(
    messages.map(lambda found: {"messages": found}),
    spelled("modelUri", "model_uri", st.just("gpt://body/model")),
    spelled("completionOptions", "completion_options", options),
    spelled("jsonObject", "json_object", st.booleans()),
    spelled("parallelToolCalls", "parallel_tool_calls", st.booleans()),
    spelled("toolChoice", "tool_choice", st.just({"mode": "AUTO"})),
)


def parsed(body: bytes) -> Any:
    """The message, as the strict parser sees it: unknown and doubled fields are errors."""
    return json_format.Parse(body, service.CompletionRequest())


def uri(model: str) -> str:
    return model if "://" in model else f"gpt://{FOLDER}/{model}"


def value_of(message: Any, field: str) -> Any:
    return getattr(message, field).value if message.HasField(field) else None


@given(prompts, settings)
def test_a_prompt_asks_for_exactly_what_was_meant(prompt: Prompt, settings: Settings) -> None:
    request = parsed(PROVIDER.build(prompt, settings))
    system = settings.system if prompt.system is None else prompt.system
    expected = [("user", prompt.text)] if system is None else [("system", system), ("user", prompt.text)]
    assert [(message.role, message.text) for message in request.messages] == expected
    assert request.model_uri == uri(settings.model if prompt.model is None else prompt.model)
    temperature = settings.temperature if prompt.temperature is None else prompt.temperature
    max_tokens = settings.max_tokens if prompt.max_tokens is None else prompt.max_tokens
    assert value_of(request.completion_options, "temperature") == temperature
    assert value_of(request.completion_options, "max_tokens") == max_tokens
    assert not request.completion_options.stream


@given(bodies, settings)
def test_a_body_keeps_what_it_says_and_gains_what_it_leaves_open(body: JsonObject, settings: Settings) -> None:
    given_request = parsed(json.dumps(body).encode())
    request = parsed(PROVIDER.build(Prompt(None, body=body), settings))

    said = given_request.completion_options
    asked = request.completion_options
    for field in ("temperature", "max_tokens"):
        wanted = value_of(said, field) if said.HasField(field) else getattr(settings, field)
        assert value_of(asked, field) == wanted
    assert request.model_uri == (given_request.model_uri or uri(settings.model))

    gains_system = settings.system is not None and all(m.role != "system" for m in given_request.messages)
    assert list(request.messages[gains_system:]) == list(given_request.messages)
    if gains_system:
        assert (request.messages[0].role, request.messages[0].text) == ("system", settings.system)

    for message in (request, given_request):
        for field in ("temperature", "max_tokens"):
            message.completion_options.ClearField(field)
        message.completion_options.SetInParent()
        message.ClearField("model_uri")
        message.ClearField("messages")
    assert request == given_request
