"""Data sets that come with text lists of their images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kt_study.datasets.folders import file_bytes
from kt_study.datasets.kind import Listing
from kt_study.errors import DataError
from kt_study.files import read_text


def read_columns(path: Path, columns: int) -> list[list[str]]:
    """Lines of a list, split at white space into this many columns; names may hold spaces in the last one.

    Raises:
        DataError: no such list, or a line with fewer columns.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: this list is missing or unreadable; is [dataset] path the unpacked folder?"
        ) from error
    rows = [line.split(maxsplit=columns - 1) for line in lines if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise DataError(f"{path}: line {number} has {len(row)} columns, not {columns}")
    return rows


def listing_of(root: Path, samples: list[tuple[str, int]], progress: Callable[[int], None]) -> Listing:
    """Samples sorted by name, with the size of each file. Raises DataError for an empty list or a missing file."""
    import numpy as np

    if not samples:
        raise DataError(f"{root}: the lists name no image of one of the splits")
    samples = sorted(samples)
    sizes = []
    for name, _ in samples:
        try:
            sizes.append(file_bytes(root / name))
        except OSError as error:
            raise DataError(f"{root / name}: listed but not there; unpack the data set again") from error
    progress(len(samples))
    return Listing(
        names=[name for name, _ in samples],
        labels=np.array([label for _, label in samples], np.int32),
        sizes=np.array(sizes, np.int64),
    )
