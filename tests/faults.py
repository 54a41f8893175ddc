"""``make faults``: everything, with many seeds; the rows of docs/guarantees.md that held, and what was counted.

make faults                              everything, and the figures go into docs/guarantees.md
make faults ARGS="--seed 17 -k kills"    one seed of one test again
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).parents[1] / "docs" / "guarantees.md"
FIGURES = re.compile(r"(?<=<!-- figures -->\n).*(?=<!-- end of figures -->)", re.DOTALL)
PROOF = re.compile(r"`([\w/]+)::(\w+)`")


def rows() -> dict[str, list[tuple[str, str]]]:
    """The rows of the page that name their proof: what happens -> (module, test) each."""
    found = {}
    for line in PAGE.read_text("utf-8").splitlines():
        proofs = PROOF.findall(line)
        if line.startswith("| ") and proofs:
            found[line.split("|")[1].strip().replace("`", "")] = proofs
    return found


def main() -> int:
    options = argparse.ArgumentParser(prog="make faults", description=__doc__.partition("\n")[0] if __doc__ else None)
    options.add_argument("--seeds", type=int, help="how many [70; with -k: 1]")
    options.add_argument("--seed", type=int, default=0, help="the first of them [0]")
    options.add_argument("-k", default="", help="only such tests; the page stays as it is")
    options.add_argument("-n", type=int, default=4, help="processes [4]")
    asked = options.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report, figures = Path(folder) / "report.xml", Path(folder) / "figures.jsonl"
        seeds = asked.seeds or (1 if asked.k else 70)
        words = ["-n", str(asked.n), "--dist", "worksteal", f"--seeds={seeds}", f"--seed={asked.seed}", "-k", asked.k]
        words.append(f"--hypothesis-seed={asked.seed}")
        code = subprocess.call(
            [sys.executable, "-m", "pytest", *words, f"--junitxml={report}", "--durations=10"],
            env={**os.environ, "FAULTS": "all", "FIGURES_FILE": str(figures)},
        )
        if not report.exists():  # pytest has said why
            return code
        told = figures_of(totals(figures), code, (time.monotonic() - began) / 60)
        print_rows(verdicts(report))
    if len(sys.argv) == 1:  # everything, as `make faults` does
        print(told)
        PAGE.write_text(FIGURES.sub(lambda _: told, PAGE.read_text("utf-8")), "utf-8")
    return code


def totals(figures: Path) -> Counter[str]:
    counted = Counter[str]()
    if figures.exists():
        for line in figures.read_text().splitlines():
            counted.update(json.loads(line))
    return counted


def verdicts(report: Path) -> dict[tuple[str, str], Counter[str]]:
    """How often each test passed, failed or was skipped, by (module, name without parameters)."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.get("classname", "").removeprefix("tests.").replace(".", "/")
        name = case.attrib["name"].partition("[")[0]
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        found[module, name][outcome] += 1
    return found


def figures_of(counted: Counter[str], code: int, minutes: float) -> str:
    """What was counted, as the page shows it."""
    return "\n".join(
        [
            f"{date.today()}, {minutes:.0f} minutes on {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"SQLite {sqlite3.sqlite_version}, Linux {platform.release().partition('-')[0]}"
            f"{'; some tests failed' if code else ''}.",
            "",
            "| counted | |",
            "| --- | ---: |",
            *(f"| {name} | {count:,} |" for name, count in counted.items()),
            "",
        ]
    )


def print_rows(found: dict[tuple[str, str], Counter[str]]) -> None:
    """A line per row of the page that was tried: how often its proofs ran, and how often they failed."""
    print(f"{'runs':>6} {'failed':>6} {'skipped':>7}  row")
    room = shutil.get_terminal_size((160, 24)).columns - 24
    for row, proofs in rows().items():
        of_row: Counter[str] = sum((found[proof] for proof in proofs if proof in found), Counter())
        failed = of_row["failure"] + of_row["error"]
        if of_row:
            print(f"{of_row['passed'] + failed:>6,} {failed:>6} {of_row['skipped']:>7}  {row[:room]}")


if __name__ == "__main__":
    sys.exit(main())
