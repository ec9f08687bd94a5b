"""Exports a transferred student for timm: writes config.json beside its weights, and checks that timm loads them.

The format is timm's own (`timm.models._hub.save_config_for_hf`): architecture, model_args, label_names, pretrained_cfg.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kt_study.errors import WeightsError
from kt_study.paths import StudyPaths
from kt_study.records import ModelRecord
from worker.models.build import initialised

_OF_THE_ORIGIN = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")
"""What timm says of the architecture's own weights, which these are not."""

_PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def write_config(record: ModelRecord, folder: Path, class_names: Sequence[str]) -> None:
    """Write `folder`/config.json for the model.safetensors that lies there, and load both through timm.

    Args:
        record: the student before the transfer; `timm` says its architecture.
        class_names: of each output, or empty.

    Raises:
        WeightsError: what timm loads from the folder is not what lies there, or wants its images otherwise.
        UnknownModelError: timm cannot build the architecture.
    """
    from timm.models._hub import save_config_for_hf

    preprocessing = {name: getattr(record, name) for name in _PREPROCESSING}
    save_config_for_hf(
        initialised(record, StudyPaths(root=folder), seed=0),
        str(folder / "config.json"),
        model_config={"label_names": list(class_names)} if class_names else {},
        model_args=json.loads(json.dumps(record.arguments)),
        data_config=preprocessing,
    )
    config = json.loads((folder / "config.json").read_text())
    for name in _OF_THE_ORIGIN:
        config["pretrained_cfg"].pop(name, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _check(record, folder)


def _check(record: ModelRecord, folder: Path) -> None:
    import timm
    from safetensors.torch import load_file
    from timm.data.config import resolve_model_data_config

    resolve: Callable[..., dict[str, Any]] = resolve_model_data_config
    kept = load_file(folder / "model.safetensors")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    loaded = model.state_dict()
    if differing := [name for name in {**kept, **loaded} if not _same(kept.get(name), loaded.get(name))]:
        raise WeightsError(
            f"model {record.name!r}: timm {timm.__version__} reads {len(differing)} of its tensors back otherwise, "
            f"first {differing[0]}; export with the version that made it"
        )
    resolved = resolve(model)
    for name in _PREPROCESSING:
        wanted, found = getattr(record, name), resolved[name]
        if wanted != (tuple(found) if isinstance(found, list) else found):
            raise WeightsError(
                f"model {record.name!r}: timm {timm.__version__} would prepare its images with {name} = {found}, not "
                f"{wanted}; export with the version that made it"
            )


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)
