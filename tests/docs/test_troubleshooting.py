"""Every message of the page on troubleshooting, provoked through the command line by the mistake that it names."""

from __future__ import annotations

import gzip
import re
import resource
import signal
from collections.abc import Callable
from functools import partial

import pytest

from tests.docs.pages import ROOT
from tests.scenarios.bench import Bench, Ran, record
from tests.scenarios.clock import Clock
from tests.scenarios.conftest import bench, emulator, forker
from tests.scenarios.test_faults import reopen_as_of

__all__ = ["bench", "emulator", "forker"]  # fixtures

PAGE = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
Provocation = Callable[[Bench], Ran]
PROVOKED: dict[str, Provocation] = {}


def provokes(title: str) -> Callable[[Provocation], Provocation]:
    return lambda mistake: PROVOKED.setdefault(title, mistake)


@provokes("A command with a typing mistake")
def _(bench: Bench) -> Ran:
    return bench.spawn("sttus", "out.jsonl").wait()


@provokes("The input is not there")
def _(bench: Bench) -> Ran:
    bench.records("a")
    return bench.spawn("in.json", "-o", "out.jsonl").wait()


@provokes("No place for the answers")
def _(bench: Bench) -> Ran:
    bench.records("a")
    return bench.spawn("in.jsonl").wait()


@provokes("The output is the input")
def _(bench: Bench) -> Ran:
    bench.records("a")
    return bench.spawn("in.jsonl", "-o", "in.jsonl").wait()


@provokes("The first line is broken")
def _(bench: Bench) -> Ran:
    bench.lines('{"prompt": "a')
    return bench.run()


@provokes("No prompt is found")
def _(bench: Bench) -> Ran:
    bench.lines('{"sku": 7, "body": "a", "lang": "en"}')
    return bench.run()


@provokes("Two records with one id")
def _(bench: Bench) -> Ran:
    bench.lines(record("a"), record("a"))
    return bench.run()


@provokes("No credentials")
def _(bench: Bench) -> Ran:
    bench.records("a")
    return bench.run(env=bench.environment_without_credentials)


@provokes("The key is refused")
def _(bench: Bench) -> Ran:
    bench.records("a")
    bench.emulator.change(api_key="another")
    return bench.run()


@provokes("The key may not use models there")
def _(bench: Bench) -> Ran:
    bench.records("a")
    bench.emulator.change(status=403)
    return bench.run()


@provokes("The model is unknown")
def _(bench: Bench) -> Ran:
    bench.records("a", "b", "c", "d")
    bench.emulator.change(status=404)
    return bench.run()


@provokes("Other settings for the same output")
def _(bench: Bench) -> Ran:
    bench.records("a")
    assert bench.run("--temperature", "0.3").exit_code == 0
    return bench.run("--temperature", "0.7")


@provokes("The input was edited")
def _(bench: Bench) -> Ran:
    bench.records("a", "b")
    assert bench.run().exit_code == 0
    bench.lines(record("a"), record("b", sku=7))
    return bench.resume()


@provokes("The job is running")
def _(bench: Bench) -> Ran:
    bench.records("a")
    bench.expect("a", p50=60, p99=60)
    first = bench.start_until(open=1)
    said = bench.run("--log-file", "run.log")
    first.stop(signal.SIGKILL)
    return said


@provokes("The output is gone")
def _(bench: Bench) -> Ran:
    bench.records("a")
    assert bench.run().exit_code == 0
    bench.output.unlink()
    return bench.resume()


@provokes("No room on the disk")
def _(bench: Bench) -> Ran:
    bench.lines(record("a", note="n" * 1_000_000))
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (900 << 10, 900 << 10))
    return bench.run(before=limit, python=("-B",))


@provokes("The service is not there")
def _(bench: Bench) -> Ran:
    bench.records("a")
    clock = Clock(bench.folder / "clock")
    bench.endpoint = "http://127.0.0.1:9"
    running = bench.start("-v", "--log-file", "run.log", program=clock.program)
    clock.let_pass(3600)  # more than it takes: what it may not skip it waits for
    return running.wait()


@provokes("Answers have lapsed")
def _(bench: Bench) -> Ran:
    bench.records("a")
    assert bench.run().exit_code == 0
    reopen_as_of(bench, hours_ago=73)
    return bench.run()


@provokes("A reply was lost, and you asked to hold")
def _(bench: Bench) -> Ran:
    bench.records("a")
    bench.emulator.change(lost=1.0)
    return bench.run("--on-ambiguous", "hold")


@provokes("A template asks for a field that is not there")
def _(bench: Bench) -> Ran:
    bench.lines('{"id": 1, "title": "a", "body": "b"}')
    (bench.folder / "classify.j2").write_text("Classify:\n{{ tittle }}\n")
    return bench.run("-t", "classify.j2")


@provokes("A table, and no word of where its prompts are")
def _(bench: Bench) -> Ran:
    (bench.folder / "items.csv").write_text("sku,title\n7,a\n")
    return bench.spawn("items.csv", "-o", "out.jsonl", "--endpoint", bench.endpoint).wait()


@provokes("A packed input is damaged")
def _(bench: Bench) -> Ran:
    (bench.folder / "in.jsonl.gz").write_bytes(gzip.compress(record("a").encode() * 50)[:-12])
    return bench.spawn("in.jsonl.gz", "-o", "out.jsonl", "--endpoint", bench.endpoint).wait()


@provokes("A job that cannot be resumed")
def _(bench: Bench) -> Ran:
    bench.records("a")
    return bench.spawn("resume", "in.jsonl").wait()


SECTION = r"^## ([^\n]+)\n\nExit (\d+)\.[^\n]*\n\n```text\n(.*?)\n```"
SECTIONS = {title: (int(code), block) for title, code, block in re.findall(SECTION, PAGE, re.MULTILINE | re.DOTALL)}


def test_the_page_and_the_mistakes_are_the_same() -> None:
    assert list(SECTIONS) == re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert SECTIONS.keys() == PROVOKED.keys()


@pytest.mark.parametrize("title", SECTIONS)
def test_a_mistake_is_told_as_the_page_says(bench: Bench, title: str) -> None:
    """What is not said without a terminal stands in the log."""
    code, block = SECTIONS[title]
    ran = PROVOKED[title](bench)
    assert ran.exit_code == code
    said = ran.stderr.rstrip()
    if code == 75:
        assert ran.is_silent
        [said] = re.findall(r'ERROR ended .*cause="(.*)"', (bench.folder / "run.log").read_text("utf-8"))
    pattern = ".*".join(map(re.escape, block.split("…")))
    assert re.fullmatch(pattern, said), said
