"""Large files of a network file system are copied once to this machine before they are read at random."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from pathlib import Path

from kt_study.database import NETWORK_FILE_SYSTEMS, file_system


@functools.cache
def near(file: Path) -> Path:
    """`file` itself where it lies on this machine's disk, else a copy in the node's scratch folder.

    The scratch folder is SLURM_TMPDIR, else TMPDIR, else /tmp. The copy has no name there, only this process's handle,
    so that its space is free again when the process ends, however it ends. Where it does not fit, the file itself is
    used.
    """
    if file_system(file) not in NETWORK_FILE_SYSTEMS:
        return file
    try:
        handle = _nameless_copy(file)
    except OSError:
        return file
    return Path(f"/proc/self/fd/{handle}")


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
