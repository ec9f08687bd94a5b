"""kl_label_smoothing: xe_kl with smoothed labels.

L = lambda T^2 KL(p_t || p_s) + (1 - lambda) XE(z_s, y_e), mean over the batch, in nats; z [b, c] logits,
y_e = (1 - e) [c = y] + e / C with e = `label_smoothing` (Szegedy et al. 2016, Sec. 7). The paper names label smoothing
beside XE-KL among the regularisers of Section 5.1 without an equation; the released code smooths in the cross-entropy
term, and so do we. Under `reading = "authors"` it is the student's probabilities that are smoothed.
"""

from __future__ import annotations

from worker.objectives.base import Setup
from worker.objectives.xe_kl import CrossEntropyKL


class LabelSmoothedKL(CrossEntropyKL):
    """Distillation beside cross-entropy on smoothed labels."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.smoothing = setup.settings.label_smoothing
