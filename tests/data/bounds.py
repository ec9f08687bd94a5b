"""Run by `test_jpeg_parts.py` with numba's check of every index: parts of thousands of bad JPEGs, and all sizes shrunk."""

from __future__ import annotations

import io
import itertools

import numba
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.data.jpeg_parts import Box, part_around
from worker.data.shrink import can_shrink, shrink

Bytes = NDArray[np.uint8]
TIMES = 4000


def main() -> None:
    """Try them all; an index out of bounds raises."""
    assert numba.config.BOUNDSCHECK, "or this would prove nothing"  # type: ignore[attr-defined]
    draws = np.random.default_rng(0)
    good = [_jpeg(draws, 90, 120, blocks) for blocks in (0, 1, 2, 4, 8)]
    for end in range(len(good[1])):
        _look(draws, good[1][:end])
    for _ in range(TIMES):
        _look(draws, _spoilt(draws, good[int(draws.integers(len(good)))]))
        _look(draws, draws.choice(np.array([0, 2, 17, 0xC0, 0xD0, 0xD9, 0xDA, 0xDD, 0xFF], np.uint8), 200))
    for height, width in itertools.product(range(7, 40), range(7, 40)):
        _shrink(draws.integers(0, 256, (height, width, 3), dtype=np.uint8), np.zeros((7, 5, 3), np.uint8))
    _shrink(draws.integers(0, 256, (331, 517, 3), dtype=np.uint8), np.zeros((224, 224, 3), np.uint8))
    print("checked")


def _look(draws: np.random.Generator, jpeg: Bytes) -> None:
    top, left = int(draws.integers(89)), int(draws.integers(119))
    box = Box(top, left, int(draws.integers(top + 1, 91)), int(draws.integers(left + 1, 121)))
    part, at = part_around(jpeg, 90, 120, box)
    assert len(part) <= len(jpeg)
    assert at.top <= box.top < box.bottom <= at.bottom <= 90
    assert at.left <= box.left < box.right <= at.right <= 120


def _shrink(image: Bytes, target: Bytes) -> None:
    box = Box(0, 0, image.shape[0], image.shape[1])
    if can_shrink(box, target):
        shrink(image, box, target)


def _jpeg(draws: np.random.Generator, height: int, width: int, blocks: int) -> Bytes:
    stream = io.BytesIO()
    pixels = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", subsampling=2, restart_marker_blocks=blocks)
    return np.frombuffer(stream.getvalue(), np.uint8)


def _spoilt(draws: np.random.Generator, jpeg: Bytes) -> Bytes:
    """A few bytes changed, most of them in the header or to 0xFF, and often the end cut off."""
    spoilt = jpeg[: int(draws.integers(len(jpeg)))].copy() if draws.random() < 0.5 else jpeg.copy()
    for _ in range(int(draws.integers(1, 5))):
        if len(spoilt):
            at = int(draws.integers(min(len(spoilt), 700) if draws.random() < 0.7 else len(spoilt)))
            spoilt[at] = 0xFF if draws.random() < 0.3 else draws.integers(256)
    return spoilt


if __name__ == "__main__":
    main()
