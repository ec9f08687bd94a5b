"""The records of a study: planned, claimed, measured and reported data. All are frozen and keyword-only.

Records in a job's specification are encoded by `as_spec`, which omits fields at their default. So a setting that is added
later does not change the digest of existing jobs, and a default never changes once it is released.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Any

import msgspec

from kt_study.settings import Settings


class JobState(StrEnum):
    """States of a job, see docs/job-states.md. Only `kt_study.store` makes transitions."""

    BLOCKED = "blocked"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record: immutable, keyword-only, unknown fields refused."""


class ModelRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A pretrained classifier: how to build it, where its weights are, its preprocessing.

    `key` names it by what it computes (architecture, weights, preprocessing), so that equal models share their logits
    under any name. Exactly one of `timm` and `factory` is set.
    """

    key: str
    name: str
    family: str  # cnn | transformer | mlp | hybrid
    weights: str  # digest of a local file, "train:<job>", "transfer:<job>", "timm:<tag and address>", "random:<seed>"
    input_size: tuple[int, int, int]  # channels, height, width in pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    timm: str = ""  # name for timm.create_model
    factory: str = ""  # "module:callable" -> torch.nn.Module
    arguments: dict[str, Any] = {}  # keyword arguments for the factory or timm.create_model
    checkpoint: str = ""  # absolute path of local weights, or path relative to the cache folder for trained ones
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    num_classes: int = 1000
    params: float | None = None  # millions of parameters
    gmacs: float | None = None
    top1_published: float | None = None  # %
    license: str = ""


class DatasetRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An image data set in splits. `key` is the digest of what is in it, not of where it is."""

    key: str
    name: str
    kind: str
    location: dict[str, str] = {}  # kind-specific paths, absolute
    options: dict[str, Any] = {}
    n_classes: int = 0
    splits: dict[str, int] = {}  # split -> number of samples
    class_index: str = "sorted"  # how labels are numbered: sorted | imagenet
    classes_present: int = 0  # classes that samples have, where these are fewer than n_classes
    prepared: dict[str, Any] = {}  # the arguments of `kt_study.datasets.prepare`, by which a lost index is made again
    labelled: bool = True  # every split has labels
    unlabelled: tuple[str, ...] = ()  # the splits without, where others have some

    def has_labels(self, split: str) -> bool:
        """Whether the samples of a split have labels."""
        return self.labelled or (bool(self.unlabelled) and split not in self.unlabelled)


class TransferSpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One transfer: knowledge of the teachers into the student, on the `train` split, measured on `val`.

    Without teachers, the training that such transfers have in common (`kt_study.objectives.shared_training`).
    """

    dataset: str
    student: str
    teachers: tuple[str, ...]
    objective: str
    settings: Settings = Settings()
    seed: int = 0


class LogitsSpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One forward pass of a model over a split. `view` -1 is the evaluation view: the model's own preprocessing."""

    dataset: str
    model: str
    split: str
    view: int = -1
    view_seed: int = 0
    augment: str = "none"
    crop_pct: float = 0.0  # crop of a training view; 0 for the evaluation view
    loader: str = "torch"
    features: bool = False


class ComplementaritySpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One ordered pair on the `val` split."""

    dataset: str
    teacher: str
    student: str
    seed: int = 0
    class_similarity: str = "auto"


class AllPairsSpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Every ordered pair of `models` on the `val` split, as one parquet file."""

    dataset: str
    models: tuple[str, ...]
    seed: int = 0
    class_similarity: str = "auto"


class TrainSpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Training a model for a data set: from scratch (`scope` all) or its last layer only (`scope` head).

    `class_shares` subsamples classes: the share in (0, 1] of a class's samples that is used. `label_noise` replaces that
    share of labels by a uniform draw; `pixel_noise` is the standard deviation of Gaussian noise on normalised pixels.
    All draws are hashes of (seed, sample). The trained model's weights are "train:<digest of this job>".
    """

    dataset: str
    split: str
    start: str  # key of the model to start from, with random or pretrained weights
    scope: str = "all"
    epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-2
    share: float = 1.0
    class_shares: dict[str, float] = {}
    label_noise: float = 0.0
    pixel_noise: float = 0.0
    augment: str = "none"
    seed: int = 0


class PlannedJob(Record, frozen=True, kw_only=True):
    """A job to add. Its identity is (kind, digest of spec); the other fields may differ without making another job."""

    kind: str
    spec: dict[str, Any]
    digest: str
    needs: tuple[str, ...] = ()  # digests of jobs that must be done first
    priority: int = 0  # higher first
    estimate_s: float = 60.0
    teacher: str | None = None  # affinity key
    student: str | None = None  # affinity key


class Claim(Record, frozen=True, kw_only=True):
    """A job that a worker holds: its specification, and the fencing number to report it with."""

    job_id: int
    attempt_id: int
    fence: int
    kind: str
    digest: str
    spec: dict[str, Any]
    attempt: int  # 1 for the first try

    def __hash__(self) -> int:
        return hash((self.job_id, self.fence))


class Progress(Record, frozen=True, kw_only=True, forbid_unknown_fields=False):  # a newer program may add fields
    """Where a running job is, sent with its heartbeat."""

    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    images_per_s: float = 0.0
    note: str = ""


class Failure(Record, frozen=True, kw_only=True):
    """Why an attempt failed. `transient` failures are retried with backoff; others fail the job at once."""

    error: str  # class name of the exception
    message: str  # one line
    traceback: str
    group: str  # digest of the cause with paths and numbers taken out
    transient: bool = False


def as_spec(record: Record) -> dict[str, Any]:
    """The record as JSON-ready builtins, fields equal to their default left out, at every depth.

    Equal records give equal specifications, however they were made: a number typed as 1 where 1.0 is meant, a text
    that was decoded from the database. msgspec's own `omit_defaults` compares by identity, which would differ.
    """
    settled = msgspec.convert(msgspec.to_builtins(record), type(record))
    return _without_defaults(settled)


def _without_defaults(record: msgspec.Struct) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    for field in _fields(type(record)):
        value = getattr(record, field.name)
        if not field.required and value == field_default(field):
            continue
        plain = _without_defaults(value) if isinstance(value, msgspec.Struct) else msgspec.to_builtins(value)
        spec[field.encode_name] = list(plain) if isinstance(plain, tuple) else plain
    return spec


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def field_default(field: msgspec.structs.FieldInfo) -> Any:
    """The default of a record's field that is not required."""
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default
