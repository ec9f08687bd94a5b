"""The transfers of a study file: pairs, settings, grids, sets of teachers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from kt_study.errors import PairsError, UsageError
from kt_study.hashing import hash64
from kt_study.multi_teacher import order_teachers
from kt_study.objectives import check, controls_of, facts_of, label_use, settings_for
from kt_study.records import DatasetRecord, ModelRecord, TransferSpec
from kt_study.settings import Settings, named
from kt_study.study import DatasetSection, StudyFile, TransferSection, said_settings
from orchestrator.planning.checks import check_can_transfer
from orchestrator.planning.model_records import matching
from orchestrator.planning.record import PlanOptions, Sources
from orchestrator.planning.sampling import sample_transfer_pairs

PAPER_TRANSFERS = 400
"""Section 5.1: pairs for each objective."""


class StudyTransfers:
    """The transfers of one study on one data set. `notes` says what was left out, and why."""

    def __init__(
        self, study: StudyFile, dataset: DatasetRecord, models: list[ModelRecord], wishes: PlanOptions, sources: Sources
    ) -> None:
        self.notes: list[str] = []
        self._order: str = said_settings(study.transfer, study.dataset)["teacher_order"]
        self._study, self._dataset, self._wishes, self._sources = study, dataset, wishes, sources
        self._students = matching(models, study.transfer.students, where="[transfer] students")
        self._teachers = matching(models, study.transfer.teachers, where="[transfer] teachers")
        self._may_come_first: set[tuple[str, str]] = set()  # keys (student, teacher) of sequences not yet in order

    def runs(self) -> list[TransferSpec]:
        """Every transfer, each once, objective by objective, those of one teacher first.

        Raises:
            UsageError: an unknown objective, settings that clash, or transfers where none can be.
            PairsError: more pairs than exist, or too few teachers for a set.
        """
        settings = {objective: self._settings(objective) for objective in self._study.transfer.objectives}
        controls = {objective: self._settings(objective, controls=True) for objective in self._controls()}
        wanted = self._wanted()
        if wanted == 0:
            return []
        pairs = self._pairs(wanted)
        found = [
            self._run(objective, student, [teacher], point, seed)
            for seed in self._seeds()
            for objective, points in (settings | controls).items()
            for point in points
            for teacher, student in pairs
        ]
        for mode in self._study.transfer.multi_teacher:
            found += self._team_runs(mode, settings)
        return [self._kept_for_later(run) for run in dict.fromkeys(found)]

    def _seeds(self) -> list[int]:
        """Seeds of the replicates of each transfer. Pairs and subset are those of the study's own seed."""
        given = self._study.transfer.seeds if self._wishes.seeds is None else self._wishes.seeds
        first = self._study.study.seed
        seeds = [first + number for number in range(given)] if isinstance(given, int) else given
        if len(set(seeds)) < len(seeds):
            raise UsageError(f"seeds {', '.join(map(str, seeds))}: a seed is named twice; each gives one replicate")
        return seeds

    def _controls(self) -> list[str]:
        """The controls of the study's objectives, with one teacher; those that read labels only where there are some."""
        section = self._study.transfer
        if not (section.controls or self._wishes.controls):
            return []
        found = controls_of(section.objectives)
        if self._dataset.has_labels("train"):
            return found
        left = [name for name in found if not label_use(name, Settings())]
        self.notes.append(
            f"controls that read labels are left out, since {self._dataset.name} has none in train: "
            f"{', '.join(name for name in found if name not in left)}"
        )
        return left

    def _wanted(self) -> int | None:
        """How many pairs; None for the paper's 400, or all where there are fewer."""
        section = self._study.transfer
        wanted = self._wishes.pairs if self._wishes.pairs is not None else section.pairs
        if wanted != 0 and (obstacle := check_can_transfer(self._dataset)):
            if wanted or section.multi_teacher or self._wishes.grid:
                raise UsageError(f"no transfers can be planned: {obstacle}; remove them, or ask for 0 pairs")
            self.notes.append(f"no transfers: {obstacle}")
            return 0
        return wanted

    def _pairs(self, wanted: int | None) -> list[tuple[ModelRecord, ModelRecord]]:
        """(teacher, student) pairs, sorted by name."""
        by_name = {model.name: model for model in [*self._students, *self._teachers]}
        students, teachers = [m.name for m in self._students], [m.name for m in self._teachers]
        most = len(students) * len(teachers) - len(set(students) & set(teachers))
        n = min(PAPER_TRANSFERS, most) if wanted is None else wanted
        drawn = sample_transfer_pairs(students, teachers, n, seed=self._study.study.seed)
        return [(by_name[teacher], by_name[student]) for teacher, student in drawn]

    def _settings(self, objective: str, *, controls: bool = False) -> list[Settings]:
        """The objective's own settings, under the study file's, under each point of the grid. Controls drop what others use."""
        points: list[dict[str, Any]] = [{}]
        for name, values in self._wishes.grid.items():
            points = [{**point, name: value} for point in points for value in values]
        common = common_settings(self._study.transfer, self._study.dataset, self._dataset, self._sources)
        given = [{**common, **point} for point in points]
        if controls:
            others = set(named("objective")) - facts_of(objective).uses
            given = [{name: value for name, value in one.items() if name not in others} for one in given]
        return list(dict.fromkeys(settings_for(objective, one) for one in given))

    def _run(
        self, objective: str, student: ModelRecord, teachers: list[ModelRecord], settings: Settings, seed: int
    ) -> TransferSpec:
        return TransferSpec(
            dataset=self._dataset.key,
            student=student.key,
            teachers=tuple(teacher.key for teacher in teachers),
            objective=objective,
            settings=settings,
            seed=seed,
        )

    def _team_runs(self, mode: str, settings: dict[str, list[Settings]]) -> list[TransferSpec]:
        """One run for each student, its set of teachers, and each objective that the mode makes sense for."""
        points = [
            (objective, replace(point, multi_teacher=mode, teacher_order=self._order))
            for objective in self._fitting(mode, settings)
            for point in settings[objective]
        ]
        try:
            teams = [(student, self._in_order(mode, team)) for student, team in self._teams()]
        except _NotYetKnown as reason:
            self.notes.append(f"sequential transfers are left out for now: {reason}")
            self._may_come_first = {(student.key, teacher.key) for student, team in self._teams() for teacher in team}
            return []
        return [
            self._run(objective, student, team, point, seed)
            for seed in self._seeds()
            for objective, point in points
            for student, team in teams
        ]

    def _kept_for_later(self, run: TransferSpec) -> TransferSpec:
        """Whichever teacher will come first in a sequence, its single transfer is the first stage: it is kept."""
        if run.settings.multi_teacher != "single" or (run.student, run.teachers[0]) not in self._may_come_first:
            return run
        return replace(run, settings=replace(run.settings, keep="all"))

    def _fitting(self, mode: str, settings: dict[str, list[Settings]]) -> list[str]:
        """The objectives that can have this mode. Raises UsageError where none can."""
        refused: dict[str, UsageError] = {}
        for objective, points in settings.items():
            try:
                for point in points:
                    check(objective, replace(point, multi_teacher=mode))
            except UsageError as error:
                refused[objective] = error
        if len(refused) == len(settings):
            raise next(iter(refused.values()))
        if refused:
            self.notes.append(f"{mode} teachers are left out for {', '.join(refused)}: {next(iter(refused.values()))}")
        return [objective for objective in settings if objective not in refused]

    def _teams(self) -> Iterator[tuple[ModelRecord, list[ModelRecord]]]:
        """For each student, its set of teachers: a draw without replacement, by a hash of the names."""
        size, seed = self._study.transfer.teachers_per_student, self._study.study.seed
        for student in self._students:
            others = [teacher for teacher in self._teachers if teacher.key != student.key]
            if len(others) < size:
                raise PairsError(
                    f"[transfer] teachers_per_student = {size}, but {student.name!r} has only {len(others)} teachers; "
                    "lower it or widen teachers"
                )
            others.sort(key=lambda teacher: hash64("team", seed, student.name, teacher.name))
            yield student, others[:size]

    def _in_order(self, mode: str, team: list[ModelRecord]) -> list[ModelRecord]:
        if mode != "sequential":
            return team
        known = self._sources.accuracies(self._dataset.key)
        try:
            return order_teachers(team, order=self._order, accuracy=known)
        except PairsError as error:
            raise _NotYetKnown(
                "the accuracy of their teachers is not known before these are evaluated; launch and plan again, or set "
                "teacher_order = 'given'"
            ) from error


class _NotYetKnown(Exception):
    """Teachers cannot be put in order yet."""


def common_settings(
    section: TransferSection, wanted: DatasetSection, dataset: DatasetRecord, sources: Sources
) -> dict[str, Any]:
    """The settings that the study file gives to every transfer, by name; without those left to the objective."""
    loader = loader_of(section, dataset, sources)
    return {**said_settings(section, wanted), "teacher_order": Settings().teacher_order, "loader": loader}


def loader_of(section: TransferSection, dataset: DatasetRecord, sources: Sources) -> str:
    """`auto` is ffcv once `kt-study data prepare` has written the training split for it, else torch."""
    if section.loader != "auto":
        return section.loader
    prepared = sources.paths.beton(dataset.key, "train").exists() and importlib.util.find_spec("ffcv")
    return "ffcv" if prepared else "torch"
