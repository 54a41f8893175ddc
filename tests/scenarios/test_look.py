"""``batchrun check`` and ``--dry-run``: a look that costs nothing and changes nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchrun.cli import cli
from batchrun.cli.check import check
from batchrun.errors import InputProblem
from tests.scenarios.bench import Bench, Ran, record


def everything_in(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Every file and folder with its times and its bytes.

    Without what a look prints, and without SQLite's index of a log, which whoever opens it makes anew.
    """
    found = {}
    for path in [folder, *folder.rglob("*")]:
        if "captured" not in path.parts and not path.name.endswith("-shm"):
            at = path.stat()
            content = path.read_bytes() if path.is_file() else None
            found[str(path)] = (at.st_ino, at.st_mode, at.st_mtime_ns, at.st_size if content else 0, content)
    return found


def look(bench: Bench, *options: str) -> Ran:
    """Ask for a dry run without credentials, and see that it left no trace."""
    before = everything_in(bench.folder)
    ran = bench.run("--dry-run", *options, env=bench.environment_without_credentials)
    assert everything_in(bench.folder) == before
    return ran


def test_a_dry_run_says_what_a_run_would_do_and_leaves_no_trace(bench: Bench) -> None:
    """Fails if it takes the lock, makes the output, asks for a key, or counts what the run would not send."""
    texts = "a" * 300, "b", "ж" * 90, "c" * 170
    first, *others = (json.dumps({"id": number, "prompt": text}) for number, text in enumerate(texts))
    bench.lines(json.dumps(json.loads(first) | {"system": "s" * 30}), "{oops", "", *others)
    ran = look(bench, "-s", "t" * 8, "--rps", "0.01")
    assert (ran.exit_code, ran.stderr) == (0, "")
    size = bench.input.stat().st_size
    assert ran.stdout.splitlines() == [
        f"in.jsonl   5 records, shape prompt, {size:,} bytes, ids unique",
        "bad lines    1; a run lets them fail and sends the rest",
        "in.jsonl:2: not JSON: expecting property name enclosed in double quotes at byte 2",
        "model        yandexgpt/latest by yandex, where a record names none",
        "in ledger    0",
        "to send      4",
        "tokens       about 205 in, at 3 characters each",
        "time         about 6 min 40 s to send, at 0.01 a second and 1,000,000 an hour",
        "nothing was sent",
    ]
    assert bench.is_untouched()
    assert bench.run().exit_code == 1
    assert sum(bench.emulator.submissions.values()) == 4


def test_a_dry_run_of_a_job_that_was_killed_counts_what_is_left_and_changes_nothing(bench: Bench) -> None:
    """Fails if the ledger itself is written to, or if a record in doubt or repaired is not among those to be sent."""
    bench.lines(record("written"), record("open"), record("in doubt"), '{"id": "bad", "prompt": ""}', record("new"))
    bench.emulator.change(rules=[{"text": "open", "p50": 4, "p99": 4}, {"text": "in doubt", "slow": 60}])
    bench.kill_once("--limit", "4", done=1, open=1, intent=1, failed=1)
    bench.emulator.change(rules=[])
    ran = look(bench)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert "in ledger    3: 1 written, 0 failed, 1 open, 1 not sent, 1 possibly paid twice" in ran.stdout
    assert "to send      2\n" in ran.stdout
    bench.lines(record("written"), record("open"), record("in doubt"), record("bad"), record("new"))
    assert "to send      3\n" in look(bench).stdout
    assert "to send      1\n" in look(bench, "--limit", "3").stdout
    assert "to send      5\n" in look(bench, "--new-run").stdout
    submissions = bench.emulator.submissions
    assert bench.run().exit_code == 0
    assert (bench.emulator.submissions - submissions).keys() == {"in doubt", "bad", "new"}
    bench.check()
    ended = look(bench)
    assert "to send      0\n" in ended.stdout
    assert "time" not in ended.stdout


@pytest.mark.parametrize(
    ("options", "lines", "said"),
    [
        pytest.param(("--temperature", "0.7"), (), "was made with temperature not set, now 0.7", id="other_settings"),
        pytest.param((), (record("a"), record("c")), "in.jsonl:2: gone since it was sent", id="an_answer_is_gone"),
        pytest.param(("--strict",), (*map(record, "abc"), "{"), "in.jsonl:4: not JSON", id="strict"),
        pytest.param(("-o", "in.jsonl"), (), "would be written over the input", id="over_the_input"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    finished: Bench, options: tuple[str, ...], lines: tuple[str, ...], said: str
) -> None:
    """Fails if it is only a count: it has to end as the run would end."""
    if lines:
        finished.lines(*lines)
    looked, ran = look(finished, *options), finished.run(*options)
    assert (looked.exit_code, looked.stdout) == (ran.exit_code, "")
    assert looked.stderr == ran.stderr
    assert said in ran.stderr
    assert ran.exit_code in (2, 3)
    assert finished.is_untouched()


def test_a_dry_run_knows_of_a_job_that_would_begin_anew(finished: Bench) -> None:
    """Fails if the new input is held against the old job, or if nothing may take its place."""
    finished.records("d", "e")
    ran = look(finished, "--if-finished", "new")
    assert (ran.exit_code, ran.stdout.splitlines()[2:4]) == (0, ["in ledger    0", "to send      2"])
    finished.input.write_text("")
    assert look(finished, "--if-finished", "new").exit_code == 3
    assert look(finished, "--collect-only").exit_code == 2


def test_a_dry_run_knows_what_the_last_hour_has_used(finished: Bench) -> None:
    """Fails if the quota of the hour is taken for free: 3 of 4 are used, so the last of 2 waits for the next hour."""
    finished.append("d", "e")
    said = look(finished, "--rph", "4", "--rps", "1").stdout
    assert "time         about 1 h 0 min to send, at 1 a second and 4 an hour" in said
    assert "about 2 s to send, at 1 a second and 5 an hour" in look(finished, "--rph", "5", "--rps", "1").stdout


def test_a_dry_run_beside_a_live_run_disturbs_nobody(bench: Bench) -> None:
    """Fails if it wants the lock, or is refused for one."""
    bench.records("a", "b")
    bench.expect("b", p50=60, p99=60)
    running = bench.start_until(done=1, open=1)
    ran = bench.run("--dry-run", env=bench.environment_without_credentials)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert "in ledger    2: 1 written, 0 failed, 1 open" in ran.stdout
    assert running.stop(signal.SIGKILL).exit_code == -signal.SIGKILL


# --- check ---


def test_check_reads_the_whole_input_and_makes_no_file(bench: Bench) -> None:
    """Fails if it needs an output, a key or a folder to write to, or stops at the first bad line."""
    lines = ['{"id": "a", "prompt": "a"}', "{oops", '{"prompt": "b"}', '{"prompt": " "}']
    bench.lines(*lines, *['{"prompt": "x"}'] * 3000)
    before = everything_in(bench.folder)
    ran = bench.spawn("check", "in.jsonl", env={"PATH": os.defpath, "HOME": str(bench.folder)}).wait()
    assert (ran.exit_code, ran.stderr) == (0, "")
    size = bench.input.stat().st_size
    assert ran.stdout.splitlines() == [
        f"in.jsonl   3,004 records, shape prompt, {size:,} bytes, "
        "3,001 of them without an id: lines are known by their number",
        "bad lines    2; a run lets them fail and sends the rest",
        "in.jsonl:2: not JSON: expecting property name enclosed in double quotes at byte 2",
        "in.jsonl:4: prompt is empty",
        "repeats      2,999 records ask what an earlier one asks; each is sent and paid for",
    ]
    assert everything_in(bench.folder) == before
    assert bench.is_untouched()
    assert bench.spawn("check", "in.jsonl", "--strict").wait().exit_code == 3


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in.jsonl"


BODY = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        (["a", "b"], (), "2 records, shape string, 8 bytes, no ids: lines are known by their number"),
        ([{"id": 1, **BODY}], (), "shape messages, 58 bytes, ids unique"),
        ([{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}], (), "shape openai"),
        ([{"request": BODY["messages"]}], (), "shape yandex-dataset"),
        ([{"requestText": "a"}], ("--format", "instruct"), "shape instruct"),
        ([{"body": "a", "id": 1}], ("--prompt-column", "body"), "1 record, prompts in 'body', 23 bytes, ids unique"),
        (["a", 1, 2, 3], ("--limit", "1"), "1 record, shape string, 4 bytes"),
        ([], (), "in.jsonl   0 records\n"),
        (["a", "b", "a"], (), "repeats      1 record asks what an earlier one asks; each is sent and paid for\n"),
        (["a\0b", "\0"], (), "NUL          line 1 is the first with this character (\\u0000); it is taken as it is\n"),
        (["a", *range(22)] + ["b"] * 2200, (), "… and 2 more\n"),
    ],
)
def test_check_says_what_an_input_is(here: Path, lines: list[Any], options: tuple[str, ...], said: str) -> None:
    here.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = CliRunner().invoke(check, ["in.jsonl", *options])
    assert (ran.exit_code, ran.exception) == (0, None)
    assert said in ran.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"sku": 1, "body": "a"}\n', "in.jsonl:1: no prompt; fields here: sku, body"),
        ('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n', "in.jsonl:2: id '1' was on line 1 already"),
        ('"a"\n' + "{\n" * 11, "in.jsonl:12: not JSON"),
        ("[\n]\n", "in.jsonl: one JSON array"),
    ],
)
def test_check_refuses_what_a_run_would_refuse(here: Path, text: str, said: str) -> None:
    here.write_text(text)
    problem = CliRunner().invoke(cli, ["check", "in.jsonl"]).exception
    assert isinstance(problem, InputProblem)
    assert (problem.exit_code, problem.cause.startswith(said)) == (3, True), problem.cause


def test_an_option_is_read_from_the_environment_as_for_a_run(here: Path) -> None:
    here.write_text('{"body": "a"}\n')
    ran = CliRunner().invoke(check, ["in.jsonl"], env={"BATCHRUN_PROMPT_COLUMN": "body"})
    assert "prompts in 'body'" in ran.stdout


def test_after_a_limit_status_says_which_command_sends_the_rest(bench: Bench) -> None:
    """Fails if it names ``resume``, which keeps the limit: it would send nothing and say so for ever."""
    bench.records("a", "b")
    assert bench.run("--limit", "1").exit_code == 0
    assert bench.spawn("resume", "out.jsonl").wait().exit_code == 0
    assert "new, and without --limit, sends the rest" in bench.spawn("status", "out.jsonl").wait().stdout
    assert bench.run().exit_code == 0
    assert "next: nothing" in bench.spawn("status", "out.jsonl").wait().stdout
    bench.check()
