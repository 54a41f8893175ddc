"""Which file is read, and whether it is still the one that the ledger knows: steps 0 and 6 of recovery."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from batchrun.check import Source, check_input, offset_after, reading_of, state_of
from batchrun.config import JobConfig
from batchrun.errors import InputProblem, UsageProblem
from batchrun.log import event
from batchrun.record import State
from batchrun.spool import STDIN, STREAMS, Spool
from batchrun.storage.inventory import Conflict, Inventory
from batchrun.storage.jobdir import JobPaths
from batchrun.storage.ledger import Ledger


def open_input(path: Path, paths: JobPaths) -> int:
    """Open the input. It must be a regular file, a pipe, or standard input, and none of the job's own."""
    try:
        fd = os.dup(0) if path in STDIN else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _no_input(path, error) from error
    try:
        _refuse_what_cannot_be_read(path, fd, paths)
    except UsageProblem:
        os.close(fd)
        raise
    return fd


def _refuse_what_cannot_be_read(path: Path, fd: int, paths: JobPaths) -> None:
    found = os.fstat(fd)
    if os.isatty(fd):
        raise UsageProblem(f"{path} is a terminal", remedy="pipe a file into it, or name one")
    if path not in STREAMS and not (stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "neither a file nor a pipe"
        raise UsageProblem(f"{path} is {kind}", remedy="name a file with one record per line")
    for own in (*paths.beside_it, paths.ledger, paths.emulator_journal, paths.spool):
        if own.exists() and os.path.samestat(own.stat(), found):
            raise UsageProblem(f"{own} would be written over the input", remedy="choose another -o")


def from_output(config: JobConfig) -> str:
    """The input's path, seen from the output's folder: right from anywhere, and when the folder moves."""
    return "-" if config.input in STREAMS else os.path.relpath(config.input, config.paths.output.parent)


def _no_input(path: Path, error: OSError) -> UsageProblem:
    remedy = "name the file with the records"
    if path in STDIN:
        return UsageProblem("standard input is closed", remedy="pipe a file into it, or name one")
    if isinstance(error, FileNotFoundError) and path.parent.is_dir():
        alike = sorted(other.name for other in path.parent.glob(f"{path.stem}.*") if other.is_file())
        remedy = f"this folder has {', '.join(alike[:3])}" if alike else remedy
    reason = "no such file" if isinstance(error, FileNotFoundError) else os.strerror(error.errno or 0)
    return UsageProblem(f"{path}: {reason}", remedy=remedy)


def settle_input(
    ledger: Ledger, fd: int, config: JobConfig, take_out: Callable[[], object] | None, *, for_good: bool = True
) -> Source:
    """Check the input and hold it against the ledger, unless it is the very file of the last complete check.

    What is no plain file of JSON lines is copied into the spool first; from then on ``fd`` is the copy's.
    ``take_out``, if there is an output, is called inside the transaction if records whose line has changed are DONE no
    longer. Not ``for_good``: the job's own spool stays as it is.
    """
    job = ledger.job()
    known = job.input_inode, job.input_mtime_ns, job.input_size
    with Spool(config, fd, for_good=for_good) as spool:
        spool.read_instead(fd, job.input_source, known)
        state = _, _, size = state_of(fd)
        limited = size if config.limit is None else offset_after(fd, size, config.limit)
        if config.strict or known != state:
            source = _check(ledger, fd, state, limited, config, spool, take_out)
        else:
            with ledger.transaction():  # the same file, maybe under a new name
                ledger.save(input_path=from_output(config), input_source=spool.source)
            checked = state, size, job.input_digest or b""
            start = job.low_water_line, job.low_water_offset
            reading = reading_of(config.settings, fd, size)
            source = Source(config.input, fd, size, job.input_records, checked, *start, reading=reading)
    if config.limit is not None and source.records is not None:
        source = replace(source, end=limited, records=min(source.records, config.limit))
    return source if spool.source is None else replace(source, spool=config.paths.spool)


def announce(config: JobConfig, counted: Counter[str]) -> None:
    """Say what is sent again, as ``Ledger.reopen`` has counted it."""
    again, doubtful = counted["again"], counted["maybe_paid"]
    event("sent_again", records=again, maybe_paid_twice=doubtful)
    said = f"{again:,} record{'s' * (again != 1)} again, of which {doubtful:,} may be paid twice"
    config.tell(said if again else "nothing to send again")


def _check(
    ledger: Ledger,
    fd: int,
    state: tuple[int, int, int],
    limited: int,
    config: JobConfig,
    spool: Spool,
    take_out: Callable[[], object] | None,
) -> Source:
    """``limited``: as far as it is read if the ledger knows no record of it yet; else it is held against it whole."""
    has_rows = ledger.last_line() > 0
    inode, mtime_ns, size = state
    again = Counter[str]()
    end = size if has_rows else limited
    reading = reading_of(config.settings, fd, size)
    inventory = Inventory(ledger)
    try:
        checked = check_input(config.input, fd, end, inventory, reading, strict=config.strict, into_inventory=has_rows)
        with ledger.transaction():
            if has_rows:
                inventory.forget_what_cost_nothing()
                conflicts, count = inventory.conflicts(accept_changed=config.accept_changed)
                if conflicts:
                    raise _input_changed(config, ledger, conflicts, count)
                again = inventory.adopt()
                if again[State.DONE] and take_out is not None:
                    take_out()
            after_all = checked.lines + 1, end
            first_unknown = inventory.first_unknown() if has_rows else checked.first
            start = min(first_unknown or after_all, checked.first_bad or after_all)
            ledger.save_low_water(*start)
            ledger.save(input_path=from_output(config), input_source=spool.source)
            spool.keep()
            if end == size:
                ledger.save(
                    input_inode=inode,
                    input_mtime_ns=mtime_ns,
                    input_size=size,
                    input_digest=checked.digest,
                    input_records=checked.records,
                )
    finally:
        inventory.close()
    if again["again"]:
        announce(config, again)
    matched_by = "line" if checked.without_id else "id"
    counted = {"records": checked.records, "bad": checked.bad, "repeats": checked.repeats, "bytes": end}
    nul = {} if checked.first_nul is None else {"first_line_with_nul": checked.first_nul}
    event("input_checked", logging.WARNING if nul else logging.INFO, **counted, matched_by=matched_by, **nul)
    seen = state, end, checked.digest
    return Source(config.input, fd, end, checked.records, seen, *start, reading=reading, found=checked)


def _input_changed(config: JobConfig, ledger: Ledger, conflicts: list[Conflict], count: int) -> InputProblem:
    path, known_as = config.input, ledger.job().input_path
    remedy = "put these lines back as they were, or use another -o; appended lines are welcome"
    if not config.accept_changed and all(conflict.now for conflict in conflicts):
        remedy = "put them back as they were; --accept-changed sends those again that changed, and pays for them again"
    if os.path.basename(known_as) != path.name:
        remedy = f"the job of {config.paths.output} reads {os.path.basename(known_as)}: another input wants another -o"
    if ledger.open_operations():
        remedy += f"; batchrun resume {config.paths.named} --collect-only fetches what is paid for"
    *before, last = [
        f"{path}:{conflict.was}: " + ("gone since it was sent" if conflict.now is None else "changed since it was sent")
        for conflict in conflicts
    ] + [f"… and {count - len(conflicts):,} more"] * (count > len(conflicts))
    return InputProblem(last, remedy=remedy, before=before)
