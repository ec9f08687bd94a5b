"""How fast views come: the deterministic ffcv decoder beside stock ffcv, the torch loader beside torchvision.

    python -m benchmarks.bench_loader [--images FOLDER] [--threads N] [--rounds R]

FOLDER is an image folder; KT_STUDY_PHOTOS unless given, else shared/data/photos beside the checkout, as for the tests. All
contestants run in one process on the same images, one pass each per round, in turn; medians over the rounds, and medians of
the ratios within a round. Stock ffcv reads a beton with JPEGs of its own encoder: the restart markers in ours, of which it
has no use, would slow it down by a few percent.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import interleave, medians, versions, write_result
from kt_study.datasets import Split, open_split, prepare
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord, ModelRecord
from kt_study.study import DatasetSection
from worker.data.batches import Normaliser
from worker.data.betons import BetonOptions, prepare_beton
from worker.data.ffcv_loader import FfcvViews, ffcv_views
from worker.data.images import TrainingImages
from worker.data.loader import StreamedViews
from worker.data.views import ViewRecipe, epoch_order

SIDE = 224
STORED = {
    "500 px": BetonOptions(max_side=500, jpeg_quality=90, jpeg_share=0.5),
    "256 px": BetonOptions(max_side=256, jpeg_quality=90, jpeg_share=0.5),
}
"""As the released code of the paper stores ImageNet, and small enough that decoding does not hide everything else."""
BATCH = 64
TARGETS = {"no flip": 0.95, "flip": 1.5}
"""Least ratio of the deterministic decoder to stock ffcv."""

CPU = torch.device("cpu")
MODEL = ModelRecord(
    key="bench",
    name="bench",
    family="cnn",
    weights="random:0",
    input_size=(3, SIDE, SIDE),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bilinear",
)
RECIPE = ViewRecipe(augment="crop_flip", seed=0)

Pass = Callable[[int], None]
"""One pass over the split; the argument numbers it."""


def main() -> None:
    """Run, print a table, keep it under benchmarks/results/."""
    from ffcv.fields.rgb_image import encode_jpeg

    options = _arguments()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        contestants: dict[str, Pass] = {}
        for stored, how in STORED.items():
            dataset, paths = _written(options.images, Path(folder) / stored, how, options.threads)
            with mock.patch("worker.data.betons._as_jpeg", encode_jpeg):
                _, plain = _written(options.images, Path(folder) / f"{stored}, plain", how, options.threads)
            named = _ffcv_contestants(dataset, paths, str(plain.beton(dataset.key, "val")), options.threads)
            contestants |= {f"ffcv {stored}, {name}": one_pass for name, one_pass in named.items()}
        contestants |= _torch_contestants(dataset, paths)
        seconds = interleave({name: _numbered(one_pass) for name, one_pass in contestants.items()}, options.rounds)
    ratios = _ratios(seconds)
    result = {
        "threads": options.threads,
        "rounds": options.rounds,
        "images": dataset.splits["val"],
        "versions": versions("torch", "torchvision", "ffcv", "numba", "pillow"),
        "images_per_s": {name: dataset.splits["val"] / taken for name, taken in medians(seconds).items()},
        "ratios": ratios,
        "targets": {name: TARGETS[name.rsplit(", ", 1)[1]] for name in ratios if name.startswith("ffcv")},
    }
    _print(result)
    print(write_result("loader", result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photographs = os.environ.get("KT_STUDY_PHOTOS") or Path(__file__).resolve().parents[2] / "shared/data/photos"
    parser.add_argument("--images", type=Path, default=Path(photographs), help="image folder, one folder a class")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if not options.images.is_dir():
        parser.error(f"no image folder at {options.images}; give one by --images or KT_STUDY_PHOTOS")
    return options


def _written(images: Path, folder: Path, how: BetonOptions, threads: int) -> tuple[DatasetRecord, StudyPaths]:
    """The image folder as a data set, and its beton."""
    paths = StudyPaths(root=folder)
    section = DatasetSection(kind="imagefolder", val=str(images.resolve()))
    dataset = prepare(section, seed=0, folder=Path.cwd(), paths=paths)
    prepare_beton(dataset, "val", paths, options=how, workers=threads)
    return dataset, paths


def _ffcv_contestants(dataset: DatasetRecord, paths: StudyPaths, plain: str, threads: int) -> dict[str, Pass]:
    planned = ffcv_views(dataset, "val", MODEL, RECIPE, paths, device=CPU, workers=threads)
    return {
        "ours, flip": lambda epoch: _consume(planned, epoch),
        "ours, no flip": lambda epoch: _unflipped(planned, epoch),
        "stock, flip": _stock(plain, threads, flip=True),
        "stock, no flip": _stock(plain, threads, flip=False),
    }


def _torch_contestants(dataset: DatasetRecord, paths: StudyPaths) -> dict[str, Pass]:
    split = open_split(dataset, "val", paths)
    streamed = StreamedViews(TrainingImages(split, MODEL, RECIPE), Normaliser(MODEL.mean, MODEL.std, CPU), CPU, 0)
    return {
        "torch, ours, flip": lambda epoch: _consume(streamed, epoch),
        "torch, torchvision, flip": lambda epoch: _torchvision(split, epoch),
    }


def _consume(views: FfcvViews | StreamedViews, epoch: int) -> None:
    for _ in views.raw(epoch_order(0, epoch, views.n), BATCH, epoch % 2):
        pass


def _unflipped(views: FfcvViews, epoch: int) -> None:
    """No recipe crops at random without flips, so the draw of flips is put aside to compare like with like."""
    with mock.patch("worker.data.ffcv_loader.flips", _no_flips):
        _consume(views, epoch)


def _no_flips(recipe: ViewRecipe, view: int, indices: NDArray[np.int64]) -> NDArray[np.bool_]:  # noqa: ARG001
    return np.zeros(len(indices), np.bool_)


def _stock(beton: str, threads: int, *, flip: bool) -> Pass:
    """ffcv's own random crop, and its own flip."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    crop = RandomResizedCropRGBImageDecoder((SIDE, SIDE))
    loader = Loader(
        beton,
        batch_size=BATCH,
        num_workers=threads,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=False,
        pipelines={
            "image": [crop, *([RandomHorizontalFlip()] if flip else []), ToTensor()],
            "label": None,
            "index": None,
        },
    )

    def one_pass(epoch: int) -> None:
        loader.next_epoch = epoch
        for _ in loader:
            pass

    return one_pass


def _torchvision(split: Split, epoch: int) -> None:
    """The plain loop: torchvision's own random crop and flip, to bytes."""
    from torchvision.transforms import v2

    transform = v2.Compose([v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    order = epoch_order(0, epoch, split.n)
    for cut in range(0, split.n, BATCH):
        torch.stack([transform(split.image(int(i))) for i in order[cut : cut + BATCH]])


def _numbered(one_pass: Pass) -> Callable[[], None]:
    epochs = itertools.count()
    return lambda: one_pass(next(epochs))


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Throughput of ours over theirs: the median over the rounds of the ratio within a round."""
    pairs = {
        f"ffcv {stored}, ours / stock, {what}": (f"ffcv {stored}, ours, {what}", f"ffcv {stored}, stock, {what}")
        for stored in STORED
        for what in TARGETS
    }
    pairs["torch, ours / torchvision, flip"] = ("torch, ours, flip", "torch, torchvision, flip")
    return {
        name: statistics.median(theirs / ours for ours, theirs in zip(seconds[mine], seconds[other], strict=True))
        for name, (mine, other) in pairs.items()
    }


def _print(report: dict[str, Any]) -> None:
    for name, rate in report["images_per_s"].items():
        print(f"{name:38s} {rate:9.1f} images/s")
    for name, ratio in report["ratios"].items():
        target = report["targets"].get(name)
        print(f"{name:38s} {ratio:9.2f}" + (f"  (at least {target})" if target else ""))


if __name__ == "__main__":
    main()
