"""Tables 2 and 7: examples of transfers, and every transfer."""

from __future__ import annotations

import pandas as pd

from kt_study.published import read_table
from orchestrator.results.report.figures.transfer_rates import main_objective
from orchestrator.results.report.missing import SINGLE, complete
from orchestrator.results.report.parts import Table
from orchestrator.results.report.plot import OBJECTIVES
from orchestrator.results.report.published import tag
from orchestrator.results.report.study_results import StudyResults, order_of
from orchestrator.results.report.tables.per_student import IMAGENET

STUDENTS = 8
PAIR = ["student", "teacher"]


def examples(study: StudyResults) -> pd.DataFrame:
    """Table 2: for the students with most teachers, the best teacher among the stronger and the best among the weaker."""
    rows = complete(study.single, SINGLE, "acc_teacher", "acc_before")
    rows = rows[rows["objective"] == main_objective(rows)]
    rows = rows.assign(delta_acc=rows["acc_teacher"] - rows["acc_before"])
    heads = {"delta_acc": "paper delta_acc", "delta_transf": "paper delta_transf"}
    paper = _printed("table2_examples", *heads)[[*PAIR, *heads]].rename(columns=heads)
    chosen = rows.merge(paper[PAIR], on=PAIR)
    if chosen.empty:
        chosen = _best_of_each_side(rows)
    table = chosen[[*PAIR, "objective", "delta_acc", "delta_transf", "delta_transf_low", "delta_transf_high"]]
    table = table.rename(columns={"delta_transf_low": "95 % low", "delta_transf_high": "95 % high"})
    theirs = paper[paper["student"].isin(table["student"])]
    return table.merge(theirs, on=PAIR, how="left") if len(theirs) else table


def _best_of_each_side(rows: pd.DataFrame) -> pd.DataFrame:
    counts = rows["student"].value_counts()
    found: list[pd.DataFrame] = []
    for student in sorted(counts.index, key=lambda name: (-counts[name], name))[:STUDENTS]:
        of_student = rows[rows["student"] == student]
        for side in (of_student[of_student["delta_acc"] >= 0], of_student[of_student["delta_acc"] < 0]):
            if len(side):
                found.append(side.nlargest(1, "delta_transf"))
    return pd.concat(found)


def every_transfer(study: StudyResults) -> pd.DataFrame:
    """Table 7: a row per pair, a column per objective."""
    rows = complete(study.single, SINGLE)
    order = list(order_of(rows["objective"]))
    deltas = rows.pivot_table(index=PAIR, columns="objective", values="delta_transf", sort=True)[order]
    facts = rows.drop_duplicates(PAIR).set_index(PAIR)
    ours = facts[["family"]].join((facts["acc_teacher"] - facts["acc_before"]).rename("delta_acc"))
    ours = ours.join(deltas, how="right").reset_index()
    paper = _printed("table7_pairs", "delta_transf")
    paper = paper.assign(objective=[f"paper {OBJECTIVES[name]}" for name in paper["objective"]])
    theirs = paper.pivot_table(index=PAIR, columns="objective", values="delta_transf", sort=False).reset_index()
    return ours if theirs.merge(ours[PAIR], on=PAIR).empty else ours.merge(theirs, on=PAIR, how="left")


def _printed(table: str, *deltas: str) -> pd.DataFrame:
    """A published table of pairs, models by timm tag and these columns as numbers."""
    rows = pd.DataFrame(read_table(table))
    numbers = {name: rows[name].astype(float) for name in deltas}
    return rows.assign(student=rows["student"].map(tag), teacher=rows["teacher"].map(tag), **numbers)


TABLE_2 = Table(
    key="2",
    title="Best transfer from a stronger and from a weaker teacher",
    caption="The best transfer from a stronger and from a weaker teacher for each student; the paper's own examples where "
    "the study has them. Points; interval by paired bootstrap over validation samples.",
    section="transfer",
    plan="kt-study plan --preset paper-full",
    build=examples,
    published=IMAGENET,
)
TABLE_7 = Table(
    key="7",
    title="Every transfer",
    caption="delta_transf in points for each pair and objective; delta_acc is teacher minus student before.",
    section="transfer",
    plan="kt-study plan --preset paper-full",
    build=every_transfer,
    published=IMAGENET,
)
