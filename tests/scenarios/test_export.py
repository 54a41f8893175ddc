"""``batchrun export`` as people call it: after a run, beside one, between two, and into a pipe."""

from __future__ import annotations

import json
import os
import signal

from click.testing import CliRunner

from batchrun.cli.export import export
from batchrun.export import FORMATS
from tests.scenarios.bench import Bench


def test_what_a_stopped_job_has_written_is_exported_and_nothing_while_a_run_is_at_work(bench: Bench) -> None:
    """Fails if the lock is not looked at, or if only a finished job counts."""
    bench.records("a", "b", "c")
    bench.expect("b", p50=60, p99=60)
    running = bench.start_until(done=2, open=1)
    beside = bench.spawn("export", "out.jsonl", "-o", "new.jsonl").wait()
    assert (beside.exit_code, beside.stdout) == (2, "")
    assert "is being written by a run" in beside.stderr
    assert running.stop(signal.SIGKILL).exit_code == -signal.SIGKILL
    exported = bench.spawn("export", "out.jsonl", "-o", "new.jsonl").wait()
    said = "batchrun: not finished; records without an answer yet, not in it: 1\n"
    assert (exported.exit_code, exported.stdout, exported.stderr) == (0, "", said)
    lines = (bench.folder / "new.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "c"]


def test_an_export_goes_into_a_pipe_and_does_not_mind_when_nobody_reads_it(finished: Bench) -> None:
    """Fails if a closed pipe is a problem of the job."""
    said = finished.spawn("export", "out.jsonl", "--format", "txt", "-o", "-").wait()
    assert (said.exit_code, len(said.stdout.splitlines()), said.stderr) == (0, 3, "")
    reader, writer = os.pipe()
    os.close(reader)
    assert finished.spawn("export", "out.jsonl", "-o", "-", shown_on=writer).wait().exit_code == 0
    os.close(writer)


def test_an_export_to_a_full_disk_says_so(finished: Bench) -> None:
    """Fails if what is left in a buffer at the end is nobody's loss."""
    full = os.open("/dev/full", os.O_WRONLY)
    assert finished.spawn("export", "out.jsonl", "-o", "-", shown_on=full).wait().exit_code == 74
    os.close(full)


def test_every_format_has_the_answers_of_a_real_job_in_the_order_of_its_input(finished: Bench) -> None:
    """Fails if a field that a run writes is not the one an export reads."""
    texts = [result["text"] for result in sorted(finished.results(), key=lambda result: result["line"])]
    for format in FORMATS:
        said = CliRunner().invoke(export, [str(finished.output), "--format", format, "-o", "-"])
        lines = said.stdout.splitlines()[format == "csv" :]
        assert len(lines) == len(texts) == 3, format
        assert all(text in line for line, text in zip(lines, texts, strict=True)), format
