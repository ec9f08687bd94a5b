"""What a figure is. One module a figure; `orchestrator.report.figures.FIGURES` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.report.material import Material
from orchestrator.report.plot import Drawing


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the paper.

    `build` makes it from a study's rows, or returns None where there are none; then the page shows `plan`, the command
    that would bring them.
    """

    key: str  # its number in the paper, such as 4a
    title: str
    caption: str  # what is drawn, with units
    section: str  # of the page
    plan: str
    build: Callable[[Material], Drawing | None]
