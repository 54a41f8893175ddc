"""docs/formats.md against a job's own files and against the code that fills them."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest

from batchrun import job
from batchrun.check import MAX_BAD, MAX_BAD_SHARE
from batchrun.cli.run import config_of, run
from batchrun.export import CSV_COLUMNS, FORMATS
from batchrun.inputs import Reading, Shape, parse
from batchrun.lines import BadLine
from batchrun.record import Usage
from tests.docs.pages import ROOT, blocks, table

PAGE = ROOT / "docs" / "formats.md"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The answer and the failures of a job with a good record, one that is filtered, and a bad line."""
    folder = tmp_path_factory.mktemp("job")
    good, filtered, bad = '{"prompt": "fine"}', '{"prompt": "filtered", "sku": 1}', '{"temprature": 1}'
    (folder / "in.jsonl").write_text(f"{good}\n{bad}\n")
    faults = "p50=0,p99=0"
    words = [str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--provider", "emulator"]
    job.run(config_of(run.make_context("run", [*words, "--emulator-faults", faults]).params), {})
    (folder / "in.jsonl").write_text(f"{good}\n{bad}\n{filtered}\n")
    job.run(config_of(run.make_context("run", [*words, "--emulator-faults", f"{faults},filter=1"]).params), {})
    failures = [json.loads(line) for line in (folder / "out.errors.ndjson").read_text().splitlines()]
    return json.loads((folder / "out.jsonl").read_text()), failures


def test_a_result_has_the_documented_fields_in_their_order(files: tuple[Any, Any]) -> None:
    assert [field for field, _ in table(PAGE, "result field")] == list(files[0])


def test_a_failure_has_the_documented_fields_in_their_order(files: tuple[Any, Any]) -> None:
    for failure in files[1]:
        assert [field for field, _ in table(PAGE, "failure field")] == list(failure)


def test_a_bad_line_has_nulls_where_the_docs_say_so_and_a_filtered_record_its_input(files: tuple[Any, Any]) -> None:
    bad, filtered = files[1]
    assert [bad[name] for name in ("id", "meta", "operation_id", "text", "input")] == [None] * 5
    assert bad["error"]["kind"] == "bad_input"
    assert filtered["input"] == {"prompt": "filtered", "sku": 1}
    assert (filtered["finish_reason"], filtered["text"], filtered["meta"]) == ("content_filter", None, {"sku": 1})


def test_the_fields_of_usage_and_error_are_documented(files: tuple[Any, Any]) -> None:
    results, failures = dict(table(PAGE, "result field")), dict(table(PAGE, "failure field"))
    assert list(files[0]["usage"]) == list(Usage.__slots__)
    assert all(name in results["usage"] for name in Usage.__slots__)
    assert all(name in failures["error"] for name in files[1][0]["error"])


def test_every_format_of_an_export_is_documented_with_the_columns_of_its_table() -> None:
    formats = {name: columns for name, columns, _ in table(PAGE, "format")}
    assert list(formats) == list(FORMATS)
    assert formats["csv"] == f"{', '.join(CSV_COLUMNS)}, meta (JSON)"


def kinds_in_code() -> set[str]:
    """Every text that the code puts into ``Failure.kind``: as its first argument, or under the name ``kind``."""
    kinds: set[str] = set()
    sources = (ROOT / "batchrun").rglob("*.py")
    functions = (node for path in sources for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    for function in functions:
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or "Failure(" not in ast.unparse(function):
            continue
        for node in ast.walk(function):
            match node:
                case ast.Call(func=ast.Name(id="Failure"), args=[ast.Constant(value=str(kind)), *_]):
                    kinds.add(kind)
                case ast.Assign(targets=[ast.Name(id="kind")], value=ast.IfExp(body=one, orelse=other)):
                    kinds |= texts_in(one) | texts_in(other)
                case ast.Assign(targets=[ast.Name(id="kind")], value=ast.Call() as lookup):
                    kinds |= texts_in(lookup)
    return kinds


def texts_in(node: ast.AST) -> set[str]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def test_every_kind_of_failure_is_documented() -> None:
    assert {kind for kind, *_ in table(PAGE, "kind")} == kinds_in_code()


def test_every_shape_is_documented_and_its_example_is_one_of_it() -> None:
    shapes = [name for name, *_ in table(PAGE, "shape")]
    assert sorted(shapes) == sorted(Shape)
    for shape, line in zip(shapes, blocks(PAGE, "jsonl")[0].splitlines(), strict=True):
        assert Reading().fixed_by(line.encode()).shape == shape
        parse(line.encode(), Reading(for_instruct=shape == Shape.INSTRUCT))


def options_of(shape: str) -> list[str]:
    [cell] = [cell for name, _, cell in table(PAGE, "shape") if name == shape]
    return [name for part in cell.split("; ") for name in part.removesuffix(", also in snake case").split(", ")]


@pytest.mark.parametrize("option", options_of("prompt"))
def test_the_options_of_a_prompt_are_taken_and_do_not_travel_as_meta(option: str) -> None:
    value = {"system": "s", "model": "m", "temperature": 0.5, "max_tokens": 5}[option]
    assert parse(json.dumps({"prompt": "x", option: value}).encode()).meta == {}


OPENAI = {
    "system": "s",
    "model": "m",
    "temperature": 0.5,
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "response_format": {"type": "json_object"},
}


@pytest.mark.parametrize("option", options_of("messages"))
def test_the_fields_of_a_body_are_passed_through(option: str) -> None:
    value: Any = OPENAI.get(option, "gpt://f/m" if option == "modelUri" else {})
    parsed = parse(json.dumps({"messages": [{"role": "user", "text": "x"}], option: value}).encode())
    assert parsed.prompt.body is not None
    assert parsed.meta == {}
    assert option in OPENAI or parsed.prompt.body[option] == value
    assert parsed.prompt != parse(b'{"messages": [{"role": "user", "text": "x"}]}').prompt


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"prompt": "x"', id="half a line"),
        pytest.param(b"{'prompt': 'x'}", id="single quotes"),
        pytest.param(b'{"prompt": "x",}', id="trailing comma"),
        pytest.param(b'"one" "two"', id="two values"),
        pytest.param(b'{"prompt": "x"} // y', id="comment"),
        pytest.param(b'"a\tb"', id="raw control character"),
        pytest.param(b'"\xff"', id="not UTF-8"),
        pytest.param(b'{"prompt": "x", "a": NaN}', id="NaN"),
        pytest.param(b'{"prompt": "x", "a": 18446744073709551616}', id="beyond 64 bits"),
        pytest.param(b'{"prompt": "x", "prompt": "y"}', id="one key twice"),
        pytest.param(rb'"\ud800"', id="half a pair"),
        pytest.param(b'{"prompt": "x", "a": ' + b"[" * 65 + b"]" * 65 + b"}", id="deeper than 64"),
        pytest.param(b"7", id="a number"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no prompt"),
        pytest.param(b'{"prompt": "x", "messages": []}', id="both"),
        pytest.param(b'"  "', id="empty"),
        pytest.param(b'{"prompt": "x", "temperature": 1.1}', id="temperature"),
        pytest.param(b'{"prompt": "x", "max_tokens": 0}', id="length limit"),
        pytest.param(b'{"messages": [{"role": "bot", "text": "x"}]}', id="role"),
        pytest.param(b'{"prompt": "x", "id": 1.5}', id="id"),
        pytest.param(b'{"prompt": "x", "temprature": 1}', id="misspelt option"),
        pytest.param(b'{"prompt": "x", "top_p": 0.5}', id="top_p"),
    ],
)
def test_a_line_is_bad_where_the_docs_say_so(line: bytes) -> None:
    with pytest.raises(BadLine):
        parse(line)


def test_the_share_of_bad_lines_that_ends_a_run_is_the_documented_one() -> None:
    assert f"if more than {MAX_BAD} records and more than {MAX_BAD_SHARE * 100:g} % of them are bad" in PAGE.read_text()
