"""Figures, tables and findings of rows written by hand: what is drawn and reported, and what is not."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import vl_convert

import kt_study
from orchestrator.results.report import write_report
from orchestrator.results.report.charts import for_files
from orchestrator.results.report.figures import FIGURES
from orchestrator.results.report.findings import Finding, findings
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.overview import facts
from orchestrator.results.report.palette import CYCLE, DARK, LIGHT, colours_of
from orchestrator.results.report.plot import FAMILIES, OBJECTIVES, PUBLISHED, Plot
from orchestrator.results.report.study_results import StudyResults
from orchestrator.results.report.tables import TABLES
from tests.results.published_parquet import transfer as published_transfer
from tests.results.published_parquet import write_students, write_table

Row = dict[str, Any]
SIMILARITIES = tuple(f"top{x}_similarity" for x in (2, 5, 20, 50))


def model(key: str, **more: Any) -> Row:
    return {"study": "s", "model": key, "model_key": key, "family": "cnn", "dataset": "d", **more}


def pair(teacher: str, student: str, **more: Any) -> Row:
    return {
        "study": "s", "job_id": 1, "dataset": "d", "teacher": teacher, "student": student, "teacher_key": teacher,
        "student_key": student, "n": 100, "rho_pos": 8.0, "rho_neg": 2.0, "delta_acc": 6.0, "entropy": 2.9,
        "entropy_null": 3.0, **more,
    }  # fmt: skip


def transfer(student: str, teacher: str, objective: str, delta: float, **more: Any) -> Row:
    return published_transfer("s", 1, student, teacher, objective, delta, **{"dataset": "d", **more})


def collected(folder: Path, tables: Mapping[str, list[Row]]) -> StudyResults:
    for name, rows in tables.items():
        write_table(folder, name, rows)
    return StudyResults(kt_study.load(folder, "s"), "s")


def plot_of(study: StudyResults, key: str) -> Plot:
    plot = next(figure for figure in FIGURES if figure.key == key).built(study)
    assert isinstance(plot, Plot)
    return plot


def why_missing(study: StudyResults, key: str) -> tuple[str, bool]:
    """The reason, and whether another plan brings the rows."""
    found = next(part for part in (*FIGURES, *TABLES) if part.key == key).built(study)
    assert isinstance(found, Missing)
    return found.reason, found.planned


def table(study: StudyResults, key: str) -> Any:
    return next(table for table in TABLES if table.key == key).build(study)


def finding_with(study: StudyResults, part: str) -> Finding:
    return next(finding for finding in findings(study) if part in finding.sentence)


def flips(classes: int) -> list[Row]:
    return [
        {"study": "s", "job_id": 1, "dataset": "d", "teacher": "a", "student": "b", "class_index": at,
         "class_name": f"c{at}", "n": 50, "positive_flips": 2 if at < 20 else 0, "negative_flips": 1}
        for at in range(classes)
    ]  # fmt: skip


def test_classes_without_any_flip_count(tmp_path: Path) -> None:
    rows = {"complementarity": [pair("a", "b", n_classes=1000)], "class_flips": flips(30)}
    study = collected(tmp_path, rows)
    (layer,) = plot_of(study, "2a").panels[0].layers
    curve = layer.data[layer.data["pair"].str.startswith("equal")]
    assert len(curve) == 1000
    assert curve["rank"].tolist() == pytest.approx([100 * (at + 1) / 1000 for at in range(1000)])
    assert curve["share"].tolist() == [4.0] * 20 + [0.0] * 980
    entropy = plot_of(study, "1b")
    assert "1,000 classes" in entropy.sample
    (rule,) = (layer.data for layer in entropy.panels[0].layers if layer.mark == "rule")
    assert rule.to_dict("records") == [{"y": math.log(1000), "label": "uniform over 1,000 classes, 6.91"}]


def test_an_unknown_number_of_classes_is_not_invented(tmp_path: Path) -> None:
    study = collected(tmp_path, {"complementarity": [pair("a", "b")], "class_flips": flips(30)})
    entropy = plot_of(study, "1b")
    assert "unknown number of classes" in entropy.sample
    assert [layer.mark for layer in entropy.panels[0].layers if layer.mark == "rule"] == []
    panel = plot_of(study, "2a").panels[0]
    assert panel.x_label == "classes with a flip, sorted by their share"
    assert sorted(set(panel.layers[0].data["rank"])) == list(range(1, 31))


def test_similarity_that_is_unknown_or_of_the_last_digit_is_not_drawn(tmp_path: Path) -> None:
    noise = dict.fromkeys(SIMILARITIES[1:], -3.33e-14)
    alike = collected(tmp_path / "alike", {"complementarity": [pair("a", "b", similarity="wordnet", **noise)]})
    assert why_missing(alike, "2b") == ("All classes are equally similar by wordnet", False)
    unknown = collected(tmp_path / "unknown", {"complementarity": [pair("a", "b", similarity="wordnet")]})
    assert "unknown, or the same for all" in why_missing(unknown, "2b")[0]


def test_similarities_of_different_measures_are_not_mixed(tmp_path: Path) -> None:
    rows = [pair("a", f"b{at}", similarity="wordnet", **dict.fromkeys(SIMILARITIES, 10.0)) for at in range(3)]
    rows += [pair("a", f"c{at}", similarity="clip", **dict.fromkeys(SIMILARITIES, 90.0)) for at in range(2)]
    plot = plot_of(collected(tmp_path, {"complementarity": rows}), "2b")
    assert set(plot.panels[0].layers[0].data["similarity"]) == {10.0}
    assert "3 pairs; similarity by wordnet (left out, as measured differently: clip 2)" in plot.sample


@pytest.fixture
def several(tmp_path: Path) -> StudyResults:
    chain, at_once = {"multi_teacher": "sequential"}, {"multi_teacher": "parallel"}
    rows = [
        transfer("a", "b+c", "kl_dp", 1.0, stage=1, **chain),
        transfer("a", "b+c+d", "kl_dp", 3.0, stage=2, **chain),
        transfer("a", "c+b", "kl_dp", 1.5, stage=1, **chain),
        transfer("a", "b+c", "kl_dp", 2.0, **at_once),
        transfer("a", "b+c", "kl_dp", -5.0, **at_once, **{"dataset": "cars"}),
        transfer("a", "b+d", "kl_dp", -7.0, **at_once, **{"lr": 0.5}),
        transfer("a", "b", "kl_dp", 0.5), transfer("a", "c", "kl_dp", 0.7), transfer("a", "d", "kl_dp", 1.0),
    ]  # fmt: skip
    return collected(
        tmp_path, {"models": [model("a")], "transfers": [*rows, transfer("a", "c+d", "kl_dp", 0.0, **at_once)]}
    )


def test_sets_of_teachers_are_not_mixed(several: StudyResults) -> None:
    """Other data sets and settings, and earlier stages of a longer chain, are not counted; shorter sets are."""
    rows = table(several, "4").set_index("which")
    assert rows["teachers"].to_dict() == {"b, c": 2, "b, c, d": 3, "c, d": 2}
    assert rows["sequential"].dropna().to_dict() == {"b, c": 1.5, "b, c, d": 3.0}
    assert rows["parallel"].dropna().to_dict() == {"b, c": 2.0, "c, d": 0.0}
    assert rows["single max"].to_dict() == {"b, c": 0.7, "b, c, d": 1.0, "c, d": 1.0}
    assert rows["single mean"].tolist() == pytest.approx([0.6, 2.2 / 3, 0.85])


def test_several_teachers_are_compared_with_the_best_of_the_same(several: StudyResults) -> None:
    finding = finding_with(several, "from several")
    sequential = ((1.5 - 0.7) + (3.0 - 1.0)) / 2
    assert finding.number == f"{sequential:+.2f}"
    assert f"parallel {((2.0 - 0.7) + (0.0 - 1.0)) / 2:+.2f}" in finding.sentence
    assert f"{100 * ((1.5 / 0.7 - 1) + (3.0 / 1.0 - 1)) / 2:+.0f} %" in finding.sentence
    assert finding.paper == "sequential +0.20 points, +59 % (ImageNet, 3 students x 3 teachers)"


def test_a_setting_that_some_rows_lack_is_a_setting(tmp_path: Path) -> None:
    rows = [transfer("a", "b", "kl", 1.0), transfer("a", "c", "kl", 2.0), transfer("a", "d", "kl", 3.0, augment=None)]
    assert collected(tmp_path / "some", {"transfers": rows}).single["teacher"].tolist() == ["b", "c"]
    none = [{**row, "augment": None} for row in rows]
    assert collected(tmp_path / "none", {"transfers": none}).single["teacher"].tolist() == ["b", "c", "d"]


def test_reasons_name_what_is_missing(tmp_path: Path) -> None:
    rates = {f"transfer_rate_top{x}": 10.0 for x in (2, 5, 20, 50, 100)}
    study = collected(tmp_path, {"models": [model("a")], "transfers": [transfer("a", "b", "kl_dp", 1.0, **rates)]})
    reason = "There are single-teacher transfers (1), but none has "
    assert why_missing(study, "5b") == (reason + "the size of its student", False)
    assert why_missing(study, "4b") == (reason + "acc_teacher and acc_before", False)
    assert why_missing(study, "1a") == ("No measured pairs yet", True)
    assert [panel.title for panel in plot_of(study, "8").panels] == ["c) family"]
    assert "No panel b) size: unknown here." in plot_of(study, "8").notes


def test_sizes_are_those_counted_where_the_catalogue_has_none(tmp_path: Path) -> None:
    counted = {"study": "s", "job_id": 1, "dataset": "d", "model": "a", "model_key": "a", "split": "val", "params": 2.5}
    study = collected(tmp_path, {"models": [model("a"), model("b", params=7.0)], "evaluations": [counted]})
    assert study.models["params"].tolist() == [2.5, 7.0]


@pytest.mark.parametrize(("dataset", "classes", "fits"), [("digits", 10, False), ("mine", 1000, True)])
def test_only_imagenet_has_the_papers_plans_suggested(tmp_path: Path, dataset: str, classes: int, fits: bool) -> None:
    write_table(tmp_path / "results", "complementarity", [pair("a", "b", dataset=dataset, n_classes=classes)])
    page = write_report(tmp_path / "results", tmp_path / "report").read_text(encoding="utf-8")
    assert ("--preset paper-10pct" in page) == fits
    assert page.count('class="missing"') > 5


def test_a_study_without_labels_has_no_table_of_complementary_pairs(tmp_path: Path) -> None:
    rows = [pair("a", "b", agreement=50.0, rho_pos=None, rho_neg=None, delta_acc=None)]
    study = collected(tmp_path, {"complementarity": rows})
    assert "needs labels" in why_missing(study, "pairs")[0]
    assert "needs labels" in why_missing(study, "2a")[0]


def test_weights_that_a_study_only_starts_from_are_not_its_models(tmp_path: Path) -> None:
    start, chance = model("a:untrained", weights="random:1", dataset=None), model("chance", weights="random:0")
    study = collected(tmp_path, {"models": [model("a", weights="train:1"), start, chance]})
    assert facts(study)["models"] == "2"


def test_published_marks_follow_the_filters(tmp_path: Path) -> None:
    write_students(tmp_path, "s")
    study = StudyResults(kt_study.load(tmp_path, "s"), "s")
    for key in ("7", "8"):
        layers = [layer for panel in plot_of(study, key).panels for layer in panel.layers if layer.fixed == PUBLISHED]
        assert layers
        for layer in layers:
            assert set(layer.data["family"]) <= set(FAMILIES.values())
            assert set(layer.data["objective"]) <= set(OBJECTIVES.values())


def test_diamonds_are_only_mentioned_where_they_are(tmp_path: Path) -> None:
    write_students(tmp_path / "theirs", "s")
    assert "Diamonds" in plot_of(StudyResults(kt_study.load(tmp_path / "theirs", "s"), "s"), "7").published
    ours = transfer("a", "b", "kl", 1.0, knowledge_gain=2.0, knowledge_loss=1.0)
    assert plot_of(collected(tmp_path / "ours", {"transfers": [ours]}), "7").published == ""


def test_baselines_are_beside_the_numbers_of_the_paper(tmp_path: Path) -> None:
    rows = [transfer("a", "b", "kl", 1.0), transfer("a", "c", "kl", 2.0), transfer("a", "b", "soft_xe", -0.5)]
    rows += [transfer("a", "b", "kl", 1.25, top_k=10), transfer("a", "d", "kl", 9.0, top_k=10, lr=0.5)]
    rows += [transfer("a", "b", "kl_label_smoothing", 1.0)]
    study = collected(tmp_path, {"transfers": rows})
    soft, top = finding_with(study, "soft-target"), finding_with(study, "ten highest")
    assert (soft.number, soft.paper) == ("-1.50", "-1.2 points (ImageNet, 60 pairs)")
    assert (top.number, top.paper) == ("+0.25", "+0.20 points (ImageNet, 6 pairs)")
    assert "KL smoothed 54 %" in finding_with(study, "raise the median student").paper


def test_two_students_have_no_interval(tmp_path: Path) -> None:
    study = collected(tmp_path, {"transfers": [transfer("a", "b", "kl", 1.0)]})
    assert plot_of(study, "4a").sample == "KL: median 100.0 % of 1 student x 1 teacher"
    assert "Over 1 student, too few for an interval." in finding_with(study, "raise the median student").sentence
    assert table(study, "success")[["95 % low", "95 % high", "delta low", "delta high"]].isna().all(axis=None)


def test_students_with_the_same_rate_are_drawn_apart(tmp_path: Path) -> None:
    rows = [transfer(student, "t", "kl", 1.0) for student in "abc"] + [transfer("d", "t", "kl", -1.0)]
    plot = plot_of(collected(tmp_path, {"transfers": rows}), "4a")
    students = plot.panels[0].layers[1].data.set_index("student")["shift"]
    assert students.to_dict() == pytest.approx({"a": -1 / 3, "b": 0.0, "c": 1 / 3, "d": 0.0})
    (panel,) = panels(plot)
    middle = panel["width"] / 2
    places = sorted((round(point["x"] - middle, 1), point["y"]) for point in named(panel, "mark-symbol"))
    top, bottom = min(y for _, y in places), max(y for _, y in places)
    assert [place for place in places if place[1] == top] == [(-13.3, top), (0.0, top), (13.3, top)]
    assert (0.0, bottom) in places


def test_objectives_have_different_colours_as_far_as_there_are_any() -> None:
    names = colours_of(list(OBJECTIVES.values()))
    for ground in (LIGHT, DARK):
        colours = [ground[name] for name in names]
        assert min(apart(one, other) for one in colours for other in colours if one != other) > 50
        assert len(set(colours)) == min(len(OBJECTIVES), len(CYCLE)) >= 10


def apart(one: str, other: str) -> float:
    """Distance of two #rrggbb, with red, green and blue weighed as the eye does (a low-cost approximation of CIELUV)."""
    (r1, g1, b1), (r2, g2, b2) = ([int(name[at : at + 2], 16) for at in (1, 3, 5)] for name in (one, other))
    red = (r1 + r2) / 2
    return math.sqrt((2 + red / 256) * (r1 - r2) ** 2 + 4 * (g1 - g2) ** 2 + (2 + (255 - red) / 256) * (b1 - b2) ** 2)


def test_legends_are_outside_the_axes_and_at_most_three_panels_in_a_row(tmp_path: Path) -> None:
    known = {"acc_teacher": 80.0, "acc_before": 75.0}
    rows = [transfer("a", f"t{at}", name, at, **known) for at in range(3) for name in OBJECTIVES]
    plot = plot_of(collected(tmp_path, {"transfers": rows}), "4b")
    places = panels(Plot(panels=plot.panels * 7, sample=""))
    assert len(places) == 7
    for panel in places:
        (legend,) = named(panel, "legend")
        assert len(named(legend, "legend-label")) == len(OBJECTIVES)
        assert legend["y"] + legend["height"] <= 0
    assert [round(panel["y"]) == round(places[0]["y"]) for panel in places] == [True] * 3 + [False] * 4


def test_marks_keep_a_distance_from_the_frame(tmp_path: Path) -> None:
    """A point on an axis would lie on its labels, and half of one at the edge would be cut off."""
    write_students(tmp_path, "s")
    study = StudyResults(kt_study.load(tmp_path, "s"), "s")
    for key in ("7", "8"):
        for panel in panels(plot_of(study, key)):
            points = named(panel, "mark-symbol")
            assert points
            for point in points:
                assert 4 < point["x"] < panel["width"] - 4, key
                assert 4 < point["y"] < panel["height"] - 4, key


def test_the_diagonal_of_figure_7_has_no_dots(tmp_path: Path) -> None:
    rows = [transfer("a", f"t{at}", "kl", 1.0, knowledge_gain=2.0 + at, knowledge_loss=1.0) for at in range(3)]
    (panel,) = panels(plot_of(collected(tmp_path, {"transfers": rows}), "7"))
    assert len(named(panel, "mark-line")) == 2
    assert len(named(panel, "mark-symbol")) == len(rows)


@pytest.mark.parametrize(
    ("sizes", "ticks"),
    [
        ((0.066, 0.09, 0.16), ["0.05", "0.1", "0.2"]),
        ((11.2, 11.7), ["10", "20"]),
        ((5.0, 5.0), ["5", "10"]),
        ((3.0, 300.0), ["2", "5", "10", "20", "50", "100", "200", "500"]),
    ],
)
def test_sizes_have_ticks_on_both_sides(tmp_path: Path, sizes: tuple[float, ...], ticks: list[str]) -> None:
    models = [model(f"m{at}", params=size) for at, size in enumerate(sizes)]
    rows = [transfer(f"m{at}", "t", "kl_dp", at, transfer_rate_top100=50.0 + at) for at in range(len(sizes))]
    study = collected(tmp_path, {"models": models, "transfers": rows})
    (panel,) = panels(plot_of(study, "5b"))
    labels = named(panel, "axis-label")
    assert [label["text"] for label in labels][: len(ticks)] == ticks
    points = named(panel, "mark-symbol")
    assert len(points) == len(sizes)
    assert all(4 < point["x"] < panel["width"] - 4 for point in points)


def test_files_show_the_numbers_of_the_rows(tmp_path: Path) -> None:
    rows = [transfer("a", f"t{at}", "kl", 1.0, knowledge_gain=gain, knowledge_loss=loss)
            for at, (gain, loss) in enumerate([(0.0, 0.0), (7.5, 2.0), (3.0, 10.0)])]  # fmt: skip
    (panel,) = panels(plot_of(collected(tmp_path, {"transfers": rows}), "7"))
    (x0, y0), (x1, y1), (x2, y2) = ((point["x"], point["y"]) for point in named(panel, "mark-symbol"))
    assert ((x1 - x0) / (x2 - x0), (y1 - y0) / (y2 - y0)) == pytest.approx((2.0 / 10.0, 7.5 / 3.0))


def panels(plot: Plot) -> list[Any]:
    """The panels of a figure's files as they are drawn: what Vega calls its scene."""
    whole = vl_convert.vegalite_to_scenegraph(for_files(plot, "title"))
    return [panel for at in range(len(plot.panels)) for panel in named(whole["scenegraph"], f"concat_{at}_group")]


def named(scene: Mapping[str, Any], role: str) -> list[Any]:
    """Every item of a name or a role, or of a mark of the figure such as mark-symbol, in this part of a scene."""
    found = []
    for part in scene.get("items", ()):
        if role in (scene.get("name"), scene.get("role"), f"{scene.get('role')}-{scene.get('marktype')}"):
            found.append(part)
        found += named(part, role)
    return found


def test_links_lead_to_files_whatever_the_study_is_called(tmp_path: Path) -> None:
    write_table(tmp_path / "results", "complementarity", [pair("a", "b", study="vorhersagen-ü & <b>")])
    page = write_report(tmp_path / "results", tmp_path / "report")
    links = re.findall(r'href="((?:figures|tables)/[^"]+)"', page.read_text(encoding="utf-8"))
    assert len(links) > 2
    for link in links:
        assert (page.parent / unquote(html.unescape(link))).is_file(), link
