"""HTML of the page. Text comes from figures, tables and findings; everything is escaped here, once.

What is read is escaped by `escape`; what the script compares or the browser follows, by `attribute`, which changes nothing
else about it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from html import escape as html_escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from orchestrator.results.report.charts import specifications
from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.findings import Finding
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.palette import DARK, LIGHT
from orchestrator.results.report.plot import FAMILIES, OBJECTIVES, Drawing
from orchestrator.results.report.settings import COMMANDS
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

LONG = 20
"""Rows after which a table scrolls in its own box."""


WHOLE = '<span class="whole" hidden> (all families and objectives)</span>'
"""Shown while a filter is set, beside what it does not change."""


def escape(text: str) -> str:
    """HTML-safe, and no line begins with a per cent sign or breaks within XE-KL."""
    return html_escape(text).replace(" %", "&nbsp;%").replace("XE-KL", "XE&#8209;KL")


def attribute(text: str) -> str:
    """Safe between the quotes of an attribute, and the same text to a script."""
    return html_escape(text, quote=True)


def render(reports: Sequence[StudyReport]) -> str:
    """The whole page."""
    from string import Template

    charts: dict[str, Any] = {}
    bodies = "\n".join(_study(report, charts, hidden=at > 0) for at, report in enumerate(reports))
    return Template(_resource("page.html")).substitute(
        title=escape(", ".join(report.study for report in reports)),
        palette=_palette(),
        style=_resource("page.css"),
        controls=_controls(reports),
        studies=bodies,
        charts=_json(charts),
        library=_library(),
        script=_resource("page.js"),
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
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}{chosen}"


def _json(value: Any) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _controls(reports: Sequence[StudyReport]) -> str:
    families, objectives = (
        _values(reports, "family", FAMILIES.values()),
        _values(reports, "objective", OBJECTIVES.values()),
    )
    studies = [report.study for report in reports]
    parts = [_select("study", "study", studies, every="")] if len(studies) > 1 else []
    parts += [_select("family", "student family", families, every="all families")] if families else []
    parts += [_select("objective", "objective", objectives, every="all objectives")] if objectives else []
    return "".join(parts)


def _values(reports: Sequence[StudyReport], column: str, known: Iterable[str]) -> list[str]:
    """The values of a filter that appear in any figure."""
    there = {
        str(value)
        for report in reports
        for _, drawing in report.figures
        if not isinstance(drawing, Missing)
        for panel in drawing.panels
        for layer in panel.layers
        if column in layer.data
        for value in layer.data[column].dropna().unique()
    } - {"*"}
    return [value for value in known if value in there] + sorted(there - set(known))


def _select(name: str, label: str, values: Iterable[str], every: str) -> str:
    first = f'<option value="">{escape(every)}</option>' if every else ""
    options = first + "".join(f'<option value="{attribute(v)}">{escape(v)}</option>' for v in values)
    return f'<label>{escape(label)} <select data-filter="{name}">{options}</select></label>'


def _study(report: StudyReport, charts: dict[str, Any], hidden: bool) -> str:
    parts = [_findings(report.findings), _contents(report)]
    for key, title in SECTIONS.items():
        inside = [_figure(report, f, drawing, charts) for f, drawing in report.figures if f.section == key]
        inside += [_table(report, t, rows) for t, rows in report.tables if t.section == key]
        inside += [_settings(report)] if key == "settings" else []
        place = attribute(_id(report.study, key))
        parts.append(f'<section><h2 id="{place}">{escape(title)}</h2>{"".join(inside)}</section>')
    name = attribute(report.study)
    return f'<article data-study="{name}"{" hidden" if hidden else ""}>{"".join(parts)}</article>'


def _id(study: str, key: str) -> str:
    return f"{study}-{key}".replace(" ", "-")


def _beside(study: str, folder: str, name: str) -> str:
    """Link to a file of a study beside the page; its folder is called after the study, quoted, so that counts twice."""
    return attribute(f"{folder}/{quote(quote(study, safe=''), safe='')}/{name}")


def _contents(report: StudyReport) -> str:
    """Links to every figure and table, folded away."""
    named = [(f.section, f"figure-{f.key}", _numbered("Figure", f)) for f, _ in report.figures]
    named += [(t.section, f"table-{t.key}", _numbered("Table", t)) for t, _ in report.tables]
    links = "".join(
        f'<li><a href="#{attribute(_id(report.study, key))}">{escape(title)}</a></li>'
        for section in SECTIONS
        for place, key, title in named
        if place == section
    )
    return f'<details class="contents"><summary>Figures and tables</summary><ul>{links}</ul></details>'


def _numbered(kind: str, one: Figure | Table) -> str:
    """Its title, after its number in the paper if it has one."""
    return f"{kind} {one.key}. {one.title}" if one.key[0].isdigit() else one.title


def _findings(found: Sequence[Finding]) -> str:
    if not found:
        return '<section><p class="missing">No results yet. <code>kt-study launch</code> makes them.</p></section>'
    items = "".join(
        f"<li><strong>{escape(f.figure)}</strong><p>{escape(f.sentence)}</p>"
        + (f'<p class="paper">Paper: {escape(f.paper)}</p>' if f.paper else "")
        + "</li>"
        for f in found
    )
    return f'<section class="findings"><h2>Findings{WHOLE}</h2><ol>{items}</ol></section>'


def _figure(report: StudyReport, figure: Figure, drawing: Drawing | Missing, charts: dict[str, Any]) -> str:
    head = f"<h3>{escape(_numbered('Figure', figure))}</h3>"
    place = _id(report.study, f"figure-{figure.key}")
    if isinstance(drawing, Missing):
        return f'<figure id="{attribute(place)}" class="empty">{head}{_missing(figure, drawing, report)}</figure>'
    names = []
    for at, specification in enumerate(specifications(drawing)):
        names.append(f"{place}-{at}")
        charts[names[-1]] = specification
    panels = "".join(
        f'<div class="panel"><div class="chart" id="{attribute(name)}" role="img" aria-label="{attribute(figure.title)}">'
        '</div><p class="none" hidden>No rows for this choice.</p></div>'
        for name in names
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in drawing.notes)
    paper = f'<p class="paper">{escape(drawing.published)}</p>' if drawing.published else ""
    links = " ".join(
        f'<a href="{_beside(report.study, "figures", f"figure-{figure.key}{suffix}")}">{suffix[1:].upper()}</a>'
        for suffix in (".png", ".svg")
    )
    caption = (
        f"<figcaption><p>{escape(figure.caption)}</p>{paper}{notes}"
        f'<p class="sample">Sample{WHOLE}: {escape(drawing.sample)}. {links}</p></figcaption>'
    )
    inside = f'{head}<div class="panels">{panels}</div>{caption}'
    return f'<figure id="{attribute(place)}" class="f{len(names)}">{inside}</figure>'


def _missing(one: Figure | Table, found: Missing, report: StudyReport) -> str:
    hint = ""
    if found.planned and report.is_imagenet:
        hint = f" Plan them: <code>{escape(one.plan)}</code>"
    elif found.planned:
        hint = " <code>kt-study plan</code> plans what study.toml asks for."
    return f'<p>{escape(one.caption)}</p><p class="missing">{escape(found.reason)}.{hint}</p>'


def _table(report: StudyReport, table: Table, rows: pd.DataFrame | Missing) -> str:
    head = f"<h3>{escape(_numbered('Table', table))}</h3>"
    place = attribute(_id(report.study, f"table-{table.key}"))
    if isinstance(rows, Missing):
        return f'<div class="table empty" id="{place}">{head}{_missing(table, rows, report)}</div>'
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    has_paper = table.published and any(str(name).startswith("paper") for name in rows.columns)
    paper = f'<p class="paper">Columns of the paper: {escape(table.published)}.</p>' if has_paper else ""
    link = f'<a href="{_beside(report.study, "tables", f"table-{table.key}.csv")}">CSV</a>'
    scroll = ' class="scroll long"' if len(rows) > LONG else ' class="scroll"'
    return (
        f'<div class="table" id="{place}">{head}<p>{escape(table.caption)}</p>{paper}{notes}'
        f'<div{scroll} tabindex="0">{_grid(rows, table.digits)}</div>'
        f'<p class="sample">{len(rows):,} rows. {link}</p></div>'
    )


def _grid(rows: pd.DataFrame, digits: int) -> str:
    heads = "".join(
        f'<th scope="col"{_class(name, *_number(rows[name]))}><button type="button">{escape(name)}</button></th>'
        for name in rows.columns
    )
    body = "".join(_row({str(k): v for k, v in row.items()}, digits) for row in rows.to_dict("records"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _number(column: pd.Series[Any]) -> list[str]:
    return ["number"] if column.dtype.kind in "iuf" else []


def _row(row: dict[str, Any], digits: int) -> str:
    keys = "".join(f' data-{key}="{attribute(str(row[key]))}"' for key in ("family", "objective") if key in row)
    return f"<tr{keys}>{''.join(_cell(name, value, digits) for name, value in row.items())}</tr>"


def _cell(name: str, value: Any, digits: int) -> str:
    if value is None or value != value:
        return f"<td{_class(name)}></td>"
    if isinstance(value, str):
        return f"<td{_class(name)}>{escape(value)}</td>"
    whole = float(value).is_integer() and not isinstance(value, float)
    text = f"{value:,}" if whole else f"{value:.{digits}f}"
    return f'<td{_class(name, "number")} data-value="{float(value):.9g}">{text}</td>'


def _class(name: str, *others: str) -> str:
    names = [*others, *(["printed"] if name.startswith("paper ") else [])]
    return f' class="{" ".join(names)}"' if names else ""


def _fact(label: str, value: str) -> str:
    return f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>"


def _settings(report: StudyReport) -> str:
    lists = [("The study", report.facts), ("The same in every transfer", report.settings)]
    parts = [
        f"<h3>{title}</h3><dl>{''.join(_fact(label, value) for label, value in values.items())}</dl>"
        for title, values in lists
        if values
    ]
    if report.choices:
        items = "".join(f"<li>{escape(choice)}</li>" for choice in report.choices)
        parts.append(
            "<h3>Shown of several settings</h3><p>Figures and tables show, for each objective, the settings with most "
            f"transfers:</p><ul>{items}</ul>"
        )
    typed = escape("\n".join(COMMANDS))
    parts.append(f"<h3>How to make it again</h3><p>With the same study file:</p><pre>{typed}</pre>")
    return "".join(parts)
