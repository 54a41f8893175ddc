import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from .client import AT_ONCE, Client, raw_submit, visit


def test_a_healthy_operation_runs_and_then_answers_with_a_stable_text_that_says_it_is_invented() -> None:
    async def story(client: Client) -> None:
        submitted = await client.submit("Я" * 300)
        assert submitted.json["done"] is False
        assert submitted.json["metadata"] is None
        operation_id = submitted.json["id"]
        assert len(operation_id) == 20
        assert operation_id.startswith("d7q")
        while not (reply := (await client.poll(operation_id)).json)["done"]:
            assert "response" not in reply
            assert "error" not in reply
        text = reply["response"]["alternatives"][0]["message"]["text"]
        assert "emulator" in text
        assert text.count("Я") == 60
        usage = reply["response"]["usage"]
        assert usage["inputTextTokens"] == str((300 + len("One word.")) // 3)
        assert (await client.stats())["polls_running"] > 0
        await client.change(p50=0, p99=0)
        again = await client.answer("Я" * 300)
        assert again["response"]["alternatives"][0]["message"]["text"] == text

    visit(story, "p50=0.05,p99=0.05")


def text_of(operation: dict[str, Any]) -> str:
    text: str = operation["response"]["alternatives"][0]["message"]["text"]
    return text


@pytest.mark.parametrize(
    ("fault", "is_paid"), [("reset", False), ("lost", True)], ids=["before acceptance", "after acceptance"]
)
def test_a_dropped_connection_brings_no_byte(fault: str, is_paid: bool) -> None:
    async def story(client: Client) -> None:
        if fault == "reset":
            with pytest.raises(ConnectionResetError):
                await raw_submit(client.url)
        else:
            assert await raw_submit(client.url) == b""
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.submit()
        stats = await client.stats()
        assert stats[fault] == stats["submits_received"] == 2
        assert stats["accepted"] == 2 * is_paid

    visit(story, f"{AT_ONCE},{fault}=1")


def test_a_cut_reply_promises_more_than_it_brings_and_is_paid() -> None:
    async def story(client: Client) -> None:
        head, _, half = (await raw_submit(client.url)).partition(b"\r\n\r\n")
        promised = int(head.lower().split(b"content-length: ")[1].split()[0])
        assert head.startswith(b"HTTP/1.1 200 ")
        assert 0 < len(half) < promised
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.submit()
        stats = await client.stats()
        assert stats["cut"] == stats["accepted"] == 2

    visit(story, f"{AT_ONCE},cut=1")


@pytest.mark.parametrize(
    ("fault", "status", "code", "is_paid"),
    [("refuse", 429, 8, False), ("error_before", 503, 14, False), ("error_after", 503, 14, True)],
)
def test_an_error_on_submit_has_shape_b(fault: str, status: int, code: int, is_paid: bool) -> None:
    async def story(client: Client) -> None:
        reply = await client.submit()
        assert (reply.status, reply.json["code"]) == (status, code)
        assert isinstance(reply.json["error"], str)
        assert reply.json["details"] == []
        stats = await client.stats()
        assert (stats[fault], stats["accepted"]) == (1, is_paid)

    visit(story, f"{AT_ONCE},{fault}=1")


def test_a_garbled_reply_is_a_page_with_status_200_and_is_paid() -> None:
    async def story(client: Client) -> None:
        reply = await client.submit()
        assert (reply.status, reply.headers["Content-Type"]) == (200, "text/html")
        assert b"<html>" in reply.raw
        assert (await client.stats())["accepted"] == 1

    visit(story, f"{AT_ONCE},garbled=1")


@pytest.mark.parametrize("status", [307, 400, 401, 403, 404, 413, 429, 500, 504])
def test_a_status_answers_every_submit_and_accepts_nothing(status: int) -> None:
    async def story(client: Client) -> None:
        reply = await client.submit()
        assert (reply.status, reply.json["details"]) == (status, [])
        assert reply.json["message"].startswith("Permission to [") == (status == 403)
        stats = await client.stats()
        assert (stats["status"], stats["accepted"]) == (1, 0)

    visit(story, f"{AT_ONCE},status={status}")


def test_a_status_answers_every_poll() -> None:
    async def story(client: Client) -> None:
        reply = await client.poll(await client.submit_for_id())
        assert (reply.status, reply.json["code"]) == (403, 7)

    visit(story, f"{AT_ONCE},poll_status=403")


def test_retry_after_is_sent_with_every_429_and_only_there() -> None:
    async def story(client: Client) -> None:
        operation_id = await client.submit_for_id()
        assert (await client.submit()).headers["Retry-After"] == "7"  # the quota
        await client.change(rph=0, refuse=1, poll_refuse=1)
        assert (await client.submit()).headers["Retry-After"] == "7"
        assert (await client.poll(operation_id)).headers["Retry-After"] == "7"
        await client.change(refuse=0, error_before=1)
        assert "Retry-After" not in (await client.submit()).headers

    visit(story, f"{AT_ONCE},rph=1,retry_after=7")


def test_the_same_id_is_answered_for_a_request_paid_anew() -> None:
    async def story(client: Client) -> None:
        first = await client.submit_for_id("one")
        assert await client.submit_for_id("two") == first
        stats = await client.stats()
        assert (stats["same_id"], stats["accepted"], stats["distinct"]) == (1, 2, 2)

    visit(story, f"{AT_ONCE},same_id=1")


def test_a_failing_operation_is_found_with_200_and_fails_only_so_many_times() -> None:
    async def story(client: Client) -> None:
        operations = [await client.answer() for _ in range(3)]
        assert [operation.get("error", {}).get("code") for operation in operations] == [14, 14, None]
        assert "response" not in operations[0]
        assert (await client.stats())["fail"] == 2

    visit(story, f"{AT_ONCE},fail=1,fail_code=14,fail_times=2")


def test_a_missing_operation_is_paid_and_not_found() -> None:
    async def story(client: Client) -> None:
        reply = await client.poll(await client.submit_for_id())
        assert (reply.status, reply.json["code"]) == (404, 5)
        stats = await client.stats()
        assert stats["missing"] == stats["accepted"] == stats["polls_not_found"] == 1

    visit(story, f"{AT_ONCE},missing=1")


ENDINGS: list[tuple[str, Callable[[dict[str, Any]], bool]]] = [
    ("stuck", lambda operation: not operation["done"]),
    ("neither", lambda operation: operation["done"] and operation.keys().isdisjoint({"error", "response"})),
    ("filter", lambda operation: "content filter" in text_of(operation)),
    ("truncate", lambda operation: "TRUNCATED_FINAL" in json.dumps(operation)),
    ("omit_null", lambda operation: "metadata" not in operation),
    ("null_timestamps", lambda operation: operation["createdAt"] is operation["modifiedAt"] is None),
    (
        "no_reasoning_details",
        lambda operation: "completionTokensDetails" not in operation["response"]["usage"],
    ),
]


@pytest.mark.parametrize(("fault", "is_seen"), ENDINGS)
def test_an_operation_shows_its_fault(fault: str, is_seen: Callable[[dict[str, Any]], bool]) -> None:
    async def story(client: Client) -> None:
        operation_id = await client.submit_for_id()
        assert is_seen((await client.poll(operation_id)).json)

    visit(story, f"{AT_ONCE},{fault}=1")


def test_the_key_order_can_be_random() -> None:
    async def story(client: Client) -> None:
        operation_id = await client.submit_for_id()
        orders = {tuple((await client.poll(operation_id)).json) for _ in range(20)}
        assert len(orders) > 1
        assert len({frozenset(order) for order in orders}) == 1

    visit(story, f"{AT_ONCE},random_key_order=1")


def test_an_operation_is_forgotten_after_its_retention() -> None:
    async def story(client: Client) -> None:
        operation_id = await client.submit_for_id()
        assert (await client.poll(operation_id)).status == 200
        await client.change(retention=0)
        reply = await client.poll(operation_id)
        assert (reply.status, reply.json["code"]) == (404, 5)

    visit(story)


@pytest.mark.parametrize(("fault", "status", "code"), [("poll_error", 503, 14), ("poll_refuse", 429, 8)])
def test_a_poll_can_fail_in_shape_c(fault: str, status: int, code: int) -> None:
    async def story(client: Client) -> None:
        reply = await client.poll(await client.submit_for_id())
        assert (reply.status, reply.json["code"]) == (status, code)
        assert "error" not in reply.json
        assert reply.json["details"]
        assert (await client.stats())[fault] == 1

    visit(story, f"{AT_ONCE},{fault}=1")


def test_a_poll_can_be_reset_or_garbled() -> None:
    async def story(client: Client) -> None:
        operation_id = await client.submit_for_id()
        await client.change(poll_garbled=1)
        assert b"<html>" in (await client.poll(operation_id)).raw
        await client.change(poll_reset=1)
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.poll(operation_id)

    visit(story)


def test_a_poll_draws_anew_each_time() -> None:
    async def story(client: Client) -> None:
        operation_id = await client.submit_for_id()
        statuses = [(await client.poll(operation_id)).status for _ in range(40)]
        assert {200, 503} == set(statuses)

    visit(story, f"{AT_ONCE},poll_error=0.5")


def test_a_slow_submit_is_accepted_before_it_is_answered() -> None:
    async def story(client: Client) -> None:
        submit = asyncio.create_task(client.submit())
        await client.until(lambda stats: stats["accepted"] == 1)
        assert not submit.done()
        submit.cancel()

    visit(story, f"{AT_ONCE},slow=60")


def test_a_seed_gives_the_same_faults_in_any_order_of_arrival() -> None:
    texts = [f"request {number}" for number in range(25)] * 2
    seen: list[dict[str, list[str]]] = []

    async def fate(client: Client, text: str) -> str:
        try:
            reply = await client.submit(text)
        except aiohttp.ClientConnectionError:
            return "dropped"
        if reply.status != 200:
            return str(reply.status)
        operation = (await client.poll(reply.json["id"])).json
        return "failed" if "error" in operation else "finished"

    async def in_order(client: Client) -> None:
        seen.append({})
        for text in texts:
            seen[-1].setdefault(text, []).append(await fate(client, text))

    async def at_once_and_backwards(client: Client) -> None:
        seen.append({})
        for half in (texts[25:][::-1], texts[:25]):
            fates = await asyncio.gather(*(fate(client, text) for text in half))
            for text, each in zip(half, fates, strict=True):
                seen[-1].setdefault(text, []).append(each)

    settings = f"{AT_ONCE},seed=3,lost=0.2,refuse=0.2,error_after=0.2,fail=0.4"
    visit(in_order, settings)
    visit(at_once_and_backwards, settings)
    assert seen[0] == seen[1]
    assert {fate for fates in seen[0].values() for fate in fates} == {
        "dropped", "429", "503", "failed", "finished",
    }  # fmt: skip
    assert any(first != second for first, second in seen[0].values())
