"""A run killed at any moment, and the same command again."""

from __future__ import annotations

import shlex
import shutil
import signal
from pathlib import Path

from tests.scenarios.bench import Bench, wait_until

SAMPLES = Path(__file__).parents[2] / "sample_inputs"


def test_an_emulator_inside_the_job_dies_with_it_and_still_knows_what_it_accepted(bench: Bench) -> None:
    """Fails if ``open_provider`` starts the emulator without its journal."""
    options = ("--provider", "emulator", "--emulator-faults", "p50=0.2,p99=0.4,lost=0.1,seed=5")
    bench.records(*(f"prompt {number}" for number in range(30)))
    bench.kill_once(*options, "--rps", "50", open=3, intent=1)
    bench.kill_once(*options, "--rps", "50", open=12)
    assert bench.run(*options).exit_code == 0
    assert bench.is_untouched()
    bench.check(journal=bench.state / "emulator.jsonl")


def test_the_command_that_the_demo_prints_continues_it_after_a_kill(bench: Bench) -> None:
    """Fails if the demo runs other settings than it prints."""
    shutil.copytree(SAMPLES, bench.folder / "sample_inputs")
    bench.input = bench.folder / "sample_inputs" / "prompts.jsonl"
    bench.output = bench.folder / "demo" / "out.jsonl"
    bench.state = bench.folder / "demo" / "out.jsonl.batchrun"
    demo = bench.spawn("demo", env=bench.environment_without_credentials)
    wait_until(lambda: sum(bench.states().values()) >= 100, "half of the demo is sent", while_alive=demo)
    program, *words = shlex.split(demo.stop(signal.SIGKILL).stderr.splitlines()[0])
    assert program == "batchrun"
    assert bench.spawn(*words, env=bench.environment_without_credentials).wait().exit_code == 0
    assert len(bench.results()) == 200
    bench.check(journal=bench.state / "emulator.jsonl")
