"""The official compiled protos judge what the emulator says and what it accepts, in strict JSON mode."""

import json
from typing import Any

import pytest

pytest.importorskip("google.protobuf")
pytest.importorskip("yandex.cloud.operation.operation_pb2")

from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from yandex.cloud.ai.foundation_models.v1.text_generation import text_generation_service_pb2 as generation
from yandex.cloud.ai.llm.v1alpha import llm_service_pb2 as llm
from yandex.cloud.operation.operation_pb2 import Operation

from batchrun.emulator.requests import Refused, read_request

from .client import AT_ONCE, Client, Reply, body, instruction, visit

STYLES = ["", "omit_null=1", "null_timestamps=1", "no_reasoning_details=1", "random_key_order=1"]


def as_operation(reply: Reply) -> Any:
    return json_format.Parse(reply.raw, Operation())


@pytest.mark.parametrize("style", STYLES)
def test_a_submit_and_a_running_operation_are_official_operations(style: str) -> None:
    async def story(client: Client) -> None:
        submitted = await client.submit()
        running = as_operation(await client.poll(submitted.json["id"]))
        assert as_operation(submitted).id == running.id
        assert not running.done
        assert running.WhichOneof("result") is None

    visit(story, f"stuck=1,{style}")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("fault", "status"),
    [("", "FINAL"), ("filter=1", "CONTENT_FILTER"), ("truncate=1", "TRUNCATED_FINAL")],
)
def test_a_finished_operation_holds_an_official_completion_response(fault: str, status: str, style: str) -> None:
    async def story(client: Client) -> None:
        operation = as_operation(await client.poll(await client.submit_for_id("Где? 👩‍👩‍👧 \u0000\u202e")))
        response = generation.CompletionResponse()
        assert operation.done
        assert operation.response.Unpack(response)
        (alternative,) = response.alternatives
        assert f"ALTERNATIVE_STATUS_{status}" in str(response)
        assert alternative.message.role == "assistant"
        assert alternative.message.text
        usage = response.usage
        assert usage.total_tokens == usage.input_text_tokens + usage.completion_tokens
        assert min(usage.input_text_tokens, usage.completion_tokens) >= 1

    visit(story, f"{AT_ONCE},{fault},{style}")


@pytest.mark.parametrize("fault", ["", "filter=1", "truncate=1", *STYLES[1:]])
def test_a_finished_instruction_holds_an_official_instruct_response(fault: str) -> None:
    async def story(client: Client) -> None:
        content = json.dumps(instruction("Где? \u0000\u202e")).encode()
        submitted = await client.request("POST", "/llm/v1alpha/instructAsync", content)
        operation = as_operation(await client.poll(as_operation(submitted).id))
        response = llm.InstructResponse()
        assert operation.response.Unpack(response)
        (alternative,) = response.alternatives
        assert alternative.text
        assert min(alternative.num_tokens, response.num_prompt_tokens) >= 1

    visit(story, f"{AT_ONCE},{fault}")


def test_a_failed_operation_holds_an_official_status() -> None:
    async def story(client: Client) -> None:
        operation = as_operation(await client.poll(await client.submit_for_id()))
        assert operation.done
        assert operation.WhichOneof("result") == "error"
        assert operation.error.code == 8

    visit(story, f"{AT_ONCE},fail=1,fail_code=8")


def test_an_error_of_the_operation_endpoint_is_an_official_status_with_the_request_id() -> None:
    async def story(client: Client) -> None:
        reply = await client.poll("d7qunknown0000000000")
        status = json_format.Parse(reply.raw, status_pb2.Status())
        request_info = error_details_pb2.RequestInfo()
        assert status.code == 5
        assert status.details[0].Unpack(request_info)
        assert request_info.request_id == reply.headers["x-request-id"]

    visit(story)


MESSAGE = {"role": "user", "text": "hi"}
CALL = {"functionCall": {"name": "f", "arguments": {"x": 1}}}
RESULT = {"functionResult": {"name": "f", "content": "1"}}

ACCEPTED: dict[str, dict[str, Any]] = {
    "as the documentation has it": {},
    "int64 as a number": {"completionOptions": {"maxTokens": 2000}},
    "int64 as a whole float": {"completionOptions": {"maxTokens": 2000.0}},
    "null is absent": {"completionOptions": {"maxTokens": None}, "tools": None},
    "snake_case": {"completionOptions": {"max_tokens": "5", "reasoning_options": {"mode": "DISABLED"}}},
    "json_object": {"json_object": True},
    "enum by number": {"completionOptions": {"reasoningOptions": {"mode": 1}}},
    "temperature as text": {"completionOptions": {"temperature": "0.5"}},
    "a tool call and its result": {
        "messages": [
            MESSAGE,
            {"role": "assistant", "toolCallList": {"toolCalls": [CALL]}},
            {"role": "user", "tool_result_list": {"tool_results": [RESULT]}},
        ],
        "tools": [{"function": {"name": "f", "description": "d", "parameters": {}, "strict": True}}],
        "toolChoice": {"functionName": "f"},
        "parallelToolCalls": False,
    },
    "a schema": {"jsonSchema": {"schema": {"type": "object", "properties": {"a": {"type": ["null"]}}}}},
    "a oneof with one null": {"jsonObject": None, "jsonSchema": {"schema": {}}},
}

REFUSED_BY_BOTH: dict[str, dict[str, Any]] = {
    "int64 with a fraction": {"completionOptions": {"maxTokens": 2000.5}},
    "int64 as words": {"completionOptions": {"maxTokens": "abc"}},
    "int64 as a boolean": {"completionOptions": {"maxTokens": True}},
    "int64 too large": {"completionOptions": {"maxTokens": str(2**63)}},
    "an unknown field": {"userTag": "x"},
    "an unknown inner field": {"completionOptions": {"topP": 1}},
    "both spellings": {"jsonObject": True, "json_object": True},
    "both response formats": {"jsonObject": True, "jsonSchema": {"schema": {}}},
    "text and tool calls": {"messages": [MESSAGE | {"toolCallList": {"toolCalls": [CALL]}}]},
    "both tool choices": {"toolChoice": {"mode": "AUTO", "functionName": "f"}},
    "an unknown enum name": {"toolChoice": {"mode": "SOMETIMES"}},
    "a null message": {"messages": [None]},
    "messages that are no list": {"messages": MESSAGE},
    "temperature as words": {"completionOptions": {"temperature": "warm"}},
    "text as a number": {"messages": [{"role": "user", "text": 5}]},
    "stream as text": {"completionOptions": {"stream": "true"}},
    "a schema that is no object": {"jsonSchema": {"schema": "x"}},
}


INSTRUCTIONS_ACCEPTED: dict[str, dict[str, Any]] = {
    "as the documentation has it": {},
    "snake_case": {"generationOptions": None, "generation_options": {"max_tokens": 7400, "partial_results": True}},
    "null is absent": {"instructionText": None, "instructionUri": "s3://bucket/key", "generationOptions": None},
    "numbers as text": {"generationOptions": {"temperature": "0.5", "maxTokens": "1"}},
}
INSTRUCTIONS_REFUSED_BY_BOTH: dict[str, dict[str, Any]] = {
    "an unknown field": {"modelUri": "gpt://b1g/yandexgpt"},
    "an unknown inner field": {"generationOptions": {"stream": True}},
    "both instructions": {"instructionUri": "s3://bucket/key"},
    "both spellings": {"request_text": "again"},
    "int64 with a fraction": {"generationOptions": {"maxTokens": 1.5}},
    "int64 as a boolean": {"generationOptions": {"maxTokens": True}},
    "a request as a number": {"requestText": 5},
    "a request as a list": {"requestText": ["hi"]},
}


def named(api: str, cases: dict[str, dict[str, Any]]) -> list[Any]:
    return [pytest.param(api, changes, id=f"{api}: {name}") for name, changes in cases.items()]


def written(api: str, changes: dict[str, Any]) -> tuple[bytes, Any]:
    """A request as JSON, and the official message that it should be."""
    if api == "instruct":
        return json.dumps(instruction(**changes)).encode(), llm.InstructRequest()
    return json.dumps(body(**changes)).encode(), generation.CompletionRequest()


@pytest.mark.parametrize(("api", "changes"), named("completion", ACCEPTED) + named("instruct", INSTRUCTIONS_ACCEPTED))
def test_what_the_official_parser_accepts_is_accepted(api: str, changes: dict[str, Any]) -> None:
    content, message = written(api, changes)
    json_format.Parse(content, message)
    read_request(content, api)


@pytest.mark.parametrize(
    ("api", "changes"), named("completion", REFUSED_BY_BOTH) + named("instruct", INSTRUCTIONS_REFUSED_BY_BOTH)
)
def test_what_the_official_parser_refuses_is_refused(api: str, changes: dict[str, Any]) -> None:
    content, message = written(api, changes)
    with pytest.raises(json_format.ParseError):
        json_format.Parse(content, message)
    with pytest.raises(Refused):
        read_request(content, api)
