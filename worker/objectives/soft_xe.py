"""soft_xe: L = -T^2 sum_c softmax(z_t / T)_c log softmax(z_s / T)_c, mean over the batch; z [b, c] logits, L in nats.

Cross-entropy with the teacher's probabilities for labels (Hinton et al. 2015, Sec. 2; the paper's Sec. B.1). It is kl
plus the target's entropy, a constant, so that its gradient is that of kl. The released code passes the student's
*probabilities* to a loss that takes logits (contrastive/CRDloss.py: DistillXE); `reading = "authors"` does so. The
paper's -1.2 points against kl cannot come from equal gradients, but may come from that.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from worker.objectives.base import Batch, Objective
from worker.objectives.terms import restricted, soft_cross_entropy


class SoftCrossEntropy(Objective):
    """Cross-entropy against the teacher's probabilities."""

    def forward(self, batch: Batch) -> Tensor:
        """Losses in nats, float32 [b]."""
        logits, target = restricted(batch, self.settings.top_k)
        temperature = self.settings.temperature
        if self.settings.reading == "paper":
            return soft_cross_entropy(logits, target, temperature)
        p, q = F.softmax(logits / temperature, dim=1), F.softmax(target.float() / temperature, dim=1)
        return F.cross_entropy(p, q, reduction="none") * temperature**2
