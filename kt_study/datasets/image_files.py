"""Which files of a folder are images, and why the others are left out.

A file with the suffix of an image is listed without opening it. Other suffixes, such as `.JPG_large`, or none, are decided by
Pillow, except those that are known not to be images.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path, PurePosixPath

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif",
     ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".qoi", ".tga", ".pcx", ".sgi", ".ras"]
)  # fmt: skip

_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "QOI", "SGI", "SUN")
"""Formats by which Pillow may recognise a file of another suffix: those with an unmistakable beginning."""

_OTHER_SUFFIXES = frozenset(
    [".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".md", ".html", ".htm", ".url", ".log",
     ".db", ".ini", ".py", ".npy", ".npz", ".mat", ".pkl", ".pdf", ".svg", ".eps", ".ps", ".psd", ".ai", ".mp4",
     ".mov", ".avi", ".mkv", ".webm", ".zip", ".gz", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".7z", ".rar", ".aae",
     ".xmp", ".thm"]
)  # fmt: skip
_RAW_SUFFIXES = frozenset(
    [".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".pef", ".srw", ".raf", ".raw", ".3fr", ".iiq", ".x3f"]
)
_COPY_SUFFIXES = frozenset(
    [".part", ".partial", ".crdownload", ".download", ".tmp", ".temp", ".bak", ".old", ".orig", ".swp"]
)

_FOREIGN_FOLDERS = frozenset(
    ["@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "@__thumb", "$recycle.bin", "recycler", "__macosx",
     "system volume information", "lost+found", "__pycache__"]
)  # fmt: skip
_FOREIGN_FOLDER_SUFFIXES = (".lrdata", ".photoslibrary")
_FOREIGN_PREFIXES = ("synophoto_", "synofile_")

HIDDEN = "hidden (the name begins with a dot)"
FOREIGN = "folders and thumbnails of other programs"
OUTSIDE = "images outside of the class folders"
_COPY = "unfinished downloads and backup copies"
_RAW = "raw files of cameras, of which Pillow would read the preview"
_OTHER = "not images by their suffix"
_UNREADABLE = "not images that Pillow can read"


class LeftOut:
    """The files and folders of a split that are not listed, by the reason: how many, and the first of them."""

    def __init__(self) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}

    def add(self, why: str, name: str) -> None:
        """Count a file or folder; `name` is relative to the split's folder."""
        count, first = self.reasons.get(why, (0, name))
        self.reasons[why] = (count + 1, min(first, name))


def folder_left_out(name: str) -> str:
    """Why a folder of this name is not looked into; empty for one that is."""
    if name.startswith("."):
        return HIDDEN
    lower = name.lower()
    return FOREIGN if lower in _FOREIGN_FOLDERS or lower.endswith(_FOREIGN_FOLDER_SUFFIXES) else ""


def file_left_out(path: Path, beside: Collection[str]) -> str:
    """Why a file is not an image of the data set; empty for one that is.

    Args:
        path: the file. It is opened only where its name leaves it open what it is.
        beside: names of everything in its folder.
    """
    name, suffix = path.name, PurePosixPath(path.name).suffix.lower()
    if name.startswith("."):
        return HIDDEN
    if name.lower().startswith(_FOREIGN_PREFIXES):
        return FOREIGN
    if suffix in IMAGE_SUFFIXES:
        return ""
    if (
        suffix in _COPY_SUFFIXES
        or name.endswith("~")
        or (name.endswith("_original") and name.removesuffix("_original") in beside)
    ):
        return _COPY
    if suffix in _RAW_SUFFIXES:
        return _RAW
    if suffix in _OTHER_SUFFIXES or not path.is_file():
        return _OTHER
    return "" if _can_be_read(path) else _UNREADABLE


def _can_be_read(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=_known_formats()):
            return True
    except PermissionError:
        return True  # an image as far as is known; reading it will say more
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return False


@functools.cache
def _known_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
