"""The findings of the study as sentences with numbers, each next to that of the paper. Computed from rows only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kt_study.published import read_table
from orchestrator.results.report.plot import OBJECTIVES
from orchestrator.results.report.published import SETTING, claim, students, success_medians
from orchestrator.results.report.statistics import FEWEST, Interval, bootstrap, by_student
from orchestrator.results.report.study_results import SETTINGS, StudyResults, order_of
from orchestrator.results.report.tables.several import MODES, against_single
from orchestrator.results.report.tables.several import SETTING as SEVERAL
from orchestrator.terminal.plural import counted

KL, KL_DP = OBJECTIVES["kl"], OBJECTIVES["kl_dp"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence, its key number and the paper's."""

    number: str  # short, large on the page
    sentence: str
    paper: str = ""  # with its data and models


def findings(study: StudyResults) -> list[Finding]:
    """In the order of the page; none for a study without results."""
    return [finding for make in _FINDINGS if (finding := make(study)) is not None]


def _complementarity(study: StudyResults) -> Finding | None:
    pairs = study.pairs.dropna(subset=["rho_pos", "delta_acc"])
    if pairs.empty:
        return None
    weaker = pairs[pairs["delta_acc"] < 0]
    share = 100.0 * float((pairs["rho_pos"] > 0).mean())
    behind = (
        f" The {len(weaker):,} with a weaker teacher still have {weaker['rho_pos'].median():.1f} %."
        if len(weaker)
        else ""
    )
    return Finding(
        number=f"{pairs['rho_pos'].median():.1f} %",
        sentence=f"of the validation samples the teacher gets right and the student wrong, in the median of "
        f"{len(pairs):,} ordered pairs; {share:.0f} % of pairs have some.{behind}",
        paper=f"some in every one of {claim('pairs_complementarity'):.0f} pairs (ImageNet, "
        f"{claim('models_complementarity'):.0f} models)",
    )


def _agreement(study: StudyResults) -> Finding | None:
    """The finding of a study without labels."""
    pairs = (study.pairs if len(study.pairs) else study.baseline).dropna(subset=["agreement"])
    if pairs.empty or pairs["rho_pos"].notna().any():
        return None
    return Finding(
        number=f"{pairs['agreement'].median():.1f} %",
        sentence=f"of the validation samples two models predict alike, in the median of {len(pairs):,} ordered pairs. "
        "The data set has no labels, so nothing shows which model is right.",
    )


def _success(study: StudyResults) -> Finding | None:
    rates = _medians(study, "success_rate")
    if not rates:
        return None
    best = max(rates, key=lambda name: rates[name].value)
    n = study.single["student"].nunique()
    over = (
        f"Over {counted(n, 'student')}, too few for an interval."
        if n < FEWEST
        else f"In brackets: 95 % interval over {n} students."
    )
    paper = [f"{name} {success_medians()[name]:g} %" for name in rates if name in success_medians()]
    if (smoothed := OBJECTIVES["kl_label_smoothing"]) in rates:
        paper.append(f"{smoothed} {claim('success_label_smoothing'):g} %")
    listed = "; ".join(f"{name} {rate.text(' %')}" for name, rate in rates.items())
    return Finding(
        number=f"{rates[best].value:.4g} %",
        sentence=f"of teachers raise the median student under {best}. {listed}. {over}",
        paper=_in_paper(paper),
    )


def _delta(study: StudyResults) -> Finding | None:
    deltas = _medians(study, "mean_delta")
    if not deltas:
        return None
    best = max(deltas, key=lambda name: deltas[name].value)
    listed = "; ".join(f"{name} {interval.text('', 2)}" for name, interval in deltas.items())
    tested = study.single[study.single["objective"] == best].dropna(subset=["mcnemar_p"])
    sure = ((tested["mcnemar_p"] < 0.05) & (tested["delta_transf"] > 0)).sum()
    beyond_chance = f" For {sure} of its {len(tested)} transfers the gain is beyond chance (McNemar, p < 0.05)."
    paper = students().groupby("objective")["delta_mean"].median()
    return Finding(
        number=f"{deltas[best].value:+.2f}",
        sentence=f"points of accuracy for the median student under {best}, in the mean over its teachers. {listed}."
        + beyond_chance * (not tested.empty),
        paper=_in_paper(f"{name} {round(paper[name], 2) + 0.0:+.2f}" for name in deltas if name in paper),
    )


def _medians(study: StudyResults, column: str) -> dict[str, Interval]:
    """Label of each objective -> median over students of a column of `by_student`."""
    rows = by_student(study.single)
    return {
        objective: bootstrap(rows.loc[rows["objective"] == objective, column].to_list(), np.median)
        for objective in order_of(rows["objective"])
    }


def _in_paper(numbers: Iterable[str]) -> str:
    listed = ", ".join(numbers)
    return f"{listed} ({SETTING})" if listed else ""


def _partition(study: StudyResults) -> Finding | None:
    rows = study.single[study.single["objective"] == KL_DP].dropna(subset=["dp_pos_to_teacher", "dp_neg_to_teacher"])
    if rows.empty:
        return None
    positive, negative = rows["dp_pos_to_teacher"].mean(), rows["dp_neg_to_teacher"].mean()
    return Finding(
        number=f"{positive:.0f} % / {negative:.0f} %",
        sentence=f"of positive and of negative flips go to the teacher by the data partition, on average over "
        f"{len(rows)} transfers with KL+DP.",
        paper=f"{claim('dp_pos_to_teacher'):g} % and {claim('dp_neg_to_teacher'):g} % (ImageNet in full, 8 students x 4 "
        "teachers)",
    )


def _several(study: StudyResults) -> Finding | None:
    table = against_single(study, "kl_dp", MODES)
    gains = {mode: (table[mode] - table["single max"]).dropna() for mode in MODES if len(table)}
    means = {mode: values.mean() for mode, values in gains.items() if len(values)}
    if not means:
        return None
    best = max(means, key=lambda mode: means[mode])
    listed = ", ".join(f"{mode} {value:+.2f}" for mode, value in means.items())
    paper = read_table("table4_multi_teacher_kl_dp")
    points = sum(float(row["sequential"]) - float(row["single_max"]) for row in paper) / len(paper)
    return Finding(
        number=f"{means[best]:+.2f}",
        sentence=f"points over the best of the same teachers alone with {best} transfer from several (KL+DP, "
        f"{counted(table['student'].nunique(), 'student')}): {listed}.{_relative_gain(table, best)}",
        paper=f"sequential {points:+.2f} points, {claim('sequential_gain'):+.0f} % ({SEVERAL})",
    )


def _relative_gain(table: pd.DataFrame, mode: str) -> str:
    """The gain in % of what the best teacher alone brings, as in the paper; only where that teacher brings a gain."""
    gained = table[(table["single max"] > 0) & table[mode].notna()]
    if gained.empty:
        return ""
    share = 100.0 * (gained[mode] / gained["single max"] - 1.0).mean()
    return (
        f" In % of what the best alone brings: {share:+.0f} %, on average over the {len(gained)} of {len(table)} where it "
        "gains."
    )


def _soft_targets(study: StudyResults) -> Finding | None:
    """Soft-target cross-entropy against KL (paper, Section B.1)."""
    rows = study.single
    soft, plain = rows[rows["objective"] == OBJECTIVES["soft_xe"]], rows[rows["objective"] == KL]
    gains = _differences(soft, plain, ["student_key", "teacher_key"])
    if gains.empty:
        return None
    return Finding(
        number=f"{gains.mean():+.2f}",
        sentence=f"points by soft-target cross-entropy instead of KL, in the mean of {counted(len(gains), 'pair')}.",
        paper=f"{claim('soft_xe_vs_kl'):+g} points (ImageNet, 60 pairs)",
    )


def _top_classes(study: StudyResults) -> Finding | None:
    """KL over the teacher's ten highest classes against KL over all (paper, Section B.1)."""
    rows = study.all_single[study.all_single["objective"] == KL]
    same = ["dataset", "student_key", "teacher_key", "seed", *(name for name in SETTINGS if name != "top_k")]
    gains = _differences(rows[rows["top_k"] == 10], rows[rows["top_k"] == 0], same)
    if gains.empty:
        return None
    return Finding(
        number=f"{gains.mean():+.2f}",
        sentence=f"points by KL over the teacher's ten highest classes instead of all, in the mean of "
        f"{counted(len(gains), 'pair')}.",
        paper=f"{claim('topk10_gain'):+.2f} points (ImageNet, 6 pairs)",
    )


def _differences(ours: pd.DataFrame, others: pd.DataFrame, same: list[str]) -> pd.Series[float]:
    """delta_transf of ours minus that of others, where these columns are equal."""
    both = ours[[*same, "delta_transf"]].merge(others[[*same, "delta_transf"]], on=same, suffixes=("", "_other"))
    return both["delta_transf"] - both["delta_transf_other"]


_FINDINGS: tuple[Callable[[StudyResults], Finding | None], ...] = (
    _complementarity,
    _agreement,
    _success,
    _delta,
    _partition,
    _several,
    _soft_targets,
    _top_classes,
)
