"""Measures of one ordered pair (teacher, student) from their predictions (paper, Section 3)."""

from __future__ import annotations

import numpy as np

from kt_study.records import Record
from kt_study.schema import TOP_PERCENTS
from worker.measures.arrays import Counts, Ints, Mask, check_labels, check_predictions
from worker.measures.entropy import entropy, expected_subset_entropy
from worker.measures.rates import pair_rates
from worker.measures.top_classes import top_classes


class PairMeasures(Record, frozen=True, kw_only=True):
    """What the teacher knows that the student does not. `rho_pos - rho_neg = delta_acc`, exactly so in the counts."""

    n: int  # validation samples
    n_classes: int
    acc_teacher: float  # %
    acc_student: float  # %
    delta_acc: float  # points, acc_teacher - acc_student
    rho_pos: float  # % of samples, teacher right and student wrong
    rho_neg: float  # % of samples, teacher wrong and student right
    n_positive_flips: int
    n_negative_flips: int
    agreement: float  # % of samples on which both predict the same class
    error_overlap: float  # % of the samples that at least one gets wrong; nan if there are none
    kappa: float  # error consistency; nan if both are always right or both always wrong
    entropy: float  # nats, of the positive flips over classes; nan without positive flips
    entropy_null: float  # nats, mean over random subsets of the student's errors of the same size; nan without flips
    n_top_classes: tuple[int, ...]  # classes that hold the top 2, 5, 20 and 50 % of positive flips
    positive_flips: Counts  # int64[n_classes]
    negative_flips: Counts  # int64[n_classes]

    def row(self) -> dict[str, int | float]:
        """The measures by the column names of the `complementarity` table."""
        others = ("n_top_classes", "positive_flips", "negative_flips")
        tops = zip(TOP_PERCENTS, self.n_top_classes, strict=True)
        shares = {f"top{percent}_classes": count * 100.0 / self.n_classes for percent, count in tops}
        return {name: getattr(self, name) for name in self.__struct_fields__ if name not in others} | shares


def measure_pair(labels: Ints, teacher: Ints, student: Ints, n_classes: int) -> PairMeasures:
    """Measure one ordered pair. A model paired with itself has no flips, and nan for both entropies.

    Args:
        labels: int[n], classes from 0.
        teacher: int[n], classes predicted by the teacher.
        student: int[n], classes predicted by the student.
        n_classes: classes of the data set, those without samples included.

    Raises:
        DataError: shapes differ, or a class is not in [0, n_classes).
    """
    check_labels(labels, n_classes)
    check_predictions("teacher", teacher, labels, n_classes)
    check_predictions("student", student, labels, n_classes)
    teacher_right, student_right = teacher == labels, student == labels
    positive = count_by_class(labels, teacher_right & ~student_right, n_classes)
    negative = count_by_class(labels, student_right & ~teacher_right, n_classes)
    errors = count_by_class(labels, ~student_right, n_classes)
    n_positive = positive.sum(keepdims=True)
    rates = pair_rates(labels.size, _count(teacher_right), _count(student_right), n_positive)
    return PairMeasures(
        n=labels.size,
        n_classes=n_classes,
        n_positive_flips=int(n_positive[0]),
        n_negative_flips=int(negative.sum()),
        agreement=int(np.count_nonzero(teacher == student)) * 100.0 / labels.size,
        entropy=entropy(positive),
        entropy_null=float(expected_subset_entropy(errors[None], n_positive[None])[0, 0]),
        n_top_classes=tuple(top_classes(positive, percent).size for percent in TOP_PERCENTS),
        positive_flips=positive,
        negative_flips=negative,
        **{name: float(values[0]) for name, values in rates.items()},
    )


def count_by_class(labels: Ints, selected: Mask, n_classes: int) -> Counts:
    """int64[n_classes]: how many of the samples of each class are in `selected`, bool[n]."""
    return np.bincount(labels[selected], minlength=n_classes).astype(np.int64, copy=False)


def _count(selected: Mask) -> Counts:
    return np.array([np.count_nonzero(selected)], dtype=np.int64)
