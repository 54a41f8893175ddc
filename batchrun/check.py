"""Read the whole input once and say what is wrong with it, before anything is sent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import orjson

from batchrun.errors import InputProblem
from batchrun.inputs import AS_EACH_IS, Parsed, Reading, Shape, identity, parse
from batchrun.lines import MAX_LINE_BYTES, BadLine, Line, LineSplitter, digest, sniff
from batchrun.record import Settings
from batchrun.storage.inventory import Entry, Inventory
from batchrun.template import compiled

BLOCK_BYTES = 256 * 1024
MAX_MESSAGES = 20
MAX_BAD = 10
MAX_BAD_SHARE = 0.01
BATCH_RECORDS = 1000
TOO_LONG = "longer than 4 MiB"
WRONG_FILE = "the first record is bad, so this is hardly the right file (--format names a shape); nothing was sent"


def state_of(file: int | Path) -> tuple[int, int, int]:
    """What tells a file from the one that was checked: inode, mtime in ns, size."""
    found = os.stat(file)
    return found.st_ino, found.st_mtime_ns, found.st_size


@dataclass(frozen=True, slots=True)
class Source:
    """The open input as far as it was checked. ``end`` is the byte after the last one that may be read.

    ``checked`` is None if it was not, else the state of the file then, how far it was checked, and the digest of that.
    ``found``: what the check said, if there was one.
    ``spool`` is what is read in place of ``path``, if anything is.
    """

    path: Path
    fd: int
    end: int
    records: int | None
    checked: tuple[tuple[int, int, int], int, bytes] | None
    first_line: int = 1
    first_offset: int = 0
    reading: Reading = AS_EACH_IS
    found: Checked | None = None
    spool: Path | None = None

    def parse(self, raw: bytes) -> Parsed:
        """What one of its lines asks. Raises BadLine."""
        return parse(raw, self.reading)


def reading_of(settings: Settings, fd: int, end: int) -> Reading:
    """How the lines of this file are understood: as the settings say, and as its first record is."""
    reading = Reading(
        Shape(settings.format) if settings.format in {*Shape} else None,
        settings.prompt_column,
        None if settings.template is None else compiled(settings.template),
        model_given=settings.model_given,
        for_instruct=settings.provider == "yandex-instruct",
    )
    first = next(filter(is_record, read_lines(fd, min(end, 2 * MAX_LINE_BYTES))), None)
    return reading if first is None or first.too_long else reading.fixed_by(first.raw)


@dataclass(slots=True)
class Checked:
    """What was found in the first ``end`` bytes.

    ``messages`` names the first bad lines; ``first`` and ``first_bad`` are the (line, offset) of the first record and
    of the first bad one. ``remedy``: what to do about the first record, if that is bad. ``repeats``: records that ask
    what an earlier one asks. ``first_nul``: the line of the first with an escaped NUL.
    """

    end: int
    lines: int = 0
    records: int = 0
    bad: int = 0
    without_id: int = 0
    repeats: int = 0
    first_nul: int | None = None
    first: tuple[int, int] | None = None
    first_bad: tuple[int, int] | None = None
    remedy: str | None = None
    messages: list[str] = field(default_factory=list)
    digest: bytes = b""

    def told(self) -> list[str]:
        """The first bad lines, and how many more there are."""
        more = self.bad - len(self.messages)
        return [*self.messages, f"… and {more:,} more"] if more else self.messages


def read_blocks(fd: int, end: int) -> Iterator[bytes]:
    """The first ``end`` bytes, or as many as there are."""
    at = 0
    while at < end and (block := os.pread(fd, min(BLOCK_BYTES, end - at), at)):
        yield block
        at += len(block)


def read_lines(fd: int, end: int, hasher: hashlib.blake2b | None = None) -> Iterator[Line]:
    """Every line of the first ``end`` bytes."""
    splitter = LineSplitter()
    for block in read_blocks(fd, end):
        if hasher is not None:
            hasher.update(block)
        yield from splitter.feed(block)
    yield from splitter.end()


def is_record(line: Line) -> bool:
    """Whether a line counts, good or bad; one of nothing but spaces, tabs and CR does not."""
    return line.too_long or line.raw.strip(b" \t\r") != b""


def check_input(
    path: Path, fd: int, end: int, inventory: Inventory, reading: Reading, *, strict: bool, into_inventory: bool
) -> Checked:
    """Check every line of the first ``end`` bytes.

    Args:
        strict: One bad line is one too many.
        into_inventory: Put every good record into the inventory, to be held against the ledger.
    Raises:
        InputProblem: this is no JSONL, too many lines are bad, or an id stands on two lines.
    """
    if reason := sniff(os.pread(fd, 4096, 0)):
        raise InputProblem(
            f"{path}: {reason}", remedy="batchrun reads JSONL: one JSON object, or one text in quotes, a line"
        )
    hasher = hashlib.blake2b(digest_size=16)
    found = Checked(end)
    good = _good_records(path, read_lines(fd, end, hasher), reading, found, with_entries=into_inventory)
    while batch := list(islice(good, BATCH_RECORDS)):
        inventory.note("id", [hash(id) for id, _, _ in batch if id is not None])
        inventory.note("asked", [asked for _, asked, _ in batch])
        if into_inventory:
            inventory.add(entry for _, _, entry in batch if entry)
    found.digest = hasher.digest()
    _judge(path, found, strict=strict, of_failures=reading.shape is Shape.FAILURES)
    if inventory.repeats("id"):  # or two ids have one hash: the entries tell
        if not into_inventory:  # it is read once more to name them
            again = _good_records(path, read_lines(fd, end), reading, Checked(end), with_entries=True)
            inventory.add(entry for _, _, entry in again if entry)
        _refuse_repeated_id(path, inventory)
    found.repeats = inventory.repeats("asked")
    return found


def _refuse_repeated_id(path: Path, inventory: Inventory) -> None:
    if repeated := inventory.repeated():
        name = repeated.identity[:60] + ("…" if len(repeated.identity) > 60 else "")
        in_all = f" ({repeated.repeats} repeats in all)" if repeated.repeats > 1 else ""
        raise InputProblem(
            f"{path}:{repeated.again_line}: id '{name}' was on line {repeated.first_line} already{in_all}",
            remedy="make the ids unique, or leave them out: then the line number is the id",
        )


def offset_after(fd: int, end: int, records: int) -> int:
    """Where the record after the first so many begins; ``end`` if there is none."""
    offsets = (line.offset for line in read_lines(fd, end) if is_record(line))
    return next(islice(offsets, min(records, end), None), end)


def prefix_digest(fd: int, size: int) -> bytes:
    """Digest of the first ``size`` bytes, to tell an input that only grew from one that was edited."""
    hasher = hashlib.blake2b(digest_size=16)
    for block in read_blocks(fd, size):
        hasher.update(block)
    return hasher.digest()


_Good = tuple[str | None, int, Entry | None]
"""The identity of a good record, the hash of what it asks, and its entry if that is wanted. No text: it may be long."""


def _good_records(
    path: Path, lines: Iterator[Line], reading: Reading, found: Checked, *, with_entries: bool
) -> Iterator[_Good]:
    """Every record that is not bad. ``found`` counts them, and what is bad."""
    for line in lines:
        found.lines += 1
        if not is_record(line):
            continue
        found.records += 1
        number, offset, raw, too_long = line
        if found.first is None:
            found.first = number, offset
        try:
            if too_long:
                raise BadLine(TOO_LONG)
            id, prompt, _, _ = parse(raw, reading)
        except BadLine as bad:
            found.bad += 1
            if found.records == 1:
                found.remedy = bad.remedy or WRONG_FILE
            found.first_bad = found.first_bad or (number, offset)
            if len(found.messages) < MAX_MESSAGES:
                found.messages.append(f"{path}:{number}: {bad}")
            continue
        if found.first_nul is None and rb"\u0000" in raw.replace(rb"\\", b""):
            found.first_nul = number
        found.without_id += id is None
        name = identity(id)
        asked = prompt if prompt.body is None else orjson.dumps(prompt._asdict(), option=orjson.OPT_SORT_KEYS)
        yield name, hash(asked), (number, offset, len(raw), name, digest(raw)) if with_entries else None


def _judge(path: Path, found: Checked, *, strict: bool, of_failures: bool) -> None:
    """``of_failures``: many may be bad, and the first, since the failure of a bad line holds no record."""
    if strict and found.bad:
        remedy = "--strict refuses the whole input; nothing was sent"
    elif of_failures and found.bad < found.records:
        return
    elif found.remedy is not None:
        remedy = found.remedy
    elif found.bad > max(MAX_BAD, MAX_BAD_SHARE * found.records):
        remedy = f"more than {MAX_BAD} and more than 1 % of the records are bad; nothing was sent"
    else:
        return
    *before, last = found.told()
    raise InputProblem(last, remedy=remedy, before=before)
