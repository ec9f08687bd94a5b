"""Input and output records of planning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kt_study.datasets import Contents, list_split, prepare
from kt_study.errors import DataError
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord, ModelRecord, PlannedJob, TransferSpec
from kt_study.study import DatasetSection
from orchestrator.planning.model_records import FileDigests

Pair = tuple[str, str]
"""(teacher, student): names."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of the command line; None for the value of the study file."""

    pairs: int | None = None
    complementarity_pairs: int | str | None = None
    controls: bool = False
    seeds: int | list[int] | None = None
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RecordedTransfer:
    """A transfer, or a soup, that is running or done in the database."""

    done: bool
    keep: str  # the most of those that it was planned or remade with
    there: bool  # the file of its student exists, or will

    @property
    def kept(self) -> bool:
        """Whether its student is kept independently of others."""
        return self.keep == "all"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The inputs of a plan. Making a plan writes only data set indices, under `scratch`."""

    folder: Path  # of the study file, to which its paths are relative
    scratch: Path
    accuracies: Callable[[str], Mapping[str, float]] = lambda _: {}  # data set key -> top-1 in % by model key
    recorded: Callable[[str], RecordedTransfer | None] = lambda _: None  # by digest; None if neither running nor done
    acc_after: Callable[[str], float | None] = lambda _: None  # % of a transfer that is done, by digest
    progress: Callable[[int], None] = lambda _: None  # samples seen while a data set is scanned
    digests: FileDigests
    contents: dict[str, Contents] = field(default_factory=dict)  # of the data sets scanned so far, by key

    @property
    def paths(self) -> StudyPaths:
        """The study's files, for reading."""
        return StudyPaths(root=self.folder)

    def dataset(self, section: DatasetSection, *, seed: int) -> DatasetRecord:
        """The data set of a section, its index stored under `scratch`. Raises DataError."""
        scratch = StudyPaths(root=self.scratch)
        found = prepare(
            section, seed=seed, folder=self.folder, paths=scratch, progress=self.progress, contents=self._remember
        )
        if found.n_classes == 1:
            ((_, names), samples) = list_split(found, "val", scratch), found.splits["val"]
            raise DataError(
                f"data set {found.name!r} has one class, {names[0]!r}, with {samples:,} samples in val: nothing can be told "
                "apart; correct [dataset] (an image folder has one folder for each class)"
            )
        return found

    def _remember(self, contents: Contents) -> None:
        self.contents[contents.key] = contents


@dataclass(kw_only=True)
class Plan:
    """A plan. In `jobs`, every job comes after those that it needs."""

    name: str
    settings: dict[str, Any]  # stored with the study
    datasets: list[DatasetRecord]
    models: list[ModelRecord]  # of the pairs
    others: list[ModelRecord] = field(default_factory=list)  # untrained models, and students between stages
    complementarity_pairs: list[Pair] = field(default_factory=list)
    all_pairs: bool = False
    runs: list[TransferSpec] = field(default_factory=list)  # the requested transfers; their parts are among the jobs
    jobs: dict[str, PlannedJob] = field(default_factory=dict)  # by digest, in order
    notes: list[str] = field(default_factory=list)

    def by_kind(self) -> Counter[str]:
        """Jobs of each kind."""
        return Counter(job.kind for job in self.jobs.values())

    def pairs_by_objective(self) -> dict[str, int]:
        """Different (data set, student, teachers) for each objective; a set of teachers counts as one."""
        pairs: dict[str, set[tuple[str, str, tuple[str, ...]]]] = {}
        for run in self.runs:
            pairs.setdefault(run.objective, set()).add((run.dataset, run.student, tuple(sorted(run.teachers))))
        return {objective: len(found) for objective, found in pairs.items()}
