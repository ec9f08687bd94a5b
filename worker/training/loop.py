"""Epochs of a transfer: order, views, curve, checkpoints and stop requests.

The position is (epoch, step): `step` batches of `epoch` are done. Step = steps of an epoch means that its evaluation
is due. A run resumed at any position ends with the same bits as one that was never interrupted, on one kind of
machine and number of threads.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kt_study.records import Progress
from worker.data.loader import Views
from worker.data.views import epoch_order
from worker.job.context import Stopped
from worker.training.deterministic import seed_step
from worker.training.evaluate import accuracy, predictions
from worker.training.guard import NEVER
from worker.training.live import LiveTeacher
from worker.training.rows import RowTable
from worker.training.step import BatchTooLarge, StepInputs, TransferStep
from worker.training.student import train_mode

log = logging.getLogger("kt-study.worker")

REPORT_EVERY_S = 2.0

CHECK_EVERY = 50
"""Steps between two checks for a loss that is not finite, each of which waits for the device. In steps, not seconds: batch
norm continues to count batches until the check, so its position must not depend on the machine."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The inputs of a transfer's batches. Lists and first dimensions are over views."""

    views: Views
    labels: Tensor  # int64 [n] on the device
    targets: list[RowTable] = field(default_factory=list)
    teacher_features: list[RowTable] = field(default_factory=list)
    teacher_classes: Tensor | None = None  # int64 [views, n] on the device
    live: LiveTeacher | None = None  # in place of teacher_features


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Callbacks of the loop."""

    checkpoint: Callable[[dict[str, Any]], None] = lambda _: None
    stopping: Callable[[], bool] = lambda: False
    report: Callable[[Progress], None] = lambda _: None
    checkpoint_every_s: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The split on which the student is measured."""

    views: Views
    labels: NDArray[np.int64]
    batch_size: int = 64


@dataclass(kw_only=True)
class Position:
    """The position and results of a run; everything but the weights."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0  # of earlier attempts
    curve: list[dict[str, Any]] = field(default_factory=list)  # epoch, loss, acc, seconds


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The results of a run, except the weights."""

    predictions: NDArray[np.int64]
    curve: list[dict[str, Any]]
    steps: int  # optimiser steps taken
    diverged_step: int | None  # from 0; None when every loss was finite
    diverged_batch: int | None  # of its epoch
    seconds: float  # wall time, all attempts
    images_per_s: float  # training only, this attempt
    micro_batch: int  # samples per forward pass at the end; 0 for whole batches


class TransferLoop:
    """Runs the epochs of one transfer.

    Args:
        step: the student's training step.
        feed: the transfer set.
        validation: where accuracy is measured.
        seed: of the order, dropout and negatives.
        hooks: checkpoints, progress and stop requests.
    """

    def __init__(
        self, *, step: TransferStep, feed: Feed, validation: Validation, seed: int, hooks: Hooks | None = None
    ) -> None:
        self.step = step
        self.feed = feed
        self.validation = validation
        self.seed = seed
        self.hooks = hooks or Hooks()
        self.settings = step.settings
        self.at = Position()
        self._began = self._saved = self._reported = time.monotonic()
        self._trained_images, self._trained_s = 0, 0.0
        self._finite_buffers = {name: buffer.detach().clone() for name, buffer in step.model.named_buffers()}

    @property
    def samples(self) -> int:
        """Samples of an epoch: all but a last batch of one, which has no variance for batch norm."""
        n, batch = self.feed.views.n, self.settings.batch_size
        return n - 1 if n % batch == 1 and n > 1 else n

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.samples // self.settings.batch_size)

    def run(self) -> Outcome:
        """Train from the current position to the end, or to the first loss that is not finite.

        Raises:
            Stopped: a stop was requested; the checkpoint is written.
            torch.OutOfMemoryError: with advice, if smaller parts of a batch would change the result.
        """
        try:
            return self._run()
        except Stopped:
            self._save()
            raise

    def _run(self) -> Outcome:
        predicted = None
        while self.at.epoch < self.settings.epochs:
            self.train_epoch()
            predicted = self._close_epoch()
            if self._diverged():
                break
        return self._outcome(self._predict() if predicted is None else predicted)

    def train_epoch(self) -> None:
        """Take the remaining steps of the current epoch, without its evaluation.

        Raises:
            Stopped: a stop was requested; no checkpoint is written.
            torch.OutOfMemoryError: as `run`.
        """
        epoch, batch_size = self.at.epoch, self.settings.batch_size
        view = epoch % self.settings.views
        order = epoch_order(self.seed, epoch, self.feed.views.n)[: self.samples]
        train_mode(self.step.model, self.settings.batchnorm, only_last_layer=epoch < self.settings.warmup_epochs)
        began = time.monotonic()
        for images, index, live in self._batches(order, view):
            first = self.at.step * batch_size
            seed_step(self.seed, epoch, self.at.step)
            inputs = self._inputs(images, index, order[first : first + len(images)], view, live)
            self._take_step(inputs)
            self.at.step += 1
            self._trained_images += len(images)
            if self._check_in():
                break
        self.step.guard.bad_step()  # waits for the device, before the time is taken
        self._trained_s += time.monotonic() - began

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        slow = self.step.slow
        return {
            "model": self.step.model.state_dict(),
            "objective": self.step.objective.state_dict(),
            "optimizer": self.step.optimizer.state_dict(),
            "guard": self.step.guard.state_dict(),
            "slow": None if slow is None else slow.state,
            "live": None if self.feed.live is None else self.feed.live.state_dict(),
            "epoch": self.at.epoch,
            "step": self.at.step,
            "seconds": self._seconds(),
            "curve": self.at.curve,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of a checkpoint."""
        self.step.model.load_state_dict(state["model"])
        self.step.objective.load_state_dict(state["objective"])
        self.step.optimizer.load_state_dict(state["optimizer"])
        self.step.guard.load_state_dict(state["guard"])
        if self.step.slow is not None:
            self.step.slow.load_state_dict(state["slow"])
        if self.feed.live is not None:
            self.feed.live.load_state_dict(state["live"])
        self.at = Position(
            epoch=state["epoch"], step=state["step"], seconds=state["seconds"], curve=list(state["curve"])
        )

    def _take_step(self, inputs: StepInputs) -> None:
        """One step; if memory runs out, again in smaller parts, if that does not change the result."""
        number, size = self.at.epoch * self.steps + self.at.step, len(inputs.images)
        while True:
            try:
                self.step(inputs, step=number, epoch_step=self.at.step)
                return
            except BatchTooLarge as error:
                if reason := self.step.shrink(size):
                    raise torch.OutOfMemoryError(f"no memory for a batch of {size}: {reason}. {error}") from error
            log.warning("memory ran out at step %d; continuing in micro-batches of %d", number, self.step.micro_batch)
            seed_step(self.seed, self.at.epoch, self.at.step)

    def _batches(self, order: NDArray[np.int64], view: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """The student's images, their positions, and a live teacher's images, from the current step on."""
        size, start = self.settings.batch_size, self.at.step
        own = self.feed.views.batches(order, size, view=view, start=start)
        if self.feed.live is None:
            yield from ((images, index, None) for images, index in own)
            return
        others = self.feed.live.views.batches(order, size, view=view, start=start)
        for (images, index), (teacher_images, _) in zip(own, others, strict=True):
            yield images, index, teacher_images

    def _inputs(
        self, images: Tensor, index: Tensor, positions: NDArray[np.int64], view: int, live: Tensor | None
    ) -> StepInputs:
        feed = self.feed
        features = feed.teacher_features[view].rows(index, positions) if feed.teacher_features else None
        if feed.live is not None and live is not None:
            features = feed.live.features(live)
        return StepInputs(
            images=images,
            labels=feed.labels[index],
            index=index,
            target=feed.targets[view].rows(index, positions) if feed.targets else None,
            teacher_class=None if feed.teacher_classes is None else feed.teacher_classes[view][index],
            teacher_features=features,
        )

    def _check_in(self) -> bool:
        """Once per step: check for divergence, stop, save or report if it is time. True if the run has diverged."""
        if self.at.step % CHECK_EVERY == 0 and self._diverged():
            self.at.step = self.steps
            return True
        if self.hooks.stopping():
            raise Stopped
        now = time.monotonic()
        if now - self._saved >= self.hooks.checkpoint_every_s:
            self._save()
        if now - self._reported >= REPORT_EVERY_S:
            self._reported = now
            rate = self._trained_images / max(now - self._began, 1e-9)
            at, epochs = self.at, self.settings.epochs
            self.hooks.report(
                Progress(epoch=at.epoch, epochs=epochs, step=at.step, steps=self.steps, images_per_s=rate)
            )
        return False

    def _close_epoch(self) -> NDArray[np.int64] | None:
        """The epoch's row of the curve, its evaluation where one is due, and the move to the next epoch."""
        diverged = self._diverged()
        done = self.at.epoch + 1
        due = self.settings.eval_every and done % self.settings.eval_every == 0
        predicted = None
        if diverged or done == self.settings.epochs or due:
            predicted = self._predict()
        self.at.curve.append(
            {
                "epoch": done,
                "loss": self.step.guard.mean_loss(),
                "acc": None if predicted is None else accuracy(predicted, self.validation.labels),
                "seconds": self._seconds(),
            }
        )
        if not diverged:
            self.at.epoch, self.at.step = done, 0
        return predicted

    def _predict(self) -> NDArray[np.int64]:
        if self._diverged():
            self._reset_buffers()
        slow = self.step.slow
        found = predictions(
            self.step.model,
            self.validation.views,
            batch_size=self.validation.batch_size,
            slow=slow,
            stopping=self.hooks.stopping,
        )
        if slow is not None and slow.authors:
            slow.overwrite(self.step.model)
        return found

    def _reset_buffers(self) -> None:
        """Reset statistics that are not finite to the start's: batch norm counts a batch before its loss."""
        buffers = dict(self.step.model.named_buffers())
        averaged = {} if self.step.slow is None else self.step.slow.state
        for name, start in self._finite_buffers.items():
            for buffer in (buffers[name], averaged.get(name, buffers[name])):
                if buffer.is_floating_point() and not torch.isfinite(buffer).all():
                    buffer.copy_(start)

    def _diverged(self) -> bool:
        return self.step.guard.bad_step() != NEVER

    def _outcome(self, predicted: NDArray[np.int64]) -> Outcome:
        bad = self.step.guard.bad_step()
        diverged = bad != NEVER
        return Outcome(
            predictions=predicted,
            curve=self.at.curve,
            steps=bad if diverged else self.at.epoch * self.steps,
            diverged_step=bad if diverged else None,
            diverged_batch=bad % self.steps if diverged else None,
            seconds=self._seconds(),
            images_per_s=self._trained_images / self._trained_s if self._trained_s else 0.0,
            micro_batch=self.step.micro_batch,
        )

    def _save(self) -> None:
        self.hooks.checkpoint(self.state_dict())
        self._saved = time.monotonic()

    def _seconds(self) -> float:
        return self.at.seconds + time.monotonic() - self._began
