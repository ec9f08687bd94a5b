"""Images of a split as bytes, ready to be normalised: uint8 [b, 3, height, width]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kt_study.datasets import Split
from kt_study.records import ModelRecord
from worker.data.views import ViewRecipe, boxes, coloured, colours, flips

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


class Images(Protocol):
    """Renders any samples of a split. Can be sent to another process."""

    @property
    def n(self) -> int:
        """Samples in the split."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    def render(self, view: int, indices: NDArray[np.int64]) -> torch.Tensor:
        """uint8 [b, 3, h, w]. Raises DataError naming the file of an unreadable image."""
        ...


@dataclass(frozen=True)
class EvaluationImages:
    """timm's own evaluation preprocessing of a model, up to the bytes before normalisation."""

    split: Split
    size: tuple[int, int]
    transform: Callable[[Image.Image], torch.Tensor]  # made before any worker is, which then need not import timm

    @classmethod
    def of(cls, split: Split, model: ModelRecord) -> EvaluationImages:
        """The images of a split as a model is evaluated on them."""
        return cls(split, model.input_size[1:], evaluation_transform(model, to_bytes=True))

    @property
    def n(self) -> int:
        """Samples in the split."""
        return self.split.n

    def render(self, view: int, indices: NDArray[np.int64]) -> torch.Tensor:  # noqa: ARG002
        """uint8 [b, 3, h, w]; `view` plays no part."""
        return torch.stack([self.transform(self.split.image(int(i))) for i in indices])


@dataclass(frozen=True)
class TrainingImages:
    """Views of a recipe at a model's input size and interpolation."""

    split: Split
    model: ModelRecord
    recipe: ViewRecipe

    @property
    def n(self) -> int:
        """Samples in the split."""
        return self.split.n

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.model.input_size[1:]

    def render(self, view: int, indices: NDArray[np.int64]) -> torch.Tensor:
        """uint8 [b, 3, h, w] of one view."""
        images = [self.split.image(int(i)) for i in indices]
        sizes = np.array([image.size for image in images])
        box = boxes(self.recipe, view, indices, sizes[:, 1], sizes[:, 0])
        flip, colour = flips(self.recipe, view, indices), colours(self.recipe, view, indices)
        batch = np.empty((len(images), 3, *self.size), np.uint8)
        for i, image in enumerate(images):
            pixels = _cropped(image, box[i], bool(flip[i]), self.size, RESAMPLING[self.model.interpolation])
            batch[i] = (pixels if colour is None else coloured(pixels, colour, i)).transpose(2, 0, 1)
        return torch.from_numpy(batch)


def evaluation_transform(model: ModelRecord, *, to_bytes: bool = False) -> Callable[[Image.Image], torch.Tensor]:
    """timm's evaluation transform for this model: PIL RGB -> float32 [3, h, w], normalised.

    With `to_bytes` it stops before the normalisation: uint8 [3, h, w].
    """
    from timm.data.transforms_factory import create_transform

    transform: Callable[[Image.Image], torch.Tensor] = create_transform(
        input_size=model.input_size,
        is_training=False,
        interpolation=model.interpolation,
        mean=model.mean,
        std=model.std,
        crop_pct=model.crop_pct,
        crop_mode=model.crop_mode,
        normalize=not to_bytes,
    )
    return transform


def _cropped(
    image: Image.Image, box: NDArray[np.int64], flip: bool, size: tuple[int, int], resampling: Any
) -> NDArray[np.uint8]:
    top, left, height, width = (int(side) for side in box)
    resized = image.resize((size[1], size[0]), resampling, box=(left, top, left + width, top + height))
    if flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(resized)
