"""Array types and the input checks of every measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kt_study.errors import DataError

Ints = npt.NDArray[np.integer[Any]]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_LINE = 64  # bytes of a line of the processor's cache


def check_labels(labels: Ints, n_classes: int) -> None:
    """Refuse labels that are not int[n], n > 0, in [0, n_classes). Raises DataError."""
    _check_integers("labels", labels)
    if labels.ndim != 1 or labels.size == 0:
        raise DataError(f"labels have shape {labels.shape}, expected one label per sample; check the data set")
    _check_range("labels", labels, n_classes)


def check_predictions(name: str, predictions: Ints, labels: Ints, n_classes: int) -> None:
    """Refuse predictions that are not int[..., n] in [0, n_classes), n as in `labels`. Raises DataError."""
    _check_integers(name, predictions)
    if predictions.shape[-1:] != labels.shape:
        raise DataError(f"{name} has shape {predictions.shape} for {labels.size} labels; predict every sample once")
    _check_range(name, predictions, n_classes)


def _check_integers(name: str, values: Ints) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{name} are {values.dtype}, expected integers: class indices from 0")


def _check_range(name: str, values: Ints, n_classes: int) -> None:
    if values.size and (values.min() < 0 or values.max() >= n_classes):
        seen, expected = f"{values.min()} to {values.max()}", f"0 to {n_classes - 1}"
        raise DataError(f"{name} has classes {seen}, expected {expected}; check how classes are numbered")


def in_lines(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A contiguous copy aligned to a line of the cache: wide loads across two lines take 1.5 times as long."""
    room = np.empty(array.nbytes + _LINE, dtype=np.uint8)
    start = -room.ctypes.data % _LINE
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
