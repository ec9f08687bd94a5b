"""The findings of the doctor: one line per check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kt_study.records import Record

Verdict = Literal["ok", "note", "wrong"]


class Finding(Record, frozen=True, kw_only=True):
    """One line. `do` is what to do, if anything; `node` is empty for this machine."""

    what: str
    verdict: Verdict
    found: str
    do: str = ""
    node: str = ""


def ok(what: str, found: str) -> Finding:
    return Finding(what=what, verdict="ok", found=found)


def note(what: str, found: str, do: str = "") -> Finding:
    return Finding(what=what, verdict="note", found=found, do=do)


def wrong(what: str, found: str, do: str = "", *, node: str = "") -> Finding:
    return Finding(what=what, verdict="wrong", found=found, do=do, node=node)


def as_text(findings: Sequence[Finding]) -> str:
    """One line per finding; those of a compute node are below its name."""
    width = max(len(finding.what) for finding in findings)
    lines, node = [], ""
    for finding in findings:
        if finding.node != node:
            node = finding.node
            lines.append(f"\non {node}")
        advice = f"; {finding.do}" if finding.do else ""
        lines.append(f"{finding.verdict:<6}{finding.what:<{width + 2}}{finding.found}{advice}")
    return "\n".join(lines)
