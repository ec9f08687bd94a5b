"""query: the named queries against hand counts on both databases, and what the formats hold."""

from __future__ import annotations

import functools
import io
import json
import math
import sqlite3
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kt_study.database import parse_url
from kt_study.errors import DatabaseError, UsageError
from kt_study.records import AllPairsSpec, TransferSpec
from kt_study.settings import Settings
from kt_study.store import JobStore, open_store
from orchestrator.results.query import QueryResult, named_queries, pairs_in_files, queries_folder, render, run_query
from tests.cli import kt_study
from tests.results import synthetic
from tests.results.synthetic import World, fill, make_world

WORLD = make_world(models=6, n=300, classes=12)
REFUSED = r"the database refuses the query|the query is refused"


@pytest.fixture
def world() -> World:
    return WORLD


@pytest.fixture
def filled(store: JobStore, url: str, world: World) -> str:
    fill(store, world)
    return url


def rows(url: str, query: str, **parameters: Any) -> list[dict[str, Any]]:
    answer = run_query(url, query, parameters)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def rounded(answer: QueryResult) -> list[list[Any]]:
    """Rows without the last bits of averages, which depend on the order in which the database adds."""
    return [[round(value, 9) if isinstance(value, float) else value for value in row] for row in answer.rows]


@functools.cache
def single_transfers(world: World) -> list[dict[str, Any]]:
    jobs = [
        job
        for job in synthetic.jobs_of(world, ("kl", "xe_kl", "kl_dp"), 4, Settings(epochs=3))
        if job.kind == "transfer"
    ]
    made = [synthetic.outcome(world, job.kind, job.spec)["transfers"][0] for job in jobs]
    return [row for row in made if row["multi_teacher"] == "single"]


def test_success_rate_is_a_mean_by_student_and_a_median_over_students(filled: str, world: World) -> None:
    by_student: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in single_transfers(world):
        by_student[row["objective"], row["student"]].append(100.0 if row["delta_transf"] > 0 else 0.0)
    for row in rows(filled, "success-rate"):
        rates = [statistics.mean(v) for (objective, _), v in by_student.items() if objective == row["objective"]]
        assert row["median_success_rate"] == pytest.approx(statistics.median(rates))
        assert row["success_rate"] == pytest.approx(statistics.mean(rates))
        assert (row["pairs"], row["students"]) == (20, 4)


def test_best_teachers_and_families(filled: str, world: World) -> None:
    deltas: dict[str, list[float]] = defaultdict(list)
    for row in single_transfers(world):
        if row["objective"] == "kl_dp":
            deltas[row["teacher"]].append(row["delta_transf"])
    best = rows(filled, "best-teachers", objective="kl_dp")
    assert {row["teacher"]: row["mean_delta_transf"] for row in best} == pytest.approx(
        {teacher: statistics.mean(values) for teacher, values in deltas.items()}
    )
    assert [row["mean_delta_transf"] for row in best] == sorted((r["mean_delta_transf"] for r in best), reverse=True)
    families = {model.name: model.family for model in world.models}
    for row in rows(filled, "transfer-by-family"):
        of = [
            t["delta_transf"]
            for t in single_transfers(world)
            if (t["objective"], families[t["student"]], families[t["teacher"]])
            == (row["objective"], row["student_family"], row["teacher_family"])
        ]
        assert (row["pairs"], row["mean_delta_transf"]) == (len(of), pytest.approx(statistics.mean(of)))


def test_failures_hours_progress_and_multi_teacher(store: JobStore, url: str, world: World) -> None:
    fill(store, world, done=12)
    failed = [synthetic.fail_one(store), synthetic.fail_one(store)]
    (failure,) = rows(url, "failures")
    assert (failure["attempts"], failure["jobs"], failure["jobs_given_up"], failure["error"]) == (2, 2, 2, "DataError")
    assert failure["a_job"] == min(claim.job_id for claim in failed)
    assert sum(row["attempts"] for row in rows(url, "gpu-hours")) == 14
    assert {row["state"]: row["jobs"] for row in rows(url, "progress") if row["kind"] == "complementarity"}
    synthetic.finish(store, world)
    for row in rows(url, "multi-teacher"):
        assert row["single_min"] <= row["single_mean"] <= row["single_max"]
        assert row["sequential"] is not None


def transfers(url: str, *made: dict[str, Any]) -> None:
    """A study `by hand` of these rows, a job each; keys are names."""
    store = open_store(url, create=True)
    store.add_study("by hand", {})
    usual = {"dataset": "imagenet", "objective": "kl", "multi_teacher": "single", "lr": 1e-4, "epochs": 20}
    usual |= {"reading": "paper", "batchnorm": "train", "temperature": 1.0, "top_k": 0}
    full = [usual | {f"{key}_key": row[key] for key in ("student", "teacher")} | row for row in made]
    full = [row | {"dataset_key": row["dataset"]} for row in full]
    specs = [TransferSpec(dataset="d", student=str(n), teachers=("t",), objective="kl") for n in range(len(full))]
    store.plan("by hand", [synthetic.planned("transfer", spec) for spec in specs])
    for claim in store.claim("worker", limit=len(full)):
        store.finish(claim, {"transfers": [full[int(claim.spec["student"])]]})


def test_data_sets_and_settings_are_not_pooled(url: str) -> None:
    """Twenty good transfers on one data set do not hide a bad one on another, nor one with another learning rate."""
    by_teacher = [{"student": "s", "teacher": f"t{n}", "delta_transf": 1.0} for n in range(3)]
    odd = {"student": "s", "teacher": "t0", "delta_transf": -4.0}
    transfers(url, *by_teacher, odd | {"dataset": "cars"}, odd | {"lr": 0.1}, odd | {"weight_decay": 0.5})
    asked = ("dataset", "setting", "lr", "pairs", "success_rate", "mean_delta_transf")
    found = {tuple(row[name] for name in asked) for row in rows(url, "success-rate")}
    assert {(dataset, *rest) for dataset, _, *rest in found} == {
        ("cars", 1e-4, 1, 0.0, -4.0),
        ("imagenet", 1e-4, 3, 100.0, 1.0),
        ("imagenet", 0.1, 1, 0.0, -4.0),
        ("imagenet", 1e-4, 1, 0.0, -4.0),  # with another weight decay
    }
    numbers = {(dataset, setting) for dataset, setting, *_ in found}
    assert numbers == {("cars", 1), ("imagenet", 1), ("imagenet", 2), ("imagenet", 3)}
    best = [(row["dataset"], row["setting"], row["mean_delta_transf"]) for row in rows(url, "best-teachers")]
    assert len([mean for dataset, _, mean in best if dataset == "imagenet" and mean == 1.0]) == 3
    assert {(dataset, setting) for dataset, setting, _ in best} == numbers


def test_each_team_of_teachers_is_a_row_of_its_own(url: str) -> None:
    """Two sequences of one student, one on another data set; a stage on the way to a longer one is none."""
    several = [
        ("imagenet", "sequential", "b+c", 1.0), ("imagenet", "sequential", "b+c+d", 4.0), ("imagenet", "parallel", "b+c+d", 2.0),
        ("imagenet", "sequential", "d+e", 3.0), ("cars", "parallel", "b+c+d", -5.0), ("imagenet", "soup", "d+e", 0.5),
    ]  # fmt: skip
    alone = {"b": 0.1, "c": 0.3, "d": 0.8, "e": 1.0, "x": 9.0, "be": 9.0}
    transfers(
        url,
        *(
            {"dataset": d, "multi_teacher": m, "teacher": t, "delta_transf": v, "student": "s"}
            for d, m, t, v in several
        ),
        *({"teacher": teacher, "delta_transf": value, "student": "s"} for teacher, value in alone.items()),
        {"teacher": "b", "delta_transf": 7.0, "student": "s", "lr": 0.1},
    )
    found = {(row["dataset"], row["teachers"]): row for row in rows(url, "multi-teacher")}
    modes = {key: tuple(row[mode] for mode in ("sequential", "parallel", "soup")) for key, row in found.items()}
    assert modes == {
        ("cars", "b+c+d"): (None, -5.0, None),
        ("imagenet", "b+c+d"): (4.0, 2.0, None),
        ("imagenet", "d+e"): (3.0, None, 0.5),
    }
    singles = {key: (row["single_runs"], row["single_mean"], row["single_max"]) for key, row in found.items()}
    assert singles["imagenet", "b+c+d"] == (3, pytest.approx(0.4), 0.8)
    assert singles["imagenet", "d+e"] == (2, pytest.approx(0.9), 1.0)
    assert singles["cars", "b+c+d"] == (0, None, None)


def test_identities_hold_in_every_row(filled: str) -> None:
    checked = rows(filled, "flip-identities")
    assert len(checked) == 3
    assert all(row["checked"] > 0 and row["worst"] < 1e-9 for row in checked)


def test_every_named_query_runs_and_takes_a_study(filled: str) -> None:
    for name, query in named_queries().items():
        assert query.title, name
        assert "study" in query.parameters, name
        everything, one = run_query(filled, name), run_query(filled, name, {"study": "synthetic"})
        assert rounded(one) == rounded(everything), name
        assert run_query(filled, name, {"study": "another"}).rows == [], name
        declared = query.sql.splitlines()[1].removeprefix("-- parameters: ").split(", ")
        assert sorted(declared) == sorted(query.parameters), name
    assert {"success-rate", "best-teachers", "transfer-by-family", "complementarity", "failures", "gpu-hours"} <= set(
        named_queries()
    )
    assert queries_folder().is_dir()


def test_free_queries_take_parameters_and_percent_signs(filled: str) -> None:
    answer = rows(filled, "SELECT ':x' AS a, '5 %' AS b, name -- :y %\nFROM models WHERE name LIKE :like", like="%cnn%")
    assert [row["name"] for row in answer] == sorted(m.name for m in WORLD.models if m.family == "cnn")
    assert (answer[0]["a"], answer[0]["b"]) == (":x", "5 %")
    assert rows(filled, "SELECT COUNT(*) AS n FROM models WHERE name LIKE '%cnn%';") == [{"n": 2}]


def test_wrong_usage_is_one_clear_line(filled: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no query 'succes-rate'; did you mean 'success-rate'\?"):
        run_query(filled, "succes-rate")
    with pytest.raises(UsageError, match=r"no parameter 'studi'; did you mean 'study'\? \(it has study"):
        run_query(filled, "progress", {"studi": "x"})
    with pytest.raises(UsageError, match="needs a value for the parameter 'x'"):
        run_query(filled, "SELECT :x")
    with pytest.raises(UsageError, match="no_such_table"):
        run_query(filled, "SELECT * FROM no_such_table")
    with pytest.raises(UsageError, match="no format 'xml'"):
        render(QueryResult(columns=("a",), rows=[]), "xml")
    with pytest.raises(DatabaseError, match=r"none\.db"):
        run_query(f"sqlite:///{tmp_path}/none.db", "SELECT 1")


def test_formats_hold_the_same_values() -> None:
    answer = QueryResult(columns=("name", "n", "delta"), rows=[("a,b", 3, 0.125), ("ü", None, -1.5), ("x", 12, 0.0001)])
    assert render(answer, "csv").decode() == 'name,n,delta\n"a,b",3,0.125\nü,,-1.5\nx,12,0.0001\n'
    assert json.loads(render(answer, "json")) == [
        {"name": "a,b", "n": 3, "delta": 0.125}, {"name": "ü", "n": None, "delta": -1.5},
        {"name": "x", "n": 12, "delta": 0.0001},
    ]  # fmt: skip
    table = pq.read_table(io.BytesIO(render(answer, "parquet")))
    assert table.to_pylist() == json.loads(render(answer, "json"))
    assert render(answer, "table").decode() == (
        "name   n    delta\n----  --  -------\na,b    3     0.12\nü           -1.50\nx     12  1.0e-04\n"
    )
    empty = QueryResult(columns=("a", "b"), rows=[])
    assert render(empty, "table").decode() == "a  b\n-  -\n"
    assert json.loads(render(empty, "json")) == []
    assert pq.read_table(io.BytesIO(render(empty, "parquet"))).column_names == ["a", "b"]


def test_values_that_a_format_has_no_word_for(url: str, store: JobStore) -> None:  # noqa: ARG001
    odd = QueryResult(
        columns=("mixed", "number", "huge"), rows=[(1, math.inf, 2**70), ("x", 2.5, 1), (None, None, None)]
    )
    table = pq.read_table(io.BytesIO(render(odd, "parquet")))
    assert table["mixed"].to_pylist() == ["1", "x", None]
    assert table["number"].to_pylist() == [math.inf, 2.5, None]
    assert table["huge"].to_pylist() == [str(2**70), "1", None]
    assert [row["number"] for row in json.loads(render(odd, "json"), parse_constant=pytest.fail)] == [None, 2.5, None]
    blob = "'\\xDEAD'::bytea" if url.startswith("postgresql") else "x'DEAD'"
    assert rows(url, f"SELECT {blob} AS blob") == [{"blob": "dead"}]
    twice = run_query(url, "SELECT 1 AS a, 2 AS a")
    assert render(twice, "csv") == b"a,a\n1,2\n"
    for style in ("json", "parquet"):
        with pytest.raises(UsageError, match=f"two columns of the query are named 'a'; rename one with AS for {style}"):
            render(twice, style)


def test_pairs_that_are_in_files_alone_are_pointed_to(store: JobStore, url: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('[study]\nname = "wide"\n[dataset]\nkind = "digits"\n')
    assert pairs_in_files(url, "complementarity") == 0
    store.add_study("wide", {})
    store.plan("wide", [synthetic.planned("all_pairs", AllPairsSpec(dataset="d", models=("a", "b")))])
    (claim,) = store.claim("worker")
    store.finish(claim, {"all_pairs": [{"dataset": "d", "n_models": 40, "n_pairs": 1560, "file": "runs/p.parquet"}]})
    for query in ("complementarity", "flip-identities", "SELECT * FROM complementarity"):
        done = kt_study(tmp_path, "query", query, "--db", url, "--format", "csv")
        assert "1,560 pairs of --complementarity-pairs all are not in the database but in parquet" in done.stderr
        assert 'kt_study.load("results/").all_pairs' in done.stderr
        assert "1,560" not in done.stdout
    for query in ("success-rate", "SELECT 'complementarity' AS word", "SELECT 1 -- complementarity"):
        assert pairs_in_files(url, query) == 0


def test_a_query_does_not_wait_for_a_writer(store: JobStore, url: str, world: World) -> None:
    """WAL readers go on while a worker holds the write lock."""
    fill(store, world, done=2)
    if not url.startswith("sqlite"):
        return
    with sqlite3.connect(parse_url(url).path, isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert rows(url, "SELECT COUNT(*) AS n FROM evaluations") == [{"n": 2}]
        writer.execute("ROLLBACK")
