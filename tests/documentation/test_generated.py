"""Generated pages are what their generators write now; and what hand-written pages quote is there."""

from __future__ import annotations

import ast
import importlib
import json
import re
from functools import cache

import pytest

from docs.generate.performance_page import RESULTS, newest
from docs.generate.performance_page import page as performance
from kt_study.objectives import OBJECTIVES
from kt_study.schema import RESULT_TABLES
from orchestrator.cli import COMMANDS
from tests.documentation.blocks import ROOT
from worker.kinds import KINDS

GENERATORS = {
    "docs/commands.md": ("docs.generate.commands_page", "page"),
    "docs/reproducing-the-paper.md": ("docs.generate.paper_page", "page"),
    "docs/performance.md": ("docs.generate.performance_page", "page"),
    "docs/study-file.md": ("docs.generate.study_page", "page"),
    "docs/schema.md": ("docs.generate.schema_page", "schema_page"),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    module, function = GENERATORS[name]
    assert (ROOT / name).read_text() == getattr(importlib.import_module(module), function)(), "run `make docs`"


def test_make_docs_writes_every_one_of_them() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ndocs:")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"-m ([\w.]+)", recipe)) == sorted(module for module, _ in GENERATORS.values())


def test_performance_tells_every_ratio_of_the_newest_file_of_each_benchmark() -> None:
    names = {json.loads(path.read_text())["benchmark"] for path in RESULTS.glob("*.json")}
    assert {result["benchmark"] for result in newest()} == names
    for name in names:
        assert f"\n## {name}\n" in performance()
    pairs = next(result for result in newest() if result["benchmark"] == "pairs")
    slow = pairs["by_models"]["1700"]["ratio_to_bits"]["single_pairs"]
    assert f"| 1700, ratio to bits, single pairs | {slow:,.0f} |" in performance()


def test_every_command_has_a_section() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    for name in COMMANDS:
        assert re.search(rf"^## kt-study {name}\b", text, re.MULTILINE)


@cache
def _messages() -> tuple[str, ...]:
    """Every text constant of the program, the parts of an f-string joined by `...`."""
    found = []
    for package in ("kt_study", "worker", "orchestrator"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "..." for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return tuple(re.sub(r"(\.\.\.)+", "...", message) for message in found)


def _quoted() -> list[str]:
    text = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## It seems")[0]
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


@pytest.mark.parametrize("message", _quoted())
def test_troubleshooting_quotes_messages_that_the_program_says(message: str) -> None:
    wanted = message.strip(". ")
    assert any(wanted in said for said in _messages()), message


def test_troubleshooting_quotes_many() -> None:
    assert len(_quoted()) > 20


def test_concepts_knows_every_objective_and_kind_and_names_columns_that_exist() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text()
    for objective in OBJECTIVES:
        assert f"`{objective}`" in text, objective
    for kind in KINDS:
        assert f"`{kind}`" in text, kind
    columns = {column.name for table in RESULT_TABLES.values() for column in table.columns}
    told = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text.partition("| objective |")[0], re.MULTILINE)
    names = {name for cell in told for name in re.findall(r"\w+", cell)}
    assert len(names) > 8
    assert names <= columns, names - columns
