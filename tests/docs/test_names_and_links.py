"""No page leads nowhere, and none names a command or an option that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from batchrun.cli import cli
from tests.docs.pages import PAGES, ROOT, anchor_of, links, name_of

OF_BATCHRUN = [page for page in PAGES if page.name != "CONTRIBUTING.md"]  # which names the options of other tools


def commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    return {name: found for name in cli.list_commands(context) if (found := cli.get_command(context, name)) is not None}


def options() -> set[str]:
    return {
        option
        for command in (cli, *commands().values())
        for each in command.get_params(click.Context(command, **cli.context_settings))
        for option in each.opts
    }


def parametrize(pages: list[Path] | tuple[Path, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in pages])


@parametrize(PAGES)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), target
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(anchor_of, headings), target


@parametrize(PAGES)
def test_every_file_named_in_passing_is_there(page: Path) -> None:
    for path in re.findall(r"`((?:batchrun|docs|tests|sample_inputs)/[\w./-]+)`", page.read_text("utf-8")):
        assert (ROOT / path).exists(), path


@parametrize(OF_BATCHRUN)
def test_every_option_on_a_page_exists(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text("utf-8")))
    assert named <= options()


@parametrize(OF_BATCHRUN)
def test_every_command_on_a_page_exists(page: Path) -> None:
    code = re.findall(r"^```.*?^```$|`[^`\n]+`", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for word in re.findall(r"(?:^|[`$] ?)batchrun ([^\s`]+)", "\n".join(code), re.MULTILINE):
        is_file = "." in word or word in ("INPUT", "FILE", "-")
        assert is_file or word in commands(), word


@parametrize(OF_BATCHRUN)
def test_every_variable_on_a_page_is_read(page: Path) -> None:
    run = commands()["run"]
    known = {f"BATCHRUN_{parameter.name.upper()}" for parameter in run.params}
    assert set(re.findall(r"BATCHRUN_[A-Z_]+", page.read_text("utf-8"))) <= known


def test_every_page_named_in_the_code_is_there() -> None:
    for source in (ROOT / "batchrun").rglob("*.py"):
        for path in re.findall(r"docs/[\w./-]+\.md", source.read_text("utf-8")):
            assert (ROOT / path).exists(), f"{source}: {path}"


def test_every_decision_has_its_own_number_and_the_three_parts() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    for number, page in enumerate(decisions, 1):
        text = page.read_text("utf-8")
        assert page.name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number:04}: ")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


@pytest.mark.parametrize("verb", sorted(commands()))
def test_the_help_of_every_command_names_all_its_options(verb: str) -> None:
    command = commands()[verb]
    context = click.Context(command, info_name=verb, **command.context_settings)
    text = command.get_help(context)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert all(option in text for option in parameter.opts), parameter.opts
