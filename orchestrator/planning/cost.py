"""Roughly estimates the cost of a plan before it runs: seconds, bytes and forwards.

The seconds are for one data-centre GPU like the A100 with twelve CPU cores. The time of a pass is the longer of arithmetic
and image loading: `FLOPS` operations per second in fp32, which puts a ResNet-50 at
1,460 images per second forward, and `DECODED` images per second from the loader. A split that fits a worker's memory is
decoded once per view, a larger one in every epoch. These are assumptions; `kt-study status` shows measured rates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from kt_study.cache import logits_bytes
from kt_study.records import DatasetRecord, ModelRecord, PlannedJob, Record, TrainSpec
from kt_study.settings import Settings

if TYPE_CHECKING:
    from orchestrator.planning.record import Plan

FLOPS = 1.2e13
"""Sustained floating-point operations per second, fp32."""

HALF = 3
"""Speed of bf16 and fp16 relative to fp32."""

DECODED = {"torch": 1_500, "ffcv": 6_000}
"""Images per second of a loader, per GPU."""

IN_MEMORY = 4 << 30
"""Bytes of decoded images that a worker keeps in memory (`worker.data.loader.image_budget`)."""

TRAIN_FORWARDS = 3
"""Cost of a training step in forwards: one forward, and a backward that costs two."""

START_S = 2.0
"""Seconds to start a job: model, weights, first batch."""

FEATURES = 1_024
"""Assumed features per sample, where a contrastive objective caches them."""


class Cost(Record, frozen=True):
    """The sums of a plan."""

    jobs: dict[str, int]  # by kind
    models: int  # distinct models of the pairs, by name
    complementarity_pairs: int
    complementarity_models: int  # distinct models among those pairs
    transfer_pairs: int  # different pairs of one teacher and one student
    pairs_by_objective: dict[str, int]  # a set of several teachers counts as one pair
    objectives: int
    runs: int  # requested transfers
    transfers: int  # jobs of kind transfer: the runs of one teacher, and the stages and parts of the others
    forwards: int  # images forwarded by logits jobs
    cache_bytes: int  # of cached logits
    kept_bytes: int  # of the weights of train jobs and kept students
    gpu_hours: float
    gpu_hours_by_kind: dict[str, float]
    notes: list[str]


def forward_s(model: ModelRecord, dataset: DatasetRecord, split: str, loader: str = "torch") -> float:
    """Seconds to forward a split once."""
    return START_S + _pass_s(model, dataset, split, passes=1, views=1, forwards=1, loader=loader)


def transfer_s(student: ModelRecord, dataset: DatasetRecord, settings: Settings) -> float:
    """Seconds of one transfer: its epochs, and its evaluations. A soup is one evaluation."""
    if settings.multi_teacher == "soup":
        return forward_s(student, dataset, "val")
    evaluations = max(1, settings.epochs // settings.eval_every) if settings.eval_every else 1
    training = _pass_s(
        student,
        dataset,
        "train",
        passes=settings.epochs,
        views=min(settings.views, settings.epochs),
        forwards=TRAIN_FORWARDS if settings.precision == "fp32" else TRAIN_FORWARDS / HALF,
        loader=settings.loader,
    )
    return START_S + training + _pass_s(student, dataset, "val", passes=evaluations, views=1, forwards=1)


def train_s(start: ModelRecord, dataset: DatasetRecord, spec: TrainSpec) -> float:
    """Seconds of one training; of the last layer alone, little more than the forwards."""
    forwards = 1 if spec.scope == "head" else TRAIN_FORWARDS
    views = spec.epochs if spec.augment != "none" else 1
    return START_S + _pass_s(start, dataset, spec.split, passes=spec.epochs, views=views, forwards=forwards)


def all_pairs_s(models: int, dataset: DatasetRecord) -> float:
    """Seconds for every ordered pair of `models` models: a pass over bits, and the similarity of the top classes."""
    bits = 1.5e-6 * max(1.0, dataset.splits.get("val", 0) / 50_000)
    similarity = 2.5e-5 * dataset.n_classes / 1_000 if dataset.n_classes > 1 else 0.0
    return START_S + models**2 * (bits + similarity)


def plan_cost(plan: Plan, *, done: Collection[str] = ()) -> Cost:
    """The sums of a plan. Jobs that are `done`, by digest, are counted but add no cost."""
    datasets = {dataset.key: dataset for dataset in plan.datasets}
    left = [job for digest, job in plan.jobs.items() if digest not in done]
    logits = [job.spec for job in left if job.kind == "logits"]
    pairs = plan.pairs_by_objective()
    seconds: dict[str, float] = defaultdict(float)
    for job in left:
        seconds[job.kind] += job.estimate_s
    n_models = (
        len(plan.models) if plan.all_pairs else len({name for pair in plan.complementarity_pairs for name in pair})
    )
    return Cost(
        jobs=dict(sorted(plan.by_kind().items())),
        models=len({model.name for model in plan.models}),
        complementarity_pairs=n_models * (n_models - 1) if plan.all_pairs else len(plan.complementarity_pairs),
        complementarity_models=n_models,
        transfer_pairs=len({(run.dataset, run.student, run.teachers) for run in plan.runs if len(run.teachers) == 1}),
        pairs_by_objective=pairs,
        objectives=len(pairs),
        runs=len(plan.runs),
        transfers=plan.by_kind()["transfer"],
        forwards=sum(datasets[spec["dataset"]].splits.get(spec["split"], 0) for spec in logits),
        cache_bytes=sum(_logits_bytes(datasets[spec["dataset"]], spec) for spec in logits),
        kept_bytes=_kept_bytes(plan, left),
        gpu_hours=round(sum(seconds.values()) / 3600, 2),
        gpu_hours_by_kind={kind: round(total / 3600, 2) for kind, total in sorted(seconds.items())},
        notes=plan.notes,
    )


def _pass_s(
    model: ModelRecord,
    dataset: DatasetRecord,
    split: str,
    *,
    passes: int,
    views: int,
    forwards: float,
    loader: str = "torch",
) -> float:
    """Seconds for `passes` passes over a split, with `views` different views among them."""
    n = dataset.splits.get(split, 0)
    channels, height, width = model.input_size
    fits = n * channels * height * width <= IN_MEMORY
    decoding = n * (views if fits else passes) / DECODED[loader]
    return max(decoding, n * passes * forwards * 2e9 * _gmacs(model) / FLOPS)


def _logits_bytes(dataset: DatasetRecord, spec: dict[str, Any]) -> int:
    n = dataset.splits.get(spec["split"], 0)
    return logits_bytes(n, dataset.n_classes, FEATURES if spec.get("features") else 0)


def _kept_bytes(plan: Plan, jobs: Iterable[PlannedJob]) -> int:
    """float32 weights of trained models and of students with keep = "all"; with "best" one per student and objective."""
    params = {model.key: 4e6 * (model.params or 0.0) for model in [*plan.models, *plan.others]}
    kept: dict[tuple[str, ...], float] = {}
    for job in jobs:
        keep = "all" if job.kind == "train" else job.spec.get("settings", {}).get("keep", "none")
        if keep == "none":
            continue
        group: tuple[str, ...] = (job.digest,)
        if job.kind == "remake":
            group = job.needs[:1]  # the student of that transfer
        elif keep == "best":
            group = (job.spec["dataset"], job.spec["student"], job.spec["objective"])
        kept[group] = params[job.spec["start" if job.kind == "train" else "student"]]
    return int(sum(kept.values()))


def _gmacs(model: ModelRecord) -> float:
    """1e9 multiply-accumulates per image; if unknown, 0.16 per million parameters at 224 px, as of ResNet-50."""
    if model.gmacs is not None:
        return model.gmacs
    _, height, width = model.input_size
    return 0.16 * (model.params or 1.0) * height * width / 224**2
