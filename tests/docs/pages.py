"""The project's pages as the tests read them: code blocks, tables, links."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ATTENDANTS = tuple(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY"))
PAGES = (README, *ATTENDANTS, *sorted((ROOT / "docs").rglob("*.md")))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks in one language, without their fences."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def table(page: Path, first_heading: str) -> list[list[str]]:
    """The rows of the one table whose first column is so called, as texts without backticks."""
    _, found, rest = page.read_text("utf-8").partition(f"\n| {first_heading} |")
    assert found, f"{name_of(page)} has no table that begins with {first_heading!r}"
    rows = takewhile(lambda line: line.startswith("|"), rest.splitlines()[2:])
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]


def links(page: Path) -> list[str]:
    """The targets of all links that stay inside the project."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    return [target for target in targets if "://" not in target]


def anchor_of(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
