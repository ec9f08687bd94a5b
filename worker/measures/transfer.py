"""Measures of one transfer from the student's predictions before and after it (paper, Sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kt_study.errors import DataError
from kt_study.records import Record
from kt_study.schema import RATE_PERCENTS
from worker.measures.arrays import Floats, Ints, Mask, check_labels, check_predictions
from worker.measures.pair import count_by_class
from worker.measures.top_classes import top_classes


class AgainstTeacher(Record, frozen=True, kw_only=True):
    """A student before and after a transfer, against one teacher.

    `delta_transf = (rho_neg_after - rho_neg_before) - (rho_pos_after - rho_pos_before)`, for every teacher.
    """

    acc_teacher: float  # %
    rho_pos_before: float  # % of samples, teacher right and student wrong
    rho_pos_after: float
    rho_neg_before: float  # % of samples, teacher wrong and student right
    rho_neg_after: float
    agreement_before: float  # % of samples on which student and teacher predict the same class
    agreement_after: float
    transfer_rates: tuple[float, ...]  # %, at top 2, 5, 20, 50 and 100 % of the positive flips; nan without flips
    strict_transfer_rates: tuple[float, ...]  # %, counting only the flipped images themselves

    def row(self) -> dict[str, float]:
        """The measures by the column names of the `transfers` table."""
        others = ("transfer_rates", "strict_transfer_rates")
        rates = zip(RATE_PERCENTS, self.transfer_rates, strict=True)
        strict = zip(RATE_PERCENTS, self.strict_transfer_rates, strict=True)
        return (
            {name: getattr(self, name) for name in self.__struct_fields__ if name not in others}
            | {f"transfer_rate_top{percent}": rate for percent, rate in rates}
            | {f"transfer_rate_strict_top{percent}": rate for percent, rate in strict}
        )


class TransferMeasures(Record, frozen=True, kw_only=True):
    """What a transfer did to a student. `knowledge_gain - knowledge_loss = delta_transf`, exactly so in the counts."""

    n: int  # validation samples
    n_gained: int  # samples newly right
    n_lost: int  # samples newly wrong
    acc_before: float  # %
    acc_after: float  # %
    delta_transf: float  # points
    delta_transf_low: float  # points, ends of the 95 % paired-bootstrap interval
    delta_transf_high: float
    mcnemar_p: float
    knowledge_gain: float  # % of samples
    knowledge_loss: float  # % of samples
    changed: float  # % of samples, predicted otherwise than before, right or wrong
    teachers: tuple[AgainstTeacher, ...]  # in the order given

    def row(self) -> dict[str, int | float]:
        """The measures by the column names of the `transfers` table.

        Of several teachers the most accurate one's, the first of equals; without any, no columns about a teacher.
        """
        others = ("n_gained", "n_lost", "teachers")
        own: dict[str, int | float] = {
            name: getattr(self, name) for name in self.__struct_fields__ if name not in others
        }
        best = max(self.teachers, key=lambda against: against.acc_teacher, default=None)
        return own | (best.row() if best else {})


def measure_transfer(
    labels: Ints, before: Ints, after: Ints, teachers: Sequence[Ints], n_classes: int
) -> TransferMeasures:
    """Measure one transfer.

    Args:
        labels: int[n], classes from 0.
        before: int[n], classes predicted by the student before the transfer.
        after: int[n], classes predicted by the student after it.
        teachers: int[n] each, classes predicted by the teachers.
        n_classes: classes of the data set.

    Raises:
        DataError: shapes differ, or a class is not in [0, n_classes).
    """
    check_labels(labels, n_classes)
    for name, predictions in (("before", before), ("after", after), *(("teacher", teacher) for teacher in teachers)):
        check_predictions(name, predictions, labels, n_classes)
    n = labels.size
    right_before, right_after = before == labels, after == labels
    gained, lost = _count(right_after & ~right_before), _count(right_before & ~right_after)
    low, high = bootstrap_interval(n, gained, lost)
    return TransferMeasures(
        n=n,
        n_gained=gained,
        n_lost=lost,
        acc_before=_count(right_before) * 100.0 / n,
        acc_after=_count(right_after) * 100.0 / n,
        delta_transf=(gained - lost) * 100.0 / n,
        delta_transf_low=low,
        delta_transf_high=high,
        mcnemar_p=mcnemar_p(gained, lost),
        knowledge_gain=gained * 100.0 / n,
        knowledge_loss=lost * 100.0 / n,
        changed=_differing(before, after),
        teachers=tuple(_against(labels, teacher, before, after, n_classes) for teacher in teachers),
    )


def measure_without_labels(before: Ints, after: Ints, teachers: Sequence[Ints]) -> dict[str, int | float]:
    """The measures of a transfer that need no labels, by the column names of `transfers`.

    Of several teachers the first one's agreement, since the best one is unknown. Arguments as of `measure_transfer`.
    """
    row: dict[str, int | float] = {"n": before.size, "changed": _differing(before, after)}
    if teachers:
        row["agreement_before"] = 100.0 - _differing(teachers[0], before)
        row["agreement_after"] = 100.0 - _differing(teachers[0], after)
    return row


def mcnemar_p(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: are newly right and newly wrong samples equally likely? 1 without either.

    The exact binomial test at every size: min(1, 2 P(X <= min(gained, lost))) for X ~ Binomial(gained + lost, 1/2)
    (McNemar 1947; statsmodels' `mcnemar(exact=True)`).
    """
    discordant, fewer = gained + lost, min(gained, lost)
    k = np.arange(fewer, dtype=np.float64)
    log_ratios = np.log(discordant - k) - np.log(k + 1)  # of neighbouring binomial coefficients
    log_terms = np.concatenate(([0.0], np.cumsum(log_ratios))) - discordant * np.log(2.0)
    return min(1.0, 2.0 * float(np.exp(log_terms).sum()))


def bootstrap_interval(n: int, gained: int, lost: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval, in points, of the paired bootstrap of delta_transf, as infinitely many draws would give it.

    Drawing n samples with replacement draws n values of +1 (newly right), -1 (newly wrong) or 0. The distribution of
    their sum follows from its characteristic function, the n-th power of one draw's, by one Fourier transform: no seed.

    Returns:
        (low, high): the smallest sums with at least (1 - level)/2 and (1 + level)/2 of the chance, as % of n.
    """
    turn = np.exp(2j * np.pi * np.arange(2 * n + 1) / (2 * n + 1))
    one_draw = (gained * turn + lost * turn.conj() + (n - gained - lost)) / n
    chances: Floats = np.fft.fft(one_draw**n).real / (2 * n + 1)
    reached = np.cumsum(np.roll(chances, n))  # sums from -n to n
    tail = (1.0 - level) / 2.0
    low, high = (int(np.searchsorted(reached >= share, True)) - n for share in (tail, 1.0 - tail))
    return low * 100.0 / n, high * 100.0 / n


def flips_given_to_teacher(labels: Ints, teacher: Ints, student: Ints, to_teacher: Mask) -> tuple[float, float]:
    """Share in % of positive and of negative flips that a data partition gives to the teacher (paper, Section 5.1).

    Args:
        labels: int[n], classes of the samples that were partitioned.
        teacher: int[n], classes predicted by the teacher.
        student: int[n], classes predicted by the frozen student.
        to_teacher: bool[n], the samples that the teacher teaches.

    Returns:
        (`dp_pos_to_teacher`, `dp_neg_to_teacher`), nan where there are no such flips.

    Raises:
        DataError: shapes differ.
    """
    for name, values in (("teacher", teacher), ("student", student), ("to_teacher", to_teacher)):
        if values.shape != labels.shape:
            raise DataError(f"{name} has shape {values.shape} for labels of shape {labels.shape}")
    teacher_right, student_right = teacher == labels, student == labels
    positive, negative = teacher_right & ~student_right, student_right & ~teacher_right
    return _percent(_count(positive & to_teacher), _count(positive)), _percent(
        _count(negative & to_teacher), _count(negative)
    )


def _against(labels: Ints, taught: Ints, was: Ints, became: Ints, n_classes: int) -> AgainstTeacher:
    """Measures against one teacher, from the classes that it, and the student before and after, predict."""
    teacher, before, after = taught == labels, was == labels, became == labels
    n, flipped = labels.size, teacher & ~before
    gained = after & ~before
    return AgainstTeacher(
        acc_teacher=_count(teacher) * 100.0 / n,
        rho_pos_before=_count(flipped) * 100.0 / n,
        rho_pos_after=_count(teacher & ~after) * 100.0 / n,
        rho_neg_before=_count(before & ~teacher) * 100.0 / n,
        rho_neg_after=_count(after & ~teacher) * 100.0 / n,
        agreement_before=100.0 - _differing(taught, was),
        agreement_after=100.0 - _differing(taught, became),
        transfer_rates=_transfer_rates(labels, flipped, gained, n_classes),
        strict_transfer_rates=_transfer_rates(labels, flipped, gained & flipped, n_classes),
    )


def _transfer_rates(labels: Ints, flipped: Mask, gained: Mask, n_classes: int) -> tuple[float, ...]:
    """% for each of RATE_PERCENTS: samples gained in the top classes, over the positive flips there (Figure 5a).

    Averaged over all orders of classes with equally many flips; the number of flips in the set is the same for all.
    """
    flips = count_by_class(labels, flipped, n_classes)
    gains = count_by_class(labels, gained, n_classes)
    tops = [top_classes(flips, percent) for percent in RATE_PERCENTS]
    return tuple(_percent(top.expected_sum(gains), top.expected_sum(flips)) for top in tops)


def _count(selected: Mask) -> int:
    return int(np.count_nonzero(selected))


def _differing(one: Ints, other: Ints) -> float:
    """% of samples with different predictions."""
    return _count(one != other) * 100.0 / one.size


def _percent(part: float, whole: float) -> float:
    return part * 100.0 / whole if whole else float("nan")
