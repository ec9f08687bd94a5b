"""Walking folders of images: links are followed, and what cannot be a sample is refused before a reader hangs on it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kt_study.errors import DataError

DEEPEST = 100
"""Folders within folders that are walked; Python and Linux have limits of their own not far above."""

Above = tuple[tuple[int, int], ...]
"""The folders on the way from the root, each by device and inode."""


def entered(folder: Path, above: Above = ()) -> Above:
    """`above` and this folder. Raises DataError where a link has led back to one that is being walked, or too deep."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DataError(f"{folder}: a link leads back to a folder above it; remove the link")
    if len(above) >= DEEPEST:
        raise DataError(f"{folder}: more than {DEEPEST} folders deep; correct the folder in [dataset]")
    return (*above, here)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one.

    Raises DataError for a link that leads nowhere, whatever it was; hidden ones are other programs' notes to themselves.
    """
    try:
        if entry.is_symlink() and not entry.name.startswith("."):
            entry.stat()
    except FileNotFoundError:
        target = os.readlink(entry.path)  # noqa: PTH115 -- as it is written
        raise DataError(
            f"{entry.path}: this link leads nowhere ({target}); restore what it leads to, or remove the link"
        ) from None
    return entry.is_dir()


def file_bytes(file: str | os.PathLike[str]) -> int:
    """The size of a sample's file. Raises DataError for a pipe, socket or device, OSError for one that cannot be seen."""
    status = os.stat(file)  # noqa: PTH116 -- of each file of a data set
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{os.fspath(file)}: not a regular file but {_kind(status.st_mode)}; remove it")
    return status.st_size


def _kind(mode: int) -> str:
    for is_kind, kind in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if is_kind(mode):
            return kind
    return "a device"
