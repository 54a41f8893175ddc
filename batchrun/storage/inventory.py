"""What the input holds now, beside what the ledger knows: SQL over two temporary tables, in bounded memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from batchrun.storage.ledger import QUERIES, Ledger

PARTS = 256
CHUNK_HASHES = 256

Entry = tuple[int, int, int, str | None, bytes]
"""One record of the input: line, offset, length, identity, digest; plain, for the sake of speed.

The identity is the text under which ids are compared, ``None`` for none.
"""


@dataclass(frozen=True, slots=True)
class Repeated:
    """The first identity that stands on two lines; ``repeats`` counts every further occurrence of any."""

    identity: str
    first_line: int
    again_line: int
    repeats: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A row whose input line (``was``) is gone (``now`` is None) or changed after something was paid for it."""

    was: int
    now: int | None


class Hashes:
    """Hashes, set apart by their last bits: equal ones share a part, and one part at a time is looked through.

    Full chunks, in which none is there twice, go to the ledger's connection; its parts are numbered from ``first``.
    """

    def __init__(self, ledger: Ledger, first: int) -> None:
        self._ledger = ledger
        self._first = first
        self._parts = [array("q") for _ in range(PARTS)]
        self._repeats = 0

    def add(self, hashes: Iterable[int]) -> None:
        parts, mask = self._parts, PARTS - 1
        for each in hashes:
            part = parts[each & mask]
            part.append(each)
            if len(part) == CHUNK_HASHES:
                different = array("q", set(part))
                self._repeats += len(part) - len(different)
                part[:] = different
                if len(different) > CHUNK_HASHES // 2:
                    self._ledger.execute("keep_hashes", part=self._first + (each & mask), chunk=part.tobytes())
                    del part[:]

    def repeated(self) -> int:
        """How many are as one before them."""
        repeats = self._repeats
        for number, last in enumerate(self._parts, self._first):
            part = array("q", last)
            for (chunk,) in self._ledger.fetch("hashes_kept", part=number):
                part.frombytes(chunk)
            repeats += len(part) - len(set(part))
        return repeats


class Inventory:
    """A census of the input, kept in the ledger's connection and dropped by ``close``."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.close()
        self._ledger.execute("create_inventory")
        self._ledger.execute("create_hashes")
        self._ids, self._asked = Hashes(ledger, 0), Hashes(ledger, PARTS)

    def note(self, *, ids: Iterable[int], asked: Iterable[int]) -> None:
        """Hashes of identities, and of what is asked."""
        self._ids.add(ids)
        self._asked.add(asked)

    def add(self, entries: Iterable[Entry]) -> None:
        with self._ledger.transaction():
            self._ledger.connection.executemany(QUERIES["add_to_inventory"], entries)

    def repeated(self) -> Repeated | None:
        self._ledger.execute("index_inventory")
        found = self._ledger.fetch("repeated_identity")
        return Repeated(*found[0]) if found else None

    def repeated_ids(self) -> int:
        """How many identities were noted before; if any, the entries tell which: a hash may be that of two."""
        return self._ids.repeated()

    def repeated_prompts(self) -> int:
        """How many records ask what an earlier one asks."""
        return self._asked.repeated()

    def every_record_has_an_id(self) -> bool:
        """True where rows may be matched by id, whatever the order of the lines."""
        in_input, in_ledger = self._ledger.fetch("records_without_id")[0]
        return not in_input and not in_ledger

    def forget_what_cost_nothing(self) -> None:
        """Delete the rows of bad lines, and of what was certainly never accepted, before the rest is compared."""
        self._ledger.execute("forget_what_cost_nothing")

    def conflicts(self, *, accept_changed: bool = False) -> tuple[list[Conflict], int]:
        """Match every row with its line; the first conflicts, and how many there are."""
        if self.every_record_has_an_id():
            self._ledger.execute("index_inventory")
            self._ledger.execute("match_by_id")
        else:
            self._ledger.execute("match_by_line")
        found = self._ledger.fetch("conflicts", accept_changed=accept_changed)
        return [Conflict(raw["was"], raw["line"]) for raw in found], found[0]["conflicts"] if found else 0

    def first_unknown(self) -> tuple[int, int] | None:
        """(line, offset) of the first record without a row; None if the ledger knows them all."""
        found = self._ledger.fetch("first_unknown")
        return (found[0]["line"], found[0]["offset"]) if found else None

    def adopt(self) -> Counter[str]:
        """Let the ledger follow the input: places, and rows whose line has changed. Inside a transaction.

        Returns:
            What ``Ledger.reopen`` counts.
        """
        counted = self._ledger.reopen(*(seq for (seq,) in self._ledger.fetch("changed_rows")))
        self._ledger.execute("adopt_places")
        return counted

    def close(self) -> None:
        self._ledger.execute("drop_matched")
        self._ledger.execute("drop_inventory")
        self._ledger.execute("drop_hashes")
