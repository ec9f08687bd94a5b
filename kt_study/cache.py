"""The logits cache: lists, verifies and deletes its entries. No torch.

An entry is a folder named after its job's digest. It holds `manifest.json` and the .npy files that the manifest lists with
their sizes and checksums. The folder is written under a temporary name and renamed last, so a folder with a manifest is
complete unless it was altered afterwards.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kt_study.errors import DiskError
from kt_study.files import file_digest, make_folder
from kt_study.hashing import canonical_json
from kt_study.paths import StudyPaths
from kt_study.records import Record

MANIFEST = "manifest.json"
ABANDONED_S = 24 * 3600.0
"""Seconds without a write after which an unfinished entry counts as abandoned."""
SIDE_BYTES = 28
"""Bytes of the side columns of one sample: five float32 and two int32."""

_DIGEST = re.compile(r"[0-9a-f]{32}")
_LEFTOVER = re.compile(rf"\.(gone-{_DIGEST.pattern}-[0-9]+|making-{_DIGEST.pattern}(-[0-9a-f]+)?)")
_FILE = re.compile(r"\w+\.npy|(manifest|progress)\.json|\.(manifest|progress)\.\w+\.json")  # the last: being written


class Manifest(Record, frozen=True, kw_only=True):
    """What an entry holds. `files` gives the bytes and the blake2b-128 of each file."""

    spec: dict[str, Any]
    n: int
    n_classes: int
    files: dict[str, tuple[int, str]]
    weights: str  # digest of the weights that made it
    versions: str
    device: str
    seconds: float = 0.0  # wall time of the pass
    source: str = "forwarded here"
    params: float | None = None  # millions, of the model as it was built


class CacheEntry(Record, frozen=True, kw_only=True):
    """One entry as `kt-study cache ls` lists it. `problem` is empty for a whole one."""

    digest: str
    folder: str
    nbytes: int
    used_at: float  # seconds since the epoch
    model: str = ""
    dataset: str = ""
    split: str = ""
    view: int = -1
    loader: str = "torch"
    problem: str = ""
    foreign: str = ""  # name of a file in its folder that kt-study did not make; `cache gc` then leaves the entry alone


def entries(paths: StudyPaths, *, deep: bool = False) -> list[CacheEntry]:
    """Every entry of the logits cache, least recently used first.

    Args:
        deep: compute checksums too, and not only look at sizes.
    """
    folders = (folder for folder in (paths.cache / "logits").glob("??/*") if _DIGEST.fullmatch(folder.name))
    listed = (_entry(folder, deep) for folder in folders if folder.is_dir())
    return sorted(listed, key=lambda entry: (entry.used_at, entry.digest))


def verify(paths: StudyPaths) -> list[CacheEntry]:
    """The incomplete or altered entries, found by checksum; each names its problem."""
    return [entry for entry in entries(paths, deep=True) if entry.problem]


def collect_garbage(paths: StudyPaths, *, max_size: int, keep: Collection[str] = ()) -> list[CacheEntry]:
    """Delete incomplete entries, leftovers of killed writers, and then the least recently used entries over `max_size` bytes.

    Args:
        keep: digests that must stay, for instance those that unfinished jobs need.

    Returns:
        the deleted entries. They are made again when a job needs them.
    """
    for folder in (paths.cache / "logits").glob("??/.*"):
        if _LEFTOVER.fullmatch(folder.name) and folder.is_dir() and time.time() - _touched(folder) > ABANDONED_S:
            remove_files(folder)
    listed = entries(paths)
    total = sum(entry.nbytes for entry in listed)
    removed = []
    for entry in listed:
        if entry.digest not in keep and not entry.foreign and (entry.problem or total > max_size):
            remove_entry(Path(entry.folder))
            total -= entry.nbytes
            removed.append(entry)
    return removed


def logits_bytes(n: int, n_classes: int, features: int = 0) -> int:
    """Size in bytes of one entry of n samples: float16 logits, the side columns, float16 features of that width."""
    return n * (2 * n_classes + SIDE_BYTES + 2 * features)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an entry, or None when there is none or it is damaged."""
    import msgspec

    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def problem_of(folder: Path, manifest: Manifest | None, *, deep: bool) -> str:
    """Why an entry cannot be used; empty when it can.

    `deep` compares checksums as well as sizes, and checks for extra rows: a pass that was resumed with another batch size
    was once stored with some samples twice.
    """
    if manifest is None:
        return "no readable manifest"
    for name, (size, checksum) in manifest.files.items():
        try:
            if (folder / name).stat().st_size != size:
                return f"{name} has another size"
            if deep and file_digest(folder / name) != checksum:
                return f"{name} has another checksum"
            if deep and size != _npy_bytes(folder / name):
                return f"{name} has other rows than the split"
        except OSError:
            return f"{name} is missing"
    return ""


def _npy_bytes(file: Path) -> int:
    """Bytes that a .npy file should have by its own header; -1 where it has none."""
    from numpy.lib import format as npy

    with file.open("rb") as stream:
        try:
            npy.read_magic(stream)
            shape, _, dtype = npy.read_array_header_1_0(stream)
        except ValueError:
            return -1
        return stream.tell() + dtype.itemsize * math.prod(shape)


def remove_entry(folder: Path) -> None:
    """Delete an entry: renamed in one step, then removed from the disk. Raises DiskError."""
    aside = folder.with_name(f".gone-{folder.name}-{os.getpid()}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DiskError(f"cannot remove {folder}: {error.strerror}") from error
    remove_files(aside)


def remove_files(folder: Path) -> None:
    """Remove the files of a finished or unfinished entry, and its folder if nothing else is in it. Never fails."""
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            if _FILE.fullmatch(file.name):
                file.unlink(missing_ok=True)
        folder.rmdir()


def log_forward(paths: StudyPaths, digest: str, spec: dict[str, Any], n: int) -> None:
    """Append a finished forward pass to the log that `forwards` reads."""
    line = canonical_json({"digest": digest, "n": n, **spec}) + "\n"
    log = _log(paths)
    make_folder(log.parent)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, line.encode())  # one short write in append mode: lines of several processes do not mix
    finally:
        os.close(handle)


def forwards(paths: StudyPaths) -> list[dict[str, Any]]:
    """Every forward pass over a split that this study folder ever finished: its spec, digest and n, oldest first."""
    try:
        lines = _log(paths).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _log(paths: StudyPaths) -> Path:
    return paths.cache / "logits" / "forwards.jsonl"


def _touched(folder: Path) -> float:
    """When anything in the folder last changed, seconds since the epoch."""
    return max((file.stat().st_mtime for file in (folder, *folder.iterdir())), default=0.0)


def _entry(folder: Path, deep: bool) -> CacheEntry:
    manifest = read_manifest(folder)
    spec = manifest.spec if manifest else {}
    files = [file for file in folder.iterdir() if file.is_file()]
    foreign = next((file.name for file in folder.iterdir() if not _FILE.fullmatch(file.name)), "")
    return CacheEntry(
        digest=folder.name,
        folder=str(folder),
        nbytes=sum(file.stat().st_size for file in files),
        used_at=_touched(folder),
        **{name: spec[name] for name in ("model", "dataset", "split", "view", "loader") if name in spec},
        problem=problem_of(folder, manifest, deep=deep),
        foreign=foreign,
    )
