"""Three witnesses of one job: when do input, ledger and output agree, and how is a difference named?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchrun.errors import DiskProblem, UsageProblem
from batchrun.lines import digest
from batchrun.record import Move, Place, State, Usage
from batchrun.storage.ledger import Ledger
from batchrun.storage.results import Results
from batchrun.verify import MAX_NAMED, Findings, verify
from batchrun.writer import one_line

from .jobfiles import NOW, REFUSED, a_line, a_record, damage, make_ledger, operation_of, sql

RECORDS = 40


def an_answer(seq: int) -> bytes:
    """Its line of output, as long as any other."""
    text = f"answer {seq:03d}".ljust(13 - len(str(seq)))
    return one_line({"line": seq, "operation_id": operation_of(seq), "text": text})


ANSWER_BYTES = len(an_answer(1))


class Books:
    """A finished job of 40 records: 38 written in another order than they came, one failed, one never sent."""

    def __init__(self, folder: Path) -> None:
        self.input = folder / "in.jsonl"
        self.output = folder / "out.jsonl"
        self.input.write_bytes(b"".join(a_line(line) + b"\n" for line in range(1, RECORDS + 1)))
        self.ledger = make_ledger(folder / "ledger.db")
        results = Results.open(self.output, create=True)
        with self.ledger.transaction():
            for line in range(1, RECORDS):
                seq = self.ledger.record_intent(a_record(line, id=f"r{line}"), "request", NOW)
                if line == 17:
                    self.ledger.move(seq, State.INTENT, Move(State.FAILED, failure=REFUSED), NOW)
                else:
                    self.ledger.record_operation(seq, operation_of(seq), NOW)
            for seq in [seq for seq in range(RECORDS - 1, 0, -1) if seq != 17]:
                (written,) = results.append([an_answer(seq)])
                self.ledger.record_done([(seq, operation_of(seq), written, Usage(1, 1), NOW)])
        results.close()

    def verify(self) -> Findings:
        return verify(self.ledger, self.input, self.output)

    def lines(self, path: Path) -> list[bytes]:
        return path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(tmp_path)
    yield books
    books.ledger.close()


def test_an_untouched_job_agrees(books: Books) -> None:
    found = books.verify()
    assert (found.input_records, found.ledger_rows, found.output_lines) == (40, 39, 38)
    assert (found.differences, found.named, found.uncommitted_bytes) == (0, [], 0)


def test_bytes_behind_the_last_commit_are_counted_and_no_difference(books: Books) -> None:
    with books.output.open("ab") as file:
        file.write(b"half a line")
    found = books.verify()
    assert (found.differences, found.uncommitted_bytes) == (0, 11)


# --- the output ---

Edit = Callable[[list[bytes]], list[bytes]]
ALIEN = b'{"operation_id":"of-another-job"}'.ljust(ANSWER_BYTES - 1) + b"\n"


def odd(number: int) -> str:
    return f"out.jsonl:{number}: changed, or not written by this job"


def missing(*seqs: int) -> list[str]:
    return [f"out.jsonl: the answer to line {seq} of the input (id r{seq}) is missing" for seq in seqs]


def moved(number: int) -> list[str]:
    return [f"out.jsonl:{number}: from here on, lines are not in the order in which they were written"]


OUTPUTS: dict[str, tuple[Edit, list[str]]] = {
    # line 1 of the output answers line 39 of the input, line 2 line 38 and so on
    "a changed text": (
        lambda lines: [lines[0].replace(b"answer 039", b"answer 093"), *lines[1:]],
        [odd(1), *missing(39)],
    ),
    "a flipped bit that is no JSON any more": (
        lambda lines: [lines[0], lines[1].replace(b"{", b"z"), *lines[2:]],
        [odd(2), *missing(38)],
    ),
    "a longer text and the next one shorter": (
        lambda lines: [lines[0][:-1] + b" \n", lines[1][:-2] + b"\n", *lines[2:]],
        [odd(1), odd(2), *missing(39, 38)],
    ),
    "a line for another, of the same length": (
        lambda lines: [lines[0], lines[0], *lines[2:]],
        ["out.jsonl:2: line 39 of the input (id r39) is answered twice", *missing(38)],
    ),
    "a line in front of the place where it stands as well": (
        lambda lines: [lines[9], *lines[1:]],
        ["out.jsonl:10: line 30 of the input (id r30) is answered twice", *missing(39)],
    ),
    "two lines that changed places": (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], moved(4)),
    "its lines in the opposite order": (lambda lines: lines[::-1], moved(1)),
    "its first line at the end": (lambda lines: [*lines[1:], lines[0]], moved(1)),
    "a foreign line in the place of another": (lambda lines: [*lines[:5], ALIEN, *lines[6:]], [odd(6), *missing(34)]),
    "a foreign line in front": (lambda lines: [ALIEN, *lines], [odd(1), *missing(1)]),
    "a line gone from its middle": (
        lambda lines: [*lines[:7], *lines[8:]],
        [f"out.jsonl: {ANSWER_BYTES} bytes are missing at the end", *missing(32)],
    ),
    "the last line is gone": (
        lambda lines: lines[:-1],
        [f"out.jsonl: {ANSWER_BYTES} bytes are missing at the end", *missing(1)],
    ),
    "every line is gone": (
        lambda lines: [],
        [
            f"out.jsonl: {38 * ANSWER_BYTES:,} bytes are missing at the end",
            *missing(*(seq for seq in range(RECORDS - 1, 0, -1) if seq != 17)),
        ],
    ),
}


@pytest.mark.parametrize(("edit", "expected"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_with(books: Books, edit: Edit, expected: list[str]) -> None:
    books.output.write_bytes(b"".join(edit(books.lines(books.output))))
    found = books.verify()
    folder = f"{books.output.parent}/"
    assert [named.replace(folder, "") for named in found.named] == expected[:MAX_NAMED]
    assert found.differences == len(expected)


def test_many_changed_lines_are_all_counted_and_the_good_ones_are_not_called_missing(books: Books) -> None:
    lines = books.lines(books.output)
    changed = [line.replace(b"answer", b"ANSWER") for line in lines[:7]]
    books.output.write_bytes(b"".join(changed + lines[7:]))
    found = books.verify()
    folder = f"{books.output.parent}/"
    called_missing = [named.replace(folder, "") for named in found.named if "missing" in named]
    assert called_missing == missing(39, 38, 37, 36, 35, 34, 33)
    assert (found.differences, found.output_lines) == (14, 38)


def test_an_answer_with_half_a_surrogate_pair_agrees(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(a_line(1) + b"\n")
    ledger = make_ledger(tmp_path / "ledger.db")
    results = Results.open(tmp_path / "out.jsonl", create=True)
    (written,) = results.append([one_line({"line": 1, "operation_id": "op1", "text": "cut: \ud83d"})])
    with ledger.transaction():
        seq = ledger.record_intent(a_record(1), "request", NOW)
        ledger.record_operation(seq, "op1", NOW)
        ledger.record_done([(seq, "op1", written, Usage(), NOW)])
    assert verify(ledger, tmp_path / "in.jsonl", tmp_path / "out.jsonl").named == []
    results.close()
    ledger.close()


def test_a_line_of_a_record_that_is_not_done_is_a_difference(books: Books) -> None:
    """Fails if ``verify`` does not look at the state: the next run would send it again, or write it twice."""
    sql(books.ledger.path, f"UPDATE record SET state = 'open' WHERE operation_id = '{operation_of(38)}'")
    assert books.verify().named == [f"{books.output}:2: changed, or not written by this job"]


# --- the input ---

BLANK = b" " * len(a_line(1)) + b"\n"
INPUTS: dict[str, tuple[Edit, list[str]]] = {
    "a changed line": (
        lambda lines: [lines[0], lines[1].replace(b"question", b"QUESTION"), *lines[2:]],
        ["in.jsonl:2: changed since it was sent"],
    ),
    "a changed line that failed": (
        lambda lines: [*lines[:16], lines[16].replace(b"question", b"QUESTION"), *lines[17:]],
        ["in.jsonl:17: changed since it was sent"],
    ),
    "a changed line that was never sent": (lambda lines: [*lines[:-1], lines[-1].replace(b"q", b"Q")], []),
    "more lines": (lambda lines: [*lines, a_line(41) + b"\n"], []),
    "a line gone": (
        lambda lines: [*lines[:38], lines[39]],
        ["in.jsonl:39: changed since it was sent"],
    ),
    "the last lines gone": (
        lambda lines: lines[:37],
        [f"in.jsonl:{line}: in the ledger, and no longer in the input" for line in (38, 39)],
    ),
    "no line left": (
        lambda lines: [],
        [f"in.jsonl:{line}: in the ledger, and no longer in the input" for line in range(1, RECORDS)],
    ),
    "a blank line in the middle": (
        lambda lines: [*lines[:4], BLANK, *lines[5:]],
        ["in.jsonl:5: in the ledger, and no longer in the input"],
    ),
    "a blank first line": (
        lambda lines: [BLANK, *lines[1:]],
        ["in.jsonl:1: in the ledger, and no longer in the input"],
    ),
    "blank last lines": (
        lambda lines: [*lines[:38], BLANK, BLANK],
        ["in.jsonl:39: in the ledger, and no longer in the input"],
    ),
    "nothing but blank lines": (
        lambda lines: [BLANK] * 40,
        [f"in.jsonl:{line}: in the ledger, and no longer in the input" for line in range(1, RECORDS)],
    ),
}


@pytest.mark.parametrize(("edit", "expected"), INPUTS.values(), ids=INPUTS)
def test_an_input_with(books: Books, edit: Edit, expected: list[str]) -> None:
    books.input.write_bytes(b"".join(edit(books.lines(books.input))))
    found = books.verify()
    folder = f"{books.input.parent}/"
    assert [named.replace(folder, "") for named in found.named] == expected[:MAX_NAMED]
    assert found.differences == len(expected)


@pytest.mark.parametrize("blank", [1, 3, 5, 9], ids=lambda line: f"line {line}")
def test_a_blanked_line_is_noticed_wherever_it_stands(books: Books, blank: int) -> None:
    lines = books.lines(books.input)
    lines[blank - 1] = BLANK
    books.input.write_bytes(b"".join(lines))
    assert books.verify().named == [f"{books.input}:{blank}: in the ledger, and no longer in the input"]


def test_only_the_part_that_was_checked_is_compared(books: Books) -> None:
    with books.ledger.transaction():
        size = books.input.stat().st_size
        books.ledger.save(
            input_inode=1, input_mtime_ns=1, input_size=size, input_digest=digest(b""), input_records=RECORDS
        )
    with books.input.open("ab") as file:
        file.write(b"more\n" * 10)
    assert books.verify().input_records == RECORDS


# --- the files themselves ---


def test_a_missing_file_is_said_to_be_missing(books: Books) -> None:
    books.output.unlink()
    with pytest.raises(UsageProblem, match="cannot be read"):
        books.verify()


def test_a_damaged_ledger_is_no_witness(books: Books) -> None:
    path = books.ledger.path
    with books.ledger.transaction():
        for line in range(100, 700):
            books.ledger.refuse_line(Place(line, 0, 1), digest(b""), REFUSED, NOW)
    books.ledger.checkpoint()
    books.ledger.close()
    damage(path, path.stat().st_size - 3 * 4096)
    books.ledger = Ledger.open(path)
    with pytest.raises(DiskProblem, match="damaged"):
        books.verify()


def test_a_ledger_whose_index_hides_a_row_is_no_witness(books: Books) -> None:
    books.ledger.close()
    path, definition = books.ledger.path, "UPDATE sqlite_schema SET sql = {} WHERE name = 'record_line'"
    blind = "sql || ' WHERE line < 0'"
    sql(path, "PRAGMA writable_schema = ON", definition.format(blind))
    sql(path, "INSERT INTO record (line, offset, length, digest, state) VALUES (50, 0, 1, zeroblob(16), 'new')")
    sql(path, "PRAGMA writable_schema = ON", definition.format(f"replace(sql, {blind[7:]}, '')"))
    books.ledger = Ledger.open(path)
    with pytest.raises(DiskProblem, match="damaged"):
        books.verify()
