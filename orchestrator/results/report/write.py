"""From a results folder to a report folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kt_study.errors import UsageError
from kt_study.files import write_bytes, write_text
from kt_study.loading import load
from kt_study.nearest import nearest
from orchestrator.results.report.charts import for_files
from orchestrator.results.report.figures import FIGURES
from orchestrator.results.report.findings import findings
from orchestrator.results.report.folder import PAGE, claim, figures_folder, tables_folder
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.page import render
from orchestrator.results.report.settings import commands, facts, failures, fixed_settings
from orchestrator.results.report.study_report import StudyReport
from orchestrator.results.report.tables import TABLES

PIXELS = 2.0  # of a PNG, to one of the SVG


def write(results: Path, out: Path, study: str | None, progress: Callable[[str], None]) -> Path:
    """See `orchestrator.results.report.write_report`."""
    reports = []
    names = _studies(results, study)
    claim(out, names)
    for name in names:
        progress(f"study {name}")
        report = _prepare(Material(load(results, name), name))
        _write_figures(report, figures_folder(out, name), progress)
        _write_tables(report, tables_folder(out, name))
        reports.append(report)
    page = out / PAGE
    write_text(page, render(reports))
    progress(f"page {page}")
    return page


def _studies(results: Path, study: str | None) -> list[str]:
    frames = [load(results).arrow(table)["study"] for table in ("jobs", "models", "transfers", "complementarity")]
    there = sorted({name for column in frames for name in column.unique().to_pylist()})
    if not there:
        raise UsageError(f"{results}: no study in these results; `kt-study plan`, `launch` and `collect` come first")
    if study is not None and study not in there:
        raise UsageError(f"no study {study!r} in {results}{nearest(study, there)} (there: {', '.join(there)})")
    return there if study is None else [study]


def _prepare(material: Material) -> StudyReport:
    choices = [
        f"{choice.objective}: {choice.rows:,} of {choice.of:,} transfers, with {choice.settings}"
        for choice in material.choices
    ]
    return StudyReport(
        study=material.study,
        findings=findings(material),
        failures=failures(material),
        figures=[(figure, figure.build(material)) for figure in FIGURES],
        tables=[(table, table.build(material)) for table in TABLES],
        facts=facts(material),
        settings=fixed_settings(material),
        choices=choices,
        commands=commands(material),
        is_imagenet=material.is_imagenet,
    )


def _write_figures(report: StudyReport, folder: Path, progress: Callable[[str], None]) -> None:
    import vl_convert

    for figure, drawing in report.figures:
        png, svg = (folder / f"figure-{figure.key}.{suffix}" for suffix in ("png", "svg"))
        if isinstance(drawing, Missing):
            png.unlink(missing_ok=True)
            svg.unlink(missing_ok=True)
            continue
        drawn = vl_convert.vegalite_to_svg(for_files(drawing, f"Figure {figure.key}. {figure.title}"))
        write_text(svg, drawn)
        write_bytes(png, vl_convert.svg_to_png(drawn, scale=PIXELS))
        progress(f"figure {figure.key}")


def _write_tables(report: StudyReport, folder: Path) -> None:
    for table, rows in report.tables:
        path = folder / f"table-{table.key}.csv"
        if isinstance(rows, Missing):
            path.unlink(missing_ok=True)
        else:
            write_text(path, rows.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
