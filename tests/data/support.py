"""Small folders of images, records and a job context for the tests of data, models and caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kt_study.datasets import prepare
from kt_study.errors import DataError, UnknownModelError
from kt_study.paths import StudyPaths
from kt_study.records import Claim, DatasetRecord, ModelRecord
from kt_study.study import DatasetSection
from worker.job.context import JobContext, WorkerOptions

CPU = torch.device("cpu")


def write_image(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    """A smooth random colour image of (width, height): JPEG, PNG, ... by the suffix."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def image_folder(root: Path, classes: Mapping[str, int], suffix: str = ".png") -> Path:
    """One folder a class with that many images of different sizes."""
    for number, (name, count) in enumerate(classes.items()):
        for i in range(count):
            write_image(
                root / name / f"{i:03d}{suffix}", seed=1000 * number + i, size=(36 + 3 * i % 17, 33 + 5 * i % 13)
            )
    return root


def digits(paths: StudyPaths) -> DatasetRecord:
    """The embedded data set, prepared."""
    return prepare(DatasetSection(kind="digits"), seed=0, folder=paths.root, paths=paths)


def folder_dataset(root: Path, paths: StudyPaths) -> DatasetRecord:
    """An image folder as validation set, prepared."""
    return prepare(DatasetSection(kind="imagefolder", val=str(root)), seed=0, folder=paths.root, paths=paths)


def tiny_model(key: str = "tiny", seed: int = 1, **changes: object) -> ModelRecord:
    """A small random timm network for 32-pixel images."""
    settings: dict[str, object] = {
        "family": "cnn",
        "weights": f"random:{seed}",
        "input_size": (3, 32, 32),
        "mean": (0.48, 0.45, 0.4),
        "std": (0.23, 0.22, 0.21),
        "timm": "test_resnet",
        "num_classes": 10,
    }
    return ModelRecord(key=key, name=key, **{**settings, **changes})  # type: ignore[arg-type]


@dataclass
class Records:
    """A job store's look-ups, from two dictionaries."""

    models: dict[str, ModelRecord] = field(default_factory=dict)
    datasets: dict[str, DatasetRecord] = field(default_factory=dict)

    def model(self, key: str) -> ModelRecord:
        if key not in self.models:
            raise UnknownModelError(key)
        return self.models[key]

    def dataset(self, key: str) -> DatasetRecord:
        if key not in self.datasets:
            raise DataError(key)
        return self.datasets[key]


def job_context(
    paths: StudyPaths,
    dataset: DatasetRecord,
    *models: ModelRecord,
    stopping: Callable[[], bool] = lambda: False,
    batch_size: int = 64,
) -> JobContext:
    """What a worker hands to a job kind."""
    return JobContext(
        claim=Claim(job_id=1, attempt_id=1, fence=1, kind="logits", digest="0", spec={}, attempt=1),
        records=Records({model.key: model for model in models}, {dataset.key: dataset}),
        paths=paths,
        device=CPU,
        stopping=stopping,
        options=WorkerOptions(eval_batch_size=batch_size),
    )
