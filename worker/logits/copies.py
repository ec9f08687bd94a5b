"""Copies columns of a batch to the host while the device computes the next batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]


def one_behind(batches: Iterable[Mapping[str, torch.Tensor]]) -> Iterator[Columns]:
    """Each batch's columns on the host, one batch late: a GPU computes the next batch while this one is copied and written."""
    before: _HostCopy | None = None
    for columns in batches:
        copy = _HostCopy(columns)
        if before is not None:
            yield before.wait()
        before = copy
    if before is not None:
        yield before.wait()


class _HostCopy:
    """A batch whose copy to the host has been launched."""

    def __init__(self, columns: Mapping[str, torch.Tensor]) -> None:
        self._columns = {name: column.to("cpu", non_blocking=True) for name, column in columns.items()}
        self._copied: torch.cuda.Event | None = None
        if any(column.is_cuda for column in columns.values()):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def wait(self) -> Columns:
        """The columns, once they are copied."""
        if self._copied is not None:
            self._copied.synchronize()
        return {name: np.asarray(column) for name, column in self._columns.items()}
