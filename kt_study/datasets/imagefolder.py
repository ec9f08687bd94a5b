"""kind = "imagefolder": one folder per class, as torchvision's ImageFolder; ImageNet's synsets are recognised.

A split without labels is every image below its folder, however the folders in it are called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kt_study.datasets.folders import Above, entered, file_bytes, is_folder
from kt_study.datasets.imagenet import class_names_of
from kt_study.datasets.kind import IMAGE_SUFFIXES, FileImages, Found, Listing, section_folder
from kt_study.errors import DataError
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
"""What the folders of a data set's splits are called."""


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:  # noqa: ARG001
    """List `val`, and `train` where given: `<folder>/<class>/**/<image>`, or any images without labels.

    Raises:
        DataError: a missing or empty folder, a class without images, classes that differ between the splits.
    """
    roots = {
        split: section_folder(section, split, folder)
        for split in ("train", "val")
        if split == "val" or getattr(section, split)
    }
    labelled = {split for split in roots if section.labels is True or split == section.labels}
    folders = {split: _class_folders(roots[split], split) for split in roots if split in labelled}
    if len(folders) == 2:
        _check_same(roots, folders)
    class_names, class_index = (
        class_names_of(folders["val"], section.classes, roots["val"]) if folders else ([], "sorted")
    )
    return Found(
        listings={
            split: list_class_folders(root, folders[split], class_names, progress)
            if split in labelled
            else list_images(root, progress)
            for split, root in roots.items()
        },
        class_names=class_names,
        class_index=class_index,
        location={split: str(root) for split, root in roots.items()},
    )


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> FileImages:
    """Files under the split's folder."""
    return FileImages(root=Path(record.location[split]), names=names)


def list_class_folders(
    root: Path, folders: list[str], class_names: list[str], progress: Callable[[int], None] = lambda _: None
) -> Listing:
    """The images of each class folder in sorted order, labelled by the folder's place in `class_names`.

    Raises:
        DataError: a class folder without images.
    """
    import numpy as np

    index = {name: i for i, name in enumerate(class_names)}
    names: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    above = entered(root)
    for folder in folders:
        found = sorted(_images(root / folder, above))
        if not found:
            raise DataError(f"{root / folder}: no images in this class folder; add some or remove the folder")
        names += [f"{folder}/{name}" for name, _ in found]
        sizes += [size for _, size in found]
        labels += [index[folder]] * len(found)
        progress(len(names))
    return Listing(names=names, labels=np.array(labels, np.int32), sizes=np.array(sizes, np.int64))


def list_images(root: Path, progress: Callable[[int], None] = lambda _: None) -> Listing:
    """Every image below a folder in sorted order, without labels. Raises DataError where there is none."""
    import numpy as np

    found = sorted(_images(root))
    if not found:
        raise DataError(f"{root}: no images in it or below it; correct the folder in [dataset]")
    progress(len(found))
    return Listing(
        names=[name for name, _ in found], labels=None, sizes=np.array([size for _, size in found], np.int64)
    )


def _class_folders(root: Path, split: str) -> list[str]:
    folders = _folders(root)
    if not folders:
        raise DataError(
            f"{root}: no class folders in it; an image folder has one folder a class, or say labels = false in [dataset]"
        )
    if len(folders) == 1:
        _check_depth(root, split)
    if (
        len(folders) > 1
        and _SPLITS.issuperset(map(str.lower, folders))
        and all(_folders(root / one) for one in folders)
    ):
        raise DataError(
            f"{root}: its folders are splits ({', '.join(folders)}), and the classes lie in them; set [dataset] {split} to "
            "one of them"
        )
    return folders


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_folder(entry))


def _check_depth(root: Path, split: str) -> None:
    """Refuse a tree in which the class folders lie in the only one of their level. Raises DataError."""
    above, deepest, inner = entered(root), root, _folders(root)
    while len(inner) == 1 and not any(file.suffix.lower() in IMAGE_SUFFIXES for file in deepest.iterdir()):
        deepest /= inner[0]
        above, inner = entered(deepest, above), _folders(deepest)
    if len(inner) > 1:
        some = ", ".join(inner[:3]) + (", ..." if len(inner) > 3 else "")
        raise DataError(
            f"{root}: one class folder, {deepest.relative_to(root).as_posix()!r}, and in it {len(inner)} folders ({some}): "
            f"the classes lie deeper; set [dataset] {split} to {deepest}"
        )


def _images(folder: Path, above: Above = (), prefix: str = "") -> Iterator[tuple[str, int]]:
    """Relative name and size in bytes of every image below a folder; hidden files are left out."""
    above = entered(folder, above)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_folder(entry):
                yield from _images(Path(entry.path), above, f"{prefix}{entry.name}/")
            elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                yield f"{prefix}{entry.name}", file_bytes(entry.path)


def _check_same(roots: dict[str, Path], folders: dict[str, list[str]]) -> None:
    for here, there in (("train", "val"), ("val", "train")):
        if alone := sorted(set(folders[here]) - set(folders[there])):
            raise DataError(
                f"{roots[here] / alone[0]}: this class is in {here} but not in {there} ({roots[there]});"
                f" {len(alone)} such in all; both need the same class folders"
            )
