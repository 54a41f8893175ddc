"""docs/exit-codes.md against errors.py."""

from __future__ import annotations

import inspect
import re
import signal

from batchrun import errors
from batchrun.errors import BatchrunError, Interrupted
from batchrun.job import MAX_OUTAGE_S
from batchrun.stop import SIGNALS
from tests.docs.pages import ROOT, table

PAGE = ROOT / "docs" / "exit-codes.md"


def documented_codes() -> dict[int, str]:
    """Each code and the error that carries it; empty for those that describe a finished job."""
    return {int(code): name for codes, name, *_ in table(PAGE, "code") for code in codes.split(",")}


def test_every_error_has_its_line_and_its_code() -> None:
    classes = dict(
        inspect.getmembers(errors, lambda thing: inspect.isclass(thing) and issubclass(thing, BatchrunError))
    )
    own = {name: thing for name, thing in classes.items() if "exit_code" in vars(thing)}
    carried = {thing.exit_code: name for name, thing in own.items()}
    assert {code: name for code, name in documented_codes().items() if name not in ("", "Interrupted")} == carried


def test_a_signal_has_its_own_code() -> None:
    stopped = {Interrupted(number).exit_code for number in SIGNALS}
    assert {code for code, name in documented_codes().items() if name == "Interrupted"} == stopped
    for number in SIGNALS:
        assert signal.Signals(number).name in PAGE.read_text()


def test_every_code_of_the_program_is_documented() -> None:
    constants = {value for name, value in vars(errors).items() if re.fullmatch("[A-Z_]+", name) and value in range(256)}
    assert constants <= documented_codes().keys()
    assert {code for code, name in documented_codes().items() if not name} == {0, 1, errors.DECISION}


def test_the_outage_that_ends_a_run_is_as_long_as_documented() -> None:
    assert f"nothing has succeeded for {MAX_OUTAGE_S / 60:g} minutes" in PAGE.read_text()
