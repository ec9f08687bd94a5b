"""Greyscale of more than 8 bits: the same pixels as the 8-bit original, by every reader, or a refusal that names the file."""

from __future__ import annotations

import importlib.util
import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kt_study.datasets import open_split, prepare
from kt_study.errors import DataError
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection
from tests.data.support import folder_dataset
from tests.require import require

GREY = np.linspace(0, 255, 96).round().astype(np.uint8).reshape(8, 12)
"""The original. Its deeper versions below are written by hand, from the formats' own descriptions."""


def tiff(
    values: NDArray[Any], dtype: str, *, bits: int = 0, sample_format: int = 1, white_is_zero: bool = False
) -> bytes:
    """An uncompressed greyscale TIFF of one strip, in the byte order of `dtype`."""
    end, content = dtype[0], values.astype(dtype).tobytes() if not bits else packed_12(values)
    height, width = GREY.shape
    tags = {256: width, 257: height, 258: bits or 8 * np.dtype(dtype).itemsize, 259: 1, 262: int(not white_is_zero),
            273: 8, 277: 1, 278: height, 279: len(content), 339: sample_format}  # fmt: skip
    head = (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(f"{end}I", 8 + len(content))
    entries = b"".join(struct.pack(f"{end}HHII", tag, 4, 1, value) for tag, value in tags.items())
    return head + content + struct.pack(f"{end}H", len(tags)) + entries + bytes(4)


def packed_12(values: NDArray[Any]) -> bytes:
    """Pairs of 12-bit values in three bytes, the first one in the upper bits."""
    first, second = values.reshape(-1, 2).astype(int).T
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()


def png_16(values: NDArray[Any]) -> bytes:
    height, width = values.shape

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def pgm(values: NDArray[Any], highest: int) -> bytes:
    return b"P5 %d %d %d\n" % (*values.shape[::-1], highest) + values.astype(">u2").tobytes()


WIDE = GREY.astype(np.int64)
DEEP: dict[str, tuple[str, bytes]] = {
    "png": (".png", png_16(WIDE * 257)),
    "png of the upper byte alone": (".png", png_16(WIDE << 8)),
    "tiff, 16 bits": (".tif", tiff(WIDE * 257, "<u2")),
    "tiff, 16 bits, the other byte order": (".tiff", tiff(WIDE * 257, ">u2")),
    "tiff, 16 bits, white is zero": (".tif", tiff(65535 - WIDE * 257, "<u2", white_is_zero=True)),
    "tiff, 16 bits with a sign": (".tif", tiff(WIDE << 7, "<i2", sample_format=2)),
    "tiff, 12 bits": (".tif", tiff(WIDE << 4, "<u2", bits=12)),
    "tiff, 32 bits": (".tif", tiff(WIDE * 0x01010101, "<u4")),
    "tiff, 32 bits with a sign": (".tif", tiff(WIDE << 23, "<i4", sample_format=2)),
    "pgm": (".pgm", pgm(WIDE * 257, 65535)),
    "pgm of 10 bits": (".pgm", pgm(np.rint(WIDE / 255 * 1023), 1023)),
}


def in_folder(root: Path, paths: StudyPaths, suffix: str, content: bytes) -> DatasetRecord:
    (root / "val" / "a").mkdir(parents=True)
    (root / "val" / "a" / f"deep{suffix}").write_bytes(content)
    return folder_dataset(root / "val", paths)


def in_shard(root: Path, paths: StudyPaths, suffix: str, content: bytes) -> DatasetRecord:
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "s.tar", "w") as archive:
        for name, part in ((f"0{suffix}", content), ("0.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(part)
            archive.addfile(member, io.BytesIO(part))
    section = DatasetSection(
        kind="timm", source="wds/", path=str(root), val="s.tar", arguments={"input_key": suffix.removeprefix(".")}
    )
    return prepare(section, seed=0, folder=root, paths=paths)


def in_table(root: Path, paths: StudyPaths, suffix: str, content: bytes) -> DatasetRecord:  # noqa: ARG001
    import datasets

    (root / "table").mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    rows = {"image": [{"bytes": content, "path": None}], "label": [0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "table" / "validation-0.parquet"))
    section = DatasetSection(kind="timm", source="hfds/table", val="validation")
    return prepare(section, seed=0, folder=root, paths=paths)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("depth", DEEP)
def test_the_pixels_are_those_of_the_8_bit_original(tmp_path: Path, paths: StudyPaths, depth: str) -> None:
    suffix, content = DEEP[depth]
    image = open_split(in_folder(tmp_path, paths, suffix, content), "val", paths).image(0)
    off_by = 0 if "10 bits" not in depth else 1  # 1,023 levels are no multiple of 255
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - WIDE[..., None]).max() <= off_by


@pytest.mark.parametrize("put", [in_shard, in_table])
def test_shards_and_tables_are_read_alike(tmp_path: Path, paths: StudyPaths, put: Callable[..., DatasetRecord]) -> None:
    image = open_split(put(tmp_path, paths, *DEEP["png"]), "val", paths).image(0)
    assert np.array_equal(np.asarray(image), np.repeat(GREY[..., None], 3, axis=2))


def test_ffcvs_file_has_the_same_pixels(tmp_path: Path, paths: StudyPaths) -> None:
    require("ffcv", importlib.util.find_spec("ffcv") is not None, "ffcv is not installed")
    from ffcv.reader import Reader

    from worker.data.betons import BetonOptions, prepare_beton

    record = in_folder(tmp_path, paths, *DEEP["png"])
    prepare_beton(record, "val", paths, options=BetonOptions(max_side=0, jpeg_share=0.0))
    beton = paths.beton(record.key, "val")
    at = int(Reader(str(beton)).metadata["f0"]["data_ptr"][0])
    stored = np.frombuffer(beton.read_bytes(), np.uint8, 3 * GREY.size, at)
    assert np.array_equal(stored.reshape(*GREY.shape, 3), np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("suffix", "content", "told"),
    [
        (
            ".tif",
            tiff(GREY / 255, "<f4", sample_format=3),
            "mode F, floating-point values whose range is unknown; save it",
        ),
        (".tif", tiff(WIDE * 257 - 32768, "<i2", sample_format=2), "-32,768 to 32,767 and it has values below 0"),
        (".tif", tiff(WIDE * 257, "<i4", sample_format=2), "mode I, .* 0 to 65,535 and it would be black with 8 bits"),
        (".png", png_16(WIDE), "mode I;16, .* 0 to 255 and it would be black with 8 bits; save it with 8 bits"),
    ],
)
@pytest.mark.parametrize("put", [in_folder, in_shard, in_table])
def test_values_of_an_unknown_range_are_refused(
    tmp_path: Path, paths: StudyPaths, put: Callable[..., DatasetRecord], suffix: str, content: bytes, told: str
) -> None:
    split = open_split(put(tmp_path, paths, suffix, content), "val", paths)
    with pytest.raises(DataError, match=told) as caught:
        split.image(0)
    assert "\n" not in str(caught.value)
    assert f"deep{suffix}: " in str(caught.value) or put is not in_folder


def test_black_is_black_at_any_depth(tmp_path: Path, paths: StudyPaths) -> None:
    split = open_split(in_folder(tmp_path, paths, ".png", png_16(0 * WIDE)), "val", paths)
    assert not np.asarray(split.image(0)).any()


def test_colour_of_16_bits_gives_what_grey_of_16_bits_gives(tmp_path: Path, paths: StudyPaths) -> None:
    """So that a set of both has one scale: any of the 65,536 values, as grey here and as colour by Pillow."""
    every = np.arange(65536).reshape(256, 256)
    split = open_split(in_folder(tmp_path, paths, ".png", png_16(every)), "val", paths)
    colour = b"P6 256 256 65535\n" + np.repeat(every, 3).astype(">u2").tobytes()
    assert np.abs(np.asarray(split.image(0)).astype(int) - np.asarray(Image.open(io.BytesIO(colour)))).max() <= 1
