"""Commands that the documentation and ``--help`` show are ones that the command line takes."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from nearkin import parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "log.md")]  # which is history
SCRIPTS = sorted((ROOT / "docs").glob("*.sh"))
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`nearkin ([^`]+)`")
COMMAND = re.compile(r"^ *(?:step [a-z-]+ |show )?nearkin (.+)$", re.MULTILINE)
TOOK = re.compile(r" {4,}\d+ s\b.*")  # what a command took, behind it


def commands(text: str) -> Iterator[list[str]]:
    """Words of the lines that begin with ``nearkin``, continued ones joined, without comments and redirections."""
    for line in COMMAND.findall(re.sub(r"\\\n *", "", text)):
        words = shlex.split(TOOK.sub("", line).replace("$SLURM_ARRAY_TASK_ID", "1"), comments=True)
        yield list(takewhile(lambda word: word not in (">", "|", "&&"), words))


def subparsers(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action.choices for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def every_parser(of: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield of
    for inner in subparsers(of).values():
        yield from every_parser(inner)


@pytest.fixture(scope="module")
def root() -> argparse.ArgumentParser:
    return parser()


def assert_taken(root: argparse.ArgumentParser, lines: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    for words in lines:
        try:
            root.parse_args(words)
        except SystemExit:
            pytest.fail(f"nearkin {shlex.join(words)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_commands_of_a_script(script: Path, root: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(commands(script.read_text(encoding="utf-8")))
    assert lines
    assert_taken(root, lines, capsys)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page(page: Path, root: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text(encoding="utf-8")
    assert_taken(root, [words for block in FENCED.findall(text) for words in commands(block)], capsys)
    for span in SPAN.findall(FENCED.sub("", text)):  # these may name a part of a command
        words, reached = re.split(r"\s+", span), root
        while words and words[0] in subparsers(reached):
            reached = subparsers(reached)[words.pop(0)]
        assert reached is not root or words[0] == "COMMAND", f"{page.name}: nearkin {span}"
        options = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
        assert not options - set(reached._option_string_actions), f"{page.name}: nearkin {span}"


def test_commands_of_help(root: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    shown = [words for each in every_parser(root) for words in commands(each.epilog or "")]
    assert len(shown) > 20
    assert_taken(root, shown, capsys)
