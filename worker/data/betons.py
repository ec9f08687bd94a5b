"""Writes a split as an ffcv file (.beton): resumable, one image after the other, reproducible to the byte.

ffcv's own DatasetWriter starts over when it is interrupted, hangs forever when an image is unreadable, and selects the
images to compress with an unseeded generator. This writer produces the same file format without it.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kt_study.datasets import Split, open_split
from kt_study.errors import DataError, DiskError, EnvironmentUnusable
from kt_study.files import make_folder, write_bytes
from kt_study.hashing import digest, hash64
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord, Record
from worker.data.jpeg_parts import restart_interval

SAVE_EVERY_S = 20.0
"""Seconds of work that a killed `data prepare` loses at most."""
_CHUNK = 64  # images encoded ahead of the writer
_PAGE = 1 << 23  # bytes; ffcv's default of 8 MiB, which no image may exceed
_RAW, _JPEG = 1, 0  # ffcv's numbers for the two encodings
_ENCODING = 2  # JPEGs have restart markers. Finished files of before stay good, unfinished ones begin again.


class BetonOptions(Record, frozen=True, kw_only=True):
    """How images are stored. Together with the data set these decide every byte of the file."""

    max_side: int = 500  # pixels; larger images are shrunk; 0 for no limit
    jpeg_quality: int = 90  # 1..100
    jpeg_share: float = 1.0  # share of images stored as JPEG, the others raw, drawn by the hash of their names


class BetonManifest(Record, frozen=True, kw_only=True):
    """What a finished beton was made of."""

    dataset: str  # key of the data set
    split: str
    n: int
    nbytes: int
    options: BetonOptions
    content: str  # digest of data set, split and options


def prepare_beton(
    dataset: DatasetRecord,
    split: str,
    paths: StudyPaths,
    *,
    options: BetonOptions | None = None,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> BetonManifest:
    """Write the beton of one split, or resume where an interrupted run stopped, or find it finished.

    Args:
        dataset, split: what to write.
        paths: of the study; the file goes to `paths.beton(key, split)`, its manifest beside it as .json.
        options: how images are stored.
        workers: threads that read and encode.
        progress: called with the number of images written so far.

    Raises:
        DataError: an unreadable image, named; what was written stays for the next run.
        DiskError: the disk is full; the unfinished file is removed.
        EnvironmentUnusable: ffcv is not installed.
    """
    require_ffcv()
    options = options or BetonOptions()
    target = paths.beton(dataset.key, split)
    wanted = digest([dataset.key, split, msgspec.to_builtins(options)])
    found = read_beton_manifest(target)
    if found is not None and found.content == wanted:
        return found
    source = open_split(dataset, split, paths)
    manifest = BetonManifest(dataset=dataset.key, split=split, n=source.n, nbytes=0, options=options, content=wanted)
    with _DiskErrors(target):
        make_folder(target.parent)
        nbytes = _Writer(source, options, _unfinished(target, wanted)).run(target, workers, progress or _silent)
        manifest = msgspec.structs.replace(manifest, nbytes=nbytes)
        write_bytes(_manifest_path(target), msgspec.json.encode(manifest))
    return manifest


def read_beton_manifest(target: Path) -> BetonManifest | None:
    """The manifest of a finished beton; None when there is none, or the file is not of the size it says."""
    try:
        manifest = msgspec.json.decode(_manifest_path(target).read_bytes(), type=BetonManifest)
        return manifest if target.stat().st_size == manifest.nbytes else None
    except (OSError, msgspec.MsgspecError):
        return None


def require_ffcv() -> None:
    """Import ffcv and keep torch's number of threads, which ffcv sets to one. Raises EnvironmentUnusable without it."""
    threads = torch.get_num_threads()
    try:
        import ffcv  # noqa: F401
    except Exception as error:  # a missing shared library raises OSError, a broken numba much else
        raise EnvironmentUnusable(
            f"ffcv cannot be imported ({str(error).splitlines()[0]}); install libopencv-dev, libturbojpeg0-dev and"
            ' pkg-config and then kt-study[ffcv], or set [transfer] loader = "torch"'
        ) from error
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """One image as it goes into the file."""

    mode: int
    height: int
    width: int
    content: NDArray[np.uint8]


class _Writer:
    """Appends images to an unfinished file, and at the end puts the tables in their places."""

    def __init__(self, split: Split, options: BetonOptions, unfinished: Path) -> None:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.types import FieldDescType, HeaderType, get_metadata_type

        self._split, self._options, self._file = split, options, unfinished
        self._fields = {"image": RGBImageField(), "label": IntField(), "index": IntField()}
        self._header, self._descriptor = HeaderType, FieldDescType
        self._metadata = np.zeros(split.n, get_metadata_type(list(self._fields.values())))
        self._sizes = np.zeros(split.n, np.uint64)
        start = HeaderType.itemsize + len(self._fields) * FieldDescType.itemsize + self._metadata.nbytes
        self._end = -(-start // _PAGE) * _PAGE
        self._rows = 0

    def run(self, target: Path, workers: int, progress: Callable[[int], None]) -> int:
        """Write what is missing; returns the size of the finished file in bytes."""
        self._load()
        with self._file.open("r+b" if self._rows else "w+b") as stream, ThreadPoolExecutor(max(1, workers)) as pool:
            stream.truncate(self._end)
            saved = time.monotonic()
            try:
                for image in self._encoded(pool):
                    self._append(stream, image)
                    if time.monotonic() - saved > SAVE_EVERY_S:
                        self._save(stream)
                        saved = time.monotonic()
                    progress(self._rows)
            except DataError:
                self._save(stream)
                raise
            self._finish(stream)
            nbytes = stream.tell()
        self._file.replace(target)
        self._progress_file.unlink(missing_ok=True)
        return nbytes

    @property
    def _progress_file(self) -> Path:
        return self._file.with_suffix(".part-npz")

    def _encoded(self, pool: ThreadPoolExecutor) -> Iterator[_Encoded]:
        """Images in order, encoded by the pool a chunk ahead."""
        rest = iter(range(self._rows, self._split.n))
        coming = [pool.submit(self._encode, i) for i in itertools.islice(rest, _CHUNK)]
        while coming:
            image = coming.pop(0).result()
            coming += [pool.submit(self._encode, i) for i in itertools.islice(rest, 1)]
            yield image

    def _encode(self, i: int) -> _Encoded:
        image = _shrunk(self._split.image(i), self._options.max_side)
        pixels = np.asarray(image)
        as_jpeg = hash64("jpeg", self._split.name(i)) < self._options.jpeg_share * 2.0**64
        content = _as_jpeg(pixels, self._options.jpeg_quality) if as_jpeg else pixels.reshape(-1)
        if content.nbytes > _PAGE:
            raise DataError(f"{self._split.file(i)}: {content.nbytes} bytes exceed ffcv's page; set a smaller max side")
        return _Encoded(mode=_JPEG if as_jpeg else _RAW, height=image.height, width=image.width, content=content)

    def _append(self, stream: BinaryIO, image: _Encoded) -> None:
        room = _PAGE - self._end % _PAGE
        if image.content.nbytes > room:
            self._end += room
        stream.seek(self._end)
        stream.write(image.content.data)
        row, labels = self._metadata[self._rows : self._rows + 1], self._split.labels
        row["f0"]["mode"], row["f0"]["data_ptr"] = image.mode, self._end
        row["f0"]["height"], row["f0"]["width"] = image.height, image.width
        row["f1"] = -1 if labels is None else labels[self._rows]
        row["f2"] = self._rows
        self._sizes[self._rows] = image.content.nbytes
        self._end += image.content.nbytes
        self._rows += 1

    def _save(self, stream: BinaryIO) -> None:
        stream.flush()
        os.fsync(stream.fileno())
        with self._progress_file.open("wb") as aside:
            np.savez(
                aside,
                encoding=_ENCODING,
                rows=self._rows,
                end=self._end,
                metadata=self._metadata[: self._rows],
                sizes=self._sizes,
            )

    def _load(self) -> None:
        try:
            with np.load(self._progress_file, allow_pickle=False) as saved:
                rows, end = int(saved["rows"]), int(saved["end"])
                if int(saved["encoding"]) == _ENCODING and self._file.stat().st_size >= end:
                    self._metadata[:rows], self._sizes = saved["metadata"], saved["sizes"]
                    self._rows, self._end = rows, end
        except Exception:  # torn by the same interruption, or from before there was an encoding: start over
            self._rows = 0

    def _finish(self, stream: BinaryIO) -> None:
        """The tables: allocations behind the images, then the samples and the header before them."""
        from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION

        table = np.zeros(self._split.n, ALLOC_TABLE_TYPE)
        table["sample_id"] = np.arange(self._split.n)
        table["ptr"], table["size"] = self._metadata["f0"]["data_ptr"], self._sizes
        header = np.zeros(1, self._header)
        header["version"], header["num_fields"], header["page_size"] = CURRENT_VERSION, len(self._fields), _PAGE
        header["num_samples"], header["alloc_table_ptr"] = self._split.n, self._end
        stream.seek(0)
        stream.write(header.tobytes() + self._descriptors().tobytes() + self._metadata.tobytes())
        stream.seek(self._end)
        stream.write(table.tobytes())
        stream.flush()
        os.fsync(stream.fileno())

    def _descriptors(self) -> NDArray[Any]:
        from ffcv.types import TYPE_ID_HANDLER

        number = {handler: type_id for type_id, handler in TYPE_ID_HANDLER.items()}
        rows = np.zeros(len(self._fields), self._descriptor)
        for row, (name, field) in zip(rows, self._fields.items(), strict=True):
            row["type_id"] = number[type(field)]
            row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
        return rows


class _DiskErrors:
    """Turns a full or refusing disk into DiskError, and clears away the unfinished file."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            for leftover in self._target.parent.glob(f".{self._target.stem}-*.part*"):
                leftover.unlink(missing_ok=True)
            reason = error.strerror or str(error)
            raise DiskError(f"cannot write {self._target}: {reason}; free space or choose another folder") from error


def _shrunk(image: Image.Image, max_side: int) -> Image.Image:
    """The image with its longer side at most `max_side` pixels, averaging over the pixels that fall together."""
    longer = max(image.size)
    if max_side == 0 or longer <= max_side:
        return image
    width, height = (max(1, round(side * max_side / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _as_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """As ffcv encodes them, but with restart markers, so that `worker.data.jpeg_parts` can decode a part; same pixels."""
    import cv2

    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, restart_interval(pixels.shape[1])]
    success, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), settings)
    if not success:
        raise ValueError("OpenCV cannot encode this image as JPEG")
    jpeg: NDArray[np.uint8] = encoded.reshape(-1)
    return jpeg


def _unfinished(target: Path, content: str) -> Path:
    return target.with_name(f".{target.stem}-{content[:8]}.part")


def _manifest_path(target: Path) -> Path:
    return target.with_suffix(".json")


def _silent(count: int) -> None:  # noqa: ARG001
    return None
