"""What may be asked from Python, and with whose key."""

from __future__ import annotations

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

import batchrun
from batchrun.api import prompt_of
from batchrun.record import Answer, Finished, NotFound, PollReply, StillRunning, Usage

USER = {"role": "user", "text": "hello"}
SYSTEM = {"role": "system", "text": "be brief"}
PLAIN = {"temperature": None, "maxTokens": None}


@pytest.mark.parametrize(
    ("messages", "sent"),
    [
        pytest.param("hello", [USER], id="text"),
        pytest.param(USER, [USER], id="dict"),
        pytest.param({"role": "user", "content": "hello"}, [USER], id="content"),
        pytest.param([SYSTEM, "hello"], [SYSTEM, USER], id="list_of_both"),
        pytest.param((SYSTEM, USER), [SYSTEM, USER], id="tuple"),
        pytest.param(iter([SYSTEM, USER]), [SYSTEM, USER], id="iterator"),
    ],
)
def test_messages_are_sent_in_the_words_of_the_service(messages: Any, sent: list[Any]) -> None:
    assert prompt_of(messages, PLAIN).body == {"messages": sent, "completionOptions": PLAIN}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        pytest.param([], "at least one message", id="empty_list"),
        pytest.param("", "text is empty", id="empty_text"),
        pytest.param(None, "not iterable", id="none"),
        pytest.param(7, "not iterable", id="number"),
        pytest.param([7], "not iterable", id="list_of_numbers"),
        pytest.param({"text": "hello"}, "role must be", id="no_role"),
        pytest.param({"role": "user"}, "must have one text", id="no_text"),
        pytest.param({"role": "user", "content": ["hello"]}, "must be of type text", id="parts"),
        pytest.param("\ud83d", "no character", id="half_a_character"),
        pytest.param({"role": "user", "text": b"hello"}, "bytes", id="bytes"),
    ],
)
def test_what_the_service_would_refuse_is_refused_here(messages: Any, reason: str) -> None:
    with pytest.raises(batchrun.BatchrunError, match=reason) as refused:
        prompt_of(messages, PLAIN)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("options", [{"temperature": 2}, {"temperature": math.nan}, {"maxTokens": 0}], ids=str)
def test_options_that_make_no_sense_are_refused_here(options: dict[str, Any]) -> None:
    with pytest.raises(batchrun.BatchrunError):
        prompt_of("hello", PLAIN | options)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("YC_API_KEY", "YC_IAM_TOKEN", "YC_FOLDER_ID", "BATCHRUN_ENDPOINT", "BATCHRUN_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def authorization(client: batchrun.Client) -> str:
    return client._yandex._http._headers["Authorization"]


def test_credentials_given_come_before_those_of_the_environment(environment: pytest.MonkeyPatch) -> None:
    """Fails if a token given leaves the environment's key in place, which wins over tokens."""
    environment.setenv("YC_API_KEY", "key-of-the-environment")
    environment.setenv("YC_FOLDER_ID", "b1genvironment")
    assert authorization(batchrun.Client()) == "Api-Key key-of-the-environment"
    assert authorization(batchrun.Client(api_key="mine")) == "Api-Key mine"
    assert authorization(batchrun.Client(iam_token="mine")) == "Bearer mine"
    with pytest.raises(batchrun.BatchrunError):  # an empty key is a mistake, not a wish for another one
        batchrun.Client(api_key="")


def test_model_and_endpoint_come_from_the_environment_of_the_command(environment: pytest.MonkeyPatch) -> None:
    client = batchrun.Client(api_key="k", folder_id="b1g")
    assert (client._settings.model, client._yandex._operations_url[:8]) == ("yandexgpt/latest", "https://")
    environment.setenv("BATCHRUN_ENDPOINT", "http://127.0.0.1:1")
    environment.setenv("BATCHRUN_MODEL", "yandexgpt-lite")
    client = batchrun.Client(api_key="k", folder_id="b1g")
    assert client._settings.model == "yandexgpt-lite"
    assert client._yandex._operations_url == "http://127.0.0.1:1/operations"
    with pytest.raises(batchrun.BatchrunError, match="plain http"):
        batchrun.Client(api_key="k", folder_id="b1g", endpoint="http://example.org")


def test_a_client_that_is_not_open_says_so() -> None:
    client = batchrun.Client(api_key="k", folder_id="b1g")
    for call in (client.run_deferred("hello"), client.attach_deferred("d7q").get_status()):
        with pytest.raises(batchrun.BatchrunError, match="not open"):
            asyncio.run(call)


@pytest.mark.parametrize("operation_id", ["", "d7q\n", "d7q/../x"], ids=json.dumps)
def test_what_cannot_be_the_id_of_an_operation_is_refused_without_asking(operation_id: str) -> None:
    with pytest.raises(batchrun.BatchrunError, match="not the ID"):
        batchrun.Client(api_key="k", folder_id="b1g").attach_deferred(operation_id)


def test_the_package_offers_its_public_names_and_no_other() -> None:
    assert all(getattr(batchrun, name).__name__ == name for name in batchrun.__all__)
    with pytest.raises(AttributeError, match="run_jobs"):
        batchrun.run_jobs  # type: ignore[attr-defined]  # noqa: B018


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that sleeping moves; the waits so far."""
    slept: list[float] = []
    real_monotonic = time.monotonic

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(time, "monotonic", lambda: real_monotonic() + sum(slept))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    return slept


class Service:
    """Says of an operation what a test has written down, the last word for ever."""

    def __init__(self, *replies: PollReply) -> None:
        self._replies = list(replies)

    async def poll(self, operation_id: str) -> PollReply:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


def operation_at(service: Service, monkeypatch: pytest.MonkeyPatch) -> batchrun.Operation:
    client = batchrun.Client(api_key="k", folder_id="b1g")
    monkeypatch.setattr(client, "_service", lambda: service)
    return client.attach_deferred("d7q")


def test_wait_gives_up_what_is_not_found_for_ten_minutes_in_a_row(
    hours: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a reply in between does not count, or if each poll begins the ten minutes anew."""
    operation = operation_at(Service(*[NotFound()] * 20, StillRunning(), NotFound()), monkeypatch)
    with pytest.raises(batchrun.OperationFailed) as failed:
        asyncio.run(operation.wait())
    assert failed.value.failure.kind == "held"
    assert 600 <= sum(hours[21:]) < 720
    assert max(hours) <= 60


def test_wait_asks_at_the_interval_it_is_given(hours: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer("yes", "stop", Usage())
    for interval, gaps in ((5.0, [5.0] * 30), (900.0, [900.0] * 30), (0.0, [0.025] * 30)):
        operation = operation_at(Service(*[StillRunning()] * 30, Finished(answer)), monkeypatch)
        assert asyncio.run(operation.wait(poll_interval=interval)) is answer
        assert hours == gaps
        hours.clear()


def test_a_name_that_no_file_can_have_is_told_as_any_other_problem(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('"a"\n')
    with pytest.raises(batchrun.BatchrunError, match="name too long"):
        asyncio.run(batchrun.run_job(tmp_path / "in.jsonl", tmp_path / ("o" * 300), provider="emulator"))


def test_a_job_that_only_looks_is_refused_and_not_sent() -> None:
    with pytest.raises(batchrun.BatchrunError, match="run_job sends"):
        asyncio.run(batchrun.run_job("in.jsonl", "out.jsonl", provider="emulator", dry_run=True))
