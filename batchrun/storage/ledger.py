"""The ledger: one SQLite file that knows what was sent, what was paid for, and where each answer stands."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, astuple, dataclass
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any, Self

import orjson

from batchrun.errors import BatchrunError, DiskProblem, InputProblem, UsageProblem
from batchrun.lines import MAX_LINE_BYTES
from batchrun.log import redact
from batchrun.record import MOVES, Failure, History, Move, Place, Record, Settings, State, Usage, after_request

SCHEMA_VERSION = 1
OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
LAST_ROW = (1 << 63) - 1
MANY = 1 << 31  # more of anything than one record, or one job's starts, can come to
LAST_INSTANT = float(1 << 33)  # in the year 2242
# The last bytes of a rollback journal that is one of several; ours never is.
HEAD_OF_JOURNALS = bytes.fromhex("d9d505f920a163d7")


def _sql(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


QUERIES = dict(re.findall(r"^-- name: (\w+)\n(.*?;)$", _sql("queries.sql"), flags=re.MULTILINE | re.DOTALL))


class StateConflict(Exception):
    """A row was not in the state its move expects: a bug, or two programs at one ledger. The run stops."""


@dataclass(frozen=True, slots=True)
class Job:
    """The one row about the job itself. Instants in Unix seconds; ``None`` for what is not known yet."""

    job_id: str
    epoch: int
    created_at: float
    input_path: str
    input_source: str | None
    options: str
    settings: str
    settings_digest: bytes
    input_inode: int | None
    input_mtime_ns: int | None
    input_size: int | None
    input_digest: bytes | None
    input_records: int | None
    out_committed: int
    out_last_seq: int | None
    low_water_line: int
    low_water_offset: int


@dataclass(frozen=True, slots=True)
class PastRun:
    """One process that worked on the job. ``ended_at`` is ``None`` while it runs, and for ever if it was killed."""

    run_id: int
    ended_at: float | None
    exit_code: int | None
    cause: str | None
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Written:
    """Where a result line stands in the output: bytes from ``offset``, line end included."""

    offset: int
    length: int
    crc32: int

    @property
    def end(self) -> int:
        return self.offset + self.length


Done = tuple[int, str, Written, Usage, float]
"""What makes a record DONE: its row, its operation, where its line stands, the tokens, and when."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record as the ledger knows it."""

    seq: int
    place: Place
    id: Any
    digest: bytes
    state: State
    history: History
    operation_id: str | None
    submitted_at: float | None
    finished_at: float | None
    written: Written | None
    failure: Failure | None

    @property
    def named(self) -> str:
        """The words that name this record to a person."""
        return f"line {self.place.line} of the input" + ("" if self.id is None else f" (id {self.id})")


def _row(raw: sqlite3.Row) -> Row:
    history = raw["attempt"], raw["lost_replies"], raw["maybe_paid"], raw["failed_operations"]
    if raw["length"] > MAX_LINE_BYTES or max(history) >= MANY:
        raise ValueError("no record")
    return Row(
        seq=raw["seq"],
        place=Place(raw["line"], raw["offset"], raw["length"]),
        id=_id(raw["id"]),
        digest=raw["digest"],
        state=State(raw["state"]),
        history=History(*history),
        operation_id=raw["operation_id"],
        submitted_at=_instant(raw["submitted_at"]),
        finished_at=_instant(raw["finished_at"]),
        written=None if raw["out_offset"] is None else Written(raw["out_offset"], raw["out_length"], raw["out_crc32"]),
        failure=None if raw["error"] is None else _failure(json.loads(raw["error"])),
    )


def _id(raw: str | None) -> str | int | None:
    found = None if raw is None else json.loads(raw)
    if not isinstance(found, str | int | None) or isinstance(found, bool):
        raise TypeError("no id")
    orjson.dumps(found)  # as it will stand in a result
    return found


def _instant(raw: float | None) -> Any:
    """Unix seconds, as near to it as a calendar can show: the clock may have been anywhere."""
    return None if raw is None else min(max(0.0, raw), LAST_INSTANT)


def _failure(raw: dict[str, Any]) -> Failure:
    if not isinstance(raw["kind"], str) or not isinstance(raw["message"], str):
        raise TypeError("no failure")
    orjson.dumps(raw | {"message": ""})
    return Failure(**{**raw, "usage": Usage(**raw["usage"])})


def _columns_of(settings: Settings) -> dict[str, Any]:
    return {"settings": json.dumps(asdict(settings)), "settings_digest": settings.digest()}


def _dump(failure: Failure | None) -> str | None:
    return None if failure is None else json.dumps(asdict(failure))


class Ledger:
    """One connection. Every method that writes expects to be inside ``transaction()``."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self.path = path
        connection.row_factory = sqlite3.Row

    # --- opening and closing ---

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open for writing; the caller holds the job's lock and has made the file with its mode.

        Raises:
            UsageProblem: this SQLite is too old.
            InputProblem: the ledger was written by a newer batchrun, or is none.
            DiskProblem: the ledger is damaged.
        """
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            remedy = f"batchrun needs {'.'.join(map(str, OLDEST_SQLITE))} or newer"
            raise UsageProblem(f"SQLite {sqlite3.sqlite_version} is too old", remedy=remedy)
        with cls._opening(path, str(path)) as ledger:
            mode = ledger._pragma("journal_mode = WAL")
            for setting in ("synchronous = FULL", "fullfsync = ON", "wal_autocheckpoint = 4000"):
                ledger.connection.execute(f"PRAGMA {setting}")
            if mode != "wal":  # SQLite says nothing when it cannot, and its other mode syncs too little
                remedy = "see to the disk, or --state-dir on another one"
                raise DiskProblem(f"the ledger `{path}` cannot keep its log there", remedy=remedy)
        return ledger

    @classmethod
    def read_only(cls, path: Path, *, alone: bool = False) -> Self:
        """Open beside a live run: short snapshots, never a write or a checkpoint.

        ``alone``: nor a file beside it, unless a run is at work, or was killed, and so has left its log there.
        """
        is_at_rest = alone and not path.with_name(f"{path.name}-wal").exists()
        with cls._opening(path, f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' * is_at_rest}") as ledger:
            return ledger

    @classmethod
    def copy_of(cls, path: Path | None) -> Self:
        """A ledger in a file without a name, gone when it is closed: the one that is there, or an empty one."""
        ledger = cls(sqlite3.connect("", isolation_level=None), path or Path("-"))
        if path is not None and path.exists():
            with closing(cls.read_only(path, alone=True)) as real, ledger._translated():
                real.connection.backup(ledger.connection)
        return ledger

    @classmethod
    @contextmanager
    def _opening(cls, path: Path, target: str) -> Iterator[Self]:
        """A connection to what is a ledger, or not yet one; closed if anything in here is refused."""
        is_uri = target.startswith("file:")
        try:
            check_files(path)
            connection = sqlite3.connect(target, uri=is_uri, isolation_level=None, check_same_thread=False, timeout=5.0)
        except (OSError, sqlite3.DatabaseError) as error:
            raise DiskProblem(f"the ledger {path} cannot be opened", remedy="is it a file, and yours?") from error
        ledger = cls(connection, path)
        try:
            with ledger._translated():
                connection.execute("PRAGMA trusted_schema = OFF")
                ledger._check_schema()
                yield ledger
        except BaseException:
            ledger.close()
            raise

    def _check_schema(self) -> None:
        version = self._pragma("user_version")
        if version > SCHEMA_VERSION:
            remedy = "use that version, or another -o"
            raise InputProblem(f"`{self.path}` was written by a newer batchrun", remedy=remedy)
        with closing(sqlite3.connect(":memory:")) as model, self._sound():
            model.executescript(_sql("schema.sql"))
            wanted, found = _shape(model), _shape(self.connection)
        if not found and version == 0:
            return  # a ledger killed in its first moment: create() makes it
        if found != wanted or version != SCHEMA_VERSION:
            raise InputProblem(f"`{self.path}` is not a ledger of batchrun", remedy="another -o, or move it away")

    def exists(self) -> bool:
        """Whether ``create`` has been committed."""
        return bool(self._pragma("user_version"))

    def create(self, *, job_id: str, input_path: str, settings: Settings, now: float) -> None:
        """Make the tables and the job's row, in one transaction."""
        with self.transaction():
            for statement in _sql("schema.sql").split(";\n\n"):
                self.connection.execute(statement)
            self.execute("create_job", job_id=job_id, now=now, input_path=input_path, **_columns_of(settings))
            self.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def check(self, pragma: str = "quick_check") -> None:
        """Raise DiskProblem if SQLite finds the file damaged."""
        if self._pragma(f"{pragma}(1)") != "ok":
            raise self._damaged()

    def checkpoint(self) -> None:
        """Write every page of the log into the ledger anew and empty the log."""
        self._pragma("wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self.connection.close()

    def _pragma(self, words: str) -> Any:
        with self._translated():
            return self.connection.execute(f"PRAGMA {words}").fetchone()[0]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is durable when this returns, or none of it."""
        with self._translated():
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
            self.connection.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "unknown error")
            if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CONSTRAINT_DATATYPE")):
                raise self._damaged() from error  # the last: a number that was too large already
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise  # a bug of ours, not of the disk
            remedy = "free some space, or see to the disk and its permissions, then run the same command"
            raise DiskProblem(f"the ledger `{self.path}` cannot be used ({name})", remedy=remedy) from error

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """What is read in here may be anybody's: a value that cannot be ours is damage, not a bug."""
        try:
            yield
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise self._damaged() from error

    def _damaged(self) -> DiskProblem:
        remedy = "--new-run begins anew and pays again; an old copy of it would do so unseen"
        return DiskProblem(f"the ledger `{self.path}` is damaged", remedy=remedy)

    def execute(self, query: str, **values: Any) -> sqlite3.Cursor:
        """Run a named statement that returns no rows."""
        with self._translated():
            return self.connection.execute(QUERIES[query], values)

    def fetch(self, query: str, **values: Any) -> list[sqlite3.Row]:
        """Run a named question and read its whole answer."""
        with self._translated():
            return self.connection.execute(QUERIES[query], values).fetchall()

    def _change_each(self, query: str, batch: Sequence[Sequence[Any]]) -> None:
        """Run a named statement for a batch, in one step: each step hands the interpreter to the other threads."""
        if batch and self.execute(query, batch=orjson.dumps(batch).decode()).rowcount != len(batch):
            raise StateConflict(f"{query}: not all of {[each[0] for each in batch]} are where they should be")

    # --- the job and its runs ---

    def job(self) -> Job:
        found = self.fetch("job")
        with self._sound():
            job = Job(*found[0][1:])
            if not isinstance(json.loads(job.settings)["model"], str) or not isinstance(json.loads(job.options), dict):
                raise TypeError("no job")
            if job.epoch >= MANY or "\0" in job.input_path or min(job.low_water_offset, job.out_committed) < 0:
                raise ValueError("no job")
        return job

    def save(self, **columns: Any) -> None:
        """Put these columns into the job's row, in a statement of their own: each caller has others.

        The names go into the SQL as they are. They are words of our code, never data; only the values come from
        outside, and those are bound.
        """
        changes = ", ".join(f"{name} = :{name}" for name in columns)
        self.connection.execute(f"UPDATE job SET {changes}", columns)

    def save_settings(self, settings: Settings) -> None:
        self.save(**_columns_of(settings))

    def save_low_water(self, line: int, offset: int) -> None:
        """Every line before this one has a row."""
        self.save(low_water_line=line, low_water_offset=offset)

    def next_epoch(self) -> int:
        return int(self.fetch("next_epoch")[0][0])

    def begin_run(self, version: str, now: float) -> int:
        return int(self.fetch("begin_run", version=version, now=now)[0][0])

    def end_run(self, run_id: int, exit_code: int, now: float, problem: BatchrunError | None = None) -> None:
        cause = None if problem is None else redact("; ".join([*problem.before, problem.cause]))
        remedy = None if problem is None else redact(problem.remedy)
        self.execute("end_run", run_id=run_id, exit_code=exit_code, now=now, cause=cause, remedy=remedy)

    def last_run(self) -> PastRun | None:
        found = self.fetch("last_run", last_instant=LAST_INSTANT)
        return PastRun(*found[0]) if found else None

    def has_operations(self) -> bool:
        """Whether the service ever accepted anything: from then on the settings are pinned."""
        return bool(self.fetch("any_operation")[0][0])

    # --- one record's way ---

    def record_intents(self, asked: Sequence[tuple[Record, str, float]]) -> list[int]:
        """NEW -> INTENT for (record, request ID, now) of each, durable before its POST. Returns the rows' ``seq``."""
        last = self.fetch("last_seq")[0][0]
        if last + len(asked) > LAST_ROW:
            raise self._damaged()
        fresh, seqs, first, again = count(last + 1), [], [], []
        for record, request_id, now in asked:
            seq = next(fresh) if record.seq is None else record.seq
            seqs.append(seq)
            id_json = None if record.id is None else json.dumps(record.id)
            sent = request_id, now, record.history.maybe_paid
            if record.seq is None:
                first.append((seq, *astuple(record.place), id_json, record.digest, *sent))
            else:
                again.append((seq, id_json, *sent))
        self.connection.executemany(QUERIES["insert_intent"], first)
        self._change_each("renew_intents", again)
        for second, posts in Counter(int(now) for _, _, now in asked).items():
            self.execute("count_submissions", second=second, posts=posts)
        return seqs

    def record_intent(self, record: Record, request_id: str, now: float) -> int:
        """The same for one."""
        return self.record_intents([(record, request_id, now)])[0]

    def record_operations(self, accepted: Sequence[tuple[int, str, float]]) -> list[bool]:
        """INTENT -> OPEN for (seq, operation ID, now) of each.

        False, and the record HELD, where another record, or an earlier sending of this one, has the operation already.
        """
        new = {seq for (seq,) in self.fetch("insert_operations", batch=orjson.dumps(accepted).decode())}
        self._change_each("record_operations", [each for each in accepted if each[0] in new])
        for seq, _, now in accepted:
            if seq not in new:
                failure = Failure("held", "the service gave it the operation of another record")
                self.move(seq, State.INTENT, Move(State.HELD, failure=failure), now)
        return [seq in new for seq, _, _ in accepted]

    def record_operation(self, seq: int, operation_id: str, now: float) -> bool:
        """The same for one."""
        return self.record_operations([(seq, operation_id, now)])[0]

    def move(self, seq: int, origin: State, move: Move, now: float) -> None:
        """Any move that is neither an acceptance nor a written result."""
        if move.to not in MOVES[origin]:
            raise StateConflict(f"{origin} -> {move.to} is not a legal move")
        values = asdict(move) | {"adds_attempt": move.adds_attempt, "error": _dump(move.failure)}
        if self.execute("move", **values, seq=seq, origin=origin, now=now).rowcount != 1:
            raise StateConflict(f"{origin} -> {move.to}: record {seq} is not where it should be")

    def end_intents(self, move: Move, now: float) -> int:
        """The same move for every INTENT; returns how many there were."""
        in_flight = self.fetch("seqs_in_flight")
        for (seq,) in in_flight:
            self.move(seq, State.INTENT, move, now)
        return len(in_flight)

    def reopen(self, *seqs: int) -> Counter[str]:
        """Have settled records sent again. Counts them: ``again``, ``maybe_paid``, and by the state they were in."""
        counted = Counter[str]()
        for seq in seqs:
            row = self.row(seq)
            move = after_request(row.state, row.failure, accepted=row.operation_id is not None)
            self.move(seq, row.state, move, 0.0)
            doubtful = row.history.maybe_paid + move.adds_maybe_paid > 0
            counted.update({"again": 1, "maybe_paid": doubtful, row.state: 1})
        return counted

    def refuse_line(self, place: Place, digest: bytes, failure: Failure, now: float) -> None:
        """NEW -> FAILED for a line that is no record."""
        self.execute("refuse_line", **asdict(place), digest=digest, error=_dump(failure), now=now)

    def record_done(self, done: Sequence[Done]) -> None:
        """OPEN -> DONE for each; the lines are fsynced, and the last of them ends the output."""
        self._change_each("record_done", done)
        seq, _, written, _, _ = done[-1]
        self.save(out_committed=written.end, out_last_seq=seq)

    def doubt_lines(self) -> None:
        """DONE -> OPEN for every record, until its line is found."""
        self.execute("doubt_lines")

    def miss_lines(self) -> int:
        """Those whose line was not found stay OPEN; returns how many."""
        return self.execute("miss_lines").rowcount

    def keep_line(self, operation_id: str, written: Written) -> int | None:
        """OPEN -> DONE again, if this is the line that was written for it. Returns its row."""
        kept = self.fetch("keep_line", operation_id=operation_id, **asdict(written))
        return kept[0]["seq"] if kept else None

    def forget_met(self) -> None:
        """No record's line has been met: the output is read from its beginning."""
        self.execute("drop_met")
        self.execute("create_met")

    def meet(self, seq: int) -> bool:
        """Whether this is the first line of the record; the DONE ones that had none are ``rows_not_met`` then."""
        return self.execute("meet", seq=seq).rowcount == 1

    # --- questions ---

    def walk(self, query: str, **values: Any) -> Iterator[Row]:
        """Every row a named question finds, one at a time. Nothing may be moved before the last has come."""
        with self._translated(), self._sound():
            yield from map(_row, self.connection.execute(QUERIES[query], values))

    def row(self, seq: int) -> Row:
        with self._sound():
            return self.rows([seq])[seq]

    def rows(self, seqs: Sequence[int]) -> dict[int, Row]:
        return {row.seq: row for row in self.walk("rows", seqs=json.dumps(seqs))}

    def row_of_operation(self, operation_id: str) -> Row | None:
        return next(self.walk("row_of_operation", operation_id=operation_id), None)

    def rows_to_retry(self, kind: str) -> Iterator[Row]:
        """Those of one kind of failure, or with no kind all that say that sending them again may help."""
        for row in self.walk("rows_unwell"):
            if row.failure is not None and (row.failure.kind == kind if kind else row.failure.retryable):
                yield row

    def lines_known(self, first: int, last: int) -> set[int]:
        """Which of these lines have a row."""
        return {raw[0] for raw in self.fetch("lines_known", first=first, last=last)}

    def last_line(self) -> int:
        """The furthest line that has a row; 0 if there is none."""
        return self.fetch("last_line")[0][0] or 0

    def open_operations(self) -> list[tuple[int, str, float]]:
        """(seq, operation ID, accepted at), oldest first."""
        found = self.fetch("open_operations")
        with self._sound():
            return [(seq, id_, _instant(at) + 0.0) for seq, id_, at in found]

    def seqs_to_send(self, end: int) -> array[int]:
        """The NEW rows whose record begins before byte ``end``, by line."""
        with self._translated():
            return array("q", (raw[0] for raw in self.connection.execute(QUERIES["seqs_to_send"], {"end": end})))

    def submissions_since(self, since: float) -> list[tuple[int, int]]:
        """(Unix second, POSTs begun in it); older ones are forgotten at the next recovery."""
        return [tuple(raw) for raw in self.fetch("submissions_since", since=int(since))]

    def forget_submissions(self, before: float, after: float) -> None:
        """Keep only those between the two instants."""
        self.execute("forget_submissions", before=int(before), after=int(after))

    def tally(self) -> list[sqlite3.Row]:
        """A row per state that occurs, and always one for DONE: records, maybe_paid, the oldest submission of those
        that are not DONE.
        """
        return self.fetch("tally")

    def totals(self) -> tuple[int, int, int]:
        """Answers written, tokens of all requests, tokens of all answers. Reads every row."""
        done, asked, answered = self.fetch("totals")[0]
        return done, asked, answered

    def failure_kinds(self) -> list[tuple[str, int, int, str]]:
        """(kind, records, first line, what was said of it), most frequent first."""
        return [tuple(raw) for raw in self.fetch("failure_kinds")]

    def maybe_paid(self, limit: int) -> list[tuple[int, Any, int]]:
        """(line, id, payments beyond the first that may have happened), by line."""
        found = self.fetch("maybe_paid", limit=limit)
        with self._sound():
            return [(line, _id(id_), count) for line, id_, count in found]


def files_of(path: Path) -> list[Path]:
    """The ledger and what SQLite keeps beside it."""
    return [path.with_name(f"{path.name}{suffix}") for suffix in ("", "-wal", "-shm", "-journal")]


def check_files(path: Path) -> None:
    """SQLite follows links, waits at pipes, writes to second names, and deletes what a journal names as its head."""
    sizes = {}
    for each in reversed(files_of(path)):  # a ledger is there before its log, and goes after it
        try:
            found = os.lstat(each)
            if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
                remedy = f"mv {each} {each}.old && cp {each}.old {each}"
                raise DiskProblem(f"`{each}` has a second name, and would change under it", remedy=remedy)
            if not stat.S_ISREG(found.st_mode) or _names_a_head(each, found.st_size):
                raise DiskProblem(f"`{each}` is not a plain file of ours", remedy="move it away")
            sizes[each] = found.st_size
        except FileNotFoundError:  # SQLite removes them when it is done
            continue
    log = path.with_name(f"{path.name}-wal")
    if sizes.get(log) and not sizes.get(path):
        remedy = "put the ledger back: without it SQLite throws the log away, and what it knows of payments"
        raise DiskProblem(f"`{log}` is there, and its ledger is gone or empty", remedy=remedy)


def _names_a_head(path: Path, size: int) -> bool:
    if not path.name.endswith("-journal"):
        return False
    with path.open("rb") as journal:
        journal.seek(max(0, size - len(HEAD_OF_JOURNALS)))
        return journal.read() == HEAD_OF_JOURNALS


def _shape(connection: sqlite3.Connection) -> list[list[str]]:
    """The schema without comments and spacing: these may change and mean nothing."""
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name"
    return [[re.sub(r"--[^\n]*|\s+", "", text) for text in row] for row in connection.execute(query)]
