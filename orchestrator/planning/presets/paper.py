"""Shared parts of the paper's presets: model lists, settings, data sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kt_study.published import read_table
from orchestrator.planning.presets.record import Arm, DatasetNeed, Setting, TransferPair

PAPER = "arXiv 2310.17653v2"

COMMON: dict[str, Setting] = {
    "epochs": 20,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "temperature": 1.0,
    "batchnorm": "train",
    "multi_teacher": "single",
}
"""Section A: SGD without a schedule, 20 epochs."""

BY_OBJECTIVE: dict[str, dict[str, Setting]] = {
    "xe_kl": {"kl_weight": 0.5},  # not in the paper's lists; the released config/distillation/xekl_dist.yaml
    "xe_kl_mcl": {"lr": 1e-2, "kl_weight": 0.7, "mcl_tau": 0.9999, "mcl_every": 2},  # Section A.3
}
"""Settings of an objective beyond `COMMON` and the learning rate 1e-4 of Section A.1."""

IMAGENET = DatasetNeed(name="imagenet-1k", kind="imagefolder", classes=1000, train=1_281_167, val=50_000)
IMAGENET_SUBSET = DatasetNeed(
    name="imagenet-1k-10pct",
    kind="imagefolder",
    classes=1000,
    train=130_000,
    val=50_000,
    train_fraction=0.1,
)
"""Section A: stratified, 130 images of each class."""


def settings_of(objective: str) -> dict[str, Setting]:
    """The paper's settings of an objective, by the names of kt_study.settings.Settings."""
    return {**COMMON, "lr": 1e-4, **BY_OBJECTIVE.get(objective, {})}


def names_of(table: int, role: str, paper_names: Iterable[str] = ()) -> tuple[str, ...]:
    """Full timm names of the students or teachers of Table 5 or 6, in its order; or those of `paper_names`, in that order."""
    rows = [row for row in read_table(f"table{table}_models") if row["role"] == role]
    found = {row["paper_name"]: row["timm_name"] for row in rows}
    return tuple(found[name] for name in paper_names) if paper_names else tuple(found.values())


def cross(students: Sequence[str], teachers: Sequence[str]) -> tuple[TransferPair, ...]:
    """Every student with every other teacher, ordered by student."""
    return tuple(
        TransferPair(student=student, teachers=(teacher,))
        for student in students
        for teacher in teachers
        if student != teacher
    )


def arms_of(objectives: Iterable[str], pairs: tuple[TransferPair, ...], dataset: DatasetNeed) -> tuple[Arm, ...]:
    """One arm per objective, with the paper's settings."""
    return tuple(
        Arm(objective=objective, pairs=pairs, dataset=dataset.name, settings=settings_of(objective))
        for objective in objectives
    )
