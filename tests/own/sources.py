"""Small data sets as others lay them: parquet, webdataset shards, torchvision's files, plain folders."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def image(number: int) -> bytes:
    """A PNG whose pixels depend on its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(
    folder: Path, *, train: int, val: int, labels: bool = True, instead: dict[int, Any] | None = None
) -> None:
    """`train` and `validation` as parquet with the columns image and label (classes cat, dog). `instead` has what stands
    in some rows of each in place of an image."""
    import datasets

    folder.mkdir(parents=True)
    for split, count, first in (("train", train, 0), ("validation", val, 1000)):
        images = {i: {"bytes": image(first + i), "path": None} for i in range(count)} | (instead or {})
        columns: dict[str, Any] = {"image": list(images.values())}
        features: dict[str, Any] = {"image": datasets.Image()}
        if labels:
            columns["label"] = [(i * i) % 2 for i in range(count)]
            features["label"] = datasets.ClassLabel(names=["cat", "dog"])
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def write_shards(folder: Path, *, shards: int, samples: int, info: bool = True, empty: Container[int] = ()) -> None:
    """`train-0000.tar`, ...: each sample a .png, without content for the `empty` ones, a .cls and a .json; and timm's
    _info.json."""
    folder.mkdir(parents=True)
    names = [f"train-{number:04d}.tar" for number in range(shards)]
    for number, name in enumerate(names):
        with tarfile.open(folder / name, "w") as archive:
            for sample in range(samples):
                at = number * samples + sample
                meta = json.dumps({"kind": at % 2}).encode()
                for suffix, content in (
                    ("png", b"" if at in empty else image(at)),
                    ("cls", str(at % 3).encode()),
                    ("json", meta),
                ):
                    member = tarfile.TarInfo(f"part/{at:05d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    if info:
        split = {"name": "train", "num_samples": shards * samples, "filenames": names,
                 "shard_lengths": [samples] * shards}  # fmt: skip
        (folder / "_info.json").write_text(json.dumps({"splits": {"train": split}}))


def write_fashion(folder: Path, *, train: int, val: int) -> None:
    """Fashion-MNIST's four files as torchvision keeps them, with other images."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(3)
    for prefix, count in (("train", train), ("t10k", val)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        _idx(raw / f"{prefix}-images-idx3-ubyte", pixels)
        _idx(raw / f"{prefix}-labels-idx1-ubyte", labels)


def _idx(path: Path, values: Any) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    content = head + values.tobytes()
    path.write_bytes(content)
    path.with_suffix(".gz").write_bytes(gzip.compress(content))
