"""kind = "caltech256": Caltech-256 in its original layout, 257 folders `NNN.name`, including clutter.

The data set has no split of its own: a fixed draw gives four fifths of each class to `train` and the rest to `val`. All
257 folders count, as in the released code (ExplainableML/FantasticGains, config/pretrain/caltech_pretrain.yml).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from kt_study.datasets.image_files import LeftOut
from kt_study.datasets.imagefolder import list_class_folders
from kt_study.datasets.kind import FileImages, Found, section_folder
from kt_study.datasets.subset import split_by_hash
from kt_study.errors import DataError
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection

SHARES = {"train": 0.8, "val": 0.2}


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:  # noqa: ARG001
    """The folders under `path`, or under its 256_ObjectCategories. Raises DataError when there are none."""
    root = section_folder(section, "path", folder)
    if (root / "256_ObjectCategories").is_dir():
        root = root / "256_ObjectCategories"
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and re.match(r"\d{3}\.", entry.name))
    if not folders:
        raise DataError(f"{root}: no folders like 001.ak47; [dataset] path must be the unpacked 256_ObjectCategories")
    left_out = LeftOut()
    everything = list_class_folders(root, folders, folders, progress, left_out)
    return Found(
        listings=split_by_hash(everything, SHARES, "caltech256"),
        class_names=[name.split(".", 1)[1] for name in folders],
        location={"path": str(root)},
        left_out={"train": left_out},
    )


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> FileImages:  # noqa: ARG001
    """Files under the class folders."""
    return FileImages(root=Path(record.location["path"]), names=names)
