"""cd: L = XE(z_s, y) + KL(softmax(S_t) || softmax(S_s)), rows of similarity matrices, both terms with equal weight.

S[i, j] = cos(f_i, f_j) between the features of samples i and j of a batch, for teacher and student, [b, b]; softmax
along j; KL of each row in nats, mean over rows. z [b, c] logits, f [b, d] features before the last layer. The paper's
Sec. B.2.

The released code weighs XE with 0.1 and the sum over rows with 10 (config/distillation/cd_dist.yaml);
`reading = "authors"` does so, with the teacher in train mode.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from worker.objectives.base import Batch, Objective, given
from worker.objectives.terms import cross_entropy

AUTHORS_XE_WEIGHT, AUTHORS_CD_WEIGHT = 0.1, 10.0


class CosineSimilarityDistillation(Objective):
    """Contrastive distillation: the similarities of the samples in a batch."""

    def forward(self, batch: Batch) -> Tensor:
        """Losses in nats, float32 [b]."""
        rows = F.kl_div(
            similarities(given(batch.features, "features")),
            similarities(given(batch.teacher_features, "teacher_features")),
            reduction="none",
            log_target=True,
        ).sum(dim=1)
        xe = cross_entropy(batch.logits, batch.labels, "paper")  # the released code has logits here, and so one softmax
        if self.settings.reading == "paper":
            return xe + rows
        return AUTHORS_XE_WEIGHT * xe + AUTHORS_CD_WEIGHT * len(rows) * rows  # whose mean holds the sum over rows


def similarities(features: Tensor) -> Tensor:
    """Log-softmax over each row of the cosine similarities of features [b, d]: float32 [b, b]."""
    unit = F.normalize(features.float(), dim=1)
    return F.log_softmax(unit @ unit.T, dim=1)
