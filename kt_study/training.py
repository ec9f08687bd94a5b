"""The record of a model that a `train` job makes, for the planner and the worker.

A trained model is built like the model it started from, with the weights that the job saved. Its last layer has the classes
of the data set that it was trained on; under scope `body` the old last layer is restored at the end.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import asdict, replace

from kt_study.hashing import digest
from kt_study.records import DatasetRecord, ModelRecord, TrainSpec

TRAINED = "train:"
"""Prefix of a model record's `weights`: the job that trained it. Such a model waits for that job."""

UNTRAINED = ":untrained"
"""End of the name of a model that only exists to be trained."""

_IDENTITY = (
    "timm", "factory", "arguments", "weights", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode",
    "num_classes",
)  # fmt: skip


def keyed(**fields: Any) -> ModelRecord:
    """A model record with its key: the digest of what it computes, independent of its name and location."""
    record = ModelRecord(key="", **fields)
    return replace(record, key=digest({name: getattr(record, name) for name in _IDENTITY}))


def trained_record(start: ModelRecord, spec: TrainSpec, job: str, dataset: DatasetRecord) -> ModelRecord:
    """The model that the job `job` makes of `start` on `dataset`.

    It keeps its name, with the data set's added if it is to be used on another one. A factory gets the new number
    of classes as its argument `num_classes`.
    """
    classes = start.num_classes if spec.scope == "body" else dataset.n_classes
    fields = asdict(start)
    for name in ("key", "checkpoint", "top1_published"):  # not those of the trained model
        del fields[name]
    if "num_classes" in start.arguments:
        fields["arguments"] = {**start.arguments, "num_classes": classes}
    name = start.name.removesuffix(UNTRAINED)
    fields["name"] = f"{name}@{dataset.name}" if spec.scope == "body" else name
    return keyed(**fields | {"weights": TRAINED + job, "num_classes": classes})
