"""Weights files as a user names them: formats, links of the hub's cache, and what `plan` says about the choice."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from kt_study.paths import StudyPaths
from kt_study.store import open_store
from tests.cli import refused, succeeds
from tests.data.support import image_folder
from worker.models.build import build_model

HEAD = """
[study]
name = "named"
[dataset]
kind = "imagefolder"
train = "val"
val = "val"
[transfer]
pairs = 0
"""


def table(name: str, checkpoint: str) -> str:
    return f'[[model]]\nname = "{name}"\ntimm = "test_resnet"\ncheckpoint = "{checkpoint}"\ninput_size = [3, 32, 32]\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image_folder(tmp_path / "val", {"ant": 1, "bee": 1})
    return tmp_path


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(timm.create_model("test_resnet", num_classes=2).state_dict())


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_name_of_a_format_is_read(folder: Path) -> None:
    """A snapshot of the hub's cache holds links to blobs, whose names have no suffix."""
    blobs, snapshot = folder / "hub" / "blobs", folder / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file(state(0), blobs / "3f2a")
    (snapshot / "model.safetensors").symlink_to("../../blobs/3f2a")
    torch.save(state(1), folder / "UPPER.PTH")
    torch.save({"state_dict": state(2), "args": argparse.Namespace(lr=0.1)}, folder / "last.pth.tar")
    framework = {**{f"model.{name}": value for name, value in state(3).items()}, "loss.weight": torch.ones(2)}
    torch.save({"state_dict": framework, "epoch": 3}, folder / "epoch=3.ckpt")
    names = ["hub/snapshots/abc/model.safetensors", "UPPER.PTH", "last.pth.tar", "epoch=3.ckpt"]
    (folder / "study.toml").write_text(HEAD + "".join(table(f"m{i}", name) for i, name in enumerate(names)))

    notes = json.loads(succeeds(folder, "plan", "--json"))["notes"]
    assert [note for note in notes if "read from" in note] == [
        "model 'm2': read from last.pth.tar: the state dict under 'state_dict'",
        "model 'm3': read from epoch=3.ckpt: the state dict under 'state_dict', the names behind 'model.', without 1 other "
        "tensor (loss.weight)",
    ]
    store = open_store(f"sqlite:///{folder / 'kt-study.db'}", create=False)
    records = {record.name: record for record in store.models()}
    for seed in range(4):
        built = build_model(records[f"m{seed}"], StudyPaths(root=folder), torch.device("cpu"))
        assert same(built.state_dict(), state(seed))


def test_other_formats_are_refused_by_name(folder: Path) -> None:
    save_file(state(0), folder / "first.safetensors")
    (folder / "second.h5").write_bytes(b"\x89HDF")
    (folder / "study.toml").write_text(HEAD + table("a", "first.safetensors") + table("b", "second.h5"))
    told = refused(folder, "plan")
    assert "second.h5 is none of .safetensors, .pth, .pt, .bin, .ckpt, .pth.tar, .pt.tar" in told
