"""Source `wds/`: webdataset shards on disk, the samples and labels of timm's ReaderWds in its evaluation order.

A shard is a tar file; members whose names agree up to the first dot are one sample. The scan reads only the members' headers
and labels. A sample's name contains the position of its image, so that it can be read without scanning the shard:
`train-0000.tar@1536+2210/000017.jpg` is 2,210 bytes from byte 1,536 on.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.datasets.image_files import FOREIGN, HIDDEN, LeftOut
from kt_study.datasets.kind import Listing
from kt_study.datasets.pixels import read_rgb
from kt_study.datasets.timm_sources import SplitFound, SplitPlace
from kt_study.errors import DataError
from kt_study.files import read_text

if TYPE_CHECKING:
    from PIL import Image


_IMAGE_KEY = "jpg;png;webp"
"""timm's default `input_key`: the suffixes of images, the first that a sample has is taken."""

_NAME = re.compile(r"(?P<shard>.*?)@(?P<offset>\d+)\+(?P<size>\d+)/.*", re.DOTALL)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_FOREIGN_MEMBER = re.compile(r"__[^/]*__($|/)|__MACOSX/")
"""What webdataset leaves out as its own notes, and macOS's."""

_END = 2 * tarfile.BLOCKSIZE
"""Bytes of the two empty blocks that end an archive."""

_ARGUMENTS = {"input_key", "target_key"}

Member = tuple[int, int]
"""Offset and size in bytes of a member's content."""


def scan_split(place: SplitPlace, *, labelled: bool) -> SplitFound:
    """The samples of every shard, in the order of shards and members. Raises DataError."""
    import numpy as np

    if unknown := set(place.arguments) - _ARGUMENTS:
        raise DataError(f"{place}: [dataset] arguments of wds/ are input_key and target_key, not {sorted(unknown)[0]}")
    names: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    left_out = LeftOut()
    for shard, promised in _shards(place).items():
        before = len(names)
        for key, members in _samples(Path(place.root) / shard, left_out):
            suffix, (offset, size) = _image(place, shard, key, members)
            names.append(f"{shard}@{offset}+{size}/{key}.{suffix}")
            sizes.append(size)
            if labelled:
                labels.append(_label(place, shard, key, members))
        if promised is not None and promised != len(names) - before:
            raise DataError(
                f"{Path(place.root) / shard}: has {len(names) - before} samples, and the info file says {promised}; fetch "
                "the shard again or correct the info file"
            )
    if not names:
        raise DataError(f"{place}: no samples in its shards")
    listing = Listing(
        names=names, labels=np.array(labels, np.int32) if labelled else None, sizes=np.array(sizes, np.int64)
    )
    return SplitFound(listing=listing, class_names=[], left_out=left_out)


def split_images(place: SplitPlace, names: Sequence[str]) -> ShardImages:
    """Images by their place in the shards."""
    return ShardImages(root=Path(place.root), names=names)


@dataclass(frozen=True, kw_only=True)
class ShardImages:
    """Images inside of tar files."""

    root: Path
    names: Sequence[str]

    def image(self, i: int) -> Image.Image:
        """Image i, RGB. Raises DataError."""
        found = _NAME.fullmatch(self.names[i])
        assert found is not None, self.names[i]
        place, shard = self.root / self.names[i], self.root / found["shard"]
        try:
            content = _content(shard, (int(found["offset"]), int(found["size"])))
        except OSError as error:
            raise DataError(f"{shard}: cannot be read ({error.strerror}); restore it or plan again") from error
        return read_rgb(io.BytesIO(content), str(place))

    def file(self, i: int) -> None:
        """No image has a file of its own."""


def _shards(place: SplitPlace) -> dict[str, int | None]:
    """A split's shards: by timm's info file, a range in braces, or a glob. With the number of samples, where one is given."""
    root = Path(place.root)
    if not place.root or not root.is_dir():
        raise DataError(f"{place}: [dataset] path must be the folder of the shards")
    pattern = place.split.partition("|")[0]
    if ".tar" not in pattern:
        return _listed_shards(place, root)
    shards = [name for one in _expanded(pattern) for name in ([one] if "*" not in one else _glob(root, one))]
    if missing := [name for name in shards if not (root / name).is_file()]:
        raise DataError(f"{root / missing[0]}: no such shard; correct the split {place.split!r} in [dataset]")
    if not shards:
        raise DataError(f"{place}: no shard fits; write train-{{0000..0015}}.tar, or train-*.tar")
    return dict.fromkeys(shards)


def _listed_shards(place: SplitPlace, root: Path) -> dict[str, int | None]:
    for name in ("_info.json", "info.json"):
        if (root / name).is_file():
            try:
                splits = json.loads(read_text(root / name))["splits"]
                if place.split in splits:
                    names, lengths = splits[place.split]["filenames"], splits[place.split].get("shard_lengths") or ()
                    return dict(itertools.zip_longest(names, lengths[: len(names)]))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{root / name}: not timm's list of splits; name the shards in [dataset]") from error
            raise DataError(f"{root / name}: no split {place.split!r}; it has {', '.join(splits)}")
    raise DataError(f"{place}: no _info.json in {root}; name the shards, as in train-{{0000..0015}}.tar")


def _expanded(pattern: str) -> list[str]:
    """Every range in braces, as a shell expands it."""
    parts = _RANGE.split(pattern)
    choices = [[parts[0]]]
    for first, last, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        choices += [[str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)], [text]]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _glob(root: Path, pattern: str) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))


def _samples(shard: Path, left_out: LeftOut) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key and members by suffix of each sample of a shard, in order. Raises DataError."""
    try:
        with tarfile.open(shard, "r:") as archive:
            members = archive.getmembers()
            _require_end(shard, archive.offset)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{shard}: not a readable tar file without compression ({error}); fetch it again") from error
    files = [member for member in members if _is_of_a_sample(shard, member, left_out)]
    samples = [(key, list(group)) for key, group in itertools.groupby(files, key=lambda member: _key(member.name))]
    if apart := [key for key, count in Counter(key for key, _ in samples).items() if count > 1]:
        raise DataError(
            f"{shard}: the members of sample {apart[0]!r} are not next to one another, or are in it twice; write the shard "
            "again with tar --sort=name"
        )
    for key, group in samples:
        by_suffix = {member.name[len(key) + 1 :].lower(): (member.offset_data, member.size) for member in group}
        if len(by_suffix) < len(group):
            raise DataError(f"{shard}: sample {key!r} has a member twice; write the shard again")
        yield key, by_suffix


def _is_of_a_sample(shard: Path, member: tarfile.TarInfo, left_out: LeftOut) -> bool:
    """Whether webdataset takes a member for part of a sample. Raises DataError for a link, whose sample would be lost."""
    name = Path(member.name).name
    if member.isdir() or "." not in name:
        return False
    why = HIDDEN if name.startswith(".") else FOREIGN if _FOREIGN_MEMBER.match(member.name) else ""
    if why:
        left_out.add(why, f"{shard.name}/{member.name}")
        return False
    if not member.isfile() or member.issparse():
        raise DataError(
            f"{shard}: {member.name!r} is not a plain file but a link or the like; write the shard with the files themselves "
            "(tar --dereference --hard-dereference)"
        )
    return True


def _require_end(shard: Path, at: int) -> None:
    """Refuse an archive that does not end with two empty blocks and nothing else. tarfile takes any other end for one.

    Args:
        at: position behind the last member that tarfile found.
    """
    with shard.open("rb") as stream:
        stream.seek(at)
        end = stream.read(_END)
        if len(end) < _END or any(end):
            raise DataError(
                f"{shard}: cut off or not closed, it has no end after {at:,} bytes; fetch or write it again"
            )
        while rest := stream.read(1 << 20):
            if any(rest):
                raise DataError(
                    f"{shard}: another archive, or something else, follows the end after {at:,} bytes, and no program "
                    "would read it; write one archive of all samples"
                )


def _key(name: str) -> str:
    """The name up to the first dot of its last part."""
    folder, _, last = name.rpartition("/")
    stem = last.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem


def _image(place: SplitPlace, shard: str, key: str, members: dict[str, Member]) -> tuple[str, Member]:
    suffixes = place.arguments.get("input_key", _IMAGE_KEY).split(";")
    for suffix in suffixes:
        if suffix in members:
            return suffix, members[suffix]
    raise DataError(
        f"{Path(place.root) / shard}: sample {key!r} has no {', '.join(suffixes)} but {', '.join(members)}; name the "
        'image by arguments = { input_key = "..." }'
    )


def _label(place: SplitPlace, shard: str, key: str, members: dict[str, Member]) -> int:
    """The class in the member `cls`, or under `target_key` in the member `json`."""
    path, target = Path(place.root) / shard, place.arguments.get("target_key")
    try:
        if target is None:
            label = int(_content(path, members["cls"]))
        else:
            fields: dict[str, Any] = json.loads(_content(path, members["json"]))
            label = int(fields[target])
    except (KeyError, ValueError, TypeError) as error:
        what = "cls" if target is None else f"json with {target!r}"
        raise DataError(
            f"{path}: sample {key!r} has no class in a member {what}; name another by arguments = {{ target_key = "
            '"..." }, or say labels = false'
        ) from error
    if label < 0:
        raise DataError(f"{path}: sample {key!r} has class {label}; classes count from 0")
    return label


def _content(shard: Path, member: Member) -> bytes:
    with shard.open("rb") as stream:
        stream.seek(member[0])
        return stream.read(member[1])
