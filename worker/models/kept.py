"""Students that are kept: one safetensors file each, with the record of the transfer in the header.

keep = "none"   no file
keep = "all"    every transfer's student
keep = "best"   for each (data set, student, objective), the one with the highest accuracy after; of equally accurate
                ones the smallest job digest. Each transfer that ends removes what it beats, or its own file, so that
                the one left does not depend on the order in which they end. Rows of beaten transfers name a file that
                is gone.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kt_study.errors import WeightsError
from kt_study.paths import StudyPaths
from worker.models.build import save_state

_DIGEST = re.compile(r"[0-9a-f]{32}")
_HEADER = "kt_study"
_HEADER_MAX = 100_000_000  # bytes; the format allows no longer header, a damaged file may claim one


def keep_student(
    paths: StudyPaths, job: str, state: Mapping[str, torch.Tensor], facts: Mapping[str, Any], keep: str
) -> Path | None:
    """Keep a transferred student as `keep` says. Returns its file, or None where it was not kept.

    Args:
        job: digest of the transfer.
        state: its state dict, on any device.
        facts: JSON-ready; for "best" with `dataset_key`, `student_key`, `objective` and `acc_after`.

    Raises:
        DiskError: no space or no permission.
    """
    if keep == "none":
        return None
    target = paths.weights(job)
    header = json.dumps({**facts, "keep": keep}, sort_keys=True)
    save_state(target, state, {"format": "pt", _HEADER: header})
    if keep == "best":
        _drop_beaten(target.parent, facts)
    return target if target.exists() else None


def kept_facts(path: Path) -> dict[str, Any]:
    """What `keep_student` wrote beside the tensors; empty for other files. Reads the header only.

    Raises:
        WeightsError: no such file, or not safetensors.
    """
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, _HEADER_MAX)))
    except (OSError, struct.error, ValueError) as error:
        raise WeightsError(f"{path}: kept student missing or damaged; remove it and `kt-study plan` again") from error
    facts: dict[str, Any] = json.loads(header.get("__metadata__", {}).get(_HEADER, "{}"))
    return facts


def is_beaten(paths: StudyPaths, job: str, facts: Mapping[str, Any]) -> bool:
    """Whether keep = "best" would not keep the student of `job`, going by what is kept now; `facts` as `keep_student`."""
    mine = (-facts["acc_after"], job)
    return any((accuracy, path.stem) < mine for accuracy, path in _rivals(paths.weights(job).parent, facts))


def _drop_beaten(folder: Path, facts: Mapping[str, Any]) -> None:
    for _, beaten in sorted(_rivals(folder, facts))[1:]:
        beaten.unlink(missing_ok=True)


def _rivals(folder: Path, facts: Mapping[str, Any]) -> list[tuple[float, Path]]:
    """(minus accuracy, file) of the students kept as the best of the same data set, student and objective."""
    rivals = []
    for path in folder.glob("*.safetensors"):
        if not _DIGEST.fullmatch(path.stem):
            continue  # a copy of the user's
        try:
            other = kept_facts(path)
        except WeightsError:
            continue  # another transfer has just removed it
        if other.get("keep") == "best" and all(
            other[name] == facts[name] for name in ("dataset_key", "student_key", "objective")
        ):
            rivals.append((-other["acc_after"], path))
    return rivals
