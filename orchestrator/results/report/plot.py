"""A small grammar of plots. A figure is described once; `charts` makes Vega-Lite of it, for the page and for the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from kt_study import objectives

if TYPE_CHECKING:
    import pandas as pd

OBJECTIVES = {name: facts.label for name, facts in objectives.OBJECTIVES.items()}
"""Objective -> its label, in the order of the figures."""

FAMILIES = {"cnn": "CNN", "transformer": "transformer", "mlp": "MLP", "hybrid": "hybrid"}

PUBLISHED = "paper"
"""Colour name of the published values, and their name in a legend."""

FILTERS = ("family", "objective")
"""Columns by which the page can filter; `family` is the student's."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One kind of mark over one frame.

    `points`: one mark per row. `line`: rows of one colour joined, with a band where `low` and `high` are columns. `box`:
    the quartiles and 1.5 times their distance. `rule`: a dashed line at the value of `y` (or of `x` if `y` is empty),
    named by the column `label`.
    """

    mark: Literal["points", "line", "box", "rule"]
    data: pd.DataFrame
    x: str = ""
    y: str = ""
    colour: str = ""  # column whose values have different colours
    fixed: str = ""  # a palette name, where all marks have one colour
    low: str = ""
    high: str = ""
    label: str = ""
    tooltip: tuple[str, ...] = ()
    offset: str = ""  # column of shifts sideways, -0.5 to 0.5 of a category's width, that keep equal points apart
    size: float = 22.0  # of points, in square pixels
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Column of a filter -> the value shown while the filter is not set. Without one, all rows are shown."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    x_label: str
    y_label: str
    layers: tuple[Layer, ...]
    title: str = ""
    x_kind: Literal["number", "log", "category"] = "number"
    x_order: tuple[str, ...] = ()  # categories from left to right


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of one study: its panels and the texts beside them."""

    panels: tuple[Panel, ...]
    sample: str  # what was counted: pairs, models, validation samples
    notes: tuple[str, ...] = ()  # cautions for readers
    published: str = ""  # what the paper reports, as text


def horizontal(y: float, label: str = "") -> Layer:
    """A dashed line across the panel."""
    import pandas as pd

    return Layer(mark="rule", data=pd.DataFrame({"y": [y], "label": [label]}), y="y", label="label" if label else "")


def published_points(
    rows: pd.DataFrame, x: str, y: str, *tooltip: str, defaults: Mapping[str, str] = MappingProxyType({})
) -> tuple[Layer, ...]:
    """The paper's values as diamonds; no layer without rows."""
    if rows.empty:
        return ()
    return (Layer(mark="points", data=rows, x=x, y=y, fixed=PUBLISHED, tooltip=tooltip, defaults=defaults),)


def colour_names(panel: Panel) -> list[str]:
    """Values with a colour in the panel: families and objectives in their fixed order, others as they come."""
    seen: dict[str, None] = {}
    for layer in panel.layers:
        if layer.colour:
            seen.update(dict.fromkeys(layer.data[layer.colour].dropna().astype(str)))
    known = [name for name in (*FAMILIES.values(), *OBJECTIVES.values()) if name in seen]
    paper = [PUBLISHED] if any(layer.fixed == PUBLISHED and len(layer.data) for layer in panel.layers) else []
    return known + [name for name in seen if name not in known] + paper
