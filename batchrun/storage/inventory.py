"""What the input holds now, beside what the ledger knows: SQL over two temporary tables, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import orjson

from batchrun.storage.ledger import QUERIES, Ledger

HashKind = Literal["id", "asked"]
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


class Inventory:
    """A census of the input, kept in the ledger's connection and dropped by ``close``."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.close()
        self._ledger.execute("create_inventory")
        self._ledger.execute("create_hashes")

    def note(self, kind: HashKind, hashes: list[int]) -> None:
        """Hashes of identities, or of what is asked."""
        self._ledger.execute("add_hashes", kind=kind, batch=orjson.dumps(hashes).decode())

    def repeats(self, kind: HashKind) -> int:
        """How many of the hashes of this kind are as one before them."""
        return int(self._ledger.fetch("repeated_hashes", kind=kind)[0]["repeats"])

    def add(self, entries: Iterable[Entry]) -> None:
        with self._ledger.transaction():
            self._ledger.connection.executemany(QUERIES["add_to_inventory"], entries)

    def repeated(self) -> Repeated | None:
        self._ledger.execute("index_inventory")
        found = self._ledger.fetch("repeated_identity")
        return Repeated(*found[0]) if found else None

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
