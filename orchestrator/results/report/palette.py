"""Colours that colour-blind readers can distinguish, after Okabe and Ito (2008), on light and dark backgrounds."""

from __future__ import annotations

from collections.abc import Sequence

from kt_study.objectives import OBJECTIVES
from orchestrator.results.report.plot import FAMILIES, PUBLISHED

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BROWN, OLIVE, SLATE, VIOLET, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#B0578D", "#C98500", "#3C9BD0", "#7A4A1E", "#7F8C00", "#66717C", "#5B3FB5", "#222222",
)  # fmt: skip

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

LIGHT = {
    "c1": BLUE, "c2": VERMILION, "c3": GREEN, "c4": PURPLE, "c5": ORANGE, "c6": SKY, "c7": BROWN, "c8": OLIVE,
    "c9": SLATE, "c10": VIOLET,
    "paper": BLACK, "ink": BLACK, "ink-2": "#59636b", "line": "#dfe3e6", "box": "#e6ebef", "grey": "#999999",
}  # fmt: skip
DARK = {
    "c1": "#5AAEE6", "c2": "#F08A4B", "c3": "#3CC39A", "c4": "#DD8FBF", "c5": "#E9B44C", "c6": "#8CCBF2",
    "c7": "#B98A5E", "c8": "#C3CE3C", "c9": "#A3AEB8", "c10": "#A58CF5",
    "paper": "#F2F2F2", "ink": "#E8E8E8", "ink-2": "#a5afb8", "line": "#343a40", "box": "#313940", "grey": "#777777",
}  # fmt: skip
"""Variables of the page's style sheet, on both backgrounds; files have the light ones."""

_FIXED = {
    FAMILIES["cnn"]: "c1",
    FAMILIES["transformer"]: "c2",
    FAMILIES["mlp"]: "c3",
    FAMILIES["hybrid"]: "c4",
    **{facts.label: facts.colour for facts in OBJECTIVES.values() if facts.colour},
    PUBLISHED: "paper",
}

CYCLE = ("c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9", "c10")

MARKED = frozenset(CYCLE[6:])
"""Colours that also have triangles and dashes, since not every reader can distinguish ten colours."""


def colours_of(names: Sequence[str]) -> list[str]:
    """A palette name for each value; a family or an objective has the same one everywhere."""
    free = [colour for colour in CYCLE if colour not in {_FIXED.get(name) for name in names}] or list(CYCLE)
    others = [name for name in names if name not in _FIXED]
    return [_FIXED.get(name) or free[others.index(name) % len(free)] for name in names]
