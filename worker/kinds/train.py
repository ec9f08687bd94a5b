"""Job kind `train`: trains a model for a data set, whole or its last layer, and leaves its weights for others.

Which samples, which labels and which noise are hashes of (seed, sample), so that a recipe names one model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from kt_study.datasets import open_split
from kt_study.errors import DataError
from kt_study.files import written_aside
from kt_study.hashing import hash64, job_digest, uniform_array
from kt_study.words import DatasetRecord, ModelRecord, Progress, TrainSpec
from worker.context import JobContext, Rows, Stopped
from worker.data.loader import training_views
from worker.data.views import ViewRecipe, epoch_order
from worker.models import build_model

_WARM_UP = 0.1  # share of the steps in which the learning rate rises


def run(spec: dict[str, Any], context: JobContext) -> Rows:
    """Train one model: a `trainings` row, and its weights at `paths.weights(job digest)`.

    Raises:
        Stopped: asked to stop; training takes seconds to minutes, so it starts anew.
        DataError: the data set has no labels, or an image is unreadable.
    """
    wanted = msgspec.convert(spec, TrainSpec)
    dataset, start = context.records.dataset(wanted.dataset), context.records.model(wanted.start)
    began = time.monotonic()
    model = build_model(start, context.paths, context.device)
    training = _Training(wanted, dataset, start, model, context)
    loss = training.run()
    digest = job_digest("train", spec)
    _save(model, context, digest)
    row = {
        "dataset": dataset.name,
        "model": start.name.removesuffix(":untrained"),
        "model_key": digest,
        "scope": wanted.scope,
        "n": len(training.chosen),
        "epochs": wanted.epochs,
        "loss": loss,
        "seconds": round(time.monotonic() - began, 3),
    }
    return {"trainings": [row]}


class _Training:
    """One run: AdamW with a linear warm-up and a cosine decay, cross-entropy."""

    def __init__(
        self, spec: TrainSpec, dataset: DatasetRecord, start: ModelRecord, model: nn.Module, context: JobContext
    ) -> None:
        self._spec, self._model, self._context = spec, model, context
        labels = open_split(dataset, spec.split, context.paths).labels
        if labels is None:
            raise DataError(
                f"data set {dataset.name!r} has no labels in split {spec.split!r}; a model cannot be trained on it"
            )
        recipe = ViewRecipe(augment=spec.augment, seed=spec.seed, crop_pct=1.0)  # type: ignore[arg-type]
        self._views = training_views(
            dataset, spec.split, start, recipe, context.paths, device=context.device, shelf=context.shelf
        )
        self.chosen = chosen_samples(spec, labels)
        self._labels = torch.from_numpy(noisy_labels(spec, labels, start.num_classes)).to(context.device, torch.int64)
        self._parameters = list(_learning(model, spec.scope))
        self._optimizer = torch.optim.AdamW(self._parameters, lr=spec.lr, weight_decay=spec.weight_decay)
        self._steps = spec.epochs * -(-len(self.chosen) // spec.batch_size)

    def run(self) -> float:
        """Train to the end. Returns the mean loss of the last epoch, nats."""
        loss = float("nan")
        self._model.train()
        for epoch in range(self._spec.epochs):
            loss = self._epoch(epoch)
            self._context.report(Progress(epoch=epoch + 1, epochs=self._spec.epochs))
        self._model.eval()
        return loss

    def _epoch(self, epoch: int) -> float:
        torch.manual_seed(hash64("train", self._spec.seed, epoch) >> 1)
        order = self.chosen[epoch_order(self._spec.seed, epoch, len(self.chosen))]
        total = torch.zeros((), device=self._context.device)
        batches = self._views.batches(order, self._spec.batch_size, view=epoch)
        for step, (images, samples) in enumerate(batches, epoch * -(-len(order) // self._spec.batch_size)):
            if self._context.stopping():
                raise Stopped
            if self._spec.pixel_noise:
                images = images + self._spec.pixel_noise * torch.randn_like(images)
            loss = F.cross_entropy(self._model(images), self._labels[samples])
            self._step(loss, step)
            total += loss.detach() * len(samples)
        return float(total) / len(order)

    def _step(self, loss: torch.Tensor, step: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._spec.lr * _schedule(step, self._steps)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()


def chosen_samples(spec: TrainSpec, labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Positions of the samples that the recipe uses, ascending: each is kept with its class's share, by a hash."""
    shares = np.full(int(labels.max()) + 1, spec.share)
    for label, share in spec.class_shares.items():
        shares[int(label)] *= share
    draws = uniform_array(hash64("train-share", spec.seed), np.arange(len(labels)))
    return np.flatnonzero(draws < shares[labels])


def noisy_labels(spec: TrainSpec, labels: NDArray[np.integer[Any]], n_classes: int) -> NDArray[np.int64]:
    """int64 [n]: the labels, a share `label_noise` of them replaced by a uniform draw over the classes."""
    samples = np.arange(len(labels))
    replaced = uniform_array(hash64("train-noise", spec.seed), samples) < spec.label_noise
    drawn = (uniform_array(hash64("train-label", spec.seed), samples) * n_classes).astype(np.int64)
    return np.where(replaced, drawn, labels)


def _learning(model: nn.Module, scope: str) -> Iterator[nn.Parameter]:
    """The parameters that learn: all, or those of the last linear layer."""
    if scope == "all":
        yield from model.parameters()
        return
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in last.parameters():
        yield parameter.requires_grad_(True)


def _schedule(step: int, steps: int) -> float:
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def _save(model: nn.Module, context: JobContext, digest: str) -> None:
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with written_aside(context.paths.weights(digest)) as scratch:
        save_file(state, scratch)
