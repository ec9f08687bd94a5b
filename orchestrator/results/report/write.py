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
from orchestrator.results.report.folder import PAGE, mark, part_path
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.overview import commands, facts, failures, fixed_settings
from orchestrator.results.report.page import StudyReport, render
from orchestrator.results.report.study_results import StudyResults
from orchestrator.results.report.tables import TABLES

PNG_SCALE = 2.0  # pixels of a PNG per pixel of the SVG


def write(results: Path, out: Path, study: str | None, progress: Callable[[str], None]) -> Path:
    """See `orchestrator.results.report.write_report`."""
    reports = []
    names = _studies(results, study)
    mark(out, names)
    for name in names:
        progress(f"study {name}")
        report = _prepare(StudyResults(load(results, name), name))
        _write_figures(report, out, progress)
        _write_tables(report, out)
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


def _prepare(study: StudyResults) -> StudyReport:
    return StudyReport(
        study=study.name,
        findings=findings(study),
        failures=failures(study),
        figures=[(figure, figure.built(study)) for figure in FIGURES],
        tables=[(table, table.built(study)) for table in TABLES],
        facts=facts(study),
        settings=fixed_settings(study),
        shown_settings=[
            f"{shown.objective}: {shown.rows:,} of {shown.of:,} transfers, with {shown.settings}"
            for shown in study.shown_settings
        ],
        commands=commands(study),
        is_imagenet=study.is_imagenet,
    )


def _write_figures(report: StudyReport, out: Path, progress: Callable[[str], None]) -> None:
    import vl_convert

    for figure, plot in report.figures:
        png, svg = (part_path(out, report.study, "figure", figure.key, suffix) for suffix in ("png", "svg"))
        if isinstance(plot, Missing):
            png.unlink(missing_ok=True)
            svg.unlink(missing_ok=True)
            continue
        drawn = vl_convert.vegalite_to_svg(for_files(plot, f"Figure {figure.key}. {figure.title}"))
        write_text(svg, drawn)
        write_bytes(png, vl_convert.svg_to_png(drawn, scale=PNG_SCALE))
        progress(f"figure {figure.key}")


def _write_tables(report: StudyReport, out: Path) -> None:
    for table, rows in report.tables:
        path = part_path(out, report.study, "table", table.key, "csv")
        if isinstance(rows, Missing):
            path.unlink(missing_ok=True)
        else:
            write_text(path, rows.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
