"""docs/own-models-and-data.md as the tests see it: its examples by name, and a folder in which they work."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kt_study.datasets.image_files import IMAGE_SUFFIXES
from tests.own.sources import write_fashion, write_parquet, write_shards

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-models-and-data.md"
CLASSES = ("apple", "pear", "plum")
COMMIT = "0123456789abcdef0123456789abcdef01234567"

FACTORY = """
from torch import nn


def small_net(num_classes: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(width * 64, num_classes))
"""


def examples() -> Mapping[str, str]:
    """Every marked block of the page by its name."""
    found = re.findall(r"<!-- example: ([\w-]+) -->\n```\w*\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(found) == len(dict(found)), "a name stands twice"
    return dict(found)


def lay_folder(folder: Path) -> None:
    """Everything that the page's examples name, small."""
    lay_photos(folder / "photos", per_class=6)
    for split, name in (("train", "unsorted"), ("val", "unsorted_val")):
        for number, path in enumerate(sorted((folder / "photos" / split).rglob("*.jpg"))):
            target = folder / name / f"some{number % 2}"
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / f"{number}.jpg")
    (folder / "my_models.py").write_text(FACTORY)
    lay_weights(folder)
    write_parquet(folder / "parquet", train=8, val=8)
    write_shards(folder / "shards", shards=3, samples=6, info=False)
    write_fashion(folder / "vision", train=20, val=20)
    shutil.copytree(folder / "vision" / "FashionMNIST" / "raw", folder / "fashion")


def lay_photos(folder: Path, *, per_class: int) -> None:
    """An image folder of coloured noise."""
    generator = np.random.default_rng(0)
    assert ".jpg" in IMAGE_SUFFIXES
    for split in ("train", "val"):
        for number, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for index in range(per_class):
                pixels = generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                pixels[..., number] |= 0xC0
                Image.fromarray(pixels).save(folder / split / name / f"{index:03d}.jpg")


def lay_weights(folder: Path) -> None:
    """Weights with random values for the page's models, and a hub's cache with one model in it."""
    import sys

    import timm
    from safetensors.torch import save_file

    (folder / "weights").mkdir()
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18", num_classes=len(CLASSES))
    save_file(resnet.state_dict(), folder / "weights" / "small_resnet.safetensors")
    convnext = timm.create_model("convnext_atto", num_classes=len(CLASSES))
    torch.save({"epoch": 3, "state_dict": convnext.state_dict()}, folder / "weights" / "small_convnext.pth")
    sys.path.insert(0, str(folder))
    try:
        from my_models import small_net  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(folder))
    torch.save(small_net(num_classes=3, width=8).state_dict(), folder / "weights" / "my_net.pth")
    lay_hub(folder / "hub")


def lay_hub(cache: Path) -> None:
    """The cache of the hub's client after a download of someone/fruit-resnet."""
    import timm
    from timm.models._hub import save_for_hf

    snapshot = cache / "models--someone--fruit-resnet" / "snapshots" / COMMIT
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=len(CLASSES))
    save_for_hf(model, str(snapshot), safe_serialization=True, data_config={"input_size": (3, 48, 48)})
    refs = cache / "models--someone--fruit-resnet" / "refs" / "main"
    refs.parent.mkdir()
    refs.write_text(COMMIT)
