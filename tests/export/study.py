"""A small real study whose students are kept: two tiny timm networks, trained a little on digits as images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

ARCHITECTURES = {"tiny_resnet": "test_resnet", "tiny_vit": "test_vit2"}
CLASSES = 5


def draw_digits(folder: Path, *, train: int, val: int) -> None:
    """An image folder of the first digits, `train` and `val` images a class, 24 x 24 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(CLASSES):
        scans = digits.images[digits.target == label][: train + val]
        for number, scan in enumerate(scans):
            target = folder / ("train" if number < train else "val") / f"digit_{label}"
            target.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((scan * 255 / 16).astype(np.uint8)).resize((24, 24), Image.Resampling.NEAREST)
            grey.convert("RGB").save(target / f"{number:03d}.png")


def train_checkpoints(folder: Path, *, steps: int) -> None:
    """A few steps of Adam for each architecture on the training images, saved as .safetensors and as .pth."""
    import timm
    from safetensors.torch import save_file

    images, labels = _batch(folder / "train")
    for number, (name, architecture) in enumerate(ARCHITECTURES.items()):
        torch.manual_seed(number)
        model = timm.create_model(architecture, num_classes=CLASSES, **arguments_of(architecture)).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(steps):
            some = torch.arange(step * 32, step * 32 + 32) * 7 % len(images)
            loss = nn.functional.cross_entropy(model(images[some]), labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if number:
            torch.save({"state_dict": model.state_dict()}, folder / f"{name}.pth")
        else:
            save_file(model.state_dict(), folder / f"{name}.safetensors")


def arguments_of(architecture: str) -> dict[str, int]:
    """A transformer has to know the size of its images."""
    return {"img_size": 32} if "vit" in architecture else {}


def write_study(folder: Path, *, extra: str = "", transfer: str = 'objectives = ["kl", "kl_dp"]\nkeep = "all"') -> None:
    """A study.toml over the two networks, both pairs."""
    tables = []
    for name, architecture in ARCHITECTURES.items():
        (checkpoint,) = folder.glob(f"{name}.*")
        arguments = "\n".join(f"arguments = {{ {key} = {value} }}" for key, value in arguments_of(architecture).items())
        tables.append(f"""
[[model]]
name = "{name}"
timm = "{architecture}"
checkpoint = "{checkpoint.name}"
input_size = [3, 32, 32]
mean = [0.4, 0.5, 0.6]
std = [0.3, 0.25, 0.2]
interpolation = "bilinear"
crop_pct = 0.9
{arguments}
{extra}""")
    (folder / "study.toml").write_text(f"""
[study]
name = "tiny"
[dataset]
kind = "imagefolder"
train = "train"
val = "val"
[transfer]
epochs = 2
batch_size = 16
lr = 0.02
views = 1
augment = "none"
{transfer}
{"".join(tables)}""")


def _batch(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    files = sorted(folder.glob("*/*.png"))
    pixels = [np.asarray(Image.open(file).resize((32, 32))) for file in files]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return (images - 0.5) / 0.25, torch.tensor([int(file.parent.name[-1]) for file in files])
