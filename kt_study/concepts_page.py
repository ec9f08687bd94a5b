"""The tables of docs/concepts.md, written from the facts: `python -m kt_study.concepts_page`. The rest is written by hand."""

from __future__ import annotations

import re
from pathlib import Path

from kt_study.files import write_text
from kt_study.job_kinds import JOB_KINDS
from kt_study.objectives import OBJECTIVES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "concepts.md"


def page() -> str:
    """The page with its tables as they are now, Markdown."""
    tables = {
        "objectives": _table(
            ("objective", "in figures", "what the student is trained on", "source"),
            [(f"`{facts.name}`", facts.label, facts.meaning, facts.source) for facts in OBJECTIVES.values()],
        ),
        "job kinds": _table(
            ("kind", "what it makes"), [(f"`{kind.name}`", kind.meaning) for kind in JOB_KINDS.values()]
        ),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- generated: end -->\n"
        text = re.sub(
            f"(?s)({re.escape(begin)}).*?({re.escape(end)})", lambda found, new=table: found[1] + new + found[2], text
        )
    return text


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    write_text(PAGE, page())
