"""``import batchrun``: one prompt at a time with ``Client``, a whole file with ``run_job``. docs/api.md shows both."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from batchrun import job, record
from batchrun.config import DEFAULT_CONCURRENCY, DEFAULT_MODEL, DEFAULT_READ_RPS, JobConfig
from batchrun.errors import DECISION, BatchrunError, CredentialsRefused, DiskProblem, TryLater, UsageProblem
from batchrun.inputs import parse
from batchrun.lines import BadLine
from batchrun.log import keep_secret, redact
from batchrun.providers.yandex import OPERATION_ID, Yandex, credentials_from
from batchrun.record import Answer, Failure
from batchrun.stop import Stop
from batchrun.summary import Summary

Messages = str | dict[str, Any] | Iterable[str | dict[str, Any]]
PathName = str | os.PathLike[str]


class MaybeAccepted(BatchrunError):
    """The reply to a request was lost: the service may have accepted it, and then it is paid. Nobody can know."""

    exit_code = DECISION


class OperationFailed(BatchrunError):
    """The operation is over without an answer; ``failure`` says why."""

    exit_code = 1

    def __init__(self, operation_id: str, failure: Failure) -> None:
        remedy = "send it again" if failure.retryable else "see to the request before you send it again"
        super().__init__(f"operation {operation_id}: {failure.kind}: {failure.message}", remedy=remedy)
        self.failure = failure


# --- one prompt -------------------------------------------------------------------------------------------------


class Client:
    """A connection to the service, for ``async with``. What is not given comes from the environment.

    Raises:
        CredentialsRefused: there is no usable key.
        UsageProblem: there is no usable folder or endpoint.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        api_key: str | None = None,
        iam_token: str | None = None,
        folder_id: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        environ = _environ(api_key, iam_token, folder_id)
        url = (environ.get("BATCHRUN_ENDPOINT") or None) if endpoint is None else endpoint
        self._yandex = Yandex(credentials_from(environ), endpoint=url, workers=DEFAULT_CONCURRENCY)
        name = (environ.get("BATCHRUN_MODEL") or DEFAULT_MODEL) if model is None else model
        self._settings = record.Settings("yandex", name)
        self._is_open = False

    async def __aenter__(self) -> Self:
        await self._yandex.__aenter__()
        self._is_open = True
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._is_open = False
        await self._yandex.__aexit__(*error)

    async def run_deferred(
        self, messages: Messages, *, temperature: float | None = None, max_tokens: int | None = None
    ) -> Operation:
        """Send one request, once. The operation it returns is paid for; its ``id`` is worth keeping.

        Args:
            messages: A text, a dict with ``role`` and ``text`` (or ``content``), or a list of these.
        Raises:
            MaybeAccepted: the reply was lost, or the call was cancelled before it came.
            TryLater: certainly not accepted; the same request may be, later.
            BatchrunError: certainly not accepted; what it names must be seen to first.
        """
        prompt = prompt_of(messages, {"temperature": temperature, "maxTokens": max_tokens})
        request_id = str(uuid.uuid4())
        reply: record.SubmitReply
        try:
            reply = await self._service().submit(self._yandex.build(prompt, self._settings), request_id)
        except asyncio.CancelledError:
            reply = record.Ambiguous("cancelled before the reply came")
        match reply:
            case record.Accepted(operation_id):
                return Operation(self, operation_id)
            case record.Ambiguous(reason):
                remedy = f"sending it again may pay twice; the service's support knows it as request {request_id}"
                raise MaybeAccepted(f"the request may have been accepted and paid: {reason}", remedy=remedy)
            case record.Unreachable(reason):
                raise TryLater(f"nothing was sent: {reason}", remedy="try again later")
            case record.Refused(401 | 403, message):
                raise CredentialsRefused(f"the service refuses key or folder: {message}", remedy="README, 'Use it'")
            case record.Refused(status, message) if status == 429 or record.is_passing(reply):
                raise TryLater(f"the service takes no request now ({status}: {message})", remedy="try again later")
            case record.Refused(status, message):
                raise UsageProblem(f"the service refused the request ({status}: {message})", remedy="mend the request")

    def attach_deferred(self, operation_id: str) -> Operation:
        """An operation that was begun elsewhere. Asks nobody."""
        if not OPERATION_ID.fullmatch(operation_id):
            raise UsageProblem("this is not the ID of an operation", remedy="give it as it was in Operation.id")
        return Operation(self, operation_id)

    def _service(self) -> Yandex:
        if not self._is_open:
            raise UsageProblem("the client is not open", remedy="async with batchrun.Client() as client: …")
        return self._yandex


@dataclass(frozen=True, slots=True)
class OperationStatus:
    """What the service said of an operation: one of the three is true."""

    is_running: bool
    is_succeeded: bool
    is_failed: bool


class Operation:
    """A request that the service has accepted, named by its ``id``."""

    def __init__(self, client: Client, operation_id: str) -> None:
        self.id = operation_id
        self._client = client
        self._known_since = time.monotonic()

    async def get_status(self) -> OperationStatus:
        """Ask once.

        Raises:
            TryLater: the service could not be asked, or does not find it (yet). Asking costs nothing.
            CredentialsRefused: it does not show this operation to us.
        """
        outcome = await self._outcome()
        return OperationStatus(outcome is None, isinstance(outcome, Answer), isinstance(outcome, Failure))

    async def get_result(self) -> Answer:
        """Ask once, and return the answer.

        Raises:
            TryLater: it is not finished; or as ``get_status``.
            OperationFailed: it has no answer and will have none.
        """
        return self._answer(await self._outcome())

    async def wait(self, timeout: float | None = None, poll_interval: float | None = None) -> Answer:  # noqa: ASYNC109
        """Ask until there is an answer. Questions that fail are asked again.

        Args:
            timeout: Seconds; then ``TimeoutError``, and the operation goes on without us.
            poll_interval: Seconds between two questions; else a twentieth of the operation's age, 1 to 60.
        Raises:
            OperationFailed: it has no answer and will have none, or the service has not found it for 10 minutes.
            CredentialsRefused: the service does not show this operation to us.
        """
        policy = record.PollPolicy(Yandex.retention_s)
        if poll_interval is not None:
            gap_s = max(1 / DEFAULT_READ_RPS, poll_interval)
            policy = replace(policy, min_gap_s=gap_s, max_gap_s=gap_s)
        in_doubt_since = math.inf
        async with asyncio.timeout(timeout):
            while True:
                reply, now = await self._ask(), time.monotonic()
                is_in_doubt = isinstance(reply, record.NotFound | record.Malformed)
                in_doubt_since = min(in_doubt_since, now) if is_in_doubt else math.inf
                age_s, trouble_s = now - self._known_since, now - in_doubt_since
                match record.decide(reply, age_s=age_s, trouble_s=trouble_s, policy=policy):
                    case record.PollAgain(after_s):
                        await asyncio.sleep(after_s)
                    case outcome:
                        return self._answer(outcome)

    async def _ask(self) -> record.PollReply:
        reply = await self._client._service().poll(self.id)
        if isinstance(reply, record.PollFailed) and reply.status in record.STOPS_THE_RUN:
            remedy = "ask with the key of the account that sent it"
            raise CredentialsRefused(f"the service refuses to show operation {self.id}: {reply.reason}", remedy=remedy)
        return reply

    async def _outcome(self) -> record.Outcome | None:
        """What it came to; None while it is running."""
        reply = await self._ask()
        match reply:
            case record.Finished(outcome):
                return outcome
            case record.StillRunning():
                return None
        unknown = "not found; it may be too new, deleted after 3 days, or another account's"
        reason = unknown if isinstance(reply, record.NotFound) else reply.reason
        raise TryLater(f"operation {self.id}: {reason}", remedy="ask again; it costs nothing")

    def _answer(self, outcome: record.Outcome | None) -> Answer:
        if outcome is None:
            raise TryLater(f"operation {self.id} is not finished", remedy="wait() for it, or ask again later")
        if isinstance(outcome, Failure):
            raise OperationFailed(self.id, outcome)
        return outcome


def prompt_of(messages: Messages, options: record.JsonObject) -> record.Prompt:
    """What is asked, held to the rules for a line of an input. Raises UsageProblem if it fits none."""
    try:
        several = [messages] if isinstance(messages, str | dict) else messages
        asked = [{"role": "user", "text": each} if isinstance(each, str) else dict(each) for each in several]
        body = {"messages": asked, "completionOptions": options}
        return parse(json.dumps(body).encode()).prompt
    except (BadLine, TypeError, ValueError, RecursionError) as bad:
        raise UsageProblem(f"this cannot be asked: {bad}", remedy="docs/api.md shows what messages may be") from bad


# --- a whole file -----------------------------------------------------------------------------------------------


async def run_job(input: PathName, output: PathName, **options: Any) -> Summary:
    """What ``batchrun INPUT -o OUTPUT`` does, with the same ledger; cancelling it does what Ctrl-C does.

    It works in a thread with an event loop of its own and leaves signals alone. Cancelled, it awaits the replies on
    their way, then ``CancelledError`` goes on; cancelled again, it leaves at once.

    Args:
        options: Those of ``batchrun run --help``, and ``api_key``, ``iam_token``, ``folder_id``.
    Returns:
        Where the job stands. ``exit_code`` is that of the command; ``problem`` is why a run ended early.
    Raises:
        BatchrunError: nothing was sent, and what it names must be seen to first.
    """
    environ = _environ(*(options.pop(name, None) for name in ("api_key", "iam_token", "folder_id")))
    keep_secret(environ.get(name, "").strip() for name in ("YC_API_KEY", "YC_IAM_TOKEN", "YC_FOLDER_ID"))
    begun = Future[Stop]()

    async def see(progress: job.Progress) -> None:
        begun.set_result(progress.stop)

    def interrupt(begun: Future[Stop]) -> None:
        with suppress(RuntimeError):  # its event loop is closed: the run is as good as over
            begun.result().on_signal(signal.SIGINT)

    config = _config(input, output, options)
    thread = ThreadPoolExecutor(1, "batchrun")  # not the loop's own: a run may take a day
    run = asyncio.get_running_loop().run_in_executor(thread, job.run, config, environ, see)
    thread.shutdown(wait=False)
    cancelled = None
    while not run.done():
        try:
            await asyncio.wait([run])
        except asyncio.CancelledError as asked:
            cancelled = asked
            begun.add_done_callback(interrupt)  # at once, or as soon as there is something to stop
    if cancelled is not None and run.exception() is None:
        raise cancelled
    try:
        return run.result()
    except OSError as error:
        raise DiskProblem(f"{error.filename}: {error.strerror}", remedy="see to the disk or the name") from error


OF_THE_SCREEN = {"help", "quiet", "verbose", "log_file"}


def _config(input: PathName, output: PathName, options: dict[str, Any]) -> JobConfig:
    """The options, read as the command reads its own."""
    from click import ClickException, UsageError

    from batchrun.cli.run import config_of, run

    given = {name: value for name, value in options.items() if value is not None and value is not False}
    words = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in given.items()]
    try:
        if options.keys() & OF_THE_SCREEN:
            raise UsageError("run_job prints nothing and logs nothing by itself")
        params = run.make_context("run", [*words, f"--output={output}", "--", str(input)]).params
        if params["dry_run"]:
            raise UsageError("run_job sends: a look without sending is for the command")
        return config_of(params)
    except ClickException as problem:
        raise UsageProblem(redact(problem.format_message()), remedy="see batchrun run --help") from problem


def _environ(api_key: str | None, iam_token: str | None, folder_id: str | None) -> dict[str, str]:
    """The environment with these credentials in place of its own."""
    environ = dict(os.environ)
    if api_key is not None or iam_token is not None:
        environ |= {"YC_API_KEY": api_key or "", "YC_IAM_TOKEN": iam_token or ""}
    return environ if folder_id is None else environ | {"YC_FOLDER_ID": folder_id}
