"""Numbering of class folders: ImageNet-1k's class indices if they are its synsets, else by sorted name."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

from kt_study.errors import DataError

_SYNSET = re.compile(r"^n\d{8}$")


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """The 1,000 WordNet ids of ImageNet-1k in the order of its class indices, as in timm.

    timm is located and not imported, for that would import torch. Raises DataError when it is not installed.
    """
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the list of ImageNet's classes comes with timm, which is not installed")
    source = Path(spec.submodule_search_locations[0]) / "data" / "_info" / "imagenet_synsets.txt"
    return tuple(source.read_text(encoding="ascii").split())


def class_names_of(folders: list[str], classes: str, root: Path) -> tuple[list[str], str]:
    """Class names in the order of their labels, and how they are numbered: "imagenet" or "sorted".

    Args:
        folders: names of the class folders, sorted.
        classes: the study file's choice: auto | imagenet | sorted. `auto` numbers by ImageNet as soon as one folder has
            the form of a WordNet id.
        root: where the folders are, for the message.

    Raises:
        DataError: a folder that is not one of ImageNet-1k's synsets, where they are wanted.
    """
    if classes == "sorted" or (classes == "auto" and not any(map(_SYNSET.match, folders))):
        return folders, "sorted"
    known = set(imagenet_synsets())
    if strangers := [name for name in folders if name not in known]:
        raise DataError(
            f"{root / strangers[0]}: {strangers[0]!r} is not a class of ImageNet-1k ({len(strangers)} of {len(folders)}"
            ' folders are not); rename it, or set [dataset] classes = "sorted" to number folders by name'
        )
    return list(imagenet_synsets()), "imagenet"
