"""The stored index of a data set: every split's names, labels and sizes in one .npz."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.datasets.kind import Found, Listing
from kt_study.errors import DataError
from kt_study.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def write_index(target: Path, found: Found) -> None:
    """Store the listings of all splits, unless they are already there. Raises DiskError."""
    import numpy as np

    if target.exists():
        return
    columns: dict[str, NDArray[Any]] = {"classes": _pack(found.class_names)}
    for split, listing in found.listings.items():
        columns[f"{split}/names"] = _pack(listing.names)
        columns[f"{split}/sizes"] = listing.sizes
        if listing.labels is not None:
            columns[f"{split}/labels"] = listing.labels
    with atomic_write(target) as scratch, scratch.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **columns)


def read_listing(source: Path, split: str, dataset: str) -> tuple[Listing, list[str]]:
    """One split's listing and the class names. Raises DataError when the index is missing or damaged."""
    import numpy as np

    try:
        with np.load(source, allow_pickle=False) as columns:
            listing = Listing(
                names=_unpack(columns[f"{split}/names"]),
                labels=columns.get(f"{split}/labels"),
                sizes=columns[f"{split}/sizes"],
            )
            return listing, _unpack(columns["classes"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{source}: the index of data set {dataset!r} is missing or damaged; remove it and run `kt-study plan`"
        ) from error


def _pack(names: list[str]) -> NDArray[np.uint8]:
    """Names as UTF-8 bytes joined by NUL, which no file name contains."""
    import numpy as np

    return np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), dtype=np.uint8)


def _unpack(packed: NDArray[np.uint8]) -> list[str]:
    return packed.tobytes().decode("utf-8", "surrogateescape").split("\0") if packed.size else []
