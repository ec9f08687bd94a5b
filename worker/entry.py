"""The worker's door: what the orchestrator and submitit may call. Imports torch only once a pilot starts."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from kt_study.pilots import PilotOptions

if TYPE_CHECKING:
    from worker.allocation import Allocation
    from worker.pilot import Pilot
    from worker.signals import StopRequest


def run_pilot(options: PilotOptions) -> str:
    """Run one pilot in this process and return how it ended, one line.

    Raises:
        EnvironmentUnusable: outside Slurm, this machine cannot run it: no database, or no GPU where one was asked for.
        SystemExit: the same under Slurm, with a code of `kt_study.pilots.ProbeExit`.
    """
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    from worker.signals import StopRequest

    stop = StopRequest()
    stop.listen()
    threads = options.threads or usable_cores()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    from kt_study.errors import EnvironmentUnusable
    from worker.allocation import this_allocation
    from worker.probe import ProbeFailed, report

    allocation = this_allocation()
    try:
        pilot = _pilot(options, allocation, stop, threads)
    except ProbeFailed as failed:
        if not allocation.job:
            raise EnvironmentUnusable(str(failed)) from failed
        report(options, allocation, str(failed))
        logging.error("%s cannot run a pilot: %s", allocation.node, failed)
        raise SystemExit(int(failed.code)) from failed
    report(options, allocation)
    return pilot.run()


def _pilot(options: PilotOptions, allocation: Allocation, stop: StopRequest, threads: int) -> Pilot:
    """A pilot on this node. Raises ProbeFailed."""
    from worker.probe import choose_gpu, open_database, pick_device

    store = open_database(options, allocation, stop)
    choose_gpu(options)
    import torch

    from worker.pilot import Pilot

    torch.set_num_threads(threads)
    sys.path.insert(0, options.root)  # factories of the study file live beside it
    device = pick_device(options.device, gpus=options.gpus if allocation.job else 0)
    return Pilot(options=options, store=store, device=device, stop=stop, allocation=allocation)


def usable_cores() -> int:
    """Cores that this process may run on, which under Slurm is fewer than the node has, also where none are bound."""
    allowed = len(os.sched_getaffinity(0))
    given = int(os.environ.get("SLURM_CPUS_PER_TASK") or allowed)
    return max(1, min(allowed, given))
