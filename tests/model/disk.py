"""The model's disk: what a kill, a power cut and a failed sync leave of ledger and output.

What is written is visible at once, and durable after a sync. A kill leaves what is visible. A power cut leaves one of
the versions since the last sync; of the output also one that ends within a line. After a failed sync the pages count as
clean, so later syncs pass over them: only writing anew helps. A commit is all or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

from batchrun.record import History, State

C = TypeVar("C")


class File(NamedTuple, Generic[C]):
    """Its first version is durable, its last is visible."""

    versions: tuple[C, ...]
    stuck: bool = False  # a sync has failed

    @property
    def visible(self) -> C:
        return self.versions[-1]

    def written(self, content: C) -> File[C]:
        return self if content == self.visible else File((*self.versions, content), self.stuck)

    def synced(self) -> File[C]:
        return self if self.stuck else self.written_anew()

    def written_anew(self) -> File[C]:
        """All of it written over itself, and synced."""
        return File((self.visible,))


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A record in the ledger. ``operation``: which of its accepted POSTs the ledger knows, 0 for none.

    ``forgotten``: operations that failed, were not charged, and are counted no more: it was asked for again since.
    """

    state: State
    history: History
    operation: int
    forgotten: int = 0


row_of = cache(Row)
"""Makes every row, so that equal rows are one object and quick to hash."""


class Books(NamedTuple):
    """What the ledger says: a row for each record, and how many lines of the output are its own."""

    rows: tuple[Row, ...]
    out_committed: int


Line = tuple[int, int]
"""A result in the output: (record, operation)."""
Lines = tuple[Line, ...]
TORN: Line = (-1, 0)
"""Half a line, or zeros."""


def left_of(versions: tuple[Lines, ...]) -> list[Lines]:
    """What a power cut may leave of the output: a version, or the beginning of what was appended, torn or not."""
    found = [versions[0]]
    for before, after in pairwise(versions):
        for count in range(len(before), len(after)):
            found += [after[:count], (*after[:count], TORN)]
        found.append(after)
    return list(dict.fromkeys(found))
