"""Every shape of input through a whole job, and what a job leaves as the input of another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from batchrun.inputs import Shape
from tests.scenarios.bench import Bench, record
from tests.scenarios.emulator import operations_in

SAMPLES = Path(__file__).parents[2] / "sample_inputs"
SHAPES = {
    "prompts.jsonl": Shape.PROMPT,
    "strings.jsonl": Shape.STRING,
    "messages.jsonl": Shape.MESSAGES,
    "bodies.jsonl": Shape.MESSAGES,
    "openai.jsonl": Shape.OPENAI,
    "dataset.jsonl": Shape.DATASET,
    "failures.ndjson": Shape.FAILURES,
}


def requests(bench: Bench) -> list[str]:
    """What was asked since the bench began: a digest of each request's whole body."""
    return sorted(operation["request"] for operation in operations_in(bench.emulator.journal()))


def test_every_sample_has_its_shape_in_this_test() -> None:
    assert {path.name for path in SAMPLES.iterdir()} == set(SHAPES)


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"prompts.jsonl"}))
def test_every_record_of_a_sample_is_answered(bench: Bench, name: str) -> None:
    """Fails if a shape loses a record or an id between its line and the answer, or is not read again alike."""
    shutil.copyfile(SAMPLES / name, bench.input)
    ran = bench.run("--provider", "emulator", "--emulator-faults", "p50=0,p99=0")
    assert (ran.exit_code, ran.stderr) == (0, "")
    bench.check(journal=bench.state / "emulator.jsonl")
    lines = [json.loads(line) for line in bench.input.read_bytes().splitlines()]
    found = {result["line"]: result for result in bench.results()}
    assert sorted(found) == list(range(1, len(lines) + 1))
    for number, line in enumerate(lines, 1):
        said = line.get("input", line) if isinstance(line, dict) else {}
        assert found[number]["id"] == said.get("custom_id", said.get("id"))
        assert found[number]["meta"].get("reference") == said.get("response")
        assert found[number]["meta"].get("lang") == said.get("lang")


def test_a_dataset_made_of_answers_and_failures_made_of_a_run_ask_the_same_again(bench: Bench) -> None:
    """Fails if the system message is lost in a dataset or doubled by -s, or if a failure is not read as its record."""
    system, options = "Отвечай «да» или «нет»\u2028.", ("--temperature", "0.5")
    texts = ["fine ж\u2028", "filtered 🏔️", "fine, \\ud800 and \x00", "filtered too"]
    bench.lines(
        *(json.dumps({"prompt": text, "note": None}, ensure_ascii=number == 2) for number, text in enumerate(texts))
    )
    bench.emulator.change(rules=[{"text": text, "filter": 1} for text in texts if text.startswith("filtered")])
    assert bench.run("-s", system, *options).exit_code == 1
    asked = requests(bench)
    assert [failure["id"] for failure in bench.failures()] == [None, None]
    export = ("export", "out.jsonl", "--format", "yandex-dataset", "-o", "dataset.jsonl")
    assert bench.spawn(*export).wait().exit_code == 0

    bench.emulator.begin()
    again = (*bench.command()[3:], *options)
    for source, words in (("dataset.jsonl", ()), ("out.errors.ndjson", ("-s", system))):
        ran = bench.spawn(source, "-o", f"again-{source[:3]}.jsonl", *words, *again).wait()
        assert (ran.exit_code, ran.stderr) == (0, "")
    assert requests(bench) == asked
    references = [
        json.loads(line)["meta"]["reference"]
        for line in (bench.folder / "again-dat.jsonl").read_text("utf-8").splitlines()
    ]
    assert sorted(references) == sorted(result["text"] for result in bench.results())


def test_a_failures_file_with_many_bad_lines_is_read_for_the_records_it_holds(bench: Bench) -> None:
    """Fails if failures of bad lines, which hold no record, count as bad lines of a wrong file."""
    lost = {"id": None, "line": 1, "operation_id": None, "error": {"kind": "bad_input"}, "input": None}
    held = lost | {"error": {"kind": "held"}, "input": json.loads(record("a"))}
    bench.lines(*[json.dumps(lost)] * 12, json.dumps(held))
    assert bench.run().exit_code == 1
    assert bench.emulator.submissions == {"a": 1}
    assert {failure["error"]["kind"] for failure in bench.failures()} == {"bad_input"}
    bench.check()


def test_the_model_of_another_service_gives_way_to_the_one_that_is_named(bench: Bench) -> None:
    """Fails if ``-m`` is only a default for lines of OpenAI's batches."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "a"}]}
    bench.lines(json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}))
    assert bench.run("-m", "yandexgpt-lite/latest").exit_code == 0
    [result] = bench.results()
    assert (result["id"], result["model"]) == ("1", "yandexgpt-lite/latest")
    bench.check()


def test_a_format_that_is_named_holds_for_every_line(bench: Bench) -> None:
    """Fails if the first record decides although ``--format`` does."""
    bench.records("a")
    ran = bench.run("--format", "messages")
    assert ran.exit_code == 3
    assert "in.jsonl:1: a line of shape prompt, in a file of shape messages" in ran.stderr
    assert bench.is_untouched()


def test_a_prompt_column_makes_prompts_of_any_field(bench: Bench) -> None:
    """Fails if the remedy does not name a field that is there, or if the field is not taken."""
    bench.lines('{"sku": "7", "review": "good, but the lid leaks", "stars": 3}')
    refused = bench.run()
    assert refused.exit_code == 3
    assert "in.jsonl:1: no prompt; fields here: sku, review, stars" in refused.stderr
    assert "--prompt-column review, or -t FILE with {{ review }}" in refused.stderr
    assert bench.is_untouched()
    assert bench.run("--prompt-column", "review").exit_code == 0
    assert bench.emulator.submissions == {"good, but the lid leaks": 1}
    assert bench.results()[0]["meta"] == {"sku": "7", "stars": 3}


def test_what_may_have_been_paid_in_another_job_is_not_forgotten_by_the_next(bench: Bench) -> None:
    """Fails if a failures file as an input begins its records at ``maybe_paid`` 0."""
    bench.records("lost", "held")
    bench.emulator.change(rules=[{"text": "lost", "lost": 1}])
    assert bench.run().exit_code == 1
    [failure] = bench.failures()
    held = {**failure, "id": "held", "maybe_paid": 0, "error": {"kind": "held"}, "input": json.loads(record("held"))}
    bench.emulator.change(rules=[])
    (bench.folder / "again.ndjson").write_text(json.dumps(failure) + "\n" + json.dumps(held) + "\n")
    assert bench.spawn("again.ndjson", "-o", "again.jsonl", *bench.command()[3:]).wait().exit_code == 0
    results = map(json.loads, (bench.folder / "again.jsonl").read_text("utf-8").splitlines())
    assert {result["id"]: result["maybe_paid"] for result in results} == {"lost": 3, "held": 1}
