"""Gathers rows of cached tables for a batch: the targets' logits, or the teachers' features.

A table that fits the memory budget is on the device, already merged over its sources, so that a batch costs one gather. A
larger one is gathered from the memory-mapped caches on the host and copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.data.memory import within_reach
from worker.data.near import nearby

_CHUNK = 1 << 15  # rows per copy while a table is merged


class RowTable(Protocol):
    """A table with one row per sample of the transfer set."""

    def rows(self, index: Tensor, positions: NDArray[np.int64]) -> Tensor:
        """The rows [b, d] of samples `index`, int64 [b] on the device; `positions` is the same on the host."""
        ...


def row_tables(
    sources: Sequence[NDArray[np.uint8]],
    tables: Sequence[Sequence[NDArray[Any]]],
    device: torch.device,
    *,
    resident: bool = True,
) -> list[RowTable]:
    """One table per view, each sample's row taken from its source.

    Args:
        sources: [view][n], which of that view's tables has the sample's row.
        tables: [view][source], arrays [n, d], memory-mapped or not.
        device: of the rows.
        resident: whether tables that fit may be kept there.
    """
    needed = len(tables) * tables[0][-1].nbytes
    made = merged_table if resident and needed <= table_budget(device) else StreamedTable
    return [made(source, list(table), device) for source, table in zip(sources, tables, strict=True)]


def table_budget(device: torch.device) -> int:
    """Bytes of tables kept on a device: a quarter of the available memory."""
    return within_reach(device) // 4


class ResidentTable:
    """A merged table on the device, [n, d]."""

    def __init__(self, table: Tensor) -> None:
        self._table = table

    def rows(self, index: Tensor, positions: NDArray[np.int64]) -> Tensor:  # noqa: ARG002
        """See `RowTable.rows`."""
        return self._table.index_select(0, index)


class StreamedTable:
    """Tables on a shared disk, or copied to this machine's, gathered on the host batch by batch."""

    def __init__(self, source: NDArray[np.uint8], tables: list[NDArray[Any]], device: torch.device) -> None:
        self._source = source
        self._tables = [nearby(table) for table in tables]
        self._device = device

    def rows(self, index: Tensor, positions: NDArray[np.int64]) -> Tensor:  # noqa: ARG002
        """See `RowTable.rows`."""
        gathered = torch.from_numpy(merge_rows(self._source, self._tables, positions))
        if self._device.type == "cuda":
            gathered = gathered.pin_memory()
        return gathered.to(self._device, non_blocking=True)


def merged_table(source: NDArray[np.uint8], tables: list[NDArray[Any]], device: torch.device) -> ResidentTable:
    """Copy each sample's row from its source to the device."""
    n = len(source)
    first = torch.from_numpy(merge_rows(source, tables, np.arange(min(n, _CHUNK))))
    table = torch.empty((n, first.shape[1]), dtype=first.dtype, device=device)
    for start in range(0, n, _CHUNK):
        positions = np.arange(start, min(start + _CHUNK, n))
        table[start : start + _CHUNK] = torch.from_numpy(merge_rows(source, tables, positions)).to(device)
    return ResidentTable(table)


def merge_rows(source: NDArray[np.uint8], tables: list[NDArray[Any]], positions: NDArray[np.int64]) -> NDArray[Any]:
    """Rows [b, d] of samples `positions`, each from the table that `source` names."""
    chosen = source[positions]
    used = np.unique(chosen)
    if len(used) == 1:
        return np.array(tables[used[0]][positions])
    merged = np.empty((len(positions), tables[used[0]].shape[1]), dtype=tables[used[0]].dtype)
    for name in used:
        rows = chosen == name
        merged[rows] = tables[name][positions[rows]]
    return merged
