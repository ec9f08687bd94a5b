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
from orchestrator.results.report.findings import Finding
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.overview import FailureGroup
from orchestrator.results.report.palette import DARK, FONT, LIGHT
from orchestrator.results.report.parts import Figure, Part, Table
from orchestrator.results.report.plot import FAMILIES, OBJECTIVES, Plot

if TYPE_CHECKING:
    import pandas as pd

SECTIONS = {
    "complementarity": "Complementary knowledge",
    "transfer": "Transfer",
    "multi-teacher": "Several teachers",
    "settings": "Settings",
}


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """One study, ready for the page."""

    study: str
    findings: list[Finding]
    failures: list[FailureGroup]
    figures: list[tuple[Figure, Plot | Missing]]
    tables: list[tuple[Table, pd.DataFrame | Missing]]
    facts: dict[str, str]
    settings: dict[str, str]
    shown_settings: list[str]
    commands: list[str]
    is_imagenet: bool  # the paper's own plans fit it


@dataclass(frozen=True)
class Head:
    """A table's column: its name, whether the paper printed it, and its classes in the style sheet."""

    name: str
    printed: bool
    classes: str


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
        "prose": _prose, "heading": _heading, "id": _id, "folder": _folder, "heads": _heads, "cell": _cell,
    }  # fmt: skip
    environment.tests["missing"] = lambda found: isinstance(found, Missing)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    drawn = [(report.study, figure, p) for report in reports for figure, p in report.figures if isinstance(p, Plot)]
    plots = [plot for _, _, plot in drawn]
    return environment.get_template("page.html").render(
        reports=reports,
        sections=SECTIONS,
        families=_values(plots, "family", FAMILIES.values()),
        objectives=_values(plots, "objective", OBJECTIVES.values()),
        palette=Markup(_palette()),
        style=Markup(_resource("page.css")),
        script=Markup(_resource("page.js")),
        library=Markup(_library()),
        charts={
            f"{_id(study, f'figure-{figure.key}')}-{at}": chart
            for study, figure, plot in drawn
            for at, chart in enumerate(for_page(plot))
        },
    )


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the package vl-convert-python."""
    import vl_convert

    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub requires an optional argument
    return str(bundle).replace("</script", "<\\/script")


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _palette() -> str:
    """The colours as style-sheet variables, for both grounds."""
    light, dark = ("".join(f"--{name}:{colour};" for name, colour in ground.items()) for ground in (LIGHT, DARK))
    chosen = f":root[data-theme=dark]{{{dark}}}"
    scheme = f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
    return f":root{{--sans:{FONT};{light}}}{scheme}{chosen}"


def _values(plots: Sequence[Plot], column: str, known: Iterable[str]) -> list[str]:
    """The values of a filter that appear in any figure."""
    there = {
        str(value)
        for plot in plots
        for panel in plot.panels
        for layer in panel.layers
        if column in layer.data
        for value in layer.data[column].dropna().unique()
    } - {"*"}
    return [value for value in known if value in there] + sorted(there - set(known))


def _prose(text: str) -> Markup:
    """Text in which no line starts with a percent sign or breaks within XE-KL."""
    return Markup(escape(text).replace(" %", "\N{NO-BREAK SPACE}%").replace("XE-KL", "XE\N{NON-BREAKING HYPHEN}KL"))


def _heading(part: Part) -> str:
    """The title, after the number in the paper if there is one."""
    return f"{type(part).__name__} {part.key}. {part.title}" if part.key[0].isdigit() else part.title


def _id(study: str, key: str) -> str:
    """The id of a part of a study's report."""
    return f"{study}-{key}".replace(" ", "-")


def _folder(study: str, folder: str) -> str:
    """Link to a study's files beside the page. The folder's name is the quoted name of the study, which a link quotes again."""
    return f"{folder}/{quote(quote(study, safe=''), safe='')}"


def _heads(rows: pd.DataFrame) -> list[Head]:
    found = []
    for name, column in rows.items():
        number, printed = column.dtype.kind in "iuf", str(name).startswith("paper ")
        found.append(Head(str(name), printed, " ".join(["number"] * number + ["printed"] * printed)))
    return found


def _cell(value: Any, head: Head, digits: int) -> Markup:
    if value is None or value != value:
        return Markup('<td class="{}"></td>').format(head.classes)
    if isinstance(value, str):
        return Markup('<td class="{}">{}</td>').format(head.classes, _prose(value))
    text = f"{value:.{digits}f}" if isinstance(value, float) else f"{value:,}"
    classes = "number printed" if head.printed else "number"
    return Markup('<td class="{}" data-value="{}">{}</td>').format(classes, f"{float(value):.9g}", text)
