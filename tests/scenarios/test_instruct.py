"""The older API: what is asked differs, what is promised does not."""

from __future__ import annotations

import json
from collections import Counter

from tests.scenarios.bench import Bench


def options(bench: Bench) -> tuple[str, ...]:
    return ("--provider", "yandex-instruct", "--endpoint", bench.endpoint)


def test_prompts_for_the_older_api_are_paid_once_whatever_is_killed(bench: Bench) -> None:
    """Fails if ``open_provider`` takes the newer API, or ``build`` asks for what the older one does not know."""
    bench.records("a", "b", "c")
    bench.emulator.change(p50=2, p99=2)
    bench.kill_once(*options(bench), "-s", "Be brief.", "--temperature", "0.5", "--max-tokens", "500", open=3)
    assert bench.resume().exit_code == 0
    assert bench.emulator.submissions == Counter(a=1, b=1, c=1)
    assert bench.result_ids() == {"a", "b", "c"}
    for result in bench.results():
        assert result["text"]
        assert (result["provider"], result["model"]) == ("yandex-instruct", "general")
        assert (result["finish_reason"], result["model_version"]) == ("unspecified", None)
        assert result["usage"]["input_tokens"] > 0
        assert result["usage"]["output_tokens"] > 0
    bench.check()


def test_bodies_of_the_older_api_are_sent_as_they_are_and_messages_fail_alone(bench: Bench) -> None:
    """Fails if ``reading_of`` forgets which API the bodies are for, or a body loses a field on its way."""
    whole = {"instructionText": "Be brief.", "generationOptions": {"temperature": 0, "maxTokens": "500"}}
    snake = {"instruction_uri": "ds://instruction", "generation_options": {"max_tokens": 500}}
    bench.lines(
        json.dumps({"id": "a", "requestText": "a", "model": "yagpt-2.0:hq", "sku": 1, **whole}),
        json.dumps({"id": "b", "request_text": "b", **snake}),
        json.dumps({"id": "c", "messages": [{"role": "user", "text": "c"}]}),
    )
    assert bench.run(*options(bench)).exit_code == 1
    assert bench.emulator.submissions == Counter(a=1, b=1)
    assert {each["id"]: (each["model"], each["meta"]) for each in bench.results()} == {
        "a": ("yagpt-2.0:hq", {"sku": 1}),
        "b": ("general", {}),
    }
    assert bench.kinds() == {None: "bad_input"}
    exported = bench.spawn("export", "out.jsonl", "--format", "yandex-dataset", "-o", "-").wait().stdout
    assert [[each["text"] for each in json.loads(line)["request"]] for line in exported.splitlines()] == [
        ["Be brief.", "a"],
        ["ds://instruction", "b"],
    ]
    bench.check()
