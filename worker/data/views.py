"""Training views: crop boxes, flips and colours from a counter-based hash of (seed, view, sample index).

There is no generator state, so a sample's view is the same in every batch, order, process or resumed run. Boxes are computed
only with additions, multiplications, divisions and square roots, which IEEE 754 rounds identically on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kt_study.hashing import hash64, uniform_array

Augment = Literal["none", "flip", "crop_flip", "authors"]

CROP_SCALE = (0.08, 1.0)
"""Share of the image's area in a random crop (Szegedy et al. 2015; torchvision RandomResizedCrop)."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Width over height of a random crop (same source)."""
LOG_RATIO = 0.28768207245178085
"""log(4/3): the logarithm of the ratio is uniform between minus and plus this."""
CROP_TRIES = 10
"""Draws before the central crop is taken (torchvision RandomResizedCrop.get_params)."""

JITTER_P, GREY_P = 0.8, 0.2
JITTER = 0.8
"""Brightness, contrast and saturation are scaled by 1 +- this."""
HUE = 0.2
"""Hue is turned by up to this share of the circle, either way."""
# The four: ExplainableML/FantasticGains distillation/data.py (recipe "default", strength 1) and
# ffcv_transforms/color_distortion.py.

SLOTS = 64
"""Random numbers set aside for each sample of a stream; a crop uses four a try."""

_FIXED = 1 << 16  # colour arithmetic is 16.16 fixed point, so that numpy and numba agree to the bit


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """What a training view does. `crop_pct` is the side of the centre crop, as a share of the image's shorter side."""

    augment: Augment = "crop_flip"
    seed: int = 0
    crop_pct: float = 0.875

    def key(self, view: int, stream: str) -> int:
        """The 64-bit key of one stream of random numbers: crop, flip, jitter or grey."""
        return hash64("view", self.seed, view, stream)


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Colour parameters of b views, in 16.16 fixed point: int64 [b], and [b, 3, 3] for the turn of hue."""

    jitter: NDArray[np.bool_]
    brightness: NDArray[np.int64]
    contrast: NDArray[np.int64]
    saturation: NDArray[np.int64]
    hue: NDArray[np.int64]
    grey: NDArray[np.bool_]


def boxes(
    recipe: ViewRecipe,
    view: int,
    indices: NDArray[np.integer[Any]],
    heights: NDArray[np.integer[Any]],
    widths: NDArray[np.integer[Any]],
) -> NDArray[np.int64]:
    """Crop boxes of b samples.

    Args:
        recipe, view: which views.
        indices: int [b], positions in the split.
        heights, widths: int [b], pixels of each stored image.

    Returns:
        int64 [b, 4]: top, left, height, width in pixels of the stored image.
    """
    height, width = heights.astype(np.int64), widths.astype(np.int64)
    if recipe.augment != "crop_flip":
        return _centre_boxes(height, width, recipe.crop_pct)
    return _random_boxes(recipe.key(view, "crop"), indices.astype(np.int64), height, width)


def flips(recipe: ViewRecipe, view: int, indices: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Which of b samples are mirrored, bool [b]; probability one half, none where the recipe has no flip."""
    if recipe.augment == "none":
        return np.zeros(indices.shape, np.bool_)
    return uniform_array(recipe.key(view, "flip"), indices) < 0.5


def colours(recipe: ViewRecipe, view: int, indices: NDArray[np.integer[Any]]) -> Colours | None:
    """Colour distortion and greyscale of b samples, or None where the recipe leaves colours alone."""
    if recipe.augment != "authors":
        return None
    draw = uniform_array(recipe.key(view, "jitter"), indices.astype(np.int64)[:, None] * SLOTS + np.arange(5))
    factors = _fixed(1 - JITTER + 2 * JITTER * draw[:, 1:4])
    return Colours(
        jitter=draw[:, 0] < JITTER_P,
        brightness=factors[:, 0],
        contrast=factors[:, 1],
        saturation=factors[:, 2],
        hue=_hue_turns(2 * np.pi * HUE * (2 * draw[:, 4] - 1)),
        grey=uniform_array(recipe.key(view, "grey"), indices) < GREY_P,
    )


def coloured(pixels: NDArray[np.uint8], colour: Colours, i: int) -> NDArray[np.uint8]:
    """Pixels [h, w, 3] with the colours of sample i of a batch: brightness, contrast, saturation, hue, grey."""
    if colour.jitter[i]:
        pixels = _rounded(pixels * colour.brightness[i])
        mean = int(_grey(pixels).mean(dtype=np.float64) + 0.5)
        pixels = _rounded(pixels * colour.contrast[i] + mean * (_FIXED - colour.contrast[i]))
        grey = _grey(pixels)[..., None].astype(np.int64)
        pixels = _rounded(pixels * colour.saturation[i] + grey * (_FIXED - colour.saturation[i]))
        pixels = _rounded(pixels.astype(np.int64) @ colour.hue[i].T)
    if colour.grey[i]:
        pixels = np.repeat(_grey(pixels)[..., None], 3, axis=2)
    return pixels


def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order in which an epoch visits n samples: a permutation, int64 [n], the same wherever it is asked for."""
    keys = uniform_array(hash64("order", seed, epoch), np.arange(n))
    return np.argsort(keys, kind="stable").astype(np.int64)


def small_exp(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(y) for |y| < 0.3 to within one unit in the last place, by Horner's rule: alike on every platform."""
    total = np.ones_like(y)
    for k in range(14, 0, -1):
        total = 1.0 + y / k * total
    return total


def _random_boxes(
    key: int, indices: NDArray[np.int64], height: NDArray[np.int64], width: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The first of ten draws that fits, as torchvision's RandomResizedCrop, else the central crop of allowed ratio."""
    draw = uniform_array(key, indices[:, None] * SLOTS + np.arange(4 * CROP_TRIES)).reshape(-1, CROP_TRIES, 4)
    area = (height * width).astype(np.float64)[:, None] * (
        CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * draw[..., 0]
    )
    ratio = small_exp(LOG_RATIO * (2 * draw[..., 1] - 1))
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    rows, first = np.arange(len(indices)), fits.argmax(axis=1)
    h, w, draw = h[rows, first], w[rows, first], draw[rows, first]
    top = np.floor(draw[:, 2] * (height - h + 1)).astype(np.int64)
    left = np.floor(draw[:, 3] * (width - w + 1)).astype(np.int64)
    found = np.asarray(fits.any(axis=1))
    drawn = np.stack([top, left, h, w], axis=1)
    return np.where(found[:, None], drawn, _fallback_boxes(height, width))


def _fallback_boxes(height: NDArray[np.int64], width: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest central crop whose ratio is allowed."""
    narrow, wide = width < CROP_RATIO[0] * height, width > CROP_RATIO[1] * height
    h = np.where(narrow, np.rint(width / CROP_RATIO[0]).astype(np.int64), height)
    w = np.where(wide, np.rint(height * CROP_RATIO[1]).astype(np.int64), width)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1)


def _centre_boxes(height: NDArray[np.int64], width: NDArray[np.int64], crop_pct: float) -> NDArray[np.int64]:
    side = np.maximum(1, np.floor(crop_pct * np.minimum(height, width)).astype(np.int64))
    return np.stack([(height - side) // 2, (width - side) // 2, side, side], axis=1)


def _hue_turns(angle: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rotations about the grey axis of the RGB cube, [b, 3, 3] fixed point (Rodrigues' formula)."""
    cos, third = np.cos(angle)[:, None, None], (1 - np.cos(angle))[:, None, None] / 3
    sin = np.sin(angle)[:, None, None] * np.sqrt(1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return _fixed(np.eye(3) * cos + third + cross * sin)


def _fixed(value: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(value * _FIXED).astype(np.int64)


def _rounded(fixed: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.asarray(np.clip((fixed + _FIXED // 2) >> 16, 0, 255), dtype=np.uint8)


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luma of ITU-R BT.601, uint8 [h, w]."""
    return _rounded(pixels.astype(np.int64) @ np.array([19595, 38470, 7471]))
