"""Accuracies, flip rates, error overlap and kappa of pairs, all from four integers per pair.

Written for arrays of pairs: one pair and all pairs go through the same arithmetic, so they agree to the last bit.
"""

from __future__ import annotations

import numpy as np

from worker.measures.arrays import Counts, Floats


def pair_rates(n: int, right_teacher: Counts, right_student: Counts, positive_flips: Counts) -> dict[str, Floats]:
    """Rates of pairs from their counts.

    `rho_pos - rho_neg = delta_acc` holds exactly in the integers that are divided here.

    Args:
        n: validation samples, the same for every pair.
        right_teacher: int64[pairs], samples that the teacher gets right.
        right_student: int64[pairs], samples that the student gets right.
        positive_flips: int64[pairs], samples that the teacher gets right and the student wrong.

    Returns:
        float64[pairs] by column: `acc_teacher`, `acc_student`, `rho_pos`, `rho_neg`, `error_overlap` in %, `delta_acc`
        in points (paper, Section 3), `kappa` without a unit.
    """
    both_right = right_teacher - positive_flips
    negative_flips = right_student - both_right
    return {
        "acc_teacher": right_teacher * 100.0 / n,
        "acc_student": right_student * 100.0 / n,
        "delta_acc": (positive_flips - negative_flips) * 100.0 / n,
        "rho_pos": positive_flips * 100.0 / n,
        "rho_neg": negative_flips * 100.0 / n,
        "error_overlap": error_overlap(n, both_right, right_teacher, right_student),
        "kappa": error_consistency(n, both_right, right_teacher, right_student),
    }


def error_overlap(n: int, both_right: Counts, right_teacher: Counts, right_student: Counts) -> Floats:
    """Share of samples that both get wrong among those that at least one gets wrong, %; nan if neither errs.

    This is the Jaccard index of the two sets of errors.
    """
    either_wrong = n - both_right
    both_wrong = n - right_teacher - right_student + both_right
    return _ratio(both_wrong, either_wrong) * 100.0


def error_consistency(n: int, both_right: Counts, right_teacher: Counts, right_student: Counts) -> Floats:
    """Cohen's kappa of being right: agreement of two classifiers' correctness beyond chance, in [-1, 1].

    kappa = (c_obs - c_exp) / (1 - c_exp), with c_obs the share of samples that both get right or both wrong, and c_exp
    that of two independent classifiers of the same accuracies (Geirhos, Meding and Wichmann 2020, "Beyond accuracy",
    Equations 1 and 3). nan where c_exp is 1: both always right, or both always wrong.
    """
    same = 2 * both_right + n - right_teacher - right_student
    # both terms times n squared, so that the subtraction is one of integers
    expected = right_teacher * right_student + (n - right_teacher) * (n - right_student)
    return _ratio(n * same - expected, n * n - expected)


def _ratio(above: Counts, below: Counts) -> Floats:
    """above / below, nan where below is 0."""
    ratio = np.full(below.shape, np.nan)
    np.divide(above, below, out=ratio, where=below != 0)
    return ratio
