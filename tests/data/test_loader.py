"""Batches: timm's own pixels for evaluation, and the same view whoever loads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from kt_study.datasets import open_split
from kt_study.errors import DataError
from kt_study.paths import StudyPaths
from kt_study.words import DatasetRecord
from tests.data.support import CPU, folder_dataset, image_folder, tiny_model
from worker.data import loader as loader_module
from worker.data.loader import MemoryViews, StreamedViews, Views, evaluation_views, training_views
from worker.data.pictures import TrainingPictures
from worker.data.views import ViewRecipe, boxes, epoch_order, flips

CLASSES = {"ant": 90, "bee": 45, "cat": 15}
N = 150


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), CLASSES)


@pytest.fixture
def dataset(root: Path, paths: StudyPaths) -> DatasetRecord:
    return folder_dataset(root, paths)


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for rendered pictures."""
    monkeypatch.setattr(loader_module, "picture_budget", lambda _: 0)


def _by_sample(views: Views, order: np.ndarray, batch_size: int, view: int = 0, start: int = 0) -> torch.Tensor:
    everything = torch.full((views.n, 3, 32, 32), torch.nan)
    seen = []
    for images, positions in views.batches(order, batch_size, view=view, start=start):
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        everything[positions] = images
        seen.append(positions)
    assert np.array_equal(torch.cat(seen), order[start * batch_size :])
    return everything


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_evaluation_pixels_are_timms_to_the_bit(
    dataset: DatasetRecord, paths: StudyPaths, crop_mode: str, interpolation: str
) -> None:
    model = tiny_model(crop_mode=crop_mode, interpolation=interpolation, crop_pct=0.9)
    views = evaluation_views(dataset, "val", model, paths, device=CPU)
    transform = create_transform(
        input_size=(3, 32, 32), interpolation=interpolation, mean=model.mean, std=model.std, crop_pct=0.9,
        crop_mode=crop_mode,
    )  # fmt: skip
    split = open_split(dataset, "val", paths)
    chosen = np.arange(0, N, 10)
    got = _by_sample(views, chosen, 4)
    for i in chosen:
        assert torch.equal(got[i], transform(Image.open(split.file(i)).convert("RGB")))


@pytest.mark.parametrize("augment", ["none", "flip", "crop_flip", "authors"])
def test_pixels_are_the_same_whoever_loads_them(
    dataset: DatasetRecord, paths: StudyPaths, augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ViewRecipe(augment=augment, seed=11)  # type: ignore[arg-type]
    straight, shuffled = np.arange(N), epoch_order(0, 1, N)
    make = lambda workers: training_views(dataset, "val", tiny_model(), recipe, paths, device=CPU, workers=workers)  # noqa: E731
    expected = _by_sample(make(0), straight, 64)
    assert isinstance(make(0), MemoryViews)
    monkeypatch.setattr(loader_module, "picture_budget", lambda _: 0)
    for workers, batch_size, order in ((0, 37, shuffled), (1, 64, straight), (2, 128, shuffled), (2, 37, straight)):
        views = make(workers)
        assert isinstance(views, StreamedViews)
        assert torch.equal(_by_sample(views, order, batch_size), expected), (workers, batch_size)


@pytest.mark.usefixtures("streamed")
def test_a_resumed_epoch_goes_on_with_the_same_batches(dataset: DatasetRecord, paths: StudyPaths) -> None:
    order = epoch_order(4, 0, N)
    views = training_views(dataset, "val", tiny_model(), ViewRecipe(), paths, device=CPU, workers=1)
    whole = list(views.batches(order, 37, view=1))
    assert [len(positions) for _, positions in whole] == [37, 37, 37, 37, 2]
    rest = list(views.batches(order, 37, view=1, start=3))
    assert len(rest) == 2
    for (images, positions), (images2, positions2) in zip(whole[3:], rest, strict=True):
        assert torch.equal(images, images2)
        assert torch.equal(positions, positions2)
    assert list(views.batches(order, 37, view=1, start=5)) == []


def test_memory_views_resume_too(dataset: DatasetRecord, paths: StudyPaths) -> None:
    views = training_views(dataset, "val", tiny_model(), ViewRecipe(), paths, device=CPU)
    order = epoch_order(4, 0, N)
    assert [positions.tolist() for _, positions in views.batches(order, 64, view=0, start=1)] == [
        order[64:128].tolist(),
        order[128:].tolist(),
    ]
    assert list(views.batches(order, 64, view=0, start=3)) == []


def test_views_differ_and_come_back(dataset: DatasetRecord, paths: StudyPaths) -> None:
    shelf: dict[str, object] = {}
    views = training_views(dataset, "val", tiny_model(), ViewRecipe(), paths, device=CPU, shelf=shelf)
    first, second = (_by_sample(views, np.arange(N), 64, view) for view in (0, 1))
    assert not torch.equal(first, second)
    again = training_views(dataset, "val", tiny_model(), ViewRecipe(), paths, device=CPU, shelf=shelf)
    assert torch.equal(_by_sample(again, np.arange(N), 50, 0), first)


def test_a_view_is_the_box_resized_and_mirrored() -> None:
    """On a picture whose colours are its coordinates, the corners of the view say which box it is."""
    recipe, model = ViewRecipe(augment="crop_flip", seed=3), tiny_model(interpolation="bilinear")
    split = CoordinateSplit(n=40, height=120, width=160)
    pixels = TrainingPictures(split, model, recipe).render(0, np.arange(40)).numpy().astype(float)  # type: ignore[arg-type]
    box = boxes(recipe, 0, np.arange(40), np.full(40, 120), np.full(40, 160))
    flip = flips(recipe, 0, np.arange(40))
    for i in range(40):
        across = pixels[i, 0].mean(axis=0) if not flip[i] else pixels[i, 0].mean(axis=0)[::-1]
        down = pixels[i, 1].mean(axis=1)
        top, left, height, width = box[i]
        assert across == pytest.approx(left + (np.arange(32) + 0.5) * width / 32 - 0.5, abs=1.2)
        assert down == pytest.approx(top + (np.arange(32) + 0.5) * height / 32 - 0.5, abs=1.2)


class CoordinateSplit:
    """Pictures whose red is the column and whose green is the row."""

    def __init__(self, n: int, height: int, width: int) -> None:
        self.n = n
        grid = np.zeros((height, width, 3), np.uint8)
        grid[..., 0], grid[..., 1] = np.arange(width), np.arange(height)[:, None]
        self._picture = Image.fromarray(grid)

    def image(self, i: int) -> Image.Image:  # noqa: ARG002
        return self._picture


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("streamed")
def test_an_unreadable_image_is_named_by_whoever_reads_it(tmp_path: Path, paths: StudyPaths, workers: int) -> None:
    root = image_folder(tmp_path / "val", {"ant": 12})
    dataset = folder_dataset(root, paths)
    (root / "ant" / "007.png").write_bytes(b"no picture")
    views = evaluation_views(dataset, "val", tiny_model(), paths, device=CPU, workers=workers)
    with pytest.raises(DataError, match=r"ant/007.png: unreadable image") as caught:
        list(views.batches(np.arange(12), 4))
    assert "\n" not in str(caught.value)
    assert len(list(views.batches(np.arange(4), 4))) == 1, "and the others can still be read"
    del caught  # its traceback holds this frame, and so the worker processes


def test_the_shelf_keeps_within_its_budget(
    dataset: DatasetRecord, paths: StudyPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = N * 3 * 32 * 32
    monkeypatch.setattr(loader_module, "picture_budget", lambda _: 2 * one + 1)
    shelf: dict[str, object] = {}
    views = training_views(dataset, "val", tiny_model(), ViewRecipe(), paths, device=CPU, shelf=shelf)
    assert isinstance(views, MemoryViews)
    rendered = [views.rendered(view) for view in range(3)]
    assert views.rendered(2) is rendered[2]
    assert views.rendered(1) is rendered[1]
    assert views.rendered(0) is not rendered[0], "the least recently used was let go"


def test_ahead_on_a_gpu_gives_the_batches_in_order() -> None:
    from tests.require import require

    require("cuda", torch.cuda.is_available(), "no GPU")
    device = torch.device("cuda")
    batches = [(torch.full((4, 3, 64, 64), i, dtype=torch.uint8).pin_memory(), torch.arange(4) + i) for i in range(50)]
    got = [(int(images.sum()), positions.tolist()) for images, positions in loader_module.ahead(iter(batches), device)]
    assert got == [(i * 4 * 3 * 64 * 64, [i, i + 1, i + 2, i + 3]) for i in range(50)]
