"""Figure 2a: positive flips by class, sorted, for a weaker, an equal and a stronger teacher."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import Drawing, Layer, Panel

PAIR = ["teacher", "student"]


def build(material: Material) -> Drawing | Missing:
    """Three lines: the pairs at the ends and in the middle of delta_acc, of those with flips by class."""
    flips = material.results.class_flips
    flips = flips[(flips["dataset"] == material.dataset) & flips["n"].gt(0)]
    known = material.pairs.merge(flips[PAIR].drop_duplicates(), on=PAIR)
    if known.empty:
        labelled = material.pairs["rho_pos"].notna().any()
        return _NO_FLIPS if labelled else missing(material.pairs, "measured pairs", "rho_pos")
    chosen = _three(known)
    classes = material.classes
    curves = [_curve(flips, pair, kind, classes) for kind, pair in chosen.items()]
    shares = "; ".join(_shares(kind, pair) for kind, pair in chosen.items())
    layer = Layer(
        mark="line", data=pd.concat(curves), x="rank", y="share", colour="pair", tooltip=("pair", "class_name", "share")
    )
    x_label = "classes, sorted by their share, %" if classes else "classes with a flip, sorted by their share"
    panel = Panel(x_label=x_label, y_label="positive flips, % of the class's samples", layers=(layer,))
    return Drawing(
        panels=(panel,),
        sample=f"3 of {len(known):,} pairs with flips by class: lowest, nearest to 0 and highest difference in "
        f"accuracy. Classes that hold the top 2 / 5 / 20 / 50 % of flips, % of all classes: {shares}",
    )


def _three(pairs: pd.DataFrame) -> dict[str, pd.Series]:
    ordered = pairs.sort_values(["delta_acc", *PAIR], kind="stable")
    middle = ordered.iloc[(ordered["delta_acc"].abs()).argmin()]
    found = {"weaker": ordered.iloc[0], "equal": middle, "stronger": ordered.iloc[-1]}
    return {f"{kind} teacher ({pair['delta_acc']:+.1f} points)": pair for kind, pair in found.items()}


def _curve(flips: pd.DataFrame, pair: pd.Series, kind: str, classes: int) -> pd.DataFrame:
    """Columns rank, share, class_name and pair; the rank in % of all `classes`, or from 1 where their number is 0."""
    rows = flips[(flips["teacher"] == pair["teacher"]) & (flips["student"] == pair["student"])]
    share = 100.0 * rows["positive_flips"].astype(float) / rows["n"].astype(float)
    rows = rows.assign(share=share).sort_values(["share", "class_index"], ascending=[False, True])
    without = max(0, classes - len(rows))  # a class without any flip has no row
    shares = [*rows["share"], *[0.0] * without]
    names = [*rows["class_name"].fillna(""), *[""] * without]
    ranks = [100.0 * (at + 1) / len(shares) if classes else float(at + 1) for at in range(len(shares))]
    return pd.DataFrame({"rank": ranks, "share": shares, "class_name": names, "pair": kind})


def _shares(kind: str, pair: pd.Series) -> str:
    values = " / ".join(f"{pair[f'top{x}_classes']:.1f}" for x in (2, 5, 20, 50))
    return f"{kind.split(' (')[0]} {values} ({pair['teacher']} → {pair['student']})"


_NO_FLIPS = Missing(reason="No pair has its flips counted by class; sampled pairs have, a file of all pairs has not")

FIGURE = Figure(
    key="2a",
    title="Complementary knowledge by class",
    caption="Positive flips of each class as a share of its samples, sorted, for three pairs.",
    section="complementarity",
    plan="kt-study plan --complementarity-pairs 466",
    build=build,
)
