"""One training step: SGD, batch norm modes, warm-up, clipping, micro-batches, precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kt_study.errors import UsageError
from kt_study.failures import is_transient
from kt_study.hashing import hash64
from kt_study.objectives import settings_for
from tests.transfer.toy import CLASSES, SIDE, World, made, small_cnn, small_mlp
from worker.objectives import Setup, build_objective
from worker.training.deterministic import seed_step
from worker.training.guard import NEVER, Guard
from worker.training.step import StepInputs, TransferStep, forward_of
from worker.training.student import batch_norms, check_micro_batch, last_layer, train_mode


def inputs(n: int = 8) -> StepInputs:
    generator = torch.Generator().manual_seed(0)
    return StepInputs(
        images=torch.randn(n, 3, SIDE, SIDE, generator=generator),
        labels=torch.randint(CLASSES, (n,), generator=generator),
        index=torch.arange(n),
        target=torch.randn(n, CLASSES, generator=generator),
    )


def step_of(model: nn.Module, objective: str = "xe_kl", **given: Any) -> TransferStep:
    settings = settings_for(objective, {"lr": 0.1, "weight_decay": 0.01, **given})
    module = build_objective(objective, Setup(settings=settings, labels=torch.zeros(8, dtype=torch.int64)))
    train_mode(model, settings.batchnorm)
    return TransferStep(model, module, objective, settings)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def run(step: TransferStep, n: int, start: int = 0) -> dict[str, Tensor]:
    for k in range(start, start + n):
        step(inputs(), step=k, epoch_step=k)
    return weights(step.model)


def test_sgd_is_momentum_and_weight_decay_by_the_textbook() -> None:
    step = step_of(made(small_mlp, 0), momentum=0.9)
    theta = {name: p.detach().double().numpy().copy() for name, p in step.model.named_parameters()}
    velocity = {name: np.zeros_like(value) for name, value in theta.items()}
    for k in range(4):
        step(inputs(), step=k, epoch_step=k)
        for name, parameter in step.model.named_parameters():
            assert parameter.grad is not None
            velocity[name] = 0.9 * velocity[name] + parameter.grad.double().numpy() + 0.01 * theta[name]
            theta[name] = theta[name] - 0.1 * velocity[name]
            np.testing.assert_allclose(parameter.detach(), theta[name], rtol=1e-4, atol=1e-6)


def test_authors_scale_the_learning_rate_with_the_batch() -> None:
    assert step_of(made(small_mlp, 0), batch_size=64, reading="authors").optimizer.param_groups[0]["lr"] == 0.025
    assert step_of(made(small_mlp, 0), batch_size=64).optimizer.param_groups[0]["lr"] == 0.1


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scale() -> None:
    for mode in ("train", "frozen"):
        model = made(small_cnn, 1)
        before = weights(model)
        after = run(step_of(model, batchnorm=mode), 2)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        assert moved & statistics == (statistics if mode == "train" else set())
        assert {"1.weight", "1.bias", "0.weight"} <= moved


def test_warm_up_moves_only_the_last_layer() -> None:
    model = made(small_cnn, 1)
    before = weights(model)
    step = step_of(model)
    train_mode(model, "train", only_last_layer=True)
    after = run(step, 2)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"6.weight", "6.bias"}
    train_mode(model, "train")
    assert not torch.equal(run(step, 1)["0.weight"], after["0.weight"])


@pytest.mark.parametrize("objective", ["kl", "xe_kl", "kl_dp", "soft_xe", "kl_label_smoothing", "xe_kl_mcl"])
def test_micro_batches_change_nothing_beyond_rounding(objective: str) -> None:
    whole = run(step_of(made(small_cnn, 1), objective, batchnorm="frozen"), 5)
    for size in (1, 3, 8, 100):
        split = run(step_of(made(small_cnn, 1), objective, batchnorm="frozen", micro_batch=size), 5)
        for name, value in whole.items():
            torch.testing.assert_close(split[name], value, rtol=1e-5, atol=1e-6)


def test_micro_batches_are_refused_where_batch_norm_would_see_part_of_a_batch() -> None:
    with pytest.raises(UsageError, match="1 batch norms see; set batchnorm = 'frozen'"):
        check_micro_batch(small_cnn(), 4, "train")
    check_micro_batch(small_cnn(), 4, "frozen")
    check_micro_batch(small_mlp(), 4, "train")


def test_when_memory_runs_out_the_batch_is_split_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(student=lambda: made(small_cnn, 1))
    whole = world.loop("kl_dp", batchnorm="frozen")
    whole.run()
    original = nn.Conv2d.forward

    def small_memory(layer: nn.Conv2d, images: Tensor) -> Tensor:
        if len(images) > 3 and layer.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(layer, images)

    monkeypatch.setattr(nn.Conv2d, "forward", small_memory)
    split = world.loop("kl_dp", batchnorm="frozen")
    outcome = split.run()
    assert outcome.micro_batch == 2  # 8, 4, 2
    for name, value in whole.step.model.state_dict().items():
        torch.testing.assert_close(split.step.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    for objective, given in (("kl_dp", {}), ("cd", {"batchnorm": "frozen"})):
        with pytest.raises(torch.OutOfMemoryError):
            world.loop(objective, **given).run()


def test_compile_wraps_the_student_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda model: wrapped.append(model) or model)
    compiled, plain = made(small_cnn, 1), made(small_cnn, 1)
    left, right = run(step_of(compiled, compile=True), 2), run(step_of(plain), 2)
    assert wrapped == [compiled]
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_cuda_graphs_are_replayed_by_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **how: asked.append(how) or model)
    model, settings = made(small_cnn, 1), settings_for("kl", {"compile": True})
    for graphs in (False, True):
        assert forward_of(model, settings, torch.device("cuda"), cuda_graphs=graphs) is model
    assert asked == [{}, {"mode": "reduce-overhead", "dynamic": False}]


def test_cuda_graphs_are_refused_where_they_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    model = made(small_cnn, 1)
    with pytest.raises(UsageError, match="need a GPU, and this worker runs on the cpu; leave out --cuda-graphs"):
        forward_of(model, settings_for("kl", {"compile": True}), torch.device("cpu"), cuda_graphs=True)
    with pytest.raises(UsageError, match="set \\[transfer\\] compile = true"):
        forward_of(model, settings_for("kl", {}), torch.device("cuda"), cuda_graphs=True)
    with pytest.raises(UsageError, match="micro_batch = 4 splits them; set micro_batch = 0 or leave out --cuda-graphs"):
        forward_of(
            model, settings_for("kl", {"compile": True, "micro_batch": 4}), torch.device("cuda"), cuda_graphs=True
        )


def test_batches_that_had_to_be_split_are_no_longer_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of one part lie where the graph of the next part would write: torch refuses to add them up."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **how: asked.append(how) or model)
    step = step_of(made(small_cnn, 1), compile=True, batchnorm="frozen")
    step._cuda_graphs = True
    assert step.shrink(8) == ""
    assert (step.micro_batch, asked) == (4, [{}, {}])
    marked: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(1))
    run(step, 1)
    assert not marked


@pytest.mark.parametrize(
    ("objective", "given", "says"),
    [
        ("kl_dp", {}, "the student's 1 batch norms see whole batches; set batchnorm = 'frozen', a smaller batch_size"),
        ("cd", {"batchnorm": "frozen"}, "cd compares the samples of a whole batch; set a smaller batch_size or"),
        (
            "xe_kl_mcl",
            {"batchnorm": "frozen", "reading": "authors"},
            "reading = 'authors' weighs the samples of a whole",
        ),
        ("kl_dp", {"batchnorm": "frozen"}, "not even one sample fits; use a GPU with more memory. CUDA"),
        ("cd", {"batchnorm": "frozen", "precision": "bf16"}, "a whole batch; set a smaller batch_size. CUDA"),
    ],
)
def test_where_a_batch_cannot_be_split_the_error_has_advice(
    objective: str, given: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(TransferStep, "_losses", no_memory)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        World(student=lambda: made(small_cnn, 1)).loop(objective, **given).run()
    assert str(caught.value).startswith("no memory for a batch of 8: ")
    assert says in str(caught.value)
    assert "Tried to allocate 2.00 GiB" in str(caught.value)
    assert is_transient(caught.value)


def test_a_step_is_not_repeated_once_the_weights_have_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def no_memory(*_: Any, **__: Any) -> None:
        taken.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("worker.training.slow_weights.SlowWeights.update", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        World(student=lambda: made(small_cnn, 1)).loop("xe_kl_mcl", batchnorm="frozen", mcl_every=1).run()
    assert taken == [1]


def test_a_step_is_seeded_as_torch_seeds() -> None:
    seed_step(3, 1, 4)
    ours = torch.rand(5)
    torch.manual_seed(hash64("step", 3, 1, 4) >> 1)
    assert torch.equal(ours, torch.rand(5))


def test_clipping_is_torchs_own() -> None:
    model, twin = made(small_mlp, 0), made(small_mlp, 0)
    step, plain = step_of(model, grad_clip=0.05, momentum=0.0), step_of(twin, lr=0.0, momentum=0.0)
    plain(inputs(), step=0, epoch_step=0)
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
    assert norm > 0.1  # or nothing was clipped
    expected = {name: p.detach() - 0.1 * (p.grad + 0.01 * p.detach()) for name, p in twin.named_parameters()}
    after = run(step, 1)
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.03), ("fp16", 0.01)])
def test_half_precision_is_near_full_precision(precision: str, tolerance: float) -> None:
    start = weights(made(small_cnn, 1))
    full = run(step_of(made(small_cnn, 1)), 10)
    half = run(step_of(made(small_cnn, 1), precision=precision), 10)
    assert all(value.dtype in (torch.float32, torch.int64) for value in half.values())
    gone = sum(float((full[name] - start[name]).norm() ** 2) for name in full if "num" not in name) ** 0.5
    apart = sum(float((full[name] - half[name]).norm() ** 2) for name in full if "num" not in name) ** 0.5
    assert 0 < apart < tolerance * gone


def test_channels_last_changes_nothing_beyond_rounding() -> None:
    plain, last = run(step_of(made(small_cnn, 1)), 5), run(step_of(made(small_cnn, 1), channels_last=True), 5)
    for name, value in plain.items():
        torch.testing.assert_close(last[name].contiguous(), value, rtol=1e-4, atol=1e-6)


class TestGuard:
    def step(self, guard: Guard, loss: float, gradient: float) -> tuple[float, int]:
        """The parameter after one step from 1 with lr 1, and the first bad step."""
        parameter = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0, fused=True)
        parameter.grad = torch.tensor([gradient]) * guard.scale
        guard.watch(optimizer, torch.tensor(loss), [parameter.grad], step=7)
        optimizer.step()
        return float(parameter.detach()), guard.bad_step()

    @pytest.mark.parametrize(("loss", "gradient"), [(float("nan"), 0.5), (float("inf"), 0.5), (1.0, float("nan"))])
    def test_from_the_first_bad_step_on_weights_stand_still(self, loss: float, gradient: float) -> None:
        guard = Guard(torch.device("cpu"))
        assert self.step(guard, 1.0, 0.5) == (0.5, NEVER)
        assert self.step(guard, loss, gradient) == (1.0, 7)
        assert self.step(guard, 1.0, 0.5) == (1.0, 7)
        assert guard.mean_loss() == 1.0
        assert guard.alive == 0

    def test_an_overflow_of_scaled_gradients_halves_the_scale_and_is_no_divergence(self) -> None:
        guard = Guard(torch.device("cpu"), scaled=True)
        assert self.step(guard, 1.0, float("inf")) == (1.0, NEVER)
        assert guard.scale == 2.0**15
        assert self.step(guard, 1.0, 0.5) == (0.5, NEVER)
        for _ in range(15):
            self.step(guard, 1.0, float("inf"))
        assert guard.scale == 1.0
        assert guard.bad_step() == NEVER
        assert self.step(guard, 1.0, float("inf")) == (1.0, 7)

    def test_the_scale_doubles_after_many_finite_steps(self) -> None:
        guard = Guard(torch.device("cpu"), scaled=True)
        for _ in range(2000):
            assert guard.scale == 2.0**16
            self.step(guard, 1.0, 0.5)
        assert guard.scale == 2.0**17


def test_the_last_layer_is_timms_classifier_or_the_last_linear() -> None:
    import timm

    assert last_layer(small_cnn()).out_features == CLASSES
    model = timm.create_model("resnet10t", num_classes=4)
    assert last_layer(model) is model.fc
    with pytest.raises(UsageError, match="no linear last layer"):
        last_layer(nn.Conv2d(1, 1, 1))
    assert len(batch_norms(model)) > 10
