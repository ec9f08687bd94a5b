"""From the study file's [models] and [[model]] to records of models: what to build, with which weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from kt_study.datasets import predictions
from kt_study.errors import StudyFileError, UnknownModelError, WeightsError
from kt_study.files import file_digest, read_text, write_text
from kt_study.multi_teacher import TRANSFERRED
from kt_study.nearest import nearest
from kt_study.records import DatasetRecord, ModelRecord
from kt_study.study import ModelsSection, ModelTable, StudyFile
from kt_study.training import TRAINED, UNTRAINED, keyed
from orchestrator.planning.checks import numbered_by_imagenet
from orchestrator.planning.hub_models import PREPROCESSING, described, is_described
from orchestrator.planning.universe import CatalogueModel, ModelTraits, catalogue, resolve, select

_WEIGHTS_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".pt.tar")


def _remembered(memory: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(read_text(memory), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except msgspec.MsgspecError as error:
        raise StudyFileError(f"{memory} is not one of kt-study's, or damaged ({error}); move it away") from None


class FileDigests:
    """Digests of weights files by path, size and modification time, so that each file is read once for all plans.

    Only `keep` writes them to the file.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known = _remembered(memory)
        self._new = False

    def of(self, path: Path) -> str:
        """blake2b-128 of the file, 32 hex digits."""
        stat = path.stat()
        stamp = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
        if stamp not in self._known:
            self._known[stamp], self._new = file_digest(path), True
        return self._known[stamp]

    def keep(self) -> None:
        """Write new digests to the file. Raises DiskError."""
        if self._new:
            write_text(self._memory, json.dumps(self._known, indent=0, sort_keys=True))


def study_models(study: StudyFile, folder: Path, dataset: DatasetRecord, digests: FileDigests) -> list[ModelRecord]:
    """The models of the `timm` and `listed` universes, sorted by name.

    Raises:
        StudyFileError, UnknownModelError, WeightsError: an incomplete table, an unknown name, a missing file.
        UsageError: filters that leave no model.
    """
    section = study.models
    listed = listed_models(study, folder, dataset, digests)
    if section.universe != "timm":
        return narrowed(listed, section)
    chosen = select(catalogue(), **_filters(section))
    own = {record.name for record in listed}
    records = listed + [from_catalogue(model) for model in chosen if model.name not in own]
    return sorted(records, key=lambda record: record.name)


def listed_models(study: StudyFile, folder: Path, dataset: DatasetRecord, digests: FileDigests) -> list[ModelRecord]:
    """The models of the [[model]] tables, sorted by name. Raises as `study_models`."""
    records = [_from_table(table, folder, dataset, digests, seed=study.study.seed) for table in study.model]
    return sorted(records, key=lambda record: record.name)


def check_own_models(records: Iterable[ModelRecord], dataset: DatasetRecord, folder: Path) -> list[str]:
    """Build those of the models that the user brought, by a factory or a checkpoint, before a job fails for them.

    Imports torch, but only where there are such models. Returns notes: how a checkpoint was read where that is not plain, and
    models whose predictions depend on the batch.

    Raises:
        UnknownModelError, WeightsError: one that cannot be built, or whose weights do not fit.
    """
    own = [one for one in records if (one.factory or one.checkpoint) and not _is_made_here(one)]
    if not own:
        return []
    from orchestrator.terminal.progress import shown
    from worker.pilot.entry import check_models

    try:
        with shown("building own models", "models") as advance:
            return check_models(own, folder, advance)
    except WeightsError as error:
        if hint := numbered_by_imagenet(dataset):
            raise WeightsError(f"{error}; {hint}") from error
        raise


def _is_made_here(record: ModelRecord) -> bool:
    """Whether a job makes the weights, or the model is an untrained one of the embedded zoo."""
    return record.weights.startswith((TRAINED, TRANSFERRED)) or record.name.endswith(UNTRAINED)


def predicted_models(study: StudyFile, dataset: DatasetRecord) -> list[ModelRecord]:
    """The models whose predictions are in a `predictions` data set, one per file, sorted by name.

    A file with the name of a timm model gets that model's family and size; those of others are unknown.
    """
    return narrowed([_predicted(name, dataset) for name in predictions.model_names(dataset)], study.models)


def narrowed(records: list[ModelRecord], section: ModelsSection) -> list[ModelRecord]:
    """The records that pass the filters of [models], in their order; see `orchestrator.planning.universe.select`.

    Raises:
        UnknownModelError: an include glob that matches none.
        UsageError: filters that leave no model.
    """
    if not records:
        return []
    same = ("name", "family", "license", "params", "gmacs")
    traits = [
        ModelTraits(
            record=record,
            architecture=record.timm.partition(".")[0],
            top1=record.top1_published,
            **{name: getattr(record, name) for name in same},
        )
        for record in records
    ]
    return [found.record for found in select(traits, **_filters(section))]


def from_catalogue(model: CatalogueModel) -> ModelRecord:
    """The record of one of timm's own ImageNet-1k models."""
    fields = _fields_of(model, "family", "weights", "license", "params", "gmacs", *PREPROCESSING)
    return keyed(name=model.name, timm=model.name, top1_published=model.top1, **fields)


def _fields_of(model: CatalogueModel, *names: str) -> dict[str, Any]:
    return {name: getattr(model, name) for name in names}


def matching(records: list[ModelRecord], globs: list[str], *, where: str) -> list[ModelRecord]:
    """The records whose name matches one of the globs. Raises UnknownModelError when a glob matches none."""
    for glob in globs:
        if not any(fnmatchcase(record.name, glob) for record in records):
            hint = nearest(glob, [record.name for record in records]) or "; correct it or widen [models]"
            raise UnknownModelError(f"{where}: {glob!r} matches none of the study's {len(records)} models{hint}")
    return [record for record in records if any(fnmatchcase(record.name, glob) for glob in globs)]


def _filters(section: ModelsSection) -> dict[str, Any]:
    """The filters of [models] by the parameter names of `select`."""
    return {name: getattr(section, name) for name in section.__struct_fields__ if name != "universe"}


def _predicted(name: str, dataset: DatasetRecord) -> ModelRecord:
    fields: dict[str, Any] = {"family": "unknown"}
    with contextlib.suppress(UnknownModelError):
        model = resolve(name)
        fields = {"top1_published": model.top1, **_fields_of(model, "family", "params", "gmacs", "license")}
    return keyed(
        name=name,
        weights=f"predictions:{predictions.model_digest(dataset, name)}",
        input_size=(0, 0, 0),
        mean=(),
        std=(),
        num_classes=dataset.n_classes,
        **fields,
    )


def _from_table(
    table: ModelTable, folder: Path, dataset: DatasetRecord, digests: FileDigests, *, seed: int
) -> ModelRecord:
    table, known = _known_and_described(table, folder)
    own = {
        name: value for name in (*PREPROCESSING, "num_classes", "family") if (value := getattr(table, name)) is not None
    }
    fields: dict[str, Any] = {**known, **{k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}}
    _require_complete(table, fields)
    if dataset.n_classes:
        fields.setdefault("num_classes", dataset.n_classes)
    elif "num_classes" not in fields:
        raise StudyFileError(
            f"[[model]] {table.name!r} needs num_classes: data set {dataset.name!r} has no labels to count them"
        )
    if table.license:
        fields["license"] = table.license
    fields |= _weights(table, folder, known, digests, seed=seed)
    return keyed(name=table.name, factory=table.factory, arguments=table.arguments, **fields)


def _known_and_described(table: ModelTable, folder: Path) -> tuple[ModelTable, dict[str, Any]]:
    """The table and the known fields of its model; the config.json of a folder or the hub may add to the table."""
    if not is_described(table.timm):
        return table, _known(table)
    found = described(table.timm, table.name, folder)
    checkpoint = table.checkpoint or (str(found.checkpoint) if found.checkpoint else "")
    arguments = {**found.arguments, **table.arguments}
    return msgspec.structs.replace(table, checkpoint=checkpoint, arguments=arguments), found.fields


def _known(table: ModelTable) -> dict[str, Any]:
    """The fields of a timm name in the catalogue; none for a factory or an architecture without ImageNet weights."""
    if not table.timm:
        return {}
    try:
        model = resolve(table.timm)
    except UnknownModelError:
        if table.checkpoint or table.random_weights:
            return {"timm": table.timm}
        raise
    local = bool(table.checkpoint) or table.random_weights
    fields = _fields_of(model, "family", *PREPROCESSING) | {"timm": model.architecture if local else model.name}
    if not local:
        fields |= {"num_classes": 1000, "top1_published": model.top1, **_fields_of(model, "weights", "license")}
    if not table.arguments:
        fields |= {"params": model.params, "gmacs": model.gmacs}
    return fields


def _require_complete(table: ModelTable, fields: dict[str, Any]) -> None:
    for name in ("family", "input_size", "mean", "std"):
        if name not in fields:
            raise StudyFileError(f"[[model]] {table.name!r} needs {name}: {_why_unknown(table)}")


def _why_unknown(table: ModelTable) -> str:
    """For a timm name that may be mistyped, the error with the nearest names."""
    if table.factory:
        return f"it is unknown for {table.factory!r}"
    try:
        return f"it is unknown for {resolve(table.timm).name!r}"
    except UnknownModelError as error:
        return str(error)


def _weights(
    table: ModelTable, folder: Path, known: dict[str, Any], digests: FileDigests, *, seed: int
) -> dict[str, str]:
    if table.random_weights:
        return {"weights": f"random:{seed}"}
    if not table.checkpoint:
        if "weights" in known:
            return {}
        raise StudyFileError(
            f"[[model]] {table.name!r} needs a checkpoint, or random_weights = true for a baseline without knowledge"
        )
    path = folder / Path(table.checkpoint).expanduser()
    path = (
        path.parent.resolve() / path.name
    )  # the name is kept: links of the hub's cache lead to names without a suffix
    if not path.is_file():
        raise WeightsError(f"[[model]] {table.name!r}: no checkpoint at {path}; correct `checkpoint` in the study file")
    if not path.name.lower().endswith(_WEIGHTS_FILES):
        raise WeightsError(f"[[model]] {table.name!r}: {path.name} is none of {', '.join(_WEIGHTS_FILES)}")
    return {"weights": digests.of(path), "checkpoint": str(path)}
