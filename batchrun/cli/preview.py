"""What a run would find, before anything is paid for: the screen of ``check`` and of ``--dry-run``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress

from batchrun.check import Source, is_record, read_lines
from batchrun.config import JobConfig
from batchrun.export import messages_of
from batchrun.intake import open_input, settle_input
from batchrun.lines import BadLine
from batchrun.pacing import HOUR_S
from batchrun.record import Prompt, State, after_crash
from batchrun.recovery import begins_anew, refuse_empty, refuse_foreign_failures, refuse_foreign_file, settle_settings
from batchrun.storage.ledger import Ledger
from batchrun.summary import duration, headline, summarize

CHARACTERS_PER_TOKEN = 3


def preview(config: JobConfig, *, is_job: bool) -> Iterator[str]:
    """A run up to its first POST, with a copy of its ledger. ``is_job``: and what would follow.

    Raises:
        BatchrunError: it would refuse.
    """
    now = time.time()
    fd = open_input(config.input, config.paths)
    is_anew = is_job and begins_anew(config)
    known = config.paths.ledger if is_job and not is_anew else None
    with os.fdopen(fd, "rb"), closing(Ledger.copy_of(known)) as ledger:
        if is_new := not ledger.exists():
            ledger.create(job_id="", input_path="", settings=config.settings, now=now)
        if known is not None and not ledger.has_operations():
            refuse_foreign_file(config.paths.output, config.paths)
            if is_new:
                refuse_foreign_failures(config.paths)
        settle_settings(ledger, config)
        with ledger.transaction():
            ledger.end_intents(after_crash(config.on_ambiguous), now)
            ledger.save(input_inode=None)  # so that it is read once more
        source = settle_input(ledger, fd, config, None, for_good=False)
        if is_anew:
            refuse_empty(config, source)
        yield from _of_input(config, source)
        if is_job:
            yield from _of_job(config, ledger, source, now)
            yield "nothing was sent"


def _of_input(config: JobConfig, source: Source) -> Iterator[str]:
    found, shape = source.found, source.reading.shape
    assert found is not None, "it was read"
    good = found.records - found.bad
    ids = {0: "ids unique", good: "no ids: lines are known by their number"}.get(
        found.without_id, f"{found.without_id:,} of them without an id: lines are known by their number"
    )
    kind = f"prompts in '{config.settings.prompt_column}'" if config.settings.prompt_column else f"shape {shape}"
    kind = "prompts by the template" if config.settings.template is not None else kind
    about = f", {kind}, {found.end:,} bytes, {ids}" if good else ""
    yield f"{config.input}   {found.records:,} record{'s' * (found.records != 1)}{about}"
    if found.bad:
        yield f"bad lines    {found.bad:,}; a run lets them fail and sends the rest"
        yield from found.told()
    if found.repeats:
        who = "1 record asks" if found.repeats == 1 else f"{found.repeats:,} records ask"
        yield f"repeats      {who} what an earlier one asks; each is sent and paid for"
    if found.first_nul is not None:
        yield f"NUL          line {found.first_nul:,} is the first with this character (\\u0000); it is taken as it is"


def _of_job(config: JobConfig, ledger: Ledger, source: Source, now: float) -> Iterator[str]:
    records = characters = 0
    for prompt in _to_send(ledger, source):
        records += 1
        characters += sum(len(message.get("text", "")) for message in messages_of(prompt, config.settings))
    summary = summarize(ledger, total=0)  # of what has a row
    rows = sum(summary.counts.values())
    yield f"model        {config.settings.model} by {config.settings.provider}, where a record names none"
    yield f"in ledger    {rows:,}" + (f": {headline(summary)}" if rows else "")
    yield f"to send      {records:,}"
    if records:
        past = sum(posts for _, posts in ledger.submissions_since(now - HOUR_S))
        hours, last = divmod(past + records - 1, config.rph)  # of which the first began with what is past
        seconds = max(records / config.rps, hours * HOUR_S + (last + 1) / config.rps if hours else 0)
        tokens = characters // CHARACTERS_PER_TOKEN
        yield f"tokens       about {tokens:,} in, at {CHARACTERS_PER_TOKEN} characters each"
        yield f"time         about {duration(seconds)} to send, at {config.rps:g} a second and {config.rph:,} an hour"


def _to_send(ledger: Ledger, source: Source) -> Iterator[Prompt]:
    for line in read_lines(source.fd, source.end):
        row = next(ledger.walk("row_of_line", line=line.number), None) if is_record(line) else None
        if row is None or row.state is State.NEW:
            with suppress(BadLine):
                yield source.parse(line.raw).prompt
