"""Run as a program: the workers of one study one after another, each a process of its own with signals of its own.

    python -m tests.pilot.nursery FOLDER MOST [STEP:SIGNAL ...]

They are forked from here, since importing torch takes seconds. A worker gets each SIGNAL right after the training step
STEP of a transfer, counted over all epochs, whichever transfer it is. Every step taken is a line of FOLDER/steps. Ends
when no job is left, or after MOST workers.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import timm.data  # noqa: F401 -- what the jobs import late is loaded here once, before the forks
import torch
import torch._dynamo  # optimisers load it

from kt_study.pilots import PilotOptions
from kt_study.store import open_store
from worker.kinds import logits, transfer  # noqa: F401
from worker.pilot import pilot  # noqa: F401
from worker.pilot.entry import run_pilot
from worker.training.step import TransferStep


def break_off(folder: Path, breaks: dict[int, signal.Signals]) -> None:
    """Write every training step of this process down, and send it its signals."""
    take = TransferStep.__call__

    def counted(self: TransferStep, inputs: Any, *, step: int, epoch_step: int) -> None:
        take(self, inputs, step=step, epoch_step=epoch_step)
        with (folder / "steps").open("a") as file:
            file.write(f"{os.getpid()} {self.name} {step}\n")
        if step in breaks:
            os.kill(os.getpid(), breaks[step])

    TransferStep.__call__ = counted  # type: ignore[method-assign]


def worker(options: PilotOptions, breaks: dict[int, signal.Signals]) -> int:
    """One worker in a process of its own; its exit status."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            break_off(Path(options.root), breaks)
            print(run_pilot(options), flush=True)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, most: int, breaks: dict[int, signal.Signals]) -> None:
    """Workers until nothing is left to do."""
    torch.set_num_threads(1)
    url = os.environ["KT_STUDY_DB"]
    options = PilotOptions(root=str(folder), database=url, device="cpu", threads=1, lease_s=60.0)
    for _ in range(most):
        if status := worker(options, breaks):
            raise SystemExit(f"a worker ended with {status}")
        workload = open_store(url).workload()
        if not workload.ready_now and not workload.ready_later and not workload.running:
            return
    raise SystemExit(f"{most} workers, and jobs are left: {workload}")


if __name__ == "__main__":
    given = dict(word.split(":") for word in sys.argv[3:])
    main(Path(sys.argv[1]), int(sys.argv[2]), {int(step): signal.Signals[name] for step, name in given.items()})
