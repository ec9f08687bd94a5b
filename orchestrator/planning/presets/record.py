"""The record of a preset: lists of pairs with the paper's settings for their transfers."""

from __future__ import annotations

from itertools import product

from kt_study.hashing import hash64
from kt_study.records import Record

Setting = str | int | float


class TransferPair(Record, frozen=True):
    """A student and its teacher, or its teachers in the order of the transfer. Full timm names."""

    student: str
    teachers: tuple[str, ...]


class Search(Record, frozen=True):
    """A search over settings: every combination of the axes, or a seeded draw of `draws` of them."""

    axes: dict[str, tuple[Setting, ...]]  # name of a field of kt_study.settings.Settings -> values
    draws: int = 0  # 0: every combination
    seed: int = 0

    def points(self) -> tuple[dict[str, Setting], ...]:
        """The settings to try, in the order of the axes."""
        grid = [dict(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())]
        if not self.draws:
            return tuple(grid)
        order = sorted(range(len(grid)), key=lambda index: hash64("search", self.seed, index))
        return tuple(grid[index] for index in sorted(order[: self.draws]))


class Arm(Record, frozen=True):
    """One objective over a list of pairs, on one data set."""

    objective: str
    pairs: tuple[TransferPair, ...]
    dataset: str  # name of one of the preset's data sets
    settings: dict[str, Setting]  # by the names of kt_study.settings.Settings, with multi_teacher and teacher_order
    search: Search | None = None

    def points(self) -> tuple[dict[str, Setting], ...]:
        """The full settings of each run of a pair: one, or one per point of the search."""
        points = self.search.points() if self.search else ({},)
        return tuple({**self.settings, **point} for point in points)


class DatasetNeed(Record, frozen=True):
    """A data set that the user must have to run the preset."""

    name: str
    kind: str  # of kt_study.datasets; instead of an image folder, any kind with as many classes
    classes: int
    train: int  # samples
    val: int
    train_fraction: float = 1.0  # stratified by class


class FineTuning(Record, frozen=True):
    """Training that models need before the transfers start."""

    models: tuple[str, ...]
    dataset: str
    scope: str  # head: the last layer only; body: every layer, then the old last layer is restored
    epochs: int
    batch_size: int
    lr: float


class Preset(Record, frozen=True):
    """A part of the paper's study, ready to plan."""

    name: str
    title: str
    source: str  # where in the paper, and what else was needed
    arms: tuple[Arm, ...]
    datasets: tuple[DatasetNeed, ...]
    fine_tuning: tuple[FineTuning, ...] = ()
    notes: tuple[str, ...] = ()  # decisions on points that the paper leaves open

    def pairs(self) -> tuple[TransferPair, ...]:
        """The different pairs of all arms, in their order."""
        return tuple(dict.fromkeys(pair for arm in self.arms for pair in arm.pairs))

    def models(self) -> tuple[str, ...]:
        """Full names of every student and teacher, sorted."""
        return tuple(sorted({name for pair in self.pairs() for name in (pair.student, *pair.teachers)}))
