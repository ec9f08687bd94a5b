"""The page: one HTML file with its style, its script, the plotting library and all rows inside."""

from orchestrator.results.report.page.render import StudyReport, render

__all__ = ["StudyReport", "render"]
