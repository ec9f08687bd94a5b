"""kind = "cub200": Caltech-UCSD Birds-200-2011 in its original layout, with its own train and test split.

`path` is the folder with images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and images/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kt_study.datasets.kind import FileImages, Found, section_folder
from kt_study.datasets.lists import listing_of, read_columns
from kt_study.errors import DataError
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:  # noqa: ARG001
    """Both splits as the four lists give them. Raises DataError when a list or an image is missing."""
    root = section_folder(section, "path", folder)
    classes = {number: name for number, name in read_columns(root / "classes.txt", 2)}
    order = {number: i for i, number in enumerate(classes)}
    label_of = dict(read_columns(root / "image_class_labels.txt", 2))
    is_train = dict(read_columns(root / "train_test_split.txt", 2))
    samples: dict[str, list[tuple[str, int]]] = {"train": [], "val": []}
    for number, name in read_columns(root / "images.txt", 2):
        try:
            samples["train" if is_train[number] == "1" else "val"].append((name, order[label_of[number]]))
        except KeyError as error:
            raise DataError(
                f"{root / 'images.txt'}: image {number} has no class or split in the other lists"
            ) from error
    return Found(
        listings={split: listing_of(root / "images", rows, progress) for split, rows in samples.items()},
        class_names=list(classes.values()),
        location={"path": str(root)},
    )


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> FileImages:  # noqa: ARG001
    """Files under images/."""
    return FileImages(root=Path(record.location["path"]) / "images", names=names)
