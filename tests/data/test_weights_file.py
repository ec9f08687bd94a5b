"""Weights files as users have them: what torch and safetensors can read, and what is no checkpoint, in one line each."""

from __future__ import annotations

import copy
import gzip
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kt_study.errors import WeightsError
from kt_study.paths import StudyPaths
from tests.data.support import CPU, tiny_model
from worker.models.build import build_model
from worker.models.weights_file import read_weights

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (POINTER, "a Git LFS pointer and not the weights; run `git lfs pull`"),
        (PAGE, "an HTML or XML page and not the weights"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an HTML or XML page and not the weights"),
        (b'{"error": "Invalid credentials"}', "a JSON file and not the weights"),
        (b"", "an empty file"),
        (gzip.compress(b"weights"), "a compressed file; unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file, such as Keras writes"),
        (b"name.txt".ljust(257, b"\0") + b"ustar\x0000" + bytes(800), "a tar archive; unpack it"),
    ],
    ids=["pointer", "page", "xml", "json", "empty", "gzip", "hdf5", "tar"],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, suffix: str, content: bytes, told: str) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=told) as caught:
        read_weights(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_archives_that_torch_did_not_write_are_named(tmp_path: Path) -> None:
    with (tmp_path / "numpy.pth").open("wb") as stream:
        np.savez(stream, weight=np.ones(3))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:  # as torch.jit.save lays it
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"net/{name}", b"")
    with zipfile.ZipFile(tmp_path / "other.bin", "w") as archive:
        archive.writestr("readme.txt", b"x")
    for name, told in (
        ("numpy.pth", "a NumPy archive"),
        ("script.pt", "a TorchScript archive"),
        ("other.bin", "a zip archive"),
    ):
        with pytest.raises(WeightsError, match=rf"{name}: {told}"):
            read_weights(tmp_path / name)


def test_a_format_under_another_name_is_named_and_renaming_helps(tmp_path: Path, trained: nn.Module) -> None:
    state = trained.state_dict()
    save_file(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "zip.safetensors")
    torch.save(state, tmp_path / "legacy.safetensors", _use_new_zipfile_serialization=False)
    for name, told in (
        ("w.pth", r"a safetensors file under another name; rename it to w\.safetensors"),
        ("zip.safetensors", r"a checkpoint of torch under another name; rename it to zip\.pth"),
        ("legacy.safetensors", r"a checkpoint of torch under another name; rename it to legacy\.pth"),
    ):
        with pytest.raises(WeightsError, match=told) as caught:
            read_weights(tmp_path / name)
        renamed = (tmp_path / name).rename(tmp_path / str(caught.value).rpartition(" ")[2])
        assert read_weights(renamed).keys() == state.keys()


def test_unreadable_checkpoints(tmp_path: Path, paths: StudyPaths, trained: nn.Module) -> None:
    file = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match="no such checkpoint"):
        build_model(tiny_model(weights="0" * 32, checkpoint=str(file)), paths, CPU)
    torch.save(trained, file)  # a whole module: loading it would run code
    with pytest.raises(WeightsError, match=r"could run code; save its state_dict\(\) alone"):
        read_weights(file)
    file.write_bytes(pickle.dumps(print))
    with pytest.raises(WeightsError, match=r"w\.pth"):
        read_weights(file)
    torch.save(trained.state_dict(), file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        read_weights(file)
    torch.save({"epoch": 3}, file)
    with pytest.raises(WeightsError, match="no tensors"):
        read_weights(file)
    (tmp_path / "w.safetensors").write_bytes(b"12")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        read_weights(tmp_path / "w.safetensors")


def _deflated(file: Path, **longer: int) -> int:
    """Pack an archive of torch's again, compressed, with so many zeros after some members. Returns its bytes inflated."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content + bytes(longer.get(name.rpartition("/")[2].replace(".", "_"), 0)))
    return sum(map(len, members.values())) + sum(longer.values())


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("longer", [{}, {"data_pkl": 2**26}], ids=["tensors", "the pickle"])
def test_an_archive_that_inflates_past_its_size_is_refused_unread(
    tmp_path: Path, longer: dict[str, int], lazily: bool
) -> None:
    file = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(10 if longer else 2**24)}, file)
    inflated = _deflated(file, **longer)
    assert inflated > 2**26 > 100 * file.stat().st_size
    with pytest.raises(WeightsError, match=rf"whose members inflate to {inflated / 1e6:.1f} MB"):
        read_weights(file, lazily=lazily)


def test_members_that_share_their_bytes_are_refused_too(tmp_path: Path) -> None:
    """Stored members whose directory entries all point to the same bytes: no compression, and many times the file."""
    file = tmp_path / "w.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/data.pkl", bytes(2**20))
        for number in range(60):
            archive.filelist.append(copy.copy(archive.filelist[0]))
            archive.filelist[-1].filename = f"w/data/{number}"
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(WeightsError, match=r"a file of 1\.1 MB whose members inflate to 64\.0 MB"):
        read_weights(file)


def test_a_member_longer_than_its_archive_says_is_not_inflated(tmp_path: Path) -> None:
    """The directory, which torch goes by, says 40 bytes; 256 MB come out."""
    file = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(2**26)}, file)
    _deflated(file)
    content = file.read_bytes()
    assert content.count((2**28).to_bytes(4, "little")) >= 2  # beside the bytes themselves, and in the directory
    file.write_bytes(content.replace((2**28).to_bytes(4, "little"), (40).to_bytes(4, "little")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        read_weights(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16


def test_an_archive_packed_again_without_gain_is_read(tmp_path: Path, trained: nn.Module) -> None:
    file = tmp_path / "w.pth"
    torch.save(trained.state_dict(), file)
    _deflated(file)
    assert read_weights(file).keys() == trained.state_dict().keys()
