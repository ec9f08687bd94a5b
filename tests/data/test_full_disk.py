"""A full disk wherever it strikes: the error says so, the job may try again, and nothing half-written is left."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kt_study.errors import DatabaseError, DataError, DiskError, WeightsError
from kt_study.failures import describe, is_disk_full, is_transient
from kt_study.files import atomic_write
from kt_study.paths import StudyPaths
from kt_study.records import Claim
from kt_study.store import JobStore, open_store
from tests.store.making import claim_one, job, plan
from worker.models.build import save_state
from worker.models.kept import keep_student
from worker.pilot.spool import Spool
from worker.training.checkpoints import save_checkpoint

LARGE = {"weight": torch.zeros(1_000_000)}


def _parquet(target: Path) -> None:
    with atomic_write(target) as scratch:
        pq.write_table(pa.table({"a": np.random.default_rng(0).random(200_000)}), scratch)


def _rows(target: Path) -> None:
    with atomic_write(target) as scratch, scratch.open("wb") as stream:
        np.save(stream, np.zeros(1_000_000))


WRITERS: dict[str, Callable[[Path], object]] = {
    "weights": lambda disk: save_state(disk / "a.safetensors", LARGE),
    "kept student": lambda disk: keep_student(StudyPaths(root=disk), "0" * 32, LARGE, {}, "all"),
    "checkpoint": lambda disk: save_checkpoint(disk / "checkpoint.pt", "0" * 32, dict(LARGE)),
    "predictions": lambda disk: _rows(disk / "a.npy"),
    "parquet": lambda disk: _parquet(disk / "a.parquet"),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_writer_says_that_the_disk_is_full_and_leaves_nothing(small_disk: Path, what: str) -> None:
    with pytest.raises(DiskError, match="cannot write") as caught:
        WRITERS[what](small_disk)
    failure = describe(caught.value)
    assert failure.transient
    assert is_disk_full(caught.value)
    assert "free space" in failure.message
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def _raw(write: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        write()
    return caught.value


def test_what_libraries_raise_by_themselves_is_transient_too(small_disk: Path) -> None:
    from safetensors.torch import save_file

    def torch_stream() -> None:
        with (small_disk / "b.pt").open("wb") as stream:
            torch.save(LARGE, stream)

    for write in (
        lambda: save_file(LARGE, small_disk / "a.safetensors"),
        lambda: torch.save(LARGE, small_disk / "a.pt"),
        torch_stream,
        lambda: np.save(small_disk / "a.npy", np.zeros(1_000_000)),
        lambda: pq.write_table(pa.table({"a": np.random.default_rng(0).random(200_000)}), small_disk / "a.parquet"),
    ):
        error = _raw(write)
        assert is_transient(error) and is_disk_full(error), error
        for path in small_disk.iterdir():
            path.unlink()


def test_a_full_disk_behind_what_looks_like_wrong_input_is_transient() -> None:
    """Such as weights that the hub's client could not store."""
    for cause in (
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EDQUOT, "quota"),
        RuntimeError("No space left on device"),
    ):
        error = WeightsError("the weights cannot be had")
        error.__cause__ = cause
        assert is_transient(error)
    assert not is_transient(WeightsError("torn"))
    assert not is_transient(DataError("no such image"))


@pytest.fixture
def store_on_a_full_disk(small_disk: Path) -> Iterator[tuple[JobStore, Claim]]:
    """A SQLite job table with a claim, on a disk that takes no further byte."""
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    store = open_store(f"sqlite:///{small_disk / 'kt-study.db'}", create=True, patience_s=0.2)
    plan(store, *(job(number) for number in range(300)))
    claim = claim_one(store)
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while filler.write(bytes(4096)):
            pass
    yield store, claim
    store.close()


def test_sqlite_on_a_full_disk_is_a_database_that_is_away(store_on_a_full_disk: tuple[JobStore, Claim]) -> None:
    store, _ = store_on_a_full_disk
    with pytest.raises(DatabaseError) as caught:
        while store.claim("worker"):
            pass
    assert is_transient(caught.value)


def test_a_full_disk_under_database_and_spool_leaves_the_result_to_be_delivered(
    store_on_a_full_disk: tuple[JobStore, Claim], small_disk: Path
) -> None:
    store, claim = store_on_a_full_disk
    spool = Spool(small_disk / "spool")
    rows = {"transfers": []}
    with pytest.raises(DiskError):
        while True:  # the log may have room for some more commits
            assert spool.finish(store, claim, rows)
            claim = claim_one(store)
    (small_disk / "filler").unlink()
    assert spool.finish(store, claim, rows)
    assert spool.waiting() == []
