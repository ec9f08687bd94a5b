"""Records of models that timm loads from a folder (`local-dir:`) or from the Hugging Face hub (`hf-hub:`).

Both hold timm's config.json: architecture, model_args and pretrained_cfg. It is read here without timm and torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kt_study.errors import UnknownModelError, WeightsError
from kt_study.files import read_text
from orchestrator.planning.universe import catalogue

LOCAL = "local-dir:"
HUB = ("hf-hub:", "hf_hub:")

_DEFAULTS = {
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
"""Defaults of timm's PretrainedCfg."""

PREPROCESSING = tuple(_DEFAULTS)
"""Fields of a model's preprocessing."""

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""timm's names of weights files, safetensors first."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """The content of a config.json, by the fields of `ModelRecord`; `checkpoint` is the weights file of a folder."""

    fields: dict[str, Any]
    arguments: dict[str, Any]
    checkpoint: Path | None = None


def is_described(name: str) -> bool:
    """Whether a timm name is of a folder or of the hub."""
    return name.startswith((LOCAL, *HUB))


def described(name: str, table: str, folder: Path) -> Described:
    """Read the config.json behind `local-dir:FOLDER`, `hf-hub:USER/MODEL` or `hf-hub:USER/MODEL@REVISION`.

    The hub's weights are named by the commit of the config, so that every job loads the same ones.

    Args:
        table: name of the [[model]] table, for errors.
        folder: to which relative paths are relative.

    Raises:
        WeightsError: no such folder, or nothing of that name in the hub's cache and no network.
        UnknownModelError: a config without an architecture.
    """
    if name.startswith(LOCAL):
        root = (folder / Path(name.removeprefix(LOCAL)).expanduser()).resolve()
        found = _parsed(root / "config.json", table)
        return Described(fields=found.fields, arguments=found.arguments, checkpoint=_weights_file(root, table))
    address = name.split(":", 1)[1]
    config = _from_hub(address, table)
    commit = config.parent.name
    found = _parsed(config, table)
    exact = f"hf-hub:{address.partition('@')[0]}@{commit}"
    own = {"timm": exact, "weights": f"timm:{exact}"}
    return Described(fields={**found.fields, **own}, arguments={})  # timm takes the arguments from the config itself


def _from_hub(address: str, table: str) -> Path:
    """config.json in the hub's cache, fetched if it is not there."""
    from huggingface_hub import hf_hub_download

    model, _, revision = address.partition("@")
    try:
        with _quietly():
            return Path(hf_hub_download(model, "config.json", revision=revision or None))
    except Exception as error:  # the client raises errors of its own, of the network and of the disk
        raise WeightsError(
            f"[[model]] {table!r}: {model} cannot be had from the Hugging Face hub ({type(error).__name__}); fetch it "
            f"where there is a network (hf download {model}), or give timm = an architecture and a local checkpoint"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the hub client's log of its retries; our error is one line."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _parsed(config: Path, table: str) -> Described:
    try:
        content: dict[str, Any] = json.loads(read_text(config))
        nested: dict[str, Any] = content.get("pretrained_cfg", content)
        architecture = str(content["architecture"])
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise WeightsError(
            f"[[model]] {table!r}: {config} is missing or no JSON; kt-study export writes one"
        ) from error
    except (KeyError, AttributeError) as error:
        raise UnknownModelError(
            f"[[model]] {table!r}: {config} names no architecture of timm's; use timm = ... with a local checkpoint"
        ) from error
    arguments = dict(content.get("model_args", {}))
    fields = {name: nested.get(name) or _DEFAULTS[name] for name in PREPROCESSING}
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    fields["num_classes"] = content.get("num_classes", nested.get("num_classes", 1000))
    family = {model.architecture: model.family for model in catalogue()}.get(architecture)
    known = {"family": family, "license": nested.get("license")}
    fields |= {name: value for name, value in known.items() if value}
    return Described(fields={**fields, "timm": architecture}, arguments=arguments)


def _weights_file(root: Path, table: str) -> Path:
    for name in _WEIGHTS:
        if (root / name).is_file():
            return root / name
    raise WeightsError(
        f'[[model]] {table!r}: {root} has neither {" nor ".join(_WEIGHTS)}; correct timm = "local-dir:..."'
    )
