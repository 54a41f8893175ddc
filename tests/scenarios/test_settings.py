"""Settings belong to the job as soon as something was accepted under them."""

from __future__ import annotations

import signal

import pytest

from tests.scenarios.bench import Bench, as_owner, wait_until


def test_other_settings_are_refused_once_something_was_accepted(finished: Bench) -> None:
    """Fails if ``settle_settings`` saves other settings although ``has_operations``."""
    finished.append("d")
    before = finished.output.read_bytes(), finished.rows()
    ran = finished.run("--temperature", "0.5")
    assert ran.exit_code == 3
    assert "temperature not set, now 0.5" in ran.stderr
    assert (finished.output.read_bytes(), finished.rows()) == before
    assert finished.is_untouched()


@pytest.mark.parametrize(
    ("limit", "refused"),
    [("9", "the first 3 requests alike"), ("2", "the first 2 requests alike"), ("1", "the request (400")],
)
def test_requests_refused_alike_at_the_start_fail_nothing_and_other_settings_are_free(
    bench: Bench, limit: str, refused: str
) -> None:
    """Fails if the first three refusals, or all of a look at the first two, are not taken back, or if settings are
    pinned before the first acceptance.
    """
    bench.records("a", "b", "c", "d")
    bench.emulator.change(status=400)
    ran = bench.run("--temperature", "0.1", "--limit", limit)
    assert ran.exit_code == 2
    assert f"error: the service refused {refused}" in ran.stderr
    assert set(bench.states()) == {"new"}
    assert bench.failures() == []
    bench.emulator.change(status=0)
    assert bench.run("--temperature", "0.5").exit_code == 0
    assert set(bench.emulator.submissions.values()) == {1}
    bench.check()


def test_a_refusal_fails_its_record_where_the_settings_have_been_proven(bench: Bench) -> None:
    """Fails if a run that sends one record takes its refusal back: it would be sent again every night."""
    bench.records("a")
    assert bench.run().exit_code == 0
    bench.records("a", "b")
    bench.emulator.change(status=400)
    assert bench.run().exit_code == 1
    assert bench.kinds() == {"b": "invalid_argument"}


@pytest.mark.parametrize("words", [("--state-dir", "."), ("-o", "out.errors.ndjson")])
def test_a_place_where_other_files_are_is_refused(bench: Bench, words: tuple[str, str]) -> None:
    """Fails if ``JobPaths.of`` takes any: ``--new-run`` would rename the folder, a run delete another job's answers."""
    bench.records("a")
    ran = bench.run(*words)
    assert ran.exit_code == 2
    assert bench.is_untouched()


def test_the_emulator_and_an_address_are_not_asked_for_at_once(bench: Bench) -> None:
    """Fails if one of them is passed over: whoever named the address would take invented answers for real ones."""
    bench.records("a")
    ran = bench.spawn(*bench.command(), "--provider", "emulator").wait()
    assert (ran.exit_code, ran.stderr.splitlines()) == (
        2,
        [
            "error: --provider emulator and --endpoint name two servers",
            "  leave out one of them; BATCHRUN_… in the environment counts as well",
        ],
    )
    assert not bench.state.exists()


def test_the_failures_of_one_output_are_no_business_of_another(finished: Bench) -> None:
    """Fails if two outputs share a failures file: each run would put its own in its place, or delete it."""
    finished.expect("b", status=400)
    others = finished.command()[3:]
    assert finished.spawn("in.jsonl", "-o", "out.json", *others).wait().exit_code == 1
    assert finished.run().exit_code == 0
    assert (finished.folder / "out.json.errors.ndjson").exists()
    for words in (("--dry-run",), ()):
        ran = finished.spawn("in.jsonl", "-o", "out", *words, *others).wait()
        said = "error: out.errors.ndjson is for the failures of out.jsonl\n  choose another -o\n"
        assert (ran.exit_code, ran.stderr) == (3, said)
    assert not (finished.folder / "out.batchrun").exists()


def test_a_screen_of_few_letters_shows_what_it_can(finished: Bench) -> None:
    """Fails if ``main`` leaves the streams strict."""
    env = {**finished.environment, "PYTHONIOENCODING": "latin-1"}
    assert finished.spawn("status", "out.jsonl", env=env).wait().exit_code == 0


def test_a_clock_far_beyond_any_calendar_spoils_no_ledger(finished: Bench) -> None:
    """Fails if an odd instant is taken for damage: a wrong clock must not cost a job."""
    with finished.ledger(write=True) as connection:
        connection.execute("UPDATE record SET submitted_at = 1e11, finished_at = -5")
        connection.execute("UPDATE run SET ended_at = 1e300")
    assert finished.run().exit_code == 0
    assert finished.spawn("status", "out.jsonl").wait().exit_code == 0
    finished.check()


@pytest.mark.parametrize("option", ["--new-run", "--if-finished=new"])
@pytest.mark.parametrize("text", ["no record\n", ""])
def test_a_new_run_that_is_refused_leaves_the_old_one_as_it_was(finished: Bench, option: str, text: str) -> None:
    """Fails if the old job stays aside: a night without a good input would take the answers of the last away."""
    given, results = finished.input.read_bytes(), finished.output.read_bytes()
    finished.input.write_text(text)
    ran = finished.run(option, "--log-file", "log")
    assert (ran.exit_code, "put_aside" in (finished.folder / "log").read_text()) == (3, False)
    assert finished.output.read_bytes() == results
    assert not list(finished.folder.glob("*.2*"))
    finished.input.write_bytes(given)
    assert finished.run().exit_code == 0
    finished.check()


def test_a_new_run_without_a_key_or_a_place_leaves_the_old_one_as_it_was(finished: Bench) -> None:
    """Fails if the key is looked for when the old job is aside, or if half of its files stay there."""
    states = finished.folder / "states"
    states.mkdir()
    finished.state.rename(states / "state")
    results = finished.output.read_bytes()
    new = "--state-dir", "states/state", "--new-run"
    assert finished.run(*new, env=finished.environment_without_credentials).exit_code == 5
    states.chmod(0o500)
    ran = finished.run(*new, within=as_owner())
    states.chmod(0o700)
    assert (ran.exit_code, "Permission denied" in ran.stderr) == (74, True)
    assert finished.output.read_bytes() == results
    assert not list(finished.folder.glob("*.2*"))
    assert finished.run("--state-dir", "states/state").exit_code == 0
    assert finished.emulator.submissions == {"a": 1, "b": 1, "c": 1}


def test_a_new_run_where_nothing_is_puts_nothing_aside(bench: Bench) -> None:
    bench.records("a")
    assert bench.run("--new-run", "--limit", "1").exit_code == 0
    assert sorted(path.name for path in bench.folder.glob("out*")) == ["out.jsonl", "out.jsonl.batchrun"]


def test_after_a_new_run_the_way_on_is_not_another_new_run(finished: Bench) -> None:
    """Fails if whoever types the same command again, as the message says, pays for everything once more."""
    finished.append(*(f"more {number}" for number in range(40)))
    running = finished.start("--new-run", "--rps", "5")
    wait_until(lambda: len(list(finished.folder.glob("out.jsonl.2*"))) == 1, "it is begun", while_alive=running)
    finished.wait_for(running, open=1)
    assert running.stop(signal.SIGTERM).stderr.endswith("; leave out --new-run then, it would begin anew\n")


def test_what_no_environment_decides_is_refused_there(finished: Bench) -> None:
    """Fails if a setting that is not read is passed over, or if nobody is told that a bad one may stand there."""
    for name, value, said in (
        ("BATCHRUN_IF_FINISHED", "new", "BATCHRUN_IF_FINISHED is set, and is no setting"),
        ("BATCHRUN_CONCURRENCY", "ten", "options also come from the environment"),
    ):
        ran = finished.run(env={**finished.environment, name: value})
        assert (ran.exit_code, said in ran.stderr) == (2, True), ran


def test_a_dash_is_no_output(bench: Bench) -> None:
    """Fails if files of that name are made: answers on a pipe could not be gone on with."""
    ran = bench.spawn("in.jsonl", "-o", "-").wait()
    assert (ran.exit_code, ran.stderr.splitlines()[0]) == (2, "error: '-' is not the name of a file")


def test_a_new_run_puts_the_old_one_aside_under_a_dated_name(finished: Bench) -> None:
    """Fails if ``put_aside`` forgets one of the job's files."""
    old_results, old_rows = finished.output.read_bytes(), finished.rows()
    finished.emulator.begin()  # what the old job paid is its own affair
    assert finished.run("--new-run", "--temperature", "0.5").exit_code == 0
    assert finished.emulator.submissions == {"a": 1, "b": 1, "c": 1}
    finished.check()
    [aside] = finished.folder.glob("out.jsonl.2*")
    [state_aside] = finished.folder.glob("out.jsonl.batchrun.2*")
    assert aside.read_bytes() == old_results
    finished.state = state_aside
    assert finished.rows() == old_rows
