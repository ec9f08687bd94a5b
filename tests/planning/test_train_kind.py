"""The job kind `train`: new last layers, old ones put back, and resumed runs that end with the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from kt_study.errors import UsageError, WeightsError
from kt_study.hashing import job_digest
from kt_study.paths import StudyPaths
from kt_study.records import ModelRecord, TrainSpec, as_spec
from kt_study.training import trained_record
from tests.data.support import CPU, digits, job_context, tiny_model
from worker.data import loader
from worker.job.context import Stopped
from worker.kinds import train
from worker.models.build import build_model
from worker.models.heads import new_head, own_head

HEAD = {"head.fc.weight", "head.fc.bias"}
"""Of timm's test_convnext."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Bench:
    """One study folder with the digits and a start of seven classes."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.paths = StudyPaths(root=root)
        self.dataset = digits(self.paths)
        usual = {"timm": "test_convnext", "arguments": {"drop_rate": 0.3, "drop_path_rate": 0.2}, "num_classes": 7}
        self.start = tiny_model("start", **{**usual, **changes})

    def spec(self, scope: str, **more: Any) -> TrainSpec:
        settings = {"epochs": 2, "batch_size": 32, "lr": 0.05, "weight_decay": 1e-4, "share": 0.3, **more}
        return TrainSpec(dataset=self.dataset.key, split="zoo", start=self.start.key, scope=scope, **settings)

    def run(self, spec: TrainSpec, stopping: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        context = job_context(self.paths, self.dataset, self.start, stopping=stopping)
        (row,) = train.run(as_spec(spec), context)["trainings"]
        return dict(row)

    def job(self, spec: TrainSpec) -> str:
        return job_digest("train", as_spec(spec))

    def state(self, spec: TrainSpec) -> dict[str, torch.Tensor]:
        return load_file(self.paths.weights(self.job(spec)))

    def trained(self, spec: TrainSpec) -> ModelRecord:
        return trained_record(self.start, spec, self.job(spec), self.dataset)

    def before(self) -> dict[str, torch.Tensor]:
        return build_model(self.start, self.paths, CPU).state_dict()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def unequal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    assert set(a) == set(b)
    return {name for name in a if not torch.equal(a[name], b[name])}


def test_head_learns_and_nothing_else_moves(bench: Bench) -> None:
    spec = bench.spec("head", epochs=6, augment="flip")
    row = bench.run(spec)
    state = bench.state(spec)
    assert unequal(state, bench.before()) == HEAD
    assert state["head.fc.weight"].shape[0] == 10
    first = bench.run(bench.spec("head", epochs=1, augment="flip"))
    assert row["loss"] < first["loss"]
    assert (row["scope"], row["model"], row["epochs"]) == ("head", "start", 6)


def test_head_leaves_the_statistics_of_batch_norm_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, timm="test_resnet", arguments={})
    spec = bench.spec("head")
    bench.run(spec)
    assert unequal(bench.state(spec), bench.before()) == {"fc.weight", "fc.bias"}


def test_body_learns_and_gets_its_old_last_layer_back(bench: Bench) -> None:
    spec = bench.spec("body", lr=0.01)
    bench.run(spec)
    state, before = bench.state(spec), bench.before()
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in before.items()}
    moved = unequal(state, before)
    assert not moved & HEAD
    assert {name for name, _ in build_model(bench.start, bench.paths, CPU).named_parameters()} - HEAD <= moved


@pytest.mark.parametrize("scope", ["head", "body", "all"])
def test_the_trained_record_builds_what_the_job_left(bench: Bench, scope: str) -> None:
    spec = bench.spec(scope, epochs=1, lr=1e-3)
    row = bench.run(spec)
    record = bench.trained(spec)
    assert record.num_classes == (7 if scope == "body" else 10)
    assert record.name == ("start@digits" if scope == "body" else "start")
    assert (row["model"], row["model_key"]) == (record.name, record.key)
    model = build_model(record, bench.paths, CPU)
    assert not unequal(dict(model.state_dict()), bench.state(spec))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, record.num_classes)


def test_a_factory_is_asked_for_the_new_classes(tmp_path: Path) -> None:
    factory = {"timm": "", "factory": "tests.transfer.toy:small_cnn", "arguments": {"num_classes": 7, "width": 4}}
    bench = Bench(tmp_path, **factory)
    spec = bench.spec("head", epochs=1)
    bench.run(spec)
    record = bench.trained(spec)
    assert record.arguments == {"num_classes": 10, "width": 4}
    assert build_model(record, bench.paths, CPU)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_new_last_layer_depends_on_the_seed_alone(bench: Bench) -> None:
    specs = [bench.spec("head", epochs=1, lr=1e-12, weight_decay=0.0, seed=seed) for seed in (1, 1, 2)]
    heads = []
    for spec in specs:
        torch.manual_seed(len(heads))
        bench.run(spec)
        heads.append(bench.state(spec)["head.fc.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2])


def stopping_after(n: int) -> Callable[[], bool]:
    asked = iter(range(10**6))
    return lambda: next(asked) >= n


@pytest.mark.parametrize("scope", ["head", "body", "all"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str, streamed: bool
) -> None:
    """Dropout, stochastic depth and noise included; a streamed split draws from torch's generator for its loader."""
    if streamed:
        monkeypatch.setattr("worker.data.loader.image_budget", lambda _: 0)
    whole, parts = Bench(tmp_path / "whole"), Bench(tmp_path / "parts")
    spec = whole.spec(scope, epochs=3, lr=0.01, pixel_noise=0.3, label_noise=0.1, share=0.2, augment="flip")
    row = whole.run(spec)
    steps = 3 * -(-row["n"] // 32)
    job = parts.job(spec)
    rendering = () if streamed else (5, 1, 6)  # which asks three times for each view, in every run
    for stop in (0, 2, 3, 1, *rendering):  # before the first step, within an epoch, and on its edge
        with pytest.raises(Stopped):
            parts.run(spec, stopping_after(stop))
        assert parts.paths.checkpoint(job).is_file()
    assert sum((0, 2, 3, 1)) < steps
    again = parts.run(spec)
    assert not unequal(whole.state(spec), parts.state(spec))
    assert (again["loss"], again["model_key"]) == (row["loss"], row["model_key"])
    assert not parts.paths.checkpoint(job).exists()


def test_views_that_are_not_all_kept_are_streamed_and_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, streamed = Bench(tmp_path / "kept"), Bench(tmp_path / "streamed")
    spec = kept.spec("all", epochs=3, lr=0.01, pixel_noise=0.3, share=0.1, augment="crop_flip")
    rendered: list[int] = []
    original = loader._render_all
    monkeypatch.setattr(loader, "_render_all", lambda *given: rendered.append(given[1]) or original(*given))
    three_views = 3 * kept.dataset.splits["zoo"] * 3 * 32 * 32
    monkeypatch.setattr(loader, "image_budget", lambda _: three_views)
    kept.run(spec)
    assert rendered == [0, 1, 2]
    monkeypatch.setattr(loader, "image_budget", lambda _: three_views - 1)
    streamed.run(spec)
    assert rendered == [0, 1, 2]
    assert not unequal(kept.state(spec), streamed.state(spec))


def test_a_checkpoint_is_written_now_and_then(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(train, "save_checkpoint", lambda _path, _job, state: saved.append(state["step"]))
    spec = bench.spec("head", epochs=1)
    context = job_context(bench.paths, bench.dataset, bench.start)
    object.__setattr__(context, "options", type(context.options)(checkpoint_every_s=0.0))
    train.run(as_spec(spec), context)
    assert saved == list(range(len(saved)))
    assert saved


def test_a_diverged_training_says_so(bench: Bench) -> None:
    with pytest.raises(UsageError, match="training 'start' diverged in epoch 1") as caught:
        bench.run(bench.spec("body", lr=1e12))
    assert "\n" not in str(caught.value)
    assert not bench.paths.weights(bench.job(bench.spec("body", lr=1e12))).exists()


def test_a_last_batch_of_one_is_left_out(tmp_path: Path) -> None:
    """Batch norm over one image of one pixel has no variance, and torch refuses it."""
    bench = Bench(tmp_path, timm="test_resnet", arguments={})
    n = bench.run(bench.spec("all", epochs=1, lr=1e-4))["n"]
    assert math.isfinite(bench.run(bench.spec("all", epochs=1, lr=1e-4, batch_size=n - 1))["loss"])


def volo() -> nn.Module:
    from timm.models.volo import VOLO

    return VOLO(
        layers=[1, 1], img_size=32, embed_dims=[16, 32], num_heads=[2, 2], downsamples=(True, False),
        outlook_attention=(True, False), mlp_ratio=2.0, num_classes=7,
    )  # fmt: skip


def convolutional_head() -> nn.Module:
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2(layers=[1, 1], channels=(128, 128), stem_chs=32, num_classes=7)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (volo, {"head", "aux_head"}),
        (convolutional_head, {"head.fc"}),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7, depth=1), {"head", "head_dist"}),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 7, bias=False)), {"3"}),
    ],
)
def test_the_last_layer_is_found_whatever_it_is(make: Callable[[], nn.Module], names: set[str]) -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = own_head(model, 7)
    assert {name.rpartition(".")[0] for name in head.names} == names
    assert not unequal(before, dict(model.state_dict()))
    new = new_head(model, 4, seed=1)
    assert new.names == head.names
    after = model.state_dict()
    assert {after[name].shape[0] for name in new.names} == {4}
    assert {id(p) for p in new.parameters()} == {id(p) for n, p in model.named_parameters() if n in new.names}


def test_a_model_without_a_last_layer_is_refused() -> None:
    with pytest.raises(WeightsError, match="has no linear layer"):
        new_head(nn.Sequential(nn.Conv2d(3, 4, 1)), 4, seed=0)
