"""The older API, ``instructAsync``: its own request and answer; quotas, faults, journal, payments as for messages."""

import json
from pathlib import Path
from typing import Any

import pytest

from .client import AT_ONCE, Client, instruction, visit

INSTRUCT_PATH = "/llm/v1alpha/instructAsync"


async def instruct(client: Client, text: str = "Capital of Serbia?", **changes: Any) -> Any:
    return await client.request("POST", INSTRUCT_PATH, json.dumps(instruction(text, **changes)).encode())


def test_an_instruction_is_polled_where_all_operations_are_and_answers_in_its_own_shape() -> None:
    async def story(client: Client) -> None:
        submitted = (await instruct(client, "Я" * 300)).json
        assert (submitted["done"], submitted["id"][:3]) == (False, "d7q")
        response = (await client.poll(submitted["id"])).json["response"]
        (alternative,) = response["alternatives"]
        assert alternative["text"].count("Я") == 60
        assert alternative["numTokens"] == str(len(alternative["text"]) // 3)
        assert response["numPromptTokens"] == str((300 + len("One word.")) // 3)
        assert response.keys() == {"@type", "alternatives", "numPromptTokens"}

    visit(story, f"{AT_ONCE},no_reasoning_details=1")


GENERATION = "generationOptions"
BAD_INSTRUCTIONS = {
    "no request": ({"requestText": None}, "empty request text"),
    "empty request": ({"requestText": ""}, "empty request text"),
    "long request": ({"requestText": "я" * 100_001}, "text length is 100001, which is outside the range (0, 100000]"),
    "long instruction": ({"instructionText": "я" * 100_001}, "text length is 100001"),
    "no model": ({"model": ""}, "model must have 1 to 50 characters"),
    "long model": ({"model": "m" * 51}, "model must have 1 to 50 characters"),
    "too many tokens": ({GENERATION: {"maxTokens": "7401"}}, "maxTokens: not a value that it can have"),
    "no tokens": ({GENERATION: {"max_tokens": 0}}, "maxTokens: not a value that it can have"),
    "too warm": ({GENERATION: {"temperature": 1.01}}, "temperature: not a value that it can have"),
    "both instructions": ({"instruction_uri": "s3://b/k"}, "only one of instructionText, instructionUri may be set"),
    "unknown field": ({"modelUri": "gpt://b1g/yandexgpt"}, 'unknown field "modelUri"'),
    "messages": ({"messages": [{"role": "user", "text": "hi"}]}, 'unknown field "messages"'),
}


@pytest.mark.parametrize(("changes", "message"), BAD_INSTRUCTIONS.values(), ids=BAD_INSTRUCTIONS.keys())
def test_a_bad_instruction_is_refused_and_not_paid(changes: dict[str, Any], message: str) -> None:
    async def story(client: Client) -> None:
        reply = await instruct(client, **changes)
        assert (reply.status, reply.json["code"]) == (400, 3)
        assert message in reply.json["error"]
        stats = await client.stats()
        assert (stats["submits_received"], stats["accepted"]) == (1, 0)

    visit(story)


def test_each_api_refuses_the_request_of_the_other() -> None:
    async def story(client: Client) -> None:
        assert (await client.submit(requestText="hi")).status == 400
        assert (await instruct(client)).status == 200
        stats = await client.stats()
        assert (stats["submits_received"], stats["accepted"]) == (2, 1)

    visit(story)


def test_quotas_and_folders_are_the_same_for_both_apis() -> None:
    async def story(client: Client) -> None:
        elsewhere = json.dumps(instruction()).encode()
        reply = await client.request("POST", INSTRUCT_PATH, elsewhere, **{"x-folder-id": "b1gthird"})
        assert (reply.status, "'b1gthird' does not match" in reply.json["error"]) == (400, True)
        assert (await instruct(client)).status == 200  # without the header the folder is the key's own
        assert (await client.submit()).status == 200
        refused = await instruct(client)
        assert (refused.status, refused.json["code"], refused.headers["Retry-After"]) == (429, 8, "7")

    visit(story, f"{AT_ONCE},rph=2,retry_after=7,folder=b1gexamplefolder0000")


@pytest.mark.parametrize(("fault", "status", "is_paid"), [("error_before", 503, False), ("error_after", 503, True)])
def test_an_instruction_meets_faults_before_and_after_it_is_paid(fault: str, status: int, is_paid: bool) -> None:
    async def story(client: Client) -> None:
        reply = await instruct(client, "poison")
        assert (reply.status, isinstance(reply.json["error"], str)) == (status, True)
        stats = await client.stats()
        assert (stats[fault], stats["accepted"]) == (1, is_paid)

    visit(story, f"{AT_ONCE},{fault}=1")


def test_a_rule_finds_an_instruction_by_its_request_text() -> None:
    async def story(client: Client) -> None:
        await client.change(rules=[{"text": "poison", "fail": 1, "fail_code": 3}, {"text": "One word", "stuck": 1}])
        for text, key in (("the poison pill", "error"), ("bread", "response")):
            assert key in (await client.poll((await instruct(client, text)).json["id"])).json

    visit(story)


def test_a_restart_knows_the_instructions_and_who_paid_for_them(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def before(client: Client) -> None:
        for text in ("twice", "twice", "once"):
            operation_id = (await instruct(client, text)).json["id"]
        seen.extend([operation_id, (await client.poll(operation_id)).json])

    async def after(client: Client) -> None:
        operation_id, answer = seen
        assert (await client.poll(operation_id)).json == answer
        assert answer["response"]["@type"].endswith(".InstructResponse")
        stats = await client.stats()
        assert (stats["accepted"], stats["distinct"]) == (3, 2)
        assert [(each["text"], each["count"]) for each in stats["payments"]] == [("twice", 2), ("once", 1)]

    visit(before, journal=tmp_path / "journal")
    visit(after, journal=tmp_path / "journal")
