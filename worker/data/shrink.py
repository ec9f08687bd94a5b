"""Shrinking by area averaging, as OpenCV does it for ffcv, to the bit and in less time.

Each pixel of the small image is the mean of the pixels it covers, where those at its edges are weighted by the covered
share. OpenCV adds the three channels of a pixel one by one, and adds a row twice if two rows of the small image share it.
Here each row is added once, and a pixel has four channels (the fourth is the first of the next pixel, and is dropped), which
a processor adds at once. The float32 operations on each channel and their order are those of OpenCV. Only an OpenCV that was
built with fused multiply-add rounds some of them differently.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.data.jpeg_parts import Box, Bytes, Int
from worker.measures.jit import compiled

Reals = NDArray[np.float32]

_LEAST = 1e-3  # of a pixel: OpenCV leaves out a smaller share
_TO_WHOLE = np.float32(1 << 23)  # added to a number below 256 rounds it, ties to even, and puts it into the lowest byte
_GROUP = 32  # pixels stored together
_ONE, _TWO, _THREE, _FOUR = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)  # unsigned: never behind the end


@compiled
def can_shrink(box: Box, target: Bytes) -> bool:
    """Whether no side of a box grows, nor both shrink to a whole fraction: OpenCV has other ways for these."""
    height, width, down, across = box.bottom - box.top, box.right - box.left, target.shape[0], target.shape[1]
    return bool(height >= down and width >= across and (height % down != 0 or width % across != 0))


@compiled
def shrink(image: Bytes, box: Box, target: Bytes) -> None:
    """A box of uint8 [h, w, 3] to uint8 [down, across, 3], both contiguous, where `can_shrink` says so."""
    first_row, row_shares = _shares(box.bottom - box.top, target.shape[0])
    first, shares = _shares(box.right - box.left, target.shape[1])
    everything, width = image.reshape(-1), 3 * (box.right - box.left)
    line = np.zeros(width + 3 * shares.shape[1] + 1, np.float32)
    means, total = np.empty((len(first), 4), np.float32), np.empty(4 * len(first), np.float32)
    held = np.int64(-1)
    for y in range(target.shape[0]):
        for tap in range(row_shares.shape[1]):
            row, share = box.top + first_row[y] + tap, row_shares[y, tap]
            if share == 0:
                break
            if row != held:
                begin = 3 * (row * image.shape[1] + box.left)
                _to_reals(everything[begin : begin + width], line)
                _average_along(line, first, shares, means)
                held = row
            _add(means.reshape(-1), share, total, tap == 0)
        _store(total, target[y].reshape(-1))


@compiled
def _shares(size: Int, smaller: Int) -> tuple[NDArray[np.int64], Reals]:
    """For each of `smaller` cells over `size` pixels: the first pixel, and the weights of it and those that follow."""
    scale = 1.0 / (np.float64(smaller) / np.float64(size))
    first = np.zeros(smaller, np.int64)
    weights = np.zeros((smaller, int(np.ceil(scale)) + 1), np.float32)
    for cell in range(smaller):
        begin = cell * scale
        end, covered = begin + scale, min(scale, size - begin)
        last = min(int(np.floor(end)), size - 1)
        inner = min(int(np.ceil(begin)), last)
        tap = 0
        first[cell] = inner
        if inner - begin > _LEAST:
            first[cell] = inner - 1
            weights[cell, tap] = np.float32((inner - begin) / covered)
            tap += 1
        for _ in range(inner, last):
            weights[cell, tap] = np.float32(1.0 / covered)
            tap += 1
        if end - last > _LEAST:
            weights[cell, tap] = np.float32(min(end - last, 1.0, covered) / covered)
    return first, weights


@compiled
def _to_reals(numbers: Bytes, line: Reals) -> None:
    for i in range(np.uint64(len(numbers))):
        line[i] = np.float32(numbers[i])


@compiled
def _average_along(line: Reals, first: NDArray[np.int64], shares: Reals, means: Reals) -> None:
    for cell in range(np.uint64(len(first))):
        at = np.uint64(3 * first[cell])
        red = green = blue = beyond = np.float32(0)
        for tap in range(np.uint64(shares.shape[1])):
            share, i = shares[cell, tap], at + _THREE * tap
            red += line[i] * share
            green += line[i + _ONE] * share
            blue += line[i + _TWO] * share
            beyond += line[i + _THREE] * share
        means[cell, 0], means[cell, 1], means[cell, 2], means[cell, 3] = red, green, blue, beyond


@compiled
def _add(means: Reals, share: np.float32, total: Reals, fresh: bool) -> None:
    if fresh:
        for i in range(np.uint64(len(total))):
            total[i] = means[i] * share
    else:
        for i in range(np.uint64(len(total))):
            total[i] += means[i] * share


@compiled
def _store(total: Reals, line: Bytes) -> None:
    """Rounded, three of each four; groups of a fixed size become shuffles of whole registers. Spoils `total`."""
    for i in range(np.uint64(len(total))):
        total[i] += _TO_WHOLE
    parts, pixels = total.view(np.uint8), len(line) // 3
    grouped = pixels // _GROUP * _GROUP
    for at in range(0, grouped, _GROUP):
        some, there = parts[16 * at : 16 * (at + _GROUP)], line[3 * at : 3 * (at + _GROUP)]
        for pixel in range(np.uint64(_GROUP)):
            for channel in range(np.uint64(3)):
                there[_THREE * pixel + channel] = some[_FOUR * (_FOUR * pixel + channel)]
    for pixel in range(grouped, pixels):
        for channel in range(3):
            line[3 * pixel + channel] = parts[4 * (4 * pixel + channel)]
