"""Extracts a part of a stored JPEG as a smaller JPEG, so that little more than the crop box is decoded.

`worker.data.betons` writes a restart marker after every few blocks of a row. The segment between two markers can be decoded
without the data before it. The segments that intersect a box, after a header with their height and width, are a valid JPEG
with the same pixels. A JPEG without markers, from ffcv's own writer or earlier versions, can still be cut below the box.

This runs in ffcv's compiled decoder, which checks no index: every position is compared with the length before it is read,
and a JPEG with unexpected contents is returned whole.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.measures.jit import compiled

Bytes = NDArray[np.uint8]
Int = int | np.int64

BLOCK = 16
"""Rows and columns that are coded together where chroma is halved both ways, as OpenCV's encoder does."""
MARGIN = 2
"""Pixels decoded on every side of a box: its chroma is interpolated with the next sample, which is two pixels wide."""
_WIDEST = 8  # blocks between two markers; with more, segments hold too much that is beside the box
_MARKER, _FRAME, _RESTART, _END, _SCAN, _INTERVAL = 0xFF, 0xC0, 0xD0, 0xD9, 0xDA, 0xDD
_LOW_BITS, _ONES = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x0101010101010101)  # of eight bytes


class Box(NamedTuple):
    """Rows from top up to bottom, columns from left up to right; bottom and right are outside."""

    top: Int
    left: Int
    bottom: Int
    right: Int


class _Landmarks(NamedTuple):
    """Where a JPEG's parts begin: its frame's header (-1 where it is not baseline), its scan's header, the coded data."""

    frame: Int
    scan: Int
    coded: Int
    interval: Int  # blocks between two restart markers; 0 for none


def restart_interval(width: int) -> int:
    """How many blocks to put between two restart markers, so that every row of an image begins behind one.

    The fewer, the less is decoded beside a box, and the longer the file: 2 % with two blocks, 5 % with one.
    """
    across = -(-width // BLOCK)
    return next((blocks for blocks in range(2, _WIDEST + 1) if across % blocks == 0), 1)


@compiled
def part_around(stored: Bytes, height: Int, width: Int, box: Box) -> tuple[Bytes, Box]:
    """A small part of a JPEG from which a box can be decoded, and where it is in the image.

    The box's pixels decoded from the part are, to the bit, those decoded from the whole.

    Args:
        stored: a JPEG.
        height, width: of its image.
        box: within the image.
    """
    marks, whole = _landmarks(stored), Box(0, 0, height, width)
    if marks.frame < 0 or _number(stored, marks.frame + 5) != height or _number(stored, marks.frame + 7) != width:
        return stored, whole
    bottom = min(_rounded_up(box.bottom + MARGIN, BLOCK), height)
    if _can_be_taken_apart(stored, marks, width):
        wide = BLOCK * marks.interval
        top, left = max(box.top - MARGIN, 0) // BLOCK * BLOCK, max(box.left - MARGIN, 0) // wide * wide
        part = Box(top, left, bottom, min(_rounded_up(box.right + MARGIN, wide), width))
        segments = stored if part == whole else _segments(stored, marks, width, part)
        if len(segments) > 0:
            return segments, part
    if bottom == height:
        return stored, whole
    rows = stored.copy()
    _set_size(rows, marks.frame, bottom, width)
    return rows, Box(0, 0, bottom, width)


@compiled
def _landmarks(stored: Bytes) -> _Landmarks:
    at, frame, interval = np.int64(2), np.int64(-1), np.int64(0)
    while at + 6 <= len(stored) and stored[at] == _MARKER:
        kind, behind = stored[at + 1], at + 2 + _number(stored, at + 2)
        if kind == _FRAME and behind >= at + 10:
            frame = at
        elif kind == _INTERVAL:
            interval = _number(stored, at + 4)
        elif kind == _SCAN and behind <= len(stored):
            return _Landmarks(frame, at, behind, interval)
        at = behind
    return _Landmarks(-1, 0, 0, 0)


@compiled
def _can_be_taken_apart(stored: Bytes, marks: _Landmarks, width: Int) -> bool:
    """Whether rows begin behind a restart marker, all three components are in one scan, and chroma is halved both ways."""
    if marks.interval == 0 or _rounded_up(width, BLOCK) // BLOCK % marks.interval != 0:
        return False
    if _number(stored, marks.frame + 2) != 17 or _number(stored, marks.scan + 2) != 12:
        return False
    at = marks.frame + 11
    return bool(stored[at] == 0x22 and stored[at + 3] == 0x11 and stored[at + 6] == 0x11)


@compiled
def _segments(stored: Bytes, marks: _Landmarks, width: Int, part: Box) -> Bytes:
    """The segments of a part behind a header of its size; empty where a marker is not the one that belongs there."""
    wide, height = BLOCK * marks.interval, _number(stored, marks.frame + 5)
    across, down = _rounded_up(width, wide) // wide, _rounded_up(height, BLOCK) // BLOCK
    first, behind = part.left // wide, _rounded_up(part.right, wide) // wide
    top, last = part.top // BLOCK, (part.bottom - 1) // BLOCK * across + behind
    taken, words = np.empty(len(stored), np.uint8), stored[: len(stored) // 8 * 8].view(np.uint64)
    _copy(stored[: marks.coded], taken[: marks.coded])
    begin, to, kept = marks.coded, marks.coded, 0
    for segment in range(last):
        end = _next_marker(stored, words, begin)
        if end == len(stored):
            return taken[:0]
        expected = _END if segment + 1 == across * down else _RESTART + segment % 8
        if stored[end + 1] != expected:
            return taken[:0]
        if segment // across >= top and first <= segment % across < behind:
            _copy(stored[begin:end], taken[to : to + end - begin])
            to += end - begin + 2
            taken[to - 2], taken[to - 1] = _MARKER, _RESTART + kept % 8
            kept += 1
        begin = end + 2
    taken[to - 1] = _END
    _set_size(taken, marks.frame, part.bottom - part.top, part.right - part.left)
    return taken[:to]


@compiled
def _next_marker(stored: Bytes, words: NDArray[np.uint64], at: Int) -> Int:
    """Where the next marker begins, or the length where there is none. In coded data 0xFF is always followed by 0.

    `words` are the same bytes by eights: in most eights there is no 0xFF. Unsigned positions spare a test for negative
    ones.
    """
    word = at // 8
    while 8 * word < len(stored):
        if word == len(words) or _has_marker(words[np.uint64(word)]):
            for i in range(max(at, 8 * word), min(8 * word + 8, len(stored) - 1)):
                if stored[np.uint64(i)] == _MARKER and stored[np.uint64(i + 1)] != 0:
                    return i
        word += 1
    return len(stored)


@compiled
def _has_marker(eight: np.uint64) -> bool:
    """Whether one of eight bytes is 0xFF."""
    return bool(((eight & _LOW_BITS) + _ONES) & eight & ~_LOW_BITS != 0)


@compiled
def _copy(source: Bytes, target: Bytes) -> None:
    for i in range(np.uint64(len(source))):
        target[i] = source[i]


@compiled
def _set_size(jpeg: Bytes, frame: Int, height: Int, width: Int) -> None:
    jpeg[frame + 5], jpeg[frame + 6] = height >> 8, height & 255
    jpeg[frame + 7], jpeg[frame + 8] = width >> 8, width & 255


@compiled
def _number(stored: Bytes, at: Int) -> np.int64:
    """Sixteen bits, the higher ones first."""
    return (np.int64(stored[at]) << 8) + np.int64(stored[at + 1])


@compiled
def _rounded_up(count: Int, unit: Int) -> Int:
    return (count + unit - 1) // unit * unit
