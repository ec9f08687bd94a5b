"""A recommendation as text."""

from __future__ import annotations

from typing import Any

from kt_study.printable import printable
from orchestrator.results.query import QueryResult, render
from orchestrator.results.recommend.record import RankedTeacher, Recommendation

Columns = list[tuple[str, list[Any]]]
"""Headings with their cells."""


def as_text(recommendation: Recommendation) -> str:
    """Heading, error of the forecast, the table, notes."""
    shown, forecast = len(recommendation.teachers), recommendation.forecast
    heading = printable(
        f"study {recommendation.study}: {shown} of {recommendation.candidates} teachers for {recommendation.student} "
        f"on {recommendation.dataset}, objective {recommendation.objective}"
    )
    if forecast is not None:
        heading += (
            f"\npredicted from {forecast.transfers} transfers into {forecast.students} students: error "
            f"{forecast.error:.2f} points on {forecast.held_out}s left out ({forecast.folds} folds); predicting the mean: "
            f"{forecast.error_of_mean:.2f}"
        )
    lines = [f"note: {printable(note)}" for note in recommendation.notes]
    if recommendation.classes:
        lines.insert(
            0,
            "classes (samples): +: teacher right, student wrong; -: the reverse; "
            "expected: how many of the + a transfer brings",
        )
    parts = [heading, _table(recommendation) if shown else "no teacher is left", "\n".join(lines)]
    return "\n\n".join(filter(None, parts))


def _table(recommendation: Recommendation) -> str:
    """The table, without empty columns."""
    columns = [
        (name, cells) for name, cells in _columns(recommendation) if any(cell not in (None, "") for cell in cells)
    ]
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    return render(QueryResult(columns=tuple(name for name, _ in columns), rows=rows), "table").decode().rstrip("\n")


def _columns(recommendation: Recommendation) -> Columns:
    lines = recommendation.teachers
    columns: Columns = [
        ("", list(range(1, len(lines) + 1))),
        ("teacher", [line.teacher for line in lines]),
        ("family", [line.family for line in lines]),
        ("M params", [line.params for line in lines]),
        ("delta_acc", [f"{line.delta_acc:+.2f}" for line in lines]),
        ("rho_pos %", [line.rho_pos for line in lines]),
    ]
    for at, requested in enumerate(recommendation.classes):
        heading = requested.name if requested.n is None else f"{requested.name} ({requested.n})"
        columns.append((heading, [f"+{line.classes[at].positive} -{line.classes[at].negative}" for line in lines]))
    return [
        *columns,
        ("expected", [line.class_gain for line in lines]),
        ("delta_transf", [_delta(line) for line in lines]),
        ("", [line.basis for line in lines]),
        ("GPU-h", [line.gpu_hours for line in lines]),
    ]


def _delta(line: RankedTeacher) -> str:
    if line.delta is None:
        return ""
    if line.delta_low is None or line.delta_high is None:
        return f"{line.delta:+.2f}"
    return f"{line.delta:+.2f} [{line.delta_low:+.2f}, {line.delta_high:+.2f}]"
