"""Write the catalogue from an installed timm: `python -m docs.generate.make_catalogue`.

Run it after a new timm release, with torch and timm installed; it needs no network and loads no weights. A module that
`families.py` does not know stops it. Parameters and multiply-accumulates are counted on torch's meta device.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kt_study.errors import UsageError
from kt_study.files import atomic_write
from kt_study.published import read_table
from orchestrator.planning.universe.families import family_of
from orchestrator.planning.universe.table import ALIASES_FILE, CATALOGUE_FILE, TIMM_VERSION, CatalogueModel

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

UNIVERSE = Path(__file__).resolve().parents[2] / "orchestrator" / "planning" / "universe"

WEIGHTS_OF_ALIAS = {
    "ig_resnext101_32x16d": "resnext101_32x16d.fb_wsl_ig1b_ft_in1k",
    "ig_resnext101_32x32d": "resnext101_32x32d.fb_wsl_ig1b_ft_in1k",
    "ig_resnext101_32x48d": "",
    "resmlp_12_224_dino": "resmlp_12_224.fb_dino",
    "resmlp_24_224_dino": "resmlp_24_224.fb_dino",
    "vit_base_patch16_224_sam": "vit_base_patch16_224.sam_in1k",
    "vit_base_patch32_224_sam": "vit_base_patch32_224.sam_in1k",
}
"""Deprecated names whose timm alias has other weights, or is a tag that timm does not have -> tag of their former weights.

Found by comparing the checkpoint file that timm 0.6.12 loaded for every name with the files of the tags of 1.0.31. The name
with an empty tag has no weights in 1.0.31.
"""

UNTRAINED_HEADS = frozenset({"resmlp_12_224.fb_dino", "resmlp_24_224.fb_dino"})
"""Tags with a last layer of 1,000 outputs that was never trained on labels: self-supervised, without fine-tuning
(facebookresearch/deit, README_resmlp.md, which gives nearest-neighbour accuracies for them)."""


def main() -> None:
    """Write both tables and print a summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, help="timm's results-imagenet.csv, for the published top-1")
    parser.add_argument("--out", type=Path, default=UNIVERSE, help="folder for the two tables")
    arguments = parser.parse_args()
    _check_timm()
    rows = catalogue_rows(published_top1(arguments.results))
    _write(arguments.out / CATALOGUE_FILE, CatalogueModel.__struct_fields__, rows)
    aliases = list(alias_rows({row["name"] for row in rows}))
    _write(arguments.out / ALIASES_FILE, ["name", "weights_of", "timm_alias"], aliases)
    modules = {row["module"] for row in rows}
    uncounted = sum(row["gmacs"] == "" for row in rows)
    known = sum(row["top1"] != "" for row in rows)
    print(f"{len(rows)} tags of {len(modules)} modules, {uncounted} without GMACs, {known} with a published top-1")
    print(f"{len(aliases)} deprecated names")


def published_top1(results: Path | None) -> dict[str, tuple[str, str]]:
    """Full name -> (top-1 in %, its source): from the paper's Tables 5 and 6, overridden by timm's file."""
    found: dict[str, tuple[str, str]] = {}
    for number in (6, 5):
        for row in read_table(f"table{number}_models"):
            found[row["timm_name"]] = (row["acc"], f"arXiv 2310.17653 Table {number}")
    if results is not None:
        with results.open(encoding="utf-8", newline="") as file:
            found.update({row["model"]: (row["top1"], f"timm {results.name}") for row in csv.DictReader(file)})
    return found


def imagenet1k_names() -> list[str]:
    """Full names of timm's weights tags with the 1,000 classes of ImageNet-1k, sorted."""
    import timm

    names = timm.list_models(pretrained=True)
    return sorted(name for name in names if _config(name).num_classes == 1000)


def catalogue_rows(top1: Mapping[str, tuple[str, str]]) -> list[dict[str, str]]:
    """One row per tag, with the fields of `CatalogueModel`."""
    names = imagenet1k_names()
    rows = []
    for done, name in enumerate(names, start=1):
        rows.append(_row(name, top1.get(name, ("", ""))))
        if done % 100 == 0:
            print(f"{done} of {len(names)}", flush=True)
    return rows


def alias_rows(names: set[str]) -> Iterable[dict[str, str]]:
    """Deprecated names that stood for ImageNet-1k weights, with the tag of those weights."""
    from timm.models import _registry

    for name, target in sorted(_registry._deprecated_models.items()):
        alias = _full_name(target) if target else ""
        weights_of = WEIGHTS_OF_ALIAS.get(name, alias)
        if weights_of in names or name in WEIGHTS_OF_ALIAS:
            yield {"name": name, "weights_of": weights_of, "timm_alias": alias}


def _check_timm() -> None:
    import timm

    if timm.__version__ != TIMM_VERSION:
        raise UsageError(
            f"timm {timm.__version__} is installed and the catalogue lists {TIMM_VERSION}; "
            "set TIMM_VERSION in orchestrator/planning/universe/table.py for a new catalogue"
        )


def _row(name: str, top1: tuple[str, str]) -> dict[str, str]:
    config = _config(name)
    architecture, tag = name.split(".", 1)
    module = _module(architecture)
    params, gmacs = _counts(name, config.input_size)
    url = config.url if isinstance(config.url, str) else ""
    return {
        "name": name,
        "architecture": architecture,
        "tag": tag,
        "is_default": "1" if _default_tag(architecture) == tag else "",
        "module": module,
        "family": family_of(architecture, module),
        "params": str(params),
        "gmacs": gmacs,
        "input_size": _size(config.input_size),
        "test_input_size": _size(config.test_input_size),
        "interpolation": str(config.interpolation),
        "crop_pct": str(config.crop_pct),
        "test_crop_pct": str(config.test_crop_pct or ""),
        "crop_mode": str(config.crop_mode),
        "mean": _numbers(config.mean),
        "std": _numbers(config.std),
        "top1": top1[0],
        "top1_source": top1[1],
        "license": config.license or "",
        "hf_hub_id": config.hf_hub_id or "",
        "url": url,
        "weights": f"timm:{name}@{config.hf_hub_id or url}",
        "trained_head": "" if name in UNTRAINED_HEADS else "1",
    }


def _config(name: str) -> PretrainedCfg:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None:
        raise UsageError(f"{name}: timm lists it but has no pretrained configuration for it")
    return config


def _module(architecture: str) -> str:
    from timm.models import _registry

    return _registry._model_to_module[architecture]


def _full_name(name: str) -> str:
    return name if "." in name else f"{name}.{_config(name).tag}"


@cache
def _default_tag(architecture: str) -> str:
    """timm's default tag, or the first ImageNet-1k one in timm's order if the default has other classes."""
    from timm.models import _registry

    tags = [name.split(".", 1)[1] for name in _registry._model_with_tags[architecture] if "." in name]
    return next(tag for tag in tags if _config(f"{architecture}.{tag}").num_classes == 1000)


def _counts(name: str, input_size: tuple[int, int, int]) -> tuple[int, str]:
    """(parameters, 1e9 multiply-accumulates of one image to three decimals, or "" where they cannot be counted)."""
    import timm
    import torch
    from timm.layers.config import set_fused_attn
    from torch.utils.flop_counter import FlopCounterMode

    set_fused_attn(False)  # so that the counter counts the matrix products of attention, not a fused kernel
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = timm.create_model(name, pretrained=False).eval().requires_grad_(False)
        params = sum(parameter.numel() for parameter in model.parameters())
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(torch.empty(1, *input_size))
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            print(f"{name}: no GMACs ({str(error).splitlines()[0][:120]})", flush=True)
            return params, ""
    return params, f"{counter.get_total_flops() / 2e9:.3f}"


def _size(size: Iterable[int] | None) -> str:
    return "x".join(str(part) for part in size) if size else ""


def _numbers(values: Iterable[float]) -> str:
    return " ".join(str(value) for value in values)


def _write(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, str]]) -> None:
    with atomic_write(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
