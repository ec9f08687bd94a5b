"""Which files of a folder are samples; what the others are said to be; that listings of before stay what they were."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kt_study.datasets import Contents, open_split, prepare
from kt_study.errors import DataError
from kt_study.paths import StudyPaths
from kt_study.study import DatasetSection
from tests.cli import succeeds
from tests.data.support import image_folder, write_image


def encoded(format: str) -> bytes:
    pixels = np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


SAMPLES = {
    "a.jfif": "JPEG",
    "b.jpe": "JPEG",
    "c.avif": "AVIF",
    "d.JPG_large": "JPEG",
    "e.jpeg?width=200": "JPEG",
    "f": "PNG",
    "g.jp2": "JPEG2000",
    "h.MPO": "MPO",
    "i.qoi": "QOI",
    "j.gif_": "GIF",
    "k.PNG": "PNG",
    "deep/l.Tiff": "TIFF",
    "m_original": "WEBP",  # of no other file
}
LEFT_OUT = {
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg": "folders and thumbnails of other programs",
    "deep/@eaDir/SYNOPHOTO_THUMB_M.jpg": "folders and thumbnails of other programs",
    "__MACOSX/a.jpg": "folders and thumbnails of other programs",
    "SYNOPHOTO_THUMB_S.jpg": "folders and thumbnails of other programs",
    "lost+found/a.png": "folders and thumbnails of other programs",
    "._a.jpg": "hidden (the name begins with a dot)",
    ".thumbnails/a.jpg": "hidden (the name begins with a dot)",
    "k.PNG_original": "unfinished downloads and backup copies",
    "n.jpg.part": "unfinished downloads and backup copies",
    "o.jpg~": "unfinished downloads and backup copies",
    "p.dng": "raw files of cameras, of which Pillow would read the preview",
    "q.txt": "not images by their suffix",
    "Thumbs.db": "not images by their suffix",
    "r.heic": "not images that Pillow can read",
    "s": "not images that Pillow can read",
}


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """Two classes, of which `ant` has every kind of file."""
    root = image_folder(tmp_path / "val", {"ant": 1, "bee": 2})
    for name, format in SAMPLES.items():
        write(root / "ant" / name, encoded(format))
    for name in LEFT_OUT:
        write(root / "ant" / name, b"\0\0\0\x18ftypheic" if name in ("r.heic", "s") else encoded("JPEG"))
    for name in ("@eaDir/a.png", "#recycle/a.png", ".trash/a.png", "loose.png", "list.csv"):
        write(root / name, encoded("PNG"))
    return root


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_what_pillow_reads_is_listed_and_what_is_no_data_is_not(crowded: Path, paths: StudyPaths) -> None:
    found: list[Contents] = []
    section = DatasetSection(kind="imagefolder", val=str(crowded))
    record = prepare(section, seed=0, folder=crowded, paths=paths, contents=found.append)
    split = open_split(record, "val", paths)
    assert split.class_names == ["ant", "bee"]
    names = [split.name(i) for i in range(split.n)]
    assert sorted(names) == sorted([f"ant/{name}" for name in SAMPLES] + ["ant/000.png", "bee/000.png", "bee/001.png"])
    assert all(split.image(i).mode == "RGB" for i in range(split.n))

    (contents,) = found[0].splits
    assert (contents.images, contents.classes, contents.fewest, contents.most) == (16, 2, 2, 14)
    counts = {skipped.why: skipped.count for skipped in contents.left_out}
    assert counts == {
        "folders and thumbnails of other programs": 5 + 2,
        "hidden (the name begins with a dot)": 2 + 1,
        "unfinished downloads and backup copies": 3,
        "raw files of cameras, of which Pillow would read the preview": 1,
        "not images by their suffix": 2 + 1,
        "not images that Pillow can read": 2,
        "images outside of the class folders": 1,
    }
    firsts = {skipped.first for skipped in contents.left_out}
    assert {
        "loose.png",
        "#recycle/",
        ".trash/",
        "ant/k.PNG_original",
        "ant/p.dng",
        "ant/r.heic",
        "ant/Thumbs.db",
    } == firsts


@pytest.mark.usefixtures("crowded")
def test_plan_says_what_each_split_has_and_what_was_left_out(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"ant": 3, "bee": 3})
    models = "".join(
        f'[[model]]\nname = "{seed}"\ntimm = "test_{name}"\nrandom_weights = true\ninput_size = [3, 32, 32]\n'
        for seed, name in enumerate(("resnet", "convnext"))
    )
    (tmp_path / "study.toml").write_text(
        f'[study]\nname = "x"\n[dataset]\nkind = "imagefolder"\nname = "bugs"\ntrain = "train"\nval = "val"\n{models}'
    )
    lines = succeeds(tmp_path, "plan", "--dry-run").splitlines()
    assert "  train of bugs: 6 images, 2 classes of 3" in lines
    at = lines.index("  val of bugs: 16 images, 2 classes of 2 to 14")
    assert "    left out: 1 images outside of the class folders, first loose.png" in lines[at + 1 :]
    train, val = json.loads(succeeds(tmp_path, "plan", "--dry-run", "--json"))["data"]
    assert train == {
        "dataset": "bugs", "split": "train", "images": 6, "classes": 2, "fewest": 3, "most": 3, "left_out": []
    }  # fmt: skip
    unread = {"why": "not images that Pillow can read", "count": 2, "first": "ant/r.heic"}
    assert val["images"] == 16 and unread in val["left_out"]


def test_a_class_of_other_files_says_what_it_has(tmp_path: Path, paths: StudyPaths) -> None:
    write(tmp_path / "val" / "ant" / "a.heic", b"\0\0\0\x18ftypheic")
    with pytest.raises(
        DataError, match=r"ant: no images in this class folder \(1 not images that Pillow can read, first a.h"
    ):
        prepare(DatasetSection(kind="imagefolder", val="val"), seed=0, folder=tmp_path, paths=paths)


def test_a_data_set_of_plain_images_keeps_its_key(tmp_path: Path, paths: StudyPaths) -> None:
    """The key as it was before other suffixes were read: files are listed by name and size, unopened."""
    for split, count in (("train", 3), ("val", 2)):
        for name in ("ant", "bee"):
            for i in range(count):
                folder = tmp_path / split / name / ("deep" if i == 1 else "")
                write(folder / f"{i}.{'JPG' if i else 'png'}", bytes(10 * i + 3))
        write(tmp_path / split / "ant" / "notes.txt", b"x")
        write(tmp_path / split / "ant" / ".hidden.png", b"x")
    section = DatasetSection(kind="imagefolder", train="train", val="val", train_per_class=2)
    record = prepare(section, seed=3, folder=tmp_path, paths=paths)
    assert (record.key, record.splits) == ("2adb777681149a9add2cc9e58e465758", {"train": 4, "val": 4})


def test_images_without_labels_are_listed_alike(crowded: Path, paths: StudyPaths) -> None:
    found: list[Contents] = []
    section = DatasetSection(kind="imagefolder", val=str(crowded), labels=False)
    record = prepare(section, seed=0, folder=crowded, paths=paths, contents=found.append)
    assert record.splits == {"val": 17}  # and loose.png
    assert (found[0].splits[0].classes, found[0].splits[0].fewest) == (0, 0)


def test_pillow_is_not_asked_about_images_by_name(
    tmp_path: Path, paths: StudyPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan of a million images opens none."""
    write_image(tmp_path / "val" / "ant" / "a.png", 1)
    write_image(tmp_path / "val" / "ant" / "b.JPEG", 1)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    record = prepare(DatasetSection(kind="imagefolder", val="val"), seed=0, folder=tmp_path, paths=paths)
    assert record.splits == {"val": 2}
