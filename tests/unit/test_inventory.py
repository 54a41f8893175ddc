"""The input held against the ledger: what is new, what was moved, what must not have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from batchrun.inputs import identity
from batchrun.lines import digest
from batchrun.record import Failure, Move, Place, RecordId, State
from batchrun.storage.inventory import Conflict, Entry, Inventory, Repeated
from batchrun.storage.ledger import Ledger

from .jobfiles import LINE_BYTES, NOW, REFUSED, a_line, a_record, contents, make_ledger, record_in

NEW, INTENT, OPEN, DONE = State.NEW, State.INTENT, State.OPEN, State.DONE
FAILED, HELD, EXPIRED = State.FAILED, State.HELD, State.EXPIRED


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = make_ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


@pytest.fixture
def inventory(ledger: Ledger) -> Iterator[Inventory]:
    inventory = Inventory(ledger)
    yield inventory
    inventory.close()


def entry(line: int, *, id: RecordId = None, of_line: int | None = None, changed: bool = False) -> Entry:
    """The input's line, holding the record that was on ``of_line``, as it was or changed."""
    raw = a_line(of_line or line) + b" " * changed
    return line, (line - 1) * LINE_BYTES, len(raw), identity(id), digest(raw)


def ids_on(inventory: Inventory, ids: Sequence[RecordId]) -> Repeated | None:
    inventory.add([entry(line, id=id) for line, id in enumerate(ids, 1)])
    return inventory.repeated()


# --- repeated ids ---

REPEATS: dict[str, tuple[list[RecordId], tuple[str, int, int, int] | None]] = {
    "none": ([1, 2, "a", "b"], None),
    "no ids at all": ([None, None, None], None),
    "a text twice": (["a", "b", "a"], ("a", 1, 3, 1)),
    "a number and its text": (["b", 1, "1"], ("1", 2, 3, 1)),
    "the first repeat in the file is named": (["a", "b", "b", "a"], ("b", 2, 3, 2)),
    "three times": (["a", "a", "a"], ("a", 1, 2, 2)),
    "two pairs": (["a", "b", "c", "a", "b"], ("a", 1, 4, 2)),
    "an empty id is an id": (["", "x", ""], ("", 1, 3, 1)),
    "case makes a difference": (["a", "A"], None),
    "so does a space": (["a", "a "], None),
    "so does a zero in front": ([1, "01"], None),
}


@pytest.mark.parametrize(("ids", "expected"), REPEATS.values(), ids=REPEATS)
def test_repeated_ids(inventory: Inventory, ids: list[RecordId], expected: tuple[str, int, int, int] | None) -> None:
    assert ids_on(inventory, ids) == (None if expected is None else Repeated(*expected))


def test_hashes_are_counted_exactly(inventory: Inventory) -> None:
    """Fails if those of one kind count for the other, or lose a bit on their way."""
    ends = [-(1 << 63), -(1 << 63) + 1, (1 << 63) - 2, (1 << 63) - 1]
    inventory.note("id", [*ends, *ends[:3]])
    inventory.note("asked", ends)
    inventory.note("asked", [*ends[:1], 7, 7, *ends])
    assert (inventory.repeats("id"), inventory.repeats("asked")) == (3, 6)


# --- matching by id ---


def test_with_ids_everywhere_the_order_does_not_matter(ledger: Ledger, inventory: Inventory) -> None:
    seqs = {id: record_in(ledger, DONE, line, id=id) for line, id in ((1, "a"), (2, 2), (3, "c"))}
    inventory.add([entry(1, id="c", of_line=3), entry(2, id="new"), entry(3, id="a", of_line=1)])
    inventory.add([entry(4, id="2", of_line=2)])  # a number may have become its text
    assert inventory.conflicts() == ([], 0)
    with ledger.transaction():
        inventory.adopt()
    places = {id: ledger.row(seq).place for id, seq in seqs.items()}
    assert {id: (place.line, place.offset) for id, place in places.items()} == {
        "a": (3, 2 * LINE_BYTES),
        2: (4, 3 * LINE_BYTES),
        "c": (1, 0),
    }
    assert ledger.lines_known(1, 9) == {1, 3, 4}  # line 2 is new work


def test_with_ids_everywhere_a_line_in_front_moves_no_answer(ledger: Ledger, inventory: Inventory) -> None:
    for line in (1, 2):
        record_in(ledger, OPEN, line, id=f"r{line}")
    inventory.add([entry(1, id="r0"), entry(2, id="r1", of_line=1), entry(3, id="r2", of_line=2)])
    assert inventory.conflicts() == ([], 0)


def test_a_changed_id_is_a_record_gone_and_a_new_one(ledger: Ledger, inventory: Inventory) -> None:
    record_in(ledger, DONE, 1, id="a")
    inventory.add([entry(1, id="b")])
    assert inventory.conflicts() == ([Conflict(1, None)], 1)


# --- matching by line ---


@pytest.mark.parametrize("ids", [(None, None), ("a", None), (None, "b")], ids=["no ids", "one in the ledger", "mixed"])
def test_without_ids_everywhere_records_are_matched_by_line(
    ledger: Ledger, inventory: Inventory, ids: tuple[RecordId, RecordId]
) -> None:
    for line, id in enumerate(ids, 1):
        record_in(ledger, DONE, line, id=id)
    inventory.add([entry(1, id=ids[1], of_line=2), entry(2, id=ids[0], of_line=1)])
    assert not inventory.every_record_has_an_id()
    assert inventory.conflicts() == ([Conflict(1, 1), Conflict(2, 2)], 2)


def test_appended_lines_are_welcome(ledger: Ledger, inventory: Inventory) -> None:
    record_in(ledger, DONE, 1)
    record_in(ledger, OPEN, 2)
    before = contents(ledger)
    inventory.add(entry(line) for line in range(1, 6))
    assert inventory.conflicts() == ([], 0)
    with ledger.transaction():
        inventory.adopt()
    assert contents(ledger) == before


# --- conflicts ---

CHANGES = {state: state not in (NEW, FAILED) for state in State}
"""Whether a record in this state forbids to change its line."""


@pytest.mark.parametrize(("state", "forbidden"), CHANGES.items(), ids=CHANGES)
@pytest.mark.parametrize("id", [None, "a"], ids=["by line", "by id"])
def test_a_line_may_change_only_while_nothing_was_accepted_for_it(
    ledger: Ledger, inventory: Inventory, id: RecordId, state: State, forbidden: bool
) -> None:
    record_in(ledger, state, 1, id=id)
    inventory.add([entry(1, id=id, changed=True)])
    assert inventory.conflicts() == (([Conflict(1, 1)], 1) if forbidden else ([], 0))


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("id", [None, "a"], ids=["by line", "by id"])
def test_a_line_with_a_row_must_not_disappear(ledger: Ledger, inventory: Inventory, id: RecordId, state: State) -> None:
    record_in(ledger, state, 1, id=id)
    inventory.add([entry(2, id=None if id is None else "b")])
    assert inventory.conflicts() == ([Conflict(1, None)], 1)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("stands", [True, False], ids=["stands", "is gone"])
def test_what_was_never_accepted_is_forgotten_and_a_refusal_when_its_line_is_gone(
    ledger: Ledger, inventory: Inventory, state: State, stands: bool
) -> None:
    record_in(ledger, state, 1)
    inventory.add([entry(1, changed=not stands)])
    inventory.forget_what_cost_nothing()
    assert ledger.lines_known(1, 1) == (set() if state is NEW or (state is FAILED and not stands) else {1})


@pytest.mark.parametrize("move", [Move(NEW, adds_maybe_paid=1), Move(FAILED, adds_maybe_paid=1, failure=REFUSED)])
def test_what_may_have_been_paid_for_is_not_forgotten(ledger: Ledger, inventory: Inventory, move: Move) -> None:
    in_doubt, accepted = record_in(ledger, INTENT, 1), record_in(ledger, OPEN, 2)
    with ledger.transaction():
        ledger.move(in_doubt, INTENT, move, NOW)
        ledger.move(accepted, OPEN, Move(FAILED, failure=REFUSED), NOW)
        ledger.move(accepted, FAILED, Move(NEW, starts_anew=True), NOW)
    inventory.forget_what_cost_nothing()
    assert ledger.lines_known(1, 2) == {1, 2}


def test_the_first_five_conflicts_are_named_and_all_are_counted(ledger: Ledger, inventory: Inventory) -> None:
    for line in range(12, 0, -1):
        record_in(ledger, DONE, line)
    inventory.add(entry(line, changed=True) for line in range(3, 11))
    conflicts, count = inventory.conflicts()
    assert conflicts == [Conflict(1, None), Conflict(2, None), Conflict(3, 3), Conflict(4, 4), Conflict(5, 5)]
    assert count == 12


# --- following the input ---


@pytest.mark.parametrize(
    ("known", "first"),
    [
        pytest.param([], (1, 0), id="nothing is known"),
        pytest.param([1, 2], (3, 2 * LINE_BYTES), id="the beginning is known"),
        pytest.param([1, 3, 4], (2, LINE_BYTES), id="a line between is not"),
        pytest.param([1, 2, 3, 4], None, id="all is known"),
    ],
)
def test_reading_begins_at_the_first_record_without_a_row(
    ledger: Ledger, inventory: Inventory, known: list[int], first: tuple[int, int] | None
) -> None:
    for line in known:
        record_in(ledger, DONE, line)
    inventory.add(entry(line) for line in range(1, 5))
    assert inventory.first_unknown() == first


def test_a_repaired_line_is_sent_again(ledger: Ledger, inventory: Inventory) -> None:
    repaired, as_it_was = record_in(ledger, FAILED, 1), record_in(ledger, FAILED, 2)
    inventory.add([entry(1, changed=True), entry(2)])
    assert inventory.conflicts() == ([], 0)
    with ledger.transaction():
        inventory.adopt()
    assert [ledger.row(seq).state for seq in (repaired, as_it_was)] == [NEW, FAILED]
    row = ledger.row(repaired)
    assert (row.place.length, row.digest) == (entry(1, changed=True)[2], entry(1, changed=True)[4])


def test_a_repaired_line_answers_under_the_id_it_has_now(ledger: Ledger, inventory: Inventory) -> None:
    seq = record_in(ledger, FAILED, 1, id="old")
    record_in(ledger, DONE, 2)  # has no id, so that lines decide
    changed = entry(1, id="new", changed=True)
    inventory.add([changed, entry(2)])
    assert inventory.conflicts() == ([], 0)
    with ledger.transaction():
        inventory.adopt()
        record = replace(a_record(1, id="new", seq=seq), digest=changed[4])
        ledger.record_intent(record, "request", NOW)
    assert ledger.row(seq).id == "new"


def test_bad_lines_do_not_decide_how_records_are_matched(ledger: Ledger, inventory: Inventory) -> None:
    record_in(ledger, DONE, 1, id="a")
    with ledger.transaction():
        ledger.refuse_line(Place(2, 100, 5), b"\0" * 16, Failure("bad_input", "no JSON"), NOW)
    inventory.add([entry(1, id="a")])
    assert inventory.every_record_has_an_id()
    with ledger.transaction():
        ledger.refuse_line(Place(3, 200, 5), b"\0" * 16, REFUSED, NOW)
    assert not inventory.every_record_has_an_id()


def test_an_inventory_leaves_no_trace(ledger: Ledger) -> None:
    record_in(ledger, DONE, 1)
    before = contents(ledger)
    for _ in range(2):
        inventory = Inventory(ledger)
        inventory.add([entry(1)])
        inventory.conflicts()
        inventory.close()
    assert contents(ledger) == before
    assert ledger.connection.execute("SELECT count(*) FROM temp.sqlite_schema").fetchone()[0] == 0


def test_an_inventory_of_a_killed_check_is_not_mistaken_for_this_one(ledger: Ledger) -> None:
    Inventory(ledger).add([entry(1, id="a")])
    assert ids_on(Inventory(ledger), ["a"]) is None


def test_a_million_bytes_of_ids_are_compared_as_text(inventory: Inventory) -> None:
    ids: list[RecordId] = [f"{number:0250d}" for number in range(4000)]
    assert ids_on(inventory, [*ids, ids[0]]) == Repeated(f"{0:0250d}", 1, 4001, 1)


def steps(ledger: Ledger, act: Callable[[], object]) -> int:
    """Of SQLite's machine, in hundreds."""
    taken = list[None]()
    ledger.connection.set_progress_handler(lambda: taken.append(None), 100)
    act()
    ledger.connection.set_progress_handler(None, 0)
    return len(taken)


@pytest.mark.parametrize("number", [200, 400])
def test_naming_repeated_ids_takes_no_walk_for_each(ledger: Ledger, inventory: Inventory, number: int) -> None:
    """Fails if the entries have no index by then."""
    inventory.add([entry(line, id=line % number) for line in range(1, 2 * number + 1)])
    assert steps(ledger, inventory.repeated) < 2 * number


@pytest.mark.parametrize("number", [200, 400])
def test_changed_lines_of_refused_records_take_no_walk_each(ledger: Ledger, inventory: Inventory, number: int) -> None:
    """Fails if line and digest are looked for in a list of all."""
    for line in range(1, number + 1):
        record_in(ledger, FAILED, line)
    inventory.add([entry(line, changed=True) for line in range(1, number + 1)])
    ledger.connection.execute("DELETE FROM operation")
    assert steps(ledger, inventory.forget_what_cost_nothing) < 2 * number
    assert ledger.last_line() == 0
