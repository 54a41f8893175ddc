import asyncio
import hashlib
import json
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.emulator.operations import is_used_up

from .client import AT_ONCE, ROOT, Client, body, visit


def test_payments_count_each_distinct_request(tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    async def story(client: Client) -> None:
        ids = [await client.submit_for_id(text) for text in ("once", "twice" * 99, "twice" * 99)]
        await client.submit("once", messages=[])
        stats = await client.stats()
        assert (stats["submits_received"], stats["accepted"], stats["distinct"]) == (4, 3, 2)
        assert [(each["text"], each["count"]) for each in stats["payments"]] == [("once", 1), (("twice" * 99)[:200], 2)]
        paid = [json.loads(line) for line in journal.read_bytes().splitlines()]
        texts = ["once", *[("twice" * 99)[:200]] * 2]
        assert [(each["id"], each["text"]) for each in paid] == list(zip(ids, texts, strict=True))
        canonical = json.dumps(body("once"), sort_keys=True, separators=(",", ":")).encode()
        assert paid[0]["request"] == hashlib.sha256(canonical).hexdigest()
        assert [each["request"] for each in paid] == [stats["payments"][at]["request"] for at in (0, 1, 1)]

    visit(story, journal=journal)


def test_faults_change_while_it_runs_for_all_or_for_some() -> None:
    async def story(client: Client) -> None:
        changed = await client.change(rules=[{"text": "poison", "fail": 1, "fail_code": 3}])
        assert (changed.status, changed.json["p50"], changed.json["fail"]) == (200, 0, 0)
        assert (await client.answer("the poison pill"))["error"]["code"] == 3
        assert "response" in await client.answer("bread")
        await client.change(status=503)
        assert (await client.submit("bread")).status == 503

    visit(story)


def test_a_rule_lies_over_the_common_settings_and_stays_when_they_change() -> None:
    async def story(client: Client) -> None:
        await client.change(fail=1, rules=[{"text": "poison", "fail_code": 3}, {"text": "poison", "fail": 0}])
        await client.change(fail_code=8)
        assert (await client.answer("this is poison!"))["error"]["code"] == 3
        assert (await client.answer("this is not"))["error"]["code"] == 8
        await client.change(rules=[])
        assert (await client.answer("poison"))["error"]["code"] == 8

    visit(story)


WRONG_CHANGES = [
    *(b"[]", b"{", b'{"lsot": 1}', b'{"lost": "x"}', b'{"rps": 1.5}', b'{"p99": null}'),
    *(b'{"rules": 5}', b'{"rules": ["x"]}', b'{"status": 503, "rules": [{"text": "a", "fial": 1}]}'),
]


@pytest.mark.parametrize("content", WRONG_CHANGES)
def test_a_wrong_change_is_refused_whole(content: bytes) -> None:
    async def story(client: Client) -> None:
        reply = await client.request("PUT", "/_faults", content)
        assert reply.status == 400
        assert reply.json["error"]
        assert (await client.submit()).status == 200

    visit(story)


def test_control_needs_no_key() -> None:
    async def story(client: Client) -> None:
        assert (await client.request("GET", "/_stats", Authorization="")).status == 200
        assert (await client.request("PUT", "/_faults", b"{}", Authorization="")).status == 200

    visit(story, "api_key=secret")


def test_no_more_submits_than_the_quota_are_let_through() -> None:
    async def story(client: Client) -> None:
        replies = await asyncio.gather(*(client.submit(str(number)) for number in range(20)))
        assert sorted(reply.status for reply in replies) == [200] * 5 + [429] * 15
        refused = next(reply for reply in replies if reply.status == 429)
        assert refused.json["code"] == 8
        assert "PerHour.rate rate quota limit exceed: allowed 5 requests" in refused.json["error"]
        stats = await client.stats()
        assert (stats["refused_quota"], stats["refuse"], stats["accepted"]) == (15, 0, 5)

    visit(story, f"{AT_ONCE},rph=5,rps=1000")


def test_no_more_reads_than_the_quota_are_let_through() -> None:
    async def story(client: Client) -> None:
        replies = [await client.poll("x") for _ in range(8)]
        assert [reply.status for reply in replies] == [404] * 3 + [429] * 5
        assert "allowed 3 requests" in replies[-1].json["message"]
        assert "error" not in replies[-1].json
        assert (await client.stats())["polls_refused_quota"] == 5

    visit(story, "read_rps=3")


@given(st.lists(st.floats(0, 0.7), max_size=60), st.integers(1, 5))
def test_no_window_of_a_second_holds_more_than_the_quota(gaps: list[float], quota: int) -> None:
    admitted: list[float] = []
    for now in accumulate(gaps):
        in_window = sum(now - at < 1 for at in admitted)
        assert is_used_up(quota, admitted, span_s=1, now=now) == (in_window == quota)
        if in_window < quota:
            admitted.append(now)


def test_it_listens_on_one_loopback_address_only() -> None:
    async def story(client: Client) -> None:
        host, port = client.url.removeprefix("http://").split(":")
        assert host == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.2", int(port))  # loopback as well: all addresses would include it

    visit(story)


def test_importing_the_package_does_not_import_aiohttp() -> None:
    code = "import sys, batchrun.emulator; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
