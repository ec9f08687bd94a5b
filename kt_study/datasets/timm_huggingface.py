"""Source `hfds/`: tables of Hugging Face's `datasets`, read as timm's ReaderHfds does. Samples are named by row."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.datasets.kind import Listing
from kt_study.datasets.pixels import read_rgb
from kt_study.datasets.timm_sources import SplitFound, SplitPlace
from kt_study.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


_ROWS = 1000  # looked at together


def scan_split(place: SplitPlace, *, labelled: bool) -> SplitFound:
    """Rows in order: sizes of the stored images, and labels by timm's `target_key`. Raises DataError."""
    reader = open_reader(place)
    sizes = _sizes(reader)
    if not len(sizes):
        raise DataError(f"{place}: no samples in it")
    listing = Listing(
        names=[str(row) for row in range(len(sizes))], labels=_labels(reader, place) if labelled else None, sizes=sizes
    )
    return SplitFound(listing=listing, class_names=_class_names(reader.class_to_idx))


def split_images(place: SplitPlace, names: Sequence[str]) -> TableImages:
    """Images by row."""
    return TableImages(place=place, names=names)


def open_reader(place: SplitPlace) -> Any:
    """timm's reader. Raises DataError where there is no such data set, split or column, or no network to ask."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{place}: needs the package datasets; pip install datasets") from error
    from timm.data.dataset_factory import create_dataset

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        return create_dataset(place.source, root=place.root or None, split=place.split, **place.arguments).reader
    except Exception as error:  # datasets raises many kinds, some of several lines
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{place}: cannot be opened ({reason}); fetch it where there is a network") from error


@dataclass(frozen=True, kw_only=True)
class TableImages:
    """Images of a table, opened when the first one is asked for, in each process again."""

    place: SplitPlace
    names: Sequence[str]

    @functools.cached_property
    def _reader(self) -> Any:
        return open_reader(self.place)

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "names": self.names}

    def image(self, i: int) -> Image.Image:
        """Image i, RGB. Raises DataError."""
        name = f"{self.place}: sample {self.names[i]}"
        try:
            stored = self._reader.dataset[int(self.names[i])][self._reader.image_key]
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"{name} is unreadable ({error}); fetch the data set again and plan again") from error
        return read_rgb(io.BytesIO(stored["bytes"]) if stored["bytes"] else Path(stored["path"]), name)

    def file(self, i: int) -> None:
        """No image has a file of its own."""


def _sizes(reader: Any) -> NDArray[np.int64]:
    """Bytes of each stored image, 0 where there is none, -1 where it is a file elsewhere; reads no image."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    table = reader.dataset.select_columns([reader.image_key]).with_format("arrow")
    parts = [np.empty(0, np.int64)]
    for batch in table.iter(_ROWS):
        column = batch.column(reader.image_key)
        lengths = pc.binary_length(pc.struct_field(column, "bytes")).cast(pa.int64())
        elsewhere = pc.is_valid(pc.struct_field(column, "path"))
        parts.append(np.asarray(pc.coalesce(lengths, pc.if_else(elsewhere, -1, 0)).to_numpy()))
    return np.concatenate(parts)


def _class_names(numbers: dict[str, int]) -> list[str]:
    """Names in the order of their numbers, where these count from 0; else none."""
    names = sorted(numbers, key=numbers.__getitem__)
    return names if [numbers[name] for name in names] == list(range(len(names))) else []


def _labels(reader: Any, place: SplitPlace) -> NDArray[np.int32]:
    import numpy as np

    try:
        values = list(reader.iter_targets())
        if len(values) != len(reader):
            raise KeyError(reader.label_key)  # a table of images alone has no rows without them
    except (KeyError, TypeError, ValueError) as error:
        columns = ", ".join(reader.dataset.column_names)
        raise DataError(
            f"{place}: no column {reader.label_key!r} to take labels from (there are {columns}); name it by "
            "arguments = { target_key = ... }, or say labels = false"
        ) from error
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise DataError(f"{place}: column {reader.label_key!r} does not hold one class a sample, numbered from 0")
    return np.array(values, np.int32)
