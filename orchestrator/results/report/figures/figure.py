"""What a figure is. One module per figure; `orchestrator.results.report.figures.FIGURES` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.plot import Drawing


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the paper.

    `build` makes it from a study's rows, or says why it cannot. `plan` is the command that brings the rows in a study of
    ImageNet.
    """

    key: str  # its number in the paper, such as 4a
    title: str
    caption: str  # what is drawn, with units
    section: str  # of the page
    plan: str
    build: Callable[[Material], Drawing | Missing]
