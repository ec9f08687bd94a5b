"""Small studies that need no training: tiny timm models with random weights on folders of drawn images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("apple", "pear", "plum")
ARCHITECTURES = ("test_resnet", "test_efficientnet", "test_convnext")


def draw_images(folder: Path, *, per_class: int, seed: int) -> None:
    """An image folder of `CLASSES`: coloured noise, 24 x 24 pixels, PNG."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            pixels[..., number] |= 0xC0
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")


def write_study(folder: Path, *, extra: str = "") -> Path:
    """A study.toml over three tiny networks with random weights, all six pairs; `extra` goes into [transfer]."""
    tables = "".join(
        f"""
[[model]]
name = "tiny{number}"
timm = "{architecture}"
random_weights = true
num_classes = {len(CLASSES)}
input_size = [3, 32, 32]
"""
        for number, architecture in enumerate(ARCHITECTURES)
    )
    text = f"""
[study]
name = "small"
[dataset]
kind = "imagefolder"
train = "train"
val = "val"
[transfer]
pairs = 6
objectives = ["kl_dp"]
epochs = 2
batch_size = 8
views = 1
augment = "none"
{extra}{tables}"""
    path = folder / "study.toml"
    path.write_text(text)
    return path
