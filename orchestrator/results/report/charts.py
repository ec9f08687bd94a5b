"""Figures as Vega-Lite specifications with their rows inside, the same for the page and the files.

Every filter of the page is a Vega parameter (`family`, `objective`; "" while it is not set). Every layer filters its rows,
so that boxes and counts are of the rows shown. `room` is the width of a panel in pixels. On the page it is approximate, since
the exact width depends on the layout, and the layout on `room`. Colours are variables of the page's style sheet, such as
`var(--c1)`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from orchestrator.results.report.palette import FONT, LIGHT, MARKED, colours_of
from orchestrator.results.report.plot import FILTERS, PUBLISHED, Layer, Panel, Plot, colour_names

Spec = dict[str, Any]

HEIGHT = 300
COLUMNS = 3  # panels beside each other in a file
SPREAD = 40  # pixels over which equal points are spread
AXIS = 70  # pixels of a panel's width for an axis with its labels
PADDING = 10  # pixels between the outermost marks and the frame, half the size of the largest mark
CHARACTER = 8  # pixels, about the width of a character of a label

CONFIG: Spec = {
    "background": None,
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "domainColor": "var(--ink-2)", "tickColor": "var(--ink-2)", "gridColor": "var(--line)",
        "labelColor": "var(--ink-2)", "titleColor": "var(--ink)", "titleFontWeight": "normal",
        "labelFontSize": 12, "titleFontSize": 13, "titlePadding": 8, "labelLimit": 140,
    },
    "axisX": {"grid": False, "tickCount": 6},
    "axisY": {"domain": False, "ticks": False, "tickCount": 6, "minExtent": 34},  # longer labels do not move the title
    "legend": {"labelColor": "var(--ink)", "labelFontSize": 12.5, "symbolOpacity": 1, "symbolSize": 90,
               "labelLimit": 260},
    "title": {"color": "var(--ink)", "anchor": "start", "fontSize": 13, "fontWeight": 600, "offset": 10},
}  # fmt: skip


def for_page(plot: Plot) -> list[Spec]:
    """A specification for each panel, as wide as its element on the page.

    `usermeta.ours` lists the layers with rows of the study to which the filters apply. If the filters leave none of these
    rows, the page shows no axes.
    """
    return [
        {
            **_panel(panel),
            "width": "container",
            "autosize": {"type": "fit", "contains": "padding", "resize": True},
            "params": _parameters({"expr": f"width ? containerSize()[0] - {AXIS} : 0"}),
            "config": CONFIG,
        }
        for panel in plot.panels
    ]


def for_files(plot: Plot, title: str) -> str:
    """The panels beside each other under a title, on a light background, as JSON."""
    room = 480 if len(plot.panels) == 1 else 360
    whole = {
        "title": {"text": title, "fontSize": 14, "offset": 16},
        "columns": COLUMNS,
        "spacing": 36,
        "concat": [{**_panel(panel), "width": room} for panel in plot.panels],
        "resolve": {"scale": {"color": "independent", "shape": "independent", "strokeDash": "independent"}},
        "params": _parameters({"value": room}),
        "padding": 12,
        "config": {**CONFIG, "background": "white"},
    }
    return re.sub(r"var\(--([\w-]+)\)", lambda found: LIGHT[found[1]], json.dumps(whole, allow_nan=False))


def _parameters(room: Spec) -> list[Spec]:
    return [{"name": "room", **room}, *({"name": name, "value": ""} for name in FILTERS)]


def _panel(panel: Panel) -> Spec:
    names = colour_names(panel)
    scale = {"domain": names, "range": [f"var(--{name})" for name in colours_of(names)]}
    layers = [layer for layer in panel.layers if len(layer.data)]
    made = [(layer, part) for layer in layers for part in _MARKS[layer.mark](layer, panel, scale)]
    ours = [at for at, (layer, part) in enumerate(made) if part["transform"] and layer.fixed != PUBLISHED]
    return {
        "title": panel.title,
        "height": HEIGHT,
        "layer": [part for _, part in made],
        "usermeta": {"ours": ours},
    }


def _layer(layer: Layer, mark: Spec, encoding: Spec) -> Spec:
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
    """The rows, with the columns that the layer uses, numbers rounded to 6 digits."""
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
    return {"x": _x_axis(layer, panel), "y": _quantitative(layer.y, panel.y_label)}


def _quantitative(name: str, title: str, **scale: Any) -> Spec:
    scale = {"nice": False, "padding": PADDING, **(scale or {"zero": False})}
    return {"field": name, "title": title, "type": "quantitative", "scale": scale}


def _x_axis(layer: Layer, panel: Panel) -> Spec:
    values = [value for each in panel.layers if each.x for value in each.data[each.x]]
    axis: Spec = {}
    if panel.x_kind == "category":
        order = list(panel.x_order)
        return {"field": layer.x, "title": panel.x_label, "type": "nominal", "sort": order, "scale": {"domain": order},
                "axis": _category_labels(order)}  # fmt: skip
    if panel.x_kind == "log":
        ticks = _log_ticks(values)
        axis = {
            "values": ticks,
            "format": "~g",
            "labelOverlap": "greedy",
            "tickCount": 100,
        }  # with fewer, ticks at 5 are missing
        return _quantitative(layer.x, panel.x_label, type="log", domain=[ticks[0], ticks[-1]]) | {"axis": axis}
    if all(isinstance(value, int) for value in values) and max(values) - min(values) < 8:
        axis = {"values": list(range(min(values), max(values) + 1))}
    return _quantitative(layer.x, panel.x_label) | {"axis": axis}


def _log_ticks(values: Iterable[float]) -> list[float]:
    """The numbers 1, 2 and 5 times a power of ten, from the last one below all values to the first one above them."""
    positive = [value for value in values if value > 0]
    low, high = min(positive), max(positive)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    first = max(at for at, step in enumerate(steps) if step <= low)
    last = min(at for at, step in enumerate(steps) if step >= high)
    return steps[first : max(last, first + 1) + 1]


def _category_labels(labels: list[str]) -> Spec:
    """Labels horizontal where they fit side by side, else at an angle."""
    wide = CHARACTER * max(map(len, labels), default=0) * len(labels)
    return {
        "labelAngle": {"expr": f"room < {wide} ? -35 : 0"},
        "labelAlign": {"expr": f"room < {wide} ? 'right' : 'center'"},
        "labelBaseline": "top",
        "labelPadding": 6,
    }


def _by_name(layer: Layer, scale: Spec) -> Spec:
    """A channel by the layer's names, with the legend that all channels of the panel share.

    The legend has as many columns as fit.
    """
    wide = CHARACTER * max(map(len, scale["domain"]), default=1) + 30
    legend = {"title": None, "orient": "top", "columns": {"expr": f"max(1, floor(room / {wide}))"}}
    by = {"field": layer.colour} if layer.colour else {"datum": layer.fixed}
    return {**by, "type": "nominal", "scale": scale, "legend": legend}


def _colour(layer: Layer, scale: Spec) -> Spec:
    if layer.colour or layer.fixed == PUBLISHED:
        return _by_name(layer, scale)
    return {"value": f"var(--{layer.fixed or 'c1'})"}


def _second_channel(layer: Layer, scale: Spec, channel: str, plain: object, **others: object) -> Spec:
    """A channel beside the colour: `others` has its values for `paper` and for `marked` colours. Empty if all are plain."""
    names = [colour.removeprefix("var(--").removesuffix(")") for colour in scale["range"]]
    kinds = [others.get("marked" if name in MARKED else name, plain) for name in names]
    if "value" in _colour(layer, scale) or all(kind == plain for kind in kinds):
        return {}
    return {channel: _by_name(layer, {**scale, "range": kinds})}


def _tooltip(layer: Layer) -> list[Spec]:
    numbers = {name for name in layer.tooltip if getattr(layer.data[name].dtype, "kind", "") in ("f", "i")}
    return [
        {"field": name, "title": name.replace("_", " "), **({"format": ".2f"} if name in numbers else {})}
        for name in layer.tooltip
    ]


def _points(layer: Layer, panel: Panel, scale: Spec) -> list[Spec]:
    ours = layer.fixed != PUBLISHED
    mark: Spec = {
        "type": "point",
        "filled": True,
        "size": layer.size if ours else 50,
        "opacity": 0.5 if ours and len(layer.data) > 60 else 0.95,
    }
    if layer.offset:
        mark["xOffset"] = {"expr": f"{SPREAD} * datum.{layer.offset}"}
    encoding = {**_axes(layer, panel), "color": _colour(layer, scale), "tooltip": _tooltip(layer)}
    encoding |= _second_channel(layer, scale, "shape", "circle", marked="triangle-up", paper="diamond")
    return [_layer(layer, mark, encoding)]


def _line(layer: Layer, panel: Panel, scale: Spec) -> list[Spec]:
    axes, colour = _axes(layer, panel), _colour(layer, scale)
    mark: Spec = {"type": "line", "strokeWidth": 2}
    if layer.tooltip and len(layer.data) < 400:
        mark["point"] = {"size": 26}
    dashes = _second_channel(layer, scale, "strokeDash", [1, 0], marked=[5, 3])
    parts = [_layer(layer, mark, {**axes, "color": colour, "tooltip": _tooltip(layer), **dashes})]
    if layer.low:
        low = {**axes["y"], "field": layer.low}
        band = {"x": axes["x"], "y": low, "y2": {"field": layer.high}, "color": colour}
        parts.insert(0, _layer(layer, {"type": "area", "opacity": 0.14}, band))
    return parts


def _box(layer: Layer, panel: Panel, scale: Spec) -> list[Spec]:  # noqa: ARG001
    mark = {
        "type": "boxplot",
        "extent": 1.5,
        "size": 26,
        "outliers": False,
        "box": {"fill": "var(--box)", "stroke": "var(--ink-2)"},
        "median": {"stroke": "var(--ink)", "strokeWidth": 2.5},
        "rule": {"stroke": "var(--ink-2)"},
    }
    return [_layer(layer, mark, _axes(layer, panel))]


def _rule(layer: Layer, panel: Panel, scale: Spec) -> list[Spec]:  # noqa: ARG001
    side = "y" if layer.y else "x"
    place = {"field": layer.y or layer.x, "type": "quantitative"}
    text: Spec = {"type": "text", "fontSize": 11, "fill": "var(--ink-2)"}
    if side == "y":
        text |= {"align": "right", "baseline": "bottom", "dy": -3, "x": "width"}
    else:
        text |= {"align": "left", "baseline": "top", "dx": 4, "y": 0}
    rule = {"type": "rule", "strokeDash": [5, 4], "stroke": "var(--ink-2)", "opacity": 0.8}
    parts = [_layer(layer, rule, {side: place})]
    if layer.label:
        parts.append(_layer(layer, text, {side: place, "text": {"field": layer.label}}))
    return parts


_MARKS = {"points": _points, "line": _line, "box": _box, "rule": _rule}
