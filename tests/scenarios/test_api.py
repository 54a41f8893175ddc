"""The Python API against the emulator: single operations, and whole jobs inside somebody else's event loop."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import batchrun
from batchrun.errors import CredentialsRefused, InputProblem, UsageProblem
from batchrun.record import Answer
from batchrun.stop import SIGNALS
from batchrun.summary import Summary
from tests.docs.pages import ROOT, blocks
from tests.scenarios.bench import KEY, Bench, wait_until

RUN_EXAMPLES = "import json\nfor text in json.load(open('examples.json')): exec(text, {'__name__': '__main__'})"
OFTEN_S = 0.03
LONG = {"p50": 60, "p99": 60}


def visit(bench: Bench, story: Callable[[batchrun.Client], Awaitable[Any]], endpoint: str | None = None) -> Any:
    """Tell a story to an open client."""

    async def told() -> Any:
        where = bench.endpoint if endpoint is None else endpoint
        async with batchrun.Client(api_key=KEY, folder_id=bench.cloud_folder, endpoint=where) as client:
            return await story(client)

    return asyncio.run(told())


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what another process does, and let the tasks of this one go on."""
    await asyncio.to_thread(wait_until, holds, "it holds")


# --- one prompt ---


def test_an_answer_is_waited_for_and_fetched_again_by_its_id(bench: Bench) -> None:
    async def story(client: batchrun.Client) -> None:
        operation = await client.run_deferred("a", temperature=0.2, max_tokens=9)
        answer = await operation.wait()
        assert isinstance(answer, Answer)
        assert answer.text
        assert answer.usage.total_tokens
        again = client.attach_deferred(operation.id)
        status = await again.get_status()
        assert (status.is_running, status.is_succeeded, status.is_failed) == (False, True, False)
        assert await again.get_result() == answer

    visit(bench, story)
    assert bench.emulator.submissions == {"a": 1}


def test_an_operation_that_runs_says_so_and_gives_nothing_yet(bench: Bench) -> None:
    """Fails if ``get_result`` waits, or if ``wait`` forgets its time limit."""
    bench.emulator.change(**LONG)

    async def story(client: batchrun.Client) -> None:
        operation = await client.run_deferred("a")
        assert (await operation.get_status()).is_running
        with pytest.raises(batchrun.TryLater, match="not finished"):
            await operation.get_result()
        with pytest.raises(TimeoutError):
            await operation.wait(timeout=0.1, poll_interval=OFTEN_S)
        assert (await operation.get_status()).is_running

    visit(bench, story)


def test_an_operation_that_failed_says_why(bench: Bench) -> None:
    bench.emulator.change(fail=1, fail_code=3)

    async def story(client: batchrun.Client) -> None:
        operation = await client.run_deferred("a")
        assert (await operation.get_status()).is_failed
        for ask in (operation.get_result, operation.wait):
            with pytest.raises(batchrun.OperationFailed) as failed:
                await ask()
            assert failed.value.failure.kind == "invalid_argument"

    visit(bench, story)


@pytest.mark.parametrize("fault", ["lost", "cut", "garbled", "error_after"])
def test_a_reply_lost_after_acceptance_is_told_and_not_sent_again(bench: Bench, fault: str) -> None:
    """Fails if ``run_deferred`` tries again by itself, or takes a lost reply for a refusal."""
    bench.emulator.change(**{fault: 1})
    with pytest.raises(batchrun.MaybeAccepted, match="may have been accepted and paid") as lost:
        visit(bench, lambda client: client.run_deferred("a"))
    assert lost.value.exit_code == 4
    assert bench.emulator.submissions == {"a": 1}


def test_a_call_cut_off_before_the_reply_is_told_as_lost(bench: Bench) -> None:
    """Fails if the cancellation goes on as it is: a ``TimeoutError`` looks like nothing was sent."""
    bench.emulator.change(slow=60)

    async def story(client: batchrun.Client) -> None:
        sending = asyncio.create_task(client.run_deferred("a"))
        await until(lambda: bench.emulator.submissions["a"] == 1)
        sending.cancel()
        with pytest.raises(batchrun.MaybeAccepted):
            await sending

    visit(bench, story)


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        ({"status": 401}, CredentialsRefused),
        ({"status": 403}, CredentialsRefused),
        ({"status": 400}, UsageProblem),
        ({"status": 429}, batchrun.TryLater),
        ({"status": 501}, batchrun.TryLater),
    ],
    ids=str,
)
def test_a_refusal_is_told_by_its_kind(bench: Bench, faults: dict[str, int], kind: type[Exception]) -> None:
    bench.emulator.change(**faults)
    with pytest.raises(kind) as refused:
        visit(bench, lambda client: client.run_deferred("a"))
    assert KEY not in str(refused.value)
    assert bench.emulator.submissions == {}


def test_a_service_that_is_not_there_was_sent_nothing(bench: Bench) -> None:
    with pytest.raises(batchrun.TryLater, match="nothing was sent"):
        visit(bench, lambda client: client.run_deferred("a"), "http://127.0.0.1:1")


def test_questions_that_fail_are_told_by_get_status_and_asked_again_by_wait(bench: Bench) -> None:
    """Fails if ``wait`` gives up at the first 503."""

    async def story(client: batchrun.Client) -> None:
        operation = await client.run_deferred("a")
        bench.emulator.change(poll_status=503)
        with pytest.raises(batchrun.TryLater):
            await operation.get_status()
        waiting = asyncio.create_task(operation.wait(poll_interval=OFTEN_S))
        await until(lambda: bench.emulator.count("polls_received") >= 3)
        assert not waiting.done()
        bench.emulator.change(poll_status=0)
        assert (await waiting).text

    visit(bench, story)


def test_an_operation_of_another_account_is_not_waited_for(bench: Bench) -> None:
    """Fails if ``wait`` takes 403 for a question that failed."""

    async def story(client: batchrun.Client) -> None:
        operation = client.attach_deferred("d7qunknown")
        with pytest.raises(batchrun.TryLater, match="not found"):
            await operation.get_status()
        bench.emulator.change(poll_status=403)
        with pytest.raises(CredentialsRefused):
            await operation.wait(timeout=5)

    visit(bench, story)


# --- a whole file ---


async def run_job(bench: Bench, **options: Any) -> Summary:
    """The bench's job, with the options its command has."""
    who = {"api_key": KEY, "folder_id": bench.cloud_folder, "endpoint": bench.endpoint}
    pace = {"rps": 500, "read_rps": 2000, "rph": 1_000_000}
    return await batchrun.run_job(bench.input, bench.output, **{**who, **pace, **options})


def test_a_job_from_python_is_the_job_of_the_command(bench: Bench) -> None:
    """Fails if the settings differ from those of the command: then either refuses what the other began."""
    bench.records("a", "b")

    async def story() -> Summary:
        first = await run_job(bench, limit=1, temperature=0)
        assert (first.exit_code, first.problem, sum(first.counts.values())) == (0, None, 1)
        bench.append("")  # a bad line
        return await run_job(bench, temperature=0)

    assert asyncio.run(story()).exit_code == 1
    assert list(bench.kinds().values()) == ["bad_input"]
    assert bench.run("--temperature", "0").exit_code == 1
    assert bench.emulator.submissions == {"a": 1, "b": 1}
    bench.check()


def test_a_job_that_is_cancelled_ends_as_with_a_signal_and_hides_nothing(bench: Bench) -> None:
    """Fails if the cancellation does not wait for the run, or if the run is not told to stop."""
    bench.records(*(f"prompt {each}" for each in range(12)))
    bench.emulator.change(slow=0.2)  # POSTs take long enough to be met on their way

    async def story() -> None:
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        running = asyncio.ensure_future(run_job(bench, rps=20))
        await until(lambda: bench.states()["intent"] > 0 and len(bench.emulator.submissions) >= 3)
        assert {number: signal.getsignal(number) for number in handlers} == handlers
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert bench.states()["intent"] == 0
        assert 0 < len(bench.emulator.submissions) < 12
        bench.emulator.change(slow=0)
        assert (await run_job(bench)).exit_code == 0

    asyncio.run(story())
    assert set(bench.emulator.submissions.values()) == {1}
    with bench.ledger() as ledger:
        assert [row["exit_code"] for row in ledger.execute("SELECT * FROM run ORDER BY 1")] == [130, 0]
    bench.check()


def test_a_job_that_is_cancelled_twice_leaves_at_once_and_the_next_run_names_what_is_in_doubt(bench: Bench) -> None:
    """Fails if the second cancellation is not handed on, or if the first one counts twice."""
    bench.records("a", "b")
    bench.expect("b", slow=60)

    async def story() -> None:
        running = asyncio.ensure_future(run_job(bench))
        await until(lambda: bench.emulator.submissions["b"] == 1)
        running.cancel()
        done, _ = await asyncio.wait([running], timeout=0.3)
        assert not done
        running.cancel()
        async with asyncio.timeout(3):
            with pytest.raises(asyncio.CancelledError):
                await running

    asyncio.run(story())
    bench.emulator.change(rules=[])
    assert asyncio.run(run_job(bench)).exit_code == 0
    assert bench.row("b")["maybe_paid"] == 1
    bench.check()


def test_ctrl_c_under_asyncio_run_ends_a_job_well(bench: Bench) -> None:
    bench.records(*(f"prompt {each}" for each in range(12)))
    bench.emulator.change(slow=0.2)
    script = (
        "import asyncio, batchrun, sys\n"
        f"asyncio.run(batchrun.run_job('in.jsonl', 'out.jsonl', rps=20, endpoint='{bench.endpoint}'))\n"
    )
    running = bench.spawn(program=("-c", script))
    wait_until(lambda: bench.states()["intent"] > 0, "a POST is on its way", while_alive=running)
    ran = running.stop(signal.SIGINT)
    assert ran.exit_code in (130, -signal.SIGINT)
    assert ran.stderr.endswith("KeyboardInterrupt\n")
    assert bench.states()["intent"] == 0
    bench.emulator.change(slow=0)
    assert asyncio.run(run_job(bench)).exit_code == 0
    assert set(bench.emulator.submissions.values()) == {1}
    bench.check()


def test_of_two_runs_of_one_job_in_one_process_the_second_leaves(bench: Bench) -> None:
    bench.records("a")
    bench.expect("a", slow=0.5)

    async def story() -> None:
        first = asyncio.ensure_future(run_job(bench))
        await until(lambda: bench.emulator.submissions["a"] == 1)
        with pytest.raises(batchrun.TryLater):
            await run_job(bench)
        assert (await first).exit_code == 0

    asyncio.run(story())
    bench.check()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({"temprature": 0}, "temperature", id="unknown"),
        pytest.param({"temperature": 2}, "temperature", id="out_of_range"),
        pytest.param({"quiet": True}, "prints nothing", id="of_the_screen"),
        pytest.param({"help": True}, "prints nothing", id="help"),
        pytest.param({"endpoint": "http://example.org"}, "plain http", id="endpoint"),
    ],
)
def test_options_are_checked_as_the_command_checks_them(bench: Bench, options: dict[str, Any], said: str) -> None:
    bench.records("a")
    with pytest.raises(UsageProblem, match=said):
        asyncio.run(run_job(bench, **options))
    assert bench.is_untouched()


def test_what_keeps_a_job_from_its_start_is_raised_and_what_ends_it_early_is_returned(bench: Bench) -> None:
    bench.lines("{")
    with pytest.raises(InputProblem):
        asyncio.run(run_job(bench))
    bench.records("a")
    bench.emulator.change(status=401)
    summary = asyncio.run(run_job(bench))
    assert summary.exit_code == 5
    assert isinstance(summary.problem, CredentialsRefused)


def test_the_examples_of_the_page_run_as_they_stand(bench: Bench) -> None:
    """In one process, each with nothing of the one before."""
    bench.emulator.change(p50=0.3, p99=0.3)
    bench.lines('"Why?"', '"Who?"')
    bench.input.rename(bench.folder / "reviews.jsonl")
    (bench.folder / "examples.json").write_text(json.dumps(blocks(ROOT / "docs" / "api.md", "python")))
    environment = {**bench.environment, "BATCHRUN_ENDPOINT": bench.endpoint}
    ran = bench.spawn(program=("-c", RUN_EXAMPLES), env=environment).wait()
    assert (ran.exit_code, ran.stderr) == (0, "")
    waited, accepted, fetched, job = ran.stdout.splitlines()
    assert "Serbia" in waited
    assert accepted.startswith("accepted and paid: d7q")
    assert "early" in fetched
    assert job == "0 None"
    assert sorted(bench.emulator.submissions.values()) == [1, 1, 1, 1]
