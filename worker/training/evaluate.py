"""Predictions of the student on the validation split, in its own evaluation view and full precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worker.data.loader import Views
from worker.job.context import Stopped
from worker.training.slow_weights import SlowWeights


def predictions(
    model: nn.Module,
    views: Views,
    *,
    batch_size: int,
    slow: SlowWeights | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> NDArray[np.int64]:
    """Predicted class of every sample, int64 [n].

    Args:
        model: put into eval mode and left there.
        views: the split under the model's own preprocessing.
        slow: slow weights to use in place of the model's own, which stay as they are.
        stopping: called before each batch; True to stop.

    Raises:
        Stopped: `stopping` returned True.
    """
    model.eval()
    predicted: list[Tensor] = []
    with torch.inference_mode():
        for images, _ in views.batches(np.arange(views.n), batch_size):
            if stopping():
                raise Stopped
            logits = model(images) if slow is None else torch.func.functional_call(model, slow.state, (images,))
            predicted.append(logits.argmax(dim=1))
    return np.asarray(torch.cat(predicted).cpu().numpy())


def accuracy(predicted: NDArray[np.int64], labels: NDArray[np.integer]) -> float | None:
    """Top-1 accuracy in %; None without labels, which are -1 then."""
    if labels.min() < 0:
        return None
    return float(np.count_nonzero(predicted == labels)) * 100.0 / len(labels)
