"""Invented studies with just the pairs and transfers that a test needs; the rows are those of `synthetic`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec.structs import replace

from kt_study.cache import MANIFEST, Manifest
from kt_study.datasets.index import write_index
from kt_study.datasets.kind import Found, Listing
from kt_study.files import file_digest
from kt_study.hashing import job_digest
from kt_study.paths import StudyPaths
from kt_study.records import (
    AllPairsSpec,
    ComplementaritySpec,
    DatasetRecord,
    LogitsSpec,
    PlannedJob,
    TransferSpec,
    as_spec,
)
from kt_study.settings import Settings
from kt_study.store import JobStore, WorkerRecord
from kt_study.study import DatasetSection, StudyFile, StudySection, TransferSection
from orchestrator.planning import Sources
from orchestrator.planning.model_records import FileDigests
from orchestrator.results.recommend.recommend import RecommendOptions, recommend
from orchestrator.results.recommend.record import RankedTeacher, Recommendation
from tests.results import synthetic
from tests.results.synthetic import World, make_world, outcome, planned

NAME = "invented"
WORLD = make_world(models=8, n=300, classes=40)
KEYS = [model.key for model in WORLD.models]
Pairs = Iterable[tuple[str, str]]
"""(teacher, student): keys."""

STUDY = StudyFile(
    study=StudySection(name=NAME),
    dataset=DatasetSection(kind="imagefolder"),
    transfer=TransferSection(objectives=["kl_dp"], epochs=3),
)
SETTINGS = Settings(epochs=3)


def everyone(*students: str) -> list[tuple[str, str]]:
    """Every other model as a teacher of these students."""
    return [(teacher, student) for student in students for teacher in KEYS if teacher != student]


def dataset(world: World) -> DatasetRecord:
    """The record of the invented data set, with a transfer set."""
    splits = {"train": 2 * world.n, "val": world.n}
    return DatasetRecord(key="data", name="synthetic", kind="invented", splits=splits, n_classes=world.classes)


def fill(
    store: JobStore,
    *,
    pairs: Pairs = (),
    transfers: Pairs = (),
    all_pairs: Iterable[str] = (),
    objective: str = "kl_dp",
    settings: Settings = SETTINGS,
    evaluated: Iterable[str] = KEYS,
    world: World = WORLD,
    folder: Path | None = None,
) -> None:
    """Add a study in which exactly this was measured. `folder` gets the file of `all_pairs`."""
    wanted: list[PlannedJob] = [
        planned("logits", LogitsSpec(dataset="data", model=key, split="val")) for key in evaluated
    ]
    for teacher, student in pairs:
        wanted.append(planned("complementarity", ComplementaritySpec(dataset="data", teacher=teacher, student=student)))
    for teacher, student in transfers:
        wanted.append(planned("transfer", transfer_spec(teacher, student, objective=objective, settings=settings)))
    if all_pairs:
        wanted.append(planned("all_pairs", AllPairsSpec(dataset="data", models=tuple(all_pairs))))
    store.add_study(NAME, {"study": {"name": NAME}, "preset": "kept as it is"})
    store.add_models(world.models)
    store.add_datasets([dataset(world)])
    store.plan(NAME, wanted)
    store.register(WorkerRecord(id="worker", host="node1", pid=1, device="cpu"))
    while claims := store.claim("worker", limit=200):
        store.finish_many([(claim, _outcome(world, claim.kind, claim.spec, folder)) for claim in claims])


def transfer_spec(
    teacher: str, student: str, *, objective: str = "kl_dp", settings: Settings = SETTINGS
) -> TransferSpec:
    """A transfer between two models, by key."""
    return TransferSpec(dataset="data", student=student, teachers=(teacher,), objective=objective, settings=settings)


def sources(folder: Path) -> Sources:
    """Sources of a plan in this study folder."""
    return Sources(folder=folder, scratch=folder / "scratch", digests=FileDigests(folder / "digests.json"))


def ask(url: str, folder: Path, student: str, study: StudyFile = STUDY, **options: Any) -> Recommendation:
    """The recommendation for a student, given by key."""
    return recommend(
        url, study, sources(folder), RecommendOptions(student=WORLD.name(student), **{"top": 100, **options})
    )


def by_key(advice: Recommendation) -> dict[str, RankedTeacher]:
    """The lines of a recommendation by the teacher's key."""
    return {line.teacher_key: line for line in advice.teachers}


def flips(teacher: str, student: str, label: int | None = None, world: World = WORLD) -> tuple[int, int]:
    """Positive and negative flips, counted one sample at a time."""
    positive = negative = 0
    for t, s, y in zip(world.right[teacher], world.right[student], world.labels, strict=True):
        if label is None or y == label:
            positive += bool(t and not s)
            negative += bool(s and not t)
    return positive, negative


def cache_predictions(folder: Path, keys: Iterable[str], world: World = WORLD) -> None:
    """What evaluation jobs leave in the cache: predictions that are the label where the model is right."""
    for key in keys:
        spec = as_spec(LogitsSpec(dataset="data", model=key, split="val"))
        entry = StudyPaths(root=folder).logits(job_digest("logits", spec))
        entry.mkdir(parents=True)
        side = np.zeros(world.n, [("log_p_max", "<f4"), ("argmax", "<i4"), ("label", "<i4")])
        side["label"] = world.labels
        side["argmax"] = np.where(world.right[key], world.labels, (world.labels + 1) % world.classes)
        np.save(entry / "side.npy", side)
        file = entry / "side.npy"
        manifest = Manifest(
            spec=spec, n=world.n, n_classes=world.classes, files={file.name: (file.stat().st_size, file_digest(file))},
            weights="", versions="", device="cpu",
        )  # fmt: skip
        (entry / MANIFEST).write_bytes(msgspec.json.encode(manifest))


def write_dataset_index(folder: Path, names: list[str], world: World = WORLD) -> None:
    """The stored index of the invented data set."""
    samples = [f"{i}" for i in range(world.n)]
    listing = Listing(names=samples, labels=world.labels.astype(np.int32), sizes=np.full(world.n, -1))
    found = Found(listings={"val": listing, "train": listing}, class_names=names)
    write_index(StudyPaths(root=folder).dataset_index("data"), found)


def other(settings: Settings = SETTINGS, **changed: Any) -> Settings:
    """The settings with some of them changed."""
    return replace(settings, **changed)


def _outcome(world: World, kind: str, spec: dict[str, Any], folder: Path | None) -> dict[str, list[synthetic.Row]]:
    if kind != "all_pairs":
        return outcome(world, kind, spec)
    assert folder is not None
    pairs = list(itertools.permutations(spec["models"], 2))
    rows = [synthetic.complementarity(world, teacher, student)[0] for teacher, student in pairs]
    names = [name for name in rows[0] if not name.endswith("_key")]
    file = folder / "runs" / "all_pairs.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{name: row[name] for name in names} for row in rows]), file)
    made = {"dataset": "synthetic", "n_models": len(spec["models"]), "n_pairs": len(rows), "seconds": 1.0}
    return {"all_pairs": [{**made, "file": "runs/all_pairs.parquet"}]}
