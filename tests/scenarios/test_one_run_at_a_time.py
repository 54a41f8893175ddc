"""Two runs that would meet in one job."""

from __future__ import annotations

import json
import signal

import pytest

from tests.scenarios.bench import Bench


@pytest.mark.parametrize(
    "other",
    [pytest.param((), id="same_state_directory"), pytest.param(("--state-dir", "elsewhere"), id="same_output")],
)
def test_a_second_run_beside_a_live_one_leaves_at_once_without_a_word(bench: Bench, other: tuple[str, ...]) -> None:
    """Fails if the lock file, or with another state directory the output, is not locked."""
    bench.records("a", "b")
    first = bench.start_until(open=1)
    first.signal(signal.SIGSTOP)  # alive, and it cannot finish meanwhile
    second = bench.run(*other)
    first.signal(signal.SIGCONT)
    assert second.exit_code == 75
    assert second.is_silent
    assert second.seconds < 5
    assert json.loads((bench.state / "lock").read_bytes())["pid"] == first.pid
    assert first.wait().exit_code == 0
    bench.check()


def test_the_lock_of_a_killed_run_is_free(bench: Bench) -> None:
    """Fails if the lock is the existence of its file."""
    bench.records("a")
    bench.kill_once(open=1)
    assert (bench.state / "lock").exists()
    assert bench.resume().exit_code == 0
    assert bench.emulator.submissions == {"a": 1}
    bench.check()
