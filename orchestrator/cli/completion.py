"""Shell completion of values; click itself completes commands, options and choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.terminal.study_context import StudyContext

if TYPE_CHECKING:
    from kt_study.store import JobStore


def presets(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Names of the presets."""
    from orchestrator.planning.presets import presets

    return [name for name in presets() if name.startswith(incomplete)]


def queries(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Names of the queries."""
    from orchestrator.results.query import named_queries

    return [name for name in named_queries() if name.startswith(incomplete)]


def objectives(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Names of the transfer objectives."""
    from kt_study.objectives import OBJECTIVES

    return [name for name in OBJECTIVES if name.startswith(incomplete)]


def models(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Names of the models in the job database, except untrained starts and intermediate stages."""
    from kt_study.multi_teacher import TRANSFERRED
    from kt_study.training import UNTRAINED

    def names(store: JobStore, _: str) -> set[str]:
        records = [one for one in store.models() if not one.weights.startswith(TRANSFERRED)]
        return {one.name for one in records if not one.name.endswith(UNTRAINED)}

    return _from_database(ctx, incomplete, names)


def kinds(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Kinds of the study's jobs."""
    return _from_database(ctx, incomplete, lambda store, study: {kind for kind, _ in store.counts(study)})


def error_groups(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Error groups of the study's failed jobs."""
    return _from_database(ctx, incomplete, lambda store, study: store.error_groups(study))


def _from_database(ctx: click.Context, incomplete: str, ask: Callable[[JobStore, str], Iterable[str]]) -> list[str]:
    """Values from the job database; none if it cannot be opened, since completion cannot show errors."""
    from kt_study.errors import KtStudyError

    given = ctx.params
    context = StudyContext(study_path=given.get("study_path") or Path("study.toml"), db_flag=given.get("db_flag"))
    try:
        found = sorted(ask(context.store(), context.name))
    except KtStudyError:
        return []
    return [word for word in found if word.startswith(incomplete)]
