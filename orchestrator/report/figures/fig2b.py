"""Figure 2b: the classes with the most complementary knowledge are alike."""

from __future__ import annotations

import pandas as pd

from orchestrator.report.figures.figure import Figure
from orchestrator.report.material import Material
from orchestrator.report.plot import Drawing, Layer, Panel
from orchestrator.report.statistics import bootstrap, mean, thinned

TOPS = (2, 5, 20, 50)
PAIRS = 1500  # in the page's boxes


def build(material: Material) -> Drawing | None:
    """A box over pairs for each share of flips."""
    pairs = material.pairs.dropna(subset=[f"top{x}_similarity" for x in TOPS], how="all")
    if pairs.empty:
        return None
    names = pairs["teacher"].astype(str) + "/" + pairs["student"].astype(str)
    drawn = thinned(pairs.assign(pair=names), PAIRS, "pair")
    long = pd.concat(
        [drawn[["family"]].assign(top=f"top {x} %", similarity=drawn[f"top{x}_similarity"].astype(float)) for x in TOPS]
    ).dropna(subset=["similarity"])
    order = tuple(f"top {x} %" for x in TOPS)
    zero = pd.DataFrame({"y": [0.0], "label": ["average over all classes"]})
    layers = (
        Layer(mark="box", data=long, x="top", y="similarity"),
        Layer(mark="rule", data=zero, y="y", label="label"),
    )
    panel = Panel(
        x_label="classes that hold the top X % of positive flips",
        y_label="similarity above the average, %",
        layers=layers,
        x_kind="category",
        x_order=order,
    )
    means = []
    for x in TOPS:
        values = drawn[f"top{x}_similarity"].dropna().astype(float)
        if len(values):
            means.append(f"top {x} %: {bootstrap(values.to_list(), mean).text(' %')}")
    how = ", ".join(sorted(set(pairs["similarity"].dropna().astype(str)))) or "unknown"
    thin = f"{len(drawn):,} of " if len(drawn) < len(pairs) else ""
    return Drawing(
        panels=(panel,),
        sample=f"{thin}{len(pairs):,} pairs; similarity by {how}. Mean and 95 % interval over pairs: "
        f"{'; '.join(means)}",
        notes=(
            "Classes with equally many flips are ordered by random draws and averaged. Broken by class index, ties "
            "would "
            "count as similarity, since the order of ImageNet's classes is itself semantic.",
        ),
    )


FIGURE = Figure(
    key="2b",
    title="Those classes are semantically related",
    caption="Semantic similarity among the classes that hold the top X % of positive flips, relative to the average "
    "over "
    "all classes; it needs names or embeddings of the classes. Boxes: quartiles over pairs; whiskers: 1.5 times their "
    "distance.",
    section="complementarity",
    plan="kt-study plan --complementarity-pairs 466",
    build=build,
)
