"""Every block of commands and Python in the documentation says where a test runs it; those that need little run here."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import msgspec
import pytest

from kt_study.study import StudyFile
from tests.command_line.parsing import parse
from tests.documentation.blocks import ENVIRONMENTS, ROOT, TESTED_ELSEWHERE, Block, blocks, commands, of, pages_for
from tests.documentation.environment import run

RUNNABLE = ("console", "bash", "python")
OTHER_PROGRAMS = (
    "make ", "source ", "pip install ", "export ", "cd ", "mkdir ", "eval ", "sinfo ", "slurm/dev-cluster ",
)  # fmt: skip


def _marked(verb: str) -> list[Block]:
    return [block for block in blocks() if block.verb == verb and block.page not in TESTED_ELSEWHERE]


def test_every_runnable_block_says_how_it_is_tested() -> None:
    for block in blocks():
        if block.language in RUNNABLE and block.page not in TESTED_ELSEWHERE:
            assert block.verb, f"{block.where}: no marker above a {block.language} block"
        if not block.language and block.page not in TESTED_ELSEWHERE:
            assert not re.search(r"^(\$ )?kt-study ", block.text, re.MULTILINE), f"{block.where}: call it console"


def test_pages_tested_elsewhere_name_a_test_that_is_there() -> None:
    for page, where in TESTED_ELSEWHERE.items():
        assert (ROOT / page).exists()
        assert Path(page).stem in (ROOT / where).read_text() or "examples(" in (ROOT / where).read_text(), where


def test_environment_are_those_of_a_test() -> None:
    assert {block.rest.split(" ")[0] for verb in ("run", "write") for block in _marked(verb)} == set(ENVIRONMENTS)
    for name, where in ENVIRONMENTS.items():
        assert f'"{name}"' in (ROOT / where).read_text(), f"{where} runs no blocks for {name!r}"


@pytest.mark.parametrize("block", [b for b in blocks() if b.language in ("console", "bash")], ids=lambda b: b.where)
def test_every_line_of_commands_is_one(block: Block) -> None:
    assert subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, check=False).returncode == 0
    for line in commands(block):
        for command in line.split(" && "):
            if command.startswith("kt-study "):
                parse(re.sub(r"\$\([^)]*\)", "substituted", command))
            elif command.startswith("make "):
                target = command.split()[1]
                assert (
                    subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False).returncode == 0
                )
            elif block.page not in TESTED_ELSEWHERE:
                assert command.startswith(OTHER_PROGRAMS), f"{block.where}: {command}"


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "toml"], ids=lambda b: b.where)
def test_toml_is_a_study_file_or_a_part_of_one(block: Block) -> None:
    told = tomllib.loads(block.text)
    base = {"study": {"name": "x"}, "dataset": {"kind": "digits"}}
    merged = {**base, **told, "dataset": {**base["dataset"], **told.get("dataset", {})}}
    msgspec.convert(merged, StudyFile)


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "python"], ids=lambda b: b.where)
def test_python_is_python(block: Block) -> None:
    ast.parse(block.text)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of the README, made smaller, after its commands; other pages may look at it."""
    folder = tmp_path_factory.mktemp("digits")
    for block in of("README.md", "digits"):
        run(block, folder)
    return folder


def test_the_readme_from_init_to_a_notebook(digits: Path) -> None:
    assert (digits / "report" / "index.html").stat().st_size > 100_000
    assert list(digits.glob("results/transfers/**/*.parquet"))


INSTEAD = {"docs/recommend.md": {"resnet18": "digits/resnet_b", "golden_retriever,tabby": "3,8"}}
"""What the examples of a page call otherwise than the digits study does."""

OTHER_PAGES = [page for page in pages_for("digits") if page != "README.md"]


@pytest.mark.parametrize("page", OTHER_PAGES)
def test_blocks_that_look_at_a_finished_study(digits: Path, page: str) -> None:
    for block in of(page, "digits"):
        run(block, digits, substitutions=INSTEAD.get(page))


@pytest.mark.parametrize("block", [b for b in blocks() if b.rest == "empty"], ids=lambda b: b.where)
def test_blocks_that_need_nothing(block: Block, tmp_path: Path) -> None:
    run(block, tmp_path)


def test_the_first_hour_as_a_new_user_walks_it(tmp_path: Path) -> None:
    said = [run(block, tmp_path) for block in of("docs/first-hour.md", "own")]
    assert len(said) == 6
    assert "small-convnext" in said[2]  # the query's rows
    assert (tmp_path / "first-hour" / "report" / "index.html").exists()
    assert "small-convnext" in said[3]  # the one teacher there is
    card = (tmp_path / "first-hour" / "taught-resnet" / "README.md").read_text()
    assert "small-resnet" in card
    assert "small-convnext" in card
