"""The last layer of a classifier: finding it, and replacing it for another number of classes.

Some models have several, such as VOLO with a second one over its patches, or distilled transformers; in some it is a
convolution. So it is defined as the layers that timm's `reset_classifier` replaces; in other modules, the last linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kt_study.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class Head:
    """The modules of the last layer, and the names of their tensors in the model's state dict."""

    modules: list[nn.Module]
    names: frozenset[str]

    def parameters(self) -> list[nn.Parameter]:
        """What learns in it, each once."""
        return list({id(p): p for module in self.modules for p in module.parameters()}.values())


def new_head(model: nn.Module, num_classes: int, *, seed: int) -> Head:
    """Replace the last layer of a model on the CPU by one of `num_classes` outputs, its weights drawn from `seed`.

    Raises:
        WeightsError: there is no last layer that could be replaced.
    """
    before = list(model.modules())  # kept alive, so that no new module can have the id of an old one
    known = {id(module) for module in before}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _replace(model, num_classes)
    modules = {name: module for name, module in model.named_modules() if id(module) not in known}
    names = frozenset(key for key in model.state_dict() if any(key.startswith(f"{name}.") for name in modules))
    return Head(modules=list(modules.values()), names=names)


def own_head(model: nn.Module, num_classes: int) -> Head:
    """The last layer as it is, which must have `num_classes` outputs. Raises WeightsError as `new_head`."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = new_head(model, num_classes, seed=0)
    model.load_state_dict(state)
    return head


def _replace(model: nn.Module, num_classes: int) -> None:
    reset: Any = getattr(model, "reset_classifier", None)
    if callable(reset):
        reset(num_classes)
        return
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear) and name]
    if not linear:
        raise WeightsError(
            f"{type(model).__name__} has no linear layer that could be replaced by one for other classes"
        )
    name, last = linear[-1]
    parent = model.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.Linear(last.in_features, num_classes, bias=last.bias is not None))
