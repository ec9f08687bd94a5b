"""A teacher forwarded beside the student, in train mode, like the contrastive teachers of the released code.

Its batch norm uses the batch and updates its running statistics, so that its outputs cannot be cached. It is not trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker.data.loader import Views
from worker.training.student import FeatureTap, last_layer


class LiveTeacher:
    """Features of a teacher in train mode.

    Args:
        model: the teacher, on the device; its last layer is put into eval mode, as in the released code.
        views: the student's views under the teacher's own size and normalisation.
        dim: length of the features.
    """

    def __init__(self, model: nn.Module, views: Views, *, dim: int) -> None:
        self.views = views
        self.dim = dim
        self._model = model.train()
        last_layer(model).eval()
        self._tap = FeatureTap(model)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features float [b, d] of the teacher's images [b, 3, h, w]."""
        self._model(images)
        assert self._tap.features is not None
        return self._tap.features

    def state_dict(self) -> dict[str, Tensor]:
        """The buffers, which the batches change."""
        return dict(self._model.named_buffers())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore from a checkpoint."""
        for name, buffer in self._model.named_buffers():
            buffer.copy_(state[name])
