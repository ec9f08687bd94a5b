"""kind = "imagefolder": one folder per class, as torchvision's ImageFolder; ImageNet's synsets are recognised.

A split without labels is every image below its folder, however the folders in it are called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kt_study.datasets.folders import Above, entered, file_bytes, is_folder
from kt_study.datasets.image_files import OUTSIDE, LeftOut, file_left_out, folder_left_out
from kt_study.datasets.imagenet import class_names_of
from kt_study.datasets.kind import FileImages, Found, Listing, section_folder
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
    left_out = {split: LeftOut() for split in roots}
    folders = {split: _class_folders(roots[split], split, left_out[split]) for split in roots if split in labelled}
    if len(folders) == 2:
        _check_same(roots, folders)
    class_names, class_index = (
        class_names_of(folders["val"], section.classes, roots["val"]) if folders else ([], "sorted")
    )
    return Found(
        listings={
            split: list_class_folders(root, folders[split], class_names, progress, left_out[split])
            if split in labelled
            else list_images(root, progress, left_out[split])
            for split, root in roots.items()
        },
        class_names=class_names,
        class_index=class_index,
        location={split: str(root) for split, root in roots.items()},
        left_out=left_out,
    )


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> FileImages:
    """Files under the split's folder."""
    return FileImages(root=Path(record.location[split]), names=names)


def list_class_folders(
    root: Path,
    folders: list[str],
    class_names: list[str],
    progress: Callable[[int], None],
    left_out: LeftOut,
) -> Listing:
    """The images of each class folder in sorted order, labelled by the folder's place in `class_names`.

    Other files are added to `left_out`.

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
        found = sorted(_images(root / folder, left_out, f"{folder}/", above))
        if not found:
            raise DataError(f"{root / folder}: {_none_because(root / folder)}; add some or remove the folder")
        names += [name for name, _ in found]
        sizes += [size for _, size in found]
        labels += [index[folder]] * len(found)
        progress(len(names))
    return Listing(names=names, labels=np.array(labels, np.int32), sizes=np.array(sizes, np.int64))


def list_images(root: Path, progress: Callable[[int], None], left_out: LeftOut) -> Listing:
    """Every image below a folder in sorted order, without labels. Raises DataError where there is none."""
    import numpy as np

    found = sorted(_images(root, left_out))
    if not found:
        raise DataError(f"{root}: no images in it or below it; correct the folder in [dataset]")
    progress(len(found))
    return Listing(
        names=[name for name, _ in found], labels=None, sizes=np.array([size for _, size in found], np.int64)
    )


def _none_because(folder: Path) -> str:
    """That a class folder has no images, and what it has instead."""
    left_out = LeftOut()
    list(_images(folder, left_out))
    others = ", ".join(f"{count} {why}, first {first}" for why, (count, first) in sorted(left_out.reasons.items()))
    return f"no images in this class folder ({others})" if others else "no images in this class folder"


def _class_folders(root: Path, split: str, left_out: LeftOut) -> list[str]:
    folders, others = _folders(root, left_out)
    for name in others:
        left_out.add(file_left_out(root / name, others) or OUTSIDE, name)
    if not folders:
        raise DataError(
            f"{root}: no class folders in it; an image folder has one folder per class, or say labels = false in [dataset]"
        )
    if len(folders) == 1:
        _check_depth(root, split)
    if (
        len(folders) > 1
        and _SPLITS.issuperset(map(str.lower, folders))
        and all(_folders(root / one, LeftOut())[0] for one in folders)
    ):
        raise DataError(
            f"{root}: its folders are splits ({', '.join(folders)}), and the classes lie in them; set [dataset] {split} to "
            "one of them"
        )
    return folders


def _folders(root: Path, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Names of the folders of a folder, those of other programs added to `left_out`, and of its files."""
    folders: list[str] = []
    others: list[str] = []
    with os.scandir(root) as entries:
        for entry in entries:
            (folders if is_folder(entry) else others).append(entry.name)
    foreign = {name: why for name in folders if (why := folder_left_out(name))}
    for name, why in foreign.items():
        left_out.add(why, f"{name}/")
    return sorted(set(folders) - set(foreign)), others


def _check_depth(root: Path, split: str) -> None:
    """Refuse a tree in which the class folders lie in the only one of their level. Raises DataError."""
    above, deepest = entered(root), root
    inner, others = _folders(root, LeftOut())
    while len(inner) == 1 and all(file_left_out(deepest / name, others) for name in others):
        deepest /= inner[0]
        above, (inner, others) = entered(deepest, above), _folders(deepest, LeftOut())
    if len(inner) > 1:
        some = ", ".join(inner[:3]) + (", ..." if len(inner) > 3 else "")
        raise DataError(
            f"{root}: one class folder, {deepest.relative_to(root).as_posix()!r}, and in it {len(inner)} folders ({some}): "
            f"the classes lie deeper; set [dataset] {split} to {deepest}"
        )


def _images(folder: Path, left_out: LeftOut, prefix: str = "", above: Above = ()) -> Iterator[tuple[str, int]]:
    """Relative name and size in bytes of every image below a folder; other files are added to `left_out`."""
    above = entered(folder, above)
    with os.scandir(folder) as scanned:
        entries = {entry.name: entry for entry in scanned}
    for name, entry in entries.items():
        if is_folder(entry):
            if why := folder_left_out(name):
                left_out.add(why, f"{prefix}{name}/")
            else:
                yield from _images(Path(entry.path), left_out, f"{prefix}{name}/", above)
        elif why := file_left_out(Path(entry.path), entries.keys()):
            left_out.add(why, f"{prefix}{name}")
        else:
            yield f"{prefix}{name}", file_bytes(entry.path)


def _check_same(roots: dict[str, Path], folders: dict[str, list[str]]) -> None:
    for here, there in (("train", "val"), ("val", "train")):
        if alone := sorted(set(folders[here]) - set(folders[there])):
            raise DataError(
                f"{roots[here] / alone[0]}: this class is in {here} but not in {there} ({roots[there]});"
                f" {len(alone)} such in all; both need the same class folders"
            )
