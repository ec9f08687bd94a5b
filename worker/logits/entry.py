"""Reading a cached forward pass: memory-mapped logits, side columns, and a gather on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kt_study.cache import Manifest
from worker.data.loader import picture_budget
from worker.logits.near import near


@dataclass(frozen=True, kw_only=True)
class LogitsBatch:
    """What the cache says of b samples, on the device."""

    logits: torch.Tensor  # float32 [b, classes], rounded to float16 once
    logsumexp: torch.Tensor  # float32 [b]
    log_p_label: torch.Tensor  # float32 [b]; NaN without labels
    log_p_max: torch.Tensor  # float32 [b]
    p_label: torch.Tensor  # float32 [b]; NaN without labels
    p_max: torch.Tensor  # float32 [b]
    argmax: torch.Tensor  # int64 [b]
    features: torch.Tensor | None = None  # float32 [b, d]


class CachedLogits:
    """One whole entry of the cache."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._on: dict[torch.device, _Resident] = {}

    @property
    def n(self) -> int:
        """Samples."""
        return self.manifest.n

    @property
    def n_classes(self) -> int:
        """Outputs of the model; 0 where only its predictions are known."""
        return self.manifest.n_classes

    @cached_property
    def logits(self) -> NDArray[np.float16]:
        """float16 [n, classes], memory-mapped."""
        logits: NDArray[np.float16] = np.load(near(self.folder / "logits.npy"), mmap_mode="c")
        return logits

    @cached_property
    def features(self) -> NDArray[np.float16] | None:
        """float16 [n, d], memory-mapped; None where none were asked for."""
        file = self.folder / "features.npy"
        return np.load(near(file), mmap_mode="c") if file.exists() else None

    @cached_property
    def side(self) -> NDArray[Any]:
        """The side columns, structured [n] (`worker.logits.columns.SIDE`), in memory."""
        side: NDArray[Any] = np.load(self.folder / "side.npy")
        return side

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

    @property
    def log_p_max(self) -> NDArray[np.float32]:
        """Natural log of the largest probability, [n]."""
        return self._column("log_p_max")

    @property
    def logsumexp(self) -> NDArray[np.float32]:
        """log of the sum of exp of the logits, [n]."""
        return self._column("logsumexp")

    def gather(self, indices: torch.Tensor, device: torch.device) -> LogitsBatch:
        """The rows at `indices` (int64 [b], best already on the device), on the device.

        The side columns are held on the device, and the logits too where they fit its budget; a gather then needs no
        copy from the host.
        """
        if device not in self._on:
            self._on[device] = _Resident(self, device)
        return self._on[device].gather(indices)

    def _column(self, name: str) -> NDArray[Any]:
        return np.ascontiguousarray(self.side[name])


class _Resident:
    """An entry's columns as tensors on one device."""

    def __init__(self, entry: CachedLogits, device: torch.device) -> None:
        names = ("logsumexp", "log_p_label", "log_p_max", "p_label", "p_max")
        self._device = device
        self._side = {name: torch.from_numpy(np.ascontiguousarray(entry.side[name])).to(device) for name in names}
        self._argmax = torch.from_numpy(entry.argmax.astype(np.int64)).to(device)
        self._logits = _placed(entry.logits, device)
        self._features = None if entry.features is None else _placed(entry.features, device)

    def gather(self, indices: torch.Tensor) -> LogitsBatch:
        here = indices.to(self._device, non_blocking=True)
        return LogitsBatch(
            logits=self._rows(self._logits, here),
            argmax=self._argmax.index_select(0, here),
            features=None if self._features is None else self._rows(self._features, here),
            **{name: column.index_select(0, here) for name, column in self._side.items()},
        )

    def _rows(self, table: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        rows = table.index_select(0, indices.to(table.device))
        return rows.to(self._device, non_blocking=True).float()


def _placed(table: NDArray[np.float16], device: torch.device) -> torch.Tensor:
    """On the device where it fits the budget; on the host, still memory-mapped, where it does not."""
    tensor = torch.from_numpy(table)
    return tensor.to(device) if table.nbytes <= picture_budget(device) else tensor
