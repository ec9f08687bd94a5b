"""Folders laid out as the paper's other data sets unpack, with all their classes and images that hold no image.

Scanning a data set looks at names and sizes only, so planning cannot tell.
"""

from __future__ import annotations

from pathlib import Path


def write_image(path: Path) -> None:
    """Three bytes where a image would be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"jpg")


def cub(root: Path, classes: int = 200) -> Path:
    """CUB-200: one image a class and split."""
    names = [f"{number:03d}.Bird_{number}" for number in range(1, classes + 1)]
    images = [f"{name}/{split}.jpg" for name in names for split in ("test", "train")]
    for image in images:
        write_image(root / "images" / image)
    lines = {
        "classes.txt": [f"{i} {name}" for i, name in enumerate(names, 1)],
        "images.txt": [f"{i} {image}" for i, image in enumerate(images, 1)],
        "image_class_labels.txt": [f"{i} {(i + 1) // 2}" for i in range(1, len(images) + 1)],
        "train_test_split.txt": [f"{i} {int('train' in image)}" for i, image in enumerate(images, 1)],
    }
    for name, content in lines.items():
        (root / name).write_text("\n".join(content) + "\n")
    return root


def imagenet(root: Path, synsets: tuple[str, ...] = ("n01440764", "n01443537", "n01484850")) -> Path:
    """train/ and val/ with some of ImageNet's synsets, four images to train on in each."""
    for synset in synsets:
        for number in range(4):
            write_image(root / "train" / synset / f"{number}.jpg")
        write_image(root / "val" / synset / "0.jpg")
    return root


def domainnet(root: Path, classes: int = 345) -> Path:
    """DomainNet's infograph: one image a class and split."""
    for split in ("train", "test"):
        rows = [f"infograph/class{label:03d}/{split}.jpg {label}" for label in range(classes)]
        for row in rows:
            write_image(root / row.split()[0])
        (root / f"infograph_{split}.txt").write_text("\n".join(rows) + "\n")
    return root
