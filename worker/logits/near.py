"""Large files of a network file system are copied once to this machine before they are read at random."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from kt_study.database import NETWORK_FILE_SYSTEMS, file_system


@functools.cache
def near(file: Path) -> Path:
    """`file` itself where it lies on this machine's disk, else a copy in the node's scratch folder.

    The scratch folder is SLURM_TMPDIR, else TMPDIR, else /tmp. Where the copy does not fit, the file itself is used.
    """
    if file_system(file) not in NETWORK_FILE_SYSTEMS:
        return file
    folder = Path(tempfile.mkdtemp(prefix="kt-study-", dir=os.environ.get("SLURM_TMPDIR")))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        return Path(shutil.copy(file, folder / file.name))
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        return file
