"""xe_kl_mcl: xe_kl for the fast weights, and slow weights that follow them and are evaluated.

L = lambda T^2 KL(p_t || p_s) + (1 - lambda) XE(z_s, y), mean over the batch, in nats; every N steps
theta_slow <- tau theta_slow + (1 - tau) theta_fast (Stojanovski et al. 2022; the paper's Sec. 4.3 and A.3: tau
0.9999, N 2, lr 1e-2, lambda 0.7). The slow weights are `worker.training.slow_weights`.

`reading = "authors"`: negative flips, samples that the teacher gets wrong and the student now gets right, are left
out of the KL term, which is averaged over the others (config/distillation/xekl_mcl_dist.yaml: on_flip.neg nothing); N
is scaled by 256 / batch size; slow weights overwrite the fast ones at every evaluation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.objectives.base import Batch, given
from worker.objectives.kl import KL
from worker.objectives.terms import cross_entropy
from worker.objectives.xe_kl import CrossEntropyKL


class MomentumContinualKL(CrossEntropyKL):
    """xe_kl with slow weights of the student."""

    def forward(self, batch: Batch) -> Tensor:
        """Losses in nats, float32 [b]."""
        if self.settings.reading == "paper":
            return super().forward(batch)
        weight = self.settings.kl_weight
        kept = ~self._negative_flips(batch)
        share_kept = kept.float().mean().clamp_min(1.0 / len(kept))
        xe = cross_entropy(batch.logits, batch.labels, self.settings.reading)
        return weight * torch.where(kept, KL.forward(self, batch), 0.0) / share_kept + (1.0 - weight) * xe

    @staticmethod
    def _negative_flips(batch: Batch) -> Tensor:
        teacher_wrong = given(batch.teacher_class, "teacher_class") != batch.labels
        return teacher_wrong & (batch.logits.argmax(dim=1) == batch.labels)
