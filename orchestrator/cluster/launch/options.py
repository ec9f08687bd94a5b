"""Options of `launch`, `worker` and `doctor`: the request to Slurm, the lease, and settings of a worker for its machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click import IntRange

from kt_study.pilots import LEASE_S

_Options = dict[str, dict[str, Any]]
_Command = Callable[..., Any]

_SLURM: _Options = {
    "--partition": {"help": "Run on Slurm, in this partition, or in any of a comma-separated list."},
    "--account": {"help": "Account to charge."},
    "--qos": {"help": "Quality of service."},
    "--constraint": {"help": "Required node features, as in sbatch."},
    "--time": {"help": "Time limit per allocation, not of the study (default: 4 hours, or the partition's limit)."},
    "--mem": {"help": "Memory per allocation, e.g. 16G."},
    "--cpus-per-task": {"type": IntRange(min=1), "help": "CPU cores per worker."},
    "--gpus-per-node": {
        "metavar": "[TYPE:]N",
        "help": "GPUs per allocation, e.g. 2 or a100:2 (default: 1 if the partition has GPUs).",
    },
    "--workers-per-gpu": {"type": IntRange(min=1), "help": "Number of workers that share one GPU."},
    "--exclude": {"help": "Nodes to exclude, as in sbatch."},
}
_WORKER: _Options = {
    "--loader-workers": {
        "type": IntRange(min=0),
        "help": "Processes that read images (default: on a GPU all cores but one, else none).",
    },
    "--eval-batch-size": {
        "type": IntRange(min=1),
        "help": "Batch size of forward passes without training (default: 64).",
    },
    "--cuda-graphs": {"is_flag": True, "help": "Replay compiled students as CUDA graphs; needs compile = true."},
}

lease_option = click.option(
    "--lease",
    "lease_s",
    type=click.FloatRange(min=3),
    default=LEASE_S,
    show_default=True,
    help="Lease: seconds without a heartbeat before a job is requeued.",
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Device to run models on."
)


def with_slurm_options(command: _Command) -> _Command:
    """Add --profile and the options of one allocation; pass them as `profile` and, those that were given, as `flags`."""
    help_ = "Run on Slurm with the settings in this file (see slurm/example.toml). Options override it."
    return click.option("--profile", type=click.Path(path_type=Path), help=help_)(_with(_SLURM, "flags", command))


def with_worker_options(command: _Command) -> _Command:
    """Add options that tune a worker for its machine and change results by rounding at most.

    Those that were given are passed as `tuning`, fields of `PilotOptions`.
    """
    return _with(_WORKER, "tuning", command)


def _with(options: _Options, parameter: str, command: _Command) -> _Command:
    names = [option.removeprefix("--").replace("-", "_") for option in options]

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in names}
        kwargs[parameter] = {name: value for name, value in given.items() if value is not None}
        return command(*args, **kwargs)

    for option, settings in reversed(options.items()):
        wrapped = click.option(option, **settings)(wrapped)
    return wrapped
