"""All checks, in the order in which a study depends on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from kt_study.errors import DatabaseError, StudyFileError, UsageError
from kt_study.pilots import PilotOptions
from orchestrator.cluster.doctor import cluster, machine, study
from orchestrator.cluster.doctor.findings import Finding, ok, wrong

if TYPE_CHECKING:
    from orchestrator.terminal.study_context import StudyContext


def examine(context: StudyContext) -> list[Finding]:
    """This machine, for the user who types commands on it."""
    on_cluster = cluster.has_slurm()
    return list(
        chain(
            _this_machine(),
            study.folder(context.folder, has_slurm=on_cluster),
            _study_file_and_database(context, on_cluster=on_cluster),
            cluster.slurm(),
        )
    )


def examine_as_pilot(root: Path) -> list[Finding]:
    """This machine, for a pilot: the database is the one that the study folder names."""
    return [*_this_machine(), *study.folder(root, has_slurm=False), *_database_of_pilots(root)]


def _this_machine() -> Iterator[Finding]:
    return chain(machine.python(), machine.packages(), machine.ffcv(), machine.gpu())


def _study_file_and_database(context: StudyContext, *, on_cluster: bool) -> Iterator[Finding]:
    try:
        yield ok("study file", f"{context.study_path}: study {context.name!r}")
        url = context.database_url
    except StudyFileError as error:
        yield wrong("study file", str(error))
        return
    yield from study.database(url, has_slurm=on_cluster)
    with suppress(DatabaseError):  # see the finding above
        try:
            context.require_planned_here(context.store())
        except UsageError as error:
            yield wrong("study", str(error))


def _database_of_pilots(root: Path) -> Iterator[Finding]:
    try:
        url = PilotOptions(root=str(root)).database_url()
    except DatabaseError as error:
        yield wrong("database", str(error))
        return
    yield from study.database(url)
