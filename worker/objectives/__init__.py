"""The transfer objectives: what a student learns from a batch. A new one is a module here and a line in `OBJECTIVES`.

An objective turns a `Batch` into one loss a sample. Which source's logits a sample gets as its target is the
partition's business (`worker.objectives.partition`), settled before training; the facts that planning needs are in
`kt_study.objectives`.
"""

from __future__ import annotations

from kt_study.objectives import facts_of
from worker.objectives.base import Batch, Objective, Setup
from worker.objectives.cd import CosineSimilarityDistillation
from worker.objectives.crd import ContrastiveRepresentationDistillation
from worker.objectives.kl import KL
from worker.objectives.kl_dp import DataPartitionedKL
from worker.objectives.kl_dp_unsupervised import UnsupervisedDataPartitionedKL
from worker.objectives.kl_label_smoothing import LabelSmoothedKL
from worker.objectives.self_distillation import SelfDistillation
from worker.objectives.soft_xe import SoftCrossEntropy
from worker.objectives.xe_kl import CrossEntropyKL
from worker.objectives.xe_kl_mcl import MomentumContinualKL

__all__ = ["OBJECTIVES", "Batch", "Objective", "Setup", "build_objective"]

OBJECTIVES: dict[str, type[Objective]] = {
    "kl": KL,
    "xe_kl": CrossEntropyKL,
    "xe_kl_mcl": MomentumContinualKL,
    "kl_dp": DataPartitionedKL,
    "kl_dp_unsupervised": UnsupervisedDataPartitionedKL,
    "kl_label_smoothing": LabelSmoothedKL,
    "soft_xe": SoftCrossEntropy,
    "cd": CosineSimilarityDistillation,
    "crd": ContrastiveRepresentationDistillation,
    "self_distillation": SelfDistillation,
}


def build_objective(name: str, setup: Setup) -> Objective:
    """The objective of that name, ready to be moved to a device. Raises UsageError for one that does not exist."""
    return OBJECTIVES[facts_of(name).name](setup)
