"""Figures as files, by matplotlib: PNG to paste, SVG to print. The same rows give the same bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.files import written_aside
from orchestrator.results.report.palette import LIGHT, MARKED, colours_of
from orchestrator.results.report.plot import PUBLISHED, Drawing, Layer, Panel, colour_names, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDEST = 3  # panels in a row
LETTERS = 60  # of a legend in a row, at its size over the axes of one panel

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "kt-study",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def write_files(drawing: Drawing, title: str, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg. Raises DiskError."""
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
        figure = _draw(drawing, title)
        paths = []
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
            path = stem.with_name(stem.name + suffix)
            with written_aside(path) as scratch:
                figure.savefig(scratch, format=suffix[1:], dpi=160, metadata=metadata)
            paths.append(path)
    return paths


def _draw(drawing: Drawing, title: str) -> Figure:
    from matplotlib.figure import Figure

    wide, high = min(len(drawing.panels), WIDEST), math.ceil(len(drawing.panels) / WIDEST)
    figure = Figure(figsize=(max(5.2, 3.6 * wide), 3.8 * high), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    places = figure.subplots(high, wide, squeeze=False).ravel()
    for axes, panel in zip(places, drawing.panels, strict=False):
        _draw_panel(axes, panel)
    for axes in places[len(drawing.panels) :]:
        axes.remove()
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    names = colour_names(panel)
    colours = dict(zip(names, (LIGHT[name] for name in colours_of(names)), strict=True))
    places = {name: at for at, name in enumerate(panel.x_order)}
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    if panel.x_kind == "log":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    if panel.x_kind == "category":
        turned = 30 if sum(map(len, panel.x_order)) > 36 else 0
        axes.set_xticks(range(len(places)), list(places), rotation=turned, ha="right" if turned else "center")
        axes.set_xlim(-0.6, len(places) - 0.4)
    for layer in panel.layers:
        _MARKS[layer.mark](axes, layer, shown(layer), colours, places)
    _legend(axes, panel.title)


def _legend(axes: Axes, title: str) -> None:
    """Above the axes, where it hides no point, under the title; as many names side by side as fit."""
    unique = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if not unique:
        axes.set_title(title)
        return
    side_by_side = max(1, LETTERS // (max(map(len, unique)) + 5))
    axes.legend(
        unique.values(), unique.keys(), loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0.2,
        ncols=side_by_side, title=title or None, title_fontsize=9, alignment="left",
    )  # fmt: skip


Colours = dict[str, str]
_MARKED = {LIGHT[name] for name in MARKED}
Places = dict[str, int]


def _xs(rows: pd.DataFrame, layer: Layer, places: Places) -> Any:
    return (rows[layer.x].astype(str).map(places) if places else rows[layer.x]).astype(float)


def _groups(rows: pd.DataFrame, layer: Layer, colours: Colours) -> list[tuple[str, str, pd.DataFrame]]:
    """(label, colour, rows) for each colour of the layer."""
    if not layer.colour:
        name = "paper" if layer.fixed == PUBLISHED else ""
        return [(name, LIGHT[layer.fixed or "c1"], rows)]
    named = rows[layer.colour].astype(str)
    return [(name, colour, rows[named == name]) for name, colour in colours.items() if (named == name).any()]


def _points(axes: Axes, layer: Layer, rows: pd.DataFrame, colours: Colours, places: Places) -> None:
    for label, colour, group in _groups(rows, layer, colours):
        marker = "D" if layer.fixed == PUBLISHED else "^" if colour in _MARKED else "o"
        aside = 0.5 * group[layer.offset] if layer.offset else 0.0
        axes.scatter(
            _xs(group, layer, places) + aside,
            group[layer.y],
            s=layer.size * 0.6,
            c=colour,
            marker=marker,
            label=label or None,
            alpha=0.45 if len(rows) > 60 else 0.85,
            linewidths=0,
            zorder=4 if layer.fixed else 3,
        )


def _line(axes: Axes, layer: Layer, rows: pd.DataFrame, colours: Colours, places: Places) -> None:
    for label, colour, group in _groups(rows, layer, colours):
        xs = _xs(group, layer, places)
        style = "--" if colour in _MARKED else "-"
        axes.plot(xs, group[layer.y], color=colour, linewidth=1.8, linestyle=style, label=label or None, zorder=5,
                  marker="o" if len(group) < 30 else None, markersize=3.5)  # fmt: skip
        if layer.low:
            low, high = (group[name].astype(float) for name in (layer.low, layer.high))
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)


def _box(axes: Axes, layer: Layer, rows: pd.DataFrame, _colours: Colours, places: Places) -> None:
    for name, at in places.items():
        values = rows.loc[rows[layer.x].astype(str) == name, layer.y].dropna().astype(float)
        if len(values):
            axes.boxplot(values, positions=[at], widths=0.55, showfliers=False, manage_ticks=False, patch_artist=True,
                         boxprops={"facecolor": "#e9eef2", "edgecolor": "#556"},
                         medianprops={"color": "#111", "linewidth": 1.6})  # fmt: skip


def _rule(axes: Axes, layer: Layer, rows: pd.DataFrame, _colours: Colours, _places: Places) -> None:
    style: dict[str, Any] = {"color": "#444444", "linestyle": (0, (4, 3)), "linewidth": 0.9, "zorder": 1}
    for row in rows.to_dict("records"):
        text = str(row[layer.label]) if layer.label else ""
        if layer.y:
            axes.axhline(row[layer.y], **style)
            axes.annotate(
                text, (1, row[layer.y]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7
            )
        else:
            axes.axvline(row[layer.x], **style)
            axes.annotate(text, (row[layer.x], 1), xycoords=("data", "axes fraction"), ha="left", va="top", fontsize=7)


_MARKS = {"points": _points, "line": _line, "box": _box, "rule": _rule}
