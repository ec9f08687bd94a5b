"""Batches: timm's own pixels for evaluation, and the same view whoever loads it."""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from kt_study.datasets import open_split
from kt_study.errors import DataError
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord
from tests.data.support import CPU, folder_dataset, image_folder, tiny_model
from worker.data import loader as loader_module
from worker.data.batches import ahead
from worker.data.images import TrainingImages
from worker.data.loader import (
    MemoryViews,
    Rendering,
    StreamedViews,
    Views,
    evaluation_views,
    image_budget,
    image_bytes,
    training_views,
)
from worker.data.views import ViewRecipe, boxes, epoch_order, flips
from worker.job.context import Stopped
from worker.training.rows import table_budget

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
    """No memory for rendered images."""
    monkeypatch.setattr(loader_module, "image_budget", lambda _: 0)


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
    monkeypatch.setattr(loader_module, "image_budget", lambda _: 0)
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
    worker_cache: dict[str, object] = {}
    views = training_views(dataset, "val", tiny_model(), ViewRecipe(), paths, device=CPU, worker_cache=worker_cache)
    first, second = (_by_sample(views, np.arange(N), 64, view) for view in (0, 1))
    assert not torch.equal(first, second)
    again = training_views(dataset, "val", tiny_model(), ViewRecipe(), paths, device=CPU, worker_cache=worker_cache)
    assert torch.equal(_by_sample(again, np.arange(N), 50, 0), first)


def test_a_view_is_the_box_resized_and_mirrored() -> None:
    """On a image whose colours are its coordinates, the corners of the view say which box it is."""
    recipe, model = ViewRecipe(augment="crop_flip", seed=3), tiny_model(interpolation="bilinear")
    split = CoordinateSplit(n=40, height=120, width=160)
    pixels = TrainingImages(split, model, recipe).render(0, np.arange(40)).numpy().astype(float)  # type: ignore[arg-type]
    box = boxes(recipe, 0, np.arange(40), np.full(40, 120), np.full(40, 160))
    flip = flips(recipe, 0, np.arange(40))
    for i in range(40):
        across = pixels[i, 0].mean(axis=0) if not flip[i] else pixels[i, 0].mean(axis=0)[::-1]
        down = pixels[i, 1].mean(axis=1)
        top, left, height, width = box[i]
        assert across == pytest.approx(left + (np.arange(32) + 0.5) * width / 32 - 0.5, abs=1.2)
        assert down == pytest.approx(top + (np.arange(32) + 0.5) * height / 32 - 0.5, abs=1.2)


class CoordinateSplit:
    """Images whose red is the column and whose green is the row."""

    def __init__(self, n: int, height: int, width: int) -> None:
        self.n = n
        grid = np.zeros((height, width, 3), np.uint8)
        grid[..., 0], grid[..., 1] = np.arange(width), np.arange(height)[:, None]
        self._image = Image.fromarray(grid)

    def image(self, i: int) -> Image.Image:  # noqa: ARG002
        return self._image


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("streamed")
def test_an_unreadable_image_is_named_by_whoever_reads_it(tmp_path: Path, paths: StudyPaths, workers: int) -> None:
    root = image_folder(tmp_path / "val", {"ant": 12})
    dataset = folder_dataset(root, paths)
    (root / "ant" / "007.png").write_bytes(b"no image")
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
    monkeypatch.setattr(loader_module, "image_budget", lambda _: 2 * one + 1)
    worker_cache: dict[str, object] = {}
    views = training_views(dataset, "val", tiny_model(), ViewRecipe(), paths, device=CPU, worker_cache=worker_cache)
    assert isinstance(views, MemoryViews)
    rendered = [views.rendered(view) for view in range(3)]
    assert views.rendered(2) is rendered[2]
    assert views.rendered(1) is rendered[1]
    assert views.rendered(0) is not rendered[0], "the least recently used was let go"


def test_what_is_not_all_kept_is_streamed(
    dataset: DatasetRecord, paths: StudyPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view that pushes another out would be rendered again in every epoch."""
    one = image_bytes(dataset, "val", tiny_model())
    assert one == N * 3 * 32 * 32
    monkeypatch.setattr(loader_module, "image_budget", lambda _: 3 * one)

    def made(**rendering: Any) -> type[Views]:
        how = {"device": CPU, "rendering": Rendering(**rendering)}
        return type(training_views(dataset, "val", tiny_model(), ViewRecipe(), paths, **how))  # type: ignore[arg-type]

    assert made(views=3) is made(views=2, beside=one) is made() is MemoryViews
    assert made(views=4) is made(views=2, beside=one + 1) is made(allowed=False) is StreamedViews


def test_a_stop_ends_the_rendering(dataset: DatasetRecord, paths: StudyPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_RENDER_BATCH", 20)
    asked = iter([False, False, True])
    worker_cache: dict[str, Any] = {}
    how = {"device": CPU, "worker_cache": worker_cache, "rendering": Rendering(stopping=lambda: next(asked))}
    views = evaluation_views(dataset, "val", tiny_model(), paths, **how)  # type: ignore[arg-type]
    with pytest.raises(Stopped):
        next(views.batches(np.arange(N), 64))
    assert list(asked) == []
    again = evaluation_views(dataset, "val", tiny_model(), paths, device=CPU, worker_cache=worker_cache)
    fresh = evaluation_views(dataset, "val", tiny_model(), paths, device=CPU)
    assert torch.equal(_by_sample(again, np.arange(N), 64), _by_sample(fresh, np.arange(N), 64)), "nothing half done"


def test_budgets_leave_other_workers_of_a_gpu_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    free, own = 10 << 30, 2 << 30  # of 80 GiB, the rest is others'
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: own)
    assert (image_budget(gpu), table_budget(gpu)) == (12 * (1 << 30) // 8, 3 << 30)
    own = 70 << 30
    assert (image_budget(gpu), table_budget(gpu)) == (4 << 30, 20 << 30)


@pytest.mark.usefixtures("streamed")
def test_loader_processes_outlive_slurms_signal_and_end_with_their_parent(
    dataset: DatasetRecord, paths: StudyPaths
) -> None:
    """Slurm signals every process of a step; the transfer must come to its checkpoint."""
    before = set(multiprocessing.active_children())
    views = evaluation_views(dataset, "val", tiny_model(), paths, device=CPU, workers=2)
    batches = views.batches(np.arange(N), 10)
    seen = [positions for _, positions in (next(batches), next(batches))]
    children = set(multiprocessing.active_children()) - before
    assert len(children) == 2
    for name in ("TERM", "USR1", "USR2", "INT"):  # from elsewhere: torch forgives its own SIGTERM
        subprocess.run(["/bin/kill", f"-{name}", *(str(child.pid) for child in children)], check=True)
    seen += [positions for _, positions in batches]
    assert torch.cat(seen).tolist() == list(range(N))
    for child in children:  # as multiprocessing does when the worker ends
        child.terminate()
        child.join(60)
        assert child.exitcode == 0


class _Pinned:
    """A host buffer whose copies to the device are made late, when somebody waits for them."""

    under_way: list[Any] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.value = -1

    def to(self, *_: Any, **__: Any) -> _OnDevice:
        copy = _OnDevice(self)
        self.under_way.append(copy)
        return copy


class _OnDevice:
    def __init__(self, buffer: _Pinned) -> None:
        self.value, self._buffer = -1, buffer

    def arrive(self) -> None:
        self.value = self._buffer.value

    def record_stream(self, _: Any) -> None: ...


class _LazyStream:
    """A side stream, and its event, that do nothing before they must."""

    def __init__(self, *_: Any) -> None: ...

    def record_event(self) -> _LazyStream:
        return self

    def wait_stream(self, _: Any) -> None: ...

    def synchronize(self) -> None:
        while _Pinned.under_way:
            _Pinned.under_way.pop().arrive()


def test_a_buffer_is_filled_again_only_after_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ffcv does with its pinned buffers, about which torch knows nothing."""
    monkeypatch.setattr(torch.cuda, "Stream", _LazyStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", _LazyStream)
    buffer = _Pinned()

    def batches() -> Iterator[Any]:
        for i in range(5):
            buffer.value = i
            yield buffer, buffer

    got = list(ahead(batches(), torch.device("cuda")))
    _LazyStream().synchronize()
    assert [images.value for images, _ in got] == [0, 1, 2, 3, 4]  # type: ignore[attr-defined]


def test_a_buffer_of_a_gpu_too() -> None:
    from tests.require import require

    require("cuda", torch.cuda.is_available(), "no GPU")
    device = torch.device("cuda")
    buffer = torch.empty((64, 3, 224, 224), dtype=torch.uint8).pin_memory()

    def batches() -> Iterator[Any]:
        for i in range(20):
            yield buffer.fill_(i), torch.arange(64)

    got = [int(images.float().mean()) for images, _ in ahead(batches(), device)]
    assert got == list(range(20))


def test_ahead_on_a_gpu_gives_the_batches_in_order() -> None:
    from tests.require import require

    require("cuda", torch.cuda.is_available(), "no GPU")
    device = torch.device("cuda")
    batches = [(torch.full((4, 3, 64, 64), i, dtype=torch.uint8).pin_memory(), torch.arange(4) + i) for i in range(50)]
    got = [(int(images.sum()), positions.tolist()) for images, positions in ahead(iter(batches), device)]
    assert got == [(i * 4 * 3 * 64 * 64, [i, i + 1, i + 2, i + 3]) for i in range(50)]
