"""The columns of a cached forward pass, computed once from float32 logits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

SIDE = np.dtype(
    [
        ("logsumexp", "<f4"),
        ("log_p_label", "<f4"),
        ("log_p_max", "<f4"),
        ("p_label", "<f4"),
        ("p_max", "<f4"),
        ("argmax", "<i4"),
        ("label", "<i4"),
    ]
)
"""Side columns of one sample. The p are torch's float32 softmax, kept so that the masks of data partitioning, which
compare them, equal those of live float32 models for every sample, ties of saturated probabilities included. The log p
come from float64 arithmetic on the float32 logits. Without labels, label is -1 and the p of the label are NaN."""

FLOAT16_MAX = 65504.0


def side_bits(logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """The side columns of b samples, int32 [b, 7] on the device: the bytes of `SIDE`, for a single copy.

    Args:
        logits: float32 [b, classes]; logsumexp is NaN for a sample with one that is not finite.
        labels: int64 [b] on the same device, or None.
    """
    p = torch.softmax(logits, dim=1)
    top = logits.argmax(dim=1, keepdim=True)
    exact = logits.double()
    highest = exact.gather(1, top)
    log_sum = (exact - highest).exp_().sum(dim=1, keepdim=True).log_()
    finite = logits.isfinite().all(dim=1, keepdim=True)
    logsumexp = torch.where(finite, highest + log_sum, torch.nan)
    if labels is None:
        label = torch.full_like(top, -1)
        p_label, log_p_label = torch.full_like(highest, torch.nan), torch.full_like(highest, torch.nan)
    else:
        label = labels[:, None]
        p_label, log_p_label = p.gather(1, label), exact.gather(1, label) - highest - log_sum
    reals = (logsumexp, log_p_label, 0.0 - log_sum, p_label, p.gather(1, top))
    bits = torch.cat([column.float() for column in reals], dim=1).view(torch.int32)
    return torch.cat([bits, top.int(), label.int()], dim=1)


def as_side(bits: NDArray[np.int32]) -> NDArray[np.void]:
    """Side columns [b] of type `SIDE` from the result of `side_bits` on the host."""
    return bits.view(SIDE)[:, 0]


def half(values: torch.Tensor) -> torch.Tensor:
    """float16, rounded to nearest; finite values beyond float16's range become its largest."""
    return values.clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)
