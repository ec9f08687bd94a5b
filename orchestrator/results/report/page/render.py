"""The page's template filled in: one HTML file with its style, its script, the plotting library and all rows inside."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from orchestrator.results.report.charts import for_page
from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.palette import DARK, FONT, LIGHT
from orchestrator.results.report.plot import FAMILIES, OBJECTIVES, Drawing
from orchestrator.results.report.study_report import StudyReport
from orchestrator.results.report.tables.table import Table

if TYPE_CHECKING:
    import pandas as pd

SECTIONS = {
    "complementarity": "Complementary knowledge",
    "transfer": "Transfer",
    "multi-teacher": "Several teachers",
    "settings": "Settings",
}


@dataclass(frozen=True)
class Head:
    """A table's column: its name, whether the paper printed it, and its classes in the style sheet."""

    name: str
    printed: bool
    kind: str


def render(reports: Sequence[StudyReport]) -> str:
    """The whole page. Everything that comes from figures, tables and findings is escaped."""
    environment = Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "prose": _prose, "numbered": _numbered, "place": _place, "beside": _beside, "heads": _heads, "cell": _cell,
    }  # fmt: skip
    environment.tests["missing"] = lambda found: isinstance(found, Missing)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    drawn = [(report.study, figure, d) for report in reports for figure, d in report.figures if isinstance(d, Drawing)]
    drawings = [drawing for _, _, drawing in drawn]
    return environment.get_template("page.html").render(
        reports=reports,
        sections=SECTIONS,
        families=_values(drawings, "family", FAMILIES.values()),
        objectives=_values(drawings, "objective", OBJECTIVES.values()),
        palette=Markup(_palette()),
        style=Markup(_resource("page.css")),
        script=Markup(_resource("page.js")),
        library=Markup(_library()),
        charts={
            f"{_place(study, f'figure-{figure.key}')}-{at}": chart
            for study, figure, drawing in drawn
            for at, chart in enumerate(for_page(drawing))
        },
    )


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the package vl-convert-python."""
    import vl_convert

    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub asks for what may be left out
    return str(bundle).replace("</script", "<\\/script")


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _palette() -> str:
    """The colours as style-sheet variables, for both grounds."""
    light, dark = ("".join(f"--{name}:{colour};" for name, colour in ground.items()) for ground in (LIGHT, DARK))
    chosen = f":root[data-theme=dark]{{{dark}}}"
    scheme = f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
    return f":root{{--sans:{FONT};{light}}}{scheme}{chosen}"


def _values(drawings: Sequence[Drawing], column: str, known: Iterable[str]) -> list[str]:
    """The values of a filter that appear in any figure."""
    there = {
        str(value)
        for drawing in drawings
        for panel in drawing.panels
        for layer in panel.layers
        if column in layer.data
        for value in layer.data[column].dropna().unique()
    } - {"*"}
    return [value for value in known if value in there] + sorted(there - set(known))


def _prose(text: str) -> Markup:
    """Text in which no line begins with a per cent sign or breaks within XE-KL."""
    return Markup(escape(text).replace(" %", "\N{NO-BREAK SPACE}%").replace("XE-KL", "XE\N{NON-BREAKING HYPHEN}KL"))


def _numbered(named: tuple[str, Figure | Table]) -> str:
    """Its title, after its number in the paper if it has one."""
    kind, one = named
    return f"{kind} {one.key}. {one.title}" if one.key[0].isdigit() else one.title


def _place(study: str, key: str) -> str:
    """The id of a part of a study's report."""
    return f"{study}-{key}".replace(" ", "-")


def _beside(study: str, folder: str) -> str:
    """Link to a study's files beside the page; its folder is called after the study, quoted, so that counts twice."""
    return f"{folder}/{quote(quote(study, safe=''), safe='')}"


def _heads(rows: pd.DataFrame) -> list[Head]:
    found = []
    for name, column in rows.items():
        number, printed = column.dtype.kind in "iuf", str(name).startswith("paper ")
        found.append(Head(str(name), printed, " ".join(["number"] * number + ["printed"] * printed)))
    return found


def _cell(value: Any, head: Head, digits: int) -> Markup:
    if value is None or value != value:
        return Markup('<td class="{}"></td>').format(head.kind)
    if isinstance(value, str):
        return Markup('<td class="{}">{}</td>').format(head.kind, _prose(value))
    whole = float(value).is_integer() and not isinstance(value, float)
    text = f"{value:,}" if whole else f"{value:.{digits}f}"
    kind = "number printed" if head.printed else "number"
    return Markup('<td class="{}" data-value="{}">{}</td>').format(kind, f"{float(value):.9g}", text)
