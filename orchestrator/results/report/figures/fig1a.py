"""Figure 1a: complementary knowledge against the difference in accuracy."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import Drawing, Layer, Panel
from orchestrator.results.report.published import claim
from orchestrator.results.report.statistics import ALL, binned, thinned, with_everyone

POINTS = 2500  # drawn; all count in the line


def build(material: Material) -> Drawing | Missing:
    """A point a pair, and the mean in bins of delta_acc."""
    pairs = material.pairs.dropna(subset=["rho_pos", "delta_acc"])
    if pairs.empty:
        return missing(material.pairs, "measured pairs", "rho_pos", "delta_acc")
    names = pairs["teacher"].astype(str) + "/" + pairs["student"].astype(str)
    drawn = thinned(pairs.assign(pair=names), POINTS, "pair")
    means = binned(with_everyone(pairs), "delta_acc", "rho_pos", ["family"], bins=12, at_least=2)
    floor = pd.DataFrame({"y": [claim("min_rho_pos")], "label": ["paper, ImageNet: 2 %, much weaker teachers"]})
    tips, of_bin = ("teacher", "student", "rho_pos", "rho_neg", "delta_acc"), ("delta_acc", "mean", "n")
    layers = (
        Layer(mark="points", data=drawn, x="delta_acc", y="rho_pos", colour="family", tooltip=tips),
        Layer(mark="line", data=means, x="delta_acc", y="mean", fixed="ink", defaults={"family": ALL}, tooltip=of_bin),
        Layer(mark="rule", data=floor, y="y", label="label"),
    )
    panel = Panel(
        x_label="teacher minus student accuracy, points", y_label="rho_pos, % of validation samples", layers=layers
    )
    thin = f"{len(drawn):,} of them drawn, chosen by hash; " if len(drawn) < len(pairs) else ""
    samples = int(pairs["n"].max()) if pairs["n"].notna().any() else 0
    random = material.baseline["rho_pos"].dropna()
    chance = f"; {len(random)} with a random teacher have {random.mean():.2f} %" if len(random) else ""
    count = pd.unique(pairs[["teacher", "student"]].to_numpy().ravel()).size
    return Drawing(
        panels=(panel,),
        sample=f"{len(pairs):,} ordered pairs of {count} models, {thin}{samples:,} validation samples each{chance}",
        published="The paper (ImageNet, 466 pairs of 301 models) finds rho_pos in all of its pairs, towards 2 % for "
        "teachers up to 20 points weaker; a random teacher has 0.03 %.",
    )


FIGURE = Figure(
    key="1a",
    title="Complementary knowledge by difference in accuracy",
    caption="Share of validation samples that the teacher gets right and the student wrong, for each ordered pair. "
    "Line: mean in twelve equal bins. Colour: family of the student.",
    section="complementarity",
    plan="kt-study plan --complementarity-pairs 466",
    build=build,
)
