"""How near the transfer step is to the bare student, and how far ahead of live-teacher loops.

    python -m benchmarks.bench_step [--only NAME ...] [--batch N] [--steps N] [--rounds R] [--threads N]
                                    [--contestants NAME ...] [--clock wall|cpu] [--device cpu|cuda]
                                    [--precision fp32|bf16] [--channels-last] [--no-write]

NAME is a pair of models, `job` or `logits`; all but the large pairs unless said otherwise. What is measured today on this
machine replaces its like in the day's results file and leaves the rest, so that a long run can be taken in parts.

For each pair, all contestants run by turns in one process on the same images in memory, with random weights and 1000
classes, forwards and backwards; medians over rounds, and medians and quartiles of the ratios within a round:

    bare            student forward, cross-entropy, backward, fused SGD
    ours            the loop of a kl_dp transfer: target gathered from the cache, seeds, guard, SGD
    live teacher    kl_dp as the released code does it: teacher and frozen student forwarded in each step, classes
                    ordered by the teacher, the partition made sample by sample; without its metrics, which is kinder
    timm            timm.task.LogitDistillationTask, plain KL, one live teacher
    torchdistill    its DistillationBox with KDLoss, plain KL, one live teacher; where it is installed

`job` is a whole job through the pilot and a SQLite database: loader, cache, three epochs, three evaluations and the
database, against the same number of bare steps and forwards. `logits` is a forward pass into the cache, against the
bare forwards.

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
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import read_result, versions, write_result
from kt_study.objectives import settings_for
from worker.objectives import Setup, build_objective
from worker.training.loop import Feed, Position, TransferLoop, Validation
from worker.training.rows import row_tables
from worker.training.step import TransferStep, autocast

CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A student, a teacher, the side of their images in pixels, and the speed-up over live teachers that is owed."""

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
DEFAULTS = ("resnet18", "mobilenetv3", "vit_tiny", "job", "logits")
CONTESTANTS = ("bare", "ours", "live teacher", "timm", "torchdistill")
STEP_OWED, JOB_OWED = 0.97, 0.90

Contestant = Callable[[], object]
"""Takes one step for each batch."""


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
    channels_last: bool = False

    def contestants(self, wanted: Collection[str]) -> dict[str, Contestant]:
        """Those that are wanted and can be had, by name."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        student = self.pair.build(self.pair.student, self.device).to(memory_format=memory_format)
        teacher = self.pair.build(self.pair.teacher, self.device).eval().to(memory_format=memory_format)
        makers: dict[str, Callable[[], Contestant]] = {
            "bare": lambda: self.bare(copy.deepcopy(student)),
            "ours": lambda: self.ours(copy.deepcopy(student)),
            "live teacher": lambda: self.live(copy.deepcopy(student), copy.deepcopy(student).eval(), teacher),
            "timm": lambda: self.timm_task(copy.deepcopy(student), teacher),
            "torchdistill": lambda: self.torchdistill_box(copy.deepcopy(student), teacher),
        }
        if not importlib.util.find_spec("torchdistill"):
            del makers["torchdistill"]
        return {name: make() for name, make in makers.items() if name in wanted}

    def bare(self, student: nn.Module) -> Contestant:
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

    def ours(self, student: nn.Module) -> Contestant:
        batch = len(self.images[0])
        settings = settings_for(
            "kl_dp",
            {"batch_size": batch, "precision": self.precision, "views": 1, "channels_last": self.channels_last},
        )
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

    def live(self, student: nn.Module, frozen: nn.Module, teacher: nn.Module) -> Contestant:
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

    def timm_task(self, student: nn.Module, teacher: nn.Module) -> Contestant:
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

    def torchdistill_box(self, student: nn.Module, teacher: nn.Module) -> Contestant:
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
    """Medians in seconds per step, and ratios, of one pair."""
    pair, device = PAIRS[name], torch.device(arguments.device)
    torch.manual_seed(0)
    shape = (arguments.batch, 3, pair.side, pair.side)
    memory_format = torch.channels_last if arguments.channels_last else torch.contiguous_format
    bench = Bench(
        pair=pair,
        images=[torch.randn(shape, device=device).to(memory_format=memory_format) for _ in range(arguments.steps)],
        labels=[torch.randint(CLASSES, (arguments.batch,), device=device) for _ in range(arguments.steps)],
        device=device,
        precision=arguments.precision,
        channels_last=arguments.channels_last,
    )
    cases = bench.contestants({"bare", "ours", *arguments.contestants})
    seconds = by_turns(cases, arguments.rounds, arguments.clock, device)
    result = {
        "student": pair.student,
        "teacher": pair.teacher,
        "side": pair.side,
        **_conditions(arguments),
        "seconds_a_step": {case: statistics.median(times) / arguments.steps for case, times in seconds.items()},
        "time_over_ours": {case: spread(times, seconds["ours"]) for case, times in seconds.items() if case != "ours"},
        "owed": {"bare": STEP_OWED, "live teacher": pair.owed},
    }
    _print_pair(result)
    return result


def _print_pair(result: dict[str, Any]) -> None:
    print(f"{result['student']} <- {result['teacher']}, {result['side']} px, batch {result['batch']}")
    for case, seconds in result["seconds_a_step"].items():
        line = f"  {case:14} {1e3 * seconds:9.1f} ms a step"
        if case in result["time_over_ours"]:
            low, middle, high = result["time_over_ours"][case]
            line += f"   {middle:6.3f} x ours ({low:.3f} to {high:.3f})"
        if case in result["owed"]:
            line += f", owed {result['owed'][case]}"
        print(line)


def spread(times: list[float], others: list[float]) -> list[float]:
    """Quartiles of the ratios within a round: lower, median, upper."""
    return statistics.quantiles([one / other for one, other in zip(times, others, strict=True)], method="inclusive")


def by_turns(cases: dict[str, Contestant], rounds: int, clock: str, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each case in each round, after one round that is not counted; every other round runs backwards.

    The first two cases, whose ratio is near one, take two turns before each other case: of theirs, the median within a
    round counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    (one, two), others = list(cases)[:2], list(cases)[2:]
    turns = [name for other in others for name in (one, two, two, one, other)] or [one, two]
    for turn in range(rounds + 1):
        taken: dict[str, list[float]] = {name: [] for name in cases}
        for name in turns[:: 1 if turn % 2 else -1]:
            taken[name].append(_timed(cases[name], clock, device))
        for name, times in taken.items():
            if turn:
                seconds[name].append(statistics.median(times))
    return seconds


def _timed(case: Contestant, clock: str, device: torch.device) -> float:
    now = time.process_time if clock == "cpu" else time.perf_counter
    gc.collect()
    _wait(device)
    start = now()
    case()
    _wait(device)
    return now() - start


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
        cases: dict[str, Contestant] = {"bare": job.bare, "ours": job.through_the_pilot}
        return _against_bare("whole job on the digits", cases, JOB_OWED, arguments)


def measure_logits(arguments: argparse.Namespace) -> dict[str, Any]:
    """A forward pass into the cache, against the bare forwards of the same images in memory."""
    from benchmarks.whole_job import LogitsPass

    with tempfile.TemporaryDirectory() as folder:
        one = LogitsPass(Path(folder), device=torch.device(arguments.device), batch=arguments.batch)
        cases: dict[str, Contestant] = {"bare": one.bare, "ours": one.into_the_cache}
        return _against_bare("logits pass over the digits", cases, None, arguments)


def _against_bare(
    what: str, cases: dict[str, Contestant], owed: float | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    seconds = by_turns(cases, arguments.rounds, arguments.clock, torch.device(arguments.device))
    ratios = spread(seconds["bare"], seconds["ours"])
    print(f"{what}: bare / ours {ratios[1]:.3f} ({ratios[0]:.3f} to {ratios[2]:.3f}), owed {owed or 'nothing'}")
    medians = {case: statistics.median(times) for case, times in seconds.items()}
    return {**_conditions(arguments), "seconds": medians, "bare_over_ours": ratios, "owed": owed}


def _conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("batch", "steps", "rounds", "threads", "clock", "device", "precision", "channels_last")
    gpu = {"gpu": torch.cuda.get_device_name()} if arguments.device == "cuda" else {}
    return {name: getattr(arguments, name) for name in names} | gpu


def main() -> None:
    """Measure what was asked for and keep the figures."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    special = {"job": measure_job, "logits": measure_logits}
    measured = read_result("step").get("measured", {}) if arguments.write else {}
    for name in arguments.only:
        label = f"{name}, channels last" if arguments.channels_last else name
        measured[label] = special[name](arguments) if name in special else measure_pair(name, arguments)
        result = {"versions": versions("torch", "timm", *_torchdistill()), "measured": measured}
        print(write_result("step", result) if arguments.write else json.dumps(result))


def _torchdistill() -> list[str]:
    return ["torchdistill"] if importlib.util.find_spec("torchdistill") else []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*PAIRS, "job", "logits"], default=list(DEFAULTS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1, help="steps of each contestant in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--channels-last", action="store_true", help="memory format of all models and images")
    parser.add_argument("--no-write", dest="write", action="store_false", help="print the figures, keep nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
