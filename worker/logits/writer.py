"""Writes an entry row by row to a temporary folder, resumes after an interruption, and renames it when complete."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kt_study.cache import MANIFEST, Manifest, problem_of, read_manifest, remove_entry, remove_files
from kt_study.errors import DataError, DiskError
from kt_study.files import file_digest, make_folder, write_bytes

_PROGRESS = "progress.json"
_SAVED = "samples"  # "rows" in files of versions in which rows could be out of order after a change of the batch size


class EntryWriter:
    """Appends rows to the .npy files of an unfinished entry, by plain writes: a full disk kills a memory map."""

    def __init__(self, folder: Path, n: int, *, resume: bool = True) -> None:
        """
        Args:
            folder: of the unfinished entry; rows that were saved there are kept.
            n: rows of the finished entry.
            resume: False to start from the beginning.

        Raises:
            DiskError: the folder cannot be made.
        """
        self.folder = folder
        self.n = n
        self._columns: dict[str, BinaryIO] = {}
        with _disk_errors(folder):
            if not resume:
                remove_files(folder)
            make_folder(folder)
        self.rows = self._saved_rows()

    def append(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Add the same number of rows to every column: name -> [b, ...]. Raises DiskError."""
        with _disk_errors(self.folder):
            for name, values in columns.items():
                if name not in self._columns:
                    self._columns[name] = _opened(self.folder / f"{name}.npy", self.n, self.rows, values)
                self._columns[name].write(np.ascontiguousarray(values).data)
        self.rows += len(next(iter(columns.values())))

    def save(self) -> None:
        """Save the rows so far, for another process to resume from. Raises DiskError."""
        with _disk_errors(self.folder):
            self._close()
            write_bytes(self.folder / _PROGRESS, json.dumps({_SAVED: self.rows, "n": self.n}).encode())

    def publish(self, target: Path, **facts: Any) -> None:
        """Complete the entry with a manifest of these facts and move it to `target`, unless that is complete already.

        Raises:
            DataError: there are not n rows; the unfinished entry is removed.
            DiskError: the disk cannot be written.
        """
        if self.rows != self.n:
            self.discard()
            raise DataError(
                f"{target}: the pass gave {self.rows} rows, not the {self.n} of its split; nothing was kept"
            )
        with _disk_errors(self.folder):
            self._close()
            (self.folder / _PROGRESS).unlink(missing_ok=True)
            files = {file.name: (file.stat().st_size, file_digest(file)) for file in sorted(self.folder.glob("*.npy"))}
            manifest = Manifest(n=self.n, files=files, **facts)
            write_bytes(self.folder / MANIFEST, _encoded(manifest))
            _into_place(self.folder, target)

    def discard(self) -> None:
        """Remove the unfinished entry."""
        for stream in self._columns.values():
            with contextlib.suppress(OSError):  # a stream on a full disk cannot flush, and need not
                stream.close()
        self._columns.clear()
        remove_files(self.folder)

    def _saved_rows(self) -> int:
        try:
            saved = json.loads((self.folder / _PROGRESS).read_text(encoding="utf-8"))
            return int(saved[_SAVED]) if saved["n"] == self.n else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _close(self) -> None:
        for stream in self._columns.values():
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        self._columns.clear()


def _opened(path: Path, n: int, rows: int, values: NDArray[Any]) -> BinaryIO:
    """A .npy file for n rows like those of `values`, positioned after its existing rows."""
    stream = path.open("r+b" if rows else "w+b")
    shape = (n, *values.shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    row_bytes = values.dtype.itemsize * int(np.prod(values.shape[1:]))
    stream.truncate(stream.tell() + rows * row_bytes)
    stream.seek(0, os.SEEK_END)
    return stream


def _into_place(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        if not problem_of(target, read_manifest(target), deep=True):
            remove_files(folder)
            return
        remove_entry(target)
        folder.rename(target)
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _encoded(manifest: Manifest) -> bytes:
    import msgspec

    return msgspec.json.encode(manifest)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiskError(f"cannot write {folder}: {reason}; free space or choose another folder") from error
