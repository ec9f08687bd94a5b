"""ffcv: the beton that is written, and the same boxes and flips as the torch loader, to the bit from run to run."""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kt_study.datasets import Split, open_split, prepare
from kt_study.errors import DataError, DiskError, EnvironmentUnusable
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord, LogitsSpec
from kt_study.study import DatasetSection
from tests.data.support import CPU, folder_dataset, image_folder, job_context, tiny_model
from tests.photos import photos_dir
from tests.require import require
from worker.data.batches import Normaliser
from worker.data.betons import BetonOptions, prepare_beton, read_beton_manifest
from worker.data.ffcv_loader import FfcvViews, _mirror
from worker.data.loader import training_views
from worker.data.views import ViewRecipe, boxes, epoch_order, flips

FULL = BetonOptions(max_side=0, jpeg_quality=95)
RAW = BetonOptions(max_side=0, jpeg_share=0.0)
N = 60


@pytest.fixture(autouse=True)
def _ffcv() -> None:
    require("ffcv", importlib.util.find_spec("ffcv") is not None, "ffcv is not installed")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), {"ant": 30, "bee": 20, "cat": 10})


@pytest.fixture
def dataset(root: Path, paths: StudyPaths) -> DatasetRecord:
    return folder_dataset(root, paths)


def _by_sample(dataset: DatasetRecord, paths: StudyPaths, recipe: ViewRecipe, **how: object) -> torch.Tensor:
    order, batch_size = how.pop("order", np.arange(N)), how.pop("batch_size", 64)
    model = how.pop("model", tiny_model())
    views = training_views(dataset, "val", model, recipe, paths, device=CPU, **how)  # type: ignore[arg-type]
    everything = torch.full((views.n, 3, *model.input_size[1:]), torch.nan)  # type: ignore[attr-defined]
    for images, positions in views.batches(order, batch_size, view=1):  # type: ignore[arg-type]
        everything[positions] = images
    return everything


def test_ffcvs_own_reader_finds_every_image(dataset: DatasetRecord, paths: StudyPaths) -> None:
    """Raw images come back to the byte, and JPEG ones as what libjpeg makes of them at that quality."""
    from ffcv.reader import Reader

    options = BetonOptions(max_side=0, jpeg_quality=80, jpeg_share=0.5)
    manifest = prepare_beton(dataset, "val", paths, options=options, workers=2)
    beton = paths.beton(dataset.key, "val")
    reader, content = Reader(str(beton)), beton.read_bytes()
    split = open_split(dataset, "val", paths)
    sizes = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"].tolist(), strict=True))
    assert reader.metadata["f1"].tolist() == split.labels.tolist()
    assert reader.metadata["f2"].tolist() == list(range(N))
    for i, row in enumerate(reader.metadata["f0"]):
        stored = content[int(row["data_ptr"]) :][: sizes[int(row["data_ptr"])]]
        expected = np.asarray(split.image(i))
        assert (int(row["height"]), int(row["width"])) == expected.shape[:2]
        if row["mode"] == 1:
            assert stored == expected.tobytes()
        else:
            assert np.abs(np.asarray(Image.open(io.BytesIO(stored))).astype(int) - expected).mean() < 6
    assert 0.2 < (reader.metadata["f0"]["mode"] == 0).mean() < 0.8
    assert manifest.nbytes == len(content)


def test_the_same_bytes_every_time(root: Path, tmp_path: Path) -> None:
    contents, digests = [], []
    for name, workers in (("a", 1), ("b", 3)):
        paths = StudyPaths(root=tmp_path / name)
        dataset = folder_dataset(root, paths)
        first = prepare_beton(dataset, "val", paths, options=BetonOptions(jpeg_share=0.3), workers=workers)
        contents.append(paths.beton(dataset.key, "val").read_bytes())
        other = prepare_beton(dataset, "val", paths, options=BetonOptions(jpeg_share=0.4))
        contents.append(paths.beton(dataset.key, "val").read_bytes())
        digests.append((first.content, other.content))
    assert contents[0] == contents[2] != contents[1] == contents[3]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 2, "the digest knows the options"


def test_large_images_are_shrunk(dataset: DatasetRecord, paths: StudyPaths) -> None:
    from ffcv.reader import Reader

    prepare_beton(dataset, "val", paths, options=BetonOptions(max_side=24))
    stored = Reader(str(paths.beton(dataset.key, "val"))).metadata["f0"]
    assert (np.maximum(stored["height"], stored["width"]) == 24).all()


def test_an_interrupted_preparation_goes_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = StudyPaths(root=tmp_path / "whole"), StudyPaths(root=tmp_path / "pieces")
    dataset = folder_dataset(root, whole)
    folder_dataset(root, pieces)
    prepare_beton(dataset, "val", whole, options=FULL)
    monkeypatch.setattr("worker.data.betons.SAVE_EVERY_S", 0.0)
    seen: list[int] = []

    def progress(count: int) -> None:
        seen.append(count)
        if len(seen) in (20, 35):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare_beton(dataset, "val", pieces, options=FULL, progress=progress)
        assert read_beton_manifest(pieces.beton(dataset.key, "val")) is None
    prepare_beton(dataset, "val", pieces, options=FULL, progress=progress)
    assert len(seen) < N + 5, "what was written is not written again"
    finished = [study.beton(dataset.key, "val") for study in (whole, pieces)]
    assert finished[0].read_bytes() == finished[1].read_bytes()
    assert sorted(file.name for file in finished[1].parent.iterdir()) == sorted(
        [finished[1].name, finished[1].with_suffix(".json").name]
    )
    prepare_beton(dataset, "val", pieces, options=FULL, progress=progress)
    assert seen[-1] == N
    assert len(seen) < N + 5, "a finished beton is left as it is"


def test_an_unreadable_image_is_named(tmp_path: Path, paths: StudyPaths) -> None:
    root = image_folder(tmp_path / "val", {"ant": 6})
    dataset = folder_dataset(root, paths)
    good = (root / "ant" / "004.png").read_bytes()
    (root / "ant" / "004.png").write_bytes(good[:50])
    with pytest.raises(DataError, match=r"ant/004\.png"):
        prepare_beton(dataset, "val", paths, workers=2)
    (root / "ant" / "004.png").write_bytes(good)
    assert prepare_beton(dataset, "val", paths).n == 6


def test_a_folder_that_cannot_be_written(dataset: DatasetRecord, paths: StudyPaths) -> None:
    (paths.cache / "betons").write_text("in the way")
    with pytest.raises(DiskError, match="cannot write"):
        prepare_beton(dataset, "val", paths)


def test_a_full_disk_is_an_error_and_leaves_no_torn_beton(root: Path, small_disk: Path) -> None:
    paths = StudyPaths(root=small_disk)
    dataset = folder_dataset(root, paths)
    with pytest.raises(DiskError, match="No space left on device; free space"):
        prepare_beton(dataset, "val", paths, options=RAW)
    assert list(paths.beton(dataset.key, "val").parent.iterdir()) == []


def test_colours_do_not_depend_on_batch_order_or_threads(dataset: DatasetRecord, paths: StudyPaths) -> None:
    """Boxes and flips: `tests/data/test_determinism.py`."""
    prepare_beton(dataset, "val", paths, options=BetonOptions(max_side=0, jpeg_share=0.5))
    recipe = ViewRecipe(augment="authors", seed=8)
    expected = _by_sample(dataset, paths, recipe, loader="ffcv", workers=1)
    assert not expected.isnan().any()
    for workers, batch_size, order in (
        (1, 37, epoch_order(0, 0, N)),
        (2, 128, np.arange(N)),
        (2, 59, epoch_order(1, 0, N)),
    ):
        got = _by_sample(dataset, paths, recipe, loader="ffcv", workers=workers, batch_size=batch_size, order=order)
        assert torch.equal(got, expected), (workers, batch_size)


def test_a_beton_of_a_network_is_read_from_a_copy(
    dataset: DatasetRecord, paths: StudyPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.data import ffcv_loader
    from worker.data.near import near

    prepare_beton(dataset, "val", paths, options=FULL)
    read: list[Path] = []
    monkeypatch.setattr("worker.data.near.file_system", lambda _: "nfs4")
    monkeypatch.setattr(ffcv_loader, "near", lambda file: read.append(near(file)) or read[-1])
    near.cache_clear()
    seen = _by_sample(dataset, paths, ViewRecipe(seed=2), loader="ffcv", workers=1)
    near.cache_clear()
    assert not seen.isnan().any()
    assert not read[0].samefile(paths.beton(dataset.key, "val"))


def test_one_loader_serves_views_batches_and_resumes(dataset: DatasetRecord, paths: StudyPaths) -> None:
    prepare_beton(dataset, "val", paths, options=FULL)
    views = training_views(
        dataset, "val", tiny_model(), ViewRecipe(seed=2), paths, device=CPU, loader="ffcv", workers=1
    )
    order = epoch_order(3, 0, N)
    first = list(views.batches(order, 16, view=0))
    assert [len(positions) for _, positions in first] == [16, 16, 16, 12]
    assert torch.equal(torch.cat([positions for _, positions in first]), torch.from_numpy(order))
    other = list(views.batches(order, 16, view=1))
    assert not torch.equal(first[0][0], other[0][0])
    for (images, _), (again, _) in zip(first[2:], views.batches(order, 16, view=0, start=2), strict=True):
        assert torch.equal(images, again), "kept batches are not overwritten, and the view comes back"
    (last,) = views.batches(order[:1], 16, view=0)
    assert last[0].shape == (1, 3, 32, 32)
    assert list(views.batches(order, 16, view=0, start=4)) == []


def test_boxes_and_flips_are_those_of_the_torch_loader(tmp_path: Path, paths: StudyPaths) -> None:
    """On images whose colours are their coordinates, so that a box shows itself."""
    grid = np.zeros((120, 160, 3), np.uint8)
    grid[..., 0], grid[..., 1] = np.arange(160), np.arange(120)[:, None]
    (tmp_path / "val" / "grid").mkdir(parents=True)
    for i in range(40):
        Image.fromarray(grid).save(tmp_path / "val" / "grid" / f"{i:02d}.png")
    dataset = folder_dataset(tmp_path / "val", paths)
    prepare_beton(dataset, "val", paths, options=RAW)
    recipe, order = ViewRecipe(seed=3), np.arange(40)
    model = tiny_model(mean=(0.0,) * 3, std=(1 / 255,) * 3)
    got = _by_sample(dataset, paths, recipe, loader="ffcv", model=model, order=order, workers=1).numpy()
    box = boxes(recipe, 1, order, np.full(40, 120), np.full(40, 160))
    mirrored = flips(recipe, 1, order)
    assert 5 < mirrored.sum() < 35
    for i, (top, left, height, width) in enumerate(box):
        across, down = got[i, 0].mean(axis=0), got[i, 1].mean(axis=1)
        if mirrored[i]:
            across = across[::-1]
        assert across == pytest.approx(left + (np.arange(32) + 0.5) * width / 32 - 0.5, abs=1.2)
        assert down == pytest.approx(top + (np.arange(32) + 0.5) * height / 32 - 0.5, abs=1.2)


def test_photographs_look_alike_in_both_loaders(paths: StudyPaths) -> None:
    """The stated tolerance: 5 levels of 255 on average over photographs, 20 on the worst of them."""
    dataset = prepare(DatasetSection(kind="imagefolder", val=str(photos_dir())), seed=0, folder=paths.root, paths=paths)
    prepare_beton(dataset, "val", paths, options=FULL, workers=2)
    model = tiny_model(input_size=(3, 96, 96), mean=(0.0,) * 3, std=(1 / 255,) * 3, interpolation="bilinear")
    order = np.arange(0, 200, 4)
    one, other = (
        _by_sample(dataset, paths, ViewRecipe(seed=1), loader=loader, model=model, order=order)[order]
        for loader in ("torch", "ffcv")
    )
    apart = (one - other).abs().mean(dim=(1, 2, 3))
    assert apart.mean() < 5
    assert apart.max() < 20


def test_pixels_are_those_of_the_whole_image_decoded_cropped_and_mirrored(paths: StudyPaths) -> None:
    """Only a part around the box is decoded; nothing in the box may show it. By ffcv's functions, one after the other."""
    from ffcv.libffcv import imdecode, resize_crop
    from ffcv.reader import Reader

    dataset = prepare(DatasetSection(kind="imagefolder", val=str(photos_dir())), seed=0, folder=paths.root, paths=paths)
    prepare_beton(dataset, "val", paths, options=BetonOptions(max_side=300), workers=2)
    model = tiny_model(input_size=(3, 64, 64), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    order, recipe = np.arange(0, 200, 4), ViewRecipe(seed=1)
    got = _by_sample(dataset, paths, recipe, loader="ffcv", model=model, order=order)[order].numpy()
    beton = paths.beton(dataset.key, "val")
    reader, content = Reader(str(beton)), np.fromfile(beton, np.uint8)
    sizes = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"].tolist(), strict=True))
    rows = reader.metadata["f0"][order]
    box, mirrored = boxes(recipe, 1, order, rows["height"], rows["width"]), flips(recipe, 1, order)
    assert (box[:, 0] + box[:, 2] + 32 < rows["height"]).sum() > 10, "some boxes end well above the bottom"
    assert (box[:, 1] > 32).sum() > 10, "and some begin well inside"
    for i, row in enumerate(rows):
        stored = content[int(row["data_ptr"]) :][: sizes[int(row["data_ptr"])]]
        height, width = int(row["height"]), int(row["width"])
        whole, image = np.zeros((height, width, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
        imdecode(stored, whole, height, width, height, width)
        top, left, h, w = box[i]
        resize_crop(whole, top, top + h, left, left + w, image)
        expected = image[:, ::-1] if mirrored[i] else image
        assert np.array_equal(got[i].transpose(1, 2, 0).round(), expected), i


def test_betons_without_restart_markers_give_the_same_pixels(
    root: Path, dataset: DatasetRecord, paths: StudyPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions wrote them."""
    prepare_beton(dataset, "val", paths, options=FULL)
    recipe = ViewRecipe(seed=4)
    expected = _by_sample(dataset, paths, recipe, loader="ffcv")
    before = StudyPaths(root=tmp_path / "before")
    folder_dataset(root, before)
    monkeypatch.setattr("worker.data.betons._as_jpeg", _without_markers)
    prepare_beton(dataset, "val", before, options=FULL)
    assert torch.equal(_by_sample(dataset, before, recipe, loader="ffcv"), expected)


def test_ffcv_reads_our_betons_and_we_read_those_of_ffcv(
    dataset: DatasetRecord, paths: StudyPaths, tmp_path: Path
) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    prepare_beton(dataset, "val", paths, options=FULL)
    ours, theirs = str(paths.beton(dataset.key, "val")), str(tmp_path / "theirs.beton")
    split = open_split(dataset, "val", paths)
    fields = {"image": RGBImageField("jpg", jpeg_quality=95), "label": IntField(), "index": IntField()}
    DatasetWriter(theirs, fields, num_workers=1).from_indexed_dataset(_Indexed(split), shuffle_indices=False)
    assert np.array_equal(_read_by_ffcv(ours), _read_by_ffcv(theirs))
    order, mean = np.arange(N), Normaliser((0.0,) * 3, (1.0,) * 3, CPU)
    one, other = (
        next(iter(FfcvViews(beton, (32, 32), ViewRecipe(seed=4), mean, CPU, 1).batches(order, N, view=0)))[0]
        for beton in (ours, theirs)
    )
    assert torch.equal(one, other)


def test_a_beton_of_an_earlier_version_stays_and_an_unfinished_one_starts_over(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pixels are good, but a file half with and half without restart markers would not be the same every time."""
    whole, pieces = StudyPaths(root=tmp_path / "whole"), StudyPaths(root=tmp_path / "pieces")
    dataset = folder_dataset(root, whole)
    folder_dataset(root, pieces)
    prepare_beton(dataset, "val", whole, options=FULL)

    def interrupted(count: int) -> None:
        if count == N // 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as earlier:
        earlier.setattr("worker.data.betons.SAVE_EVERY_S", 0.0)
        earlier.setattr("worker.data.betons._as_jpeg", _without_markers)
        earlier.setattr("worker.data.betons._ENCODING", 1)
        with pytest.raises(KeyboardInterrupt):
            prepare_beton(dataset, "val", pieces, options=FULL, progress=interrupted)
    seen: list[int] = []
    prepare_beton(dataset, "val", pieces, options=FULL, progress=seen.append)
    assert seen == list(range(1, N + 1))
    finished = [study.beton(dataset.key, "val") for study in (whole, pieces)]
    assert finished[0].read_bytes() == finished[1].read_bytes()
    with monkeypatch.context() as later:
        later.setattr("worker.data.betons._as_jpeg", _without_markers)
        later.setattr("worker.data.betons._ENCODING", 3)
        prepare_beton(dataset, "val", pieces, options=FULL, progress=seen.append)
    assert len(seen) == N


@pytest.mark.parametrize("width", [1, 2, 31, 32, 33, 64, 95, 224, 225])
def test_a_mirrored_image(width: int) -> None:
    image = np.random.default_rng(width).integers(0, 256, (3, width, 3), dtype=np.uint8)
    expected = image[:, ::-1].copy()
    _mirror(image)
    assert np.array_equal(image, expected)


def test_threads_of_torch_are_left_alone(dataset: DatasetRecord, paths: StudyPaths) -> None:
    torch.set_num_threads(2)
    try:
        prepare_beton(dataset, "val", paths, options=FULL)
        _by_sample(dataset, paths, ViewRecipe(), loader="ffcv", workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_missing_or_torn_beton_is_named(dataset: DatasetRecord, paths: StudyPaths) -> None:
    from worker.logits.forward import cached_logits

    spec = LogitsSpec(
        dataset=dataset.key, model="tiny", split="val", view=0, augment="flip", crop_pct=0.9, loader="ffcv"
    )
    context = job_context(paths, dataset, tiny_model())
    with pytest.raises(DataError, match="run `kt-study data prepare`"):
        cached_logits(spec, context)
    prepare_beton(dataset, "val", paths)
    beton = paths.beton(dataset.key, "val")
    os.truncate(beton, 5000)
    with pytest.raises(DataError, match="cut short"):
        cached_logits(spec, context)
    prepare_beton(dataset, "val", paths)
    assert cached_logits(spec, context).manifest.spec["loader"] == "ffcv"


def test_a_failing_pass_ends_with_an_error(
    dataset: DatasetRecord, paths: StudyPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ffcv.loader.epoch_iterator import EpochIterator

    prepare_beton(dataset, "val", paths, options=FULL)
    views = training_views(dataset, "val", tiny_model(), ViewRecipe(), paths, device=CPU, loader="ffcv", workers=1)

    def broken(*_: object) -> None:
        raise RuntimeError("decoder broke")

    monkeypatch.setattr(EpochIterator, "run_pipeline", broken)
    with pytest.raises(EnvironmentUnusable, match="ffcv stopped after 0 of 60 images: decoder broke"):
        list(views.batches(np.arange(N), 16, view=0))


class _Indexed:
    """A split as ffcv's writer wants it."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return self._split.n

    def __getitem__(self, i: int) -> tuple[Image.Image, int, int]:
        return self._split.image(i), 0, i


def _without_markers(pixels: np.ndarray, quality: int) -> np.ndarray:
    """As ffcv encodes, and as this project did before."""
    from ffcv.fields.rgb_image import encode_jpeg

    return encode_jpeg(pixels, quality)


def _read_by_ffcv(beton: str) -> np.ndarray:
    """Centre crops of a beton by ffcv's own loader and decoder."""
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    pipelines: dict[str, Any] = {"image": [CenterCropRGBImageDecoder((32, 32), 0.9), ToTensor()]}
    pipelines |= {"label": None, "index": None}
    loader = Loader(
        beton, batch_size=N, num_workers=1, os_cache=True, order=OrderOption.SEQUENTIAL, pipelines=pipelines
    )
    return np.concatenate([images.numpy().copy() for (images,) in loader])
