"""One training step: student forward, objective, backward, guard, SGD. It never waits for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from kt_study.errors import UsageError
from kt_study.objectives import facts_of
from kt_study.settings import Settings
from worker.objectives import Batch, Objective
from worker.training.guard import Guard
from worker.training.slow_weights import SlowWeights
from worker.training.student import FeatureTap, batch_norms

AUTHORS_BATCH = 256
"""The batch size at which the released code's learning rate and N are meant (dist_utils.py: parse_cfg)."""


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """The inputs of a step, all on the device; names and shapes as in `worker.objectives.Batch`."""

    images: Tensor  # float32 [b, channels, h, w], normalised for the student
    labels: Tensor
    index: Tensor
    target: Tensor | None = None
    teacher_class: Tensor | None = None
    teacher_features: Tensor | None = None

    def split(self, size: int) -> Iterator[StepInputs]:
        """The same samples in parts of at most `size`."""
        for start in range(0, len(self.images), size):
            parts: dict[str, Any] = {
                field.name: None if (whole := getattr(self, field.name)) is None else whole[start : start + size]
                for field in dataclasses.fields(self)
            }
            yield StepInputs(**parts)


class BatchTooLarge(Exception):
    """Memory ran out in a step's forward or backward pass: nothing was updated, and the step may be repeated."""


class TransferStep:
    """The student's training step under an objective.

    Args:
        model: the student, on the device; trained in place.
        objective: on the device; its own parameters are trained too.
        name: of the objective.
        settings: as planned; under `reading = "authors"` the learning rate is scaled by batch size / 256.
        cuda_graphs: replay the student's compiled forward and backward passes as CUDA graphs.

    Raises:
        UsageError: CUDA graphs without a GPU, without `compile` or with micro-batches.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, name: str, settings: Settings, *, cuda_graphs: bool = False
    ) -> None:
        facts = facts_of(name)
        self.model = model
        self.objective = objective
        self.name = name
        self.settings = settings
        self.device = next(model.parameters()).device
        self.micro_batch = settings.micro_batch  # 0 for whole batches; shrinks when memory runs out
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        self.optimizer = sgd([*model.parameters(), *objective.parameters()], settings)
        self.guard = Guard(self.device, scaled=settings.precision == "fp16", clip=settings.grad_clip)
        self.slow = slow_weights(model, settings) if facts.slow_weights else None
        self._tap = FeatureTap(model) if facts.contrastive else None
        self._forward = forward_of(model, settings, self.device, cuda_graphs=cuda_graphs)
        self._cuda_graphs = cuda_graphs

    def __call__(self, inputs: StepInputs, *, step: int, epoch_step: int) -> None:
        """Take one step. `step` counts from the start of the run, `epoch_step` from that of the epoch.

        Raises:
            BatchTooLarge: memory ran out; nothing was updated.
        """
        try:
            loss = self._gradients(inputs)
        except torch.OutOfMemoryError as error:
            raise BatchTooLarge(str(error)) from error
        self.objective.settle()
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        self.guard.watch(self.optimizer, loss, [p.grad for p in parameters if p.grad is not None], step)
        self.optimizer.step()
        if self.slow is not None and self.slow.is_due(step, epoch_step):
            first = self.slow.authors and step == 0
            self.slow.update(self.model, self.guard.alive, first=first)

    def shrink(self, batch: int) -> str:
        """Halve the micro-batch after memory ran out on `batch` samples. Returns why it cannot, and what would help, or ""."""
        if reason := self._why_indivisible():
            return reason
        if self.micro_batch == 1:
            return "not even one sample fits; use a GPU with more memory"
        self.micro_batch = -(-min(self.micro_batch or batch, batch) // 2)
        if self._cuda_graphs:  # they would overwrite one part's gradients with the next's; and their memory is needed
            torch._dynamo.reset()
            self._forward = forward_of(self.model, self.settings, self.device, cuda_graphs=False)
            self._cuda_graphs = False
        return ""

    def _why_indivisible(self) -> str:
        """Why a batch may not be split, and what would help; empty if it may."""
        others = "a smaller batch_size" + (" or precision = 'bf16'" if self.settings.precision == "fp32" else "")
        if facts_of(self.name).contrastive:
            return f"{self.name} compares the samples of a whole batch; set {others}"
        if self.slow is not None and self.slow.authors:
            return f"reading = 'authors' weighs the samples of a whole batch; set {others}"
        if self.settings.batchnorm == "train" and (norms := len(batch_norms(self.model))):
            return f"the student's {norms} batch norms see whole batches; set batchnorm = 'frozen', {others}"
        return ""

    def _gradients(self, inputs: StepInputs) -> Tensor:
        """Forward and backward passes; returns the mean loss, nats."""
        self.optimizer.zero_grad(set_to_none=True)
        total = len(inputs.images)
        loss = torch.zeros((), device=self.device)
        for part in inputs.split(self.micro_batch or total):
            part_loss = self._losses(part).sum() / total
            (part_loss * self.guard.scale).backward()  # type: ignore[no-untyped-call]
            loss = loss + part_loss.detach()
        return loss

    def _losses(self, part: StepInputs) -> Tensor:
        images = part.images
        if self._cuda_graphs:
            # The logits of the part before may be overwritten from here on.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.settings.precision):
            logits = self._forward(images)
        batch = Batch(
            logits=logits.float(),
            labels=part.labels,
            index=part.index,
            target=part.target,
            teacher_class=part.teacher_class,
            features=None if self._tap is None or self._tap.features is None else self._tap.features.float(),
            teacher_features=part.teacher_features,
        )
        losses: Tensor = self.objective(batch)
        return losses


def forward_of(
    model: nn.Module, settings: Settings, device: torch.device, *, cuda_graphs: bool
) -> Callable[[Tensor], Tensor]:
    """The student's forward pass in a step: plain, compiled, or compiled and replayed as CUDA graphs.

    Raises:
        UsageError: CUDA graphs without a GPU, without `compile` or with micro-batches.
    """
    if cuda_graphs and device.type != "cuda":
        raise UsageError(f"CUDA graphs need a GPU, and this worker runs on the {device.type}; leave out --cuda-graphs")
    if cuda_graphs and not settings.compile:
        raise UsageError(
            "CUDA graphs replay compiled students; set [transfer] compile = true or leave out --cuda-graphs"
        )
    if cuda_graphs and settings.micro_batch:
        raise UsageError(
            f"CUDA graphs replay whole batches, and micro_batch = {settings.micro_batch} splits them; set micro_batch = 0"
            " or leave out --cuda-graphs"
        )
    if not settings.compile:
        return model
    compiled = torch.compile(model, mode="reduce-overhead", dynamic=False) if cuda_graphs else torch.compile(model)
    return cast(Callable[[Tensor], Tensor], compiled)


def sgd(parameters: list[nn.Parameter], settings: Settings) -> torch.optim.SGD:
    """SGD without a schedule, fused. Momentum starts from zero buffers, whose first step equals torch's own."""
    optimizer = torch.optim.SGD(
        parameters,
        lr=effective_lr(settings),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    if settings.momentum:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def effective_lr(settings: Settings) -> float:
    """The learning rate that SGD gets."""
    return settings.lr * (settings.batch_size / AUTHORS_BATCH if settings.reading == "authors" else 1.0)


def slow_weights(model: nn.Module, settings: Settings) -> SlowWeights:
    """Slow weights that start at the model's current state."""
    authors = settings.reading == "authors"
    every = max(1, round(settings.mcl_every * AUTHORS_BATCH / settings.batch_size)) if authors else settings.mcl_every
    return SlowWeights(model, tau=settings.mcl_tau, every=every, authors=authors)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The arithmetic of a forward pass: fp32, bf16 or fp16."""
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=half, enabled=precision != "fp32")
