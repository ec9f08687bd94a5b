"""kl: L = T^2 KL(softmax(z_t / T) || softmax(z_s / T)), mean over the batch.

z_t, z_s: float [b, c] logits of teacher and student; L in nats. The paper's Eq. 2 (arXiv 2310.17653); Hinton et al.
2015.
"""

from __future__ import annotations

from torch import Tensor

from worker.objectives.base import Batch, Objective
from worker.objectives.terms import kl_divergence, restricted


class KL(Objective):
    """Plain distillation. `top_k` restricts it to the target's likeliest classes, `flips` gives samples to the
    student."""

    def forward(self, batch: Batch) -> Tensor:
        """Losses in nats, float32 [b]."""
        logits, target = restricted(batch, self.settings.top_k)
        return kl_divergence(logits, target, self.settings.temperature)
