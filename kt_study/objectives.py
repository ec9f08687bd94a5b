"""Facts of the transfer objectives: names, labels, defaults, the settings they use, the cached passes they need.

The losses themselves are in `worker.objectives`, one module each. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from kt_study.errors import DataError, UsageError
from kt_study.multi_teacher import stage_start_key
from kt_study.nearest import nearest
from kt_study.records import DatasetRecord, LogitsSpec, ModelRecord, TransferSpec
from kt_study.settings import SETTINGS, Settings, named

Partition = Literal["teacher", "frozen", "none", "label", "max", "random", "positive_flips", "negative_flips"]
"""Source of the target of each sample: always the teacher; always the frozen student; neither; the one with the higher
probability of the label; the more confident one; as many from the teacher as by `label`, but drawn at random; the teacher on
positive flips only; the frozen student on negative flips only."""


class ObjectiveFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What everything but the loss itself has to know of an objective; the fields without a default must be given.

    `uses` names the settings of the role "objective" that it reads; the others of that role stay at their default in its
    specifications, so that a row never claims a temperature that nothing used.
    """

    name: str
    label: str  # in figures and tables
    meaning: str  # what the student is trained on, for docs/concepts.md
    reads_labels: bool  # its loss, whatever the data partition reads
    uses: frozenset[str]
    colour: str = ""  # in figures, a name of the report's palette; a free one where empty
    partition: Partition = "teacher"
    controls: tuple[str, ...] = (
        "labels",
        "self_distillation",
    )  # objectives that tell what is the teacher's in its gain
    contrastive: bool = False  # needs features, compares the samples of a batch with each other
    slow_weights: bool = False  # evaluates an average of the student's weights
    defaults: dict[str, Any] = {}  # settings whose default is another one than that of `Settings`
    source: str = ""

    def __post_init__(self) -> None:
        if unknown := self.uses - set(named("objective")):
            raise ValueError(f"objective {self.name!r} uses {sorted(unknown)}: no settings of the role 'objective'")
        if strangers := self.defaults.keys() - SETTINGS.keys():
            raise ValueError(f"objective {self.name!r} has defaults for {sorted(strangers)}, which are no settings")


_KL = frozenset({"temperature", "top_k", "flips"})
_MIXED = _KL | {"kl_weight"}
_OF_A_PARTITION = ("labels", "self_distillation", "kl_dp_random", "kl_dp_oracle")

# In the order of figures, tables and pages.
_FACTS = (
    ObjectiveFacts(
        name="kl",
        label="KL",
        meaning="KL(teacher, student) at temperature T, times T²",
        reads_labels=False,
        uses=_KL,
        colour="c2",
        source="Eq. 2",
    ),
    ObjectiveFacts(
        name="xe_kl",
        label="XE-KL",
        meaning="lambda KL + (1 - lambda) cross-entropy with the labels",
        reads_labels=True,
        uses=_MIXED,
        colour="c5",
        source="Eq. 3",
    ),
    ObjectiveFacts(
        name="xe_kl_mcl",
        label="XE-KL+MCL",
        meaning="the same, evaluated with slow weights that follow the fast ones",
        reads_labels=True,
        uses=_MIXED | {"mcl_tau", "mcl_every"},
        colour="c6",
        slow_weights=True,
        defaults={"lr": 1e-2, "kl_weight": 0.7},
        source="Sec. 4.3, A.3",
    ),
    ObjectiveFacts(
        name="kl_dp",
        label="KL+DP",
        meaning="KL against the data partition, below",
        reads_labels=False,
        uses=_KL - {"flips"},
        colour="c1",
        partition="label",
        controls=_OF_A_PARTITION,
        source="Sec. 4.4",
    ),
    ObjectiveFacts(
        name="kl_dp_unsupervised",
        label="KL+DP unsup.",
        meaning="the same, with a partition made without labels",
        reads_labels=False,
        uses=_KL - {"flips"},
        colour="c3",
        partition="max",
        controls=_OF_A_PARTITION,
        source="Sec. 4.4",
    ),
    ObjectiveFacts(
        name="kl_label_smoothing",
        label="KL smoothed",
        meaning="`xe_kl` with smoothed labels; a baseline of the paper's appendix",
        reads_labels=True,
        uses=_MIXED | {"label_smoothing"},
        colour="c7",
        source="Sec. 5.1",
    ),
    ObjectiveFacts(
        name="soft_xe",
        label="soft XE",
        meaning="cross-entropy with the teacher's probabilities; a baseline of the paper's appendix",
        reads_labels=False,
        uses=_KL,
        colour="c8",
        source="Sec. B.1",
    ),
    ObjectiveFacts(
        name="cd",
        label="CD",
        meaning="contrastive distillation: cross-entropy, and KL between the similarities of the samples in a batch",
        reads_labels=True,
        uses=frozenset(),
        colour="c4",
        contrastive=True,
        source="Sec. B.2",
    ),
    ObjectiveFacts(
        name="crd",
        label="CRD",
        meaning="contrastive representation distillation: cross-entropy, and telling a sample's features from those of others",
        reads_labels=True,
        uses=frozenset(),
        colour="c9",
        contrastive=True,
        source="Tian et al. 2020",
    ),
    ObjectiveFacts(
        name="self_distillation",
        label="self",
        meaning="KL(frozen student, student); a baseline of the paper's appendix",
        reads_labels=False,
        uses=_KL - {"flips"},
        colour="c10",
        partition="frozen",
        controls=(),
        source="Sec. B.1",
    ),
    ObjectiveFacts(
        name="labels",
        label="labels",
        meaning="cross-entropy with the labels, without a teacher; a control",
        reads_labels=True,
        uses=frozenset(),
        partition="none",
        controls=(),
    ),
    ObjectiveFacts(
        name="kl_dp_random",
        label="KL+DP random",
        meaning="`kl_dp` with as many samples from the teacher, drawn at random; a control",
        reads_labels=False,
        uses=_KL - {"flips"},
        partition="random",
        controls=(),
    ),
    ObjectiveFacts(
        name="kl_dp_oracle",
        label="KL+DP oracle",
        meaning="`kl_dp` with the teacher on positive flips only; a control",
        reads_labels=False,
        uses=_KL - {"flips"},
        partition="positive_flips",
        controls=(),
    ),
)

OBJECTIVES = {facts.name: facts for facts in _FACTS}

AUTHORS = {"weight_decay": 1e-4}
"""Defaults under `reading = "authors"`: config/distillation/distillation.yaml of ExplainableML/FantasticGains; the paper says 1e-3."""

OWN_DEFAULTS = frozenset(AUTHORS).union(*(facts.defaults for facts in _FACTS))
"""Settings whose default depends on the objective or the reading."""


def facts_of(objective: str) -> ObjectiveFacts:
    """The facts of an objective. Raises UsageError with the nearest name for one that does not exist."""
    if objective not in OBJECTIVES:
        hint = nearest(objective, OBJECTIVES)
        raise UsageError(f"objective {objective!r} is not known{hint} (known: {', '.join(OBJECTIVES)})")
    return OBJECTIVES[objective]


def settings_for(objective: str, given: Mapping[str, Any]) -> Settings:
    """The settings of a transfer: the objective's own defaults, then what the user gave, then unused ones at their
    default.

    Args:
        given: settings by their study-file names; leave out what the user did not set.

    Raises:
        UsageError: an objective that does not exist, or options that do not combine with it.
    """
    facts = facts_of(objective)
    defaults = dict(facts.defaults)
    if given.get("reading") == "authors":
        defaults |= AUTHORS
    settings = Settings(**{**defaults, **given})
    check(objective, settings)
    unused = {name: SETTINGS[name].default for name in _unused(facts)}
    if settings.augment == "none":
        unused["views"] = 1
    if settings.augment == "crop_flip" or settings.crop == "student":
        unused["crop_pct"] = SETTINGS["crop_pct"].default
    return msgspec.structs.replace(settings, **unused)


def check(objective: str, settings: Settings) -> None:
    """Refuse options that do not combine with an objective.

    Raises:
        UsageError: one line that names the two that clash and what to do.
    """
    facts = facts_of(objective)
    for clash in _clashes(facts, settings):
        raise UsageError(f"objective {objective!r}: {clash}")


def controls_of(objectives: Sequence[str]) -> list[str]:
    """The controls that belong beside these objectives and are not among them. Raises UsageError where there are none."""
    wanted = {control for objective in objectives for control in facts_of(objective).controls}
    if not wanted:
        raise UsageError(
            f"{', '.join(objectives)}: no controls belong to this; add an objective with a teacher, such as kl_dp"
        )
    return [name for name in OBJECTIVES if name in wanted.difference(objectives)]


def supports(objective: str, mode: str) -> bool:
    """Whether an objective knows a multi-teacher mode: parallel teachers need a data partition to choose among them."""
    return mode != "parallel" or facts_of(objective).partition in ("label", "max")


def _unused(facts: ObjectiveFacts) -> list[str]:
    """The settings of other objectives."""
    return [name for name in named("objective") if name not in facts.uses]


def _clashes(facts: ObjectiveFacts, settings: Settings) -> list[str]:
    found = []
    for name in _unused(facts):
        value = getattr(settings, name)
        if SETTINGS[name].refused and value != SETTINGS[name].default:
            found.append(f"{name} = {value!r} does not apply to it; remove it or choose another objective")
    if not supports(facts.name, settings.multi_teacher):
        found.append("parallel teachers need a data partition; use kl_dp or kl_dp_unsupervised, or sequential or soup")
    if settings.micro_batch and facts.contrastive:
        found.append("micro_batch splits the batch whose samples it compares; set micro_batch = 0")
    if settings.micro_batch and facts.slow_weights and settings.reading == "authors":
        found.append("under reading = 'authors' it averages over part of a batch; set micro_batch = 0")
    if settings.warmup_epochs > settings.epochs:
        found.append(f"warmup_epochs = {settings.warmup_epochs} is more than epochs = {settings.epochs}")
    if settings.multi_teacher == "parallel" and settings.flips != "all":
        found.append("flips are of one teacher against the student; set flips = 'all' or another multi_teacher mode")
    return found


def partition_of(objective: str, settings: Settings) -> Partition:
    """The rule that gives each sample to a teacher or to the frozen student."""
    if settings.flips == "positive":
        return "positive_flips"
    if settings.flips == "negative":
        return "negative_flips"
    return facts_of(objective).partition


def label_use(objective: str, settings: Settings) -> str:
    """What in a transfer reads the labels of the training samples; empty where nothing does."""
    facts = facts_of(objective)
    if partition_of(objective, settings) in ("label", "random", "positive_flips", "negative_flips"):
        return "its data partition"
    return "its loss" if facts.reads_labels else ""


def needs_frozen_student(objective: str, settings: Settings) -> bool:
    """Whether a transfer reads the frozen student's logits on the training views."""
    return partition_of(objective, settings) not in ("teacher", "none")


def asks_teacher(objective: str, settings: Settings) -> bool:
    """Whether a teacher has a part in the training, and not only in what is measured of it."""
    return partition_of(objective, settings) not in ("frozen", "none")


def shared_training(spec: TransferSpec) -> TransferSpec | None:
    """The training that this transfer has in common with those of other teachers: its specification without a teacher.

    None where the training is this transfer's own. The student is kept where a transfer keeps one, for it to copy.
    """
    if asks_teacher(spec.objective, spec.settings) or spec.settings.multi_teacher != "single":
        return None
    keep = "none" if spec.settings.keep == "none" else "all"
    return replace(spec, teachers=(), settings=replace(spec.settings, keep=keep))


def needs_live_teacher(objective: str, settings: Settings) -> bool:
    """Whether the teacher must be forwarded beside the student: the released code keeps contrastive teachers in train
    mode, where batch norm sees the batch, so that no cache can stand for it."""
    return facts_of(objective).contrastive and settings.reading == "authors"


class TransferLogits(msgspec.Struct, frozen=True, kw_only=True):
    """The cached passes that a transfer reads. Lists of teachers are in the order of the specification."""

    student_val: LogitsSpec  # the student before anything was transferred
    start_val: LogitsSpec  # the frozen student of this stage; `student_val` but for later stages of a sequence
    teachers_val: list[LogitsSpec]
    teachers_train: list[list[LogitsSpec]]  # [teacher taught from][view]; empty for one that is live or not asked
    start_train: list[LogitsSpec]  # [view]; empty where the partition does not ask the frozen student
    student_view: LogitsSpec  # how the student sees the training samples, view 0; not itself needed

    def all(self) -> list[LogitsSpec]:
        """Every pass once, evaluation views first."""
        passes = [self.student_val, self.start_val, *self.teachers_val]
        passes += [view for teacher in self.teachers_train for view in teacher]
        return list(dict.fromkeys([*passes, *self.start_train]))


def transfer_logits(
    spec: TransferSpec, *, dataset: DatasetRecord, model: Callable[[str], ModelRecord]
) -> TransferLogits:
    """The cached passes of a transfer, by role.

    Args:
        dataset: the record of `spec.dataset`.
        model: looks a model up by key.

    Raises:
        UsageError: settings that do not combine.
        DataError: a data set without a transfer set, or without labels that something reads.
    """
    check(spec.objective, spec.settings)
    _check_dataset(spec, dataset)
    start = stage_start_key(spec)
    taught_by = spec.teachers[-1:] if spec.settings.multi_teacher == "sequential" else spec.teachers
    facts = facts_of(spec.objective)
    crop = _crop_pct(spec, model)
    trains = spec.settings.multi_teacher != "soup"
    asks = asks_teacher(spec.objective, spec.settings)

    def views(key: str, features: bool) -> list[LogitsSpec]:
        return [_train_view(spec, key, view, crop, features) for view in range(spec.settings.views)]

    live = needs_live_teacher(spec.objective, spec.settings)
    asks_frozen = trains and needs_frozen_student(spec.objective, spec.settings)
    return TransferLogits(
        student_val=_evaluation_view(spec, spec.student),
        start_val=_evaluation_view(spec, start),
        teachers_val=[_evaluation_view(spec, teacher) for teacher in spec.teachers],
        teachers_train=[views(key, facts.contrastive) for key in taught_by] if trains and asks and not live else [],
        start_train=views(start, False) if asks_frozen else [],
        student_view=_train_view(spec, start, 0, crop, False),
    )


def needed_logits(
    spec: TransferSpec, *, dataset: DatasetRecord, model: Callable[[str], ModelRecord]
) -> list[LogitsSpec]:
    """The `logits` jobs that a transfer, or a soup, waits for. Arguments as of `transfer_logits`."""
    return transfer_logits(spec, dataset=dataset, model=model).all()


def _evaluation_view(spec: TransferSpec, model: str) -> LogitsSpec:
    return LogitsSpec(dataset=spec.dataset, model=model, split="val")


def _train_view(spec: TransferSpec, model: str, view: int, crop_pct: float, features: bool) -> LogitsSpec:
    return LogitsSpec(
        dataset=spec.dataset,
        model=model,
        split="train",
        view=view,
        view_seed=0 if spec.settings.augment == "none" else spec.seed,
        augment=spec.settings.augment,
        crop_pct=crop_pct,
        loader=spec.settings.loader,
        features=features,
    )


def _check_dataset(spec: TransferSpec, dataset: DatasetRecord) -> None:
    if missing := [split for split in ("train", "val") if dataset.splits and split not in dataset.splits]:
        raise DataError(f"data set {dataset.name!r} has no split {missing[0]!r}; a transfer needs train and val")
    if not dataset.has_labels("train") and (reader := label_use(spec.objective, spec.settings)):
        without = [name for name in OBJECTIVES if not label_use(name, Settings())]
        raise DataError(
            f"objective {spec.objective!r}: {reader} reads labels, and data set {dataset.name!r} has no labels in train; "
            f"kl_dp_unsupervised is made for that (of {', '.join(without)}, which read none)"
        )
    if not dataset.has_labels("val") and spec.settings.keep == "best":
        raise DataError(
            f"keep = 'best' goes by accuracy, and data set {dataset.name!r} has no labels in val; set keep = 'all'"
        )


def _crop_pct(spec: TransferSpec, model: Callable[[str], ModelRecord]) -> float:
    """Centre crop of training views; 0 for random crops, which have none, so that all students share them."""
    if spec.settings.augment == "crop_flip":
        return 0.0
    if spec.settings.crop == "student":
        return model(spec.student).crop_pct
    return spec.settings.crop_pct
