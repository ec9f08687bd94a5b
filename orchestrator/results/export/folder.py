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
from kt_study.files import current_umask
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord, ModelRecord
from orchestrator.results.export.card import CardFacts, model_card, reproduction_note
from orchestrator.results.export.licences import warnings
from orchestrator.results.export.selection import SelectedTransfer

if TYPE_CHECKING:
    from kt_study.store import JobStore


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The written folder, and notes of one line each for the user."""

    folder: Path
    by_timm: bool
    notes: tuple[str, ...]


def export_student(selected: SelectedTransfer, store: JobStore, study: str, paths: StudyPaths, out: Path) -> Exported:
    """Write model.safetensors, README.md and, where timm has the architecture, config.json into a new folder.

    The folder is complete or absent. The tensors that timm loads from it are compared with those of the kept student.

    Raises:
        UsageError: `out` exists and is not an empty folder.
        WeightsError, UnknownModelError: the kept student is damaged, or timm can no longer build it.
        DiskError: the folder cannot be written.
    """
    check_empty(out)
    row = selected.row
    student = store.model(row["student_key"])
    teachers = [store.model(key) for key in row["teacher_key"].split("+")]
    dataset = store.dataset(row["dataset_key"])
    facts = CardFacts(
        study=study,
        digest=selected.digest,
        row=row,
        student=student,
        teachers=teachers,
        dataset=dataset,
        matches=selected.matches,
        folder=out.resolve().name,
    )
    with _written_aside(out) as scratch:
        shutil.copyfile(selected.weights, scratch / "model.safetensors")
        facts = replace(facts, acc_reproduced=_acc_reproduced(scratch / "model.safetensors", row))
        if student.timm:
            from worker.pilot.entry import write_timm_config

            write_timm_config(student, scratch, _class_names(dataset, student, paths))
        (scratch / "README.md").write_text(model_card(facts), encoding="utf-8")
    return Exported(folder=out, by_timm=bool(student.timm), notes=tuple(_notes(facts)))


def check_empty(out: Path) -> None:
    """Refuse a folder that is not empty. Raises UsageError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: already exists and is not an empty folder; remove it or give another --out")


def _notes(facts: CardFacts) -> Iterator[str]:
    if facts.matches > 1:
        yield f"the most accurate of {facts.matches} matching transfers; --objective, --seed or --job select another"
    if facts.acc_reproduced is not None:
        yield reproduction_note(facts)
    if not facts.student.timm:
        yield f"timm cannot build {facts.student.factory!r}: README.md has the code to load model.safetensors without it"
    yield from warnings(facts.student, facts.teachers)


def _acc_reproduced(weights: Path, row: dict[str, Any]) -> float | None:
    """Accuracy in % of a student that was reproduced and differs from its row; None for all others."""
    from worker.pilot.entry import kept_facts

    found: float | None = kept_facts(weights).get("acc_after")
    return None if found == row["acc_after"] else found


def _class_names(dataset: DatasetRecord, student: ModelRecord, paths: StudyPaths) -> list[str]:
    """Names of the student's outputs; empty if the data set's index is missing or has other classes."""
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
        scratch.chmod(0o777 & ~current_umask())
        for path in (*scratch.iterdir(), scratch):
            _flush(path)
        scratch.replace(out)
        _flush(out.parent)
    except OSError as error:
        raise DiskError(f"cannot write {out}: {error.strerror or error}; free space or give another --out") from error
    finally:
        if scratch is not None and scratch.exists():
            shutil.rmtree(scratch, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
