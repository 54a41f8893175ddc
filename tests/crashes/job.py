"""A job of three records: run by the product itself in this process, recorded, crashed, resumed and judged."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from batchrun import job as product
from batchrun import tracker
from batchrun.config import JobConfig
from batchrun.errors import DISK, BatchrunError, InputProblem
from batchrun.record import OnAmbiguous, Settings
from batchrun.storage import disk
from batchrun.storage.jobdir import JobPaths, is_locked
from batchrun.storage.ledger import Ledger
from batchrun.summary import Summary
from batchrun.verify import verify
from tests.crashes.recorder import Accepted, Call, Event, Failed, FileEvent, Recorder, described
from tests.crashes.replay import Disk, Kind, found_in
from tests.crashes.service import FAILING, PLAIN, RECORDS, Clock, Service

INPUT, OUTPUT, FAILURES = "in.jsonl", "out.jsonl", "out.errors.ndjson"
ELSEWHERE = "elsewhere"  # the state's own folder: the syncs of one folder must not stand in for those of another
PACKED = f"{INPUT}.gz"
GIVEN = (INPUT, PACKED, ELSEWHERE)
CREDENTIALS = {"YC_API_KEY": "crashes-key-that-nobody-may-see", "YC_FOLDER_ID": "b1g0c0a5e5c0a5e5c0a5"}
SOME_FAILED, SOME_HELD = 1, 4
HARMLESS = Failed(f"{ELSEWHERE}/state/ledger.db-wal", Call.UNLINK)  # SQLite has emptied it, and opens it again


class Violation(AssertionError):
    """A crash cost what no crash may cost."""


@dataclass(frozen=True, slots=True)
class Crash:
    """What a run that ended somewhere has left behind.

    ``story`` says how it came to that; ``cut`` is what earlier recoveries had to cut from the output's tail.
    """

    story: str
    disk: Disk
    accepted: tuple[Accepted, ...]
    cut: tuple[bytes, ...] = ()

    def output(self) -> bytes:
        return self.disk.contents().get(OUTPUT) or b""

    def whole_lines(self) -> list[bytes]:
        """The results in the output, up to the first line that is not whole."""
        return list(_whole_results(self.output()))

    def to_be_cut(self) -> tuple[bytes, ...]:
        """Every rest of a tail that must be found in quarantine, once a recovery has come to its end."""
        rest = self.output()[sum(map(len, self.whole_lines())) :]
        file = self.disk.names.get(OUTPUT)
        is_durable = file is not None and file.visible == file.durable
        return (*self.cut, rest) if rest and is_durable else self.cut

    def found(self) -> Hashable:
        """Equal for two crashes after which one run does the same and is judged by the same. A later crash may still
        tell them apart.
        """
        return hash(tuple(sorted(self.disk.contents().items()))), self.accepted, self.to_be_cut()


NOTHING = Crash("", Disk(), ())


@dataclass(frozen=True, slots=True)
class Recording:
    """One run to its end: what it found, and everything it did."""

    start: Crash
    events: Sequence[Event]

    def crashes(
        self, *kinds: Kind, after: Callable[[Event], bool] | None = None, since: type[Event] | None = None
    ) -> Iterator[Crash]:
        """Every boundary, every kind; those that leave the same behind only once.

        Args:
            after: Only the boundaries after such an event.
            since: Only those later than the first such event.
        """
        disk = self.start.disk.copy()
        accepted = self.start.accepted
        known = set()
        for at in range(len(self.events) + 1):
            last = self.events[at - 1] if at else None
            following = self.events[at] if at < len(self.events) else None
            if isinstance(last, FileEvent):
                disk.apply(last)
            elif isinstance(last, Accepted):
                accepted += (last,)
            if since is not None and isinstance(last, since):
                since = None
            if since is not None or (after is not None and (last is None or not after(last))):
                continue
            for kind in kinds:
                left = disk.after_crash(kind, following)
                if left is not None and (key := (hash(left.key()), accepted)) not in known:
                    known.add(key)
                    yield Crash(self._story(at, kind), left, accepted, self.start.to_be_cut())

    def _story(self, at: int, kind: Kind) -> str:
        last = f"after {described(self.events[at - 1])}" if at else "before anything"
        return f"{self.start.story}{kind} at {at} of {len(self.events)}, {last}\n"


class Bench:
    """The folder of the job. Its input stays where it is: a resumed run shall know it again."""

    on_ambiguous: OnAmbiguous = "resubmit"
    input = INPUT

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        lines = (json.dumps({"id": record, "prompt": record}) + "\n" for record in RECORDS)
        (self.folder / INPUT).write_text("".join(lines))
        (self.folder / ELSEWHERE).mkdir(exist_ok=True)
        self.paths = JobPaths.of(self.folder / OUTPUT, self.folder / ELSEWHERE / "state")

    def pack(self) -> None:
        """Let the job read its input out of an archive."""
        self.input = PACKED
        (self.folder / PACKED).write_bytes(gzip.compress((self.folder / INPUT).read_bytes()))

    def record(self, start: Crash = NOTHING, **how: Any) -> Recording:
        """Run to the end from there, and write down everything it does.

        Args:
            how: What differs in its ``JobConfig``.

        Raises:
            Violation: the run does not end by itself.
        """
        recorder = Recorder(self.folder)
        self._lay_out(start)
        with recorder.watching(), _told(start.story):
            self._run(Service(start.accepted, recorder.note), **how)
        return Recording(start, recorder.events)

    def record_turned_away(self, start: Crash, **how: Any) -> Recording:
        """Run from there with an input that is none, and write down everything it does."""
        recorder, path = Recorder(self.folder), self.folder / INPUT
        self._lay_out(start)
        given = path.read_text()
        path.write_text("no record\n")
        with recorder.watching(), pytest.raises(InputProblem, match="looks like plain text"):
            self._run(Service(start.accepted, recorder.note), **how)
        path.write_text(given)
        return Recording(start, recorder.events)

    def record_refused(self, call: Call, number: int) -> Recording | None:
        """Run from the beginning, and let one call of a sort fail, counted from 0. None if there are not so many.

        Raises:
            Violation: the run does not take the disk for broken.
        """
        recorder = Recorder(self.folder, refused=(call, number))
        self._lay_out(NOTHING)
        code = None
        with _told(f"{call} {number} fails\n"):
            try:
                with recorder.watching():
                    code = self._run(Service(note=recorder.note)).exit_code
            except BatchrunError as problem:
                code = problem.exit_code
            failed = recorder.first(Failed)
            if failed is None:
                return None
            assert code == DISK or failed == HARMLESS, f"{failed}: the exit code is {code}"
        return Recording(replace(NOTHING, story=f"{failed}\n"), recorder.events)

    def judge(self, crash: Crash) -> None:
        """Resume after the crash, to the end.

        Raises:
            Violation: a result is lost or doubled, or a payment is hidden.
        """
        self._lay_out(crash)
        service = Service(crash.accepted)
        with _told(crash.story):
            summary = self._run(service)
            self._check(crash, service, summary)

    def judge_new_run(self, crash: Crash, old: Crash, **how: Any) -> None:
        """Go on after a crash in a run that was to put the old job aside: by the plain command, or if that refuses,
        by the same one again.

        Raises:
            Violation: the old results are nowhere, or one of the new ones is lost, doubled or paid for unseen.
        """
        self._lay_out(crash)
        service = Service(crash.accepted)
        with _told(crash.story):
            try:
                summary = self._run(service)
            except InputProblem:
                assert len(service.accepted) == len(old.accepted), "something was sent before the old job was aside"
                summary = self._run(service, **how)
            service.accepted = service.accepted[len(old.accepted) :]
            self._check_job(service, summary)
            kept = [path.read_bytes() for path in self.folder.glob(f"{OUTPUT}*") if path.is_file()]
            assert old.output() in kept, "the old results are nowhere"

    def judge_asked(self, crash: Crash, asked: dict[str, Any], answered: int | None) -> None:
        """Go on after a crash in a run that a person had asked for more: by the plain command, or if that refuses, by
        the same one again.

        Args:
            answered: So many requests, and no more, may have been accepted in the end; None for any number.

        Raises:
            Violation: a result is lost or doubled, a payment is hidden, or a line was thrown away.
        """
        self._lay_out(crash)
        service = Service(crash.accepted)
        with _told(crash.story):
            try:
                self._run(service)
            except InputProblem:
                assert len(service.accepted) == len(crash.accepted), "something was sent although the run refuses"
                self._run(service, **asked)
            self._check_everything_let_go()
            self._check_records(service)
            assert answered is None or len(service.accepted) == answered, "something was sent again"
            assert not self.paths.new_output.exists()
            whole = crash.disk.contents().get(OUTPUT)
            kept = [path.read_bytes() for path in self.folder.rglob("*") if path.is_file()]
            for line in (whole or b"").splitlines(keepends=True):
                assert any(line in content for content in kept), "a paid line is nowhere"

    def edit_input(self) -> None:
        """Another line for PLAIN, which asks the same."""
        path = self.folder / INPUT
        path.write_text(path.read_text().replace(f'"prompt": "{PLAIN}"', f'"prompt": "{PLAIN}", "note": 1'))

    def found(self) -> dict[str, bytes | None]:
        """What is really there, while no run is at work."""
        return found_in(self.folder, without=GIVEN)

    # --- running ---

    def _lay_out(self, crash: Crash) -> None:
        crash.disk.put_into(self.folder, keep=GIVEN)

    def _run(self, service: Service, **how: Any) -> Summary:
        config = JobConfig(
            self.folder / self.input,
            self.paths,
            Settings("yandex", "yandexgpt/latest"),
            rps=1000.0,
            read_rps=1000.0,
            rph=1_000_000,
            concurrency=2,
            on_ambiguous=self.on_ambiguous,
            **how,
        )
        with _served_by(service):
            return product.run(config, CREDENTIALS)

    # --- judging ---

    def _check(self, crash: Crash, service: Service, summary: Summary) -> None:
        self._check_job(service, summary)
        self._check_lines_kept(crash, service)
        self._check_quarantine(crash)

    def _check_job(self, service: Service, summary: Summary) -> None:
        holds = self.on_ambiguous == "hold"
        assert (summary.problem, summary.exit_code) == (None, SOME_HELD if holds else SOME_FAILED)
        self._check_everything_let_go()
        failures = self._check_records(service)
        unwell = {line["id"] for line in failures if line["error"]["kind"] != "held"}
        assert unwell <= {FAILING} if holds else unwell == {FAILING} and len(failures) == 1
        assert not holds or set(service.payments.values()) <= {1}, f"paid under hold: {service.payments}"

    def _check_records(self, service: Service) -> list[dict[str, Any]]:
        """Each has one line, and no payment is hidden. Returns the failures."""
        failures = _json_lines(self.folder / FAILURES)
        found = Counter(line["id"] for line in _json_lines(self.folder / OUTPUT) + failures)
        assert found == Counter(RECORDS), f"lost or doubled: {found}"
        with closing(Ledger.read_only(self.paths.ledger)) as ledger:
            findings = verify(ledger, self.folder / INPUT, self.folder / OUTPUT)
            flagged = {row.id: row.history.maybe_paid for row in ledger.walk("rows_in_order")}
        assert not findings.named
        for record, payments in service.payments.items():
            assert payments - 1 <= flagged[record], f"{record}: paid {payments} times, flagged {flagged[record]}"
        return failures

    def _check_lines_kept(self, crash: Crash, service: Service) -> None:
        """A whole line that was in the output is still there, and its answer was not asked for again."""
        lines = crash.whole_lines()
        assert (self.folder / OUTPUT).read_bytes().startswith(b"".join(lines)), "a line of the output was given up"
        for line in lines:
            asked = service.polls[json.loads(line)["operation_id"]]
            assert not asked, "an answer was asked for although it was in the output"

    def _check_quarantine(self, crash: Crash) -> None:
        quarantine = self.paths.quarantine
        aside = [path.read_bytes() for path in quarantine.iterdir()] if quarantine.exists() else []
        for rest in crash.to_be_cut():
            assert rest in aside, f"{len(rest)} bytes were cut from the output and are nowhere"

    def _check_everything_let_go(self) -> None:
        assert not is_locked(self.paths), "the job is still locked"
        with (self.folder / OUTPUT).open("rb") as output:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _told(story: str) -> Iterator[None]:
    """Whatever goes wrong in here is told with what came before."""
    try:
        yield
    except Exception as error:
        raise Violation(f"\n{story}{type(error).__name__}: {error}") from error


@contextmanager
def _served_by(service: Service) -> Iterator[None]:
    """Runs meet this service, on a clock of their own and with the same chance every time."""

    @asynccontextmanager
    async def open_provider(*_: object) -> AsyncIterator[Service]:
        yield service

    clock = Clock()
    with ExitStack() as patches:
        patches.enter_context(patch.object(random, "random", random.Random(1).random))
        patches.enter_context(patch.object(product, "open_provider", open_provider))
        patches.enter_context(patch.object(product, "loop_factory", lambda: clock.loop))
        patches.enter_context(patch.object(product, "Storage", clock.open_storage))
        patches.enter_context(patch.object(time, "monotonic", clock.monotonic))
        patches.enter_context(patch.object(tracker, "TIMER_GRAIN_S", 10.0))  # time stands still where nothing is due:
        patches.enter_context(patch.object(disk, "LOOK_EVERY_S", 100.0))  # fewer steps to the same end
        yield


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _whole_results(data: bytes) -> Iterator[bytes]:
    """The lines up to the first that is not whole."""
    for line in data.splitlines(keepends=True):
        try:
            json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n"):
            return
        yield line
