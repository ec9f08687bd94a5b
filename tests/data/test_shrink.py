"""Area averaging against OpenCV's own, to the bit, and against exact fractions."""

from __future__ import annotations

import importlib.util
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.require import require
from worker.data.jpeg_parts import Box
from worker.data.shrink import can_shrink, shrink

Bytes = NDArray[np.uint8]


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(0, 150), st.integers(0, 150)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.sampled_from(["noise", "white", "edges"]),
    st.integers(0, 1000),
)
def test_as_opencv_does_it(
    small: tuple[int, int], more: tuple[int, int], corner: tuple[int, int], look: str, seed: int
) -> None:
    _compare(small, (small[0] + more[0], small[1] + more[1]), corner, look, seed)


@pytest.mark.parametrize(
    "size",
    [(225, 224), (224, 225), (448, 300), (300, 448), (375, 500), (447, 449), (671, 673), (224, 2000), (331, 263)],
)
def test_as_opencv_does_it_at_the_size_of_imagenet(size: tuple[int, int]) -> None:
    for look in ("noise", "white", "edges"):
        _compare((224, 224), size, (3, 2), look, 0)


def test_the_mean_of_what_is_covered() -> None:
    """Five pixels to three: by exact fractions, rounded."""
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    weights = np.array([[3, 2, 0, 0, 0], [0, 1, 3, 1, 0], [0, 0, 0, 2, 3]]) * Fraction(1, 5)
    expected = np.einsum("yi,xj,ijc->yxc", weights, weights, image.astype(object))
    got = np.zeros((3, 3, 3), np.uint8)
    shrink(image, Box(0, 0, 5, 5), got)
    assert abs(got.astype(object) - expected).max() < Fraction(501, 1000)


@pytest.mark.parametrize(
    ("size", "can"),
    [
        ((224, 224), False),  # nothing to do
        ((448, 448), False),  # whole fractions: OpenCV adds up integers
        ((448, 672), False),
        ((223, 500), False),  # one side grows: OpenCV interpolates
        ((500, 223), False),
        ((448, 449), True),
        ((225, 224), True),
    ],
)
def test_what_is_left_to_opencv(size: tuple[int, int], can: bool) -> None:
    assert can_shrink(Box(4, 5, 4 + size[0], 5 + size[1]), np.zeros((224, 224, 3), np.uint8)) == can


def _compare(small: tuple[int, int], size: tuple[int, int], corner: tuple[int, int], look: str, seed: int) -> None:
    require("ffcv", importlib.util.find_spec("ffcv") is not None, "ffcv is not installed")
    from ffcv.libffcv import resize_crop

    box = Box(*corner, corner[0] + size[0], corner[1] + size[1])
    got, expected = np.zeros((*small, 3), np.uint8), np.zeros((*small, 3), np.uint8)
    if not can_shrink(box, got):
        return
    image = _image(look, box.bottom + 1, box.right + 2, seed)
    resize_crop(image, box.top, box.bottom, box.left, box.right, expected)
    shrink(image, box, got)
    assert np.array_equal(got, expected)


def _image(look: str, height: int, width: int, seed: int) -> Bytes:
    if look == "white":
        return np.full((height, width, 3), 255, np.uint8)
    draws = np.random.default_rng(seed)
    if look == "edges":  # many means half-way between two numbers
        return draws.integers(0, 2, (height, width, 3), dtype=np.uint8) * np.uint8(255)
    return draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
