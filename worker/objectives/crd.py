"""crd: L = XE(z_s, y) + 0.8 (L_s + L_t), contrastive representation distillation (Tian, Krishnan and Isola, ICLR 2020).

The critic of two embeddings is h(t, s) = e / (e + N / M) with e = exp(g_t(t) . g_s(s) / tau) / Z (Eq. 19; N negatives
of M samples) and L = -log h(positive) - sum_negatives log(1 - h(negative)) (Eq. 18), once with the student's
embedding against a memory of the teacher's and once vice versa. Z is set from the first batch to M times the
mean exponential, as in Wu et al. 2018 (Eq. 8) and in the released code of both papers: with Z = 1 the N negatives of
a fresh memory outweigh cross-entropy by four orders of magnitude.

g: a linear layer to 128 dimensions, then unit length. The memory m of a sample follows its embedding v as
m <- normalise(0.5 m + 0.5 v). Negatives are samples of other classes, with replacement. N = 4096, tau = 0.07.
f [b, d] features before the last layer, z [b, c] logits, L in nats, mean over the batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kt_study.errors import DataError
from worker.objectives.base import Batch, Objective, Setup, given
from worker.objectives.terms import cross_entropy

DIMENSIONS = 128
NEGATIVES = 4096
TAU = 0.07
MOMENTUM = 0.5
WEIGHT = 0.8
"""All from config/distillation/crd_dist.yaml of ExplainableML/FantasticGains, the defaults of Tian et al."""


class ContrastiveRepresentationDistillation(Objective):
    """CRD with a memory of every sample's two embeddings."""

    student_memory: Tensor
    teacher_memory: Tensor
    student_z: Tensor
    teacher_z: Tensor
    _seen: tuple[Tensor, Tensor, Tensor]  # index, student and teacher embeddings of the current batch

    def __init__(self, setup: Setup, *, negatives: int = NEGATIVES) -> None:
        super().__init__(setup)
        n = len(setup.labels)
        self.negatives = negatives
        self.others = OtherClasses(setup.labels)
        self.embed_student = nn.Linear(setup.student_dim, DIMENSIONS)
        self.embed_teacher = nn.Linear(setup.teacher_dim, DIMENSIONS)
        bound = 1.0 / math.sqrt(DIMENSIONS / 3)  # uniform entries whose rows have unit length on average
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_memory", torch.empty(n, DIMENSIONS).uniform_(-bound, bound))
            self.register_buffer(f"{side}_z", torch.zeros(()))

    def forward(self, batch: Batch) -> Tensor:
        """Losses in nats, float32 [b]."""
        student = F.normalize(self.embed_student(given(batch.features, "features").float()), dim=1)
        teacher = F.normalize(self.embed_teacher(given(batch.teacher_features, "teacher_features").float()), dim=1)
        compared = torch.cat([batch.index[:, None], self.others.draw(batch.labels, self.negatives)], dim=1)
        losses = self._against(student, self.teacher_memory, self.teacher_z, compared)
        losses = losses + self._against(teacher, self.student_memory, self.student_z, compared)
        self._seen = (batch.index, student.detach(), teacher.detach())
        return cross_entropy(batch.logits, batch.labels, "paper") + WEIGHT * losses

    def settle(self) -> None:
        """Move the memories of the batch's samples towards their new embeddings."""
        index, student, teacher = self._seen
        remember(self.student_memory, index, student)
        remember(self.teacher_memory, index, teacher)

    def _against(self, embedding: Tensor, memory: Tensor, z: Tensor, compared: Tensor) -> Tensor:
        """Eq. 18 for embeddings [b, 128] against the memory rows `compared` [b, 1 + N], the positive first: [b]."""
        dots = (embedding @ memory.T).gather(1, compared)
        exponentials = torch.exp(dots / TAU)
        with torch.no_grad():
            z.copy_(torch.where(z > 0, z, exponentials.mean() * len(memory)))
        return critic_loss(exponentials / z.clone(), samples=len(memory))


def critic_loss(exponentials: Tensor, *, samples: int) -> Tensor:
    """-log h(positive) - sum log(1 - h(negative)) with h = e / (e + N / M): float [b].

    Args:
        exponentials: e, float [b, 1 + N], the positive first.
        samples: M.
    """
    noise = (exponentials.shape[1] - 1) / samples
    positive, negatives = exponentials[:, 0], exponentials[:, 1:]
    log_h = torch.log(positive) - torch.log(positive + noise)
    log_not_h = math.log(noise) - torch.log(negatives + noise)
    return -log_h - log_not_h.sum(dim=1)


@torch.no_grad()
def remember(memory: Tensor, index: Tensor, embedding: Tensor) -> None:
    """Move the memory rows of `index` [b] halfway to their embeddings [b, 128], then back to unit length; in place."""
    blended = MOMENTUM * memory[index] + (1.0 - MOMENTUM) * embedding
    memory[index] = F.normalize(blended, dim=1)


class OtherClasses(nn.Module):
    """Draws samples whose label differs, uniformly and with replacement, with torch's own generator of the device.

    Raises:
        DataError: all labels are the same.
    """

    by_class: Tensor
    first: Tensor
    count: Tensor

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        count = torch.bincount(labels)
        if torch.count_nonzero(count) < 2:
            raise DataError(
                f"crd contrasts samples of different classes, and all {len(labels)} samples are of one; choose another "
                "objective"
            )
        self.register_buffer("by_class", torch.argsort(labels, stable=True), persistent=False)
        self.register_buffer("first", torch.cumsum(count, 0) - count, persistent=False)
        self.register_buffer("count", count, persistent=False)

    def draw(self, labels: Tensor, k: int) -> Tensor:
        """int64 [b, k] positions of samples of other classes than `labels` [b]."""
        others = (len(self.by_class) - self.count[labels])[:, None]
        rank = (torch.rand(len(labels), k, device=labels.device, dtype=torch.float64) * others).long()
        skipped = torch.where(rank >= self.first[labels][:, None], self.count[labels][:, None], 0)
        return self.by_class[rank + skipped]
