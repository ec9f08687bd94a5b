"""What a plan will cost, before anything runs: seconds, bytes and forwards. Rough on purpose, and said to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kt_study.words import DatasetRecord, ModelRecord, Record, Settings

if TYPE_CHECKING:
    from orchestrator.plan import Plan

FLOPS = 2e13
"""Sustained floating-point operations a second assumed of one data-centre GPU at these batch sizes, fp32 with TF32."""

START_S = 2.0
"""Seconds to start a job: model, weights, first batch."""


class Cost(Record):
    """The sums of a plan."""

    jobs: dict[str, int]  # by kind
    models: int  # distinct models of the study
    complementarity_pairs: int
    complementarity_models: int  # distinct models among those pairs
    transfer_pairs: int
    objectives: int
    transfers: int
    forwards: int  # pictures forwarded by logits jobs
    cache_bytes: int
    gpu_hours: float


def forward_s(model: ModelRecord, n: int) -> float:
    """Seconds to forward `n` pictures."""
    return START_S + n * 2e9 * _gmacs(model) / FLOPS


def transfer_s(student: ModelRecord, dataset: DatasetRecord, settings: Settings) -> float:
    """Seconds of one transfer: forward and backward (three forwards) an image, and the evaluations."""
    train, val = dataset.splits.get("train", 0), dataset.splits.get("val", 0)
    evaluations = settings.epochs // settings.eval_every if settings.eval_every else 1
    images = 3 * settings.epochs * train + evaluations * val
    return START_S + images * 2e9 * _gmacs(student) / FLOPS


def all_pairs_s(models: int, dataset: DatasetRecord) -> float:
    """Seconds for every ordered pair of `models` models: one pass over bits."""
    return START_S + 1.5e-6 * models**2 * max(1.0, dataset.splits.get("val", 0) / 50_000)


def plan_cost(plan: Plan) -> Cost:
    """The sums of a plan."""
    kinds = plan.by_kind()
    logits = [job.spec for job in plan.jobs.values() if job.kind == "logits"]
    return Cost(
        jobs=dict(sorted(kinds.items())),
        models=len(plan.models),
        complementarity_pairs=_n_pairs(plan),
        complementarity_models=_n_models(plan),
        transfer_pairs=len(plan.transfer_pairs),
        objectives=len(plan.objectives) if plan.transfer_pairs else 0,
        transfers=kinds["transfer"],
        forwards=sum(plan.dataset.splits.get(spec["split"], 0) for spec in logits),
        cache_bytes=sum(_logits_bytes(plan.dataset, spec) for spec in logits),
        gpu_hours=round(sum(job.estimate_s for job in plan.jobs.values()) / 3600, 2),
    )


def _n_pairs(plan: Plan) -> int:
    return len(plan.models) * (len(plan.models) - 1) if plan.all_pairs else len(plan.complementarity_pairs)


def _n_models(plan: Plan) -> int:
    return len(plan.models) if plan.all_pairs else len({name for pair in plan.complementarity_pairs for name in pair})


def _logits_bytes(dataset: DatasetRecord, spec: dict[str, Any]) -> int:
    """float16 logits and four 4-byte side columns a sample."""
    return int(dataset.splits.get(spec["split"], 0) * (2 * dataset.n_classes + 16))


def _gmacs(model: ModelRecord) -> float:
    """1e9 multiply-accumulates an image; from the parameters where unknown (ResNet-50 has 0.16 a million at 224 px)."""
    if model.gmacs is not None:
        return model.gmacs
    _, height, width = model.input_size
    return 0.16 * (model.params or 1.0) * height * width / 224**2
