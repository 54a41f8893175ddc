"""A small model of how batchrun submits, collects and resumes: the world as a value, and every step that may come next.

It is held against submitter.py, tracker.py, storage/thread.py and recovery.py by reading. What a reply, a failure or a
crash means for a record is no part of it: that is asked of ``batchrun.record``, function by function.

Modelled:
  The disk: disk.py.
  The service. An accepted POST is a payment, also if its reply is lost. An operation gives its answer as often as it
  is asked, or fails, or is no longer kept, from any moment on.
  The process. A record asks one thing at a time of the storage thread, which takes all that waits: append, sync,
  commit, return. Recovery is a row of steps like any other; each may be crashed, and the next start as well.
  A person. When all is settled, a few times: has what was given up sent again (retry), edits the line of a record and
  accepts that (accept), or deletes the output and has it rebuilt (rebuild).
Not modelled: pace, gate, outage and order of submission (any record may be next, at any time); settings and input; the
bytes of a line, ``quarantine/`` and the failures file; locks (there is one run at a time); a stop by signal (a kill at
a quiet moment, after lost replies); the rescue of operation IDs from a failed batch (a batch of their own, just
before); a POST accepted after the process has gone (accepted just before); checkpoints, but for the last; refusals
to start (what they would refuse is a violation here).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from batchrun import record
from batchrun.record import Answer, Failure, Finished, History, Move, NotFound, OnAmbiguous, PollPolicy, State
from tests.model.disk import TORN, Books, C, File, Lines, Row, left_of, row_of

Fate = Literal["alive", "answered", "failed", "gone"]
"""What the service has let be known of an operation."""
Fates = tuple[Fate, ...]
"""For each accepted POST of a record."""

POSTING, ACCEPTED = "posting", "accepted"
"""The POST is on its way; the service has it, and the reply is on its way."""
SUBMIT_REPLIES: Mapping[str, record.SubmitReply] = {
    "opened": record.Accepted("id"),
    "lost": record.Ambiguous("reset"),
    "refused": record.Refused(400, "no"),
    "put off": record.Refused(429, "later"),
}
POLICY = PollPolicy(retention_s=1000.0)
POLL_REPLIES: Mapping[str, tuple[record.PollReply, float, float]] = {  # reply, age_s, trouble_s
    "answer": (Finished(Answer("yes", "stop", record.Usage())), 0.0, 0.0),
    "failure": (Finished(Failure("provider_error", "busy", retryable=True)), 0.0, 0.0),
    "expired": (NotFound(), POLICY.retention_s, 0.0),
    "unknown": (NotFound(), POLICY.patience_s, POLICY.patience_s),
}
SETTLED = {State.DONE, State.FAILED, State.HELD, State.EXPIRED}
PROVEN_PAYMENTS = {State.NEW: (0,), State.INTENT: (0, 1), State.OPEN: (1,), State.DONE: (1,)}
TRUE_REASONS = {State.DONE: ("answered",), State.FAILED: ("failed", None), State.EXPIRED: ("gone",)}
NAMES = "abc"


class Left(NamedTuple):
    """How often things may still go wrong."""

    crashes: int
    lost: int
    failing: int
    expiring: int
    asking: int = 0


class World(NamedTuple):
    """Everything there is. Equal worlds are one state of the exploration."""

    phase: str  # down, (tail cut,) tail kept, closing, (asked, asking, new file, new books,) up, end
    ledger: File[Books]
    output: File[Lines]
    operations: tuple[Fates, ...]  # for each record
    tasks: tuple[str, ...]  # for each record; "" if its row says all, "…?" while the storage thread is asked for that
    batch: tuple[int, ...]  # the records whose requests the storage thread has taken
    todo: tuple[str, ...]  # the steps left of that batch
    survived: Lines  # whole lines that the last crash has left
    left: Left
    wish: str = ""  # retry, accept, rebuild: what a person has asked this run for
    new: File[Lines] | None = None  # the output, while lines are taken out of it


@dataclass(frozen=True)
class Setup:
    """How large the world is, and what may happen in it."""

    records: int = 1
    crashes: int = 1
    kinds: Collection[str] = ("kill", "power cut")  # and "failed sync"
    lost: int = 0
    failing: int = 0
    expiring: int = 0
    asking: int = 0
    refusing: bool = False
    on_ambiguous: OnAmbiguous = "resubmit"


@dataclass(frozen=True)
class Protocol:
    """The product's way; a mutant has one thing otherwise."""

    batch: tuple[str, ...] = ("append", "sync", "commit", "return")
    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    intent_before_post: bool = True
    poll_after_open: bool = True
    tail: Literal["walk", "cut", "leave"] = "walk"
    kept_lines: Literal["written anew", "synced", "left"] = "written anew"
    log: Literal["written anew", "synced", "left"] = "written anew"
    closing_commit: bool = True
    new_output: Literal["synced", "written"] = "synced"  # when the ledger begins to describe it


PRODUCT = Protocol()
INVARIANTS = ("I1", "I2", "I3", "I4", "I5", "I6", "I7")
Step = tuple[str, World]


class Violation(AssertionError):
    """A guarantee that does not hold."""


class Model:
    """Which steps may come next, and whether a world is as promised. Only ``watched`` invariants raise a Violation."""

    def __init__(self, setup: Setup, protocol: Protocol = PRODUCT, watched: Collection[str] = INVARIANTS) -> None:
        self.setup = setup
        self.protocol = protocol
        self.watched = watched
        self.moves: set[tuple[State, State]] = set()
        self.moved = cache(self._moved)  # per model: a test may put other functions into ``record``
        self.verdict = cache(self._verdict)
        self.check_payments = cache(self._check_payments)

    def start(self) -> World:
        setup, count = self.setup, self.setup.records
        books = Books((row_of(State.NEW, History(), 0),) * count, 0)
        left = Left(setup.crashes, setup.lost, setup.failing, setup.expiring, setup.asking)
        return World("down", File((books,)), File(((),)), ((),) * count, ("",) * count, (), (), (), left)

    def steps(self, world: World) -> Iterator[Step]:
        if world.phase == "up":
            for number in range(self.setup.records):
                for name, after in self._record(world, number):
                    yield f"{NAMES[number]} {name}", after
            yield from self._storage(world)
            if not any(world.tasks) and all(row.state in SETTLED for row in world.ledger.visible.rows):
                yield "end", world._replace(phase="end", ledger=world.ledger.written_anew())
        else:
            yield from self._recovery(world)
        if world.phase == "end" and world.left.asking:
            yield from self._person(world)
        if world.left.crashes and world.phase not in ("down", "end"):
            yield from self._crashes(world)

    # --- submitter.py, tracker.py: one record, up to what it asks of the storage thread ---

    def _record(self, world: World, number: int) -> Iterator[Step]:
        task, row, fates = world.tasks[number], world.ledger.visible.rows[number], world.operations[number]
        late = "" if self.protocol.intent_before_post else "intent, "
        if task == "" and row.state is State.NEW:
            yield "is next", _tasked(world, number, POSTING if late else "intent?")
        elif task == POSTING:
            yield "is accepted, and paid", _tasked(world, number, ACCEPTED, (*fates, "alive"))
            if self.setup.refusing:
                yield "is refused", _tasked(world, number, f"{late}refused?")
                yield "is put off", _tasked(world, number, f"{late}put off?")
        elif task == ACCEPTED:
            yield "gets its operation ID", _tasked(world, number, f"{late}opened?")
        elif task == "opened?" and not self.protocol.poll_after_open and number not in world.batch:
            yield "gets its answer", _tasked(world, number, "opened, answer?", (*fates[:-1], "answered"))
        elif task == "" and row.state is State.OPEN:
            yield from self._poll(world, number, fates, row.operation)
        if task in (POSTING, ACCEPTED) and world.left.lost:
            fewer = world.left._replace(lost=world.left.lost - 1)
            yield "gets no reply", _tasked(world, number, f"{late}lost?")._replace(left=fewer)

    def _poll(self, world: World, number: int, fates: Fates, operation: int) -> Iterator[Step]:
        fate, left = fates[operation - 1], world.left

        def polled(reply: str, fate: Fate, left: Left = left) -> Step:
            told = (*fates[: operation - 1], fate, *fates[operation:])
            task = f"{reply}?" if not isinstance(self.verdict(reply), record.PollAgain) else ""
            return f"is polled: {reply}", _tasked(world, number, task, told)._replace(left=left)

        match fate:
            case "failed":
                yield polled("failure", fate)
            case "gone":
                yield polled("expired", fate)
            case _:
                yield polled("answer", "answered")
        if fate == "alive" and left.failing:
            yield polled("failure", "failed", left._replace(failing=left.failing - 1))
        if fate in ("alive", "answered") and left.expiring:
            sooner = left._replace(expiring=left.expiring - 1)
            yield polled("expired", "gone", sooner)
            yield polled("unknown", fate, sooner)

    # --- storage/thread.py ---

    def _storage(self, world: World) -> Iterator[Step]:
        """Take what has arrived, then one step of that batch after another."""
        if not world.todo:
            arrived = tuple(number for number, task in enumerate(world.tasks) if task.endswith("?"))
            if not arrived:
                return
            world = world._replace(batch=arrived)
            world = world._replace(todo=self.protocol.batch if _results(world) else ("commit", "return"))
        step, *rest = world.todo
        after = world._replace(todo=tuple(rest))
        match step:
            case "append":
                after = after._replace(output=world.output.written(world.output.visible + _results(world)))
            case "sync":
                after = after._replace(output=world.output.synced())
            case "commit":
                after = after._replace(ledger=world.ledger.written(self._committed(world)))
            case _ if self.protocol.synchronous == "FULL":
                after = after._replace(ledger=world.ledger.synced())
        if not rest:
            for number in world.batch:
                after = _tasked(after, number, POSTING if world.tasks[number] == "intent?" else "")
            after = after._replace(batch=())
        yield f"storage: {step} for {''.join(NAMES[number] for number in world.batch)}", after

    def _committed(self, world: World) -> Books:
        rows = list(world.ledger.visible.rows)
        for number in world.batch:
            for request in _requests(world.tasks[number]):
                rows[number] = self.moved(rows[number], request, len(world.operations[number]))
        return Books(tuple(rows), world.ledger.visible.out_committed + len(_results(world)))

    def _moved(self, row: Row, request: str, latest: int = 0) -> Row:
        """The row after what ``batchrun.record`` makes of a reply, or of a crash."""
        move = self._move(row, request)
        if move.to not in record.MOVES[row.state]:
            self.broken("I6", f"{row.state} -> {move.to} is not a legal move")
        self.moves.add((row.state, move.to))
        operation = latest if move.to is State.OPEN else 0 if move.to is State.NEW else row.operation
        after = row.history.after(move)
        counted = row.history.failed_operations + move.adds_failed_operation * bool(row.operation)
        return row_of(move.to, after, operation, row.forgotten + counted - after.failed_operations)

    def _move(self, row: Row, request: str) -> Move:
        if request == "intent":
            return Move(State.INTENT)
        if request == "again":
            return record.after_request(row.state, failure_of(row), accepted=bool(row.operation))
        if request == "missed":
            return Move(State.OPEN)
        if request == "crash":
            return record.after_crash(self.setup.on_ambiguous)
        if request in SUBMIT_REPLIES:
            return record.after_submit(SUBMIT_REPLIES[request], row.history, 1, self.setup.on_ambiguous)
        verdict = self.verdict(request)
        if isinstance(verdict, Failure):
            return record.after_failure(verdict, row.history)
        return Move(State.DONE)

    def _verdict(self, request: str) -> record.PollAgain | record.Outcome:
        reply, age_s, trouble_s = POLL_REPLIES[request]
        return record.decide(reply, age_s=age_s, trouble_s=trouble_s, policy=POLICY)

    # --- recovery.py ---

    def _recovery(self, world: World) -> Iterator[Step]:
        (rows, out_committed), lines = world.ledger.visible, world.output.visible
        match world.phase:
            case "down" if self._kept(world.ledger, self.protocol.log) != world.ledger:
                ledger = self._kept(world.ledger, self.protocol.log)
                yield f"log {self.protocol.log}", world._replace(ledger=ledger)
            case "down" if world.new is not None:
                is_described = self._describes(rows, out_committed, world.new.visible)
                output = world.new if is_described else world.output
                yield f"the new file: {is_described}", world._replace(output=output, new=None)
            case "down" if world.wish == "rebuild":
                yield self._rebuilt(world)
            case "down" if len(lines) <= out_committed or self.protocol.tail == "leave":
                output = world.output._replace(stuck=False)  # a failed sync has left nothing behind the last commit
                yield "start", world._replace(phase="tail kept", output=output)
            case "down":
                end = out_committed + self._walk_tail(rows, lines[out_committed:])
                name = f"start, of the tail {lines[out_committed:]} {end - out_committed} kept"
                yield name, world._replace(phase="tail cut", output=world.output.written(lines[:end]))
            case "tail cut":
                output = self._kept(world.output, self.protocol.kept_lines)
                yield f"kept lines {self.protocol.kept_lines}", world._replace(phase="tail kept", output=output)
            case "tail kept":
                if self.protocol.closing_commit:
                    closed = self._closed(rows, out_committed, lines)
                    yield "closing commit", world._replace(phase="closing", ledger=world.ledger.written(closed))
                else:
                    yield "no closing commit", world._replace(phase="up")
            case "closing":
                ledger = world.ledger.synced() if self.protocol.synchronous == "FULL" else world.ledger
                phase = "asked" if world.wish else "up"
                yield "closing commit returns", world._replace(phase=phase, ledger=ledger)
            case "asked" | "new file" | "asking" | "new books":
                yield self._asked(world)

    def _kept(self, file: File[C], how: str) -> File[C]:
        """What a start makes of a file that a killed run may have left."""
        return {"written anew": file.written_anew(), "synced": file.synced()}.get(how, file)

    def _describes(self, rows: tuple[Row, ...], out_committed: int, lines: Lines) -> bool:
        """Whether these are the lines of all DONE records."""
        done = [(number, row.operation) for number, row in enumerate(rows) if row.state is State.DONE]
        return len(lines) == out_committed and sorted(lines) == done

    def _walk_tail(self, rows: tuple[Row, ...], tail: Lines) -> int:
        """How many lines of the tail are whole, belong to an open operation, and come first."""
        for count, line in enumerate(tail):
            number, operation = line
            is_open = line != TORN and rows[number].state is State.OPEN and rows[number].operation == operation
            if self.protocol.tail == "cut" or not is_open or line in tail[:count]:
                return count
        return len(tail)

    def _closed(self, rows: tuple[Row, ...], out_committed: int, lines: Lines) -> Books:
        """The books after the closing commit."""
        kept = () if self.protocol.tail == "leave" else lines[out_committed:]
        closed = [self.moved(row, "crash") if row.state is State.INTENT else row for row in rows]
        for number, _ in kept:
            closed[number] = self.moved(rows[number], "answer")
        return Books(tuple(closed), out_committed + len(kept))

    # --- cli/retry.py, intake.py, tail.py: what a person asks for ---

    def _person(self, world: World) -> Iterator[Step]:
        rows = world.ledger.visible.rows
        asked = world._replace(phase="down", left=world.left._replace(asking=world.left.asking - 1), survived=())
        if any(row.state in (State.FAILED, State.HELD, State.EXPIRED) for row in rows):
            yield "retry", asked._replace(wish="retry")
        yield "a line is edited, and accepted", asked._replace(wish="accept")
        if world.output.visible:
            yield "the output is deleted, and rebuilt", asked._replace(wish="rebuild", output=File(((),)))

    def _asked(self, world: World) -> Step:
        """The next step of what was asked for, after the closing commit. A rebuild comes before it."""
        books, new = world.ledger.visible, world.new
        match world.phase:
            case "asked" if world.wish == "accept" and books.rows[0].state is State.DONE:
                kept = tuple(line for line in world.output.visible if line[0] != 0)
                written = File[Lines](((),)).written(kept)
                synced = written.synced() if self.protocol.new_output == "synced" else written
                return "the new file", world._replace(phase="new file", new=synced)
            case "asked" | "new file":
                wanted = [row.state in (State.FAILED, State.HELD, State.EXPIRED) for row in books.rows]
                if world.wish == "accept":
                    wanted = [number == 0 for number in range(len(books.rows))]
                rows = tuple(
                    self.moved(row, "again") if again else row for row, again in zip(books.rows, wanted, strict=True)
                )
                after = Books(rows, books.out_committed if new is None else len(new.visible))
                return f"{world.wish}: commit", world._replace(phase="asking", ledger=world.ledger.written(after))
            case "asking":
                phase = "up" if new is None else "new books"
                return f"{world.wish}: commit returns", world._replace(
                    phase=phase, ledger=world.ledger.synced(), wish=world.wish * (new is not None)
                )
            case _:
                assert new is not None
                return "the new file takes the output's place", world._replace(
                    phase="up", output=new, new=None, wish=""
                )

    def _rebuilt(self, world: World) -> Step:
        books = world.ledger.visible
        rows = tuple(self.moved(row, "missed", row.operation) if row.state is State.DONE else row for row in books.rows)
        ledger = world.ledger.written(Books(rows, 0)).synced()
        return "rebuild", world._replace(ledger=ledger, wish="")

    # --- crashes ---

    def _crashes(self, world: World) -> Iterator[Step]:
        ledger, output, kinds = world.ledger, world.output, self.setup.kinds
        step = world.todo[0] if world.todo else world.phase
        if "kill" in kinds:
            yield self._crash(world, "kill", ledger, output)
            for name, after in self._storage(world):
                for lines in left_of((output.visible, after.output.visible))[1:-1]:
                    yield self._crash(world, f"kill within {name}, leaves {lines}", ledger, output.written(lines))
        if "power cut" in kinds:
            for back, books in enumerate(reversed(ledger.versions)):
                for lines in left_of(output.versions):
                    name = f"power cut, {back} commits back, leaves {lines}"
                    for new in [None] if world.new is None else left_of(world.new.versions):
                        left = None if new is None else File((new,))
                        yield self._crash(world, name, File((books,)), File((lines,)), left)
        if "failed sync" in kinds and step in ("sync", "tail cut"):
            yield self._crash(world, "failed sync of the output", ledger, output._replace(stuck=True))
        if "failed sync" in kinds and step in ("return", "closing"):
            yield self._crash(world, "failed sync of the ledger", ledger._replace(stuck=True), output)

    def _crash(
        self, world: World, name: str, ledger: File[Books], output: File[Lines], new: File[Lines] | None = None
    ) -> Step:
        for number, row in enumerate(ledger.visible.rows):
            if world.phase == "up" and row.state is State.INTENT and not _is_in_flight(world.tasks[number]):
                self.broken("I7", f"{name}: {NAMES[number]} will be flagged, and is not in flight")
        return name, world._replace(
            phase="down",
            ledger=ledger,
            output=output,
            tasks=("",) * len(world.tasks),
            batch=(),
            todo=(),
            survived=tuple(line for line in output.visible if line != TORN and not (world.wish and line[0] == 0)),
            left=world.left._replace(crashes=world.left.crashes - 1),
            wish="",
            new=world.new if new is None else new,
        )

    # --- what is promised ---

    def broken(self, invariant: str, text: str) -> None:
        if invariant in self.watched:
            raise Violation(f"{invariant}: {text}")

    def check(self, world: World) -> None:
        """Raise Violation if a promise is broken here."""
        (rows, out_committed), lines = world.ledger.visible, world.output.visible
        if world.phase == "down" and not world.wish and world.new is None and len(lines) < out_committed:
            self.broken("I1", f"the output is shorter than it was: {len(lines)} lines of {out_committed}")
        whole = [number for number, _ in lines if number >= 0]
        if len(set(whole)) < len(whole):
            self.broken("I2", f"two lines for one record: {lines}")
        for row, fates in zip(rows, world.operations, strict=True):
            self.check_payments(row, fates)
        if world.phase == "end":
            self._check_end(rows, world.operations, lines, world.survived)

    def _check_payments(self, row: Row, fates: Fates) -> None:
        flagged = row.history.maybe_paid
        paid = len(fates) - row.history.failed_operations - row.forgotten
        if paid - 1 > flagged:
            self.broken("I3", f"paid {paid} times, flagged {flagged}")
        if self.setup.on_ambiguous == "hold" and not self.setup.asking and len(fates) - fates.count("failed") > 1:
            self.broken("I3", f"paid {paid} times under hold")
        if not flagged and paid not in PROVEN_PAYMENTS.get(row.state, (paid,)):
            self.broken("I4", f"{row.state}, never in doubt, and paid {paid} times")

    def _check_end(self, rows: tuple[Row, ...], operations: tuple[Fates, ...], lines: Lines, survived: Lines) -> None:
        for number, row in enumerate(rows):
            fate = operations[number][row.operation - 1] if row.operation else None
            if fate not in TRUE_REASONS.get(row.state, (fate,)):
                self.broken("I1", f"{NAMES[number]} ended {row.state}, and its operation {fate}")
            if [line[0] for line in lines].count(number) != (row.state is State.DONE):
                self.broken("I1", f"{NAMES[number]} ended {row.state}, and the output has {lines}")
        if not set(survived) <= set(lines):
            self.broken("I1", f"a crash had left {survived}, and the output has {lines}")


def failure_of(row: Row) -> Failure:
    """Why the row is as it is, in the model: an operation failed in passing, or the request was refused."""
    kind = (
        "provider_error"
        if row.operation
        else "no_reply"
        if row.history.lost_replies >= record.MAX_LOST_REPLIES
        else "invalid_argument"
    )
    return Failure(kind, "why", retryable=kind != "invalid_argument")


def _tasked(world: World, number: int, task: str, fates: Fates | None = None) -> World:
    tasks = (*world.tasks[:number], task, *world.tasks[number + 1 :])
    if fates is None:
        return world._replace(tasks=tasks)
    operations = (*world.operations[:number], fates, *world.operations[number + 1 :])
    return world._replace(tasks=tasks, operations=operations)


def _requests(task: str) -> list[str]:
    """What the storage thread is to record for this task; the mutants ask for two things at once."""
    return task.rstrip("?").split(", ")


def _is_in_flight(task: str) -> bool:
    return _requests(task)[0] in ("intent", POSTING, ACCEPTED, *SUBMIT_REPLIES)


def _results(world: World) -> Lines:
    """The lines of the batch."""
    return tuple((number, len(world.operations[number])) for number in world.batch if "answer" in world.tasks[number])
