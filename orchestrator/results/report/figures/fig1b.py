"""Figure 1b: distribution of the positive flips over classes."""

from __future__ import annotations

import math

import pandas as pd

from orchestrator.results.report.figures.fig1a import POINTS
from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import Drawing, Layer, Panel
from orchestrator.results.report.statistics import ALL, binned, thinned, with_everyone

MEASURED, NULL = "measured", "random subset of the student's errors"


def build(material: Material) -> Drawing | Missing:
    """Entropy and its null against delta_acc, and their means in bins."""
    pairs = material.pairs.dropna(subset=["entropy", "delta_acc"])
    if pairs.empty:
        return missing(material.pairs, "measured pairs", "entropy", "delta_acc")
    kept = ["teacher", "student", "family", "delta_acc", "n_positive_flips"]
    both = pd.concat(
        [
            pairs[kept].assign(entropy=pairs[column].astype(float), of=name)
            for column, name in (("entropy", MEASURED), ("entropy_null", NULL))
        ]
    ).dropna(subset=["entropy"])
    names = both["teacher"].astype(str) + "/" + both["student"].astype(str)
    drawn = thinned(both.assign(pair=names), POINTS, "pair")
    means = binned(with_everyone(both), "delta_acc", "entropy", ["family", "of"], bins=12, at_least=2)
    classes = material.classes
    tips = ("teacher", "student", "of", "entropy", "delta_acc", "n_positive_flips")
    of_bin = ("of", "delta_acc", "mean", "n")
    layers = [
        Layer(mark="points", data=drawn, x="delta_acc", y="entropy", colour="of", tooltip=tips, size=14),
        Layer(mark="line", data=means, x="delta_acc", y="mean", colour="of", defaults={"family": ALL}, tooltip=of_bin),
    ]
    if classes:
        layers.append(_uniform(classes))
    panel = Panel(
        x_label="teacher minus student accuracy, points", y_label="entropy over classes, nats", layers=tuple(layers)
    )
    below = (pairs["entropy_null"] - pairs["entropy"]).dropna()
    related = pairs["entropy"].corr(pairs["entropy_null"])
    notes = (
        f"Raw entropy is bounded by the number of flips, so it mostly shows their number: here it correlates "
        f"{related:.2f} with that of a random subset of the student's errors of the same size. What is special to the "
        f"teacher is the distance between the two, {below.mean():.3f} nats on average.",
    )
    return Drawing(
        panels=(panel,),
        sample=f"{len(pairs):,} ordered pairs, {f'{classes:,}' if classes else 'unknown number of'} classes",
        notes=notes if len(below) > 2 else (),
        published="The paper's axis (ImageNet, 466 pairs) runs from 5.8 to 6.9 nats, where 6.91 is uniform over 1,000 "
        "classes, and shows raw entropy only.",
    )


def _uniform(classes: int) -> Layer:
    """A line at the highest entropy that flips over so many classes can have."""
    entropy = math.log(classes)
    row = {"y": [entropy], "label": [f"uniform over {classes:,} classes, {entropy:.2f}"]}
    return Layer(mark="rule", data=pd.DataFrame(row), y="y", label="label")


FIGURE = Figure(
    key="1b",
    title="Spread of complementary knowledge over classes",
    caption="Entropy of the positive flips over classes, and that of a random subset of the student's errors of the "
    "same size. Lower than the latter: the teacher knows particular classes.",
    section="complementarity",
    plan="kt-study plan --complementarity-pairs 466",
    build=build,
)
