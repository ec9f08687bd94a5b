"""The findings of the study as sentences with numbers, each next to that of the paper. Computed from rows only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from kt_study.published import read_table
from orchestrator.results.report.material import SETTINGS, Material, order_of
from orchestrator.results.report.plot import OBJECTIVES
from orchestrator.results.report.published import SETTING, claim, success_medians
from orchestrator.results.report.statistics import FEWEST, Interval, bootstrap, by_student, median
from orchestrator.results.report.tables.several import SETTING as SEVERAL
from orchestrator.results.report.tables.several import against_single
from orchestrator.terminal.plural import counted

LABELS = {label: name for name, label in OBJECTIVES.items()}
MODES = ("sequential", "parallel", "soup")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence, its key figure and the paper's."""

    figure: str  # short, large on the page
    sentence: str
    paper: str = ""  # with what data and models


def findings(material: Material) -> list[Finding]:
    """In the order of the page; none for a study without results."""
    found = (make(material) for make in _FINDINGS)
    return [finding for finding in found if finding is not None]


def _complementarity(material: Material) -> Finding | None:
    pairs = material.pairs.dropna(subset=["rho_pos", "delta_acc"])
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
        figure=f"{pairs['rho_pos'].median():.1f} %",
        sentence=f"of the validation samples the teacher gets right and the student wrong, in the median of "
        f"{len(pairs):,} ordered pairs; {share:.0f} % of pairs have some.{behind}",
        paper=f"some in every one of {claim('pairs_complementarity'):.0f} pairs (ImageNet, "
        f"{claim('models_complementarity'):.0f} models)",
    )


def _agreement(material: Material) -> Finding | None:
    """The findings of a study without labels."""
    pairs = (material.pairs if len(material.pairs) else material.baseline).dropna(subset=["agreement"])
    if pairs.empty or pairs["rho_pos"].notna().any():
        return None
    return Finding(
        figure=f"{pairs['agreement'].median():.1f} %",
        sentence=f"of the validation samples two models predict alike, in the median of {len(pairs):,} ordered pairs. "
        "The data set has no labels, so that nothing here says who is right.",
    )


def _success(material: Material) -> Finding | None:
    students = by_student(material.single)
    rates = {
        objective: bootstrap(students.loc[students["objective"] == objective, "success_rate"].to_list(), median)
        for objective in order_of(students["objective"])
    }
    if not rates:
        return None
    best = max(rates, key=lambda name: rates[name].value)
    return Finding(
        figure=f"{rates[best].value:.4g} %",
        sentence=f"of teachers raise the median student under {best}. {_all_rates(rates)} "
        f"{_over_students(students['student'].nunique())}",
        paper=_paper_rates(list(rates)),
    )


def _all_rates(rates: dict[str, Interval]) -> str:
    return "; ".join(f"{name} {rate.text(' %')}" for name, rate in rates.items()) + "."


def _over_students(n: int) -> str:
    if n < FEWEST:
        return f"Over {counted(n, 'student')}, too few for an interval."
    return f"In brackets: 95 % interval over {n} students."


def _paper_rates(objectives: Sequence[str]) -> str:
    known = [
        f"{name} {success_medians()[LABELS[name]]:g} %" for name in objectives if LABELS.get(name) in success_medians()
    ]
    if OBJECTIVES["kl_label_smoothing"] in objectives:
        known.append(f"{OBJECTIVES['kl_label_smoothing']} {claim('success_label_smoothing'):g} %")
    return f"{', '.join(known)} ({SETTING})" if known else ""


def _delta(material: Material) -> Finding | None:
    rows = material.single
    if rows.empty:
        return None
    students = by_student(rows)
    parts = {
        objective: bootstrap(students.loc[students["objective"] == objective, "mean_delta"].to_list(), median)
        for objective in order_of(rows["objective"])
    }
    best = max(parts, key=lambda name: parts[name].value)
    listed = "; ".join(f"{name} {interval.text('', 2)}" for name, interval in parts.items())
    return Finding(
        figure=f"{parts[best].value:+.2f}",
        sentence=f"points of accuracy for the median student under {best}, in the mean over its teachers. {listed}."
        + _beyond_chance(rows[rows["objective"] == best]),
        paper=_paper_deltas(list(parts)),
    )


def _beyond_chance(rows: pd.DataFrame) -> str:
    tested = rows.dropna(subset=["mcnemar_p"])
    if tested.empty:
        return ""
    sure = ((tested["mcnemar_p"] < 0.05) & (tested["delta_transf"] > 0)).sum()
    return f" For {sure} of its {len(tested)} transfers the gain is beyond chance (McNemar, p < 0.05)."


def _paper_deltas(objectives: Sequence[str]) -> str:
    from orchestrator.results.report.published import students

    rows = pd.DataFrame(students())
    means = rows.groupby("objective")["delta_mean"].median()
    known = [name for name in objectives if LABELS.get(name) in means]
    listed = ", ".join(f"{name} {round(means[LABELS[name]], 2) + 0.0:+.2f}" for name in known)
    return f"{listed} ({SETTING})" if known else ""


def _partition(material: Material) -> Finding | None:
    rows = material.single
    rows = rows[rows["objective"] == OBJECTIVES["kl_dp"]].dropna(subset=["dp_pos_to_teacher", "dp_neg_to_teacher"])
    if rows.empty:
        return None
    positive, negative = rows["dp_pos_to_teacher"].mean(), rows["dp_neg_to_teacher"].mean()
    return Finding(
        figure=f"{positive:.0f} % / {negative:.0f} %",
        sentence=f"of positive and of negative flips go to the teacher by the data partition, on average over "
        f"{len(rows)} transfers with KL+DP.",
        paper=f"{claim('dp_pos_to_teacher'):g} % and {claim('dp_neg_to_teacher'):g} % (ImageNet in full, 8 students x 4 "
        "teachers)",
    )


def _several(material: Material) -> Finding | None:
    table = against_single(material, "kl_dp", MODES)
    gains = {mode: (table[mode] - table["single max"]).dropna() for mode in MODES if len(table)}
    over = {mode: values.mean() for mode, values in gains.items() if len(values)}
    if not over:
        return None
    best = max(over, key=lambda mode: over[mode])
    listed = ", ".join(f"{mode} {value:+.2f}" for mode, value in over.items())
    return Finding(
        figure=f"{over[best]:+.2f}",
        sentence=f"points over the best of the same teachers alone with {best} transfer from several (KL+DP, "
        f"{counted(table['student'].nunique(), 'student')}): {listed}.{_relative(table, best)}",
        paper=_paper_several(),
    )


def _relative(table: pd.DataFrame, mode: str) -> str:
    """The same in % of what the best teacher alone brings, as the paper has it; only where that is a gain."""
    gained = table[(table["single max"] > 0) & table[mode].notna()]
    if gained.empty:
        return ""
    share = 100.0 * (gained[mode] / gained["single max"] - 1.0).mean()
    of = f"the {len(gained)} of {len(table)} where it gains"
    return f" In % of what the best alone brings: {share:+.0f} %, on average over {of}."


def _paper_several() -> str:
    rows = read_table("table4_multi_teacher_kl_dp")
    points = sum(float(row["sequential"]) - float(row["single_max"]) for row in rows) / len(rows)
    return f"sequential {points:+.2f} points, {claim('sequential_gain'):+.0f} % ({SEVERAL})"


def _soft_targets(material: Material) -> Finding | None:
    """Soft-target cross-entropy against KL (paper, Section B.1)."""
    rows = material.single
    soft, plain = (rows[rows["objective"] == OBJECTIVES[name]] for name in ("soft_xe", "kl"))
    gains = _differences(soft, plain, ["student_key", "teacher_key"])
    if gains.empty:
        return None
    return Finding(
        figure=f"{gains.mean():+.2f}",
        sentence=f"points by soft-target cross-entropy instead of KL, in the mean of {counted(len(gains), 'pair')}.",
        paper=f"{claim('soft_xe_vs_kl'):+g} points (ImageNet, 60 pairs)",
    )


def _top_classes(material: Material) -> Finding | None:
    """KL over the teacher's ten highest classes against KL over all (paper, Section B.1)."""
    rows = material.all_single[material.all_single["objective"] == OBJECTIVES["kl"]]
    same = ["dataset", "student_key", "teacher_key", "seed", *(name for name in SETTINGS if name != "top_k")]
    gains = _differences(rows[rows["top_k"] == 10], rows[rows["top_k"] == 0], same)
    if gains.empty:
        return None
    return Finding(
        figure=f"{gains.mean():+.2f}",
        sentence=f"points by KL over the teacher's ten highest classes instead of all, in the mean of "
        f"{counted(len(gains), 'pair')}.",
        paper=f"{claim('topk10_gain'):+.2f} points (ImageNet, 6 pairs)",
    )


def _differences(ours: pd.DataFrame, others: pd.DataFrame, same: list[str]) -> pd.Series[float]:
    """delta_transf of ours minus that of others, where these columns are equal."""
    both = ours[[*same, "delta_transf"]].merge(others[[*same, "delta_transf"]], on=same, suffixes=("", "_other"))
    return both["delta_transf"] - both["delta_transf_other"]


_FINDINGS: tuple[Callable[[Material], Finding | None], ...] = (
    _complementarity,
    _agreement,
    _success,
    _delta,
    _partition,
    _several,
    _soft_targets,
    _top_classes,
)
