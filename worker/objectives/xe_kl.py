"""xe_kl: L = lambda T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - lambda) XE(z_s, y), mean over the batch.

z [b, c] logits, y [b] labels, lambda = `kl_weight`; L in nats. The paper's Eq. 3 (arXiv 2310.17653). Under
`reading = "authors"` XE is taken on softmax outputs, see `worker.objectives.terms.cross_entropy`.
"""

from __future__ import annotations

from torch import Tensor

from worker.objectives.base import Batch
from worker.objectives.kl import KL
from worker.objectives.terms import cross_entropy


class CrossEntropyKL(KL):
    """Distillation beside cross-entropy on the labels."""

    smoothing = 0.0

    def forward(self, batch: Batch) -> Tensor:
        """Losses in nats, float32 [b]."""
        weight = self.settings.kl_weight
        xe = cross_entropy(batch.logits, batch.labels, self.settings.reading, self.smoothing)
        return weight * super().forward(batch) + (1.0 - weight) * xe
