"""An exported student is the one that was measured: by timm alone, in a plain loop, to the sample."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from kt_study.paths import StudyPaths
from kt_study.store import open_store
from orchestrator.results.export import TransferFilter, export_student, select_transfer
from tests.cli import refused, succeeds
from tests.databases import url_of


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The `transfers` rows of a study folder."""
    store = open_store(url_of(folder), create=False)
    return [row for batch in store.results("transfers") for row in batch]


def row_of(folder: Path, student: str, objective: str) -> dict[str, Any]:
    (row,) = [row for row in rows_of(folder) if row["student"] == student and row["objective"] == objective]
    return row


@pytest.mark.parametrize(("student", "teacher"), [("tiny_resnet", "tiny_vit"), ("tiny_vit", "tiny_resnet")])
def test_timm_gives_the_recorded_predictions_to_the_sample(
    tiny: Path, tmp_path: Path, student: str, teacher: str
) -> None:
    out = tmp_path / "exported"
    succeeds(tiny, "export", "--student", student, "--teacher", teacher, "--objective", "kl_dp", "--out", str(out))
    row = row_of(tiny, student, "kl_dp")
    predicted = _by_timm_alone(out, sorted((tiny / "val").glob("*/*.png")))
    assert predicted.tolist() == np.load(tiny / row["predictions"]).tolist()
    labels = [int(file.parent.name[-1]) for file in sorted((tiny / "val").glob("*/*.png"))]
    assert np.mean(predicted == labels) * 100 == pytest.approx(row["acc_after"], abs=1e-9)
    assert row["acc_after"] != row["acc_before"]  # the student before the transfer would not pass


def _by_timm_alone(folder: Path, files: list[Path]) -> Any:
    """timm's model and timm's transform, one image at a time."""
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.inference_mode():
        logits = [model(transform(Image.open(file).convert("RGB"))[None]) for file in files]
    return torch.cat(logits).argmax(dim=1).numpy()


@pytest.fixture(scope="module")
def best(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The better of two students, exported by the command, whose output is in the file `output`."""
    folder = tmp_path_factory.mktemp("exports")
    pair = ("--student", "tiny_resnet", "--teacher", "tiny_vit")
    (folder / "output").write_text(succeeds(tiny, "export", *pair, "--out", str(folder / "mine")))
    return folder / "mine"


def test_the_config_names_the_classes_and_no_foreign_weights(best: Path) -> None:
    config = json.loads((best / "config.json").read_text())
    assert config["architecture"] == "test_resnet"
    assert config["label_names"] == [f"digit_{label}" for label in range(5)]
    assert config["pretrained_cfg"]["mean"] == [0.4, 0.5, 0.6]
    assert not {"license", "tag", "hf_hub_id", "url"} & config["pretrained_cfg"].keys()


def test_the_card_has_the_values_of_the_row(tiny: Path, best: Path) -> None:
    output, card = (best.parent / "output").read_text(), (best / "README.md").read_text()
    row = max((one for one in rows_of(tiny) if one["student"] == "tiny_resnet"), key=lambda one: one["acc_after"])
    for name in ("acc_before", "acc_after"):
        right = round(row[name] * row["n"] / 100)
        low, high = binomtest(right, row["n"]).proportion_ci(method="wilson")
        assert f"| {row[name]:.2f} % | {100 * low:.2f} to {100 * high:.2f} % |" in card
    for name in ("knowledge_gain", "knowledge_loss"):
        assert f"{row[name]:.2f} %" in card
    assert f"{row['delta_transf']:+.2f} points | {row['delta_transf_low']:+.2f} to " in card
    assert f"job {row['job_id']} " in card and f"| objective | {row['objective']} |" in card
    assert "of 2 matching transfers" in card and "of 2 matching transfers" in output
    assert "| lr | 0.02 |" in card and "label_smoothing" not in card  # nothing read it
    assert card.count("| unknown |") == 2 and "the licence of the teacher tiny_vit is unknown" in output


def test_the_cards_python_runs(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (best / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(best.parent)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["transform"](Image.new("RGB", (24, 24))).shape == (3, 32, 32)
    assert not scope["model"].training


def test_twice_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    store = open_store(url_of(tiny), create=False)
    paths, found = StudyPaths(root=tiny), []
    for parent in ("a", "b"):
        selected = select_transfer(store, "tiny", paths, TransferFilter(student="tiny_vit", objective="kl"))
        out = tmp_path / parent / "mine"
        export_student(selected, store, "tiny", paths, out)
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]
    assert sorted(found[0]) == ["README.md", "config.json", "model.safetensors"]


def test_refusals_are_one_line_and_leave_nothing(tiny: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(tiny, study, ignore=shutil.ignore_patterns("train", "val", "logits"))
    (study / "full").mkdir()
    (study / "full" / "file").touch()
    pair = ("--student", "tiny_resnet", "--teacher", "tiny_vit")
    assert "not an empty folder" in refused(study, "export", *pair, "--out", "full")
    assert "needs --student and --teacher, or --job" in refused(study, "export", "--student", "x", "--out", "new")
    line = refused(study, "export", "--student", "tiny_resnets", "--teacher", "tiny_vit", "--out", "new")
    assert "did you mean 'tiny_resnet'?" in line
    assert "did you mean 'kl_dp'?" in refused(study, "export", *pair, "--objective", "kl_pd", "--out", "new")
    assert "--seed 7 (there: 0)" in refused(study, "export", *pair, "--seed", "7", "--out", "new")
    row = row_of(study, "tiny_resnet", "kl_dp")
    (study / row["weights"]).write_bytes(b"no tensors")
    assert "missing or damaged" in refused(study, "export", "--job", str(row["job_id"]), "--out", "new")
    (study / row["weights"]).unlink()
    line = refused(study, "export", *pair, "--objective", "kl_dp", "--out", "new")
    assert "its file is missing: set keep" in line and f"job {row['job_id']}" in line
    assert not (study / "new").exists() and not list(study.glob(".new*"))
