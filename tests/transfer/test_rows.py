"""What a `transfers` row says of how it came about: settings, machine, time, memory; against what was really so."""

from __future__ import annotations

import platform
import socket
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from kt_study.objectives import OBJECTIVES
from kt_study.settings import Settings
from tests.transfer.study import Study, make_study
from worker.training.step import StepInputs, TransferStep

N_TRAIN, EPOCHS, BATCH = 504, 2, 64
"""Of tests.transfer.study."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


def row_of(study: Study, objective: str, *, seed: int = 0, **given: Any) -> dict[str, Any]:
    spec = replace(study.spec(objective, "a", **given), seed=seed)
    (row,) = study.run(spec)["transfers"]
    return dict(row)


@pytest.mark.parametrize("reading", ["paper", "authors"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_setting_and_the_seed_are_columns(study: Study, objective: str, reading: str) -> None:
    given = {"reading": reading, "epochs": 1, "temperature": 2.0, "kl_weight": 0.6, "batchnorm": "frozen"}
    row = row_of(study, objective, seed=7, **given)
    settings = study.spec(objective, "a", **given).settings
    assert {name: row[name] for name in Settings.__struct_fields__} == {
        name: getattr(settings, name) for name in Settings.__struct_fields__
    }
    assert row["seed"] == 7
    assert row["reading"] == reading
    assert row["lr_effective"] == pytest.approx(0.05 * (BATCH / 256 if reading == "authors" else 1))
    assert row["weight_decay"] == (1e-4 if reading == "authors" else 1e-3)
    uses = OBJECTIVES[objective].uses
    assert row["temperature"] == (2.0 if "temperature" in uses else 1.0)
    assert row["kl_weight"] == (0.6 if "kl_weight" in uses else 0.5)


def test_the_machine_and_the_versions(study: Study) -> None:
    row = row_of(study, "kl")
    assert (row["device"], row["host"], row["threads"]) == ("cpu", socket.gethostname(), torch.get_num_threads())
    assert row["versions"].startswith(f"python {platform.python_version()}, ")
    for name in ("torch", "timm", "kt-study"):
        assert f", {name} {version(name)}" in row["versions"]


def test_time_throughput_and_memory(study: Study) -> None:
    rows = study.run(study.spec("kl", "b"))
    (row,) = rows["transfers"]
    assert (row["n_train"], row["n"]) == (N_TRAIN, len(np.load(study.paths.root / row["predictions"])))
    assert row["steps"] == EPOCHS * -(-N_TRAIN // BATCH)
    trained_s = EPOCHS * N_TRAIN / row["images_per_s"]
    assert 0 < trained_s <= row["seconds"]
    seconds = [epoch["seconds"] for epoch in rows["transfer_epochs"]]
    assert 0 < seconds[0] < seconds[1] <= row["seconds"]
    images = N_TRAIN * 3 * 32 * 32 * 4
    assert images < row["peak_memory"] < 1 << 40


def test_predictions_are_the_smallest_integers_that_hold_the_classes(study: Study) -> None:
    row = row_of(study, "kl")
    assert np.load(study.paths.root / row["predictions"]).dtype == np.uint8


def test_micro_batches_that_were_set_or_forced(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = row_of(study, "kl_dp", batchnorm="frozen")
    asked = row_of(study, "kl_dp", batchnorm="frozen", micro_batch=24)
    assert (whole["micro_batch_used"], asked["micro_batch_used"], asked["micro_batch"]) == (0, 24, 24)
    original = TransferStep._losses

    def little_memory(step: TransferStep, part: StepInputs) -> torch.Tensor:
        if len(part.images) > 20:
            raise torch.OutOfMemoryError("no room")
        return original(step, part)

    monkeypatch.setattr(TransferStep, "_losses", little_memory)
    forced = row_of(study, "kl_dp", batchnorm="frozen")
    assert (forced["micro_batch_used"], forced["micro_batch"]) == (16, 0)
    for row in (asked, forced):
        assert row["acc_after"] == pytest.approx(whole["acc_after"], abs=1.0)
