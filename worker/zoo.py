"""Small models for 32-pixel images, built from timm architectures whose registered names have a larger patch size.

The embedded digits zoo names them in its model records as factories.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def mixer(num_classes: int, **sizes: Any) -> nn.Module:
    """timm's MLP-Mixer (Tolstikhin et al. 2021): [b, 3, h, w] -> logits [b, num_classes]."""
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=num_classes, **sizes)


def resmlp(num_classes: int, **sizes: Any) -> nn.Module:
    """timm's ResMLP (Touvron et al. 2021): [b, 3, h, w] -> logits [b, num_classes]."""
    from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock

    return MlpMixer(num_classes=num_classes, mlp_ratio=4, block_layer=ResBlock, norm_layer=Affine, **sizes)


def gmlp(num_classes: int, **sizes: Any) -> nn.Module:
    """timm's gMLP (Liu et al. 2021): [b, 3, h, w] -> logits [b, num_classes]."""
    from timm.layers.mlp import GatedMlp
    from timm.models.mlp_mixer import MlpMixer, SpatialGatingBlock

    return MlpMixer(num_classes=num_classes, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp, mlp_ratio=6, **sizes)
