"""How fast views come: the deterministic ffcv decoder beside stock ffcv, the torch loader beside torchvision.

    python -m benchmarks.bench_loader --images FOLDER [--threads N] [--rounds R] [--clock wall|cpu] [--json FILE]

FOLDER is an image folder. All contestants run in one process on the same beton, one pass each a round, in turn; medians
over the rounds, and medians of the ratios of the same round. `--clock cpu` counts processor time of this process, for a
machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from kt_study.datasets import Split, open_split, prepare
from kt_study.paths import StudyPaths
from kt_study.study import DatasetSection
from kt_study.words import DatasetRecord, ModelRecord
from worker.data.betons import BetonOptions, prepare_beton
from worker.data.ffcv_loader import FfcvViews, ffcv_views
from worker.data.loader import Normaliser, StreamedViews
from worker.data.pictures import TrainingPictures
from worker.data.views import ViewRecipe, epoch_order

SIDE = 224
STORED = BetonOptions(max_side=500, jpeg_quality=90, jpeg_share=0.5)
"""As ffcv's own ImageNet benchmarks and the released code of the paper store it."""
BATCH = 64
TARGETS = {"ffcv ours / stock, no flip": 0.95, "ffcv ours / stock, flip": 1.5}

Pass = Callable[[int], None]
"""One pass over the split; the argument numbers it."""


def main() -> None:
    """Run, print a table, and write JSON where asked."""
    options = _arguments()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = StudyPaths(root=Path(folder))
        section = DatasetSection(kind="imagefolder", val=str(options.images.resolve()))
        dataset = prepare(section, seed=0, folder=Path.cwd(), paths=paths)
        prepare_beton(dataset, "val", paths, options=STORED, workers=options.threads)
        contestants = _contestants(dataset, paths, options.threads)
        rates = _interleaved(contestants, dataset.splits["val"], options)
    report = _report(rates, options)
    _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="image folder, one folder a class")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _contestants(dataset: DatasetRecord, paths: StudyPaths, threads: int) -> dict[str, Pass]:
    cpu = torch.device("cpu")
    model = ModelRecord(
        key="bench",
        name="bench",
        family="cnn",
        weights="random:0",
        input_size=(3, SIDE, SIDE),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        interpolation="bilinear",
    )
    recipe = ViewRecipe(augment="crop_flip", seed=0)
    planned = ffcv_views(dataset, "val", model, recipe, paths, device=cpu, workers=threads)
    split = open_split(dataset, "val", paths)
    streamed = StreamedViews(TrainingPictures(split, model, recipe), Normaliser(model.mean, model.std, cpu), cpu, 0)
    beton = str(paths.beton(dataset.key, "val"))
    return {
        "ffcv ours, flip": lambda epoch: _consume(planned, epoch),
        "ffcv ours, no flip": lambda epoch: _unflipped(planned, epoch),
        "ffcv stock, flip": _stock(beton, threads, flip=True),
        "ffcv stock, no flip": _stock(beton, threads, flip=False),
        "torch ours, flip": lambda epoch: _consume(streamed, epoch),
        "torchvision, flip": lambda epoch: _torchvision(split, epoch),
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


def _interleaved(contestants: dict[str, Pass], n: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second of each contestant in each round; a first round, in which ffcv compiles, is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for epoch in range(options.rounds + 1):
        for name, one_pass in contestants.items():
            start = clock()
            one_pass(epoch)
            if epoch:
                rates[name].append(n / (clock() - start))
    return rates


def _report(rates: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    pairs = {
        "ffcv ours / stock, no flip": ("ffcv ours, no flip", "ffcv stock, no flip"),
        "ffcv ours / stock, flip": ("ffcv ours, flip", "ffcv stock, flip"),
        "torch ours / torchvision, flip": ("torch ours, flip", "torchvision, flip"),
    }
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True))
        for name, (ours, theirs) in pairs.items()
    }
    return {
        "benchmark": "loader",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "threads": options.threads,
        "clock": options.clock,
        "rounds": options.rounds,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "ffcv": version("ffcv")},
        "images_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "ratios": ratios,
        "targets": TARGETS,
    }


def cpu_name() -> str:
    """The processor as the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _print(report: dict[str, Any]) -> None:
    for name, rate in report["images_per_s"].items():
        print(f"{name:34s} {rate:9.1f} images/s")
    for name, ratio in report["ratios"].items():
        target = report["targets"].get(name)
        print(f"{name:34s} {ratio:9.2f}" + (f"  (at least {target})" if target else ""))


if __name__ == "__main__":
    main()
