"""The paper's figures. A new one is a module of this package and its place in `FIGURES`.

Figure 3, the method, shows no results. The numbers 6 to 10 follow the sections of the paper's appendix and the authors'
plot scripts (plots/appendix.py and plots/rebuttal.py of ExplainableML/FantasticGains).
"""

from __future__ import annotations

from orchestrator.results.report.figures import (
    complementarity,
    deltas,
    gain_and_loss,
    sequences,
    students,
    success,
    transfer_rates,
)
from orchestrator.results.report.parts import Figure

FIGURES: tuple[Figure, ...] = (
    complementarity.FIGURE_1A,
    complementarity.FIGURE_1B,
    complementarity.FIGURE_2A,
    complementarity.FIGURE_2B,
    success.FIGURE_4A,
    deltas.FIGURE_4B,
    transfer_rates.FIGURE_5A,
    transfer_rates.FIGURE_5B,
    success.FIGURE_6,
    gain_and_loss.FIGURE_7,
    students.FIGURE_8,
    deltas.FIGURE_9,
    deltas.FIGURE_10,
    sequences.FIGURE_11,
)
