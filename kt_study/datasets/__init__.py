"""Image data sets: their contents, and access to image i of a split.

`prepare` scans a data set once and stores its index; `list_split` reads the index back, and `open_split` opens the
images too. A new kind is one module here and one line in `KINDS`: the module has `scan`, which lists the samples, and
`images`, which opens one of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

from kt_study.datasets.index import read_listing, write_index
from kt_study.datasets.kind import Contents, DatasetKind, Found, Listing, Skipped, Split, SplitContents
from kt_study.datasets.subset import subset_of
from kt_study.errors import DataError
from kt_study.hashing import digest
from kt_study.nearest import nearest
from kt_study.paths import StudyPaths
from kt_study.printable import not_utf8
from kt_study.records import DatasetRecord, Record
from kt_study.study import DatasetSection

__all__ = ["KINDS", "Contents", "Split", "kind_module", "list_split", "open_split", "prepare"]

KINDS: dict[str, str] = {
    "imagefolder": "kt_study.datasets.imagefolder",
    "digits": "kt_study.datasets.digits",
    "idx": "kt_study.datasets.idx",
    "predictions": "kt_study.datasets.predictions",
    "cub200": "kt_study.datasets.cub200",
    "caltech256": "kt_study.datasets.caltech256",
    "stanford_cars": "kt_study.datasets.stanford_cars",
    "domainnet": "kt_study.datasets.domainnet",
    "timm": "kt_study.datasets.timm_sources",
}

WITHOUT_LABELS = ("imagefolder", "timm")
"""Kinds that can do without labels."""


def kind_module(kind: str) -> DatasetKind:
    """The module of a kind, imported when first asked for. Raises DataError for an unknown one."""
    if kind not in KINDS:
        hint = nearest(kind, KINDS)
        raise DataError(f"[dataset] kind = {kind!r}: no such kind{hint} (there are {', '.join(KINDS)})")
    return cast(DatasetKind, importlib.import_module(KINDS[kind]))


def prepare(
    section: DatasetSection,
    *,
    seed: int,
    folder: Path,
    paths: StudyPaths,
    progress: Callable[[int], None] | None = None,
    contents: Callable[[Contents], None] = lambda _: None,
) -> DatasetRecord:
    """Scan a data set, check it, draw its training subset and store its index. Twice gives the same record.

    Args:
        section: `[dataset]` of the study file.
        seed: of the training subset.
        folder: where relative paths of the section start, the study file's own folder.
        paths: of the study; the index goes to `paths.dataset_index(key)`.
        progress: called with the number of samples seen so far.
        contents: called with what was found and what was left out.

    Raises:
        DataError: a missing or empty folder, a class without images, classes that do not fit, an unreadable list.
        DiskError: the index cannot be written.
    """
    module = kind_module(section.kind)
    if section.labels is not True and section.kind not in WITHOUT_LABELS:
        raise DataError(
            f"[dataset] kind = {section.kind!r} always has labels; `labels` is for {' and '.join(WITHOUT_LABELS)}"
        )
    if section.class_names and section.kind != "predictions":
        raise DataError(f"[dataset] class_names is for kind = 'predictions'; {section.kind!r} names its own classes")
    found = module.scan(section, seed=seed, folder=folder, progress=progress or (lambda _: None))
    if "train" in found.listings:
        train = subset_of(
            found.listings["train"], seed=seed, fraction=section.train_fraction, per_class=section.train_per_class
        )
        found = found.with_split("train", train)
    _require_usable(found)
    record = _record(section, found, folder, seed)
    write_index(paths.dataset_index(record.key), found)
    contents(_contents(record, found))
    return record


def _require_usable(found: Found) -> None:
    """Refuse names that no database or file of results can hold, and images without content. Raises DataError."""
    for name in (*found.class_names, *found.location.values(), *found.options.get("files", ())):
        if any("\ud800" <= sign <= "\udfff" for sign in name):
            raise DataError(f"in the data set, {not_utf8(name)}")
    for split, listing in found.listings.items():
        where = next((found.location[key] for key in ("root", "source", split, "path") if found.location.get(key)), "")
        if not listing.names:
            raise DataError(f"{where}: no samples in {split}; correct [dataset] in the study file")
        if empty := [name for name, size in zip(listing.names, listing.sizes.tolist(), strict=True) if size == 0]:
            raise DataError(
                f"{where}: sample {empty[0]} of {split} is empty (0 bytes), {len(empty)} such in all; fetch the data set "
                "again, or leave them out"
            )


def list_split(record: DatasetRecord, split: str, paths: StudyPaths) -> tuple[Listing, list[str]]:
    """The samples of one split of a prepared data set, and the class names; no image is opened.

    Raises:
        DataError: no such split, or the index is missing or damaged and the data set has changed since it was made.
    """
    if split not in record.splits:
        raise DataError(f"data set {record.name!r} has no split {split!r}; it has {', '.join(sorted(record.splits))}")
    index = paths.dataset_index(record.key)
    try:
        return read_listing(index, split, record.name)
    except DataError:
        if not record.prepared:
            raise
    _prepare_again(record, paths)
    return read_listing(index, split, record.name)


def _prepare_again(record: DatasetRecord, paths: StudyPaths) -> None:
    """Store the index of a data set again. Raises DataError where the data set has changed meanwhile."""
    paths.dataset_index(record.key).unlink(missing_ok=True)
    again = msgspec.convert(record.prepared, _Prepared)
    found = prepare(again.section, seed=again.seed, folder=Path(again.folder), paths=paths)
    if found.key != record.key:
        raise DataError(f"data set {record.name!r} has changed since it was planned; run `kt-study plan` again")


def open_split(record: DatasetRecord, split: str, paths: StudyPaths) -> Split:
    """One split of a prepared data set, ready to be looked at. Raises DataError as `list_split`."""
    listing, class_names = list_split(record, split, paths)
    images = kind_module(record.kind).images(record, split, listing.names)
    return Split(listing=listing, class_names=class_names, images=images)


class _Prepared(Record, frozen=True, kw_only=True):
    section: DatasetSection
    seed: int
    folder: str


def _record(section: DatasetSection, found: Found, folder: Path, seed: int) -> DatasetRecord:
    content = {
        "kind": section.kind,
        "classes": found.class_names,
        "splits": {split: listing.digest() for split, listing in found.listings.items()},
        "options": found.options,
    }
    unlabelled = sorted(split for split, listing in found.listings.items() if listing.labels is None)
    return DatasetRecord(
        key=digest(content),
        name=section.name or section.kind,
        kind=section.kind,
        location={**found.location, **_similarity_files(section, folder)},
        options=found.options,
        n_classes=len(found.class_names),
        splits={split: len(listing.names) for split, listing in found.listings.items()},
        class_index=found.class_index,
        classes_present=_classes_present(found),
        prepared=msgspec.to_builtins(_Prepared(section=section, seed=seed, folder=str(folder.absolute()))),
        labelled=not unlabelled,
        unlabelled=tuple(unlabelled),
    )


def _classes_present(found: Found) -> int:
    """Classes that samples have; 0 where all have some."""
    import numpy as np

    labels = [listing.labels for listing in found.listings.values() if listing.labels is not None]
    present = len(np.unique(np.concatenate(labels))) if labels else 0
    return present if present < len(found.class_names) else 0


def _contents(record: DatasetRecord, found: Found) -> Contents:
    return Contents(
        dataset=record.name,
        key=record.key,
        splits=tuple(_split_contents(split, listing, found) for split, listing in found.listings.items()),
        notes=tuple(found.notes),
    )


def _split_contents(split: str, listing: Listing, found: Found) -> SplitContents:
    import numpy as np

    reasons = found.left_out[split].reasons if split in found.left_out else {}
    sizes = np.zeros(0, np.int64) if listing.labels is None else np.bincount(listing.labels)
    sizes = sizes[sizes > 0]
    return SplitContents(
        split=split,
        images=len(listing.names),
        classes=len(sizes),
        fewest=int(sizes.min(initial=len(listing.names))) if len(sizes) else 0,
        most=int(sizes.max(initial=0)),
        left_out=tuple(Skipped(why=why, count=count, first=first) for why, (count, first) in sorted(reasons.items())),
    )


def _similarity_files(section: DatasetSection, folder: Path) -> dict[str, str]:
    """The user's own files for the similarity of classes, as absolute paths. Raises DataError for one that is missing."""
    given = {name: getattr(section, name) for name in ("class_embeddings", "clip_weights", "wordnet")}
    files = {name: (folder / Path(value).expanduser()).resolve() for name, value in given.items() if value}
    for name, file in files.items():
        if not (file.is_dir() if name == "wordnet" else file.is_file()):
            raise DataError(
                f"{file}: no such {'folder' if name == 'wordnet' else 'file'}; fix [dataset] {name} in the study file"
            )
    return {name: str(file) for name, file in files.items()}
