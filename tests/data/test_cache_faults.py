"""What may go wrong with the cache's files: torn, altered, no space, killed."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kt_study import cache as cache_files
from kt_study.errors import DataError, DiskError
from kt_study.files import file_digest
from kt_study.paths import StudyPaths
from kt_study.records import LogitsSpec
from tests.data.support import CPU, digits, job_context, tiny_model
from worker.data.near import near, nearby
from worker.logits import LogitsCache
from worker.logits.forward import cached_logits
from worker.logits.writer import EntryWriter
from worker.training.rows import StreamedTable, merged_table


def _spec(paths: StudyPaths, model: str = "tiny") -> LogitsSpec:
    return LogitsSpec(dataset=digits(paths).key, model=model, split="val")


def _make(paths: StudyPaths, model: str = "tiny") -> Path:
    context = job_context(paths, digits(paths), tiny_model(key=model))
    return cached_logits(_spec(paths, model), context).folder


def _flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    stat = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


DAMAGE = {
    "cut short": lambda folder: os.truncate(folder / "logits.npy", 700),
    "altered": lambda folder: _flip_a_byte(folder / "logits.npy"),
    "side altered": lambda folder: _flip_a_byte(folder / "side.npy"),
    "file gone": lambda folder: (folder / "side.npy").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "torn manifest": lambda folder: os.truncate(folder / "manifest.json", 40),
    "another's manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_torn_or_altered_entry_is_noticed_and_made_again(paths: StudyPaths, damage: str) -> None:
    folder = _make(paths)
    whole = {file.name: file.read_bytes() for file in folder.glob("*.npy")}
    assert cache_files.verify(paths) == []
    DAMAGE[damage](folder)
    assert LogitsCache(paths).open(_spec(paths)) is None
    (bad,) = cache_files.verify(paths)
    assert bad.digest == folder.name
    assert bad.problem
    assert _make(paths) == folder
    assert {file.name: file.read_bytes() for file in folder.glob("*.npy")} == whole
    assert cache_files.verify(paths) == []


def test_a_full_disk_is_an_error_and_leaves_no_torn_file(small_disk: Path) -> None:
    paths = StudyPaths(root=small_disk)
    dataset = digits(paths)
    spec = LogitsSpec(dataset=dataset.key, model="wide", split="val")
    model = tiny_model(key="wide", num_classes=1000)  # 754 rows of 2,000 bytes
    with pytest.raises(DiskError, match="No space left on device; free space"):
        cached_logits(spec, job_context(paths, dataset, model))
    assert cache_files.entries(paths) == []
    left = [file for file in (paths.cache / "logits").rglob("*") if file.is_file()]
    assert left == []
    assert _make(paths).is_dir(), "what fits is still made"


def test_a_file_size_limit_is_an_error_too(tmp_path: Path) -> None:
    writer = EntryWriter(tmp_path / "entry", 100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DiskError, match="cannot write"):
            for _ in range(10):
                writer.append({"logits": np.zeros((10, 1000), np.float16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    writer.discard()
    assert not (tmp_path / "entry").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    paths = StudyPaths(root=tmp_path)
    dataset = digits(paths)
    (paths.cache / "logits").write_text("a file where the folder should be")
    spec = LogitsSpec(dataset=dataset.key, model="tiny", split="val")
    with pytest.raises(DiskError, match="cannot write"):
        cached_logits(spec, job_context(paths, dataset, tiny_model()))


KILLED = """
import sys, os, signal, time
from pathlib import Path
from kt_study.paths import StudyPaths
from kt_study.records import LogitsSpec
from tests.data.support import digits, job_context, tiny_model
from worker.logits.forward import cached_logits
paths = StudyPaths(root=Path(sys.argv[1]))
dataset = digits(paths)
calls = 0
def stopping():
    global calls
    calls += 1
    if calls == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return False
context = job_context(paths, dataset, tiny_model(), stopping=stopping)
cached_logits(LogitsSpec(dataset=dataset.key, model="tiny", split="val"), context)
"""


def test_a_killed_maker_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    paths = StudyPaths(root=tmp_path / "study")
    killed = subprocess.run([sys.executable, "-c", KILLED, paths.root], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert LogitsCache(paths).open(_spec(paths)) is None
    reference = _make(StudyPaths(root=tmp_path / "other"))
    folder = _make(paths)
    for name in ("logits.npy", "side.npy"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes()


def test_rows_written_after_the_last_save_are_written_again(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    killed = EntryWriter(tmp_path / "entry", 6)
    killed.append({"a": rows[:2]})
    killed.save()
    killed = EntryWriter(tmp_path / "entry", 6)
    killed.append({"a": rows[2:5] + 100})
    del killed  # its streams reach the disk, its progress does not
    writer = EntryWriter(tmp_path / "entry", 6)
    assert writer.rows == 2
    writer.append({"a": rows[2:]})
    writer.publish(tmp_path / "done", spec={}, n_classes=2, weights="", versions="", device="")
    assert np.array_equal(np.load(tmp_path / "done" / "a.npy"), rows)
    fresh = EntryWriter(tmp_path / "entry", 7)
    assert fresh.rows == 0, "a split of another size starts anew"


@pytest.mark.parametrize("rows", [5, 7])
def test_an_entry_with_too_few_or_too_many_rows_is_never_published(tmp_path: Path, rows: int) -> None:
    writer = EntryWriter(tmp_path / "entry", 6)
    writer.append({"a": np.zeros((rows, 2), np.float32)})
    with pytest.raises(DataError, match=f"{rows} rows, not the 6"):
        writer.publish(tmp_path / "done", spec={}, n_classes=2, weights="", versions="", device="")
    assert not (tmp_path / "done").exists()
    assert not (tmp_path / "entry").exists(), "the next maker starts anew"


def test_an_entry_that_an_earlier_version_scrambled_is_noticed_and_made_again(paths: StudyPaths) -> None:
    """Gone on with under another batch size, it has every row that was asked for and some twice, and fitting checksums."""
    folder = _make(paths)
    whole = {file.name: file.read_bytes() for file in folder.glob("*.npy")}
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, row_bytes in {"logits.npy": 2 * 10, "side.npy": 4 * 7}.items():
        content = whole[name] + whole[name][-8 * row_bytes :]
        (folder / name).write_bytes(content)
        manifest["files"][name] = [len(content), file_digest(folder / name)]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (bad,) = cache_files.verify(paths)
    assert "rows" in bad.problem
    assert LogitsCache(paths).open(_spec(paths)) is None
    assert _make(paths) == folder
    assert {file.name: file.read_bytes() for file in folder.glob("*.npy")} == whole


def test_rows_that_an_earlier_version_saved_are_not_gone_on_with(tmp_path: Path) -> None:
    """Nobody can say whether they are in order."""
    killed = EntryWriter(tmp_path / "entry", 6)
    killed.append({"a": np.ones((2, 2), np.float32)})
    killed.save()
    (tmp_path / "entry" / "progress.json").write_text('{"rows": 2, "n": 6}')
    assert EntryWriter(tmp_path / "entry", 6).rows == 0


def test_garbage_collection_takes_the_least_recently_used(paths: StudyPaths) -> None:
    folders = [_make(paths, f"m{i}") for i in range(4)]
    for age, folder in zip((400, 300, 200, 100), folders, strict=True):
        for file in (folder, *folder.iterdir()):
            os.utime(file, (time.time() - age, time.time() - age))
    assert LogitsCache(paths).open(_spec(paths, "m0")) is not None  # used just now
    sizes = {entry.digest: entry.nbytes for entry in cache_files.entries(paths)}
    room = sum(sizes[folder.name] for folder in folders[:2])
    removed = cache_files.collect_garbage(paths, max_size=room, keep={folders[1].name})
    assert [entry.digest for entry in removed] == [folders[2].name, folders[3].name]
    assert [folder.exists() for folder in folders] == [True, True, False, False]
    _flip_a_byte(folders[1] / "logits.npy")
    os.truncate(folders[0] / "side.npy", 9)
    assert [entry.digest for entry in cache_files.collect_garbage(paths, max_size=10**9)] == [folders[0].name]


def test_garbage_collection_clears_what_killed_makers_left(paths: StudyPaths) -> None:
    folder = _make(paths)
    old, fresh = (folder.with_name(f".making-{folder.name}{suffix}") for suffix in ("", "-0b"))
    for leftover in (old, fresh):
        EntryWriter(leftover, 5).append({"logits": np.zeros((2, 3), np.float16)})
    for file in (*old.iterdir(), old):
        os.utime(file, (1, 1))
    assert cache_files.collect_garbage(paths, max_size=10**9) == []
    assert (old.exists(), fresh.exists(), folder.exists()) == (False, True, True)


def test_planned_size_is_the_real_size(paths: StudyPaths) -> None:
    folder = _make(paths)
    real = sum(file.stat().st_size for file in folder.glob("*.npy"))
    assert real - cache_files.logits_bytes(754, 10) == 2 * 128 + 128, "but for the headers of the two files"


def test_listing_says_what_an_entry_is(paths: StudyPaths) -> None:
    folder = _make(paths)
    (entry,) = cache_files.entries(paths)
    assert (entry.model, entry.split, entry.view, entry.loader) == ("tiny", "val", -1, "torch")
    assert entry.nbytes == sum(file.stat().st_size for file in folder.iterdir())


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The node's scratch folder, where every file lies on a network file system."""
    monkeypatch.setattr("worker.data.near.file_system", lambda _: "nfs4")
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    near.cache_clear()
    yield tmp_path / "scratch"
    near.cache_clear()


def test_files_of_this_machine_are_read_where_they_lie(tmp_path: Path) -> None:
    assert near(tmp_path / "logits.npy") == tmp_path / "logits.npy"


def test_files_of_a_network_are_read_from_a_local_copy(paths: StudyPaths, scratch: Path) -> None:
    entry = cached_logits(_spec(paths), job_context(paths, digits(paths), tiny_model()))
    file = entry.folder / "logits.npy"
    copy = near(file)
    assert not copy.samefile(file)
    assert copy.read_bytes() == file.read_bytes()
    assert near(file) == copy, "copied once"
    assert np.array_equal(entry.logits, np.load(file)), "also mapped into memory"
    assert np.array_equal(nearby(entry.logits), np.load(file)), "also as an array"
    assert list(scratch.iterdir()) == [], "nothing that a killed process would leave behind"


def _copies(scratch: Path) -> int:
    """Nameless files in the scratch folder that this process has open; a mapping has a handle of its own."""
    handles = [handle for handle in Path("/proc/self/fd").iterdir() if handle.is_symlink()]
    return sum(str(scratch) in str(handle.readlink()) for handle in handles)


def test_a_table_read_at_random_has_a_local_copy_for_as_long_as_it_is_read(paths: StudyPaths, scratch: Path) -> None:
    entries = [
        cached_logits(_spec(paths, name), job_context(paths, digits(paths), tiny_model(key=name)))
        for name in ("a", "b")
    ]
    source = np.arange(entries[0].n, dtype=np.uint8) % 2
    expected = [np.load(entry.folder / "logits.npy") for entry in entries]
    assert _copies(scratch) == 0
    merged_table(source, [entry.logits for entry in entries], CPU)
    assert _copies(scratch) == 0, "a table that is read once, in order, is read where it lies"
    table = StreamedTable(source, [entry.logits for entry in entries], CPU)
    assert _copies(scratch) == 2
    chosen = np.array([700, 3, 3, 44])
    rows = table.rows(torch.from_numpy(chosen), chosen).numpy()
    assert np.array_equal(rows, [expected[sample % 2][sample] for sample in chosen])
    del table
    assert _copies(scratch) == 0, "its space is free again"


def test_where_the_copy_does_not_fit_the_file_itself_is_read(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    assert near(tmp_path / "logits.npy") == tmp_path / "logits.npy"
    assert list(scratch.iterdir()) == []
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "gone"))
    assert near(tmp_path / "side.npy") == tmp_path / "side.npy"


@pytest.mark.parametrize("name", ["logits", "side", "features"])
@pytest.mark.parametrize("how", ["entry gone", "file gone", "cut short"])
def test_an_entry_that_goes_between_opening_and_reading_is_made_again(paths: StudyPaths, how: str, name: str) -> None:
    """As `cache gc`, or a user who wants the space, takes it while a job is under way."""
    context = job_context(paths, digits(paths), tiny_model(key="tiny"))
    spec = LogitsSpec(dataset=digits(paths).key, model="tiny", split="val", features=True)
    whole = np.array(getattr(cached_logits(spec, context), name))
    entry = cached_logits(spec, context)
    match how:
        case "entry gone":
            shutil.rmtree(entry.folder)
        case "file gone":
            (entry.folder / f"{name}.npy").unlink()
        case "cut short":
            os.truncate(entry.folder / f"{name}.npy", 700)
    assert getattr(entry, name).tobytes() == whole.tobytes()
    assert cache_files.verify(paths) == []
