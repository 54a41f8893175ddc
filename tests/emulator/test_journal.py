import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from .client import AT_ONCE, Client, emulator_process, raw_submit, visit, visit_url


def ids_in(journal: Path) -> list[str]:
    return [json.loads(line)["id"] for line in journal.read_bytes().splitlines()]


def test_a_lost_reply_and_a_kill_lose_no_operation(tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    async def submit_in_vain(client: Client) -> None:
        for text in ("one", "two", "two"):
            with pytest.raises(aiohttp.ClientConnectionError):
                await client.submit(text)

    async def find_all(client: Client) -> None:
        stats = await client.stats()
        assert (stats["accepted"], stats["distinct"]) == (3, 2)
        for operation_id in ids_in(journal):
            assert (await client.poll(operation_id)).json["done"]

    with emulator_process(f"{AT_ONCE},lost=1", journal) as (process, url):
        visit_url(submit_in_vain, url)
        process.kill()
    visit(find_all, journal=journal)


def test_a_kill_between_acceptance_and_reply_loses_no_operation(tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    with emulator_process(f"{AT_ONCE},slow=60", journal) as (process, url):

        async def kill_while_it_waits(client: Client) -> None:
            submit = asyncio.create_task(client.submit())
            await client.until(lambda stats: stats["accepted"] == 1)
            process.kill()
            with pytest.raises(aiohttp.ClientConnectionError):
                await submit

        visit_url(kill_while_it_waits, url)

    async def find_it(client: Client) -> None:
        (operation_id,) = ids_in(journal)
        assert (await client.poll(operation_id)).json["done"]

    visit(find_it, journal=journal)


def test_a_served_emulator_drops_and_cuts_as_one_in_process_does(tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        with pytest.raises(ConnectionResetError):
            await raw_submit(client.url)
        await client.change(reset=0, cut=1)
        head, _, half = (await raw_submit(client.url)).partition(b"\r\n\r\n")
        assert 0 < len(half) < int(head.lower().split(b"content-length: ")[1].split()[0])
        await client.change(cut=0, lost=1)
        assert await raw_submit(client.url) == b""

    with emulator_process(f"{AT_ONCE},reset=1", tmp_path / "journal") as (_, url):
        visit_url(story, url)


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_served_emulator_says_where_it_listens_and_stops_cleanly(name: signal.Signals, tmp_path: Path) -> None:
    with emulator_process("", tmp_path / "journal") as (process, url):
        assert url.startswith("http://127.0.0.1:")
        process.send_signal(name)
        assert process.wait(10) == 0


def test_a_restart_keeps_finishing_times_endings_and_draws(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    seen: list[Any] = []

    async def before(client: Client) -> None:
        failed, running = await client.submit_for_id("a"), ""
        await client.change(p50=3600, p99=3600, fail=0)
        running = await client.submit_for_id("b")
        seen.extend([failed, running, (await client.poll(failed)).json])

    async def after(client: Client) -> None:
        failed, running, answer = seen
        assert (await client.poll(failed)).json == answer
        assert not (await client.poll(running)).json["done"]
        assert "response" in await client.answer("a")  # it failed once before the restart

    visit(before, f"{AT_ONCE},fail=1,fail_times=1", journal=journal)
    visit(after, f"{AT_ONCE},fail=1,fail_times=1", journal=journal)


async def submit_once(client: Client) -> None:
    await client.submit_for_id()


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    async def count(client: Client) -> None:
        assert (await client.stats())["accepted"] == 1
        await client.submit()

    visit(submit_once, journal=journal)
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[:-1])
    visit(count, journal=journal)
    assert journal.read_bytes().startswith(whole)
    assert [json.loads(line)["occurrence"] for line in journal.read_bytes().splitlines()] == [0, 1]


def test_a_file_that_is_no_journal_is_refused_with_its_line(tmp_path: Path) -> None:
    for content in (b"no journal\n", b"{}\n", b"7\n"):
        journal = tmp_path / "journal"
        journal.write_bytes(content)
        with pytest.raises(ValueError, match=r"journal:1: not a line"):
            visit(submit_once, journal=journal)


def test_the_journal_is_private_and_never_a_link(tmp_path: Path) -> None:
    journal, link = tmp_path / "journal", tmp_path / "link"
    visit(submit_once, journal=journal)
    assert journal.stat().st_mode & 0o777 == 0o600
    link.symlink_to(journal)
    with pytest.raises(OSError, match="symbolic links"):
        visit(submit_once, journal=link)
