"""Every example of docs/own-models-and-data.md, taken from the page itself and run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kt_study
from kt_study.store import JobStore, open_store
from tests.cli import kt_study as command
from tests.own.page import CLASSES, COMMIT, FACTORY, examples, lay_folder

EXAMPLES = examples()
DATA = [name for name in EXAMPLES if name.startswith("data-")]
WITHOUT = [name for name in EXAMPLES if name.startswith("without-")]
PLANNED_ONLY = ["model-tag"]  # its weights are on the hub

CLASSES_OF = {"data-idx": 10, "data-parquet": 2, "data-shards": 3, "data-torchvision": 10}

TWO_NETWORKS = """
[[model]]
name = "a"
timm = "test_resnet"
random_weights = true
num_classes = {classes}
input_size = [3, 32, 32]
[[model]]
name = "b"
timm = "test_convnext"
random_weights = true
num_classes = {classes}
input_size = [3, 32, 32]
"""
SHORT = {"epochs": 1, "batch_size": 8, "views": 1, "pairs": 1, "augment": "none"}


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Mapping[str, str]:
    """The environment of a machine without a network, with a hub cache and a database of its own."""
    home = tmp_path_factory.mktemp("home")
    return {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "KT_STUDY_DB": f"sqlite:///{folder / 'kt-study.db'}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("page")
    lay_folder(found)
    return found


def run(folder: Path, environment: Mapping[str, str], *arguments: str) -> str:
    """A command of the page to its good end."""
    settings = {**environment, "HF_HUB_CACHE": str(folder / "hub")}
    done = command(folder, *arguments, timeout=600, environment=settings)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


PLAN_AND_WORK = """
import os
import sys
from kt_study.pilots import PilotOptions
from orchestrator.cli import kt_study_command
from worker.pilot.entry import run_pilot

for name in sys.argv[2:]:
    kt_study_command.main(["plan", "--study", f"{sys.argv[1]}/{name}.toml"], standalone_mode=False)
run_pilot(PilotOptions(root=sys.argv[1], database=os.environ["KT_STUDY_DB"], device="cpu"))
"""
"""`kt-study plan` for each study file, and one worker for all of them."""


def work(folder: Path, environment: Mapping[str, str], *names: str) -> JobStore:
    """Plan every `NAME.toml`, run all their jobs, and give the store."""
    done = subprocess.run(
        [sys.executable, "-c", PLAN_AND_WORK, str(folder), *names],
        cwd=folder,
        env={**os.environ, **environment, "HF_HUB_CACHE": str(folder / "hub")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return open_store(environment["KT_STUDY_DB"], create=False)


def rows_of(store: JobStore, table: str, study: str) -> list[dict[str, Any]]:
    return [row for batch in store.results(table, study) for row in batch]


def spelled(section: Mapping[str, Any]) -> str:
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in section.items())


@pytest.fixture(scope="module")
def first(folder: Path, offline: Mapping[str, str]) -> Path:
    """The page's first example, every command of it."""
    (folder / "study.toml").write_text(EXAMPLES["first"])
    for line in EXAMPLES["commands"].splitlines():
        program, *arguments = shlex.split(line)
        assert program == "kt-study"
        run(folder, offline, *arguments)
    return folder


def test_nothing_on_the_page_goes_untested() -> None:
    tested = {"first", "commands", "model-folder", "model-hub", "model-factory", *PLANNED_ONLY, *DATA, *WITHOUT}
    assert set(EXAMPLES) == tested
    assert set(DATA) == set(CLASSES_OF) and len(WITHOUT) == 2


@pytest.mark.timeout(1200)
def test_the_first_example_ends_with_a_model_that_timm_loads(first: Path) -> None:
    import timm

    (row,) = kt_study.load(first / "results").transfers.query("student == 'small_resnet'").to_dict("records")
    model = timm.create_model(f"local-dir:{first / 'better_resnet'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    files = sorted((first / "photos" / "val").glob("*/*.jpg"))
    with torch.inference_mode():
        found = [int(model(transform(Image.open(file))[None]).argmax()) for file in files]
    assert found == np.load(first / row["predictions"]).tolist()
    assert "| student small_resnet | mit | permissive |" in (first / "better_resnet" / "README.md").read_text()


@pytest.mark.timeout(1200)
def test_models_from_a_folder_the_hub_and_a_factory(first: Path, offline: Mapping[str, str]) -> None:
    """Each predicts what it predicts in a plain loop: the weights and the preprocessing are its own."""
    models = "".join(EXAMPLES[name] for name in ("model-folder", "model-hub", "model-factory"))
    dataset = EXAMPLES["first"].split("[dataset]")[1].split("[[model]]")[0]
    study = f'[study]\nname = "others"\n[dataset]{dataset}{models}\n[transfer]\npairs = 0\n'
    (first / "others.toml").write_text(study)
    store = work(first, offline, "others")
    rows = {row["model"]: row["acc"] for row in rows_of(store, "evaluations", "others")}
    assert rows == pytest.approx({name: _accuracy(first, name) for name in rows}, abs=1e-9)
    assert sorted(rows) == ["better_resnet", "from_the_hub", "my_net"]
    (hub,) = [model for model in store.models() if model.name == "from_the_hub"]
    assert hub.weights == f"timm:hf-hub:someone/fruit-resnet@{COMMIT}" and hub.input_size == (3, 48, 48)


def _accuracy(folder: Path, name: str) -> float:
    import timm

    if name == "my_net":
        scope: dict[str, Any] = {}
        exec(FACTORY, scope)
        model = scope["small_net"](num_classes=3, width=8)
        model.load_state_dict(torch.load(folder / "weights" / "my_net.pth", weights_only=True))
        data = {"input_size": (3, 32, 32), "interpolation": "bilinear", "crop_pct": 1.0}
    else:
        snapshot = folder / "hub" / "models--someone--fruit-resnet" / "snapshots" / COMMIT
        where = folder / "better_resnet" if name == "better_resnet" else snapshot
        model = timm.create_model(f"local-dir:{where}", pretrained=True)
        data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data, is_training=False)
    files = sorted((folder / "photos" / "val").glob("*/*.jpg"))
    with torch.inference_mode():
        right = [
            int(model.eval()(transform(Image.open(file))[None]).argmax()) == CLASSES.index(file.parent.name)
            for file in files
        ]
    return 100.0 * float(np.mean(right))


def test_without_a_network_the_hub_is_refused_in_one_line(folder: Path, offline: Mapping[str, str]) -> None:
    study = EXAMPLES["first"] + EXAMPLES["model-hub"].replace("fruit-resnet", "other")
    (folder / "lost.toml").write_text(study)
    done = command(folder, "plan", "--study", "lost.toml", environment={**offline, "HF_HUB_CACHE": str(folder / "hub")})
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert (
        "someone/other cannot be had from the Hugging Face hub" in line and "fetch it where there is a network" in line
    )


def test_weights_of_timm_get_a_new_last_layer(folder: Path, offline: Mapping[str, str]) -> None:
    (folder / "tag.toml").write_text(EXAMPLES["first"] + EXAMPLES["model-tag"])
    told = run(folder, offline, "plan", "--study", "tag.toml", "--dry-run")
    assert "1 train" in told and "3 models" in told


@pytest.fixture(scope="module")
def worked(folder: Path, offline: Mapping[str, str]) -> JobStore:
    """Every example of data as a study of its own, with two small networks, run by one worker."""
    for name in DATA:
        _write(folder, name, "[transfer]\n" + spelled({"objectives": ["kl_dp"]}))
    for name in WITHOUT:
        _write(folder, name, spelled({"lr": 0.05}))  # its example ends with [transfer]
    return work(folder, offline, *DATA, *WITHOUT)


def _write(folder: Path, name: str, transfer: str) -> None:
    models = TWO_NETWORKS.format(classes=CLASSES_OF.get(name, len(CLASSES)))
    head = f'[study]\nname = "{name}"\n'
    (folder / f"{name}.toml").write_text("\n".join([head, EXAMPLES[name], transfer, spelled(SHORT), models]))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", DATA)
def test_data_of_other_kinds(worked: JobStore, name: str) -> None:
    (row,) = rows_of(worked, "transfers", name)
    sizes = {"data-idx": (20, 20), "data-parquet": (8, 8), "data-shards": (12, 6), "data-torchvision": (20, 20)}
    assert (row["n_train"], row["n"]) == sizes[name]
    assert row["knowledge_gain"] - row["knowledge_loss"] == pytest.approx(row["delta_transf"], abs=1e-9)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", WITHOUT)
def test_images_without_labels(worked: JobStore, name: str) -> None:
    (row,) = rows_of(worked, "transfers", name)
    assert row["objective"] == "kl_dp_unsupervised"
    labelled = name == "without-training-labels"
    assert (row["acc_after"] is not None, row["knowledge_gain"] is not None) == (labelled, labelled)
    assert 0 <= row["teacher_share"] <= 100
    before = {r["model"]: r for r in rows_of(worked, "evaluations", name)}
    assert all((r["acc"] is None) != labelled and r["prediction_entropy"] > 0 for r in before.values())
    pairs = {(r["teacher"], r["student"]): r for r in rows_of(worked, "complementarity", name)}
    assert pairs[row["teacher"], row["student"]]["agreement"] == pytest.approx(row["agreement_before"], abs=1e-9)
    if not labelled:
        assert all(r["rho_pos"] is None for r in pairs.values())
        assert not rows_of(worked, "class_flips", name)


@pytest.mark.timeout(1200)
def test_rows_without_labels_reach_parquet_and_the_report(
    worked: JobStore, folder: Path, offline: Mapping[str, str]
) -> None:
    assert "without-labels" in worked.studies()
    for name in ("collect", "report"):
        run(folder, offline, name, "--study", "without-labels.toml")
    (row,) = kt_study.load(folder / "results", "without-labels").transfers.to_dict("records")
    assert np.isnan(row["acc_after"]) and not np.isnan(row["changed"])
    page = (folder / "report" / "index.html").read_text()
    assert "two models predict alike" in page and "has no labels" in page
