"""Whole runs on tiny models: the same bits after any interruption, divergence, slow weights, partitions at work."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kt_study.objectives import OBJECTIVES
from tests.transfer.toy import (
    CLASSES,
    CPU,
    SIDE,
    TensorViews,
    World,
    assert_same_bits,
    forwarded,
    made,
    small_cnn,
    small_mlp,
    weights_of,
)
from worker.job.context import Stopped
from worker.training.checkpoints import load_checkpoint, save_checkpoint
from worker.training.guard import Guard
from worker.training.live import LiveTeacher
from worker.training.loop import CHECK_EVERY, Feed, Hooks, TransferLoop
from worker.training.step import TransferStep

JOB = "0" * 32


def interrupted(make: Callable[[Hooks], TransferLoop], stops: list[int], path: Path) -> TransferLoop:
    """A run that is asked to stop at these calls of `stopping`, each time in a new process's stead: a new loop."""
    for stop in [*stops, -1]:
        calls = iter(range(10**6))
        loop = make(
            Hooks(
                checkpoint=lambda state: save_checkpoint(path, JOB, state),
                stopping=lambda calls=calls, stop=stop: next(calls) == stop,
            )
        )
        torch.manual_seed(999)  # whatever state the generators of the new process are in
        if (state := load_checkpoint(path, JOB, CPU)) is not None:
            loop.load_state_dict(state)
        try:
            loop.run_outcome = loop.run()  # type: ignore[attr-defined]
        except Stopped:
            assert stop >= 0
            continue
        assert stop == -1, "the run ended before it was to be stopped"
    return loop


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_stopped_anywhere_ends_with_the_same_bits(objective: str, tmp_path: Path) -> None:
    world = World()
    unbroken = world.loop(objective)
    outcome = unbroken.run()
    # 5 steps and 1 evaluation batch an epoch: stop in the first epoch, its evaluation, the second, and at the end.
    for stops in ([0], [2, 1], [5], [8, 0], [11]):
        path = tmp_path / f"{stops}.pt"
        resumed = interrupted(lambda hooks: world.loop(objective, hooks), stops, path)
        assert_same_bits(weights_of(resumed), weights_of(unbroken))
        again = resumed.run_outcome  # type: ignore[attr-defined]
        np.testing.assert_array_equal(again.predictions, outcome.predictions)
        assert [{**row, "seconds": 0} for row in again.curve] == [{**row, "seconds": 0} for row in outcome.curve]
        assert again.steps == outcome.steps == 10


@pytest.mark.parametrize(("stop", "position"), [(0, (0, 1)), (3, (0, 4)), (5, (0, 5)), (6, (1, 1)), (11, (1, 5))])
def test_a_checkpoint_is_written_at_the_next_step_or_evaluation_batch(stop: int, position: tuple[int, int]) -> None:
    saved: list[tuple[int, int]] = []
    calls = iter(range(10**6))
    hooks = Hooks(
        checkpoint=lambda state: saved.append((state["epoch"], state["step"])), stopping=lambda: next(calls) == stop
    )
    with pytest.raises(Stopped):
        World().loop("kl", hooks).run()
    assert saved == [position]


@pytest.mark.parametrize(
    ("objective", "given"),
    [
        ("xe_kl_mcl", {"reading": "authors", "mcl_tau": 0.5}),
        ("kl_dp", {"warmup_epochs": 1, "momentum": 0.0}),
        ("kl", {"precision": "fp16", "grad_clip": 0.1}),
        ("kl", {"flips": "positive", "top_k": 2, "temperature": 2.0}),
    ],
)
def test_so_does_one_with_options(objective: str, given: dict[str, Any], tmp_path: Path) -> None:
    world = World()
    unbroken = world.loop(objective, **given)
    unbroken.run()
    resumed = interrupted(lambda hooks: world.loop(objective, hooks, **given), [3, 4], tmp_path / "c.pt")
    assert_same_bits(weights_of(resumed), weights_of(unbroken))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    world = World()
    left, right, other = world.loop("kl_dp"), world.loop("kl_dp"), world.loop("kl_dp")
    other.seed = 1
    for loop in (left, right, other):
        loop.run()
    assert_same_bits(weights_of(left), weights_of(right))
    assert not torch.equal(weights_of(left)["6.weight"], weights_of(other)["6.weight"])


def test_checkpoints_are_written_on_time_too() -> None:
    saved: list[dict[str, Any]] = []
    loop = World().loop(
        "kl", Hooks(checkpoint=lambda state: saved.append(copy.deepcopy(state)), checkpoint_every_s=0.0)
    )
    loop.run()
    assert [(state["epoch"], state["step"]) for state in saved] == [(e, s) for e in (0, 1) for s in (1, 2, 3, 4, 5)]


def test_every_sample_once_an_epoch_and_views_in_turn() -> None:
    world = World(n=17)  # batches of 8: the last sample would be alone, where batch norm has no variance
    loop = world.loop("kl", epochs=3)
    seen: list[tuple[int, list[int]]] = []
    original = loop.feed.views.batches

    def recording(order: Any, size: int, *, view: int = -1, start: int = 0) -> Any:
        seen.append((view, order.tolist()))
        return original(order, size, view=view, start=start)

    object.__setattr__(loop.feed, "views", _Recording(loop.feed.views, recording))
    loop.run()
    assert [view for view, _ in seen] == [0, 1, 0]
    assert all(len(set(order)) == len(order) == 16 for _, order in seen)
    assert len({tuple(order) for _, order in seen}) == 3


class _Recording:
    def __init__(self, views: Any, batches: Any) -> None:
        self.n = views.n
        self.batches = batches


@pytest.mark.parametrize(("every", "evaluated"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (0, [5])])
def test_evaluations_are_as_often_as_set_and_always_at_the_end(every: int, evaluated: list[int]) -> None:
    outcome = World().loop("kl", epochs=5, eval_every=every).run()
    assert [row["epoch"] for row in outcome.curve if row["acc"] is not None] == evaluated
    assert [row["epoch"] for row in outcome.curve] == [1, 2, 3, 4, 5]


def test_the_curve_holds_the_mean_loss_and_the_accuracy_at_that_epoch() -> None:
    world = World(student=lambda: made(small_mlp, 1))
    loop = world.loop("xe_kl", lr=0.0, weight_decay=0.0, batch_size=37, views=1)
    outcome = loop.run()
    with torch.no_grad():
        logits = world.student()(world.images[0]).double()
    teacher = torch.from_numpy(forwarded(world.teacher, world.images[0])).double()
    p, log_p = torch.softmax(teacher, 1), torch.log_softmax(teacher, 1)
    kl = (p * (log_p - torch.log_softmax(logits, 1))).sum(1)
    assert world.labels is not None
    xe = -torch.log_softmax(logits, 1)[torch.arange(37), world.labels]
    expected = float((0.5 * kl + 0.5 * xe).mean())
    assert outcome.curve[0]["loss"] == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        right = (loop.step.model(world.val_images[0]).argmax(1).numpy() == world.val_labels).mean()
    assert outcome.curve[1]["acc"] == pytest.approx(100 * right)


def test_throughput_counts_the_time_until_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's work may be far behind its launches; a step takes no time here, and the wait for the device 10 s."""
    now = 0.0
    monkeypatch.setattr("worker.training.loop.time.monotonic", lambda: now)
    looked = Guard.bad_step

    def waiting(guard: Guard) -> int:
        nonlocal now
        now += 10.0
        return looked(guard)

    monkeypatch.setattr(Guard, "bad_step", waiting)
    assert World().loop("kl", epochs=3).run().images_per_s == pytest.approx(37 / 10.0)


class TestDivergence:
    def world(self) -> World:
        """One sample of the second view has a target that is not finite."""
        world = World(student=lambda: made(small_cnn, 1))
        tables = [forwarded(world.teacher, view) for view in world.images]
        tables[1][20] = np.nan
        world.teacher_table = tables
        return world

    def test_weights_are_those_before_the_first_loss_that_is_not_finite(self) -> None:
        world = self.world()
        loop = world.loop("kl", epochs=6)
        outcome = loop.run()
        assert outcome.diverged_step is not None
        assert outcome.diverged_batch == outcome.diverged_step - 5
        assert outcome.steps == outcome.diverged_step
        assert len(outcome.curve) == 2
        assert all(np.isfinite(row["loss"]) for row in outcome.curve)
        healthy = World(student=lambda: made(small_cnn, 1)).loop("kl", epochs=6)
        with contextlib.suppress(Stopped):
            _stop_after(healthy, outcome.diverged_step)
        for name, parameter in healthy.step.model.named_parameters():
            assert torch.equal(parameter, dict(loop.step.model.named_parameters())[name]), name

    def test_the_sample_is_in_the_named_batch(self) -> None:
        from worker.data.views import epoch_order

        world = self.world()
        outcome = world.loop("kl", epochs=6).run()
        assert outcome.diverged_batch is not None
        batch = epoch_order(world.seed, 1, world.n)[outcome.diverged_batch * 8 :][:8]
        assert 20 in batch

    def test_a_resumed_run_diverges_alike(self, tmp_path: Path) -> None:
        world = self.world()
        unbroken = world.loop("xe_kl_mcl", epochs=6)
        outcome = unbroken.run()
        for stops in ([3], [9], [11]):
            make = lambda hooks: world.loop("xe_kl_mcl", hooks, epochs=6)  # noqa: E731
            resumed = interrupted(make, stops, tmp_path / f"{stops}.pt")
            assert_same_bits(weights_of(resumed), weights_of(unbroken))
            assert resumed.run_outcome.diverged_step == outcome.diverged_step  # type: ignore[attr-defined]

    def test_a_run_stopped_after_it_has_diverged_in_a_long_epoch_ends_alike(self, tmp_path: Path) -> None:
        world = World(student=lambda: made(small_cnn, 1), n=8 * (CHECK_EVERY + 9))
        tables = [forwarded(world.teacher, view) for view in world.images]
        tables[0][3] = np.nan
        world.teacher_table = tables
        unbroken = world.loop("kl")
        step = unbroken.run().diverged_step
        assert step is not None and step < CHECK_EVERY
        # Asked once a step up to the look at the device, which ends the epoch, and then once for the evaluation.
        for stop in (step + 1, CHECK_EVERY - 1):
            path = tmp_path / f"{stop}.pt"
            resumed = interrupted(lambda hooks: world.loop("kl", hooks), [stop], path)
            assert_same_bits(weights_of(resumed), weights_of(unbroken))

    def test_a_learning_rate_out_of_all_proportion_ends_as_a_result(self) -> None:
        loop = World(student=lambda: made(small_mlp, 1), n=8 * (CHECK_EVERY + 9)).loop("xe_kl", lr=1e30, epochs=3)
        outcome = loop.run()
        assert outcome.diverged_step is not None
        assert outcome.diverged_step < CHECK_EVERY
        assert all(torch.isfinite(value).all() for value in loop.step.model.state_dict().values())
        assert len(outcome.predictions) == 23

    def test_statistics_that_are_not_finite_are_reset(self) -> None:
        world = World(student=lambda: made(small_cnn, 1))
        world.images[0, 5] = float("inf")
        loop = world.loop("kl", epochs=3)
        assert loop.run().diverged_step is not None
        assert all(torch.isfinite(value).all() for value in loop.step.model.state_dict().values())


def _stop_after(loop: TransferLoop, steps: int) -> None:
    calls = iter(range(10**6))
    object.__setattr__(
        loop, "hooks", Hooks(stopping=lambda: loop.at.epoch * 5 + loop.at.step >= steps and next(calls) >= 0)
    )
    loop.run()


class TestSlowWeights:
    def test_slow_weights_never_touch_the_fast_ones(self) -> None:
        world = World()
        same = {"lr": 0.05, "kl_weight": 0.7, "epochs": 3}
        with_slow, without = world.loop("xe_kl_mcl", mcl_tau=0.3, **same), world.loop("xe_kl", **same)
        with_slow.run()
        without.run()
        assert_same_bits(dict(with_slow.step.model.state_dict()), dict(without.step.model.state_dict()))

    def test_nor_across_a_resume(self, tmp_path: Path) -> None:
        world = World()
        resumed = interrupted(lambda hooks: world.loop("xe_kl_mcl", hooks, kl_weight=0.7), [4, 3], tmp_path / "c.pt")
        without = world.loop("xe_kl", kl_weight=0.7)
        without.run()
        assert_same_bits(dict(resumed.step.model.state_dict()), dict(without.step.model.state_dict()))

    @pytest.mark.parametrize("reading", ["paper", "authors"])
    def test_they_follow_the_equation_every_n_steps(self, reading: str) -> None:
        world = World()
        loop = world.loop("xe_kl_mcl", mcl_tau=0.75, mcl_every=2, epochs=1, reading=reading, eval_every=0)
        fast = self.trajectory(loop)
        every = 2 * 256 // 8 if reading == "authors" else 2
        slow = fast[0]
        for step, theta in enumerate(fast[1:]):
            if reading == "authors" and step % every == 0:
                slow = theta if step == 0 else 0.75 * slow + 0.25 * theta
            elif reading == "paper" and (step + 1) % every == 0:
                slow = 0.75 * slow + 0.25 * theta
        assert loop.step.slow is not None
        torch.testing.assert_close(loop.step.slow.state["6.weight"].double(), slow, rtol=1e-5, atol=1e-7)

    def test_they_are_what_is_evaluated(self) -> None:
        world = World()
        loop = world.loop("xe_kl_mcl", mcl_tau=0.9, lr=0.5)
        outcome = loop.run()
        assert loop.step.slow is not None
        twin = made(small_cnn, 5)
        twin.load_state_dict(loop.step.slow.state)
        assert forwarded(twin, world.val_images[0]).argmax(1).tolist() == outcome.predictions.tolist()

    def test_authors_overwrite_the_fast_weights_at_every_evaluation(self) -> None:
        loop = World().loop("xe_kl_mcl", mcl_tau=0.9, reading="authors")
        loop.run()
        assert loop.step.slow is not None
        assert_same_bits(dict(loop.step.model.state_dict()), loop.step.slow.state)

    def trajectory(self, loop: TransferLoop) -> list[Tensor]:
        """The last layer's weight before the first step and after each one, float64."""
        seen = [loop.step.model.state_dict()["6.weight"].double()]
        original = TransferStep.__call__

        def recorded(this: TransferStep, *args: Any, **kwargs: Any) -> None:
            original(this, *args, **kwargs)
            seen.append(this.model.state_dict()["6.weight"].double())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TransferStep, "__call__", recorded)
            loop.run()
        return seen


class TestPartitionsAtWork:
    def test_a_teacher_equal_to_the_student_leaves_the_weights_where_they_are(self) -> None:
        student = made(small_cnn, 1)
        world = World(student=lambda: copy.deepcopy(student), teacher=copy.deepcopy(student))
        start = {name: value.clone() for name, value in student.state_dict().items()}
        for objective in ("kl_dp", "kl_dp_unsupervised"):
            loop = world.loop(objective, batchnorm="frozen", weight_decay=0.0, lr=0.1, epochs=5)
            loop.run()
            for name, value in loop.step.model.state_dict().items():
                # The target was rounded to float16, 2^-11 of logits below 1: gradients of 1e-4 at most.
                torch.testing.assert_close(value, start[name], rtol=0, atol=2e-3)
        moved = world.loop("xe_kl", batchnorm="frozen", weight_decay=0.0, lr=0.1, epochs=5)
        moved.run()
        assert (moved.step.model.state_dict()["6.weight"] - start["6.weight"]).abs().max() > 0.05

    def test_every_sample_stays_with_the_frozen_student_then(self) -> None:
        from kt_study.objectives import settings_for
        from tests.transfer.toy import columns
        from worker.objectives.partition import assign_sources

        world = World()
        assert world.labels is not None
        labels = world.labels.numpy()
        same = columns(forwarded(world.student(), world.images[0]), labels)
        for rule in ("label", "max"):
            assert not assign_sources(rule, labels=labels, frozen=same, teachers=[same]).any()  # type: ignore[arg-type]
        assert settings_for("kl_dp", {}).flips == "all"

    def test_an_oracle_of_one_class_teaches_that_class_and_the_others_stay(self) -> None:
        """Images carry their class; the student knows all but class 0, which it calls 1; the oracle knows only 0."""
        n, generator = 200, torch.Generator().manual_seed(4)
        labels = torch.arange(n) % CLASSES
        images = 0.3 * torch.randn(n, 3, SIDE, SIDE, generator=generator)
        images[torch.arange(n), 0, 0, labels] += 3.0
        student = self.student_without_class_0()
        oracle = np.full((n, CLASSES), 0.0, np.float16)
        oracle[labels.numpy() == 0, 0] = 8.0  # certain of class 0, clueless elsewhere
        world = World(n=n, student=lambda: copy.deepcopy(student), teacher_table=[oracle, oracle], labels=labels)
        world.images = torch.stack([images, images])
        world.val_images, world.val_labels = images[None], labels.numpy()
        before = forwarded(student, images).argmax(1)
        assert (before[labels == 0] == 1).all()
        assert (before == labels.numpy()).mean() > 0.75
        after = world.loop("kl_dp", epochs=20, lr=0.02, batch_size=20, weight_decay=0.0).run().predictions
        assert (after[labels == 0] == 0).mean() > 0.95
        known = (labels != 0).numpy()
        assert (after[known] == before[known]).mean() > 0.98
        plain = world.loop("kl", epochs=20, lr=0.02, batch_size=20, weight_decay=0.0).run().predictions
        assert (plain[known] == before[known]).mean() < 0.9  # without the partition the oracle's ignorance spreads

    def student_without_class_0(self) -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))
        with torch.no_grad():
            model[1].weight.zero_()
            model[1].bias.zero_()
            for label in range(CLASSES):
                model[1].weight[label, label] = 3.0
            model[1].weight[0, 0], model[1].weight[1, 0] = 0.0, 3.0
        return model


def test_a_live_teacher_is_in_train_mode_and_its_statistics_survive_a_resume(tmp_path: Path) -> None:
    world = World()

    def make(hooks: Hooks | None = None) -> TransferLoop:
        loop = world.loop("cd", hooks, reading="authors")
        live = LiveTeacher(made(small_cnn, 7), TensorViews(world.images), dim=6)
        object.__setattr__(loop, "feed", Feed(views=loop.feed.views, labels=loop.feed.labels, live=live))
        return loop

    unbroken = make()
    assert unbroken.feed.live is not None
    before = {name: value.clone() for name, value in unbroken.feed.live.state_dict().items()}
    unbroken.run()
    after = unbroken.feed.live.state_dict()
    assert after["1.num_batches_tracked"] == before["1.num_batches_tracked"] + 10
    resumed = interrupted(make, [2, 4], tmp_path / "c.pt")
    assert_same_bits(weights_of(resumed), weights_of(unbroken))
    assert resumed.feed.live is not None
    assert_same_bits(resumed.feed.live.state_dict(), after)
