"""Job kind `train`: trains all layers or the last layer of a model on a data set, and saves the weights for other jobs.

scope = "all"   every layer, by AdamW; a new last layer where the data set has other classes than the model
scope = "head"  only the last layer, by SGD; everything else stays in eval mode and unchanged to the bit
scope = "body"  every layer, by SGD, under a new last layer, which is replaced by the old one at the end

The choice of samples, labels and noise are hashes of (seed, sample), so that a recipe determines one model.
"""

from __future__ import annotations

import math
import time
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from kt_study.datasets import list_split
from kt_study.errors import DataError, UsageError
from kt_study.hashing import hash64, job_digest, uniform_array
from kt_study.records import DatasetRecord, ModelRecord, Progress, TrainSpec
from kt_study.training import trained_record
from worker.data.loader import Rendering, training_views
from worker.data.views import ViewRecipe, epoch_order
from worker.job.context import JobContext, Rows, Stopped
from worker.models.build import build_model, save_state
from worker.models.heads import Head, new_head, own_head
from worker.training.checkpoints import load_checkpoint, save_checkpoint

_WARM_UP = 0.1  # share of the steps in which the learning rate rises
_MOMENTUM = 0.9


def run(spec: dict[str, Any], context: JobContext) -> Rows:
    """Train one model: a `trainings` row, and its weights at `paths.weights(job digest)`.

    Raises:
        Stopped: asked to stop; the checkpoint is written and the next attempt ends with the same bits.
        DataError: the data set has no labels, or an image is unreadable.
        UsageError: the loss stopped being finite.
    """
    recipe = msgspec.convert(spec, TrainSpec)
    job = job_digest("train", spec)
    dataset, start = context.records.dataset(recipe.dataset), context.records.model(recipe.start)
    training = _Training(recipe, dataset, start, job, context)
    training.resume()
    loss = training.run()
    save_state(context.paths.weights(job), training.result())
    context.paths.checkpoint(job).unlink(missing_ok=True)
    trained = trained_record(start, recipe, job, dataset)
    row = {
        "dataset": dataset.name,
        "model": trained.name,
        "model_key": trained.key,
        "scope": recipe.scope,
        "n": len(training.chosen),
        "epochs": recipe.epochs,
        "loss": loss,
        "seconds": round(training.seconds(), 3),
    }
    return {"trainings": [row]}


class _Training:
    """One run: cross-entropy, a linear warm-up of the learning rate and a cosine decay.

    The position is (epoch, step): `step` batches of `epoch` are done.
    """

    def __init__(
        self, spec: TrainSpec, dataset: DatasetRecord, start: ModelRecord, job: str, context: JobContext
    ) -> None:
        self._spec, self._start, self._job, self._context = spec, start, job, context
        labels = list_split(dataset, spec.split, context.paths)[0].labels
        if labels is None:
            raise DataError(
                f"data set {dataset.name!r} has no labels in split {spec.split!r}; a model cannot be trained on it"
            )
        self._model = build_model(start, context.paths, torch.device("cpu"))
        self._old_state: dict[str, torch.Tensor] = {}
        if spec.scope == "body":
            self._old_state = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        self._head = _head(self._model, spec, start, dataset)
        self._model.to(context.device)
        self._views = training_views(
            dataset,
            spec.split,
            start,
            ViewRecipe(augment=spec.augment, seed=spec.seed, crop_pct=1.0),  # type: ignore[arg-type]
            context.paths,
            device=context.device,
            workers=context.options.loader_workers,
            worker_cache=context.worker_cache,
            rendering=Rendering(views=spec.epochs, stopping=context.stopping),
        )
        self.chosen = chosen_samples(spec, labels)
        self._labels = torch.from_numpy(noisy_labels(spec, labels, dataset.n_classes)).to(context.device, torch.int64)
        self._optimizer = _optimizer(self._model, self._head, spec)
        n = len(self.chosen)
        self._samples = n - 1 if n % spec.batch_size == 1 and n > 1 else n  # one sample has no variance for batch norm
        self._steps = -(-self._samples // spec.batch_size)  # of an epoch
        self._epoch, self._step = 0, 0
        self._total = torch.zeros((), device=context.device)
        self._random: list[torch.Tensor] | None = None  # of a checkpoint that has just been loaded
        self._earlier_s, self._began = 0.0, time.monotonic()
        self._saved = self._began

    def resume(self) -> None:
        """Go to the checkpoint's position, if there is one; its tensors are freed with this frame."""
        file = self._context.paths.checkpoint(self._job)
        if (state := load_checkpoint(file, self._job, self._context.device)) is not None:
            self.load_state_dict(state)

    def run(self) -> float:
        """Train to the end from the current position. Returns the mean loss of the last epoch, nats.

        Raises:
            Stopped: asked to stop; the checkpoint is written.
            UsageError: the loss stopped being finite.
        """
        try:
            return self._run()
        except Stopped:
            self._save()
            raise

    def _run(self) -> float:
        loss = float("nan")
        _train_mode(self._model, self._head, self._spec.scope)
        while self._epoch < self._spec.epochs:
            loss = self._finish_epoch()
            if not math.isfinite(loss):
                raise UsageError(
                    f"training {self._start.name!r} diverged in epoch {self._epoch + 1}: its loss is {loss};"
                    " lower the learning rate and plan again"
                )
            self._epoch, self._step = self._epoch + 1, 0
            self._total = torch.zeros_like(self._total)
            self._context.report(Progress(epoch=self._epoch, epochs=self._spec.epochs))
        return loss

    def result(self) -> dict[str, torch.Tensor]:
        """The state that the job saves: under scope `body` with the old last layer."""
        state = self._model.state_dict()
        if self._spec.scope != "body":
            return state
        return {name: self._old_state[name] if name in self._head.names else state[name] for name in self._old_state}

    def seconds(self) -> float:
        """Wall time of all attempts."""
        return self._earlier_s + time.monotonic() - self._began

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "epoch": self._epoch,
            "step": self._step,
            "total": self._total,
            "random": self._random or _random_state(self._context.device),
            "seconds": self.seconds(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of a checkpoint."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for of_parameter in self._optimizer.state.values():
            if isinstance(count := of_parameter.get("step"), torch.Tensor):
                of_parameter["step"] = count.cpu()  # where torch keeps it for every device
        self._epoch, self._step, self._total = state["epoch"], state["step"], state["total"]
        self._earlier_s = state["seconds"]
        self._random = state["random"]

    def _finish_epoch(self) -> float:
        torch.manual_seed(hash64("train", self._spec.seed, self._epoch) >> 1)
        order = self.chosen[epoch_order(self._spec.seed, self._epoch, len(self.chosen))][: self._samples]
        for images, samples in self._views.batches(order, self._spec.batch_size, view=self._epoch, start=self._step):
            if self._random is not None:  # restored only after the first batch: loaders draw too
                _set_random_state(self._random, self._context.device)
                self._random = None
            if self._context.stopping():
                raise Stopped
            if time.monotonic() - self._saved >= self._context.options.checkpoint_every_s:
                self._save()
            if self._spec.pixel_noise:
                images = images + self._spec.pixel_noise * torch.randn_like(images)
            loss = F.cross_entropy(self._model(images), self._labels[samples])
            self._learn(loss)
            self._total += loss.detach() * len(samples)
            self._step += 1
        return float(self._total) / len(order)

    def _learn(self, loss: torch.Tensor) -> None:
        done = self._epoch * self._steps + self._step
        for group in self._optimizer.param_groups:
            group["lr"] = self._spec.lr * _schedule(done, self._spec.epochs * self._steps)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def _save(self) -> None:
        save_checkpoint(self._context.paths.checkpoint(self._job), self._job, self.state_dict())
        self._saved = time.monotonic()


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


def _head(model: nn.Module, spec: TrainSpec, start: ModelRecord, dataset: DatasetRecord) -> Head:
    """The last layer to train: the model's own if it has the right classes, else a new one."""
    if spec.scope != "body" and start.num_classes == dataset.n_classes:
        return own_head(model, start.num_classes) if spec.scope == "head" else Head(modules=[], names=frozenset())
    return new_head(model, dataset.n_classes, seed=hash64("train-head", spec.seed) >> 1)


def _optimizer(model: nn.Module, head: Head, spec: TrainSpec) -> torch.optim.Optimizer:
    if spec.scope == "all":
        return torch.optim.AdamW(list(model.parameters()), lr=spec.lr, weight_decay=spec.weight_decay)
    parameters = head.parameters() if spec.scope == "head" else list(model.parameters())
    return torch.optim.SGD(parameters, lr=spec.lr, momentum=_MOMENTUM, weight_decay=spec.weight_decay)


def _train_mode(model: nn.Module, head: Head, scope: str) -> None:
    """Everything in train mode, or the last layer alone."""
    if scope != "head":
        model.train()
        return
    model.eval().requires_grad_(False)
    for module in head.modules:
        module.train().requires_grad_(True)


def _schedule(step: int, steps: int) -> float:
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def _random_state(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1].cpu(), device)
