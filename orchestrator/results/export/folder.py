"""Writes the exported folder: under a temporary name, checked, flushed, renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.datasets.index import read_listing
from kt_study.errors import DataError, DiskError, UsageError
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord, ModelRecord
from orchestrator.results.export.card import CardFacts, model_card, remade
from orchestrator.results.export.choice import Chosen
from orchestrator.results.export.licences import warnings

if TYPE_CHECKING:
    from kt_study.store import JobStore


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and what the user should know about it, a line each."""

    folder: Path
    by_timm: bool
    notes: tuple[str, ...]


def export_student(chosen: Chosen, store: JobStore, study: str, paths: StudyPaths, out: Path) -> Exported:
    """Write model.safetensors, README.md and, where timm has the architecture, config.json into a new folder.

    The folder is whole or absent. What timm loads from it is compared with the kept student, tensor by tensor.

    Raises:
        UsageError: `out` exists and is not an empty folder.
        WeightsError, UnknownModelError: the kept student is damaged, or timm cannot build it any more.
        DiskError: the folder cannot be written.
    """
    check_empty(out)
    row = chosen.row
    student = store.model(row["student_key"])
    teachers = [store.model(key) for key in row["teacher_key"].split("+")]
    dataset = store.dataset(row["dataset_key"])
    facts = CardFacts(
        study=study,
        digest=chosen.digest,
        row=row,
        student=student,
        teachers=teachers,
        dataset=dataset,
        matches=chosen.matches,
        folder=out.resolve().name,
    )
    with _written_aside(out) as scratch:
        shutil.copyfile(chosen.weights, scratch / "model.safetensors")
        facts = replace(facts, acc_remade=_remade(scratch / "model.safetensors", row))
        if student.timm:
            from worker.pilot.entry import write_timm_config

            write_timm_config(student, scratch, _class_names(dataset, student, paths))
        (scratch / "README.md").write_text(model_card(facts), encoding="utf-8")
    return Exported(folder=out, by_timm=bool(student.timm), notes=tuple(_notes(facts)))


def check_empty(out: Path) -> None:
    """Refuse a folder that something is in already. Raises UsageError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: already there and not an empty folder; remove it or give another --out")


def _notes(facts: CardFacts) -> Iterator[str]:
    if facts.matches > 1:
        yield f"the most accurate of {facts.matches} transfers that fit; --objective, --seed or --job choose another"
    if facts.acc_remade is not None:
        yield remade(facts)
    if not facts.student.timm:
        yield f"timm cannot build {facts.student.factory!r}: README.md says how to load model.safetensors without it"
    yield from warnings(facts.student, facts.teachers)


def _remade(weights: Path, row: dict[str, Any]) -> float | None:
    """Accuracy in % of a student that was made again and came out otherwise than in its row; None for all others."""
    from worker.pilot.entry import kept_facts

    found: float | None = kept_facts(weights).get("acc_after")
    return None if found == row["acc_after"] else found


def _class_names(dataset: DatasetRecord, student: ModelRecord, paths: StudyPaths) -> list[str]:
    """What the student's outputs are called; empty where the data set's index is gone, or does not say."""
    try:
        _, names = read_listing(paths.dataset_index(dataset.key), "val", dataset.name)
    except DataError:
        return []
    return names if len(names) == student.num_classes else []


@contextlib.contextmanager
def _written_aside(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, flushed and renamed to it on success, removed on any error. Raises DiskError."""
    scratch: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        yield scratch
        scratch.chmod(0o777 & ~_umask())
        for path in (*scratch.iterdir(), scratch):
            _flush(path)
        scratch.replace(out)
        _flush(out.parent)
    except OSError as error:
        raise DiskError(f"cannot write {out}: {error.strerror or error}; free space or give another --out") from error
    finally:
        if scratch is not None and scratch.exists():
            shutil.rmtree(scratch, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
