"""Changes of a transfer to the student's module: batch norm modes, the last layer, capture of its input features."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kt_study.errors import UsageError


def train_mode(model: nn.Module, batchnorm: str, *, only_last_layer: bool = False) -> None:
    """Set the student to train mode: dropout and stochastic depth on, batch norm by the setting.

    Args:
        model: changed in place.
        batchnorm: `train` normalises with the batch's statistics and moves the running ones; `frozen` normalises with
            the running ones and leaves them. Scale and shift learn in both.
        only_last_layer: the warm-up: only the last layer's parameters are trained, and batch norm does not move.
    """
    model.train()
    if batchnorm == "frozen" or only_last_layer:
        for module in batch_norms(model):
            module.eval()
    last = {id(parameter) for parameter in last_layer(model).parameters()} if only_last_layer else set()
    for parameter in model.parameters():
        parameter.requires_grad_(not only_last_layer or id(parameter) in last)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The modules whose output depends on the other samples of a batch."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def check_micro_batch(model: nn.Module, micro_batch: int, batchnorm: str) -> None:
    """Refuse to split batches if batch norm would see only parts of them.

    Raises:
        UsageError: the student has batch norm and it is in train mode.
    """
    if micro_batch and batchnorm == "train" and batch_norms(model):
        raise UsageError(
            f"micro_batch = {micro_batch} would change what the student's {len(batch_norms(model))} batch norms see;"
            " set batchnorm = 'frozen' or micro_batch = 0"
        )


def last_layer(model: nn.Module) -> nn.Module:
    """The layer from features to logits: what timm calls the classifier, else the last linear layer.

    Raises:
        UsageError: there is none.
    """
    get_classifier: Any = getattr(model, "get_classifier", None)
    named = get_classifier() if callable(get_classifier) else None
    if isinstance(named, nn.Module) and any(True for _ in named.parameters()):
        return named
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UsageError(
            f"{type(model).__name__} has no linear last layer; warm-up and contrastive objectives need one"
        )
    return linear[-1]


class FeatureTap(AbstractContextManager["FeatureTap"]):
    """Keeps the input of the last layer of each forward pass: features [b, d]."""

    def __init__(self, model: nn.Module) -> None:
        self._handle = last_layer(model).register_forward_pre_hook(self._keep)
        self.features: Tensor | None = None

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0].flatten(1)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def feature_dim(model: nn.Module, input_size: tuple[int, int, int], device: torch.device) -> int:
    """Length d of the features that enter the student's last layer. Forwards two blank images in eval mode."""
    was_training = model.training
    model.eval()
    with FeatureTap(model) as tap, torch.no_grad():
        model(torch.zeros(2, *input_size, device=device))
        assert tap.features is not None
    model.train(was_training)
    return int(tap.features.shape[1])
