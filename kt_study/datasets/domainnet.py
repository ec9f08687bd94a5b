"""kind = "domainnet": DomainNet in its original layout: <domain>/<class>/<image>, lists <domain>_train.txt and _test.txt.

`path` is the folder of both; `train` and `val` name the domain of each split, by default infograph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kt_study.datasets.kind import FileImages, Found, section_folder
from kt_study.datasets.lists import listing_of, read_columns
from kt_study.errors import DataError
from kt_study.nearest import nearest
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:  # noqa: ARG001
    """Both splits as the two lists give them. Raises DataError for an unknown domain, a missing list or image."""
    root = section_folder(section, "path", folder)
    rows = {
        split: read_columns(_list(root, getattr(section, split) or "infograph", part), 2)
        for split, part in (("train", "train"), ("val", "test"))
    }
    names = _class_names([row for split in rows.values() for row in split], root)
    return Found(
        listings={
            split: listing_of(root, [(name, int(label)) for name, label in part], progress)
            for split, part in rows.items()
        },
        class_names=[names.get(i, str(i)) for i in range(1 + max(names))],
        location={"path": str(root)},
    )


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> FileImages:  # noqa: ARG001
    """Files under the domain's folder."""
    return FileImages(root=Path(record.location["path"]), names=names)


def _list(root: Path, domain: str, part: str) -> Path:
    if domain not in DOMAINS:
        hint = nearest(domain, DOMAINS)
        raise DataError(f"[dataset] {domain!r} is no domain of DomainNet{hint} (there are {', '.join(DOMAINS)})")
    name = f"{domain}_{part}.txt"
    return next((file for file in (root / name, root / domain / name) if file.is_file()), root / name)


def _class_names(rows: list[list[str]], root: Path) -> dict[int, str]:
    """Class names by label, from the folders in the lists. Raises DataError where one label has two names."""
    names: dict[int, str] = {}
    for name, label in rows:
        parts = name.split("/")
        if len(parts) != 3 or not label.isdecimal():
            raise DataError(f"{root}: a list says {name!r} {label!r}; expected domain/class/image and a number")
        if names.setdefault(int(label), parts[1]) != parts[1]:
            raise DataError(f"{root}: label {label} is both {names[int(label)]!r} and {parts[1]!r} in the lists")
    return names
