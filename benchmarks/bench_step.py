"""How near the transfer step is to the bare student, and how far ahead of live-teacher loops.

    python -m benchmarks.bench_step [--pairs NAME ...] [--batch N] [--steps N] [--rounds R] [--threads N]
                                    [--clock wall|cpu] [--device cpu|cuda] [--precision fp32|bf16] [--job] [--no-write]

For each pair of models, all contestants run by turns in one process on the same images in memory, with random weights
and 1000 classes; medians over rounds, and medians of the ratios within a round:

    bare            student forward, cross-entropy, backward, fused SGD
    ours            the loop of a kl_dp transfer: target gathered from the cache, seeds, guard, SGD
    live teacher    kl_dp as the released code does it: teacher and frozen student forwarded in each step, classes
                    ordered by the teacher, the partition made sample by sample; without its metrics, which is kinder
    timm            timm.task.LogitDistillationTask, plain KL, one live teacher
    torchdistill    its DistillationBox with KDLoss, plain KL, one live teacher; where it is installed

`--job` measures a whole job instead, through the pilot and a SQLite database: loader, cache, three epochs, three
evaluations and the database, against the same number of bare steps and forwards.

`--clock cpu` counts processor time of this process, for a machine that others use.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import versions, write_result
from kt_study.objectives import settings_for
from worker.objectives import Setup, build_objective
from worker.trainer.loop import Feed, Position, TransferLoop, Validation
from worker.trainer.rows import row_tables
from worker.trainer.step import TransferStep, autocast

CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A student, a teacher, the side of their pictures in pixels, and the speed-up over live teachers that is owed."""

    student: str
    teacher: str
    side: int
    owed: float

    def build(self, name: str, device: torch.device) -> nn.Module:
        size = {"img_size": self.side} if "vit" in name else {}
        return timm.create_model(name, num_classes=CLASSES, **size).to(device)


PAIRS = {
    "resnet18": Pair(student="resnet18", teacher="resnet50", side=64, owed=1.8),
    "mobilenetv3": Pair(student="mobilenetv3_small_100", teacher="resnet50", side=96, owed=5.0),
    "vit_tiny": Pair(student="vit_tiny_patch16_224", teacher="vit_small_patch16_224", side=96, owed=2.3),
    "resnet50": Pair(student="resnet50", teacher="convnext_large", side=224, owed=1.0),
    "pit_b": Pair(student="pit_b_224", teacher="volo_d2_224", side=224, owed=1.0),
}
DEFAULT_PAIRS = ("resnet18", "mobilenetv3", "vit_tiny")
STEP_OWED, JOB_OWED = 0.97, 0.90


class InMemory:
    """Images already batched on the device, so that all contestants are fed alike."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._batches = batches
        self.n = sum(len(batch) for batch in batches)

    def batches(
        self,
        order: NDArray[np.int64],
        batch_size: int,
        *,
        view: int = -1,  # noqa: ARG002
        start: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `worker.data.loader.Views`; whatever the order, the same images."""
        positions = torch.from_numpy(order).to(self._batches[0].device)
        for k, index in enumerate(positions.split(batch_size)):
            if k >= start:
                yield self._batches[k], index


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One pair's contestants and what they are fed."""

    pair: Pair
    images: list[Tensor]
    labels: list[Tensor]
    device: torch.device
    precision: str

    def contestants(self) -> dict[str, Callable[[], object]]:
        """Each is a callable that takes one step for each batch."""
        student = self.pair.build(self.pair.student, self.device)
        teacher = self.pair.build(self.pair.teacher, self.device).eval()
        cases: dict[str, Callable[[], object]] = {
            "bare": self.bare(copy.deepcopy(student)),
            "ours": self.ours(copy.deepcopy(student)),
            "live teacher": self.live(copy.deepcopy(student), copy.deepcopy(student).eval(), teacher),
            "timm": self.timm_task(copy.deepcopy(student), teacher),
        }
        if importlib.util.find_spec("torchdistill"):
            cases["torchdistill"] = self.torchdistill_box(copy.deepcopy(student), teacher)
        return cases

    def bare(self, student: nn.Module) -> Callable[[], object]:
        optimizer = _sgd(student)

        def run() -> None:
            student.train()
            for images, labels in zip(self.images, self.labels, strict=True):
                optimizer.zero_grad(set_to_none=True)
                with autocast(self.device, self.precision):
                    logits = student(images)
                F.cross_entropy(logits.float(), labels).backward()
                optimizer.step()

        return run

    def ours(self, student: nn.Module) -> Callable[[], object]:
        batch = len(self.images[0])
        settings = settings_for("kl_dp", {"batch_size": batch, "precision": self.precision, "views": 1})
        views = InMemory(self.images)
        draw = np.random.default_rng(0)
        tables = [draw.normal(size=(views.n, CLASSES)).astype(np.float16) for _ in range(2)]
        feed = Feed(
            views=views,
            labels=torch.cat(self.labels),
            targets=row_tables([draw.integers(2, size=views.n).astype(np.uint8)], [tables], self.device),
        )
        objective = build_objective("kl_dp", Setup(settings=settings, labels=feed.labels))
        validation = Validation(views=views, labels=np.zeros(views.n, np.int64))
        step = TransferStep(student, objective, "kl_dp", settings)
        loop = TransferLoop(step=step, feed=feed, validation=validation, seed=0)

        def run() -> None:
            loop.at = Position()
            loop.train_epoch()

        return run

    def live(self, student: nn.Module, frozen: nn.Module, teacher: nn.Module) -> Callable[[], object]:
        optimizer = _sgd(student)

        def run() -> None:
            student.train()
            for images, labels in zip(self.images, self.labels, strict=True):
                optimizer.zero_grad(set_to_none=True)
                with autocast(self.device, self.precision):
                    logits = student(images)
                    with torch.no_grad():
                        from_teacher, from_frozen = teacher(images).float(), frozen(images).float()
                mine, target = sample_by_sample(logits.float(), from_teacher, from_frozen, labels)
                log_p, q = F.log_softmax(mine, dim=1), F.softmax(target, dim=1)
                F.kl_div(log_p, q, reduction="batchmean").backward()
                optimizer.step()

        return run

    def timm_task(self, student: nn.Module, teacher: nn.Module) -> Callable[[], object]:
        from timm.task import LogitDistillationTask

        task = LogitDistillationTask(
            student_model=student,
            teacher_model=teacher,
            criterion=nn.CrossEntropyLoss(),
            distill_loss_weight=1.0,
            task_loss_weight=0.0,
            device=self.device,
            verbose=False,
        )
        optimizer = _sgd(student)

        def run() -> None:
            task.train()
            for images, labels in zip(self.images, self.labels, strict=True):
                optimizer.zero_grad(set_to_none=True)
                with autocast(self.device, self.precision):
                    loss = task(images, labels)["loss"]
                loss.backward()
                optimizer.step()

        return run

    def torchdistill_box(self, student: nn.Module, teacher: nn.Module) -> Callable[[], object]:
        from torchdistill.core.distillation import DistillationBox

        box = DistillationBox(teacher, student, {}, _torchdistill_config(), self.device, None, False, 1.0)

        def run() -> None:
            student.train()
            teacher.eval()
            for images, labels in zip(self.images, self.labels, strict=True):
                with autocast(self.device, self.precision):
                    loss = box.forward_process(images, labels)
                box.post_forward_process(loss)

        return run


def sample_by_sample(logits: Tensor, teacher: Tensor, frozen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Student logits and targets [b, c], classes in the teacher's order, each row picked in Python."""
    order = torch.topk(teacher, teacher.shape[1], dim=1).indices
    p_teacher, p_frozen = F.softmax(teacher, dim=1), F.softmax(frozen, dim=1)
    rows, targets = [], []
    for i, classes in enumerate(order):
        source = teacher if p_teacher[i, labels[i]] > p_frozen[i, labels[i]] else frozen
        rows.append(logits[i].index_select(0, classes))
        targets.append(source[i].index_select(0, classes))
    return torch.stack(rows), torch.stack(targets)


def measure_pair(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians in seconds a step, and ratios, of one pair."""
    pair, device = PAIRS[name], torch.device(arguments.device)
    torch.manual_seed(0)
    shape = (arguments.batch, 3, pair.side, pair.side)
    bench = Bench(
        pair=pair,
        images=[torch.randn(shape, device=device) for _ in range(arguments.steps)],
        labels=[torch.randint(CLASSES, (arguments.batch,), device=device) for _ in range(arguments.steps)],
        device=device,
        precision=arguments.precision,
    )
    seconds = by_turns(bench.contestants(), arguments.rounds, arguments.clock, device)
    steps = {case: statistics.median(times) / arguments.steps for case, times in seconds.items()}
    ours = seconds.pop("ours")
    speedups = {
        case: statistics.median(theirs / own for theirs, own in zip(times, ours, strict=True))
        for case, times in seconds.items()
    }
    print(f"{pair.student} <- {pair.teacher}, {pair.side} px, batch {arguments.batch}")
    for case, value in steps.items():
        ratio = f"{speedups[case]:.2f} x ours" if case in speedups else ""
        print(f"  {case:14} {1e3 * value:9.1f} ms a step   {ratio}")
    print(f"  ours / bare speed {speedups['bare']:.3f} (owed {STEP_OWED}); over a live teacher {pair.owed} is owed")
    return {"pair": name, "side": pair.side, "seconds_a_step": steps, "time_over_ours": speedups}


def by_turns(
    cases: dict[str, Callable[[], object]], rounds: int, clock: str, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each case in each round, after one round that is not counted."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            gc.collect()
            _wait(device)
            start = now()
            case()
            _wait(device)
            if turn:
                seconds[name].append(now() - start)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-3, fused=True)


def _torchdistill_config() -> dict[str, Any]:
    whole = {"student_module_path": ".", "teacher_module_path": "."}
    io = {"student_module_io": "output", "teacher_module_io": "output"}
    loss = {"temperature": 1.0, "alpha": 0.0, "reduction": "batchmean"}
    forward = {"sequential": [], "forward_proc": "forward_batch_only"}
    sgd = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-3, "fused": True}
    criterion = {"key": "KDLoss", "kwargs": {**whole, **io, **loss}}
    return {
        "num_epochs": 1,
        "train_data_loader": {},
        "val_data_loader": {},
        "teacher": {**forward, "requires_grad": False},
        "student": forward,
        "optimizer": {"key": "SGD", "kwargs": sgd},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": criterion, "weight": 1.0}}},
        },
    }


def measure_job(arguments: argparse.Namespace) -> dict[str, Any]:
    """A whole transfer job through the pilot, against the bare steps and forwards that it is made of."""
    from benchmarks.whole_job import WholeJob

    with tempfile.TemporaryDirectory() as folder:
        job = WholeJob(Path(folder), device=torch.device(arguments.device), batch=arguments.batch)
        job.prepare()
        seconds = by_turns(
            {"bare": job.bare, "job": job.through_the_pilot}, arguments.rounds, arguments.clock, job.device
        )
    ratio = statistics.median(bare / whole for bare, whole in zip(seconds["bare"], seconds["job"], strict=True))
    print(f"whole job on the digits: bare / job {ratio:.3f} (owed {JOB_OWED})")
    return {"seconds": {case: statistics.median(times) for case, times in seconds.items()}, "bare_over_job": ratio}


def main() -> None:
    """Measure what was asked for and keep the figures."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"arguments": vars(arguments), "versions": versions("torch", "timm")}
    if arguments.device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    if arguments.job:
        result["job"] = measure_job(arguments)
    else:
        result["pairs"] = [measure_pair(name, arguments) for name in arguments.pairs]
    if arguments.write:
        print(write_result("job" if arguments.job else "step", result))
    else:
        print(json.dumps(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(DEFAULT_PAIRS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="steps of each contestant in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--job", action="store_true", help="measure a whole job instead")
    parser.add_argument("--no-write", dest="write", action="store_false", help="print the figures, keep nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
