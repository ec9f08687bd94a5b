"""The worker's door: what the orchestrator and submitit may call. Imports torch only once a pilot starts."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from kt_study.pilots import PilotOptions

if TYPE_CHECKING:
    import torch


def run_pilot(options: PilotOptions) -> str:
    """Run one pilot in this process and return how it ended, one line.

    Raises:
        DatabaseError: the job database cannot be opened from this node.
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
    import torch

    from kt_study.store import open_store
    from worker.pilot import Pilot

    torch.set_num_threads(threads)
    sys.path.insert(0, options.root)  # factories of the study file live beside it
    pilot = Pilot(options=options, store=open_store(options.database), device=pick_device(options.device), stop=stop)
    return pilot.run()


def usable_cores() -> int:
    """Cores that this process may run on, which under Slurm is fewer than the node has."""
    return len(os.sched_getaffinity(0))


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises RuntimeError from torch when `cuda` is asked for and absent."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
