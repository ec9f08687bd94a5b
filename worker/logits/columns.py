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
compare them, are those of live float32 models to the last sample, ties of saturated probabilities included. The log p
come from float64 arithmetic on the float32 logits. Without labels, label is -1 and the p of the label are NaN."""

FLOAT16_MAX = 65504.0


def side_columns(logits: torch.Tensor, labels: torch.Tensor | None) -> NDArray[np.void]:
    """Side columns [b] of type `SIDE`.

    Args:
        logits: float32 [b, classes], finite.
        labels: int64 [b] on the same device, or None.
    """
    side = np.zeros(len(logits), SIDE)
    p = torch.softmax(logits, dim=1)
    top = logits.argmax(dim=1, keepdim=True)
    exact = logits.double()
    highest = exact.gather(1, top)
    log_sum = (exact - highest).exp_().sum(dim=1, keepdim=True).log_()
    side["logsumexp"] = _column(highest + log_sum)
    side["argmax"] = _column(top)
    side["p_max"] = _column(p.gather(1, top))
    side["log_p_max"] = _column(0.0 - log_sum)
    if labels is None:
        side["label"], side["p_label"], side["log_p_label"] = -1, np.nan, np.nan
    else:
        side["label"] = labels.cpu().numpy()
        side["p_label"] = _column(p.gather(1, labels[:, None]))
        side["log_p_label"] = _column(exact.gather(1, labels[:, None]) - highest - log_sum)
    return side


def half(values: torch.Tensor) -> NDArray[np.float16]:
    """float16 on the host, rounded to nearest; finite values beyond float16's range become its largest."""
    return values.clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16).cpu().numpy()


def _column(values: torch.Tensor) -> NDArray[np.generic]:
    return values.squeeze(1).cpu().numpy()
