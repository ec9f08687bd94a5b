"""The Slurm options of `kt-study launch`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click import IntRange

_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--partition", {"help": "Run on Slurm, in this partition, or in any of a comma-separated list."}),
    ("--account", {"help": "Account to charge."}),
    ("--qos", {"help": "Quality of service."}),
    ("--constraint", {"help": "Required node features, as in sbatch."}),
    ("--time", {"help": "Time limit per allocation, not of the study (default: 4 hours, or the partition's limit)."}),
    ("--mem", {"help": "Memory per allocation, e.g. 16G."}),
    ("--cpus-per-task", {"type": IntRange(min=1), "help": "CPU cores per worker."}),
    (
        "--gpus-per-node",
        {
            "metavar": "[TYPE:]N",
            "help": "GPUs per allocation, e.g. 2 or a100:2 (default: 1 if the partition has GPUs).",
        },
    ),
    ("--workers-per-gpu", {"type": IntRange(min=1), "help": "Number of workers that share one GPU."}),
    ("--exclude", {"help": "Nodes to exclude, as in sbatch."}),
)


def with_slurm_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --profile and the options of one allocation; hand them over as `profile` and `flags`."""
    names = [option.removeprefix("--").replace("-", "_") for option, _ in _OPTIONS]

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        flags = {name: kwargs.pop(name) for name in names}
        return command(*args, flags=flags, **kwargs)

    for option, settings in reversed(_OPTIONS):
        wrapped = click.option(option, **settings)(wrapped)
    help_ = "Run on Slurm with the settings in this file (see slurm/example.toml). Options override it."
    return click.option("--profile", type=click.Path(path_type=Path), help=help_)(wrapped)
