"""What the study found, in sentences with their numbers, each beside what the paper found. Only from rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from orchestrator.report.material import Material, order_of
from orchestrator.report.plot import OBJECTIVES
from orchestrator.report.published import claim, success_medians
from orchestrator.report.statistics import Interval, bootstrap, by_student, median

LABELS = {label: name for name, label in OBJECTIVES.items()}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence, its key figure and the paper's."""

    figure: str  # short, large on the page
    sentence: str
    paper: str = ""


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
        f"{len(pairs):,} "
        f"ordered pairs; {share:.0f} % of pairs have some.{behind}",
        paper=f"some in every one of {claim('pairs_complementarity'):.0f} pairs",
    )


def _agreement(material: Material) -> Finding | None:
    """What there is to say of a study without labels."""
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
        sentence=f"of teachers raise the median student under {best}. {_all_rates(rates)} In brackets: 95 % interval "
        f"over "
        f"{students['student'].nunique()} students.",
        paper=", ".join(f"{name} {success_medians()[LABELS[name]]:g} %" for name in rates
                        if LABELS.get(name) in success_medians()),
    )  # fmt: skip


def _all_rates(rates: dict[str, Interval]) -> str:
    return "; ".join(f"{name} {rate.text(' %')}" for name, rate in rates.items()) + "."


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
    from orchestrator.report.published import students

    rows = pd.DataFrame(students())
    means = rows.groupby("objective")["delta_mean"].median()
    known = [name for name in objectives if LABELS.get(name) in means]
    return ", ".join(f"{name} {round(means[LABELS[name]], 2) + 0.0:+.2f}" for name in known)


def _partition(material: Material) -> Finding | None:
    rows = material.single
    rows = rows[rows["objective"] == OBJECTIVES["kl_dp"]].dropna(subset=["dp_pos_to_teacher", "dp_neg_to_teacher"])
    if rows.empty:
        return None
    positive, negative = rows["dp_pos_to_teacher"].mean(), rows["dp_neg_to_teacher"].mean()
    return Finding(
        figure=f"{positive:.0f} % / {negative:.0f} %",
        sentence=f"of positive and of negative flips go to the teacher by the data partition, on average over "
        f"{len(rows)} "
        "transfers with KL+DP.",
        paper=f"{claim('dp_pos_to_teacher'):g} % and {claim('dp_neg_to_teacher'):g} %",
    )


def _several(material: Material) -> Finding | None:
    rows = material.several[material.several["objective"] == OBJECTIVES["kl_dp"]]
    if rows.empty:
        return None
    single = material.single[material.single["objective"] == OBJECTIVES["kl_dp"]]
    best = single.groupby("student")["delta_transf"].max()
    over = rows.assign(over=rows["delta_transf"] - rows["student"].map(best)).dropna(subset=["over"])
    if over.empty:
        return None
    modes = over.groupby("multi_teacher")["over"].mean().sort_values(ascending=False)
    listed = ", ".join(f"{mode} {value:+.2f}" for mode, value in modes.items())
    return Finding(
        figure=f"{modes.iloc[0]:+.2f}",
        sentence=f"points over the best single teacher with {modes.index[0]} transfer from several (KL+DP, "
        f"{over['student'].nunique()} students): {listed}.",
        paper=f"sequential {claim('sequential_gain'):g} % above the best single teacher",
    )


_FINDINGS: tuple[Callable[[Material], Finding | None], ...] = (
    _complementarity,
    _agreement,
    _success,
    _delta,
    _partition,
    _several,
)
