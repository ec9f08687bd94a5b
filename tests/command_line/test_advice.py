"""Commands that messages of the program tell the user to run: each exists, with its options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.command_line.parsing import all_commands, parse

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {path.removeprefix("kt-study").strip(): command for path, command in all_commands()}


def messages() -> Iterator[str]:
    """Every text constant of the program that is no docstring; N stands for the values in an f-string."""
    for package in ("kt_study", "worker", "orchestrator"):
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    skipped.update(map(id, node.values))
                    yield "".join(str(v.value) if isinstance(v, ast.Constant) else "1" for v in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
                    yield node.value


def quoted() -> list[str]:
    """Commands in backticks."""
    return sorted({line for message in messages() for line in re.findall(r"`(kt-study [^`]+)`", message)})


def unquoted() -> list[str]:
    """Commands in the text, with the options that follow."""
    names = "|".join(sorted(filter(None, COMMANDS), key=len, reverse=True))
    pattern = re.compile(rf"(?<!`)kt-study (?:{names})\b(?: --[a-z-]+(?: [A-Z0-9]+\b)?)*")
    return sorted({line for message in messages() for line in pattern.findall(message)})


@pytest.mark.parametrize("line", quoted())
def test_a_command_in_backticks_can_be_typed(line: str) -> None:
    parse(re.sub(r"\bN\b", "1", line))


@pytest.mark.parametrize("line", unquoted())
def test_a_command_in_the_text_exists_with_its_options(line: str) -> None:
    words = line.split()[1:]
    name = " ".join(word for word in words if word.islower() and not word.startswith("--"))
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert not isinstance(COMMANDS[name], click.Group)
    assert {word for word in words if word.startswith("--")} <= options


def test_there_are_many() -> None:
    assert len(quoted()) > 15 and len(unquoted()) > 15
