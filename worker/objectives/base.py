"""Input and output of every objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from kt_study.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Inputs of an objective before the first batch."""

    settings: Settings
    labels: Tensor  # int64 [n], of the transfer set
    student_dim: int = 0  # length of the student's features; 0 unless the objective is contrastive
    teacher_dim: int = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch for an objective, all on one device. b samples, c classes."""

    logits: Tensor  # float32 [b, c], the student's
    labels: Tensor  # int64 [b]
    index: Tensor  # int64 [b], positions in the transfer set
    target: Tensor | None = None  # float [b, c], logits of each sample's source; none for contrastive objectives
    teacher_class: Tensor | None = None  # int64 [b], the teacher's prediction; only for objectives that use it
    features: Tensor | None = None  # float32 [b, d_s], the student's, before its last layer
    teacher_features: Tensor | None = None  # float [b, d_t]


class Objective(nn.Module):
    """Base: a batch in, float32 [b] losses in nats out, whose mean is the training loss.

    An objective's parameters and buffers are trained and checkpointed with the student.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.settings = setup.settings

    def forward(self, batch: Batch) -> Tensor:
        """Losses in nats, float32 [b]."""
        raise NotImplementedError

    def settle(self) -> None:
        """Called once per step, after the backward pass: the place to change buffers that the gradient was taken
        through."""


def given(value: Tensor | None, name: str) -> Tensor:
    """The tensor, which this objective requires. Raises ValueError if the batch has none."""
    if value is None:
        raise ValueError(f"this objective needs Batch.{name}")
    return value
