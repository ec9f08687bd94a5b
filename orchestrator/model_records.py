"""From the study file's [models] and [[model]] to records of models: what to build, with which weights."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kt_study.errors import StudyFileError, UnknownModelError, WeightsError
from kt_study.files import file_digest, write_text
from kt_study.hashing import digest
from kt_study.paths import StudyPaths
from kt_study.study import ModelTable, StudyFile
from kt_study.words import DatasetRecord, ModelRecord
from orchestrator.universe import CatalogueModel, catalogue, resolve, select

_IDENTITY = (
    "timm", "factory", "arguments", "weights", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode",
    "num_classes",
)  # fmt: skip


def keyed(**fields: Any) -> ModelRecord:
    """A model record with its key: the digest of what it computes, whatever it is called and wherever it lies."""
    record = ModelRecord(key="", **fields)
    key = digest({name: getattr(record, name) for name in _IDENTITY})
    return ModelRecord(key=key, **fields)


def study_models(study: StudyFile, folder: Path, dataset: DatasetRecord) -> list[ModelRecord]:
    """The models of the `timm` and `listed` universes, sorted by name.

    Raises:
        StudyFileError, UnknownModelError, WeightsError: an incomplete table, a name nobody knows, a missing file.
    """
    records = [_from_table(table, folder, dataset, seed=study.study.seed) for table in study.model]
    section = study.models
    if section.universe == "timm":
        chosen = select(
            catalogue(),
            include=section.include,
            exclude=section.exclude,
            families=section.families,
            licenses=section.licenses,
            params_min=section.params_min,
            params_max=section.params_max,
            top1_min=section.top1_min,
            top1_max=section.top1_max,
            gmacs_max=section.gmacs_max,
        )
        listed = {record.name for record in records}
        records += [from_catalogue(model) for model in chosen if model.name not in listed]
    else:
        records = [record for record in records if _kept(record.name, section.include, section.exclude)]
    return sorted(records, key=lambda record: record.name)


def from_catalogue(model: CatalogueModel, *, name: str = "") -> ModelRecord:
    """The record of one of timm's own ImageNet-1k models."""
    return keyed(
        name=name or model.name,
        family=model.family,
        weights=model.weights,
        timm=model.name,
        input_size=model.input_size,
        mean=model.mean,
        std=model.std,
        interpolation=model.interpolation,
        crop_pct=model.crop_pct,
        crop_mode=model.crop_mode,
        params=model.params,
        gmacs=model.gmacs,
        top1_published=model.top1,
        license=model.license,
    )


def matching(records: list[ModelRecord], globs: list[str], *, role: str) -> list[ModelRecord]:
    """The records whose name matches one of the globs. Raises UnknownModelError when a glob matches none."""
    for glob in globs:
        if not any(fnmatchcase(record.name, glob) for record in records):
            raise UnknownModelError(f"[transfer] {role}: {glob!r} matches none of the study's {len(records)} models")
    return [record for record in records if _kept(record.name, globs, [])]


def _kept(name: str, include: list[str], exclude: list[str]) -> bool:
    included = not include or any(fnmatchcase(name, glob) for glob in include)
    return included and not any(fnmatchcase(name, glob) for glob in exclude)


def _from_table(table: ModelTable, folder: Path, dataset: DatasetRecord, *, seed: int) -> ModelRecord:
    known = _known(table)
    own = {
        name: value
        for name in ("mean", "std", "input_size", "interpolation", "crop_pct", "crop_mode", "num_classes", "family")
        if (value := getattr(table, name)) is not None
    }
    fields: dict[str, Any] = {**known, **{k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}}
    _require_complete(table, fields)
    fields.setdefault("num_classes", dataset.n_classes)
    if table.license:
        fields["license"] = table.license
    fields |= _weights(table, folder, known, seed=seed)
    return keyed(name=table.name, factory=table.factory, arguments=table.arguments, **fields)


def _known(table: ModelTable) -> dict[str, Any]:
    """What the catalogue knows of a timm name; nothing for a factory or an architecture without ImageNet weights."""
    if not table.timm:
        return {}
    try:
        model = resolve(table.timm)
    except UnknownModelError:
        if table.checkpoint or table.random_weights:
            return {"timm": table.timm}
        raise
    local = bool(table.checkpoint) or table.random_weights
    fields: dict[str, Any] = {
        "timm": model.architecture if local else model.name,
        "family": model.family,
        "input_size": model.input_size,
        "mean": model.mean,
        "std": model.std,
        "interpolation": model.interpolation,
        "crop_pct": model.crop_pct,
        "crop_mode": model.crop_mode,
    }
    if not local:
        fields |= {
            "num_classes": 1000,
            "weights": model.weights,
            "license": model.license,
            "top1_published": model.top1,
        }
    if not table.arguments:
        fields |= {"params": model.params, "gmacs": model.gmacs}
    return fields


def _require_complete(table: ModelTable, fields: dict[str, Any]) -> None:
    for name in ("family", "input_size", "mean", "std"):
        if name not in fields:
            raise StudyFileError(
                f"[[model]] {table.name!r} needs {name}: it is not known for {table.timm or table.factory!r}"
            )


def _weights(table: ModelTable, folder: Path, known: dict[str, Any], *, seed: int) -> dict[str, str]:
    if table.random_weights:
        return {"weights": f"random:{seed}"}
    if not table.checkpoint:
        if "weights" in known:
            return {}
        raise StudyFileError(
            f"[[model]] {table.name!r} needs a checkpoint, or random_weights = true for a baseline without knowledge"
        )
    path = (folder / table.checkpoint).resolve()
    if not path.is_file():
        raise WeightsError(f"[[model]] {table.name!r}: no checkpoint at {path}; correct `checkpoint`")
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise WeightsError(f"[[model]] {table.name!r}: {path.name} is none of .safetensors, .pth, .pt, .bin")
    return {"weights": _digest_once(path, StudyPaths(root=folder)), "checkpoint": str(path)}


def _digest_once(path: Path, paths: StudyPaths) -> str:
    """The file's digest, remembered beside the study by size and time of change."""
    memory = paths.cache / "digests.json"
    known = json.loads(memory.read_text()) if memory.exists() else {}
    stat = path.stat()
    stamp = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
    if stamp not in known:
        known[stamp] = file_digest(path)
        write_text(memory, json.dumps(known, indent=0, sort_keys=True))
    return str(known[stamp])
