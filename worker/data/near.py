"""Copies large files from a network file system to this machine once, before random reads."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt_study.file_systems import NETWORK_FILE_SYSTEMS, file_system


@functools.cache
def near(file: Path) -> Path:
    """`file` itself where it is on this machine's disk, else a copy in the node's scratch folder.

    The scratch folder is SLURM_TMPDIR, else TMPDIR, else /tmp. The copy has no name there, only this process's handle,
    so that its space is free again when the process ends, however it ends. Where it does not fit, the file itself is
    used. It is for what all jobs of a process read, such as images.
    """
    handle = _copied(file)
    return file if handle is None else Path(f"/proc/self/fd/{handle}")


def nearby(table: NDArray[Any]) -> NDArray[Any]:
    """A whole .npy file mapped into memory, as a copy on this machine where it is on another's disk.

    The copy, as of `near`, goes with the array. Any other array is returned as it is.
    """
    if not isinstance(table, np.memmap) or table.filename is None or (handle := _copied(Path(table.filename))) is None:
        return table
    try:
        copy: NDArray[Any] = np.load(f"/proc/self/fd/{handle}", mmap_mode="c")
    finally:
        os.close(handle)
    return copy


def _copied(file: Path) -> int | None:
    """An open nameless copy of a file of a network; None for a file of this machine, or where there is no room."""
    if file_system(file) not in NETWORK_FILE_SYSTEMS:
        return None
    try:
        return _nameless_copy(file)
    except OSError:
        return None


def _nameless_copy(file: Path) -> int:
    """An open file with the content of `file`. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix="kt-study-", dir=os.environ.get("SLURM_TMPDIR"))
    try:
        shutil.copyfile(file, name)
    except OSError:
        os.close(handle)
        raise
    finally:
        Path(name).unlink()
    return handle
