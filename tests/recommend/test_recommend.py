"""Recommendations on both databases against counts made one sample at a time, and rankings made by hand."""

from __future__ import annotations

import sqlite3
import statistics
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kt_study.database import connect_postgresql, parse_url
from kt_study.errors import UsageError
from kt_study.multi_teacher import transfer_digest
from kt_study.records import DatasetRecord
from kt_study.store import JobStore
from orchestrator.cli.commands.recommend import command
from orchestrator.results.recommend.recommend import RecommendOptions, recommend
from orchestrator.results.recommend.record import Recommendation, as_json, read_recommendation
from orchestrator.results.recommend.text import as_text
from tests.recommend.invented import (
    KEYS,
    NAME,
    SETTINGS,
    STUDY,
    WORLD,
    ask,
    by_key,
    cache_predictions,
    dataset,
    everyone,
    fill,
    flips,
    other,
    sources,
    transfer_spec,
    write_dataset_index,
)
from tests.results import synthetic

STUDENT, FIRST, SECOND, THIRD = KEYS[0], KEYS[1], KEYS[2], KEYS[3]
MEASURED = everyone(FIRST, SECOND, THIRD)
SOME = [(KEYS[4], STUDENT), (KEYS[5], STUDENT)]
"""Two transfers into the student beside those into others."""


def rows_of(transfers: list[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The result row of each transfer."""
    return {
        (teacher, student): synthetic.transfer(WORLD, (teacher,), student, "kl_dp", SETTINGS, 0)
        for teacher, student in transfers
    }


def test_flips_are_counted_right(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT))
    lines = by_key(ask(url, tmp_path, STUDENT))
    assert set(lines) == set(KEYS) - {STUDENT}
    for teacher, line in lines.items():
        positive, negative = flips(teacher, STUDENT)
        assert line.rho_pos == pytest.approx(100 * positive / WORLD.n)
        assert line.rho_neg == pytest.approx(100 * negative / WORLD.n)
        assert line.delta_acc == pytest.approx(100 * (positive - negative) / WORLD.n)
        assert (line.flips_from, line.delta, line.basis) == ("pairs", None, "")


def most_complementary() -> list[str]:
    """The other models by what they know that the student does not; those that know equally much by name."""
    return sorted(KEYS[1:], key=lambda key: (-flips(key, STUDENT)[0], WORLD.name(key)))


def test_without_transfers_the_most_complementary_come_first(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT))
    advice = ask(url, tmp_path, STUDENT)
    expected = most_complementary()
    assert [line.teacher_key for line in advice.teachers] == expected
    assert advice.forecast is None
    assert any("not enough transfers of kl_dp to predict from (0, and 12 are needed)" in note for note in advice.notes)
    assert [line.teacher_key for line in ask(url, tmp_path, STUDENT, top=2).teachers] == expected[:2]


def test_measured_and_predicted_deltas_make_one_list(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT), transfers=MEASURED + SOME)
    advice = ask(url, tmp_path, STUDENT)
    lines = by_key(advice)
    rows = rows_of(MEASURED + SOME)
    predicted = predictions(rows)
    assert advice.forecast is not None and advice.forecast.is_better
    for key, line in lines.items():
        if (key, STUDENT) in rows:
            row = rows[key, STUDENT]
            assert (line.basis, line.delta) == ("measured", pytest.approx(row["delta_transf"]))
            assert line.delta_low == pytest.approx(row["delta_transf_low"])
            assert line.delta_high == pytest.approx(row["delta_transf_high"])
        else:
            assert (line.basis, line.delta_low) == ("predicted", None)
            assert line.delta == pytest.approx(predicted[key])
    deltas = [line.delta for line in advice.teachers]
    assert deltas == sorted(deltas, key=lambda delta: -(delta or 0.0))
    assert {line.basis for line in advice.teachers} == {"measured", "predicted"}


def predictions(rows: dict[tuple[str, str], dict[str, Any]]) -> dict[str, float]:
    """delta_transf of each teacher for the student, by scikit-learn from the rows."""
    model = make_pipeline(StandardScaler(), Ridge(alpha=1.0))
    x = [features(t, s, row["acc_teacher"] - row["acc_before"], row["rho_pos_before"]) for (t, s), row in rows.items()]
    model.fit(x, [row["delta_transf"] for row in rows.values()])
    found = {}
    for key in set(KEYS) - {STUDENT}:
        positive, negative = flips(key, STUDENT)
        delta_acc, rho_pos = 100 * (positive - negative) / WORLD.n, 100 * positive / WORLD.n
        found[key] = float(model.predict([features(key, STUDENT, delta_acc, rho_pos)])[0])
    return found


def features(teacher: str, student: str, delta_acc: float, rho_pos: float) -> list[float]:
    models = [next(model for model in WORLD.models if model.key == key) for key in (teacher, student)]
    families = [float(model.family == family) for model in models for family in ("cnn", "mlp", "transformer")]
    return [delta_acc, rho_pos, *(np.log10(model.params or 0.0) for model in models), *families]


def test_classes_rank_by_what_arrives_of_their_flips(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT), transfers=MEASURED + SOME)
    advice = ask(url, tmp_path, STUDENT, classes="class 3,class_7")
    rows = rows_of(SOME)
    usual = statistics.fmean(row["transfer_rate_strict_top100"] for row in rows.values())
    expected = {}
    for key, line in by_key(advice).items():
        in_3, in_7 = flips(key, STUDENT, 3), flips(key, STUDENT, 7)
        assert [(one.positive, one.negative) for one in line.classes] == [in_3, in_7]
        rate = rows[key, STUDENT]["transfer_rate_strict_top100"] if (key, STUDENT) in rows else usual
        expected[key] = (in_3[0] + in_7[0]) * rate / 100
        assert line.class_gain == pytest.approx(expected[key])
    ranked = [line.teacher_key for line in advice.teachers]
    gains = [expected[key] for key in ranked]
    assert gains == sorted(gains, reverse=True) and len(set(gains)) > 3
    assert [(one.name, one.index) for one in advice.classes] == [("class 3", 3), ("class_7", 7)]


def test_a_class_without_flips_counts_none(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT))
    none = [(key, label) for key in KEYS[1:] for label in range(WORLD.classes) if flips(key, STUDENT, label) == (0, 0)]
    key, label = none[0]
    line = by_key(ask(url, tmp_path, STUDENT, classes=f"class {label}"))[key]
    assert (line.classes[0].positive, line.classes[0].negative, line.class_gain) == (0, 0, 0.0)


def test_all_pairs_files_serve_as_pairs_do(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, all_pairs=KEYS, folder=tmp_path)
    advice = ask(url, tmp_path, STUDENT)
    assert [line.teacher_key for line in advice.teachers] == most_complementary()
    for key, line in by_key(advice).items():
        positive, negative = flips(key, STUDENT)
        assert (line.rho_pos, line.rho_neg) == pytest.approx((100 * positive / WORLD.n, 100 * negative / WORLD.n))
        assert line.flips_from == "all_pairs"
    write_dataset_index(tmp_path, [f"class {label}" for label in range(WORLD.classes)])
    with pytest.raises(UsageError, match="give the flips by class"):
        ask(url, tmp_path, STUDENT, classes="class 3")
    cache_predictions(tmp_path, KEYS)
    found = ask(url, tmp_path, STUDENT, classes="class 3")
    for key, line in by_key(found).items():
        assert (line.classes[0].positive, line.classes[0].negative) == flips(key, STUDENT, 3)
    assert found.classes[0].n == int((WORLD.labels == 3).sum())


def test_cached_predictions_stand_in_for_pairs(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=[(FIRST, STUDENT)])
    alone = ask(url, tmp_path, STUDENT)
    assert [line.teacher_key for line in alone.teachers] == [FIRST]
    assert any("6 of 7 teachers are left out" in note for note in alone.notes)
    cache_predictions(tmp_path, KEYS[:-1])
    advice = ask(url, tmp_path, STUDENT)
    assert {key: line.flips_from for key, line in by_key(advice).items()} == {
        FIRST: "pairs",
        **dict.fromkeys(KEYS[2:-1], "predictions"),
    }
    for key, line in by_key(advice).items():
        positive, negative = flips(key, STUDENT)
        assert (line.rho_pos, line.rho_neg) == pytest.approx((100 * positive / WORLD.n, 100 * negative / WORLD.n))


def test_damaged_predictions_are_not_believed(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=[(FIRST, STUDENT)])
    cache_predictions(tmp_path, KEYS[:3])
    for file in (tmp_path / "cache" / "logits").glob("*/*/side.npy"):
        file.write_bytes(file.read_bytes()[:-4])
    assert [line.teacher_key for line in ask(url, tmp_path, STUDENT).teachers] == [FIRST]


def test_only_the_studys_teachers_are_recommended(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT))
    narrow = msgspec.structs.replace(
        STUDY, transfer=msgspec.structs.replace(STUDY.transfer, teachers=["synthetic/cnn*"])
    )
    advice = ask(url, tmp_path, STUDENT, narrow)
    assert {line.teacher for line in advice.teachers} == {"synthetic/cnn3", "synthetic/cnn6"}


def test_transfers_with_other_settings_are_left_out(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT), transfers=[(FIRST, STUDENT)])
    fill(store, transfers=[(SECOND, STUDENT), (THIRD, STUDENT)], settings=other(epochs=9))
    advice = ask(url, tmp_path, STUDENT)
    assert [line.teacher_key for line in advice.teachers if line.basis == "measured"] == [FIRST]
    assert any("2 transfers with other settings" in note for note in advice.notes)
    longer = msgspec.structs.replace(STUDY, transfer=msgspec.structs.replace(STUDY.transfer, epochs=20))
    advice = ask(url, tmp_path, STUDENT, longer)
    measured = {line.teacher_key for line in advice.teachers if line.basis == "measured"}
    assert measured == {SECOND, THIRD}
    assert any("run with epochs = 9" in note and "epochs = 20" in note for note in advice.notes)


def test_a_loader_or_kept_weights_are_no_other_settings(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT), transfers=[(FIRST, STUDENT)], settings=other(keep="all", loader="ffcv"))
    assert by_key(ask(url, tmp_path, STUDENT))[FIRST].basis == "measured"


def test_another_objective_measures_nothing(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT), transfers=[(FIRST, STUDENT)], objective="kl")
    assert by_key(ask(url, tmp_path, STUDENT))[FIRST].basis == ""
    assert by_key(ask(url, tmp_path, STUDENT, objective="kl"))[FIRST].basis == "measured"


def test_hours_are_measured_where_they_can_be(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT))
    before = by_key(ask(url, tmp_path, STUDENT))[FIRST]
    assert before.hours_from == "estimate" and (before.gpu_hours or 0) > 0
    fill(store, transfers=[(FIRST, STUDENT)])
    advice = ask(url, tmp_path, STUDENT)
    lines = by_key(advice)
    assert (lines[FIRST].hours_from, lines[FIRST].gpu_hours) == ("measured", pytest.approx(12.5 / 3600))
    assert lines[SECOND].hours_from == "student"
    # the passes over the training set are missing: two views, of the teacher and of the frozen student
    assert (lines[SECOND].gpu_hours or 0) > 12.5 / 3600 + 4 * 2.0 / 3600
    assert any("hours are of the CPU" in note for note in advice.notes)


def test_unmeasured_leaves_out_what_was_run(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT), transfers=SOME)
    advice = ask(url, tmp_path, STUDENT, unmeasured=True)
    assert {line.teacher_key for line in advice.teachers} == set(KEYS[1:]) - {KEYS[4], KEYS[5]}
    assert advice.candidates == 7


def test_of_two_models_of_one_name_the_last_one_counts(store: JobStore, url: str, tmp_path: Path) -> None:
    """New weights under an old name make another model."""
    fill(store, pairs=everyone(STUDENT))
    again = msgspec.structs.replace(WORLD.models[1], key="again")
    world = synthetic.World(
        models=(*WORLD.models, again),
        right={**WORLD.right, "again": ~WORLD.right[STUDENT]},
        labels=WORLD.labels,
        classes=WORLD.classes,
    )
    fill(store, pairs=[("again", STUDENT)], evaluated=["again"], world=world)
    advice = ask(url, tmp_path, STUDENT)
    assert advice.teachers[0].teacher_key == "again"
    assert [line.teacher for line in advice.teachers].count(again.name) == 1


def test_nothing_is_written(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT), transfers=MEASURED)
    store.close()
    folder = tmp_path / "elsewhere"
    before = contents(url)
    ask(url, folder, STUDENT, classes="class 3")
    assert contents(url) == before
    assert not folder.exists()


def contents(url: str) -> dict[str, list[Any]]:
    """Every row of every table."""
    address = parse_url(url)
    if address.is_sqlite:
        with sqlite3.connect(address.path) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: connection.execute(f'SELECT * FROM "{name}"').fetchall() for name in tables}
    with connect_postgresql(address) as postgres:
        tables = [n for (n,) in postgres.execute(b"SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        return {name: sorted(map(str, postgres.execute(f'SELECT * FROM "{name}"'.encode()))) for name in tables}


def test_what_does_not_exist_is_one_line(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT))
    unknown = "synthetic/cnm0"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"student": unknown}, f"no model {unknown!r} in study {NAME!r}; did you mean 'synthetic/cnn0'?"),
        ({"classes": "clas 3"}, f"no class 'clas 3' among {WORLD.classes}; did you mean 'class 3'?"),
        ({"objective": "kl_pd"}, "did you mean 'kl_dp'?"),
    ]
    for options, message in cases:
        with pytest.raises(UsageError) as error:
            ask_named(url, tmp_path, **{"student": WORLD.name(STUDENT), **options})
        assert message in str(error.value) and "\n" not in str(error.value)
    elsewhere = msgspec.structs.replace(STUDY, study=msgspec.structs.replace(STUDY.study, name="invent"))
    with pytest.raises(UsageError, match="no study 'invent' in this database; did you mean 'invented'"):
        ask(url, tmp_path, STUDENT, elsewhere)


def ask_named(url: str, folder: Path, **options: Any) -> Recommendation:
    return recommend(url, STUDY, sources(folder), RecommendOptions(**options))


def test_a_study_that_has_not_run_says_so(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, evaluated=[])
    with pytest.raises(UsageError, match="no model of study 'invented' has been evaluated yet"):
        ask(url, tmp_path, STUDENT)
    fill(store, evaluated=[FIRST])
    with pytest.raises(UsageError, match="'synthetic/cnn0' has not been evaluated in study 'invented' yet"):
        ask(url, tmp_path, STUDENT)
    with pytest.raises(UsageError, match="no teacher to recommend for 'synthetic/transformer1'"):
        ask(url, tmp_path, FIRST)


def test_a_data_set_without_labels_is_refused(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store)
    store.add_datasets([DatasetRecord(**{**msgspec.structs.asdict(dataset(WORLD)), "labelled": False})])
    with pytest.raises(UsageError, match="data set 'synthetic' has no labels"):
        ask(url, tmp_path, STUDENT)


def test_the_file_gives_the_recommendation_back(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT), transfers=MEASURED + SOME)
    advice = ask(url, tmp_path, STUDENT, classes="class 3")
    file = tmp_path / "advice.json"
    file.write_bytes(as_json(advice))
    assert read_recommendation(file) == advice
    assert as_json(advice) == as_json(ask(url, tmp_path, STUDENT, classes="class 3"))
    assert by_key(advice)[KEYS[4]].job == transfer_digest(transfer_spec(KEYS[4], STUDENT))


def test_the_text_says_what_the_record_says(store: JobStore, url: str, tmp_path: Path) -> None:
    fill(store, pairs=everyone(STUDENT), transfers=MEASURED + SOME)
    advice = ask(url, tmp_path, STUDENT, classes="class 3", top=3)
    text = as_text(advice)
    assert text.startswith("study invented: 3 of 7 teachers for synthetic/cnn0 on synthetic, objective kl_dp\n")
    forecast = advice.forecast
    assert forecast is not None
    assert f"error {forecast.error:.2f} points on students left out (4 folds)" in text
    assert f"predicting the mean: {forecast.error_of_mean:.2f}" in text
    table = [line for line in text.splitlines() if line[:2].strip().isdigit()]
    assert [line.split()[1] for line in table] == [line.teacher for line in advice.teachers]
    for shown, line in zip(table, advice.teachers, strict=True):
        assert f"+{line.classes[0].positive} -{line.classes[0].negative}" in shown
        assert line.basis in shown


def test_a_file_of_others_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('[study]\nname = "x"\n[dataset]\nkind = "digits"\n')
    (tmp_path / "mine.json").write_text('{"teachers": "of mine"}')
    arguments = ["--student", "x", "--study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "mine.json")]
    with pytest.raises(
        UsageError, match=r"mine\.json already exists and is not a recommendation of kt-study; give another"
    ):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert (tmp_path / "mine.json").read_text() == '{"teachers": "of mine"}'
