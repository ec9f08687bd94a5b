"""The logits cache: opens complete entries and makes missing ones, one process at a time."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kt_study.cache import MANIFEST, log_forward, problem_of, read_manifest
from kt_study.errors import DiskError
from kt_study.hashing import job_digest
from kt_study.paths import StudyPaths
from kt_study.records import LogitsSpec, as_spec
from worker.logits.entry import CachedLogits
from worker.logits.lock import held
from worker.logits.writer import EntryWriter

Fill = Callable[[EntryWriter], dict[str, Any]]
"""Writes the rows that are missing; returns the manifest's n_classes, weights, versions, ..."""

_verified: set[tuple[str, int, int]] = set()  # manifest, its inode and time: checked by checksum in this process


class LogitsCache:
    """All cached forward passes of a study folder, shared by its jobs and workers."""

    def __init__(self, paths: StudyPaths) -> None:
        self._paths = paths

    def open(self, spec: LogitsSpec, *, make_again: Callable[[], object] | None = None) -> CachedLogits | None:
        """The entry of this specification, or None if it is missing, incomplete or altered.

        Checksums are checked at the first opening of an entry in a process, sizes at every one.

        Args:
            spec: which forward pass.
            make_again: see `CachedLogits`.
        """
        folder = self.folder(spec)
        manifest = read_manifest(folder)
        if manifest is None or manifest.spec != as_spec(spec):
            return None
        try:
            stamp = _stamp(folder)
        except FileNotFoundError:  # it is being deleted
            return None
        if problem_of(folder, manifest, deep=stamp not in _verified):
            return None
        _verified.add(stamp)
        with contextlib.suppress(OSError):
            os.utime(folder)  # for `cache gc`, which removes the least recently used first
        return CachedLogits(folder, manifest, make_again=make_again)

    def make(
        self,
        spec: LogitsSpec,
        n: int,
        fill: Fill,
        *,
        waiting: Callable[[], None],
        make_again: Callable[[], object] | None = None,
    ) -> CachedLogits:
        """Make the entry, or wait for another process that makes it.

        Args:
            spec: which forward pass.
            n: samples of the split.
            fill: does the work; if it raises Stopped after `writer.save()`, the next call resumes from there.
            waiting: called while another process makes the entry; may raise to give up.
            make_again: see `CachedLogits`.

        Raises:
            DiskError: the disk cannot be written; nothing is left.
        """
        folder = self.folder(spec)
        with held(folder.with_name(f".{folder.name}.lock"), waiting) as alone:
            if (found := self.open(spec, make_again=make_again)) is not None:
                return found
            aside = f".making-{folder.name}" if alone else f".making-{folder.name}-{uuid.uuid4().hex}"
            writer = EntryWriter(folder.with_name(aside), n)
            try:
                facts = fill(writer)
                writer.publish(folder, spec=as_spec(spec), **facts)
            except DiskError:
                writer.discard()
                raise
            log_forward(self._paths, folder.name, as_spec(spec), n)
        made = self.open(spec, make_again=make_again)
        if made is None:
            raise DiskError(f"{folder}: written, but reads back incomplete; check the disk")
        return made

    def folder(self, spec: LogitsSpec) -> Path:
        """The folder of the entry of this specification."""
        return self._paths.logits(job_digest("logits", as_spec(spec)))


def _stamp(folder: Path) -> tuple[str, int, int]:
    """Changes when any file of the entry is replaced or written to."""
    stats = [file.stat() for file in folder.iterdir()]
    return (str(folder / MANIFEST), sum(stat.st_mtime_ns for stat in stats), sum(stat.st_ino for stat in stats))
