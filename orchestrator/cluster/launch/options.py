"""The options of `kt-study launch` that ask for Slurm."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click import IntRange

_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--partition", {"help": "Run on Slurm, in this partition, or in any of a list with commas."}),
    ("--account", {"help": "Account to charge."}),
    ("--qos", {"help": "Quality of service."}),
    ("--constraint", {"help": "Features of nodes, as in sbatch."}),
    ("--time", {"help": "Limit of one allocation, not of the study; 4 hours, or the partition's limit."}),
    ("--mem", {"help": "Memory of an allocation, e.g. 16G."}),
    ("--cpus-per-task", {"type": IntRange(min=1), "help": "Cores of a worker."}),
    (
        "--gpus-per-node",
        {"metavar": "[TYPE:]N", "help": "GPUs of an allocation, e.g. 2 or a100:2; 1 where the partition has some."},
    ),
    ("--workers-per-gpu", {"type": IntRange(min=1), "help": "Workers that share a GPU."}),
    ("--exclude", {"help": "Nodes never to use, as in sbatch."}),
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
    help_ = "Run on Slurm with the settings of this file; slurm/example.toml explains them. Flags win over it."
    return click.option("--profile", type=click.Path(path_type=Path), help=help_)(wrapped)
