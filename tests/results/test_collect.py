"""collect: every row once, in files whose bytes depend on the rows alone, and only what is new is written."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

import kt_study
from kt_study.errors import DatabaseError, DiskError, UsageError
from kt_study.parquet import PARQUET_TABLES, arrow_schema, parquet_columns
from kt_study.records import AllPairsSpec, LogitsSpec
from kt_study.settings import Settings
from kt_study.store import JobStore, Selection, open_store
from orchestrator.results import collect as module
from orchestrator.results.collect import collect, study_folder
from orchestrator.results.rows import MANY_ROWS
from tests.results import synthetic
from tests.results.synthetic import World, fill, finish, make_world, outcome, planned


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(models=6, n=300, classes=12)


def files(out: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".collect.lock"
    }


def parquet_files(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(out).items() if name.endswith(".parquet")}


def test_every_row_arrives_as_it_was_reported(store: JobStore, url: str, world: World, tmp_path: Path) -> None:
    fill(store, world)
    out = tmp_path / "results"
    collected = collect(url, out)
    expected: dict[str, list[dict[str, Any]]] = {}
    for job in store.jobs():
        for table, rows in outcome(world, job.kind, job.spec).items():
            expected.setdefault(table, []).extend(rows)
    for table, rows in expected.items():
        frame = pq.read_table(out / table)
        assert frame.schema.equals(arrow_schema(table), check_metadata=True)
        got = [{k: v for k, v in row.items() if v is not None} for row in frame.to_pylist()]
        assert [{k: v for k, v in row.items() if k not in ("study", "job_id")} for row in got] == [
            {k: v for k, v in row.items() if v is not None} for row in rows
        ]
        assert {row["study"] for row in got} == {"synthetic"}
        assert collected.rows[table] == len(rows)


def test_planned_pairs_models_jobs_and_attempts(store: JobStore, url: str, world: World, tmp_path: Path) -> None:
    fill(store, world, done=40)
    failed = synthetic.fail_one(store)
    collect(url, tmp_path / "results")
    found = kt_study.load(tmp_path / "results")
    jobs = {job.id: job for job in store.jobs()}
    assert list(found.jobs["job_id"]) == sorted(jobs)
    assert dict(zip(found.jobs["job_id"], found.jobs["state"], strict=True)) == {
        i: str(j.state) for i, j in jobs.items()
    }
    assert Counter(found.pairs["role"]) == Counter(j.kind for j in jobs.values() if j.kind != "logits")
    pair = next(row for row in found.pairs.to_dict("records") if row["multi_teacher"] == "soup")
    spec = jobs[pair["job_id"]].spec
    assert pair["teacher_key"] == "+".join(spec["teachers"])
    assert pair["teacher"] == "+".join(world.name(key) for key in spec["teachers"])
    assert list(found.models["model"]) == sorted(model.name for model in world.models)
    evaluated = found.evaluations.set_index("model")["acc"]
    accuracies = found.models.set_index("model")["acc"].dropna()
    assert accuracies.to_dict() == evaluated.to_dict()
    assert len(found.attempts) == 41
    last = found.attempts[found.attempts["job_id"] == failed.job_id].iloc[0]
    assert (last["outcome"], last["error"], last["host"]) == ("failed", "DataError", "node1")


def test_the_two_databases_give_the_same_bytes(world: World, tmp_path: Path, postgres_url: str) -> None:
    urls = {"a": f"sqlite:///{tmp_path}/one.db", "b": postgres_url}
    for name, url in urls.items():
        fill(open_store(url, create=True), world)
        collect(url, tmp_path / name)
    one, other = (parquet_files(tmp_path / name) for name in urls)
    timed = ("jobs/", "attempts/")
    assert {k: v for k, v in one.items() if not k.startswith(timed)} == {
        k: v for k, v in other.items() if not k.startswith(timed)
    }
    assert set(one) == set(other)


def test_in_steps_or_at_once_the_bytes_are_the_same(
    store: JobStore, url: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.results.rows.JOBS_A_PART", 16)
    monkeypatch.setitem(MANY_ROWS, "class_flips", 8)
    monkeypatch.setitem(MANY_ROWS, "transfer_epochs", 8)
    fill(store, world, done=10)
    while True:
        collect(url, tmp_path / "steps")
        if not finish(store, world, 23):
            break
    collect(url, tmp_path / "once")
    assert parquet_files(tmp_path / "steps") == parquet_files(tmp_path / "once")
    assert len(list((tmp_path / "once" / "complementarity" / "synthetic").iterdir())) > 1


def test_a_second_collect_writes_nothing_and_a_third_only_what_is_new(
    store: JobStore, url: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.results.rows.JOBS_A_PART", 16)
    out = tmp_path / "results"
    fill(store, world, done=30)
    assert collect(url, out).written
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert collect(url, out).written == ()
    finish(store, world, 1)
    written = collect(url, out).written
    changed = {path for path in out.rglob("*.parquet") if path.stat().st_mtime_ns != before.get(path)}
    assert set(written) == changed
    tables = {path.parent.parent.name for path in written}
    assert tables == {"complementarity", "class_flips", "jobs", "pairs", "attempts"}
    assert len([path for path in written if path.parent.parent.name == "complementarity"]) == 1


def test_a_job_that_commits_late_is_not_lost(store: JobStore, url: str, world: World, tmp_path: Path) -> None:
    """A higher job and a higher row number were collected before: a high-water mark would pass over this one."""
    out = tmp_path / "results"
    fill(store, world, done=0)
    early, *others = store.claim("worker", limit=20)
    store.finish_many([(claim, outcome(world, claim.kind, claim.spec)) for claim in others])
    collect(url, out)
    store.finish(early, outcome(world, early.kind, early.spec))
    collect(url, out)
    assert early.job_id in set(kt_study.load(out).jobs.query("state == 'done'")["job_id"])
    results = pd.concat([kt_study.load(out).table(t) for t in ("evaluations", "complementarity", "transfers")])
    assert early.job_id in set(results["job_id"])


def test_a_study_that_comes_to_share_an_old_job_gets_its_rows(
    store: JobStore, url: str, world: World, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    fill(store, world, study="first")
    collect(url, out)
    store.add_study("second", {})
    specs = [planned_again for planned_again in synthetic.jobs_of(world, ("kl",), 1, Settings(epochs=3))]
    store.plan("second", specs)
    assert finish(store, world) == 0
    collected = collect(url, out)
    assert collected.studies == ("first", "second")
    second = kt_study.load(out, study="second")
    assert len(second.transfers) == sum(job.kind == "transfer" for job in specs)
    assert set(second.transfers["objective"]) == {"kl"}
    assert set(kt_study.load(out).transfers["study"]) == {"first", "second"}


def test_one_study_is_collected_alone_and_an_unknown_one_is_refused(
    store: JobStore, url: str, world: World, tmp_path: Path
) -> None:
    fill(store, world, study="first", students=1)
    store.add_study("second", {})
    assert collect(url, tmp_path / "results", "second").rows["transfers"] == 0
    assert not (tmp_path / "results" / "transfers").exists()
    with pytest.raises(UsageError, match=r"no study 'third'.*first, second"):
        collect(url, tmp_path / "results", "third")


def test_a_lost_or_torn_file_is_written_again(store: JobStore, url: str, world: World, tmp_path: Path) -> None:
    out = tmp_path / "results"
    fill(store, world)
    collect(url, out)
    whole = parquet_files(out)
    (out / "transfers" / "synthetic" / "part-00000.parquet").unlink()
    torn = out / "class_flips" / "synthetic" / "part-00000.parquet"
    torn.write_bytes(torn.read_bytes()[:100])
    assert len(collect(url, out).written) == 2
    assert parquet_files(out) == whole
    (out / "_collected.json").write_text("{not json")
    collect(url, out)
    assert parquet_files(out) == whole


def test_a_new_database_of_the_same_study_replaces_the_rows(tmp_path: Path) -> None:
    """Also where it has as many rows with the same numbers."""
    out = tmp_path / "results"
    seen = []
    for seed, done in ((0, None), (1, None), (1, 5)):
        url = f"sqlite:///{tmp_path}/{len(seen)}.db"
        fill(open_store(url, create=True), make_world(models=4, n=100, seed=seed), students=1, done=done)
        collect(url, out)
        collect(url, tmp_path / f"alone-{len(seen)}")
        assert parquet_files(out) == parquet_files(tmp_path / f"alone-{len(seen)}")
        seen.append(parquet_files(out))
    assert seen[0].keys() == seen[1].keys() > seen[2].keys()
    assert seen[0]["transfers/synthetic/part-00000.parquet"] != seen[1]["transfers/synthetic/part-00000.parquet"]


def test_a_reader_never_sees_half(store: JobStore, url: str, world: World, tmp_path: Path) -> None:
    """A collect that dies while writing leaves every file as it was, and nothing of its own where readers look."""
    out = tmp_path / "results"
    fill(store, world, done=40)
    collect(url, out)
    before = files(out)
    finish(store, world)
    real, calls = module._with_study, []

    def dying(name: str, schema: pa.Schema, batches: Any) -> Any:
        calls.append(name)
        for batch in real(name, schema, batches):
            yield batch
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_with_study", dying)
        with pytest.raises(KeyboardInterrupt):
            collect(url, out)
    assert calls
    assert files(out) == before
    collect(url, out)
    assert len(kt_study.load(out).transfers) == sum(job.kind == "transfer" for job in store.jobs())


def test_children_come_before_their_rows(store: JobStore, url: str, world: World, tmp_path: Path) -> None:
    fill(store, world)
    order: list[str] = []
    collect(url, tmp_path / "results", progress=lambda table, _: order.append(table))
    assert order.index("class_flips") < order.index("complementarity")
    assert order.index("transfer_epochs") < order.index("transfers")
    assert order[-1] == "attempts"


def test_all_pairs_files_become_rows(store: JobStore, url: str, world: World, tmp_path: Path) -> None:
    keys = [model.key for model in world.models]
    rows = [synthetic.complementarity(world, t, s)[0] for t in keys for s in keys if t != s]
    (tmp_path / "runs").mkdir()
    pd.DataFrame(rows).drop(columns="kappa").to_parquet(tmp_path / "runs" / "pairs.parquet")
    store.add_study("wide", {})
    store.add_models(world.models)
    store.plan("wide", [planned("all_pairs", AllPairsSpec(dataset="data", models=tuple(keys)))])
    (claim,) = store.claim("worker")
    made = {"dataset": "synthetic", "n_models": len(keys), "n_pairs": len(rows), "file": "runs/pairs.parquet"}
    store.finish(claim, {"all_pairs": [made]})
    out = tmp_path / "elsewhere" / "results"
    with pytest.raises(DiskError, match=r"runs/pairs\.parquet: the pairs of job 1 are not there"):
        collect(url, out)
    assert collect(url, out, folder=tmp_path).rows["all_pairs"] == len(rows)
    found = kt_study.load(out).all_pairs
    assert list(found["rho_pos"]) == [row["rho_pos"] for row in rows]
    assert found["kappa"].isna().all()
    assert list(found.columns)[:3] == ["study", "job_id", "dataset"]
    assert set(kt_study.load(out).models["model_key"]) == set(keys)


def test_the_models_parameters_are_those_measured_else_those_known(store: JobStore, url: str, tmp_path: Path) -> None:
    world = make_world(models=3, n=50)
    built, known, unknown = (
        replace(model, params=params) for model, params in zip(world.models, (None, 7.5, None), strict=True)
    )
    store.add_study("built", {})
    store.add_models([built, known, unknown])
    specs = [LogitsSpec(dataset="data", model=model.key, split="val") for model in (built, known, unknown)]
    store.plan("built", [planned("logits", spec) for spec in specs])
    for claim in store.claim("worker", limit=3):
        row = synthetic.evaluation(world, claim.spec["model"])
        store.finish(claim, {"evaluations": [row | ({"params": 0.25} if row["model_key"] == built.key else {})]})
    collect(url, tmp_path / "results")
    found = kt_study.load(tmp_path / "results").models.set_index("model_key")["params"]
    assert {key: None if pd.isna(params) else params for key, params in found.items()} == {
        built.key: 0.25, known.key: 7.5, unknown.key: None,
    }  # fmt: skip


def test_text_of_all_kinds_survives(store: JobStore, url: str, tmp_path: Path) -> None:
    """Quotes, commas, line ends, the empty string and the missing one, through CSV on PostgreSQL."""
    texts = ['a "quoted", one', "two\nlines\r\nand three", "", None, "NULL", "NaN", "\\N", "ü ∑ 🙂", "nan", "t", "#N/A"]
    store.add_study("words", {})
    store.plan("words", [planned("train", AllPairsSpec(dataset=str(i), models=())) for i in range(len(texts))])
    claims = sorted(store.claim("worker", limit=len(texts)), key=lambda claim: claim.job_id)
    store.finish_many([(c, {"trainings": [{"model": text, "n": 1}]}) for c, text in zip(claims, texts, strict=True)])
    collect(url, tmp_path / "results")
    assert pq.read_table(tmp_path / "results" / "trainings")["model"].to_pylist() == texts


def test_numbers_survive_to_the_last_bit(store: JobStore, url: str, tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 1e-300, 5e-324, 1.7976931348623157e308, float("inf"), float("nan"), None, 2.0**53 + 2]
    store.add_study("numbers", {})
    store.plan("numbers", [planned("train", AllPairsSpec(dataset=str(i), models=())) for i in range(len(values))])
    claims = sorted(store.claim("worker", limit=len(values)), key=lambda claim: claim.job_id)
    rows = [{"trainings": [{"loss": value, "n": 2**53 + 1, "epochs": None}]} for value in values]
    store.finish_many(list(zip(claims, rows, strict=True)))
    collect(url, tmp_path / "results")
    found = pq.read_table(tmp_path / "results" / "trainings")
    expected = [None if value is None or value != value else value for value in values]
    assert [repr(value) for value in found["loss"].to_pylist()] == [repr(value) for value in expected]
    assert set(found["n"].to_pylist()) == {2**53 + 1}
    assert set(found["epochs"].to_pylist()) == {None}


def test_flags_survive(store: JobStore, url: str, world: World, tmp_path: Path) -> None:
    fill(store, world, students=1)
    collect(url, tmp_path / "results")
    found = kt_study.load(tmp_path / "results").transfers
    assert str(found["diverged"].dtype) == "boolean"
    assert not found["diverged"].any()
    assert found["channels_last"].notna().all()


@pytest.mark.parametrize("study", ["paper", "2024", "my study=2, ü", ".hidden", "_x"])
def test_other_libraries_read_it(world: World, study: str, tmp_path: Path) -> None:
    url, out = f"sqlite:///{tmp_path}/kt-study.db", tmp_path / "results"
    fill(open_store(url, create=True), world, study=study, students=1)
    collect(url, out)
    folder = out / "transfers"
    columns = [column.name for column in parquet_columns("transfers")]
    frames = {
        "kt_study": kt_study.load(out).transfers,
        "pandas": pd.read_parquet(folder),
        "pyarrow": pq.read_table(folder).to_pandas(),
        "dataset": ds.dataset(folder).to_table().to_pandas(),
        "polars": pl.read_parquet(folder).to_pandas(),
        "duckdb": duckdb.sql(f"SELECT * FROM '{folder}/**/*.parquet' ORDER BY job_id").df(),
    }
    for name, frame in frames.items():
        assert list(frame.columns) == columns, name
        assert set(frame["study"]) == {study}, name
        assert list(frame["delta_transf"]) == list(frames["kt_study"]["delta_transf"]), name


def test_files_are_zstd_with_units_and_exact_row_groups(
    store: JobStore, url: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROUP_ROWS", 50)
    fill(store, world)
    collect(url, tmp_path / "results")
    path = study_folder(tmp_path / "results", "class_flips", "synthetic") / "part-00000.parquet"
    stored = pq.ParquetFile(path).metadata
    groups = [stored.row_group(i) for i in range(stored.num_row_groups)]
    assert [group.num_rows for group in groups[:-1]] == [50] * (len(groups) - 1)
    assert {groups[0].column(i).compression for i in range(stored.num_columns)} == {"ZSTD"}
    assert pq.read_schema(path).field("n").metadata[b"unit"] == b"samples"


def test_two_collects_do_not_write_at_once(store: JobStore, url: str, tmp_path: Path) -> None:
    store.add_study("empty", {})
    collect(url, tmp_path / "results")
    with (tmp_path / "results" / ".collect.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DiskError, match="another collect is writing here"):
            collect(url, tmp_path / "results")


def test_no_database_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"none\.db.*kt-study plan"):
        collect(f"sqlite:///{tmp_path}/none.db", tmp_path / "results")
    (tmp_path / "text.db").write_text("not a database, whatever its name says " * 100)
    with pytest.raises(DatabaseError, match=r"text\.db"):
        collect(f"sqlite:///{tmp_path}/text.db", tmp_path / "results")


def test_a_newer_database_is_refused(store: JobStore, url: str, tmp_path: Path) -> None:
    import sqlalchemy as sa

    from kt_study.database import parse_url, sqlalchemy_engine

    store.add_study("empty", {})
    with sqlalchemy_engine(parse_url(url)).begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="newer than this program"):
        collect(url, tmp_path / "results")


def test_cancelled_and_reopened_jobs_are_seen(store: JobStore, url: str, world: World, tmp_path: Path) -> None:
    out = tmp_path / "results"
    fill(store, world, done=10)
    collect(url, out)
    store.cancel(Selection(study="synthetic"))
    collect(url, out)
    assert Counter(kt_study.load(out).pairs["state"])["cancelled"] > 0


def test_load_says_what_is_there(tmp_path: Path, world: World) -> None:
    with pytest.raises(UsageError, match="no collected results here"):
        kt_study.load(tmp_path)
    url = f"sqlite:///{tmp_path}/kt-study.db"
    fill(open_store(url, create=True), world, students=1)
    collect(url, tmp_path / "results")
    found = kt_study.load(tmp_path / "results")
    with pytest.raises(AttributeError, match=r"no table 'transfer' .* transfers"):
        _ = found.transfer
    assert {"transfers", "models"} <= set(dir(found))
    assert found.trainings.empty
    assert list(found.trainings.columns) == [column.name for column in parquet_columns("trainings")]
    for table in PARQUET_TABLES:
        expected = {"int": "Int64", "float": "float64", "bool": "boolean"}
        for column in parquet_columns(table):
            assert column.type == "text" or str(found.table(table)[column.name].dtype) == expected[column.type]


def test_load_and_collect_import_no_heavy_module() -> None:
    code = (
        "import sys, orchestrator.results.collect, orchestrator.results.query, kt_study.loading;"
        "print([m for m in ('pandas', 'pyarrow', 'torch', 'numpy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_what_collect_counts_is_there(store: JobStore, url: str, world: World, tmp_path: Path) -> None:
    out = tmp_path / "results"
    fill(store, world, students=1)
    for table, count in collect(url, out).rows.items():
        assert count == kt_study.load(out).arrow(table).num_rows


FOREIGN = {
    "another manifest": "_collected.json",
    "a part": "transfers/synthetic/part-00000.parquet",
    "a part that would go": "class_flips/synthetic/part-00031.parquet",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_others_are_left_alone_and_said(
    kind: str, store: JobStore, url: str, world: World, tmp_path: Path
) -> None:
    fill(store, world, done=3)
    theirs = tmp_path / "shared" / FOREIGN[kind]
    theirs.parent.mkdir(parents=True)
    theirs.write_text('{"by": "another program"}')
    for _ in range(2):
        with pytest.raises(
            UsageError, match=rf"{theirs} is there already and kt-study did not make it; give another --out"
        ):
            collect(url, tmp_path / "shared")
    assert [path for path in (tmp_path / "shared").rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_text() == '{"by": "another program"}'


def test_files_of_others_that_are_in_no_way_stay(store: JobStore, url: str, world: World, tmp_path: Path) -> None:
    fill(store, world, done=3)
    out = tmp_path / "shared"
    theirs = [
        "transfers.parquet",
        "transfers/other/part-00000.parquet",
        "transfers/synthetic/part-7.snappy.parquet",
        "notes",
    ]
    for name in theirs:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    collect(url, out)
    assert collect(url, out).written == ()
    (out / ".collect.lock").write_text("kept")
    fill(store, world)
    collect(url, out)
    assert {name: (out / name).read_text() for name in [*theirs, ".collect.lock"]} == {
        **{name: name for name in theirs},
        ".collect.lock": "kept",
    }
