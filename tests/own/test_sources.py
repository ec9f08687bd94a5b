"""kind = "timm": samples, labels and order are those of timm's own `create_dataset`."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kt_study.datasets import Contents, Split, open_split, prepare
from kt_study.datasets.timm_shards import _expanded
from kt_study.errors import DataError
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection
from tests.own.sources import image, write_fashion, write_parquet, write_shards


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No network, and no cache of this machine's user."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    yield


def prepared(folder: Path, contents: Callable[[Contents], None] = lambda _: None, **section: Any) -> DatasetRecord:
    paths = StudyPaths(root=folder / "study")
    return prepare(DatasetSection(kind="timm", **section), seed=0, folder=folder, paths=paths, contents=contents)


def opened(folder: Path, record: DatasetRecord, split: str) -> Split:
    return open_split(record, split, StudyPaths(root=folder / "study"))


def pixels(image: Any) -> Any:
    return np.asarray(image).tolist()


def assert_like_timm(split: Split, timms: list[tuple[Any, int]]) -> None:
    """The same images and labels in the same order; also in another order, and in another process."""
    assert split.labels is not None
    assert split.labels.tolist() == [label for _, label in timms]
    sent = pickle.loads(pickle.dumps(split))
    for i in reversed(range(split.n)):
        assert pixels(sent.image(i)) == pixels(timms[i][0].convert("RGB"))


def test_parquet_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    from timm.data import create_dataset

    write_parquet(tmp_path / "pets", train=5, val=4)
    record = prepared(tmp_path, source="hfds/pets", train="train", val="validation")
    for split, timms in (("train", "train"), ("val", "validation")):
        truth = create_dataset(f"hfds/{tmp_path / 'pets'}", split=timms)
        assert_like_timm(opened(tmp_path, record, split), [truth[i] for i in range(len(truth))])
    assert opened(tmp_path, record, "val").class_names == ["cat", "dog"]
    assert record.splits == {"train": 5, "val": 4}


def test_the_key_is_what_is_in_it_and_not_where_it_lies(tmp_path: Path) -> None:
    for name, train in (("a", 5), ("b", 5), ("c", 6)):
        write_parquet(tmp_path / name, train=train, val=4)
    keys = [prepared(tmp_path, source=f"hfds/{name}", train="train", val="validation").key for name in "abc"]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("stored", [None, {"bytes": b"", "path": None}], ids=str)
def test_a_row_without_an_image_is_refused(tmp_path: Path, stored: Any) -> None:
    write_parquet(tmp_path / "pets", train=5, val=4, instead={1: stored, 3: stored})
    with pytest.raises(DataError, match=r"sample 1 of train is empty \(0 bytes\), 2 such in all"):
        prepared(tmp_path, source="hfds/pets", train="train", val="validation")


def test_an_image_may_be_a_file_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image(9))
    write_parquet(tmp_path / "pets", train=3, val=3, instead={1: {"bytes": None, "path": str(tmp_path / "a.png")}})
    record = prepared(tmp_path, source="hfds/pets", train="train", val="validation")
    assert pixels(opened(tmp_path, record, "val").image(1)) == pixels(_decoded(image(9)))


def test_a_shard_with_an_empty_image_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", shards=1, samples=4, empty=[2])
    with pytest.raises(DataError, match=r"part/00002\.png of val is empty \(0 bytes\), 1 such in all"):
        prepared(tmp_path, source="wds/", path="shards", val="train")


@pytest.mark.parametrize("content", [b"junk", b"[]", b'{"splits": []}', b'{"splits": {"train": {}}}'])
def test_a_list_of_splits_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    write_shards(tmp_path / "shards", shards=1, samples=1)
    (tmp_path / "shards" / "_info.json").write_bytes(content)
    with pytest.raises(DataError, match=r"_info\.json: (not timm's list of splits|no split 'train')"):
        prepared(tmp_path, source="wds/", path="shards", val="train")


def test_a_list_of_splits_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", shards=1, samples=2)
    info = tmp_path / "shards" / "_info.json"
    info.write_bytes(b"\xef\xbb\xbf" + info.read_bytes())
    assert prepared(tmp_path, source="wds/", path="shards", val="train").splits == {"val": 2}


def test_shards_may_hold_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as archive:
        for suffix, content in (("png", image(1)), ("cls", b"1")):
            member = tarfile.TarInfo(f"caf\udce9.{suffix}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    record = prepared(tmp_path, source="wds/", path="shards", val="a.tar")
    assert pixels(opened(tmp_path, record, "val").image(0)) == pixels(_decoded(image(1)))


@pytest.mark.parametrize("name", ["exp#1", "50%20off", "exp[1]", "what?"])
def test_a_table_is_the_one_in_its_own_folder(tmp_path: Path, name: str) -> None:
    """Not those beside it that the name fits as a pattern."""
    for folder, val in ((name, 2), ("exp1", 3), ("whatX", 4)):
        write_parquet(tmp_path / folder, train=1, val=val)
    if name in ("exp#1", "50%20off"):
        assert prepared(tmp_path, source=f"hfds/{name}", val="validation").splits == {"val": 2}
        return
    with pytest.raises(DataError, match=r"takes \*, \? and \[\] in a path for a pattern; rename the folder"):
        prepared(tmp_path, source=f"hfds/{name}", val="validation")
    shutil.rmtree(tmp_path / "whatX")
    if name == "what?":  # nothing else fits now
        assert prepared(tmp_path, source="hfds/what?", val="validation").splits == {"val": 2}


def test_a_table_without_labels_says_so_or_does_without(tmp_path: Path) -> None:
    write_parquet(tmp_path / "bare", train=3, val=3, labels=False)
    with pytest.raises(DataError, match=r"no column 'label' .* say labels = false"):
        prepared(tmp_path, source="hfds/bare", train="train", val="validation")
    record = prepared(tmp_path, source="hfds/bare", train="train", val="validation", labels=False)
    split = opened(tmp_path, record, "train")
    assert split.labels is None and not record.has_labels("train") and record.n_classes == 0
    assert pixels(split.image(2)) == pixels(_decoded(image(2)))


@pytest.mark.parametrize("split", ["train", "train-{0000..0002}.tar", "train-*.tar"])
def test_shards_are_read_as_timm_reads_them(tmp_path: Path, split: str) -> None:
    from timm.data import create_dataset

    write_shards(tmp_path / "shards", shards=3, samples=4)
    record = prepared(tmp_path, source="wds/", path="shards", val=split)
    truth = create_dataset("wds/", root=str(tmp_path / "shards"), split="train", is_training=False)
    found = opened(tmp_path, record, "val")
    assert found.n == 12
    assert_like_timm(found, list(truth))


def test_labels_may_stand_in_the_json(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", shards=1, samples=5)
    record = prepared(tmp_path, source="wds/", path="shards", val="train", arguments={"target_key": "kind"})
    labels = opened(tmp_path, record, "val").labels
    assert labels is not None and labels.tolist() == [0, 1, 0, 1, 0]


def test_torchvisions_sets_are_read_as_timm_reads_them(tmp_path: Path) -> None:
    from timm.data import create_dataset

    write_fashion(tmp_path / "vision", train=7, val=5)
    record = prepared(tmp_path, source="torch/fashion_mnist", path="vision", train="train", val="validation")
    for split, timms in (("train", "train"), ("val", "validation")):
        truth = create_dataset("torch/fashion_mnist", root=str(tmp_path / "vision"), split=timms)
        assert_like_timm(opened(tmp_path, record, split), [truth[i] for i in range(len(truth))])
    assert opened(tmp_path, record, "val").class_names[0] == "T-shirt/top"


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"source": "tfds/mnist", "val": "test"}, "can only be streamed"),
        ({"source": "pets", "val": "test"}, "none of hfds/NAME, wds/, torch/NAME"),
        ({"source": "hfds/pets"}, "needs val"),
        ({"source": "hfds/nobody/nothing", "val": "test"}, "cannot be opened .* where there is a network"),
        ({"source": "torch/cifar10", "path": "empty", "val": "test"}, "lay its files into"),
        ({"source": "wds/", "val": "train"}, "path must be the folder"),
        ({"source": "wds/", "path": "empty", "val": "train"}, "no _info.json"),
        ({"source": "wds/", "path": "shards", "val": "test"}, "no split 'test'; it has train"),
        ({"source": "wds/", "path": "shards", "val": "train-{0000..0009}.tar"}, "train-0002.tar: no such shard"),
        ({"source": "wds/", "path": "shards", "val": "train", "arguments": {"input_key": "jpg"}}, "has no jpg but png"),
        ({"source": "wds/", "path": "shards", "val": "train", "arguments": {"target_key": "x"}}, "json with 'x'"),
        ({"source": "wds/", "path": "torn", "val": "torn.tar"}, "not a readable tar"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, section: dict[str, Any], line: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "torn.tar").write_bytes(b"no tar" * 500)
    write_shards(tmp_path / "shards", shards=2, samples=2)
    with pytest.raises(DataError, match=line) as refusal:
        prepared(tmp_path, **section)
    assert "\n" not in str(refusal.value)


def archive(members: Sequence[tuple[str, bytes | tuple[bytes, str]]]) -> bytes:
    """A tar file of these members, closed as tarfile does. A pair in place of the content is a link: type and target."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as written:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
                written.addfile(member)
            else:
                member.size = len(content)
                written.addfile(member, io.BytesIO(content))
    return stream.getvalue()


SIX = [part for i in range(6) for part in ((f"{i}.png", image(i)), (f"{i}.cls", b"%d" % i))]
WHOLE = archive(SIX)
BLOCKS = [512 * (1 + -(-len(content) // 512)) for _, content in SIX]
"""Bytes of each member: a header of one block, and the content in whole blocks."""
END, FOUR_SAMPLES = sum(BLOCKS), sum(BLOCKS[:8])


@pytest.mark.parametrize(
    ("shard", "line"),
    [
        (WHOLE[:END], r"cut off or not closed, it has no end after 12,288 bytes; fetch or write it again"),
        (WHOLE[: END + 512], "cut off or not closed"),
        (WHOLE[:FOUR_SAMPLES], "cut off or not closed, it has no end after 8,192 bytes"),
        (WHOLE[: FOUR_SAMPLES + 100], "cut off or not closed"),
        (WHOLE[: FOUR_SAMPLES + 600], "not a readable tar file .*unexpected end of data"),
        (WHOLE[:FOUR_SAMPLES] + b"\xff" * 512 + WHOLE[FOUR_SAMPLES + 512 :], "cut off or not closed"),
        (WHOLE + WHOLE, "another archive, or something else, follows the end after 12,288 bytes"),
        (archive([*SIX[:3], *SIX[4:]]), r"sample '1' has no class in a member cls"),
        (archive([*SIX[:2], *SIX[3:]]), r"sample '1' has no jpg, png, webp but cls"),
        (archive(SIX[0::2] + SIX[1::2]), r"members of sample '0' are not next to one another, .* tar --sort=name"),
        (archive([*SIX[:2], *SIX]), r"sample '0' has a member twice"),
        (archive([*SIX, *SIX[:2]]), r"members of sample '0' are not next to one another, or are in it twice"),
        (archive([*SIX[:1], ("0.PNG", image(9)), *SIX[1:]]), r"sample '0' has a member twice"),
        (archive([*SIX, ("6.png", (tarfile.SYMTYPE, "0.png"))]), r"'6.png' is not a plain file but a link"),
        (archive([*SIX, ("6.png", (tarfile.LNKTYPE, "0.png"))]), r"'6.png' is not a plain file but a link"),
    ],
    ids=[
        "not closed",
        "one block",
        "cut between members",
        "cut in a header",
        "cut in a member",
        "damaged header",
        "two archives",
        "no class",
        "no image",
        "unsorted",
        "twice in a row",
        "twice",
        "suffix in two cases",
        "symbolic link",
        "hard link",
    ],
)
def test_an_archive_that_would_lose_samples_is_refused(tmp_path: Path, shard: bytes, line: str) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(shard)
    with pytest.raises(DataError, match=line) as refusal:
        prepared(tmp_path, source="wds/", path="shards", val="a.tar")
    assert "\n" not in str(refusal.value) and f"{tmp_path / 'shards' / 'a.tar'}: " in str(refusal.value)


@pytest.mark.parametrize("padding", [1024, 10240, 1 << 21])
def test_a_closed_archive_is_read_whatever_its_padding(tmp_path: Path, padding: int) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(WHOLE[:END] + bytes(padding))
    assert prepared(tmp_path, source="wds/", path="shards", val="a.tar").splits == {"val": 6}


def test_what_other_programs_put_into_a_shard_is_left_out_and_said(tmp_path: Path) -> None:
    theirs = [("._0.png", b"\0\5"), ("part/._1.cls", b"\0"), ("__MACOSX/0.png", b"\0"), ("__notes__/a.json", b"{}")]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(archive([*theirs, *SIX]))
    found: list[Contents] = []
    record = prepared(tmp_path, contents=found.append, source="wds/", path="shards", val="a.tar")
    assert record.splits == {"val": 6}
    counts = {skipped.why: skipped.count for skipped in found[0].splits[0].left_out}
    assert counts == {"hidden (the name begins with a dot)": 2, "folders and thumbnails of other programs": 2}


def test_fewer_samples_than_the_info_file_says_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", shards=2, samples=4)
    info = tmp_path / "shards" / "_info.json"
    info.write_text(info.read_text().replace('"shard_lengths": [4, 4]', '"shard_lengths": [4, 5]'))
    with pytest.raises(DataError, match=r"train-0001\.tar: has 4 samples, and the info file says 5"):
        prepared(tmp_path, source="wds/", path="shards", val="train")


def test_a_damaged_image_names_its_shard(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", shards=1, samples=2)
    record = prepared(tmp_path, source="wds/", path="shards", val="train")
    shard = tmp_path / "shards" / "train-0000.tar"
    with tarfile.open(shard) as archive:
        at = archive.getmember("part/00001.png").offset_data
    content = bytearray(shard.read_bytes())
    content[at : at + 8] = b"garbage!"
    shard.write_bytes(content)
    split = opened(tmp_path, record, "val")
    assert pixels(split.image(0)) == pixels(_decoded(image(0)))
    with pytest.raises(DataError, match=r"train-0000\.tar@\d+\+\d+/part/00001\.png: unreadable"):
        split.image(1)


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 12), st.integers(1, 4))
def test_ranges_in_braces_are_a_shells(first: int, more: int, width: int) -> None:
    last = first + more
    spelled = f"a-{{{first:0{width}d}..{last:0{width}d}}}.tar"
    assert _expanded(spelled) == [f"a-{number:0{width}d}.tar" for number in range(first, last + 1)]


def _decoded(content: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(content)).convert("RGB")
