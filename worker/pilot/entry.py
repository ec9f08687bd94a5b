"""The worker's public interface, for the orchestrator and submitit. Imports torch only when a pilot starts."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.pilots import HOLD_BAD_NODE_S, PilotOptions, ProbeExit
from kt_study.printable import OneLine

if TYPE_CHECKING:
    from kt_study.records import ModelRecord
    from kt_study.study import StudyFile
    from worker.data.betons import BetonManifest
    from worker.pilot.allocation import Allocation
    from worker.pilot.pilot import Pilot
    from worker.pilot.signals import StopRequest

DETERMINISTIC_CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""Environment variable for `deterministic = true`. torch reads it once, at a process's first product of matrices."""


Shown = Callable[[str, str, int], AbstractContextManager[Callable[[str, int], None]]]


def run_pilot(options: PilotOptions) -> str:
    """Run one pilot in this process and return how it ended, one line.

    Raises:
        EnvironmentUnusable: outside Slurm, this machine cannot run it: no database, no GPU although one was requested, or
            one that has failed.
        SystemExit: the same under Slurm, with a code of `kt_study.pilots.ProbeExit`.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    from worker.pilot.signals import StopRequest

    stop = StopRequest()
    stop.listen()
    threads = options.threads or usable_cores()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle OpenMP threads must not spin: docs/decisions
    os.environ.setdefault(*DETERMINISTIC_CUBLAS)
    from kt_study.errors import EnvironmentUnusable
    from kt_study.files import never_make
    from worker.pilot.allocation import this_allocation
    from worker.pilot.probe import GpuLost, ProbeFailed, report

    never_make(Path(options.root))
    allocation = this_allocation()
    try:
        pilot = _pilot(options, allocation, stop, threads)
    except ProbeFailed as failed:
        if not allocation.job:
            raise EnvironmentUnusable(str(failed)) from failed
        report(options, allocation, str(failed))
        logging.error("%s cannot run a pilot: %s", allocation.node, failed)
        stop.wait(HOLD_BAD_NODE_S)
        raise SystemExit(int(failed.code)) from failed
    report(options, allocation)
    try:
        return pilot.run()
    except GpuLost as lost:
        if not allocation.job:
            raise
        raise SystemExit(int(ProbeExit.LOST_GPU)) from lost


def _pilot(options: PilotOptions, allocation: Allocation, stop: StopRequest, threads: int) -> Pilot:
    """A pilot on this node. Raises ProbeFailed."""
    from worker.pilot.probe import choose_gpu, open_database, pick_device

    store = open_database(options, allocation, stop)
    choose_gpu(options)
    import torch

    from worker.pilot.pilot import Pilot

    torch.set_num_threads(threads)
    sys.path.append(options.root)  # for factories beside the study file; installed packages come first, as in plan
    device = pick_device(options.device, gpus=options.gpus if allocation.job else 0)
    return Pilot(options=options, store=store, device=device, stop=stop, allocation=allocation)


def usable_cores() -> int:
    """Cores that this process may run on, which under Slurm is fewer than the node has, also where none are bound."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, _cores_given() or allowed))


def _cores_given() -> int:
    """Cores of this Slurm task: as requested, else its share of the step's on this node; 0 outside Slurm."""
    if each := os.environ.get("SLURM_CPUS_PER_TASK"):
        return int(each)
    on_node = int(os.environ.get("SLURM_CPUS_ON_NODE", "0"))
    tasks = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))  # 4, or 4(x2),3 on three nodes
    return max(1, on_node // int(tasks[0])) if on_node and tasks else on_node


def prepare_data(
    study: StudyFile, folder: Path, split: str, shown: Shown, *, workers: int, **options: Any
) -> BetonManifest:
    """Write one split of the study's data set for the ffcv loader.

    Args:
        study: the study file.
        folder: the study folder.
        split: train or val.
        shown: shows progress: called with the task, its unit and the total, it yields a function to call with each step.
        workers: threads that read and encode.
        options: fields of `worker.data.betons.BetonOptions`.

    Raises:
        DataError: the data set, or an image of it, cannot be read.
        EnvironmentUnusable: ffcv is not installed.
        DiskError: the file cannot be written.
    """
    from kt_study.datasets import prepare
    from kt_study.paths import StudyPaths
    from worker.data.betons import BetonOptions, prepare_beton

    paths = StudyPaths(root=folder)
    dataset = prepare(study.dataset, seed=study.study.seed, folder=folder, paths=paths)
    before = 0

    with shown("preparing", "images", dataset.splits.get(split, 0)) as advance:

        def move(done: int) -> None:
            nonlocal before
            advance(split, done - before)
            before = done

        return prepare_beton(dataset, split, paths, options=BetonOptions(**options), workers=workers, progress=move)


def check_models(records: Iterable[ModelRecord], folder: Path, progress: Callable[[str, int], None]) -> list[str]:
    """Refuse the first of some models whose factory or local checkpoint no worker could build. Imports torch.

    Returns notes on the models, see `worker.models.build.check_model`.

    Args:
        records: the models.
        folder: the study folder.
        progress: called after each model, with its name and 1.

    Raises:
        UnknownModelError, WeightsError: see `worker.models.build.check_model`.
    """
    from kt_study.paths import StudyPaths
    from worker.models.build import check_model

    notes = []
    with contextlib.redirect_stdout(sys.stderr):  # what factories print is no part of our answer
        for record in records:
            notes += check_model(record, StudyPaths(root=folder))
            progress(record.name, 1)
    return notes


def write_timm_config(record: ModelRecord, folder: Path, class_names: list[str]) -> None:
    """Write timm's config.json beside the model.safetensors of `folder`. See `worker.models.export.write_config`."""
    from worker.models.export import write_config

    write_config(record, folder, class_names)


def kept_facts(weights: Path) -> dict[str, Any]:
    """The facts in the header of a kept student. See `worker.models.kept.kept_facts`."""
    from worker.models import kept

    return kept.kept_facts(weights)
