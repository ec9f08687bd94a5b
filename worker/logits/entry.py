"""Reading a cached forward pass: memory-mapped logits and features, side columns."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt_study.cache import Manifest

log = logging.getLogger("kt-study.worker")


class CachedLogits:
    """One complete entry of the cache. Its files are read when they are first used."""

    def __init__(self, folder: Path, manifest: Manifest, *, make_again: Callable[[], object] | None = None) -> None:
        """
        Args:
            folder: of the entry.
            manifest: of the entry.
            make_again: restores the files of an entry that was complete when it was opened and no longer is: deleted by
                `cache gc` or by hand, or truncated. None: the reader gets the error.
        """
        self.folder = folder
        self.manifest = manifest
        self._make_again = make_again

    @property
    def n(self) -> int:
        """Samples."""
        return self.manifest.n

    @property
    def n_classes(self) -> int:
        """Outputs of the model; 0 if only its predictions are known."""
        return self.manifest.n_classes

    @cached_property
    def logits(self) -> NDArray[np.float16]:
        """float16 [n, classes], memory-mapped."""
        return self._load("logits.npy", mmap_mode="c")

    @cached_property
    def features(self) -> NDArray[np.float16] | None:
        """float16 [n, d], memory-mapped; None if the pass has none."""
        return self._load("features.npy", mmap_mode="c") if "features.npy" in self.manifest.files else None

    @cached_property
    def side(self) -> NDArray[Any]:
        """The side columns, structured [n] (`worker.logits.columns.SIDE`), in memory."""
        return self._load("side.npy")

    @property
    def labels(self) -> NDArray[np.int32]:
        """int32 [n], -1 without labels."""
        return self._column("label")

    @property
    def argmax(self) -> NDArray[np.int32]:
        """Predicted class, int32 [n], from the float32 logits; the lowest on ties."""
        return self._column("argmax")

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each prediction equals its label, bool [n]."""
        return np.asarray(self.argmax == self.labels)

    @property
    def p_label(self) -> NDArray[np.float32]:
        """float32 softmax of the label, [n]."""
        return self._column("p_label")

    @property
    def p_max(self) -> NDArray[np.float32]:
        """Largest float32 softmax, [n]."""
        return self._column("p_max")

    @property
    def log_p_label(self) -> NDArray[np.float32]:
        """Natural log of the probability of the label, [n]."""
        return self._column("log_p_label")

    def _load(self, name: str, **how: Any) -> NDArray[Any]:
        try:
            return self._loaded(name, **how)
        except (OSError, ValueError, EOFError) as error:
            if self._make_again is None:
                raise
            log.warning(
                "%s has been deleted or damaged since it was opened (%s); making it again", self.folder / name, error
            )
        self._make_again()
        return self._loaded(name, **how)

    def _loaded(self, name: str, **how: Any) -> NDArray[Any]:
        array: NDArray[Any] = np.load(self.folder / name, **how)
        return array

    def _column(self, name: str) -> NDArray[Any]:
        return np.ascontiguousarray(self.side[name])
