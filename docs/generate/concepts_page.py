"""The tables of docs/concepts.md: `python -m docs.generate.concepts_page`. The rest of the page is written by hand."""

from __future__ import annotations

from pathlib import Path

from kt_study.files import write_text
from kt_study.job_kinds import JOB_KINDS
from kt_study.objectives import OBJECTIVES

PAGE = Path(__file__).resolve().parents[1] / "concepts.md"


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
        before, begin, rest = text.partition(f"<!-- generated: {name} -->\n")
        _, end, after = rest.partition("<!-- generated: end -->\n")
        text = f"{before}{begin}{table}{end}{after}"
    return text


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    write_text(PAGE, page())
