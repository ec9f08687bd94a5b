"""Atomic writes (to a temporary file, flushed, then renamed), and private files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from kt_study.errors import DiskError, UsageError
from kt_study.trust import require_owner

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""

_never_made: set[Path] = set()


def never_make(folder: Path) -> None:
    """Forbid `make_folder` in this process to make `folder`: a worker must not recreate the folder of a deleted study."""
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
def atomic_write(target: Path, *, mode: int | None = None) -> Iterator[Path]:
    """Yield a scratch path beside `target`; on success flush it to disk and rename it over `target`.

    The scratch name keeps the target's suffix, for writers that look at it. On any error the scratch file is removed
    and `target` is left as it was. `mode` is the file's; when None others may read it as the umask allows, and never write.

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
        scratch.chmod(0o644 & ~current_umask() if mode is None else mode)
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


def read_text(path: Path) -> str:
    """A text file of a user's: UTF-8, with or without the byte-order mark that some editors write.

    Raises:
        OSError: it cannot be read, or is a pipe or device, where reading might never end.
        UnicodeDecodeError: it is not UTF-8.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe's writer is not waited for
    with os.fdopen(handle, encoding="utf-8-sig") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return stream.read()


def write_bytes(target: Path, content: bytes) -> None:
    """Replace `target` with `content` in one step. Raises DiskError."""
    with atomic_write(target) as scratch:
        scratch.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Replace `target` with `content`, UTF-8, in one step. Raises DiskError."""
    write_bytes(target, content.encode())


def write_private(target: Path, content: bytes, *, below: Path) -> None:
    """As `write_bytes`, readable by its owner only, at every moment, in folders that are private below `below`.

    Raises:
        DiskError, UntrustedFile: as `atomic_write` and `private_folder`.
    """
    private_folder(target.parent, below=below)
    with atomic_write(target, mode=0o600) as scratch:
        scratch.write_bytes(content)


def require_ours(marker: Path, targets: Iterable[Path]) -> None:
    """Refuse to overwrite foreign files in a folder to which kt-study has written nothing yet.

    Args:
        marker: the file that kt-study writes to every folder of this kind.
        targets: the files that it would write or remove there.

    Raises:
        UsageError: one of them is there, and no marker.
    """
    if marker.exists():
        return
    for target in targets:
        if os.path.lexists(target):
            raise UsageError(
                f"{target} is there already and kt-study did not make it; give another --out, or move it away"
            )


def private_folder(folder: Path, *, below: Path) -> None:
    """Make `folder` and its parents below `below`, mode 0700 for every umask; more open ones are closed.

    Raises:
        DiskError: one cannot be made.
        UntrustedFile: one belongs to another account.
    """
    missing = [parent for parent in (folder, *folder.parents) if parent != below and parent.is_relative_to(below)]
    try:
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):
                each.mkdir(mode=0o700)
            _close_to_others(each)
    except OSError as error:
        raise DiskError(f"cannot write {folder}: {error.strerror}; choose another study folder") from error


def locked(file: Path) -> int:
    """Open and lock a file that only its owner can open: any account that may read a file can lock it.

    An older file that others can open is replaced, since one of them may hold its lock already.

    Returns:
        a descriptor, whose closing gives the lock back.

    Raises:
        BlockingIOError: another process of the owner holds it.
        OSError: the file cannot be opened, or the file system has no locks.
    """
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            status = os.fstat(handle)
            if status.st_uid == os.geteuid() and status.st_mode & 0o077:
                scratch, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
                os.close(scratch)
                Path(name).replace(file)
                os.close(handle)
                continue
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise
        return handle


def _close_to_others(folder: Path) -> None:
    """Mode 0700. What others could read in it becomes 0600; what they could write stays as it is, and is not trusted."""
    status = folder.stat()
    require_owner(folder, status)
    if status.st_uid != os.geteuid() or not status.st_mode & 0o077:
        return
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                path.chmod(0o700)
            elif stat.S_ISREG(mode) and not mode & 0o022:
                path.chmod(mode & 0o700)


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


def current_umask() -> int:
    """This process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
