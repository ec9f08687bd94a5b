"""What a transfer holds: images, tables, checkpoints and compiled code, and what it lets go when memory runs out."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kt_study.objectives import settings_for
from kt_study.paths import StudyPaths
from tests.data.support import digits, job_context, tiny_model
from tests.transfer.study import Study, make_study
from tests.transfer.toy import assert_same_bits
from worker.data import loader as loader_module
from worker.data.images import TrainingImages
from worker.job.context import Stopped
from worker.kinds import train, transfer
from worker.kinds.transfer import build_loop
from worker.models.kept import keep_student
from worker.training import rows
from worker.training.compiled import forget_compiled
from worker.training.loop import TransferLoop
from worker.training.opened import open_transfer
from worker.training.step import TransferStep

N_TRAIN, N_VAL = 504, 754
IMAGE = 3 * 32 * 32


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


def weights(study: Study, monkeypatch: pytest.MonkeyPatch, objective: str = "kl_dp", **given: Any) -> dict[str, Tensor]:
    """The student that a job leaves."""
    kept: list[dict[str, Tensor]] = []

    def keep(paths: StudyPaths, job: str, state: dict[str, Tensor], *rest: Any) -> Path | None:
        kept.append(state)
        return keep_student(paths, job, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("worker.training.result.keep_student", keep)
        study.run(study.spec(objective, "a", **given))
    return kept[0]


@pytest.mark.parametrize(("budget", "rendered"), [(2 * N_TRAIN + N_VAL, 2), (2 * N_TRAIN + N_VAL - 1, 0)])
def test_no_image_is_rendered_again_in_a_later_epoch(
    study: Study, monkeypatch: pytest.MonkeyPatch, budget: int, rendered: int
) -> None:
    made: list[int] = []
    original = loader_module._render_all

    def counted(images: Any, view: int, *rest: Any) -> Tensor:
        if isinstance(images, TrainingImages):
            made.append(view)
        return original(images, view, *rest)

    spec = study.spec("kl_dp", "a", views=2, augment="crop_flip", epochs=5, lr=1e-3 + budget * 1e-9)
    open_transfer(spec, study.context(spec))  # the logits are cached
    study.worker_cache.clear()
    monkeypatch.setattr(loader_module, "_render_all", counted)
    monkeypatch.setattr(loader_module, "image_budget", lambda _: budget * IMAGE)
    study.run(spec)
    assert made == list(range(rendered))


def test_a_live_teachers_images_count_too(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = study.spec("cd", "a", reading="authors", views=1, augment="crop_flip")
    context = study.context(spec)
    opened = open_transfer(spec, context)
    for spare, kind in ((0, loader_module.MemoryViews), (-1, loader_module.StreamedViews)):
        budget = (2 * N_TRAIN + N_VAL + spare) * IMAGE
        monkeypatch.setattr(loader_module, "image_budget", lambda _, room=budget: room)
        feed = build_loop(opened, "0" * 32, context).feed
        assert feed.live is not None
        assert (type(feed.views), type(feed.live.views)) == (kind, kind)


def test_a_stop_while_images_are_rendered_leaves_a_checkpoint(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_RENDER_BATCH", 100)
    settings = {"views": 2, "augment": "crop_flip", "epochs": 2}
    unbroken = weights(study, monkeypatch, lr=0.03, **settings)
    spec = study.spec("kl_dp", "a", lr=0.03, **settings)
    file = study.paths.checkpoint(study.context(spec).claim.digest)
    for asked in (2, 6 + 8 + 3):  # rendering the first view; and, after eight steps, the validation split
        study.worker_cache.clear()
        looks = iter([False] * asked)
        with pytest.raises(Stopped):
            study.run(spec, stopping=lambda looks=looks: next(looks, True))
        assert file.is_file()
    assert_same_bits(weights(study, monkeypatch, lr=0.03, **settings), unbroken)


def test_where_memory_runs_out_logits_and_images_leave_the_device_and_nothing_else_changes(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student has batch norm in train mode: no batch may be split."""
    settings = {"epochs": 3, "lr": 0.02, "momentum": 0.9}
    whole = weights(study, monkeypatch, **settings)
    on_device = rows.ResidentTable.rows
    taken: list[int] = []
    step = TransferStep.__call__

    def counted(this: TransferStep, inputs: Any, **where: int) -> None:
        step(this, inputs, **where)
        taken.append(where["step"])

    def no_memory_at_last(*given: Any) -> Tensor:
        if len(taken) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return on_device(*given)

    monkeypatch.setattr(TransferStep, "__call__", counted)
    monkeypatch.setattr(rows.ResidentTable, "rows", no_memory_at_last)
    study.worker_cache.clear()
    assert_same_bits(weights(study, monkeypatch, **settings, eval_every=1), whole)
    assert taken == [*range(11), *range(24)], "once more, from the last checkpoint"
    assert "images" not in study.worker_cache


def test_a_second_lack_of_memory_is_final(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def no_memory(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    built = transfer.build_loop

    def building(opened: Any, job: str, context: Any) -> TransferLoop:
        tried.append(context.options.resident)
        return built(opened, job, context)

    monkeypatch.setattr(TransferStep, "_losses", no_memory)
    monkeypatch.setattr(transfer, "build_loop", building)
    with pytest.raises(torch.OutOfMemoryError, match="set batchnorm = 'frozen', a smaller batch_size or precision"):
        study.run(study.spec("kl_dp", "a", epochs=1))
    assert tried == [True, False]


def references(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[weakref.ref[Tensor]]:
    """To the model's tensors of each checkpoint that `module` loads."""
    found: list[weakref.ref[Tensor]] = []
    load = module.load_checkpoint

    def noted(*given: Any) -> Any:
        state = load(*given)
        if state is not None:
            found.extend(weakref.ref(tensor) for tensor in state["model"].values())
        return state

    monkeypatch.setattr(module, "load_checkpoint", noted)
    return found


def test_a_resumed_transfer_lets_its_checkpoint_go(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = study.spec("kl_dp", "a", lr=0.007)
    looks = iter([False] * 20)
    with pytest.raises(Stopped):
        study.run(spec, stopping=lambda: next(looks, True))
    loaded = references(monkeypatch, transfer)
    held: list[int] = []
    monkeypatch.setattr(TransferLoop, "run", lambda _: held.append(sum(ref() is not None for ref in loaded)) or _end())
    with pytest.raises(Stopped):
        study.run(spec)
    assert loaded
    assert held == [0]


def test_a_resumed_training_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kt_study.records import TrainSpec, as_spec

    paths = StudyPaths(root=tmp_path)
    data, start = digits(paths), tiny_model("start")
    spec = as_spec(TrainSpec(dataset=data.key, split="zoo", start="start", scope="head", epochs=1))
    with pytest.raises(Stopped):
        train.run(spec, job_context(paths, data, start, stopping=lambda: True))
    loaded = references(monkeypatch, train)
    held: list[int] = []
    monkeypatch.setattr(
        train._Training, "run", lambda _: held.append(sum(ref() is not None for ref in loaded)) or _end()
    )
    with pytest.raises(Stopped):
        train.run(spec, job_context(paths, data, start))
    assert loaded
    assert held == [0]


def _end() -> None:
    raise Stopped


def test_every_student_of_a_worker_is_compiled() -> None:
    """torch gives up after eight of one class; and a student that comes again is not compiled again."""
    compiled: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(1)
        return graph.forward

    def forwarded(width: int, **given: Any) -> int:
        forget_compiled(worker_cache, f"student {width}", settings_for("kl", {"compile": True, **given}))
        before = len(compiled)
        torch.compile(Wide(width), backend=backend)(torch.zeros(2, 4))
        return len(compiled) - before

    worker_cache: dict[str, Any] = {}
    assert [forwarded(width) for width in range(1, 13)] == [1] * 12
    assert [forwarded(12), forwarded(12, lr=0.1), forwarded(12, batch_size=64)] == [0, 0, 1]


class Wide(nn.Module):
    """One layer, `width` times: each is a graph of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(width))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
