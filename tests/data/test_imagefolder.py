"""kind = "imagefolder": what is found, how it is numbered, and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from kt_study.datasets import open_split, prepare
from kt_study.errors import DataError
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection
from tests.data.support import folder_dataset, image_folder, write_image

FIVE = {"ant": 3, "bee": 4, "cat": 2, "dog": 5, "elk": 1}


def _prepared(paths: StudyPaths, folder: Path, **section: object) -> DatasetRecord:
    return prepare(DatasetSection(kind="imagefolder", **section), seed=3, folder=folder, paths=paths)  # type: ignore[arg-type]


def test_lists_what_torchvision_lists(tmp_path: Path, paths: StudyPaths) -> None:
    from torchvision.datasets import ImageFolder

    root = image_folder(tmp_path / "val", FIVE)
    write_image(root / "dog" / "deeper" / "more.JPEG", seed=9)
    (root / "dog" / "notes.txt").write_text("no image")
    split = open_split(folder_dataset(root, paths), "val", paths)
    expected = ImageFolder(str(root))
    ours = {str(root / split.name(i)): int(label) for i, label in enumerate(split.labels)}
    assert ours == dict(expected.samples)
    assert split.class_names == expected.classes
    assert split.n == 16


def test_image_is_what_pillow_reads(tmp_path: Path, paths: StudyPaths) -> None:
    root = image_folder(tmp_path / "val", {"grey": 1, "rgb": 1})
    Image.open(root / "grey" / "000.png").convert("L").save(root / "grey" / "000.png")
    split = open_split(folder_dataset(root, paths), "val", paths)
    for i in range(split.n):
        assert split.image(i).mode == "RGB"
        assert np.array_equal(split.image(i), np.asarray(Image.open(split.file(i)).convert("RGB")))


def test_preparing_twice_gives_the_same_record(tmp_path: Path, paths: StudyPaths) -> None:
    root = image_folder(tmp_path / "val", FIVE)
    first = folder_dataset(root, paths)
    stamp = paths.dataset_index(first.key).stat().st_mtime_ns
    assert folder_dataset(root, paths) == first
    assert paths.dataset_index(first.key).stat().st_mtime_ns == stamp


def test_key_says_what_is_in_it_and_not_where(tmp_path: Path, paths: StudyPaths) -> None:
    root = image_folder(tmp_path / "val", FIVE)
    first = folder_dataset(root, paths)
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    assert folder_dataset(moved, paths).key == first.key
    with (moved / "ant" / "000.png").open("ab") as stream:
        stream.write(b"\0")
    assert folder_dataset(moved, paths).key != first.key


def test_relative_folders_start_at_the_study_file(tmp_path: Path, paths: StudyPaths) -> None:
    image_folder(tmp_path / "images" / "val", FIVE)
    record = _prepared(paths, tmp_path, val="images/val", name="pets")
    assert record.location["val"] == str(tmp_path / "images" / "val")
    assert (record.name, record.n_classes, record.splits) == ("pets", 5, {"val": 15})


def test_imagenet_folders_get_imagenets_own_indices(tmp_path: Path, paths: StudyPaths) -> None:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    wanted = [7, 281, 999]
    root = image_folder(tmp_path / "val", {info.index_to_label_name(i): 2 for i in wanted})
    record = folder_dataset(root, paths)
    split = open_split(record, "val", paths)
    assert sorted(set(split.labels.tolist())) == wanted
    assert all(info.label_name_to_description(split.class_names[label]) for label in split.labels)
    assert (record.class_index, record.n_classes) == ("imagenet", 1000)
    by_name = _prepared(paths, tmp_path, val=str(root), classes="sorted")
    assert (by_name.class_index, by_name.n_classes) == ("sorted", 3)


@pytest.mark.parametrize(
    ("folders", "classes", "told"),
    [
        (["n01440764", "n99999999"], "auto", "'n99999999' is not a class of ImageNet-1k"),
        (["n01440764", "tench"], "auto", "'tench' is not a class of ImageNet-1k"),
        (["cat", "dog"], "imagenet", "'cat' is not a class of ImageNet-1k"),
    ],
)
def test_names_that_are_no_synsets_are_refused(
    tmp_path: Path, paths: StudyPaths, folders: list[str], classes: str, told: str
) -> None:
    root = image_folder(tmp_path / "val", dict.fromkeys(folders, 1))
    with pytest.raises(DataError, match=told):
        _prepared(paths, tmp_path, val=str(root), classes=classes)


def test_bad_folders_are_refused_in_one_line(tmp_path: Path, paths: StudyPaths) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    root = image_folder(tmp_path / "val", FIVE)
    (root / "fox").mkdir()
    for folder, told in (("gone", "no such folder"), ("empty", "no class folders"), ("file", "not a folder")):
        with pytest.raises(DataError, match=f"{folder}: .*{told}"):
            _prepared(paths, tmp_path, val=folder)
    with pytest.raises(DataError, match="fox: no images in this class folder"):
        _prepared(paths, tmp_path, val="val")
    with pytest.raises(DataError, match="needs val = FOLDER"):
        _prepared(paths, tmp_path)
    assert not paths.cache.exists(), "nothing half-written"


def test_train_and_val_must_have_the_same_classes(tmp_path: Path, paths: StudyPaths) -> None:
    image_folder(tmp_path / "val", FIVE)
    image_folder(tmp_path / "train", {**FIVE, "yak": 2})
    with pytest.raises(DataError, match="yak: this class is in train but not in val"):
        _prepared(paths, tmp_path, val="val", train="train")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "gone"])
def test_unreadable_images_are_named(tmp_path: Path, paths: StudyPaths, damage: str) -> None:
    root = image_folder(tmp_path / "val", {"ant": 2}, suffix=".jpg")
    split = open_split(folder_dataset(root, paths), "val", paths)
    victim = root / "ant" / "001.jpg"
    content = victim.read_bytes()
    victim.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}.get(damage, b""))
    if damage == "gone":
        victim.unlink()
    assert split.image(0).size
    with pytest.raises(DataError, match=str(victim)) as caught:
        split.image(1)
    assert "\n" not in str(caught.value)


def test_a_lost_or_damaged_index_is_made_again(tmp_path: Path, paths: StudyPaths) -> None:
    record = folder_dataset(image_folder(tmp_path / "val", FIVE), paths)
    index = paths.dataset_index(record.key)
    listing, written = open_split(record, "val", paths).listing, index.read_bytes()
    middle = len(written) // 2
    for damaged in (None, written[:100], written[:middle] + bytes([written[middle] ^ 16]) + written[middle + 1 :]):
        index.unlink()
        if damaged is not None:
            index.write_bytes(damaged)
        assert open_split(record, "val", paths).listing.digest() == listing.digest()
    index.unlink()
    next((tmp_path / "val").rglob("*.*")).unlink()
    with pytest.raises(DataError, match="has changed since it was planned; run `kt-study plan` again"):
        open_split(record, "val", paths)


def test_an_index_of_an_older_plan_that_is_damaged_is_named(tmp_path: Path, paths: StudyPaths) -> None:
    record = msgspec.structs.replace(folder_dataset(image_folder(tmp_path / "val", FIVE), paths), prepared={})
    index = paths.dataset_index(record.key)
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(DataError, match="missing or damaged"):
        open_split(record, "val", paths)
    with pytest.raises(DataError, match="has no split 'train'"):
        open_split(record, "train", paths)


def test_scanning_imports_neither_torch_nor_timm_nor_sklearn(tmp_path: Path) -> None:
    import subprocess
    import sys

    image_folder(tmp_path / "val", {"n01440764": 1})
    code = f"""
import sys
from pathlib import Path
from kt_study.datasets import open_split, prepare
from kt_study.paths import StudyPaths
from kt_study.study import DatasetSection
paths = StudyPaths(root=Path({str(tmp_path)!r}))
for section in (DatasetSection(kind="digits"), DatasetSection(kind="imagefolder", val="val")):
    open_split(prepare(section, seed=0, folder=paths.root, paths=paths), "val", paths).image(0)
print([name for name in ("torch", "timm", "sklearn", "pandas", "scipy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert importlib.util.find_spec("timm")
