"""The findings of the doctor: one line per check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kt_study.records import Record

Verdict = Literal["ok", "note", "wrong"]


class Finding(Record, frozen=True, kw_only=True):
    """One line. `do` is empty where nothing is to be done, `node` where this machine is meant."""

    what: str
    verdict: Verdict
    found: str
    do: str = ""
    node: str = ""


def as_text(findings: Sequence[Finding]) -> str:
    """One line for each finding, those of a compute node below its name."""
    width = max(len(finding.what) for finding in findings)
    lines, node = [], ""
    for finding in findings:
        if finding.node != node:
            node = finding.node
            lines.append(f"\non {node}")
        advice = f"; {finding.do}" if finding.do else ""
        lines.append(f"{finding.verdict:<6}{finding.what:<{width + 2}}{finding.found}{advice}")
    return "\n".join(lines)
