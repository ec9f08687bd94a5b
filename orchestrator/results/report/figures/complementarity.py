"""Figures 1a to 2b: complementary knowledge, its spread over classes, and the similarity of these classes."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from kt_study.schema import TOP_PERCENTS
from orchestrator.results.report.missing import PAIRS, Missing, complete, incomplete
from orchestrator.results.report.parts import Figure
from orchestrator.results.report.plot import Layer, Panel, Plot, horizontal
from orchestrator.results.report.published import claim
from orchestrator.results.report.statistics import ALL, binned, bootstrap, thinned, with_all_families
from orchestrator.results.report.study_results import StudyResults

PLAN = "kt-study plan --complementarity-pairs 466"
DELTA_ACC = "teacher minus student accuracy, points"
POINTS = 2500  # drawn; all pairs count in the lines
BOXED = 1500  # pairs in the boxes of Figure 2b
MEASURED, NULL = "measured", "random subset of the student's errors"
SIMILARITIES = {x: f"top{x}_similarity" for x in TOP_PERCENTS}
NOISE = 1e-6  # %; below it all classes are equally similar, and only the last digits differ


def rho_by_delta_acc(study: StudyResults) -> Plot:
    """Figure 1a: a point per pair, and the mean in bins of delta_acc."""
    pairs = complete(study.pairs, PAIRS, "rho_pos", "delta_acc")
    drawn = thinned(pairs, POINTS)
    means = binned(with_all_families(pairs), "delta_acc", "rho_pos", ["family"], bins=12)
    layers = (
        Layer(mark="points", data=drawn, x="delta_acc", y="rho_pos", colour="family",
              tooltip=("teacher", "student", "rho_pos", "rho_neg", "delta_acc")),
        Layer(mark="line", data=means, x="delta_acc", y="mean", fixed="ink", defaults={"family": ALL},
              tooltip=("delta_acc", "mean", "n")),
        horizontal(claim("min_rho_pos"), "paper, ImageNet: 2 %, much weaker teachers"),
    )  # fmt: skip
    thin = f"{len(drawn):,} of them drawn, chosen by hash; " if len(drawn) < len(pairs) else ""
    samples = int(pairs["n"].max()) if pairs["n"].notna().any() else 0
    random = study.baseline["rho_pos"].dropna()
    chance = f"; {len(random)} with a random teacher have {random.mean():.2f} %" if len(random) else ""
    models = pd.unique(pairs[["teacher", "student"]].to_numpy().ravel()).size
    return Plot(
        panels=(Panel(x_label=DELTA_ACC, y_label="rho_pos, % of validation samples", layers=layers),),
        sample=f"{len(pairs):,} ordered pairs of {models} models, {thin}{samples:,} validation samples each{chance}",
        published="The paper (ImageNet, 466 pairs of 301 models) finds rho_pos in all of its pairs, towards 2 % for "
        "teachers up to 20 points weaker; a random teacher has 0.03 %.",
    )


def entropy_by_delta_acc(study: StudyResults) -> Plot:
    """Figure 1b: entropy and its null against delta_acc, and their means in bins."""
    pairs = complete(study.pairs, PAIRS, "entropy", "delta_acc")
    kept = ["teacher", "student", "family", "delta_acc", "n_positive_flips"]
    both = pd.concat(
        [
            pairs[kept].assign(entropy=pairs[column].astype(float), of=name)
            for column, name in (("entropy", MEASURED), ("entropy_null", NULL))
        ]
    ).dropna(subset=["entropy"])
    means = binned(with_all_families(both), "delta_acc", "entropy", ["family", "of"], bins=12)
    classes = study.classes
    layers = [
        Layer(mark="points", data=thinned(both, POINTS), x="delta_acc", y="entropy", colour="of", size=14,
              tooltip=("teacher", "student", "of", "entropy", "delta_acc", "n_positive_flips")),
        Layer(mark="line", data=means, x="delta_acc", y="mean", colour="of", defaults={"family": ALL},
              tooltip=("of", "delta_acc", "mean", "n")),
    ]  # fmt: skip
    if classes:
        layers.append(horizontal(math.log(classes), f"uniform over {classes:,} classes, {math.log(classes):.2f}"))
    below = (pairs["entropy_null"] - pairs["entropy"]).dropna()
    note = (
        f"Raw entropy is bounded by the number of flips, so it mostly shows their number: its correlation with the entropy "
        f"of a random subset of the student's errors of the same size is {pairs['entropy'].corr(pairs['entropy_null']):.2f}. "
        f"The difference of the two, {below.mean():.3f} nats on average, is specific to the teacher."
    )
    return Plot(
        panels=(Panel(x_label=DELTA_ACC, y_label="entropy over classes, nats", layers=tuple(layers)),),
        sample=f"{len(pairs):,} ordered pairs, {f'{classes:,}' if classes else 'unknown number of'} classes",
        notes=(note,) if len(below) > 2 else (),
        published="The paper's axis (ImageNet, 466 pairs) runs from 5.8 to 6.9 nats, where 6.91 is uniform over 1,000 "
        "classes, and shows raw entropy only.",
    )


def flips_by_class(study: StudyResults) -> Plot:
    """Figure 2a: a line for the pairs with the lowest, the middle and the highest delta_acc among those with class flips."""
    pair = ["teacher", "student"]
    flips = study.results.class_flips
    flips = flips[(flips["dataset"] == study.dataset) & flips["n"].gt(0)]
    known = study.pairs.merge(flips[pair].drop_duplicates(), on=pair)
    if known.empty:
        if study.pairs["rho_pos"].isna().all():
            raise incomplete(study.pairs, PAIRS, "rho_pos")
        raise Missing("No pair has its flips counted by class; sampled pairs have, a file of all pairs has not")
    ordered = known.sort_values(["delta_acc", *pair], kind="stable")
    chosen = {
        "weaker": ordered.iloc[0],
        "equal": ordered.iloc[ordered["delta_acc"].abs().argmin()],
        "stronger": ordered.iloc[-1],
    }
    curves = pd.concat([_class_shares(flips, row, f"{kind} teacher ({row['delta_acc']:+.1f} points)", study.classes)
                        for kind, row in chosen.items()])  # fmt: skip
    layer = Layer(mark="line", data=curves, x="rank", y="share", colour="pair", tooltip=("pair", "class_name", "share"))
    x_label = "classes, sorted by their share, %" if study.classes else "classes with a flip, sorted by their share"
    top_classes = "; ".join(_top_classes(kind, row) for kind, row in chosen.items())
    return Plot(
        panels=(Panel(x_label=x_label, y_label="positive flips, % of the class's samples", layers=(layer,)),),
        sample=f"3 of {len(known):,} pairs with flips by class: lowest, nearest to 0 and highest difference in "
        f"accuracy. Classes that hold the top 2 / 5 / 20 / 50 % of flips, % of all classes: {top_classes}",
    )


def _class_shares(flips: pd.DataFrame, pair: pd.Series, name: str, classes: int) -> pd.DataFrame:
    """Columns rank, share, class_name and pair; the rank in % of all `classes`, or from 1 where their number is 0."""
    rows = flips[(flips["teacher"] == pair["teacher"]) & (flips["student"] == pair["student"])]
    share = 100.0 * rows["positive_flips"].astype(float) / rows["n"].astype(float)
    rows = rows.assign(share=share).sort_values(["share", "class_index"], ascending=[False, True])
    without = max(0, classes - len(rows))  # a class without any flip has no row
    shares = [*rows["share"], *[0.0] * without]
    names = [*rows["class_name"].fillna(""), *[""] * without]
    ranks = [100.0 * (at + 1) / len(shares) if classes else float(at + 1) for at in range(len(shares))]
    return pd.DataFrame({"rank": ranks, "share": shares, "class_name": names, "pair": name})


def _top_classes(kind: str, pair: pd.Series) -> str:
    shares = " / ".join(f"{pair[f'top{x}_classes']:.1f}" for x in TOP_PERCENTS)
    return f"{kind} teacher {shares} ({pair['teacher']} → {pair['student']})"


def similarity_of_top_classes(study: StudyResults) -> Plot:
    """Figure 2b: a box over pairs for each share of flips, by the measure of similarity that most pairs have."""
    columns = list(SIMILARITIES.values())
    measured = study.pairs.dropna(subset=columns, how="all")
    if measured.empty:
        if study.pairs["rho_pos"].isna().all():
            raise incomplete(study.pairs, PAIRS, "rho_pos")
        raise Missing(
            f"There are measured pairs ({len(study.pairs):,}), but the similarity of their classes is unknown, or the same "
            "for all: [dataset] class_similarity and class_embeddings set its source",
            planned=False,
        )
    measures = measured["similarity"].fillna("unknown").astype(str)
    measure = sorted(measures.mode())[0]
    pairs = measured[measures == measure]
    if pairs[columns].abs().max().max() < NOISE:
        raise Missing(f"All classes are equally similar by {measure}", planned=False)
    drawn = thinned(pairs, BOXED)
    boxes = pd.concat(
        [
            drawn[["family"]].assign(top=f"top {x} %", similarity=drawn[name].astype(float))
            for x, name in SIMILARITIES.items()
        ]
    ).dropna(subset=["similarity"])
    panel = Panel(
        x_label="classes with the top X % of positive flips",
        y_label="similarity above the average, %",
        layers=(
            Layer(mark="box", data=boxes, x="top", y="similarity"),
            horizontal(0.0, "average over all classes"),
        ),
        x_kind="category",
        x_order=tuple(f"top {x} %" for x in TOP_PERCENTS),
    )
    by_top = {x: drawn[name].dropna().astype(float).to_list() for x, name in SIMILARITIES.items()}
    means = "; ".join(f"top {x} %: {bootstrap(values, np.mean).text(' %')}" for x, values in by_top.items() if values)
    others = ", ".join(f"{name} {n:,}" for name, n in measures[measures != measure].value_counts(sort=False).items())
    left_out = f" (left out, as measured differently: {others})" if others else ""
    thin = f"{len(drawn):,} of " if len(drawn) < len(pairs) else ""
    return Plot(
        panels=(panel,),
        sample=f"{thin}{len(pairs):,} pairs; similarity by {measure}{left_out}. Mean and 95 % interval over pairs: {means}",
        notes=(
            "Classes with equally many flips are averaged over all their orders. If ties were broken by class index, they "
            "would count as similarity, since the order of ImageNet's classes is itself semantic.",
        ),
    )


FIGURE_1A = Figure(
    key="1a",
    title="Complementary knowledge by difference in accuracy",
    caption="Share of validation samples that the teacher gets right and the student wrong, for each ordered pair. "
    "Line: mean in twelve equal bins. Colour: family of the student.",
    section="complementarity",
    plan=PLAN,
    build=rho_by_delta_acc,
)
FIGURE_1B = Figure(
    key="1b",
    title="Spread of complementary knowledge over classes",
    caption="Entropy of the positive flips over classes, and that of a random subset of the student's errors of the "
    "same size. Where it is lower, the teacher knows particular classes.",
    section="complementarity",
    plan=PLAN,
    build=entropy_by_delta_acc,
)
FIGURE_2A = Figure(
    key="2a",
    title="Complementary knowledge by class",
    caption="Positive flips of each class as a share of its samples, sorted, for three pairs.",
    section="complementarity",
    plan=PLAN,
    build=flips_by_class,
)
FIGURE_2B = Figure(
    key="2b",
    title="Semantic similarity of the classes with the most positive flips",
    caption="Semantic similarity among the classes with the top X % of positive flips, relative to the average over all "
    "classes; it needs names or embeddings of the classes. Boxes: quartiles over pairs; whiskers: at most 1.5 times the "
    "interquartile range.",
    section="complementarity",
    plan=PLAN,
    build=similarity_of_top_classes,
)
