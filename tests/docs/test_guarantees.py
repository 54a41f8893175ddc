"""Whatever a page claims to be proven has a test of that name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, table
from tests.faults import PAGE, PROOF, rows

PROMISING = [PAGE, ROOT / "SECURITY.md"]


@pytest.mark.parametrize("page", PROMISING, ids=lambda page: page.name)
def test_every_proof_on_a_page_is_a_test(page: Path) -> None:
    proofs = PROOF.findall(page.read_text("utf-8"))
    assert proofs
    for module, name in proofs:
        source = (ROOT / "tests" / f"{module}.py").read_text("utf-8")
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{module}::{name}"


@pytest.mark.parametrize("first", ["fault", "input"])
def test_every_row_has_its_proof(first: str) -> None:
    for row in table(PAGE, first):
        assert row[0] in rows(), f"nothing proves: {row[0]}"


def test_every_fault_of_the_tests_has_its_row() -> None:
    named = {name for proofs in rows().values() for _, name in proofs}
    for module in ("test_faults", "test_network", "test_disk", "test_clock", "test_kills", "test_bad_input"):
        source = (ROOT / "tests" / "scenarios" / f"{module}.py").read_text("utf-8")
        assert set(re.findall(r"^def (test_\w+)", source, re.MULTILINE)) - named == set()
