"""Options shared by `kt-study launch` and `kt-study worker`: the lease, and options that tune a worker for its machine.
They change results by rounding at most."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from click import IntRange

from kt_study.pilots import LEASE_S

_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--loader-workers",
        {
            "type": IntRange(min=0),
            "help": "Processes that read images (default: on a GPU all cores but one, else none).",
        },
    ),
    (
        "--eval-batch-size",
        {"type": IntRange(min=1), "help": "Batch size of forward passes without training (default: 64)."},
    ),
    ("--cuda-graphs", {"is_flag": True, "help": "Replay compiled students as CUDA graphs; needs compile = true."}),
)

lease_option = click.option(
    "--lease",
    "lease_s",
    type=click.FloatRange(min=3),
    default=LEASE_S,
    show_default=True,
    help="Lease: seconds without a heartbeat before a job is requeued.",
)


def with_speed_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; pass those that were given as `speed`, fields of `PilotOptions`."""
    names = [option.removeprefix("--").replace("-", "_") for option, _ in _OPTIONS]

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in names}
        return command(*args, speed={name: value for name, value in given.items() if value is not None}, **kwargs)

    for option, settings in reversed(_OPTIONS):
        wrapped = click.option(option, **settings)(wrapped)
    return wrapped
