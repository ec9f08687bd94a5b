"""`kt-study cache`, `kt-study data` and the speed options of workers, as a user types them."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from kt_study.cache import entries
from kt_study.paths import StudyPaths
from kt_study.pilots import PilotOptions
from kt_study.records import Claim, LogitsSpec
from kt_study.store import open_store
from orchestrator.cli.commands.data import command as data_command
from orchestrator.cli.commands.worker import command as worker_command
from orchestrator.terminal.spans import size
from tests.cli import kt_study, refused, succeeds
from tests.data.support import digits, image_folder, job_context, tiny_model
from tests.databases import Databases, url_of
from tests.require import require
from worker.data.betons import BetonManifest, BetonOptions, read_beton_manifest
from worker.logits.forward import cached_logits
from worker.pilot.pilot import Pilot

STUDY = """
[study]
name = "s"
[dataset]
kind = "{kind}"
{keys}
[[model]]
name = "m"
timm = "test_resnet"
random_weights = true
input_size = [3, 32, 32]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study folder with three cached passes, the first the least recently used."""
    (tmp_path / "study.toml").write_text(STUDY.format(kind="digits", keys=""))
    paths = StudyPaths(root=tmp_path)
    dataset = digits(paths)
    for age, key in ((300, "old"), (200, "middle"), (100, "new")):
        spec = LogitsSpec(dataset=dataset.key, model=key, split="val")
        made = cached_logits(spec, job_context(paths, dataset, tiny_model(key=key))).folder
        for file in (made, *made.iterdir()):
            seen = file.stat().st_mtime
            os.utime(file, (seen - age, seen - age))
    return tmp_path


def test_cache_ls_lists_every_pass_the_least_recently_used_first(folder: Path) -> None:
    listed = json.loads(succeeds(folder, "cache", "ls", "--json"))
    assert [entry["model"] for entry in listed] == ["old", "middle", "new"]
    assert all(entry["problem"] == "" for entry in listed)
    said = succeeds(folder, "cache", "ls").splitlines()
    assert [line.split()[1:3] for line in said[:-1]] == [size(entry["nbytes"]).split() for entry in listed]
    assert said[-1].startswith(f"3 passes, {size(sum(entry['nbytes'] for entry in listed))} in ")


@pytest.mark.parametrize("arguments", ["ls", "verify", "gc --max-size 0"])
def test_a_folder_without_a_study_has_no_empty_cache(tmp_path: Path, arguments: str) -> None:
    said = refused(tmp_path, "cache", *arguments.split(), "--db", "sqlite:///nowhere.db")
    assert "study.toml: no such study file; `kt-study init` writes one" in said
    assert not list(tmp_path.iterdir())


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (0, 999, 724_200, 8_900_000, 1.25e9, 2e12, 3e15)] == [
        "0 B", "999 B", "724.2 kB", "8.9 MB", "1.2 GB", "2.0 TB", "3000.0 TB",
    ]  # fmt: skip


def test_cache_verify_ends_with_1_when_something_is_torn(folder: Path) -> None:
    assert "3 passes checked, 0 damaged" in succeeds(folder, "cache", "verify")
    torn = Path(entries(StudyPaths(root=folder))[1].folder)
    os.truncate(torn / "logits.npy", 200)
    done = kt_study(folder, "cache", "verify")
    assert done.returncode == 1
    assert f"{torn}: logits.npy has another size; it is computed again" in done.stdout
    assert "3 passes checked, 1 damaged" in done.stdout


def test_cache_gc_keeps_the_latest_within_the_size(folder: Path, databases: Databases) -> None:
    databases.settle(folder)
    open_store(url_of(folder), create=True)  # says what unfinished jobs need: nothing here
    one = entries(StudyPaths(root=folder))[0].nbytes
    assert "0 passes deleted" in succeeds(folder, "cache", "gc", "--max-size", "1G")
    assert "1 passes deleted" in succeeds(folder, "cache", "gc", "--max-size", str(2 * one + one // 2))
    assert [entry.model for entry in entries(StudyPaths(root=folder))] == ["middle", "new"]
    assert "give a size such as 500M" in refused(folder, "cache", "gc", "--max-size", "much")


def test_cache_gc_leaves_what_kt_study_did_not_make(folder: Path) -> None:
    open_store(f"sqlite:///{folder}/kt-study.db", create=True)
    logits = folder / "cache" / "logits"
    noted = Path(entries(StudyPaths(root=folder))[0].folder)
    theirs = [logits / "my" / "runs" / "notes.txt", logits / "ab" / ".git" / "HEAD", noted / "notes.txt"]
    theirs += [logits / "ab" / f".making-{'ab' * 16}" / "notes.txt"]
    for file in theirs:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
        for path in (file, file.parent):
            os.utime(path, (0, 0))
    done = kt_study(folder, "cache", "gc", "--max-size", "0")
    assert f"{noted} is kept: it contains notes.txt, which kt-study did not make" in done.stderr
    assert [entry.folder for entry in entries(StudyPaths(root=folder))] == [str(noted)]
    assert all(file.read_text() == "mine" for file in theirs)
    (noted / "notes.txt").unlink()
    assert "1 passes deleted" in succeeds(folder, "cache", "gc", "--max-size", "0")
    assert not noted.exists()


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("", {}),
        ("--loader-workers 0 --eval-batch-size 128", {"loader_workers": 0, "eval_batch_size": 128}),
        ("--loader-workers 3 --cuda-graphs", {"loader_workers": 3, "cuda_graphs": True}),
    ],
)
def test_what_fits_a_worker_to_its_machine_reaches_its_jobs(
    typed: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.toml").write_text(STUDY.format(kind="digits", keys=""))
    seen: list[PilotOptions] = []
    monkeypatch.setattr("worker.pilot.entry.run_pilot", lambda options: seen.append(options) or "")
    store = open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True)
    done = CliRunner().invoke(worker_command, ["--study", str(tmp_path / "study.toml"), *typed.split()])
    assert done.exit_code == 0, done.output
    claim = Claim(job_id=1, attempt_id=1, fence=1, kind="logits", digest="0", spec={}, attempt=1)
    for device, loaders in (("cpu", 0), ("cuda", max(1, torch.get_num_threads() - 1))):
        pilot = Pilot(options=seen[0], store=store, device=torch.device(device))
        expected = {"loader_workers": loaders, "eval_batch_size": 64, "cuda_graphs": False, **given}
        options = pilot._context(claim).options
        assert {name: getattr(options, name) for name in expected} == expected


def test_data_prepare_writes_what_its_options_say(tmp_path: Path) -> None:
    require("ffcv", importlib.util.find_spec("ffcv") is not None, "ffcv is not installed")
    image_folder(tmp_path / "train", {"ant": 5, "bee": 4})
    image_folder(tmp_path / "val", {"ant": 2, "bee": 1})
    (tmp_path / "study.toml").write_text(STUDY.format(kind="imagefolder", keys='train = "train"\nval = "val"'))
    options = ("--max-side", "30", "--jpeg-quality", "70", "--jpeg-share", "0.5")
    done = kt_study(tmp_path, "data", "prepare", "--json", *options)
    assert done.returncode == 0
    assert "\r" not in done.stderr
    assert all(line.startswith("preparing: ") for line in done.stderr.splitlines())
    written = json.loads(done.stdout)
    beton = StudyPaths(root=tmp_path).beton(written["dataset"], "train")
    manifest = read_beton_manifest(beton)
    assert manifest is not None
    assert (manifest.n, manifest.nbytes, manifest.content) == (9, beton.stat().st_size, written["content"])
    assert (manifest.options.max_side, manifest.options.jpeg_quality, manifest.options.jpeg_share) == (30, 70, 0.5)


@pytest.mark.parametrize(
    ("split", "more"), [("train", "kt-study plan now plans transfers with the ffcv loader"), ("val", "")]
)
def test_data_prepare_says_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, more: str
) -> None:
    (tmp_path / "study.toml").write_text(STUDY.format(kind="digits", keys=""))
    manifest = BetonManifest(dataset="d", split=split, n=5040, nbytes=8_900_000, options=BetonOptions(), content="c")
    monkeypatch.setattr("worker.pilot.entry.prepare_data", lambda *_, **__: manifest)
    done = CliRunner().invoke(data_command, ["prepare", "--study", str(tmp_path / "study.toml"), "--split", split])
    first, *rest = done.output.splitlines()
    assert first == "5,040 images, 8.9 MB"
    assert [line.partition(",")[0] for line in rest] == ([more] if more else [])
