"""A recommendation as text."""

from __future__ import annotations

from typing import Any

from kt_study.printable import printable
from orchestrator.results.query import Answer, render
from orchestrator.results.recommend.record import Forecast, Recommendation, Teacher

Columns = list[tuple[str, list[Any]]]
"""Headings with their cells."""


def as_text(advice: Recommendation) -> str:
    """Heading, how deltas were predicted, the table, notes."""
    shown = len(advice.teachers)
    heading = (
        f"study {advice.study}: {shown} of {advice.candidates} teachers for {advice.student} "
        f"on {advice.dataset}, objective {advice.objective}"
    )
    parts = [
        "\n".join([printable(heading), *_forecast_lines(advice.forecast)]),
        _table(advice) if shown else "no teacher is left",
        "\n".join([*_legend(advice), *(f"note: {printable(note)}" for note in advice.notes)]),
    ]
    return "\n\n".join(filter(None, parts))


def _forecast_lines(forecast: Forecast | None) -> list[str]:
    if forecast is None:
        return []
    return [
        f"predicted from {forecast.transfers} transfers into {forecast.students} students: error {forecast.error:.2f} "
        f"points on {forecast.held_out}s left out ({forecast.folds} folds); predicting the mean: "
        f"{forecast.error_of_mean:.2f}"
    ]


def _table(advice: Recommendation) -> str:
    """Columns of which nothing is known are left out."""
    columns = [(name, cells) for name, cells in _columns(advice) if any(cell not in (None, "") for cell in cells)]
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    return render(Answer(columns=tuple(name for name, _ in columns), rows=rows), "table").decode().rstrip("\n")


def _columns(advice: Recommendation) -> Columns:
    lines = advice.teachers
    columns: Columns = [
        ("", list(range(1, len(lines) + 1))),
        ("teacher", [line.teacher for line in lines]),
        ("family", [line.family for line in lines]),
        ("M params", [line.params for line in lines]),
        ("delta_acc", [f"{line.delta_acc:+.2f}" for line in lines]),
        ("rho_pos %", [line.rho_pos for line in lines]),
    ]
    for at, asked in enumerate(advice.classes):
        heading = asked.name if asked.n is None else f"{asked.name} ({asked.n})"
        columns.append((heading, [f"+{line.classes[at].positive} -{line.classes[at].negative}" for line in lines]))
    return [
        *columns,
        ("expected", [line.class_gain for line in lines]),
        ("delta_transf", [_delta(line) for line in lines]),
        ("", [line.basis for line in lines]),
        ("GPU-h", [line.gpu_hours for line in lines]),
    ]


def _delta(line: Teacher) -> str:
    if line.delta is None:
        return ""
    if line.delta_low is None or line.delta_high is None:
        return f"{line.delta:+.2f}"
    return f"{line.delta:+.2f} [{line.delta_low:+.2f}, {line.delta_high:+.2f}]"


def _legend(advice: Recommendation) -> list[str]:
    if not advice.classes:
        return []
    return [
        "classes (samples): +, the teacher is right and the student wrong; -, the other way; "
        "expected: how many of the + a transfer brings"
    ]
