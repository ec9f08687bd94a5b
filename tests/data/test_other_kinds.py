"""The data sets with a layout of their own, on small folders of the same layout."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat

from kt_study.datasets import open_split, prepare
from kt_study.errors import DataError
from kt_study.paths import StudyPaths
from kt_study.study import DatasetSection
from tests.data.support import digits, image_folder, write_image


def _section(kind: str, root: Path, **more: str) -> DatasetSection:
    return DatasetSection(kind=kind, path=str(root), **more)  # type: ignore[arg-type]


def test_digits_are_scikit_learns(paths: StudyPaths) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    record, theirs = digits(paths), load_digits()
    splits = {name: open_split(record, name, paths) for name in ("zoo", "train", "val")}
    numbers = {name: [int(split.name(i).split("-")[1]) for i in range(split.n)] for name, split in splits.items()}
    assert sorted(number for part in numbers.values() for number in part) == list(range(1797))
    for name, share in (("zoo", 0.30), ("train", 0.28), ("val", 0.42)):
        split = splits[name]
        assert split.labels.tolist() == theirs.target[numbers[name]].tolist()
        assert abs(split.n / 1797 - share) < 0.005
        grey = Image.fromarray((theirs.images[numbers[name][0]] * 255 // 16).astype(np.uint8))
        assert np.array_equal(np.asarray(split.image(0))[..., 1], grey.resize((32, 32), Image.Resampling.BICUBIC))


def _idx(values: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def _mnist(root: Path, zipped: bool) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    rng, made = np.random.default_rng(0), {}
    root.mkdir()
    for prefix, n in (("train", 30), ("t10k", 12)):
        images = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        made[prefix] = images, labels
        for values, name in ((images, "images-idx3"), (labels, "labels-idx1")):
            content = gzip.compress(_idx(values)) if zipped else _idx(values)
            (root / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}").write_bytes(content)
    return made


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(tmp_path: Path, paths: StudyPaths, zipped: bool) -> None:
    made = _mnist(tmp_path / "mnist", zipped)
    record = prepare(_section("idx", tmp_path / "mnist"), seed=0, folder=tmp_path, paths=paths)
    for split_name, prefix in (("train", "train"), ("val", "t10k")):
        split = open_split(record, split_name, paths)
        assert split.labels.tolist() == made[prefix][1].tolist()
        for i in range(split.n):
            assert np.array_equal(np.asarray(split.image(i))[..., 0], made[prefix][0][i])
    assert record.n_classes == 10


def test_idx_subset_shows_the_right_images(tmp_path: Path, paths: StudyPaths) -> None:
    made = _mnist(tmp_path / "mnist", zipped=False)
    section = _section("idx", tmp_path / "mnist", train_per_class=1)  # type: ignore[arg-type]
    split = open_split(prepare(section, seed=4, folder=tmp_path, paths=paths), "train", paths)
    assert sorted(split.labels.tolist()) == list(range(10))
    for i in range(split.n):
        assert np.array_equal(np.asarray(split.image(i))[..., 2], made["train"][0][int(split.name(i))])


def test_bad_idx_files(tmp_path: Path, paths: StudyPaths) -> None:
    root = tmp_path / "mnist"
    _mnist(root, zipped=False)
    images = root / "train-images-idx3-ubyte"
    content = images.read_bytes()

    def refused(told: str) -> None:
        with pytest.raises(DataError, match=told):
            prepare(_section("idx", root), seed=0, folder=tmp_path, paths=paths)

    images.write_bytes(content[:-1])
    refused("cut short")
    images.write_bytes(b"PNG" + content[3:])
    refused("not an IDX file")
    images.write_bytes(_idx(np.zeros((29, 28, 28), np.uint8)))
    refused("29 images but 30 labels")
    for name, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
        for prefix in ("train", "t10k"):
            (root / f"{prefix}-{name}-ubyte").write_bytes(_idx(np.zeros((0, 28, 28)[:dimensions], np.uint8)))
    refused("no samples in train")
    images.rename(root / "train-images-idx3-ubyte.gz")
    refused("unreadable IDX file")
    (root / "train-images-idx3-ubyte.gz").unlink()
    refused("no such file")


def _cub(root: Path) -> Path:
    rows = [("001.Albatross/A_1.jpg", 1, 1), ("001.Albatross/A_2.jpg", 1, 0), ("002.Auklet/B 3.jpg", 2, 1),
            ("002.Auklet/B_4.jpg", 2, 0)]  # fmt: skip
    for number, (name, _, _) in enumerate(rows):
        write_image(root / "images" / name, number)
    lists = {
        "classes.txt": ["1 001.Albatross", "2 002.Auklet"],
        "images.txt": [f"{i} {name}" for i, (name, _, _) in enumerate(rows, 1)],
        "image_class_labels.txt": [f"{i} {label}" for i, (_, label, _) in enumerate(rows, 1)],
        "train_test_split.txt": [f"{i} {train}" for i, (_, _, train) in enumerate(rows, 1)],
    }
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def _cars(root: Path) -> Path:
    annotation = np.dtype([("bbox_x1", object), ("class", object), ("fname", object)])
    for folder, name, labels in (
        ("cars_train", "cars_train_annos", [2, 1, 3]),
        ("cars_test", "cars_test_annos_withlabels", [3, 2]),
    ):
        rows = np.zeros((1, len(labels)), annotation)
        for i, label in enumerate(labels):
            rows[0, i] = (np.array([[1]]), np.array([[label]]), np.array([f"{i + 1:05d}.jpg"]))
            write_image(root / folder / f"{i + 1:05d}.jpg", label)
        (root / "devkit").mkdir(exist_ok=True)
        savemat(root / ("devkit" if folder == "cars_train" else ".") / f"{name}.mat", {"annotations": rows})
    names = np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"]], dtype=object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    return root


def _domainnet(root: Path) -> Path:
    for domain in ("infograph", "real"):
        for part, labels in (("train", [0, 1, 1]), ("test", [1, 0])):
            names = [f"{domain}/{('bee', 'cat')[label]}/{domain}_{part}_{i}.jpg" for i, label in enumerate(labels)]
            for i, name in enumerate(names):
                write_image(root / name, i)
            lines = [f"{name} {label}\n" for name, label in zip(names, labels, strict=True)]
            (root / f"{domain}_{part}.txt").write_text("".join(lines))
    return root


def test_cub200(tmp_path: Path, paths: StudyPaths) -> None:
    record = prepare(_section("cub200", _cub(tmp_path / "cub")), seed=0, folder=tmp_path, paths=paths)
    train, val = open_split(record, "train", paths), open_split(record, "val", paths)
    assert [train.name(i) for i in range(train.n)] == ["001.Albatross/A_1.jpg", "002.Auklet/B 3.jpg"]
    assert [val.name(i) for i in range(val.n)] == ["001.Albatross/A_2.jpg", "002.Auklet/B_4.jpg"]
    assert train.labels.tolist() == val.labels.tolist() == [0, 1]
    assert train.class_names == ["001.Albatross", "002.Auklet"]
    assert train.image(1).size == (40, 30)


def test_stanford_cars(tmp_path: Path, paths: StudyPaths) -> None:
    record = prepare(_section("stanford_cars", _cars(tmp_path / "cars")), seed=0, folder=tmp_path, paths=paths)
    train, val = open_split(record, "train", paths), open_split(record, "val", paths)
    assert train.labels.tolist() == [1, 0, 2]
    assert val.labels.tolist() == [2, 1]
    assert train.class_names[1] == "Acura RL Sedan 2012"
    assert train.file(0) == tmp_path / "cars" / "cars_train" / "00001.jpg"
    assert val.image(0).size == (40, 30)


def test_domainnet(tmp_path: Path, paths: StudyPaths) -> None:
    root = _domainnet(tmp_path / "domainnet")
    record = prepare(_section("domainnet", root), seed=0, folder=tmp_path, paths=paths)
    train = open_split(record, "train", paths)
    assert {train.name(i).split("/")[0] for i in range(train.n)} == {"infograph"}
    assert (train.labels.tolist(), train.class_names, record.splits["val"]) == ([0, 1, 1], ["bee", "cat"], 2)
    shifted = prepare(_section("domainnet", root, val="real"), seed=0, folder=tmp_path, paths=paths)
    val = open_split(shifted, "val", paths)
    assert {val.name(i).split("/")[0] for i in range(val.n)} == {"real"}
    with pytest.raises(DataError, match="'photos' is no domain"):
        prepare(_section("domainnet", root, train="photos"), seed=0, folder=tmp_path, paths=paths)


def test_caltech256(tmp_path: Path, paths: StudyPaths) -> None:
    image_folder(tmp_path / "c" / "256_ObjectCategories", {"001.ak47": 10, "002.flag": 5, "257.clutter": 20}, ".jpg")
    record = prepare(_section("caltech256", tmp_path / "c"), seed=0, folder=tmp_path, paths=paths)
    train, val = open_split(record, "train", paths), open_split(record, "val", paths)
    assert train.class_names == ["ak47", "flag", "clutter"]
    assert np.bincount(train.labels).tolist() == [8, 4, 16]
    assert np.bincount(val.labels).tolist() == [2, 1, 4]
    other_seed = prepare(_section("caltech256", tmp_path / "c"), seed=1, folder=tmp_path, paths=paths)
    assert other_seed.key == record.key, "the split belongs to the data set, not to the study"


@pytest.mark.parametrize(
    ("kind", "build", "lost"),
    [
        ("cub200", _cub, "train_test_split.txt"),
        ("cub200", _cub, "images/001.Albatross/A_2.jpg"),
        ("stanford_cars", _cars, "cars_test_annos_withlabels.mat"),
        ("stanford_cars", _cars, "cars_train/00002.jpg"),
        ("domainnet", _domainnet, "infograph_test.txt"),
        ("domainnet", _domainnet, "infograph/bee/infograph_train_0.jpg"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, paths: StudyPaths, kind: str, build: Callable[[Path], Path], lost: str
) -> None:
    root = build(tmp_path / "data")
    (root / lost).unlink()
    with pytest.raises(DataError, match=Path(lost).name) as caught:
        prepare(_section(kind, root), seed=0, folder=tmp_path, paths=paths)
    assert "\n" not in str(caught.value)


def test_unknown_kind(paths: StudyPaths) -> None:
    with pytest.raises(DataError, match=r"kind = 'imagnet': no such kind.* \(there are imagefolder, digits"):
        prepare(DatasetSection(kind="imagnet"), seed=0, folder=paths.root, paths=paths)
