"""labels: L = -log softmax(z_s)_y, without a teacher: what training on the same images does by itself. A control.

z_s: float [b, c] logits of the student; y: its labels; L in nats, mean over the batch.
"""

from __future__ import annotations

from torch import Tensor

from worker.objectives.base import Batch, Objective
from worker.objectives.terms import cross_entropy


class Labels(Objective):
    """Cross-entropy against the labels, whatever the reading: the released code has no such arm."""

    def forward(self, batch: Batch) -> Tensor:
        """Losses in nats, float32 [b]."""
        return cross_entropy(batch.logits, batch.labels, "paper")
