"""Tiny students, tensors in place of data sets, and a loop over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kt_study.objectives import facts_of, partition_of, settings_for
from kt_study.settings import Settings
from worker.objectives import Setup, build_objective
from worker.objectives.partition import Columns, assign_sources
from worker.training.deterministic import seed_step
from worker.training.loop import Feed, Hooks, TransferLoop, Validation
from worker.training.rows import row_tables
from worker.training.step import TransferStep

CPU = torch.device("cpu")
CLASSES = 5
SIDE = 6


def small_cnn(num_classes: int = CLASSES, width: int = 6, dropout: float = 0.0) -> nn.Module:
    """Convolution, batch norm, dropout, linear."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(width, num_classes),
    )


def small_mlp(num_classes: int = CLASSES, side: int = SIDE, width: int = 12, dropout: float = 0.0) -> nn.Module:
    """Two linear layers, no batch norm."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * side * side, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, num_classes)
    )


class Wrapped(nn.Module):
    """Keeps its network as `model`, a name that wrappers of checkpoints have, too."""

    def __init__(self, num_classes: int = CLASSES, width: int = 6) -> None:
        super().__init__()
        self.model = small_cnn(num_classes, width)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


@dataclass(frozen=True)
class TensorViews:
    """Images [view, n, 3, h, w] in memory."""

    images: Tensor

    @property
    def n(self) -> int:
        return self.images.shape[1]

    def batches(
        self, order: NDArray[np.int64], batch_size: int, *, view: int = -1, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        positions = torch.from_numpy(order)
        for first in range(start * batch_size, len(order), batch_size):
            index = positions[first : first + batch_size]
            yield self.images[view][index], index


def made(build: Callable[..., nn.Module], seed: int, **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build(**arguments)


def softmax64(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.astype(np.float64).max(axis=1, keepdims=True)
    return np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)


def columns(logits: NDArray[Any], labels: NDArray[np.int64]) -> Columns:
    p = softmax64(logits).astype(np.float32)
    return Columns(p_label=p[np.arange(len(labels)), labels], p_max=p.max(axis=1), argmax=p.argmax(axis=1))


def forwarded(model: nn.Module, images: Tensor) -> NDArray[np.float16]:
    """Logits in eval mode, as the cache keeps them."""
    model.eval()
    with torch.no_grad():
        logits: NDArray[np.float16] = model(images).numpy().astype(np.float16)
    return logits


@dataclass(kw_only=True)
class World:
    """A transfer set, a validation set, a student and a teacher. `teacher_logits(view)` may be replaced."""

    seed: int = 0
    n: int = 37
    n_val: int = 23
    student: Callable[[], nn.Module] = field(default_factory=lambda: lambda: made(small_cnn, 1, dropout=0.3))
    teacher: nn.Module = field(default_factory=lambda: made(small_mlp, 2))
    teacher_table: list[NDArray[np.float16]] | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.images = torch.randn(2, self.n, 3, SIDE, SIDE, generator=generator)
        self.val_images = torch.randn(1, self.n_val, 3, SIDE, SIDE, generator=generator)
        if self.labels is None:
            self.labels = torch.randint(CLASSES, (self.n,), generator=generator)
        self.val_labels = torch.randint(CLASSES, (self.n_val,), generator=generator).numpy()

    def feed(self, objective: str, settings: Settings) -> Feed:
        assert self.labels is not None
        labels = self.labels.numpy()
        teacher = self.teacher_table or [forwarded(self.teacher, view) for view in self.images]
        frozen = [forwarded(self.student(), view) for view in self.images]
        if facts_of(objective).contrastive:
            features = [forwarded(self.teacher[:-1], view) for view in self.images]  # type: ignore[index]
            everywhere = [np.zeros(self.n, np.uint8)] * 2
            tables = row_tables(everywhere, [[view] for view in features], CPU)
            return Feed(views=TensorViews(self.images), labels=self.labels, teacher_features=tables)
        rule = partition_of(objective, settings)
        if rule == "none":
            return Feed(views=TensorViews(self.images), labels=self.labels)
        sources = [
            assign_sources(rule, labels=labels, frozen=columns(f, labels), teachers=[columns(t, labels)])
            for f, t in zip(frozen, teacher, strict=True)
        ]
        return Feed(
            views=TensorViews(self.images),
            labels=self.labels,
            targets=row_tables(sources, [[f, t] for f, t in zip(frozen, teacher, strict=True)], CPU),
            teacher_classes=torch.from_numpy(np.stack([t.argmax(axis=1) for t in teacher])),
        )

    def loop(self, objective: str, hooks: Hooks | None = None, **given: Any) -> TransferLoop:
        settings = settings_for(objective, {"epochs": 2, "batch_size": 8, "lr": 0.05, **given})
        model = self.student()
        seed_step(self.seed, -1, 0)
        assert self.labels is not None
        dims = {"student_dim": 6, "teacher_dim": 12} if facts_of(objective).contrastive else {}
        module = build_objective(objective, Setup(settings=settings, labels=self.labels, **dims))
        return TransferLoop(
            step=TransferStep(model, module, objective, settings),
            feed=self.feed(objective, settings),
            validation=Validation(views=TensorViews(self.val_images), labels=self.val_labels),
            seed=self.seed,
            hooks=hooks,
        )


def weights_of(loop: TransferLoop) -> dict[str, Tensor]:
    """Every tensor that the result depends on, copied."""
    state = dict(loop.step.model.state_dict())
    state |= {f"objective.{name}": value for name, value in loop.step.objective.state_dict().items()}
    if loop.step.slow is not None:
        state |= {f"slow.{name}": value for name, value in loop.step.slow.state.items()}
    return {name: value.clone() for name, value in state.items()}


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
