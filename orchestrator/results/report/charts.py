"""Figures for the page, as Vega-Lite specifications with their rows inside.

Every filter of the page is a Vega parameter (`family`, `objective`; "" while it is not set), and every layer keeps the
rows that it lets through, so that boxes and counts are of the rows shown.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from orchestrator.results.report.palette import MARKED, colours_of
from orchestrator.results.report.plot import FILTERS, PUBLISHED, Drawing, Layer, Panel, colour_names

if TYPE_CHECKING:
    import pandas as pd

Spec = dict[str, Any]

HEIGHT = 300
ASIDE = 40  # pixels over which equal points lie beside each other


def specifications(drawing: Drawing) -> list[Spec]:
    """A Vega-Lite specification for each panel; as wide as its place on the page.

    `usermeta.ours` lists the layers with rows of the study that the filters choose from: without any of these left, the
    page shows no axes.
    """
    return [_panel(panel) for panel in drawing.panels]


def _panel(panel: Panel) -> Spec:
    names = colour_names(panel)
    scale = {"domain": names, "range": [f"var(--{name})" for name in colours_of(names)]}
    made = [(layer, part) for layer in panel.layers for part in _MARKS[layer.mark](layer, panel, scale)]
    ours = [at for at, (layer, part) in enumerate(made) if part["transform"] and layer.fixed != PUBLISHED]
    return {
        "title": panel.title,
        "width": "container",
        "height": HEIGHT,
        "autosize": {"type": "fit", "contains": "padding", "resize": True},
        "params": [{"name": name, "value": ""} for name in FILTERS],
        "layer": [part for _, part in made],
        "usermeta": {"ours": ours},
    }


def _part(layer: Layer, mark: Spec, encoding: Spec) -> Spec:
    """One layer of a specification: rows, filters, mark, encoding."""
    return {
        "data": {"values": _records(layer)},
        "transform": [{"filter": test} for test in _filters(layer)],
        "mark": mark,
        "encoding": encoding,
    }


def _filters(layer: Layer) -> list[str]:
    tests = []
    for name in FILTERS:
        if name in layer.defaults:
            tests.append(f"datum.{name} == ({name} || {json.dumps(layer.defaults[name])})")
        elif name in layer.data:
            tests.append(f"!{name} || datum.{name} == {name}")
    return tests


def _records(layer: Layer) -> list[Spec]:
    """The rows, with the columns that the layer uses and no more digits than can be seen."""
    used = {layer.x, layer.y, layer.colour, layer.low, layer.high, layer.label, layer.offset, *layer.tooltip, *FILTERS}
    rows = layer.data[[name for name in layer.data if name in used]].to_dict("records")
    return [{str(name): _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    if value is None or value != value:
        return None
    if isinstance(value, str):
        return value
    number = float(value)
    return None if math.isinf(number) else int(number) if number.is_integer() else float(f"{number:.6g}")


def _axes(layer: Layer, panel: Panel) -> Spec:
    x: Spec = {"field": layer.x, "title": panel.x_label, "type": "quantitative", "scale": {"zero": False}}
    if panel.x_kind == "log":
        x["scale"] = {"type": "log", "nice": False}
    if panel.x_kind == "category":
        order = list(panel.x_order)
        x |= {"type": "nominal", "sort": order, "scale": {"domain": order}, "axis": _turned(order)}
    y = {"field": layer.y, "title": panel.y_label, "type": "quantitative", "scale": {"zero": False}}
    return {"x": x, "y": y}


def _columns(labels: list[str]) -> Spec:
    """As many legend entries side by side as fit, at some 8 pixels a letter."""
    return {"expr": f"max(1, floor(width / {8 * max(map(len, labels), default=1) + 30}))"}


def _turned(labels: list[str]) -> Spec:
    """Labels level where they fit side by side, at some 8 pixels a letter, else aslant."""
    room = 8 * max(map(len, labels), default=0) * len(labels)
    return {
        "labelAngle": {"expr": f"width < {room} ? -35 : 0"},
        "labelAlign": {"expr": f"width < {room} ? 'right' : 'center'"},
        "labelBaseline": "top",
        "labelPadding": 6,
    }


def _colour(layer: Layer, scale: Spec) -> Spec:
    if not layer.colour:
        return {"value": f"var(--{layer.fixed or 'c1'})"}
    return _named(layer, scale)


def _named(layer: Layer, scale: Spec) -> Spec:
    """A channel by the layer's names, with the legend that all channels of the panel share."""
    legend = {"title": None, "orient": "top", "columns": _columns(scale["domain"])}
    return {"field": layer.colour, "type": "nominal", "scale": scale, "legend": legend}


def _besides(layer: Layer, scale: Spec, channel: str, plain: object, marked: object) -> Spec:
    """A second channel beside the colour, where the panel has a colour that needs one."""
    names = [colour.removeprefix("var(--").removesuffix(")") for colour in scale["range"]]
    if not layer.colour or MARKED.isdisjoint(names):
        return {}
    return {channel: _named(layer, {**scale, "range": [marked if name in MARKED else plain for name in names]})}


def _tooltip(layer: Layer) -> list[Spec]:
    return [
        {"field": name, "title": name.replace("_", " "), **({"format": ".2f"} if _numeric(layer.data[name]) else {})}
        for name in layer.tooltip
    ]


def _numeric(column: pd.Series[Any]) -> bool:
    return column.dtype.kind in "fi" if hasattr(column.dtype, "kind") else False


def _points(layer: Layer, panel: Panel, scale: Spec) -> list[Spec]:
    ours = layer.fixed != PUBLISHED
    many = len(layer.data) > 60
    mark = {
        "type": "point",
        "filled": ours,
        "shape": "circle" if ours else "diamond",
        "size": layer.size if ours else 70,
    }
    mark |= {"opacity": 0.5 if ours and many else 0.95, "strokeWidth": 2 if not ours else 0}
    if layer.offset:
        mark["xOffset"] = {"expr": f"{ASIDE} * datum.{layer.offset}"}
    encoding = {**_axes(layer, panel), "color": _colour(layer, scale), "tooltip": _tooltip(layer)}
    encoding |= _besides(layer, scale, "shape", "circle", "triangle-up")
    return [_part(layer, mark, encoding)]


def _line(layer: Layer, panel: Panel, scale: Spec) -> list[Spec]:
    axes, colour = _axes(layer, panel), _colour(layer, scale)
    mark: Spec = {"type": "line", "strokeWidth": 2, "clip": True}
    if len(layer.data) < 400:
        mark["point"] = {"size": 26}
    dashes = _besides(layer, scale, "strokeDash", [1, 0], [5, 3])
    parts = [_part(layer, mark, {**axes, "color": colour, "tooltip": _tooltip(layer), **dashes})]
    if layer.low:
        low = {**axes["y"], "field": layer.low}
        band = {"x": axes["x"], "y": low, "y2": {"field": layer.high}, "color": colour}
        parts.insert(0, _part(layer, {"type": "area", "opacity": 0.14}, band))
    return parts


def _box(layer: Layer, panel: Panel, scale: Spec) -> list[Spec]:
    del scale
    mark = {
        "type": "boxplot",
        "extent": 1.5,
        "size": 26,
        "outliers": False,
        "box": {"fill": "var(--box)", "stroke": "var(--ink-2)"},
        "median": {"stroke": "var(--ink)", "strokeWidth": 2.5},
        "rule": {"stroke": "var(--ink-2)"},
    }
    return [_part(layer, mark, _axes(layer, panel))]


def _rule(layer: Layer, panel: Panel, scale: Spec) -> list[Spec]:
    del panel, scale
    side = "y" if layer.y else "x"
    place = {"field": layer.y or layer.x, "type": "quantitative"}
    text: Spec = {"type": "text", "fontSize": 11, "fill": "var(--ink-2)"}
    if side == "y":
        text |= {"align": "right", "baseline": "bottom", "dy": -3, "x": "width"}
    else:
        text |= {"align": "left", "baseline": "top", "dx": 4, "y": 0}
    rule = {"type": "rule", "strokeDash": [5, 4], "stroke": "var(--ink-2)", "opacity": 0.8}
    parts = [_part(layer, rule, {side: place})]
    if layer.label:
        parts.append(_part(layer, text, {side: place, "text": {"field": layer.label}}))
    return parts


_MARKS = {"points": _points, "line": _line, "box": _box, "rule": _rule}
