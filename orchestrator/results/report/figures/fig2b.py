"""Figure 2b: similarity of the classes with the most complementary knowledge."""

from __future__ import annotations

import pandas as pd

from kt_study.schema import TOP_PERCENTS
from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import Drawing, Layer, Panel
from orchestrator.results.report.statistics import bootstrap, mean, thinned

_BY_TOP = {x: f"top{x}_similarity" for x in TOP_PERCENTS}
COLUMNS = list(_BY_TOP.values())
PAIRS = 1500  # in the page's boxes
NOISE = 1e-6  # %; below it all classes were equally similar, and only the last digits differ


def build(material: Material) -> Drawing | Missing:
    """A box over pairs for each share of flips, by the measure of similarity that most pairs have."""
    every = material.pairs.dropna(subset=COLUMNS, how="all")
    if every.empty:
        return _nothing(material.pairs)
    measures = every["similarity"].fillna("unknown").astype(str)
    how = sorted(measures.mode())[0]
    pairs = every[measures == how]
    if pairs[COLUMNS].abs().max().max() < NOISE:
        return Missing(reason=f"All classes are equally alike by {how}", planned=False)
    names = pairs["teacher"].astype(str) + "/" + pairs["student"].astype(str)
    drawn = thinned(pairs.assign(pair=names), PAIRS, "pair")
    long = pd.concat(
        [
            drawn[["family"]].assign(top=f"top {x} %", similarity=drawn[name].astype(float))
            for x, name in _BY_TOP.items()
        ]
    ).dropna(subset=["similarity"])
    order = tuple(f"top {x} %" for x in TOP_PERCENTS)
    zero = pd.DataFrame({"y": [0.0], "label": ["average over all classes"]})
    layers = (
        Layer(mark="box", data=long, x="top", y="similarity"),
        Layer(mark="rule", data=zero, y="y", label="label"),
    )
    panel = Panel(
        x_label="classes with the top X % of positive flips",
        y_label="similarity above the average, %",
        layers=layers,
        x_kind="category",
        x_order=order,
    )
    means = []
    for x, name in _BY_TOP.items():
        values = drawn[name].dropna().astype(float)
        if len(values):
            means.append(f"top {x} %: {bootstrap(values.to_list(), mean).text(' %')}")
    others = ", ".join(f"{name} {n:,}" for name, n in measures[measures != how].value_counts(sort=False).items())
    left_out = f" (left out, as measured otherwise: {others})" if others else ""
    thin = f"{len(drawn):,} of " if len(drawn) < len(pairs) else ""
    return Drawing(
        panels=(panel,),
        sample=f"{thin}{len(pairs):,} pairs; similarity by {how}{left_out}. Mean and 95 % interval over pairs: "
        f"{'; '.join(means)}",
        notes=(
            "Classes with equally many flips are averaged over all their orders. Broken by class index, ties would "
            "count as similarity, since the order of ImageNet's classes is itself semantic.",
        ),
    )


def _nothing(pairs: pd.DataFrame) -> Missing:
    """Similarity needs labels, and something that tells it from the classes' names or from a file."""
    if pairs["rho_pos"].isna().all():
        return missing(pairs, "measured pairs", "rho_pos")
    return Missing(
        reason=f"There are measured pairs ({len(pairs):,}), but how alike their classes are is unknown, or the same for all: "
        "[dataset] class_similarity and class_embeddings say what tells it",
        planned=False,
    )


FIGURE = Figure(
    key="2b",
    title="Semantic similarity of the classes with the most positive flips",
    caption="Semantic similarity among the classes with the top X % of positive flips, relative to the average "
    "over all classes; it needs names or embeddings of the classes. Boxes: quartiles over pairs; whiskers: 1.5 times their "
    "distance.",
    section="complementarity",
    plan="kt-study plan --complementarity-pairs 466",
    build=build,
)
