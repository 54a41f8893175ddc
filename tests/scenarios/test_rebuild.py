"""``--rebuild-output``: an output that is gone or was edited is made of what is there and what the service keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scenarios.bench import Bench


def _edit(output: Path) -> None:
    """One character of the second line; the others are as they were."""
    first, second, third = output.read_bytes().splitlines(keepends=True)
    at = second.index(b'"text":"') + len(b'"text":"')
    output.write_bytes(first + second[:at] + b"?" + second[at + 1 :] + third)


def _sort(output: Path) -> None:
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[::-1]))


def _append(output: Path) -> None:
    output.write_bytes(output.read_bytes() + b"a note\n")


def _double(output: Path) -> None:
    output.write_bytes(output.read_bytes() * 2)


@pytest.mark.parametrize(
    ("damage", "polls"),
    [
        pytest.param(Path.unlink, 3, id="gone"),
        pytest.param(_edit, 1, id="edited"),
        pytest.param(_sort, 0, id="sorted"),
        pytest.param(_append, 0, id="grown"),
        pytest.param(_double, 0, id="doubled"),
        pytest.param(lambda output: None, 0, id="as it was"),
    ],
)
def test_an_output_is_rebuilt_from_what_is_there_and_what_is_kept(
    finished: Bench, damage: Callable[[Path], object], polls: int
) -> None:
    """Fails if ``take_out`` keeps a line whose checksum is another, fetches one that is there, or loses a line."""
    before = sorted(finished.output.read_bytes().splitlines(keepends=True))
    damage(finished.output)
    damaged = finished.output.read_bytes().splitlines(keepends=True) if finished.output.exists() else []
    ran = finished.run("--rebuild-output")
    assert (ran.exit_code, ran.is_silent) == (0, True), ran
    assert finished.is_untouched()
    assert finished.emulator.count("polls_received") == polls
    assert {row["maybe_paid"] for row in finished.rows()} == {0}
    assert finished.result_ids() == {"a", "b", "c"}
    after = finished.output.read_bytes().splitlines(keepends=True)
    assert len(set(before) & set(after)) >= 3 - polls  # one that is fetched within the same second is the same again
    cut = [line for path in (finished.state / "quarantine").glob("*") for line in path.read_bytes().splitlines(True)]
    kept = list(dict.fromkeys(line for line in damaged if line in before))
    assert sorted(kept + cut) == sorted(damaged)
    assert after[: len(kept)] == kept
    assert not (finished.folder / ".out.jsonl.new").exists()
    finished.check()


def test_answers_that_are_no_longer_kept_expire_and_are_named(finished: Bench) -> None:
    """Fails if a rebuild sends anything: the records were paid for once."""
    with finished.ledger(write=True) as connection:
        connection.execute("UPDATE record SET submitted_at = submitted_at - 300000")
    finished.output.unlink()
    finished.emulator.change(retention=0)
    assert finished.run("--rebuild-output").exit_code == 4
    assert finished.kinds() == dict.fromkeys("abc", "expired")
    assert finished.is_untouched()
    finished.check()


def test_without_its_ledger_there_is_nothing_to_rebuild(bench: Bench) -> None:
    """Fails if a job that is not there is begun, and paid for, by ``--rebuild-output``."""
    bench.records("a")
    ran = bench.run("--rebuild-output")
    assert (ran.exit_code, "has no job" in ran.stderr) == (3, True)
    assert bench.is_untouched()
    assert not bench.state.exists()


def test_the_environment_cannot_ask_for_a_rebuild(finished: Bench) -> None:
    """Fails if ``BATCHRUN_REBUILD_OUTPUT`` is read; and what is refused names the option."""
    finished.output.unlink()
    ran = finished.run()
    assert (ran.exit_code, "--rebuild-output fetches" in ran.stderr) == (3, True)
    for name in ("BATCHRUN_REBUILD_OUTPUT", "BATCHRUN_ACCEPT_CHANGED"):
        assert finished.run(env={**finished.environment, name: "1"}).exit_code == 2
    assert not finished.output.exists()


def test_answers_of_another_ledger_are_not_taken_out(finished: Bench) -> None:
    """Fails if ``take_out`` does not look whom a line answers: with an old ledger its records would be paid again."""
    line = finished.output.read_bytes().splitlines(keepends=True)[0]
    finished.output.write_bytes(
        finished.output.read_bytes() + line.replace(b'"operation_id":"d7q', b'"operation_id":"d7z')
    )
    before = finished.output.read_bytes(), finished.rows()
    ran = finished.run("--rebuild-output")
    assert (ran.exit_code, "does not know" in ran.stderr) == (3, True)
    assert (finished.output.read_bytes(), finished.rows()) == before
