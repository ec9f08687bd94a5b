"""kind = "timm": sources of timm's `create_dataset`, with random access to samples.

    source = "hfds/NAME"    a data set of the Hugging Face hub, or a folder of parquet files (package `datasets`)
    source = "wds/"         webdataset shards on disk, in the folder `path`
    source = "torch/NAME"   one of torchvision's small data sets, in the folder `path`

`train` and `val` name the splits as timm does. Samples, labels and their order are timm's own. Sources that can only be
streamed (tfds/, hfids/) are refused, since workers need random access to samples.
"""

from __future__ import annotations

import glob
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from kt_study.datasets.image_files import LeftOut
from kt_study.datasets.kind import Found, Images, Listing
from kt_study.errors import DataError
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection

SOURCES = {
    "hfds": "kt_study.datasets.timm_huggingface",
    "wds": "kt_study.datasets.timm_shards",
    "torch": "kt_study.datasets.timm_torchvision",
}


@dataclass(frozen=True, kw_only=True)
class SplitPlace:
    """Where one split is found, and how it is read."""

    source: str  # as timm takes it, a local folder made absolute
    root: str  # absolute, or empty
    split: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.source} ({self.root}), split {self.split!r}" if self.root else f"{self.source}, {self.split!r}"


@dataclass(frozen=True, kw_only=True)
class SplitFound:
    """The samples of a split, the names of the classes where the source has some, and a digest where names and sizes
    do not tell contents apart."""

    listing: Listing
    class_names: list[str]
    content: str = ""
    left_out: LeftOut = field(default_factory=LeftOut)


class Source(Protocol):
    """A module that reads one kind of source."""

    def scan_split(self, place: SplitPlace, *, labelled: bool) -> SplitFound:
        """The samples in timm's order. Raises DataError."""
        ...

    def split_images(self, place: SplitPlace, names: Sequence[str]) -> Images:
        """The images of the named samples. Raises DataError."""
        ...


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:  # noqa: ARG001
    """List `val`, and `train` where given.

    Raises:
        DataError: an unknown or streamed source, a package that is missing, no such data set, split or column.
    """
    places = _places(section, folder)
    found = {}
    for split, place in places.items():
        labelled = section.labels is True or section.labels == split
        found[split] = _module(place.source).scan_split(place, labelled=labelled)
        progress(len(found[split].listing.names))
    some = next(iter(places.values()))
    return Found(
        listings={split: one.listing for split, one in found.items()},
        class_names=_class_names(list(found.values())),
        location={"source": some.source, "root": some.root, **{split: place.split for split, place in places.items()}},
        options={
            "reader": some.source.partition("/")[0],
            "arguments": section.arguments,
            **{f"content_{split}": one.content for split, one in found.items() if one.content},
        },
        left_out={split: one.left_out for split, one in found.items()},
    )


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> Images:
    """The named images of a split."""
    place = SplitPlace(
        source=record.location["source"],
        root=record.location["root"],
        split=record.location[split],
        arguments=record.options["arguments"],
    )
    return _module(place.source).split_images(place, names)


def _places(section: DatasetSection, folder: Path) -> dict[str, SplitPlace]:
    if not section.val:
        raise DataError('[dataset] kind = "timm" needs val = "NAME", the split to measure on, such as "validation"')
    root = str((folder / Path(section.path).expanduser()).resolve()) if section.path else ""
    prefix, _, name = section.source.partition("/")
    local = (folder / Path(name).expanduser()).resolve()
    source = section.source
    if prefix == "hfds" and name and local.is_dir():
        _require_plain(local)
        source = f"{prefix}/{local}"
    _module(source)
    return {
        split: SplitPlace(source=source, root=root, split=named, arguments=section.arguments)
        for split, named in (("train", section.train), ("val", section.val))
        if named
    }


def _require_plain(folder: Path) -> None:
    """Refuse a folder that the package datasets, which reads its path as a pattern, would take for others. Raises DataError."""
    if glob.glob(str(folder)) != [str(folder)]:  # noqa: PTH207 -- the path itself is the pattern
        raise DataError(f"{folder}: the package datasets takes *, ? and [] in a path for a pattern; rename the folder")


def _module(source: str) -> Source:
    prefix = source.partition("/")[0]
    if prefix in ("tfds", "hfids"):
        raise DataError(
            f"[dataset] source = {source!r} can only be streamed, and workers ask for samples in any order; write it as "
            "webdataset shards (wds/) or as an image folder"
        )
    if prefix not in SOURCES or "/" not in source:
        raise DataError(f'[dataset] source = {source!r} is none of hfds/NAME, wds/, torch/NAME (kind = "timm")')
    return cast(Source, importlib.import_module(SOURCES[prefix]))


def _class_names(found: list[SplitFound]) -> list[str]:
    """The source's own names; else 0, 1, .. up to the highest label; none without labels."""
    for one in found:
        if one.class_names and one.listing.labels is not None:
            return one.class_names
    labels = [int(one.listing.labels.max()) for one in found if one.listing.labels is not None]
    return [str(label) for label in range(1 + max(labels))] if labels else []
