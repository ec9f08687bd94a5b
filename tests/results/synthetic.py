"""Invented results with the shape of real ones: right and wrong answers drawn at random, every count taken from them.

Nothing here is a measurement. The models do not exist; their answers are draws from a latent difficulty of each sample.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt_study.hashing import job_digest
from kt_study.records import (
    Claim,
    ComplementaritySpec,
    DatasetRecord,
    Failure,
    LogitsSpec,
    ModelRecord,
    PlannedJob,
    Record,
    TransferSpec,
    as_spec,
)
from kt_study.schema import TRANSFERS
from kt_study.settings import Settings
from kt_study.store import JobStore, WorkerRecord

Answers = NDArray[np.bool_]
Row = dict[str, Any]

FAMILIES = ("cnn", "transformer", "mlp")
GAIN = {"kl": 0.30, "xe_kl": 0.32, "xe_kl_mcl": 0.28, "kl_dp": 0.30, "kl_dp_unsupervised": 0.29}
LOSS = {"kl": 0.60, "xe_kl": 0.50, "xe_kl_mcl": 0.35, "kl_dp": 0.15, "kl_dp_unsupervised": 0.20}
"""Share of positive flips gained, and of negative flips lost."""

TRANSFER_COLUMNS = {column.name for column in TRANSFERS.columns}


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Models that do not exist, and which of `n` samples each gets right."""

    models: tuple[ModelRecord, ...]
    right: dict[str, Answers]
    labels: NDArray[np.int64]
    classes: int

    @property
    def n(self) -> int:
        return len(self.labels)

    def name(self, key: str) -> str:
        return next(model.name for model in self.models if model.key == key)


def make_world(models: int = 9, n: int = 1000, classes: int = 20, seed: int = 0) -> World:
    """A world of `models` classifiers, a third of each family."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 1.5, n)
    taste = {family: rng.normal(0, 0.8, n) for family in FAMILIES}
    records, right = [], {}
    for at in range(models):
        family = FAMILIES[at % 3]
        record = ModelRecord(
            key=f"key{at:02d}",
            name=f"synthetic/{family}{at}",
            family=family,
            weights=f"invented:{at}",
            input_size=(3, 32, 32),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            params=round(5.0 + 7.0 * at, 2),
            top1_published=None,
        )
        ability = 0.6 + 0.25 * rng.normal() + 0.08 * at
        right[record.key] = rng.random(n) < 1 / (1 + np.exp(-(ability - difficulty + taste[family])))
        records.append(record)
    return World(models=tuple(records), right=right, labels=rng.integers(0, classes, n), classes=classes)


def percent(mask: Answers) -> float:
    return 100.0 * float(mask.mean())


def evaluation(world: World, key: str, split: str = "val") -> Row:
    return {
        "dataset": "synthetic", "dataset_key": "data", "model": world.name(key), "model_key": key, "split": split,
        "n": world.n, "acc": percent(world.right[key]), "loss": 1.0, "seconds": 2.0, "images_per_s": world.n / 2.0,
        "device": "cpu", "source": "invented",
    }  # fmt: skip


def complementarity(world: World, teacher: str, student: str) -> tuple[Row, list[Row]]:
    """The row of one pair and its flips by class."""
    t, s = world.right[teacher], world.right[student]
    gained, lost = t & ~s, ~t & s
    flips = np.bincount(world.labels[gained], minlength=world.classes)
    errors = np.bincount(world.labels[~s], minlength=world.classes)
    agreement = percent(t == s)
    chance = percent(t) * percent(s) / 100 + (100 - percent(t)) * (100 - percent(s)) / 100
    row = {
        **names(world, (teacher,), student), "n": world.n, "n_classes": world.classes, "acc_teacher": percent(t),
        "acc_student": percent(s), "delta_acc": percent(t) - percent(s), "rho_pos": percent(gained), "rho_neg": percent(lost),
        "n_positive_flips": int(gained.sum()), "n_negative_flips": int(lost.sum()), "agreement": agreement,
        "error_overlap": 100.0 * (~t & ~s).sum() / max((~t | ~s).sum(), 1),
        "kappa": (agreement - chance) / max(100 - chance, 1e-9), "entropy": entropy(flips),
        "entropy_null": entropy(errors), "similarity": "invented", "source": "invented",
    }  # fmt: skip
    for x in (2, 5, 20, 50):
        row[f"top{x}_classes"] = 100.0 * smallest_holding(flips, x) / world.classes
        row[f"top{x}_similarity"] = 40.0 / x + 5.0 * (zlib.crc32(f"{teacher}{student}".encode()) % 100) / 100
    negative = np.bincount(world.labels[lost], minlength=world.classes)
    sizes = np.bincount(world.labels, minlength=world.classes)
    by_class = [
        {"dataset": "synthetic", "teacher": row["teacher"], "student": row["student"], "class_index": c,
         "class_name": f"class {c}", "n": int(sizes[c]), "positive_flips": int(flips[c]),
         "negative_flips": int(negative[c])}
        for c in range(world.classes) if flips[c] or negative[c]
    ]  # fmt: skip
    return row, by_class


def transfer(
    world: World, teachers: tuple[str, ...], student: str, objective: str, settings: Settings, seed: int
) -> Row:
    """The row of one transfer: some of the positive flips gained, some of the negative ones lost."""
    rng = np.random.default_rng(zlib.crc32("/".join((*teachers, student, objective, settings.multi_teacher)).encode()))
    before = world.right[student]
    teacher = np.logical_or.reduce([world.right[key] for key in teachers])
    gained = (teacher & ~before) & (rng.random(world.n) < GAIN.get(objective, 0.2))
    lost = (~teacher & before) & (rng.random(world.n) < LOSS.get(objective, 0.3))
    after = (before | gained) & ~lost
    low, high = np.percentile([percent(after[i]) - percent(before[i]) for i in rng.integers(0, world.n, (50, world.n))],
                              [2.5, 97.5])  # fmt: skip
    row = {
        **names(world, teachers, student),
        **{name: value for name, value in vars_of(settings).items() if name in TRANSFER_COLUMNS},
        "stage": len(teachers) - 1 if settings.multi_teacher == "sequential" else 0,
        "objective": objective, "seed": seed, "n": world.n, "n_train": 2 * world.n, "acc_teacher": percent(teacher),
        "acc_before": percent(before), "acc_after": percent(after), "delta_transf": percent(after) - percent(before),
        "delta_transf_low": float(low), "delta_transf_high": float(high), "mcnemar_p": 0.04,
        "knowledge_gain": percent(gained), "knowledge_loss": percent(lost),
        "rho_pos_before": percent(teacher & ~before), "rho_pos_after": percent(teacher & ~after),
        "rho_neg_before": percent(~teacher & before), "rho_neg_after": percent(~teacher & after),
        "dp_pos_to_teacher": 72.0, "dp_neg_to_teacher": 9.0, "teacher_share": 40.0, "diverged": False, "steps": 100,
        "seconds": 12.5, "images_per_s": 800.0, "device": "cpu", "host": "nowhere", "versions": "invented",
    }  # fmt: skip
    for x in (2, 5, 20, 50, 100):
        row[f"transfer_rate_top{x}"] = 100.0 * gained.sum() / max((teacher & ~before).sum(), 1) * (1 + 1 / x)
        row[f"transfer_rate_strict_top{x}"] = 100.0 * gained.sum() / max((teacher & ~before).sum(), 1)
    return row


def epochs(row: Row, stages: int = 1) -> list[Row]:
    """A curve that ends at the row's delta_transf."""
    last = row["epochs"]
    return [
        {**{k: row[k] for k in ("dataset", "student", "teacher", "objective")}, "stage": (e - 1) * stages // last,
         "epoch": e, "loss": 2.0 / e, "acc": row["acc_before"] + row["delta_transf"] * e / last,
         "delta_transf": row["delta_transf"] * e / last, "seconds": 0.5 * e}
        for e in range(1, last + 1)
    ]  # fmt: skip


def names(world: World, teachers: tuple[str, ...], student: str) -> Row:
    return {
        "dataset": "synthetic", "dataset_key": "data", "teacher": "+".join(map(world.name, teachers)),
        "student": world.name(student), "teacher_key": "+".join(teachers), "student_key": student,
    }  # fmt: skip


def vars_of(record: Record) -> Row:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def entropy(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def smallest_holding(counts: NDArray[np.int64], percent_held: float) -> int:
    """Number of classes in the smallest set that holds so many percent of the counts."""
    held = np.cumsum(np.sort(counts)[::-1])
    return int(np.searchsorted(held, percent_held / 100 * counts.sum() - 1e-9) + 1) if counts.sum() else 0


def planned(kind: str, record: Record, **other: Any) -> PlannedJob:
    spec = as_spec(record)
    return PlannedJob(kind=kind, spec=spec, digest=job_digest(kind, spec), **other)


def jobs_of(world: World, objectives: Iterable[str], students: int, settings: Settings) -> Iterator[PlannedJob]:
    """Logits of every model, every ordered pair, and transfers into the first `students` models from all others."""
    keys = [model.key for model in world.models]
    for key in keys:
        yield planned("logits", LogitsSpec(dataset="data", model=key, split="val"))
    for teacher, student in itertools.permutations(keys, 2):
        yield planned("complementarity", ComplementaritySpec(dataset="data", teacher=teacher, student=student),
                      teacher=teacher, student=student)  # fmt: skip
    for objective, student in itertools.product(objectives, keys[:students]):
        others = [key for key in keys if key != student]
        for teacher in others:
            yield planned("transfer", TransferSpec(dataset="data", student=student, teachers=(teacher,),
                          objective=objective, settings=settings), teacher=teacher, student=student)  # fmt: skip
        if objective in ("kl", "kl_dp"):
            for mode in ("sequential", "parallel", "soup"):
                many = Settings(**{**vars_of(settings), "multi_teacher": mode})
                yield planned("transfer", TransferSpec(dataset="data", student=student, teachers=tuple(others[:3]),
                              objective=objective, settings=many), student=student)  # fmt: skip


def outcome(world: World, kind: str, spec: Row) -> dict[str, list[Row]]:
    """The result rows of one job."""
    if kind == "logits":
        return {"evaluations": [evaluation(world, spec["model"])]}
    if kind == "complementarity":
        row, by_class = complementarity(world, spec["teacher"], spec["student"])
        return {"complementarity": [row], "class_flips": by_class}
    settings = Settings(**spec.get("settings", {}))
    row = transfer(world, tuple(spec["teachers"]), spec["student"], spec["objective"], settings, spec.get("seed", 0))
    stages = 3 if settings.multi_teacher == "sequential" else 1
    return {"transfers": [row], "transfer_epochs": epochs(row, stages)}


def fill(
    store: JobStore,
    world: World,
    study: str = "synthetic",
    objectives: Iterable[str] = ("kl", "xe_kl", "kl_dp"),
    students: int = 4,
    done: int | None = None,
    settings: Settings | None = None,
) -> int:
    """Plan the study and finish the first `done` jobs (all when None). Returns how many were finished."""
    store.add_study(study, {"study": {"name": study, "seed": 0}})
    store.add_models(world.models)
    store.add_datasets([DatasetRecord(key="data", name="synthetic", kind="invented", splits={"val": world.n})])
    store.plan(study, jobs_of(world, objectives, students, settings or Settings(epochs=3)))
    store.register(WorkerRecord(id="worker", host="node1", pid=1, device="cpu"))
    return finish(store, world, done)


def finish(store: JobStore, world: World, done: int | None = None) -> int:
    """Claim and finish up to `done` jobs."""
    finished = 0
    while finished != done:
        claims = store.claim("worker", limit=200 if done is None else min(200, done - finished))
        if not claims:
            break
        store.finish_many([(claim, outcome(world, claim.kind, claim.spec)) for claim in claims])
        finished += len(claims)
    return finished


def fail_one(store: JobStore) -> Claim:
    """Let one job fail for good."""
    (claim,) = store.claim("worker")
    store.fail(claim, Failure(error="DataError", message="broken.png: not an image", traceback="...", group="g1"))
    return claim
