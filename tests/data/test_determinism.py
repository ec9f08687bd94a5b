"""A sample's pixels are the same whoever loads them: every combination of workers, batch size, order and resume."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord
from tests.data.support import CPU, folder_dataset, image_folder, tiny_model
from tests.require import require
from worker.data import loader as loader_module
from worker.data.betons import BetonOptions, prepare_beton
from worker.data.loader import Views, training_views
from worker.data.views import ViewRecipe, epoch_order

N = 150
WORKERS, BATCHES = (1, 2), (37, 64, 128)
ORDERS = {"sequential": np.arange(N), "shuffled": epoch_order(0, 1, N)}
RESUMED = (0, 1)
RECIPE = ViewRecipe(augment="crop_flip", seed=11)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), {"ant": 90, "bee": 45, "cat": 15})


@pytest.mark.parametrize("loader", ["torch", "ffcv"])
def test_in_every_combination(loader: str, root: Path, paths: StudyPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    require("ffcv", loader != "ffcv" or importlib.util.find_spec("ffcv") is not None, "ffcv is not installed")
    monkeypatch.setattr(loader_module, "image_budget", lambda _: 0)  # or torch's would be rendered once and kept
    dataset = folder_dataset(root, paths)
    if loader == "ffcv":
        prepare_beton(dataset, "val", paths, options=BetonOptions(max_side=0, jpeg_share=0.5))
    expected = _one_by_one(dataset, paths, loader)
    for workers in WORKERS:
        views = _views(dataset, paths, loader, workers)
        for batch_size, order, start in itertools.product(BATCHES, ORDERS, RESUMED):
            got, positions = _passed(views, ORDERS[order], batch_size, start)
            assert positions.tolist() == ORDERS[order][start * batch_size :].tolist()
            assert torch.equal(got, expected[positions]), (workers, batch_size, order, start)


def _views(dataset: DatasetRecord, paths: StudyPaths, loader: str, workers: int) -> Views:
    return training_views(dataset, "val", tiny_model(), RECIPE, paths, device=CPU, workers=workers, loader=loader)


def _one_by_one(dataset: DatasetRecord, paths: StudyPaths, loader: str) -> torch.Tensor:
    """Every sample in a batch of its own."""
    views = _views(dataset, paths, loader, 1)
    return torch.cat([images for images, _ in views.batches(np.arange(N), 1, view=1)])


def _passed(views: Views, order: np.ndarray, batch_size: int, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    images, positions = zip(*views.batches(order, batch_size, view=1, start=start), strict=True)
    return torch.cat(images), torch.cat(positions)
