"""A real disk that turns read-only while a job works with the cache."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from pathlib import Path

from kt_study.failures import is_transient
from tests.faults import disk
from tests.require import require
from worker.logits.lock import held


def test_whoever_holds_a_lock_does_not_fail_for_it(tmp_path: Path) -> None:
    require("root", disk.trouble() == "", disk.trouble())
    lock = tmp_path / "entry.lock"
    with ExitStack() as later, held(lock, lambda: None) as locked:
        assert locked
        later.enter_context(disk.read_only(tmp_path))
    with held(lock, lambda: None) as locked:
        assert locked, "the file that stayed is taken over"
    assert not lock.exists()


def test_what_a_read_only_disk_refuses_is_tried_again() -> None:
    assert is_transient(OSError(errno.EROFS, "Read-only file system"))
