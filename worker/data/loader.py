"""Batches on the device: float32 [b, 3, h, w], normalised, with the positions of their samples.

If all images that a job reads repeatedly fit the memory budget, a split is rendered once per view and then only gathered;
otherwise torch's DataLoader streams it. Both give the same pixels.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from kt_study.datasets import open_split
from kt_study.errors import DataError
from kt_study.hashing import digest
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord, ModelRecord
from worker.data.batches import Batch, Normaliser, ahead
from worker.data.images import EvaluationImages, Images, TrainingImages
from worker.data.memory import within_reach
from worker.data.views import ViewRecipe
from worker.job.context import STOP_SIGNALS, Stopped

_RENDER_BATCH = 256  # images per batch when a whole split is rendered


class Views(Protocol):
    """One split with the preprocessing of one model."""

    @property
    def n(self) -> int:
        """Samples in the split."""
        ...

    def batches(self, order: NDArray[np.int64], batch_size: int, *, view: int = -1, start: int = 0) -> Iterator[Batch]:
        """Batches of the samples in `order`, from batch number `start` on; the last one may be smaller.

        Raises:
            DataError: an unreadable image, named.
            Stopped: asked to stop while the split was being rendered.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What a job says about keeping its images rendered; one that goes over a split once need not say anything."""

    views: int = 1  # of the split, which the job comes back to
    beside: int = 0  # bytes of other images that it comes back to as well
    allowed: bool = True  # False where memory has run out before
    stopping: Callable[[], bool] = lambda: False  # asked while a split is rendered


def evaluation_views(
    dataset: DatasetRecord,
    split: str,
    model: ModelRecord,
    paths: StudyPaths,
    *,
    device: torch.device,
    workers: int = 0,
    worker_cache: dict[str, Any] | None = None,
    rendering: Rendering | None = None,
) -> Views:
    """A split under the model's own evaluation preprocessing.

    Args:
        dataset, split, model: which images.
        paths: of the study.
        device: where batches go.
        workers: processes that render, when the split is streamed.
        worker_cache: `JobContext.worker_cache`, where small splits stay rendered between jobs.
        rendering: what else the job wants to keep.
    """
    images = EvaluationImages.of(open_split(dataset, split, paths), model)
    name = digest(
        ["evaluation", dataset.key, split, _preprocessing(model), model.crop_pct, model.crop_mode, model.mean]
    )
    return _views(images, name, model, device, workers, worker_cache, rendering or Rendering())


def training_views(
    dataset: DatasetRecord,
    split: str,
    model: ModelRecord,
    recipe: ViewRecipe,
    paths: StudyPaths,
    *,
    device: torch.device,
    workers: int = 0,
    worker_cache: dict[str, Any] | None = None,
    rendering: Rendering | None = None,
    loader: str = "torch",
) -> Views:
    """A split under a recipe of training views; arguments as for `evaluation_views`.

    `loader` is "torch" or "ffcv"; with ffcv the split's beton must have been prepared.
    """
    if loader == "ffcv":
        from worker.data.ffcv_loader import ffcv_views

        return ffcv_views(dataset, split, model, recipe, paths, device=device, workers=workers)
    images = TrainingImages(open_split(dataset, split, paths), model, recipe)
    what = [recipe.augment, recipe.seed, recipe.crop_pct]
    name = digest(["training", dataset.key, split, _preprocessing(model), what])
    return _views(images, name, model, device, workers, worker_cache, rendering or Rendering())


def image_budget(device: torch.device) -> int:
    """Bytes of rendered images that a worker keeps on a device: an eighth of the memory in reach, at most 4 GiB."""
    return min(within_reach(device) // 8, 4 << 30)


def image_bytes(dataset: DatasetRecord, split: str, model: ModelRecord) -> int:
    """Bytes of one view of a split, rendered for a model."""
    return _rendered_bytes(dataset.splits[split], model.input_size[1:])


@dataclass(frozen=True, kw_only=True)
class MemoryViews:
    """Images rendered once per view and kept on the device as bytes: a batch is a gather and a normalisation."""

    images: Images
    normalise: Normaliser
    device: torch.device
    rendered: Callable[[int], torch.Tensor]  # view -> uint8 [n, 3, h, w] on the device

    @property
    def n(self) -> int:
        """Samples in the split."""
        return self.images.n

    def batches(self, order: NDArray[np.int64], batch_size: int, *, view: int = -1, start: int = 0) -> Iterator[Batch]:
        """See `Views.batches`."""
        everything = self.rendered(view)
        positions = torch.from_numpy(order).to(self.device)
        for cut in range(start * batch_size, len(order), batch_size):
            chosen = positions[cut : cut + batch_size]
            yield self.normalise(everything.index_select(0, chosen)), chosen


class StreamedViews:
    """Images rendered as they are needed, by this process or by `workers` others that live as long as this object."""

    def __init__(self, images: Images, normalise: Normaliser, device: torch.device, workers: int) -> None:
        self._images = images
        self._normalise = normalise
        self._device = device
        self._workers = workers
        self._schedule = _Schedule()
        self._loader: DataLoader[Any] | None = None

    @property
    def n(self) -> int:
        """Samples in the split."""
        return self._images.n

    def batches(self, order: NDArray[np.int64], batch_size: int, *, view: int = -1, start: int = 0) -> Iterator[Batch]:
        """See `Views.batches`."""
        for images, positions in ahead(self.raw(order[start * batch_size :], batch_size, view), self._device):
            yield self._normalise(images), positions

    def raw(self, order: NDArray[np.int64], batch_size: int, view: int) -> Iterator[Batch]:
        """Batches of bytes, uint8 [b, 3, h, w], with their positions, still in host memory. Raises DataError."""
        cuts = range(0, len(order), batch_size)
        self._schedule.items = [(view, order[cut : cut + batch_size]) for cut in cuts]
        for item in self._opened():
            if isinstance(item, str):
                self._loader = None  # let the processes go now; held by the error's traceback they would linger
                raise DataError(item)
            yield item

    def _opened(self) -> DataLoader[Any]:
        if self._loader is None:
            self._loader = DataLoader(
                _Rendered(self._images),
                batch_size=None,
                sampler=self._schedule,
                num_workers=self._workers,
                collate_fn=_as_it_is,
                pin_memory=self._device.type == "cuda",
                persistent_workers=self._workers > 0,
                worker_init_fn=_outlive_a_stop,
            )
        return self._loader


class _Rendered(Dataset[Any]):
    """Whole batches by (view, positions). An unreadable image comes back as the line to raise for it."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def __getitem__(self, item: tuple[int, NDArray[np.int64]]) -> Batch | str:
        view, positions = item
        try:
            return self._images.render(view, positions), torch.from_numpy(positions)
        except DataError as error:
            return str(error)


class _Schedule(Sampler[Any]):
    """The batches of the coming pass; set before each one."""

    def __init__(self) -> None:
        self.items: list[tuple[int, NDArray[np.int64]]] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def _as_it_is(item: Any) -> Any:
    return item


def _outlive_a_stop(_: int) -> None:
    """In a loader's process: Slurm's signals reach every process of a step, but this one is needed up to the checkpoint.

    A SIGTERM from the parent, by which torch and Python end such processes, still ends it.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _views(
    images: Images,
    name: str,
    model: ModelRecord,
    device: torch.device,
    workers: int,
    worker_cache: dict[str, Any] | None,
    rendering: Rendering,
) -> Views:
    normalise = Normaliser(model.mean, model.std, device)
    nbytes, budget = _rendered_bytes(images.n, images.size), image_budget(device)
    if not rendering.allowed or rendering.views * nbytes + rendering.beside > budget:
        return StreamedViews(images, normalise, device, workers)
    kept = _Kept.on(worker_cache if worker_cache is not None else {}, budget)

    def rendered(view: int) -> torch.Tensor:
        key = f"{name}/{view}/{device}"
        return kept.get(key, nbytes, lambda: _render_all(images, view, workers, rendering.stopping).to(device))

    return MemoryViews(images=images, normalise=normalise, device=device, rendered=rendered)


def _rendered_bytes(n: int, size: tuple[int, int]) -> int:
    return n * 3 * size[0] * size[1]


def _render_all(images: Images, view: int, workers: int, stopping: Callable[[], bool]) -> torch.Tensor:
    everything = torch.empty((images.n, 3, *images.size), dtype=torch.uint8)
    cpu = torch.device("cpu")
    stream = StreamedViews(images, Normaliser((0.0,), (1.0,), cpu), cpu, workers if images.n > _RENDER_BATCH else 0)
    for batch, positions in stream.raw(np.arange(images.n), _RENDER_BATCH, view):
        everything[positions] = batch
        if stopping():
            raise Stopped
    return everything


class _Kept:
    """The most recently used rendered images, as many as fit the budget."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: OrderedDict[str, torch.Tensor] = OrderedDict()

    @classmethod
    def on(cls, worker_cache: dict[str, Any], budget: int) -> _Kept:
        kept: _Kept = worker_cache.setdefault("images", cls(budget))
        kept._budget = budget  # others may have taken some of the device's memory, or given it back
        return kept

    def get(self, name: str, nbytes: int, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if name not in self._held:
            while self._held and nbytes + sum(held.nbytes for held in self._held.values()) > self._budget:
                self._held.popitem(last=False)
            self._held[name] = make()
        self._held.move_to_end(name)
        return self._held[name]


def _preprocessing(model: ModelRecord) -> list[Any]:
    return [*model.input_size, model.interpolation]
