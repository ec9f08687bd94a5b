"""The paper's figures. A new one is one new module and one line here.

Figure 3, the method, shows no rows. The numbers 6 to 10 follow the sections of the paper's appendix and the authors'
plot scripts (plots/appendix.py and plots/rebuttal.py of ExplainableML/FantasticGains).
"""

from __future__ import annotations

from importlib import import_module

from orchestrator.results.report.figures.figure import Figure

_KEYS = ("1a", "1b", "2a", "2b", "4a", "4b", "5a", "5b", "6", "7", "8", "9", "10", "11")

FIGURES: tuple[Figure, ...] = tuple(import_module(f"{__name__}.fig{key}").FIGURE for key in _KEYS)
