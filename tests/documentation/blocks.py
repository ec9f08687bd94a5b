"""Fenced blocks of the documentation, with the marker above each that says what a test may do with it.

<!-- run: digits -->         run it in the environment of that name; blocks of one page run in order, in one folder
<!-- write: own a/b.toml --> put its text into that file of those environment
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTED_ELSEWHERE = {
    "docs/commands.md": "tests/command_line/test_help.py",  # generated; its blocks are the examples of the help
    "docs/own-models-and-data.md": "tests/own/test_page.py",
}
"""Pages whose blocks are parsed here and run by tests of their own."""

ENVIRONMENTS = {
    "digits": "tests/documentation/test_blocks.py",
    "own": "tests/documentation/test_blocks.py",
    "empty": "tests/documentation/test_blocks.py",
    "make": "tests/documentation/test_make.py",
    "install": "tests/documentation/test_install.py",
    "imagenet": "tests/slurm/test_documentation.py",
    "slurm": "tests/slurm/test_documentation.py",
    "dev-cluster": "tests/slurm/test_documentation.py",
}
"""The test that runs the blocks of each kind of environment."""

_FENCE = re.compile(
    r"(?:^<!-- (?P<verb>run|write): (?P<rest>[^>]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block. `page` is relative to the checkout, `line` that of its fence."""

    page: str
    line: int
    language: str
    verb: str
    rest: str
    text: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README, CONTRIBUTING, CHANGELOG and every page under docs/, benchmarks/, slurm/ and sql/."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    for folder in ("docs", "benchmarks", "slurm", "sql"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return [page for page in found if "templates" not in page.parts]


@cache
def blocks() -> tuple[Block, ...]:
    """Every fenced block of every page, in order."""
    found = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            found.append(
                Block(
                    page=page.relative_to(ROOT).as_posix(),
                    line=1 + text[: match.start("language")].count("\n"),
                    language=match["language"],
                    verb=match["verb"] or "",
                    rest=match["rest"] or "",
                    text=match["text"],
                )
            )
    return tuple(found)


def commands(block: Block) -> list[str]:
    """The lines of a console block, continued ones joined."""
    text = re.sub(r"\\\n\s*", "", block.text)
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def of(page: str, environment: str) -> list[Block]:
    """The blocks of a page for one kind of environment, in order."""
    return [block for block in blocks() if block.page == page and block.rest.split(" ")[0] == environment]


def pages_for(environment: str) -> list[str]:
    """The pages with a block to be run in that kind of environment, sorted."""
    return sorted({block.page for block in blocks() if block.verb == "run" and block.rest == environment})
