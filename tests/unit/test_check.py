"""One look at the whole input before anything is sent."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchrun import check
from batchrun.check import Checked, check_input, offset_after, prefix_digest, read_lines
from batchrun.errors import InputProblem
from batchrun.inputs import AS_EACH_IS
from batchrun.lines import MAX_LINE_BYTES
from batchrun.storage.inventory import Inventory
from batchrun.storage.ledger import Ledger

from .jobfiles import make_ledger

GOOD, BAD, BLANK = b'"a question"\n', b"{oops}\n", b" \t\r\n"
TOO_LONG = b'"' + b"x" * MAX_LINE_BYTES + b'"\n'


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = make_ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


class Desk:
    """Where inputs are checked."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.path = folder / "in.jsonl"
        self.ledger = ledger
        self.inventory = Inventory(ledger)

    def check(
        self, data: bytes, *, limit: int | None = None, strict: bool = False, into_inventory: bool = False
    ) -> Checked:
        self.path.write_bytes(data)
        self.inventory = Inventory(self.ledger)
        with self.path.open("rb") as file:
            end = len(data) if limit is None else offset_after(file.fileno(), len(data), limit)
            how = {"strict": strict, "into_inventory": into_inventory}
            return check_input(self.path, file.fileno(), end, self.inventory, AS_EACH_IS, **how)

    def refusal(
        self, data: bytes, *, limit: int | None = None, strict: bool = False, into_inventory: bool = False
    ) -> InputProblem:
        with pytest.raises(InputProblem) as caught:
            self.check(data, limit=limit, strict=strict, into_inventory=into_inventory)
        assert caught.value.exit_code == 3
        return caught.value

    def entries(self) -> list[tuple[int, int, int]]:
        """(line, offset, length) of what is in the inventory."""
        found = self.ledger.connection.execute("SELECT line, offset, length FROM inventory ORDER BY line")
        return [tuple(row) for row in found]


@pytest.fixture
def desk(tmp_path: Path, ledger: Ledger) -> Desk:
    return Desk(tmp_path, ledger)


# --- what is counted ---

COUNTS: dict[str, tuple[bytes, tuple[int, int, int, int]]] = {
    # data -> lines, records, bad, without an id
    "empty": (b"", (0, 0, 0, 0)),
    "blank lines only": (BLANK * 3, (3, 0, 0, 0)),
    "good lines": (GOOD * 3, (3, 3, 0, 3)),
    "blank lines between": (BLANK + GOOD + BLANK + GOOD, (4, 2, 0, 2)),
    "no LF at the end": (GOOD + GOOD[:-1], (2, 2, 0, 2)),
    "some have an id": (GOOD + b'{"id": 7, "prompt": "x"}\n', (2, 2, 0, 1)),
    "a bad line": (GOOD + BAD + GOOD, (3, 3, 1, 2)),
    "a line that is too long": (GOOD + TOO_LONG + GOOD, (3, 3, 1, 2)),
}


@pytest.mark.parametrize(("data", "counts"), COUNTS.values(), ids=COUNTS)
def test_every_line_is_counted(desk: Desk, data: bytes, counts: tuple[int, int, int, int]) -> None:
    found = desk.check(data, into_inventory=True)
    assert (found.lines, found.records, found.bad, found.without_id) == counts
    assert found.end == len(data)
    assert found.digest == hashlib.blake2b(data, digest_size=16).digest()
    assert len(desk.entries()) == found.records - found.bad


ALIKE: dict[str, tuple[list[object], int, int | None]] = {
    # lines -> how many ask what an earlier one asks, the first line with a NUL
    "other ids and fields": (["x", "y", "x", "x"], 2, None),
    "two prompts, each twice": ([{"id": n, "prompt": text, "note": n} for n, text in enumerate("abab")], 2, None),
    "other options": (
        [{"prompt": "a"}, {"prompt": "a", "temperature": 0}, {"prompt": "a", "temperature": 0.0}],
        1,
        None,
    ),
    "bodies, their fields in any order": (
        [
            {
                "id": 1,
                "messages": [{"role": "user", "text": "a"}],
                "tools": [{"function": {"name": "f", "strict": True}}],
            },
            {
                "tools": [{"function": {"strict": True, "name": "f"}}],
                "messages": [{"text": "a", "role": "user"}],
                "id": 2,
            },
            {"id": 3, "messages": [{"role": "user", "text": "b"}]},
        ],
        1,
        None,
    ),
    "a NUL": (["a", "b\0", "\0"], 0, 2),
    "a NUL in a body": ([{"messages": [{"role": "user", "text": text}]} for text in ("a", "\\\0")], 0, 2),
    "no NUL": (["\\u0000", "u0000"], 0, None),
    "no NUL in a body": ([{"messages": [{"role": "user", "text": "\\u0000"}]}], 0, None),
    "a NUL that travels along": ([{"prompt": "a", "note": "\0"}], 0, 1),
}


@pytest.mark.parametrize(("lines", "repeats", "first_nul"), ALIKE.values(), ids=ALIKE)
def test_what_is_asked_twice_is_counted_and_the_first_nul_is_named(
    desk: Desk, lines: list[object], repeats: int, first_nul: int | None
) -> None:
    found = desk.check("".join(f"{json.dumps(line)}\n" for line in lines).encode())
    assert (found.bad, found.repeats, found.first_nul) == (0, repeats, first_nul)


def test_good_records_are_put_into_the_inventory_with_their_places(desk: Desk) -> None:
    desk.check(GOOD + BLANK + BAD + GOOD[:-1] + b"\r\n" + GOOD, into_inventory=True)
    length, third = len(GOOD) - 1, len(GOOD + BLANK + BAD)
    assert desk.entries() == [(1, 0, length), (4, third, length), (5, third + len(GOOD) + 1, length)]


def test_more_records_than_one_batch_are_all_put_in(desk: Desk) -> None:
    assert desk.check(GOOD * 2345, into_inventory=True).records == len(desk.entries()) == 2345


def test_without_a_ledger_to_hold_them_against_nothing_is_put_in(desk: Desk) -> None:
    found = desk.check(BLANK + GOOD * 2345 + BAD)
    assert (found.records, found.repeats, desk.entries()) == (2346, 2344, [])
    assert found.first == (2, len(BLANK))


# --- bad lines ---


def test_bad_lines_are_named_by_file_and_line(desk: Desk) -> None:
    found = desk.check(GOOD + BLANK + BAD + GOOD)
    assert len(found.messages) == 1
    assert found.messages[0].startswith(f"{desk.path}:3: ")


TOLERATED = {
    "ten bad lines of a few": (40, 10),
    "one in a hundred": (5000, 50),
}
TOO_MANY = {
    "eleven bad lines of a few": (40, 11),
    "one more than one in a hundred": (5000, 51),
}


def mixed(records: int, bad: int) -> bytes:
    return GOOD * (records - bad) + BAD * bad


@pytest.mark.parametrize(("records", "bad"), TOLERATED.values(), ids=TOLERATED)
def test_a_few_bad_lines_do_not_cost_the_night(desk: Desk, records: int, bad: int) -> None:
    assert desk.check(mixed(records, bad)).bad == bad


@pytest.mark.parametrize(("records", "bad"), TOO_MANY.values(), ids=TOO_MANY)
def test_too_many_bad_lines_are_refused(desk: Desk, records: int, bad: int) -> None:
    problem = desk.refusal(mixed(records, bad))
    assert "more than 10 and more than 1 %" in problem.remedy
    assert "nothing was sent" in problem.remedy
    lines = [*problem.before, problem.cause]
    assert lines[0].startswith(f"{desk.path}:{records - bad + 1}: ")
    assert len(lines) == (20 + 1 if bad > 20 else bad)
    assert lines[-1] == f"… and {bad - 20} more" or bad <= 20


@pytest.mark.parametrize("data", [BAD + GOOD * 5000, BLANK + BAD + GOOD * 50, TOO_LONG + GOOD], ids=["1", "2", "long"])
def test_a_bad_first_record_means_a_wrong_file(desk: Desk, data: bytes) -> None:
    assert "hardly the right file" in desk.refusal(data).remedy


def test_a_body_of_the_older_api_is_refused_with_the_options_that_take_it(desk: Desk) -> None:
    remedy = desk.refusal(b'{"requestText": "a question"}\n').remedy
    assert remedy.startswith("instruct is for --provider yandex-instruct (check: --format instruct)")


def test_strict_refuses_a_single_bad_line(desk: Desk) -> None:
    assert "--strict" in desk.refusal(GOOD * 5000 + BAD, strict=True).remedy
    assert desk.check(GOOD * 5000, strict=True).bad == 0


def test_what_is_no_jsonl_is_refused_before_any_line(desk: Desk) -> None:
    problem = desk.refusal(b"\x1f\x8b\x08" + bytes(100))
    assert str(desk.path) in problem.cause
    assert "JSONL" in problem.remedy


# --- repeated ids ---


@pytest.mark.parametrize("into_inventory", [True, False], ids=["with a ledger", "without"])
@pytest.mark.parametrize("second", ["1", '"1"'], ids=["1 twice", "1 and its text"])
def test_an_id_on_two_lines_is_refused_with_both(desk: Desk, second: str, into_inventory: bool) -> None:
    data = f'{{"id": 1, "prompt": "a"}}\n\n{{"id": {second}, "prompt": "b"}}\n'.encode()
    problem = desk.refusal(data, into_inventory=into_inventory)
    assert problem.cause == f"{desk.path}:3: id '1' was on line 1 already"
    assert "unique" in problem.remedy


def test_how_many_ids_are_repeated_is_said_once(desk: Desk) -> None:
    problem = desk.refusal(b'{"id": "a", "prompt": "x"}\n' * 5)
    assert problem.cause == f"{desk.path}:2: id 'a' was on line 1 already (4 repeats in all)"


def test_a_long_id_is_cut_in_the_message(desk: Desk) -> None:
    problem = desk.refusal(b'{"id": "%s", "prompt": "x"}\n' % (b"n" * 200) * 2)
    assert f"id '{'n' * 60}…' was" in problem.cause


@pytest.mark.parametrize("into_inventory", [True, False], ids=["with a ledger", "without"])
def test_ids_of_one_hash_are_two_ids(desk: Desk, monkeypatch: pytest.MonkeyPatch, into_inventory: bool) -> None:
    monkeypatch.setattr(check, "hash", lambda value: 7, raising=False)
    data = b"".join(b'{"id": %d, "prompt": "x"}\n' % number for number in range(5))
    assert desk.check(data, into_inventory=into_inventory).records == 5
    assert "id '3' was" in desk.refusal(data + b'{"id": "3", "prompt": "x"}', into_inventory=into_inventory).cause


# --- the limit ---

LIMITS: dict[str, tuple[bytes, int, int, int]] = {
    # data, limit -> records, end
    "shorter than the limit": (GOOD * 3, 5, 3, 3 * len(GOOD)),
    "as long as the limit": (GOOD * 3, 3, 3, 3 * len(GOOD)),
    "blank lines after the limit": (GOOD * 3 + BLANK, 3, 3, 3 * len(GOOD) + len(BLANK)),
    "longer than the limit": (GOOD * 5, 3, 3, 3 * len(GOOD)),
    "blank lines do not count": (BLANK + GOOD + BLANK + GOOD * 2, 2, 2, len(BLANK + GOOD + BLANK + GOOD)),
    "bad lines count": (GOOD + BAD + GOOD * 2, 2, 2, len(GOOD + BAD)),
    "a bad line after the limit": (GOOD * 2 + BAD, 2, 2, 2 * len(GOOD)),
    "a line that is too long after the limit": (GOOD * 2 + TOO_LONG + GOOD * 3, 2, 2, 2 * len(GOOD)),
}


@pytest.mark.parametrize(("data", "limit", "records", "end"), LIMITS.values(), ids=LIMITS)
def test_a_limit_ends_the_check_before_the_next_record(
    desk: Desk, data: bytes, limit: int, records: int, end: int
) -> None:
    found = desk.check(data, limit=limit)
    assert (found.records, found.end) == (records, end)


def test_a_repeated_id_after_the_limit_is_no_matter(desk: Desk) -> None:
    assert desk.check(b'{"id": "a", "prompt": "x"}\n' * 2, limit=1).records == 1


# --- reading ---


def test_no_more_is_read_than_was_asked_for(desk: Desk) -> None:
    desk.check(GOOD * 3)
    with desk.path.open("rb") as file:
        lines = list(read_lines(file.fileno(), 2 * len(GOOD)))
        assert [line.raw for line in lines] == [GOOD[:-1]] * 2
        assert prefix_digest(file.fileno(), len(GOOD)) == hashlib.blake2b(GOOD, digest_size=16).digest()


def test_a_file_that_shrank_meanwhile_ends_the_reading(desk: Desk) -> None:
    desk.check(GOOD)
    with desk.path.open("rb") as file:
        assert len(list(read_lines(file.fileno(), 10 * len(GOOD)))) == 1
        assert prefix_digest(file.fileno(), 10**6) == hashlib.blake2b(GOOD, digest_size=16).digest()


def test_long_lines_are_not_held_together(desk: Desk) -> None:
    """Fails if a batch holds the lines of its records: a thousand of 4 MiB."""
    data = b"".join(b'{"prompt": "%d %s"}\n' % (number, b"x" * 1_000_000) for number in range(60))
    tracemalloc.start()
    found = desk.check(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.records == 60
    assert peak < 30_000_000
