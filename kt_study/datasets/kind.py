"""Base classes of data set kinds: listings of samples, images, and the split that joins the two."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kt_study.datasets.image_files import LeftOut
from kt_study.datasets.pixels import read_rgb
from kt_study.errors import DataError
from kt_study.records import DatasetRecord, Record
from kt_study.study import DatasetSection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The samples of one split, in order.

    `names` are relative to the split's folder with forward slashes; `labels` int32 [n], or None where there are none;
    `sizes` int64 [n], bytes of each file, -1 where a file holds many samples.
    """

    names: list[str]
    labels: NDArray[np.int32] | None
    sizes: NDArray[np.int64]

    def digest(self) -> str:
        """blake2b-128 over names, sizes and labels in order, 32 hex digits."""
        labels = [-1] * len(self.names) if self.labels is None else self.labels.tolist()
        lines = (
            f"{name}\x1f{size}\x1f{label}\n"
            for name, size, label in zip(self.names, self.sizes.tolist(), labels, strict=True)
        )
        total = hashlib.blake2b(digest_size=16)
        for line in lines:
            total.update(line.encode("utf-8", "surrogateescape"))  # of a file name that is not UTF-8, its bytes
        return total.hexdigest()

    def take(self, positions: NDArray[np.integer[Any]]) -> Listing:
        """The samples at these positions, in this order."""
        return Listing(
            names=[self.names[i] for i in positions],
            labels=None if self.labels is None else self.labels[positions],
            sizes=self.sizes[positions],
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a scan found. `options` is what, besides the listings, decides the pixels or labels.

    `left_out` says of each split which files are not samples; `notes` what `plan` prints beside it.
    """

    listings: dict[str, Listing]
    class_names: list[str]
    location: dict[str, str] = field(default_factory=dict)
    class_index: str = "sorted"
    options: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def with_split(self, split: str, listing: Listing) -> Found:
        """The same with one listing replaced."""
        return dataclasses.replace(self, listings={**self.listings, split: listing})


class Skipped(Record, frozen=True, kw_only=True):
    """Files or folders that are not samples: why, how many, and the first of them."""

    why: str
    count: int
    first: str


class SplitContents(Record, frozen=True, kw_only=True):
    """What a split has: its images, over how many classes, and how many the smallest and the largest class have."""

    split: str
    images: int
    classes: int = 0  # with images; 0 without labels
    fewest: int = 0
    most: int = 0
    left_out: tuple[Skipped, ...] = ()


class Contents(Record, frozen=True, kw_only=True):
    """What a scan found, for the user."""

    dataset: str
    key: str
    splits: tuple[SplitContents, ...]
    notes: tuple[str, ...] = ()


class Images(Protocol):
    """Opens the images of a split by position."""

    def image(self, i: int) -> Image.Image:
        """Image i, RGB. Raises DataError."""
        ...

    def file(self, i: int) -> Path | None:
        """The file of image i alone, or None where one file holds many."""
        ...


class DatasetKind(Protocol):
    """A module of this package that is a kind of data set."""

    def scan(self, section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:
        """List the samples of every split. Raises DataError."""
        ...

    def images(self, record: DatasetRecord, split: str, names: Sequence[str]) -> Images:
        """Open a split's images. Raises DataError."""
        ...


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split: `n` samples with names, labels (int32 [n] or None) and images."""

    listing: Listing
    class_names: list[str]
    images: Images

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.listing.names)

    @property
    def labels(self) -> NDArray[np.int32] | None:
        """Class of each sample, int32 [n]; None without labels."""
        return self.listing.labels

    def name(self, i: int) -> str:
        """Name of sample i, relative to the split's folder."""
        return self.listing.names[i]

    def image(self, i: int) -> Image.Image:
        """Image i, RGB. Raises DataError naming the file when it cannot be read."""
        return self.images.image(i)

    def file(self, i: int) -> Path | None:
        """The file of image i, or None where one file holds many."""
        return self.images.file(i)


@dataclass(frozen=True, kw_only=True)
class FileImages:
    """Images that are files of their own under one folder."""

    root: Path
    names: Sequence[str]

    def image(self, i: int) -> Image.Image:
        """Image i, RGB. Raises DataError."""
        return read_rgb(self.file(i), str(self.file(i)))

    def file(self, i: int) -> Path:
        """The file of image i."""
        return self.root / self.names[i]


@dataclass(frozen=True, kw_only=True)
class ArrayImages:
    """Images held in memory: uint8 [n, height, width] grey or [n, height, width, 3]."""

    pixels: NDArray[np.uint8]

    def image(self, i: int) -> Image.Image:
        """Image i, RGB."""
        from PIL import Image

        return Image.fromarray(self.pixels[i]).convert("RGB")

    def file(self, i: int) -> None:
        """No image has a file of its own."""


def section_folder(section: DatasetSection, key: str, folder: Path) -> Path:
    """The absolute folder that `[dataset] key` names. Raises DataError when it is not given or not a folder."""
    value = getattr(section, key)
    if not value:
        raise DataError(f"[dataset] kind = {section.kind!r} needs {key} = FOLDER")
    path = (folder / Path(value).expanduser()).resolve()
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "no such folder"
        raise DataError(f"{path}: {what}; fix [dataset] {key} in the study file")
    return path
