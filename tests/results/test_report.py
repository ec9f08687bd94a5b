"""The report: statistics against independent ones, every figure and table there or with its reason, equal bytes."""

from __future__ import annotations

import html
import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import kt_study
from kt_study.errors import UsageError
from kt_study.settings import Settings
from kt_study.store import open_store
from orchestrator.results.collect import collect
from orchestrator.results.report import write_report
from orchestrator.results.report.figures import FIGURES
from orchestrator.results.report.plot import FAMILIES, OBJECTIVES, Plot
from orchestrator.results.report.statistics import (
    Interval,
    bootstrap,
    bootstrap_mean,
    by_student,
    thinned,
    top_quarter_mean,
    wilson,
)
from orchestrator.results.report.study_results import StudyResults
from orchestrator.results.report.tables import TABLES
from tests.databases import Databases
from tests.results import synthetic
from tests.results.synthetic import World, fail_one, fill, make_world

WORLD = make_world(models=9, n=400, classes=15)
OBJECTIVES_PLANNED = ("kl", "xe_kl", "xe_kl_mcl", "kl_dp", "kl_dp_unsupervised", "cd")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Path:
    folder = tmp_path_factory.mktemp("report")
    url = databases.url(folder)
    fill(open_store(url, create=True), WORLD, objectives=OBJECTIVES_PLANNED, students=6)
    collect(url, folder / "results")
    return folder / "results"


@pytest.fixture(scope="module")
def report(results: Path) -> Path:
    return write_report(results, results.parent / "report")


@pytest.fixture
def study(results: Path) -> StudyResults:
    return StudyResults(kt_study.load(results, "synthetic"), "synthetic")


def test_every_figure_and_table_is_there_or_says_what_to_plan(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    for key in ["1a", "1b", "2a", "2b", "4a", "4b", "5a", "5b", "6", "7", "8", "9", "10", "11"]:
        assert f"<h3>Figure {key}. " in page, key
    for key in ["1", "2", "3", "4", "7", "8", "9"]:
        assert f"<h3>Table {key}. " in page, key
    drawn = {path.name for path in (report.parent / "figures" / "synthetic").iterdir()}
    missing = re.findall(r"<h3>Figure (\w+)\. [^<]*</h3><p>[^<]*</p><p class=\"missing\">[^<]+ "
                         r"<code>kt-study plan</code> plans what study.toml asks for\.</p>", page)  # fmt: skip
    assert missing == ["9", "10"]
    expected = {f"figure-{f.key}{s}" for f in FIGURES if f.key not in missing for s in (".png", ".svg")}
    assert drawn == expected
    tables = {path.name for path in (report.parent / "tables" / "synthetic").iterdir()}
    assert tables == {f"table-{table.key}.csv" for table in TABLES}


def test_the_page_stands_alone(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(?:src|href)=\"(?!figures/|tables/|data:,|#)", outside)
    assert "@import" not in outside
    assert "url(" not in outside
    assert "/tmp/" not in page
    assert "synthetic-figure-4a-0" in charts_of(page)


def charts_of(page: str) -> dict[str, Any]:
    """The charts of a page by their id."""
    return dict(json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1]))  # type: ignore[index]


def test_filters_offer_the_very_values_of_the_rows(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    for name, expected in (
        ("objective", [OBJECTIVES[key] for key in OBJECTIVES_PLANNED]),
        ("family", FAMILIES.values()),
    ):
        (select,) = re.findall(rf'<select data-filter="{name}">(.*?)</select>', page)
        values = [html.unescape(value) for value in re.findall(r'<option value="([^"]*)"', select)]
        rows = [
            row for chart in charts_of(page).values() for layer in chart["layer"] for row in layer["data"]["values"]
        ]
        assert values[0] == ""
        assert set(values[1:]) == {row[name] for row in rows if name in row} - {"*"} <= set(expected)
        in_tables = {html.unescape(value) for value in re.findall(rf'<tr[^>]* data-{name}="([^"]*)"', page)}
        assert in_tables == set(values[1:])


def test_every_entry_of_the_contents_is_on_the_page(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    links = re.findall(r'<li><a href="#([^"]+)">', page)
    assert len(links) == len(FIGURES) + len(TABLES)
    assert all(page.count(f' id="{link}"') == 1 for link in links)


def test_the_same_rows_give_the_same_bytes(report: Path, results: Path, tmp_path: Path) -> None:
    again = write_report(results, tmp_path / "again")
    names = sorted(path.relative_to(report.parent) for path in report.parent.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again.parent) for path in again.parent.rglob("*") if path.is_file())
    for name in names:
        assert (report.parent / name).read_bytes() == (again.parent / name).read_bytes(), name


def test_a_study_without_results_says_so(tmp_path: Path, url: str) -> None:
    fill(open_store(url, create=True), WORLD, done=0)
    collect(url, tmp_path / "results")
    page = write_report(tmp_path / "results", tmp_path / "report").read_text(encoding="utf-8")
    assert "No results yet." in page
    assert page.count('class="missing"') == 1 + len(FIGURES) + len(TABLES)
    assert page.count("plans what study.toml asks for") == len(FIGURES) + len(TABLES)
    with pytest.raises(UsageError, match="no study 'x'"):
        write_report(tmp_path / "results", tmp_path / "report", "x")
    with pytest.raises(UsageError, match="no collected results here"):
        write_report(tmp_path / "nothing", tmp_path / "report")


def test_a_study_whose_jobs_failed_says_why_and_what_to_do(tmp_path: Path, url: str) -> None:
    store = open_store(url, create=True)
    fill(store, WORLD, done=0)
    for _ in range(2):
        fail_one(store)
    collect(url, tmp_path / "results")
    page = write_report(tmp_path / "results", tmp_path / "report").read_text(encoding="utf-8")
    assert "2 jobs failed (logits). DataError: broken.png: not an image" in page
    assert "<code>kt-study retry --error g1</code>" in page
    assert "No results yet" not in page


def test_figures_without_rows_are_deleted(report: Path, tmp_path: Path, url: str) -> None:
    out = tmp_path / "report"
    shutil.copytree(report.parent, out)
    fill(open_store(url, create=True), WORLD, done=0)
    collect(url, tmp_path / "results")
    write_report(tmp_path / "results", out)
    assert not [path for path in out.rglob("*") if path.suffix in (".png", ".svg", ".csv")]


def transfers() -> list[dict[str, Any]]:
    jobs = synthetic.jobs_of(WORLD, OBJECTIVES_PLANNED, 6, Settings(epochs=3))
    return [synthetic.outcome(WORLD, j.kind, j.spec)["transfers"][0] for j in jobs if j.kind == "transfer"]


def test_success_rates_against_a_plain_loop(study: StudyResults) -> None:
    rates = by_student(study.single).set_index(["objective", "student"])["success_rate"]
    rows = [row for row in transfers() if row["multi_teacher"] == "single"]
    for (objective, student), rate in rates.items():
        deltas = [r["delta_transf"] for r in rows if (OBJECTIVES[r["objective"]], r["student"]) == (objective, student)]
        assert rate == pytest.approx(100 * sum(delta > 0 for delta in deltas) / len(deltas))
    assert len(rates) == len(OBJECTIVES_PLANNED) * 6


def test_several_teachers_against_a_plain_loop(report: Path) -> None:
    table = pd.read_csv(report.parent / "tables" / "synthetic" / "table-4.csv").set_index("student")
    rows = [row for row in transfers() if row["objective"] == "kl_dp"]
    for student, found in table.iterrows():
        of = [row for row in rows if row["student"] == student]
        (soup,) = (row for row in of if row["multi_teacher"] == "soup")
        teachers = soup["teacher"].split("+")
        single = [r["delta_transf"] for r in of if r["multi_teacher"] == "single" and r["teacher"] in teachers]
        assert found["soup"] == pytest.approx(soup["delta_transf"], rel=1e-5)
        assert found["single mean"] == pytest.approx(statistics.mean(single), rel=1e-5)
        assert (found["single min"], found["single max"]) == pytest.approx((min(single), max(single)), rel=1e-5)
        assert found["teachers"] == 3


def test_changes_of_rho_add_up(report: Path) -> None:
    table = pd.read_csv(report.parent / "tables" / "synthetic" / "table-8.csv")
    change = table["Δ rho_neg mean"] - table["Δ rho_pos mean"]
    assert change.tolist() == pytest.approx(table["delta_transf mean"].tolist(), abs=1e-4)


def test_figure_4b_is_the_mean_above_the_75th_percentile(study: StudyResults) -> None:
    figure = next(figure for figure in FIGURES if figure.key == "4b")
    plot = figure.build(study)
    points, lines, _ = plot.panels[0].layers
    rows = points.data
    shown = lines.data[lines.data["family"] == lines.defaults["family"]]
    edges = np.linspace(rows["difference"].min(), rows["difference"].max(), 11)
    for line in shown.to_dict("records"):
        at = int(np.argmin(np.abs((edges[:-1] + edges[1:]) / 2 - line["difference"])))
        last = at == 9
        inside = rows[
            (rows["objective"] == line["objective"])
            & (rows["difference"] >= edges[at])
            & ((rows["difference"] <= edges[at + 1]) if last else (rows["difference"] < edges[at + 1]))
        ]["delta_transf"]
        assert line["n"] == len(inside)
        cut = np.percentile(inside, 75)
        above = [delta for delta in inside if delta > cut] or [delta for delta in inside if delta >= cut]
        assert line["top"] == pytest.approx(statistics.mean(above))


def test_only_one_setting_of_an_objective_is_shown(tmp_path: Path, url: str) -> None:
    store = open_store(url, create=True)
    fill(store, WORLD, objectives=("kl",), students=4)
    fill(store, WORLD, objectives=("kl",), students=2, settings=Settings(epochs=3, batchnorm="frozen"))
    collect(url, tmp_path / "results")
    study = StudyResults(kt_study.load(tmp_path / "results", "synthetic"), "synthetic")
    assert set(study.single["batchnorm"]) == {"train"}
    assert len(study.single) == 4 * 8
    (shown,) = study.shown_settings
    assert (shown.rows, shown.of, shown.settings) == (32, 48, "batchnorm = train")
    page = write_report(tmp_path / "results", tmp_path / "report").read_text(encoding="utf-8")
    assert "KL: 32 of 48 transfers, with batchnorm = train" in page
    table = pd.read_csv(tmp_path / "report" / "tables" / "synthetic" / "table-settings.csv")
    assert table.set_index("batchnorm")["transfers"].to_dict() == {"train": 32, "frozen": 16}


def test_random_teachers_are_a_baseline_of_their_own(tmp_path: Path, url: str) -> None:
    store = open_store(url, create=True)
    fill(store, WORLD, students=1)
    first, *others = WORLD.models
    store.add_models([msgspec.structs.replace(first, weights="random:0")])
    collect(url, tmp_path / "results")
    study = StudyResults(kt_study.load(tmp_path / "results", "synthetic"), "synthetic")
    assert set(study.baseline["teacher"]) == {first.name}
    assert len(study.baseline) == len(others)
    assert first.name not in set(study.pairs["teacher"])
    plot = next(figure for figure in FIGURES if figure.key == "1a").build(study)
    assert isinstance(plot, Plot)
    assert f"8 with a random teacher have {study.baseline['rho_pos'].mean():.2f} %" in plot.sample


def test_pairs_come_once_from_jobs_and_files(study: StudyResults, world: World = WORLD) -> None:
    assert len(study.pairs) == len(world.models) * (len(world.models) - 1)
    assert set(study.pairs["family"]) == {"CNN", "transformer", "MLP"}


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_against_scipy(counts: tuple[int, int]) -> None:
    successes, n = counts
    found = wilson(successes, n)
    expected = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)
    assert found.value == pytest.approx(100 * successes / n)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=8, max_size=20))
def test_bootstrap_against_scipy(values: list[float]) -> None:
    found = bootstrap(values, np.mean)
    assert found.value == pytest.approx(statistics.fmean(values))
    assert found.low <= found.value + 1e-12
    assert found.high >= found.value - 1e-12
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=1, n_resamples=4000)
    wide = max(1e-9, 0.35 * (expected.confidence_interval.high - expected.confidence_interval.low))
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=wide)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=wide)


def test_bootstrap_draws_whole_groups() -> None:
    groups = [np.zeros(50), np.ones(50)] * 2
    clustered, plain = bootstrap_mean(groups), bootstrap(np.concatenate(groups).tolist(), np.mean)
    assert (clustered.low, clustered.value, clustered.high) == (0.0, 0.5, 1.0)
    assert bootstrap_mean([np.zeros(30), np.ones(10)]).value == 0.25
    assert plain.high - plain.low < 0.3
    assert bootstrap([3.0] * 3, np.median).text(" %") == "3.0 % [3.0, 3.0]"


def test_one_or_two_values_have_no_interval() -> None:
    assert bootstrap([3.0], np.median).text(" %") == "3.0 %"
    assert bootstrap([3.0, 5.0], np.mean).text("", 2) == "4.00"
    assert np.isnan([bootstrap_mean([np.ones(9), np.zeros(9)]).low, bootstrap([1.0, 2.0], np.median).high]).all()


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=30))
def test_top_quarter_mean_lies_at_the_top(values: list[float]) -> None:
    found = top_quarter_mean(pd.Series(values))
    assert np.percentile(values, 75) - 1e-9 <= found <= max(values) + 1e-9


def test_thinning_keeps_the_same_rows_whatever_else_is_there() -> None:
    frame = pd.DataFrame({"teacher": [f"t{i}" for i in range(500)], "student": "s"})
    kept = set(thinned(frame, 100)["teacher"])
    assert len(kept) == 100
    fewer = frame[frame["teacher"].isin(kept) | (frame.index < 300)]
    assert set(thinned(fewer, 100)["teacher"]) == kept
    assert len(thinned(frame, 500)) == 500


def test_numbers_in_sentences_are_not_rounded_twice_or_signed_zeros() -> None:
    assert Interval(32.5, 10.0, -0.04).text(" %") == "32.5 % [10.0, 0.0]"
    assert Interval(-0.004, -0.2, 0.0).text("", 2) == "0.00 [-0.20, 0.00]"


@pytest.mark.parametrize("name", ["index.html", "figures/synthetic/figure-4a.png", "tables/synthetic/table-9.csv"])
def test_files_of_others_are_not_written_over(name: str, results: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "site" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(
        UsageError, match=rf"{theirs} is there already and kt-study did not make it; give another --out"
    ):
        write_report(results, tmp_path / "site")
    assert [path for path in (tmp_path / "site").rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_text() == "mine"


def test_files_of_others_beside_a_report_stay(
    report: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a report of before, which had no marker; one that was cut off is gone on with."""
    monkeypatch.setattr("orchestrator.results.report.write.FIGURES", [f for f in FIGURES if f.key == "4a"])
    monkeypatch.setattr("orchestrator.results.report.write.TABLES", [t for t in TABLES if t.key == "9"])
    out = tmp_path / "report"
    shutil.copytree(report.parent, out)
    (out / ".kt-study-report").unlink()
    theirs = ("fig4a.csv", "figures/synthetic/figure-4a.pdf", "tables/mine.csv")
    for name in theirs:
        (out / name).write_text("mine")
    page = write_report(results, out)
    page.unlink()
    assert write_report(results, out).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert all((out / name).read_text() == "mine" for name in theirs)
