"""kind = "stanford_cars": Stanford Cars in its original layout: cars_train/, cars_test/, devkit/, labelled test list.

`path` is the folder that contains them; cars_test_annos_withlabels.mat may be there or in devkit/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kt_study.datasets.kind import FileImages, Found, section_folder
from kt_study.datasets.lists import listing_of
from kt_study.errors import DataError
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection

FOLDERS = {"train": "cars_train", "val": "cars_test"}


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:  # noqa: ARG001
    """Both splits as the MATLAB lists give them. Raises DataError when a list or an image is missing."""
    root = section_folder(section, "path", folder)
    names = _matlab(root, "cars_meta.mat", "class_names")
    lists = {"train": "cars_train_annos.mat", "val": "cars_test_annos_withlabels.mat"}
    listings = {}
    for split, list_name in lists.items():
        rows = [
            (str(row["fname"].item()), int(row["class"].item()) - 1) for row in _matlab(root, list_name, "annotations")
        ]
        listings[split] = listing_of(root / FOLDERS[split], rows, progress)
    return Found(
        listings=listings,
        class_names=[str(name.item()) for name in names],
        location={"path": str(root)},
    )


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> FileImages:
    """Files under cars_train/ or cars_test/."""
    return FileImages(root=Path(record.location["path"]) / FOLDERS[split], names=names)


def _matlab(root: Path, name: str, variable: str) -> Any:
    """A 1 x n variable of one of the lists, as the array of its n entries."""
    from scipy.io import loadmat

    for candidate in (root / "devkit" / name, root / name):
        if candidate.is_file():
            try:
                return loadmat(candidate)[variable].reshape(-1)
            except (ValueError, KeyError, OSError, TypeError) as error:
                raise DataError(f"{candidate}: not the list of Stanford Cars ({error}); fetch it again") from error
    raise DataError(f"{root / 'devkit' / name}: this list is missing; [dataset] path holds devkit/ and cars_*/")
