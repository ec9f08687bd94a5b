"""Parts of JPEGs: the same pixels as the whole, for every box; and bytes that are no good JPEG are survived."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.require import require
from worker.data.jpeg_parts import BLOCK, MARGIN, Box, part_around, restart_interval

Bytes = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _ffcv() -> None:
    require("ffcv", importlib.util.find_spec("ffcv") is not None, "ffcv is not installed")


@st.composite
def _boxes(draw: st.DrawFn, side: int = 200) -> tuple[int, int, Box]:
    """Height and width of a image, and a box in it that is often at an edge."""
    height, width = draw(st.integers(1, side)), draw(st.integers(1, side))
    top, left = (draw(st.just(0) | st.integers(0, size - 1)) for size in (height, width))
    bottom, right = (
        draw(st.just(size) | st.integers(begin + 1, size)) for begin, size in ((top, height), (left, width))
    )
    return height, width, Box(top, left, bottom, right)


@settings(max_examples=400, deadline=None)
@given(_boxes(), st.sampled_from([50, 90, 100]), st.integers(0, 20), st.integers(0, 1000))
def test_every_box_is_that_of_the_whole_image(
    where: tuple[int, int, Box], quality: int, interval: int, seed: int
) -> None:
    """With the interval that betons have (0), with others, and with those that do not divide a row."""
    height, width, box = where
    jpeg = _encoded(_noise(height, width, seed), quality, interval or restart_interval(width))
    part, at = part_around(jpeg, height, width, box)
    assert np.array_equal(_inside(_decoded(part, at), box, at), _inside(_decoded(jpeg, _whole(height, width)), box))


@settings(max_examples=200, deadline=None)
@given(_boxes(side=500), st.integers(0, 1000))
def test_little_is_decoded_beside_the_box(where: tuple[int, int, Box], seed: int) -> None:
    height, width, box = where
    jpeg = _encoded(_noise(height, width, seed), 90, restart_interval(width))
    part, at = part_around(jpeg, height, width, box)
    wide = BLOCK * restart_interval(width)
    assert max(box.top - MARGIN - BLOCK, -1) < at.top <= box.top
    assert max(box.left - MARGIN - wide, -1) < at.left <= box.left
    assert box.bottom <= at.bottom < min(box.bottom + MARGIN + BLOCK, height + 1)
    assert box.right <= at.right < min(box.right + MARGIN + wide, width + 1)
    assert Image.open(io.BytesIO(part.tobytes())).size == (at.right - at.left, at.bottom - at.top)
    assert len(part) <= len(jpeg)


def test_a_part_is_a_whole_jpeg() -> None:
    """Decoded without a warning, which OpenCV and Pillow would hide: more than eight segments, so that numbers repeat."""
    from ffcv.libffcv import imdecode

    jpeg = _encoded(_noise(300, 400, 0), 90, restart_interval(400))
    part, at = part_around(jpeg, 300, 400, Box(70, 90, 250, 333))
    height, width = at.bottom - at.top, at.right - at.left
    assert (height, width) == (192, 320)
    assert imdecode(part, np.zeros((height, width, 3), np.uint8), height, width, height, width) == 0


def test_the_whole_image_is_not_copied() -> None:
    jpeg = _encoded(_noise(80, 96, 0), 90, 2)
    part, at = part_around(jpeg, 80, 96, Box(1, 1, 79, 95))
    assert np.shares_memory(part, jpeg)
    assert at == _whole(80, 96)


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ({}, Box(0, 0, 64, 120)),
        ({"exif": b"Exif" * 100}, Box(0, 0, 64, 120)),
        ({"subsampling": 0}, Box(0, 0, 64, 120)),
        ({"subsampling": 0, "restart_marker_blocks": 3}, Box(0, 0, 64, 120)),
        ({"subsampling": 1, "restart_marker_rows": 1}, Box(0, 0, 64, 120)),
        ({"subsampling": 2, "restart_marker_blocks": 3}, Box(0, 0, 64, 120)),
        ({"subsampling": 2, "restart_marker_blocks": 2, "exif": b"Exif" * 100}, Box(16, 0, 64, 64)),
        ({"subsampling": 2, "restart_marker_rows": 1, "optimize": True}, Box(16, 0, 64, 120)),
        ({"subsampling": 2, "restart_marker_rows": 2}, Box(0, 0, 64, 120)),
        ({"progressive": True}, Box(0, 0, 90, 120)),
        ({"progressive": True, "restart_marker_blocks": 2}, Box(0, 0, 90, 120)),
        ({"grey": True, "restart_marker_blocks": 3}, Box(0, 0, 64, 120)),
    ],
)
def test_jpegs_by_another_writer(how: dict[str, object], part: Box) -> None:
    """Only chroma halved both ways and markers at the begin of each row are taken apart, the others cut below the box."""
    stream, box = io.BytesIO(), Box(31, 7, 60, 50)
    image = Image.fromarray(_noise(90, 120, 3)).convert("L" if how.pop("grey", False) else "RGB")
    image.save(stream, "JPEG", **how)
    jpeg = np.frombuffer(stream.getvalue(), np.uint8)
    cut, at = part_around(jpeg, 90, 120, box)
    assert at == part
    assert np.array_equal(_inside(_decoded(cut, at), box, at), _inside(_decoded(jpeg, _whole(90, 120)), box))


def test_a_jpeg_of_another_size_than_said_is_left_alone() -> None:
    jpeg = _encoded(_noise(90, 120, 0), 90, 2)
    for height, width in ((89, 120), (90, 121), (120, 90)):
        part, at = part_around(jpeg, height, width, Box(0, 0, 20, 20))
        assert np.array_equal(part, jpeg)
        assert at == _whole(height, width)


def test_a_wrong_marker_and_a_missing_one_are_seen() -> None:
    jpeg = _encoded(_noise(96, 96, 0), 90, 2)
    for changed in (_with_marker(jpeg, 4, 0xD7), _with_marker(jpeg, 4, 0xD9), _with_marker(jpeg, 4, 0x00)):
        part, at = part_around(changed, 96, 96, Box(33, 33, 60, 60))
        assert at == Box(0, 0, 64, 96), "only cut below the box"
        assert np.array_equal(np.delete(part, _size_bytes(part)), np.delete(changed, _size_bytes(changed)))
        _, at = part_around(changed, 96, 96, Box(0, 0, 12, 12))
        assert at == Box(0, 0, 16, 32), "what lies behind is not looked at"


def test_nothing_beyond_an_array_is_touched(tmp_path: Path) -> None:
    """Cut, changed and random bytes, with numba's check of every index switched on, and nothing compiled before."""
    switched_on = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "tests.data.bounds"], env=switched_on, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "checked" in done.stdout


@pytest.mark.parametrize("width", [1, 16, 17, 176, 256, 333, 375, 500, 496, 1021, 65535])
def test_rows_begin_behind_a_marker(width: int) -> None:
    assert -(-width // BLOCK) % restart_interval(width) == 0
    assert 1 <= restart_interval(width) <= 8
    assert restart_interval(500) == 2


def _noise(height: int, width: int, seed: int) -> Bytes:
    """Colours that change from pixel to pixel, so that chroma shows what it is interpolated with."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _encoded(pixels: Bytes, quality: int, interval: int) -> Bytes:
    import cv2

    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    return np.asarray(cv2.imencode(".jpg", pixels, settings)[1]).reshape(-1)


def _decoded(jpeg: Bytes, at: Box) -> Bytes:
    """By ffcv's decoder, as its loader calls it."""
    from ffcv.libffcv import imdecode

    height, width = at.bottom - at.top, at.right - at.left
    pixels = np.zeros((height, width, 3), np.uint8)
    imdecode(jpeg, pixels, height, width, height, width)
    return pixels


def _inside(pixels: Bytes, box: Box, at: Box | None = None) -> Bytes:
    top, left = (at.top, at.left) if at else (0, 0)
    return pixels[box.top - top : box.bottom - top, box.left - left : box.right - left]


def _whole(height: int, width: int) -> Box:
    return Box(0, 0, height, width)


def _with_marker(jpeg: Bytes, number: int, kind: int) -> Bytes:
    """The JPEG with its restart marker of this number (from 0) made another."""
    places = [at for at in np.flatnonzero(jpeg[:-1] == 0xFF) if 0xD0 <= jpeg[at + 1] <= 0xD7]
    changed = jpeg.copy()
    changed[places[number] + 1] = kind
    return changed


def _size_bytes(jpeg: Bytes) -> list[int]:
    at = jpeg.tobytes().index(b"\xff\xc0")
    return [at + i for i in range(5, 9)]
