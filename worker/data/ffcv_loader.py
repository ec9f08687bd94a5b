"""Training views read from a beton by ffcv, with the boxes and flips of `worker.data.views`.

The boxes and flips of a view are computed by numpy for the whole pass and passed to ffcv's decoder as additional columns
of the image metadata. So compiled code uses no random numbers, and a new view needs no new compilation.

Pixels differ from those of the torch loader: ffcv decodes JPEG with the fast DCT, and resizes by area averaging whatever
the model's interpolation is. Therefore a cache entry records its loader.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kt_study.errors import DataError, EnvironmentUnusable
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord, ModelRecord
from worker.data.batches import Batch, Normaliser, ahead
from worker.data.betons import read_beton_manifest, require_ffcv
from worker.data.jpeg_parts import Box, part_around
from worker.data.near import near
from worker.data.shrink import can_shrink, shrink
from worker.data.views import ViewRecipe, boxes, coloured, colours, flips
from worker.measures.jit import compiled

_BOXES_AT_ONCE = 1 << 16  # samples whose boxes are drawn in one numpy call
_GROUP = 32  # pixels mirrored together


class FfcvViews:
    """One split under a recipe, from its beton. One pass at a time."""

    def __init__(
        self,
        beton: str,
        size: tuple[int, int],
        recipe: ViewRecipe,
        normalise: Normaliser,
        device: torch.device,
        cores: int,
    ) -> None:
        self._recipe, self._normalise, self._device = recipe, normalise, device
        self._loader = _ffcv_loader(beton, size, cores)
        self._stored = self._loader.reader.metadata

    @property
    def n(self) -> int:
        """Samples in the split."""
        return len(self._stored)

    def batches(self, order: NDArray[np.int64], batch_size: int, *, view: int = -1, start: int = 0) -> Iterator[Batch]:
        """See `worker.data.loader.Views.batches`."""
        rest = order[start * batch_size :]
        for images, positions in ahead(self.raw(rest, batch_size, view), self._device):
            yield self._normalise(images.permute(0, 3, 1, 2).contiguous()), positions

    def raw(self, order: NDArray[np.int64], batch_size: int, view: int) -> Iterator[Batch]:
        """uint8 [b, h, w, 3], good until the next batch is asked for: ffcv overwrites its buffers."""
        if not len(order):
            return
        loader = self._loader
        loader.reader.metadata = _with_boxes(self._stored, self._recipe, view, order)
        loader.batch_size = batch_size
        loader.traversal_order = _Given(order)
        loader.first_traversal_order = order
        epoch, done = iter(loader), 0
        for (images,) in epoch:
            positions = order[done : done + batch_size]
            done += len(positions)
            yield self._coloured(images, view, positions), torch.from_numpy(positions)
        if done < len(order):
            raise EnvironmentUnusable(f"ffcv stopped after {done} of {len(order)} images: {epoch.error}")

    def _coloured(self, images: torch.Tensor, view: int, positions: NDArray[np.int64]) -> torch.Tensor:
        colour = colours(self._recipe, view, positions)
        if colour is None:
            return images
        changed = [coloured(pixels, colour, i) for i, pixels in enumerate(images.numpy())]
        return torch.from_numpy(np.stack(changed))


def ffcv_views(
    dataset: DatasetRecord,
    split: str,
    model: ModelRecord,
    recipe: ViewRecipe,
    paths: StudyPaths,
    *,
    device: torch.device,
    workers: int = 0,
) -> FfcvViews:
    """A split under a recipe, read from its beton; arguments as for `worker.data.loader.training_views`.

    `workers` is the number of decoding threads; 0 for as many as this process may run on.

    Raises:
        DataError: no beton, or one of another size than the split.
        EnvironmentUnusable: ffcv is not installed.
    """
    require_ffcv()
    beton = paths.beton(dataset.key, split)
    manifest = read_beton_manifest(beton)
    if manifest is None:
        raise DataError(f'{beton}: not there or cut short; run `kt-study data prepare`, or set loader = "torch"')
    if manifest.n != dataset.splits[split]:
        raise DataError(f"{beton}: {manifest.n} samples, not those of the split; run `kt-study data prepare` again")
    cores = workers or len(os.sched_getaffinity(0))
    normalise = Normaliser(model.mean, model.std, device)
    return FfcvViews(str(near(beton)), model.input_size[1:], recipe, normalise, device, cores)


class _Given:
    """An ffcv traversal order that is what it is told."""

    def __init__(self, order: NDArray[np.int64]) -> None:
        self._order = order

    def sample_order(self, epoch: int) -> NDArray[np.int64]:  # noqa: ARG002
        return self._order


def _with_boxes(stored: NDArray[Any], recipe: ViewRecipe, view: int, order: NDArray[np.int64]) -> NDArray[Any]:
    """The beton's metadata with a box and a flip for each sample that the pass visits."""
    extended = np.zeros(len(stored), _extended(stored.dtype))
    for name in stored.dtype.names or ():
        if name != "f0":
            extended[name] = stored[name]
    image = extended["f0"]
    for name in stored.dtype["f0"].names or ():
        image[name] = stored["f0"][name]
    for cut in range(0, len(order), _BOXES_AT_ONCE):
        chosen = order[cut : cut + _BOXES_AT_ONCE]
        box = boxes(recipe, view, chosen, image["height"][chosen], image["width"][chosen])
        for column, name in enumerate(("top", "left", "box_height", "box_width")):
            image[name][chosen] = box[:, column]
        image["flip"][chosen] = flips(recipe, view, chosen)
    return extended


def _extended(stored: np.dtype[Any]) -> np.dtype[Any]:
    more = [("top", "<u2"), ("left", "<u2"), ("box_height", "<u2"), ("box_width", "<u2"), ("flip", "<u1")]
    image = np.dtype([*((name, stored["f0"][name]) for name in stored["f0"].names or ()), *more], align=True)
    rest = [(name, stored[name]) for name in (stored.names or ())[1:]]
    return np.dtype([("f0", image), *rest], align=True)


def _ffcv_loader(beton: str, size: tuple[int, int], cores: int) -> Any:
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    _mend_ffcv()
    return Loader(
        beton,
        batch_size=1,
        num_workers=cores,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [_decoder_type()(size), ToTensor()], "label": None, "index": None},
    )


@functools.cache
def _mend_ffcv() -> None:
    """Three changes to ffcv, once a process.

    torch keeps its threads; a failing pass ends instead of hanging; and numba's type of one-dimensional bytes, which
    ffcv marks as read-only for everybody in the process, stays as it is.
    """
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_managers.os_cache import OSCacheManager
    from ffcv.pipeline.compiler import Compiler

    original = EpochIterator.run

    def run(epoch: Any) -> None:
        try:
            original(epoch)
        except Exception as error:  # whatever it is, the reader must hear of it
            epoch.error = error
            epoch.output_queue.put(None)

    EpochIterator.run = run
    OSCacheManager.compile_reader = lambda manager: Compiler.compile(_stored_bytes)  # noqa: ARG005
    Compiler.set_num_threads = _set_numba_threads


def _stored_bytes(address: Any, state: Any) -> Any:
    """Compiled: the bytes of one image in the mapped file; `state` is the file, the addresses in order, the sizes."""
    return state[0][address : address + state[2][np.searchsorted(state[1], address)]]


def _set_numba_threads(count: int) -> None:
    """In place of ffcv's own, which sets torch's threads as well and so would slow down training on the CPU."""
    import numba
    from ffcv.pipeline.compiler import Compiler

    Compiler.num_threads = min(count, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(Compiler.num_threads)


@compiled
def _mirror(image: NDArray[np.uint8]) -> None:
    """Mirror [h, w, 3] in place, a line at a time."""
    kept = np.empty(3 * image.shape[1], np.uint8)
    for row in range(image.shape[0]):
        line = image[row].reshape(-1)
        for i in range(np.uint64(len(kept))):
            kept[i] = line[i]
        _mirror_line(kept, line)


@compiled
def _mirror_line(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
    """The pixels of a line, three bytes each, from last to first.

    Groups of a fixed size become shuffles of whole registers; unsigned positions spare a test for negative ones.
    """
    size, group = len(source), 3 * _GROUP
    grouped = size // group * group
    for at in range(0, grouped, group):
        some, there = source[at : at + group], target[size - at - group : size - at]
        for pixel in range(np.uint64(_GROUP)):
            for channel in range(np.uint64(3)):
                there[np.uint64(group - 3) - np.uint64(3) * pixel + channel] = some[np.uint64(3) * pixel + channel]
    for at in range(grouped, size, 3):
        for channel in range(3):
            target[size - at - 3 + channel] = source[at + channel]


@functools.cache
def _decoder_type() -> type:
    """ffcv's cropping decoder, with box and flip read from the metadata."""
    from ffcv.fields.rgb_image import IMAGE_MODES, ResizedCropRGBImageDecoder
    from ffcv.libffcv import imdecode, resize_crop
    from ffcv.pipeline.compiler import Compiler

    class PlannedCropDecoder(ResizedCropRGBImageDecoder):  # type: ignore[misc]
        """Decodes, crops to the planned box, resizes, mirrors."""

        @property
        def get_crop_generator(self) -> None:
            """Unused: the box is in the metadata."""

        def generate_code(self) -> Callable[..., Any]:
            jpeg = IMAGE_MODES["jpg"]
            read = self.memory_read
            my_range, threads = Compiler.get_iterator(), Compiler.num_threads
            decode_jpeg = Compiler.compile(imdecode)
            resized = Compiler.compile(resize_crop)

            def decode(batch_indices: Any, storage: Any, metadata: Any, storage_state: Any) -> Any:
                destination, scratch = storage
                count = len(batch_indices)
                turns = min(count, threads)
                for turn in my_range(turns):  # one of these is a thread's, so that its scratch stays in its cache
                    for slot in range(turn, count, turns):
                        field = metadata[batch_indices[slot]]
                        stored = read(field["data_ptr"], storage_state)
                        height, width = np.int64(field["height"]), np.int64(field["width"])
                        top, left = np.int64(field["top"]), np.int64(field["left"])
                        box = Box(top, left, top + np.int64(field["box_height"]), left + np.int64(field["box_width"]))
                        if field["mode"] == jpeg:
                            part, at = part_around(stored, height, width, box)
                            h, w = np.uint32(at.bottom - at.top), np.uint32(at.right - at.left)
                            decode_jpeg(part, scratch[turn], h, w, h, w, 0, 0, 1, 1, False, False)
                            pixels = scratch[turn][: 3 * h * w].reshape(h, w, 3)
                            box = Box(box.top - at.top, box.left - at.left, box.bottom - at.top, box.right - at.left)
                        else:
                            pixels = stored.reshape(height, width, 3)
                        image = destination[slot]
                        if can_shrink(box, image):
                            shrink(pixels, box, image)
                        else:
                            resized(pixels, box.top, box.bottom, box.left, box.right, image)
                        if field["flip"]:
                            _mirror(image)
                return destination[:count]

            decode.is_parallel = True  # type: ignore[attr-defined]
            return decode

    return PlannedCropDecoder
