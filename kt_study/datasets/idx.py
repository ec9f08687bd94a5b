"""kind = "idx": the file format of MNIST, Fashion-MNIST and KMNIST: images and labels, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.datasets.kind import ArrayImages, Found, Listing, section_folder
from kt_study.errors import DataError
from kt_study.files import file_digest
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREFIXES = {"train": ("train",), "val": ("t10k", "test", "val")}
"""What the file names of a split may begin with."""


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:  # noqa: ARG001
    """Read the labels of both splits under `path`. Raises DataError for missing files or unequal counts."""
    import numpy as np

    root = section_folder(section, "path", folder)
    listings, location, digests = {}, {}, {}
    for split in PREFIXES:
        images, labels = _file(root, split, "images", 3), _file(root, split, "labels", 1)
        n, classes = _shape(images)[0], read_idx(labels).astype(np.int32)
        if n != len(classes):
            raise DataError(f"{images}: {n} images but {len(classes)} labels in {labels.name}; fetch both again")
        listings[split] = Listing(names=[f"{i:06d}" for i in range(n)], labels=classes, sizes=np.full(n, -1, np.int64))
        location[split] = str(images)
        digests[split] = file_digest(images)
        progress(n)
    n_classes = 1 + max(
        int(listing.labels.max(initial=-1)) for listing in listings.values() if listing.labels is not None
    )
    return Found(
        listings=listings,
        class_names=[str(i) for i in range(n_classes)],
        location=location,
        options={"files": digests},
    )


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> ArrayImages:
    """The named images, held in memory."""
    import numpy as np

    return ArrayImages(pixels=read_idx(Path(record.location[split]))[np.array([int(name) for name in names])])


def read_idx(path: Path) -> NDArray[Any]:
    """An IDX file of unsigned bytes, gzipped or not. Raises DataError when it is none or is cut short."""
    import numpy as np

    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: unreadable IDX file ({error}); fetch it again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an IDX file of unsigned bytes")
    rank = content[3]
    shape = tuple(int(side) for side in np.frombuffer(content, ">u4", rank, 4)) if len(content) >= 4 + 4 * rank else ()
    values = np.frombuffer(content, np.uint8, offset=min(len(content), 4 + 4 * rank))
    if not shape or values.size != int(np.prod(shape)):
        raise DataError(f"{path}: cut short, {values.size} bytes for shape {shape}; fetch it again")
    return values.reshape(shape)


def _shape(path: Path) -> tuple[int, ...]:
    return read_idx(path).shape


def _file(root: Path, split: str, what: str, rank: int) -> Path:
    candidates = [
        root / f"{prefix}-{what}{joint}idx{rank}-ubyte{suffix}"
        for prefix in PREFIXES[split]
        for joint in ("-", ".")
        for suffix in ("", ".gz")
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"{candidates[0]}: no such file, nor {candidates[0].name}.gz; [dataset] path must hold all four")
