"""Values that the shell can complete, beside commands, options and choices, which click knows by itself."""

from __future__ import annotations

import click


def presets(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Names of the paper's lists."""
    from orchestrator.presets import presets

    return [name for name in presets() if name.startswith(incomplete)]


def queries(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Names of the queries."""
    from orchestrator.query import named_queries

    return [name for name in named_queries() if name.startswith(incomplete)]


def objectives(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Names of the transfer objectives."""
    from kt_study.objectives import OBJECTIVES

    return [name for name in OBJECTIVES if name.startswith(incomplete)]
