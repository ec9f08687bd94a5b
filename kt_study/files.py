"""Writing to disk so that a reader never sees half a file: written aside, flushed, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kt_study.errors import DiskError

_never_made: set[Path] = set()


def never_make(folder: Path) -> None:
    """From now on `make_folder` makes `folder` no more in this process, nor anything in its place once it is gone.

    So that a worker does not bring back the folder of a study that somebody has deleted.
    """
    _never_made.add(folder)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing. Raises OSError, FileNotFoundError where `never_make` forbids."""
    if folder.is_dir():
        return
    if folder in _never_made:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)


@contextlib.contextmanager
def written_aside(target: Path, *, mode: int | None = None) -> Iterator[Path]:
    """Yield a scratch path beside `target`; on success flush it to disk and rename it over `target`.

    The scratch name keeps the target's suffix, for writers that look at it. On any error the scratch file is removed
    and `target` is left as it was. `mode` is the file's; what the umask allows when None.

    Raises:
        DiskError: the folder cannot be written or the disk is full.
    """
    scratch: Path | None = None
    try:
        make_folder(target.parent)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
        os.close(handle)
        scratch = Path(name)
        yield scratch
        scratch.chmod(0o666 & ~_umask() if mode is None else mode)
        _flush(scratch)
        scratch.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise DiskError(
            f"cannot write {target}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def write_bytes(target: Path, content: bytes) -> None:
    """Replace `target` with `content` in one step. Raises DiskError."""
    with written_aside(target) as scratch:
        scratch.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Replace `target` with `content`, UTF-8, in one step. Raises DiskError."""
    write_bytes(target, content.encode())


def write_private(target: Path, content: bytes) -> None:
    """As `write_bytes`, readable by its owner only, at every moment. Raises DiskError."""
    with written_aside(target, mode=0o600) as scratch:
        scratch.write_bytes(content)


def file_digest(path: Path) -> str:
    """blake2b-128 of a file's bytes, 32 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
