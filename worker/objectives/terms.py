"""The terms that the objectives are made of, each one loss per sample, in nats.

b samples, c classes; z_s and z_t are the logits of student and target, T the temperature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.objectives.base import Batch, given


def kl_divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)), the paper's Eq. 2.

    T^2 keeps the gradient's size as T grows (Hinton et al. 2015, Sec. 2.1).

    Args:
        logits: z_s, float32 [b, c].
        target: z_t, float [b, c]; no gradient flows into it.

    Returns:
        float32 [b], at least 0.
    """
    log_p = F.log_softmax(logits / temperature, dim=1)
    log_q = F.log_softmax(target.float() / temperature, dim=1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1) * temperature**2


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """-T^2 sum_c softmax(z_t / T)_c log softmax(z_s / T)_c: `kl_divergence` plus the target's entropy, float32 [b]."""
    q = F.softmax(target.float() / temperature, dim=1)
    return F.cross_entropy(logits / temperature, q, reduction="none") * temperature**2


def cross_entropy(logits: Tensor, labels: Tensor, reading: str, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy against labels, float32 [b].

    `reading = "paper"`: -log softmax(z_s)_y, the labels smoothed to (1 - e) [c = y] + e / C (Szegedy et al. 2016,
    Sec. 7). `reading = "authors"`: the released code passes probabilities to a loss that takes logits, so that softmax
    is applied twice, and smooths the student's probabilities instead of the labels (main_distillation.py of
    ExplainableML/FantasticGains).
    """
    if reading == "paper":
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    p = F.softmax(logits, dim=1)
    return F.cross_entropy((1 - smoothing) * p + smoothing / p.shape[1], labels, reduction="none")


def restricted(batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """Logits of student and target, [b, c], or [b, k] in the target's k likeliest classes, for k > 0 (Sec. B.1).

    A softmax over them is renormalised among these classes, as in the released code.
    """
    target = given(batch.target, "target")
    if not 0 < k < target.shape[1]:
        return batch.logits, target
    classes = torch.topk(target, k, dim=1).indices
    return batch.logits.gather(1, classes), target.gather(1, classes)
