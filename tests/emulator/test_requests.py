import json
from io import BytesIO
from typing import Any

import pytest

from .client import SUBMIT_PATH, Client, body, raw_submit, visit


def said(text: Any, **others: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "text": text} | others]}


BAD_REQUESTS = {
    "no messages": (body(messages=[]), "messages must not be empty"),
    "empty text": (body(**said("")), "empty message text"),
    "no content": (body(messages=[{"role": "user"}]), "empty message text"),
    "long text": (
        body(**said("я" * 100_001)),
        "text length is 100001, which is outside the range (0, 100000]",
    ),
    "too warm": (body(completionOptions={"temperature": 1.01}), "temperature: not a value that it can have"),
    "not a temperature": (body(completionOptions={"temperature": "nan"}), "temperature: not a value"),
    "no tokens": (body(completionOptions={"maxTokens": "0"}), "maxTokens: not a value"),
    "no model": (body(modelUri=""), "Failed to parse model URI"),
    "bad model": (body(modelUri="yandexgpt"), "Failed to parse model URI"),
    "picture model": (body(modelUri="art://b1g/yandex-art/latest"), "Failed to parse model URI"),
    "unknown field": (body(user_tag="x"), 'unknown field "user_tag"'),
    "not an object": ([], "must be an object"),
}


@pytest.mark.parametrize(("content", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_bad_request_is_refused_and_not_paid(content: Any, message: str) -> None:
    async def story(client: Client) -> None:
        await assert_refused(client, json.dumps(content).encode(), message)

    visit(story)


async def assert_refused(client: Client, content: bytes, message: str) -> None:
    reply = await client.request("POST", SUBMIT_PATH, content)
    assert reply.status == 400
    assert reply.json == {
        "error": reply.json["message"],
        "code": 3,
        "message": reply.json["message"],
        "details": [],
    }
    assert message in reply.json["message"]
    stats = await client.stats()
    assert (stats["submits_received"], stats["accepted"]) == (1, 0)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b'"\\ud800"', b'{"a":' * 400 + b"1" + b"}" * 400, b"[" * 100_000]
)
def test_a_body_that_is_no_json_is_refused(content: bytes) -> None:
    async def story(client: Client) -> None:
        await assert_refused(client, content, "")

    visit(story)


def test_a_body_above_8_mib_is_refused_with_413_and_one_below_is_read() -> None:
    async def story(client: Client) -> None:
        assert (await client.request("POST", SUBMIT_PATH, BytesIO(b"x" * (8 * 2**20 + 1)))).status == 413
        assert (await client.request("POST", SUBMIT_PATH, BytesIO(b"x" * (8 * 2**20 - 1)))).status == 400

    visit(story)


@pytest.mark.parametrize(
    ("authorisation", "message"),
    [
        ("", "Authorization header is missing or malformed."),
        ("Basic cGFzcw==", "Authorization header is missing or malformed."),
        ("Api-Key AQVNwrong12345", "Unknown api key 'AQVN****2345 (CE9D1A49)'"),
        ("Bearer t1.wrong", "Token is invalid or has expired."),
    ],
)
def test_without_the_right_key_both_endpoints_answer_401(authorisation: str, message: str) -> None:
    async def story(client: Client) -> None:
        submit = await client.request("POST", SUBMIT_PATH, b"{}", Authorization=authorisation)
        poll = await client.request("GET", "/operations/x", Authorization=authorisation)
        assert (submit.status, poll.status) == (401, 401)
        assert submit.json["error"] == submit.json["message"] == poll.json["message"]
        assert submit.json["message"] == message
        assert (submit.json["code"], poll.json["code"]) == (16, 16)
        assert poll.json["details"][0]["@type"].endswith("google.rpc.RequestInfo")

    visit(story, "api_key=AQVNright")


@pytest.mark.parametrize("header", [b"Api-Key \xff", b"Bearer b\r\nx-folder-id: \xff"])
def test_a_header_outside_utf_8_is_refused_in_words(header: bytes) -> None:
    async def story(client: Client) -> None:
        assert (await raw_submit(client.url, header + b"\r\nConnection: close")).startswith(b"HTTP/1.1 40")
        assert (await client.stats())["accepted"] == 0

    visit(story, "api_key=b,folder=b1g")


@pytest.mark.parametrize("scheme", ["Api-Key", "Bearer", "api-key"])
def test_the_right_key_is_taken_in_either_scheme(scheme: str) -> None:
    async def story(client: Client) -> None:
        reply = await client.request("GET", "/operations/x", Authorization=f"{scheme} AQVNright")
        assert (reply.status, reply.json["code"]) == (404, 5)

    visit(story, "api_key=AQVNright")


def test_another_folder_than_the_key_s_is_refused_wherever_it_is_named() -> None:
    async def story(client: Client) -> None:
        expected = "Specified folder ID '{}' does not match with service account folder ID 'b1gexamplefolder0000'"
        in_uri = await client.submit(modelUri="gpt://b1gother/yandexgpt")
        assert (in_uri.status, in_uri.json["message"]) == (400, expected.format("b1gother"))
        content = json.dumps(body()).encode()
        in_header = await client.request("POST", SUBMIT_PATH, content, **{"x-folder-id": "b1gthird"})
        assert (in_header.status, in_header.json["message"]) == (400, expected.format("b1gthird"))
        assert (await client.submit()).status == 200

    visit(story, "folder=b1gexamplefolder0000")


def test_every_answer_carries_the_two_ids_of_the_service() -> None:
    async def story(client: Client) -> None:
        for reply in (await client.submit(), await client.submit(messages=[]), await client.poll("x")):
            assert len(reply.headers["x-request-id"]) == len(reply.headers["x-server-trace-id"]) == 36

    visit(story)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", SUBMIT_PATH), ("POST", "/operations/x"), ("GET", "/"), ("GET", "/_faults")]
)
def test_any_other_call_is_not_found(method: str, path: str) -> None:
    async def story(client: Client) -> None:
        assert (await client.request(method, path)).status == 404

    visit(story)
