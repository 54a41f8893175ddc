"""A run asked to stop."""

from __future__ import annotations

import signal

from tests.scenarios.bench import Bench, wait_until


def test_each_signal_ends_a_run_in_mid_job_and_nothing_is_paid_for_twice(bench: Bench) -> None:
    """Fails if ``end_well`` cancels the submitter without waiting for the replies on their way."""
    bench.records(*(f"prompt {each}" for each in range(24)))
    bench.emulator.change(slow=0.2)  # POSTs take long enough to be met on their way
    accepted = 0

    def is_in_mid_job() -> bool:
        return bench.states()["intent"] > 0 and len(bench.emulator.submissions) >= accepted + 2

    for number, exit_code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        running = bench.start("--rps", "20")
        wait_until(is_in_mid_job, "POSTs are on their way", while_alive=running)
        ran = running.stop(number)
        assert ran.exit_code == exit_code
        assert ran.seconds < 15
        assert len(ran.stderr.splitlines()) == 2
        assert "run the same command again" in ran.stderr
        assert bench.states()["intent"] == 0
        accepted = sum(bench.emulator.submissions.values())
        assert 0 < accepted < 24
    bench.emulator.change(slow=0)
    assert bench.run().exit_code == 0
    assert len(bench.emulator.submissions) == 24
    assert set(bench.emulator.submissions.values()) == {1}
    assert {row["maybe_paid"] for row in bench.rows()} == {0}
    bench.check()


def test_a_second_signal_leaves_at_once_and_the_next_run_names_what_is_in_doubt(bench: Bench) -> None:
    """Fails if ``Stop`` ignores the second signal, or if a cancelled POST counts as certainly not accepted."""
    bench.records("a", "b")
    bench.expect("b", slow=60)
    running = bench.start("--log-file", "run.log")
    wait_until(lambda: bench.emulator.submissions["b"] == 1, "b is accepted, and not yet answered", while_alive=running)
    running.signal(signal.SIGINT)
    wait_until(lambda: "stopping" in bench.log(), "the first signal is understood", while_alive=running)
    ran = running.stop(signal.SIGINT)
    assert ran.exit_code == 130
    assert ran.seconds < 3
    bench.emulator.change(rules=[])
    assert bench.run().exit_code == 0
    assert bench.emulator.submissions == {"a": 1, "b": 2}
    assert (bench.row("a")["maybe_paid"], bench.row("b")["maybe_paid"]) == (0, 1)
    bench.check()


def test_a_hangup_stays_ignored_under_nohup(bench: Bench) -> None:
    """Fails if ``on_signals`` installs its handler over SIG_IGN."""
    bench.records("a", "b")
    running = bench.start_until(open=1, ignore=(signal.SIGHUP,))
    running.signal(signal.SIGHUP)
    assert running.wait().exit_code == 0
    bench.check()
