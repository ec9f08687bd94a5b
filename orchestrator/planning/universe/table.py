"""The catalogue: one row for each ImageNet-1k weights tag of timm, read from a table shipped with the package."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from kt_study.records import Record

TIMM_VERSION = "1.0.31"
"""The timm release whose tags the catalogue lists."""

CATALOGUE_FILE = "imagenet1k.csv"
ALIASES_FILE = "aliases.csv"


class CatalogueModel(Record, frozen=True):
    """One pretrained classifier of timm over the 1,000 classes of ImageNet-1k."""

    name: str  # architecture.tag, what timm.create_model takes
    architecture: str
    tag: str
    is_default: bool  # the model of the bare architecture name, see `resolve`
    module: str  # timm.models.<module>
    family: str  # cnn | transformer | mlp | hybrid
    params: float  # millions
    gmacs: float | None  # 1e9 multiply-accumulates of one image of input_size; None if they could not be counted
    input_size: tuple[int, int, int]  # channels, height, width in pixels
    test_input_size: tuple[int, int, int] | None  # timm's larger evaluation size, if any
    interpolation: str
    crop_pct: float
    test_crop_pct: float | None
    crop_mode: str
    mean: tuple[float, ...]  # of each channel, pixels in [0, 1]
    std: tuple[float, ...]
    top1: float | None  # published ImageNet-1k top-1, %
    top1_source: str  # source of `top1`; empty without one
    license: str  # as timm states it; empty if it states none
    hf_hub_id: str
    url: str
    weights: str  # identity: "timm:<name>@<hub id, or address>"
    trained_head: bool  # False for self-supervised weights whose 1,000 outputs were never trained on labels


@cache
def catalogue() -> tuple[CatalogueModel, ...]:
    """Every model, sorted by name. Reads the shipped table once; needs neither timm, torch nor a network."""
    return tuple(_model(row) for row in _rows(CATALOGUE_FILE))


@cache
def by_name() -> dict[str, CatalogueModel]:
    """Full name (architecture.tag) to model."""
    return {model.name: model for model in catalogue()}


@cache
def aliases() -> dict[str, tuple[str, str]]:
    """Deprecated timm name -> (full name of its former weights, full name of timm's alias for it).

    The two differ if timm's alias has other weights; the first is empty if timm no longer provides the weights.
    """
    return {row["name"]: (row["weights_of"], row["timm_alias"]) for row in _rows(ALIASES_FILE)}


def _rows(file: str) -> Iterator[dict[str, str]]:
    table = files(__package__).joinpath(file)
    lines = csv.reader(table.read_text(encoding="utf-8").splitlines())
    header = next(lines)
    for line in lines:
        yield dict(zip(header, line, strict=True))


def _model(row: dict[str, str]) -> CatalogueModel:
    fields: dict[str, Any] = {name: _PARSERS.get(name, str)(text) for name, text in row.items()}
    return CatalogueModel(**fields)


@cache
def _number(text: str) -> float | None:
    return float(text) if text else None


@cache
def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split())


@cache
def _size(text: str) -> tuple[int, ...] | None:
    return tuple(int(part) for part in text.split("x")) if text else None


_PARSERS: dict[str, Callable[[str], Any]] = {
    "is_default": "1".__eq__,
    "params": lambda text: int(text) / 1e6,
    "gmacs": _number,
    "input_size": _size,
    "test_input_size": _size,
    "crop_pct": float,
    "test_crop_pct": _number,
    "mean": _numbers,
    "std": _numbers,
    "top1": _number,
    "trained_head": "1".__eq__,
}
"""Columns of the table that are not text."""
