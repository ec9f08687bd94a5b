"""Forward from stored databases of the first schema, on both engines; newer ones are refused."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from kt_study import database
from kt_study.database import migrate, migrations_folder, parse_url, sqlalchemy_engine
from kt_study.errors import DatabaseError
from kt_study.store import Selection, open_store
from kt_study.tables import metadata
from tests.postgres import Server
from tests.store.making import claim_one, job, plan, result_rows, row

DATA = Path(__file__).parent / "data"
NewDatabase = Callable[[], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database without tables."""
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgres_server")
        return server.database("template0")
    return f"sqlite:///{tmp_path / 'kt-study.db'}"


@pytest.fixture
def old(empty: str) -> str:
    """URL of the stored database of schema 0001, as the program of that time left it: see data/README.md."""
    address = parse_url(empty)
    if address.is_sqlite:
        database.prepare_sqlite(address.path)
        connection = database.connect_sqlite(address.path)
        connection.executescript((DATA / "v0001.sqlite.sql").read_text())
        connection.close()
    else:
        with database.connect_postgresql(address) as server:
            server.execute((DATA / "v0001.postgresql.sql").read_bytes())
    return empty


def engine_of(url: str) -> sa.Engine:
    return sqlalchemy_engine(parse_url(url))


def revision_of(url: str) -> str:
    with engine_of(url).connect() as connection:
        return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    return ScriptDirectory.from_config(config)


ATTEMPT = "job_id, fence, worker, started_at, ended_at, outcome, progress, error, message, traceback, error_group"
# What users would miss, by table; the attempts that have ended, for the first schema knew no others.
HELD = {
    "studies": "name, spec, created_at",
    "jobs": "id, kind, digest, spec, state, priority, estimate_s, teacher, student, needs_open, attempts, crashes, fence, "
    "not_before, worker, lease_until, created_at",
    "job_needs": "job_id, needs_id",
    "study_jobs": "study_id, job_id",
    "workers": "id, host, pid, started_at, beat_at",
    "evaluations": "id, job_id, dataset, model, n, acc",
    "attempts WHERE ended_at IS NOT NULL": ATTEMPT,
}


def holdings(url: str) -> dict[str, list[tuple[object, ...]]]:
    with engine_of(url).connect() as connection:
        return {
            table: sorted(tuple(row) for row in connection.exec_driver_sql(f"SELECT {columns} FROM {table}"))
            for table, columns in HELD.items()
        }


def test_the_program_knows_its_newest_migration() -> None:
    assert scripts().get_heads() == [database.newest_revision()]


def test_the_migrations_make_the_tables_that_the_program_knows(empty: str) -> None:
    open_store(empty, create=True)
    assert differences(empty) == []


def test_the_migrations_make_the_indexes_that_the_program_knows(tmp_path: Path) -> None:
    """On SQLite, down to their expressions and conditions."""
    migrated, made = (f"sqlite:///{tmp_path / name}.db" for name in ("migrated", "made"))
    open_store(migrated, create=True)
    metadata.create_all(sa.create_engine(made))
    assert sqlite_indexes(migrated) == sqlite_indexes(made)
    assert any("jobs_running" in index for index in sqlite_indexes(made))


def differences(url: str) -> list[object]:
    """What the program knows and the database lacks, or the other way round; alembic cannot read SQLite's indexes."""
    with engine_of(url).connect() as connection:
        dialect = connection.dialect.name

        def is_comparable(_: sa.schema.SchemaItem, __: str | None, kind: str, *___: object) -> bool:
            return kind != "index" or dialect == "postgresql"

        options = {"compare_type": True, "include_object": is_comparable}
        found: list[object] = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        return found


def sqlite_indexes(url: str) -> set[str]:
    """The definitions of the indexes; none of PostgreSQL's."""
    if not parse_url(url).is_sqlite:
        return set()
    with engine_of(url).connect() as connection:
        told = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE type = 'index'")
        return {" ".join(text.split()) for (text,) in told if text}


def test_an_old_database_comes_forward_with_all_it_holds(old: str) -> None:
    assert revision_of(old) == "0001"
    with pytest.raises(DatabaseError, match=r"schema 0001, older than this program's .*`kt-study plan`"):
        open_store(old)
    store = open_store(old, create=True)
    assert revision_of(old) == database.newest_revision()
    assert differences(old) == []
    assert {found.spec["number"]: str(found.state) for found in store.jobs()} == {
        1: "done", 2: "running", 3: "ready", 4: "blocked", 5: "failed",
    }  # fmt: skip
    assert [found["acc"] for found in result_rows(store)] == [93.5]
    assert store.study("old") == {"seed": 7}
    assert store.failures()[0].group == "abc"


def test_each_revision_keeps_what_the_one_before_held(old: str) -> None:
    before = holdings(old)
    assert {table: len(rows) for table, rows in before.items()} == {
        "studies": 1, "jobs": 5, "job_needs": 2, "study_jobs": 5, "workers": 1, "evaluations": 1,
        "attempts WHERE ended_at IS NOT NULL": 2,
    }  # fmt: skip
    for script in reversed(list(scripts().walk_revisions("0001", "heads"))):
        migrate(parse_url(old), script.revision)
        assert revision_of(old) == script.revision
        assert holdings(old) == before, script.revision


def test_attempts_that_move_into_their_jobs_rows_say_what_they_said(old: str) -> None:
    """Revision 0004, over attempts as the program of 0003 left them: one that brought the result after one that did not,
    with progress; one released; and one that runs."""
    migrate(parse_url(old), "0003")
    with engine_of(old).begin() as connection:
        for statement in (
            "UPDATE jobs SET fence = 2, attempts = 2, worker = 'w2' WHERE id = 1",
            "UPDATE attempts SET fence = 2, worker = 'w2', progress = '{\"epoch\":9}' WHERE job_id = 1",
            "UPDATE jobs SET fence = 3, started_at = 1700000050.25 WHERE id = 2",
        ):
            connection.exec_driver_sql(statement)
        for values in (
            "(10, 1, 1, 'w1', 1700000001.5, 1700000002.5, 'retried', NULL, 'OSError', 'disk', 'tb', 'disk')",
            "(11, 2, 1, 'w1', 1700000003.5, 1700000004.5, 'released', '{\"epoch\":1}', NULL, 'SIGTERM', NULL, NULL)",
            "(12, 2, 2, 'w1', 1700000005.5, 1700000006.5, 'expired', NULL, 'WorkerDied', 'no word', '', 'WorkerDied')",
        ):
            connection.exec_driver_sql(f"INSERT INTO attempts (id, {ATTEMPT}) VALUES {values}")
    before = holdings(old)["attempts WHERE ended_at IS NOT NULL"]
    assert len(before) == 5
    store = open_store(old, create=True)
    assert holdings(old)["attempts WHERE ended_at IS NOT NULL"] == before
    running = store.job(2).attempts
    assert [(each.fence, each.outcome) for each in running] == [(1, "released"), (2, "expired"), (3, None)]
    assert (running[-1].started_at, running[-1].ended_at) == (1700000050.25, None)
    done = store.job(1).attempts
    assert [(each.outcome, each.worker) for each in done] == [("retried", "w1"), ("done", "w2")]
    assert done[-1].progress is not None and done[-1].progress.epoch == 9
    assert open_store(old).failures()[0].group == "abc"


def test_pairs_of_before_get_the_number_of_classes_of_their_data_set(old: str) -> None:
    """Revision 0007, over rows of two data sets and one that was never recorded."""
    migrate(parse_url(old), "0006")
    with engine_of(old).begin() as connection:
        for key, record in {"k10": '{"n_classes":10}', "k1000": '{"n_classes":1000}'}.items():
            connection.execute(
                sa.text("INSERT INTO datasets VALUES (:key, :key, :record)"), {"key": key, "record": record}
            )
        for job_id, key in {1: "k10", 2: "k1000", 3: "gone"}.items():
            connection.exec_driver_sql(
                f"INSERT INTO complementarity (id, job_id, dataset_key) VALUES ({job_id}, {job_id}, '{key}')"
            )
    migrate(parse_url(old))
    with engine_of(old).connect() as connection:
        rows = connection.exec_driver_sql("SELECT dataset_key, n_classes FROM complementarity").all()
    assert {key: classes for key, classes in rows} == {"k10": 10, "k1000": 1000, "gone": None}


def test_jobs_of_before_can_be_claimed_and_free_their_dependents(old: str) -> None:
    """Revision 0010, over jobs in each state, one of them paused, with the triggers that did this before."""
    migrate(parse_url(old), "0009")
    with engine_of(old).begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (id, kind, digest, spec, state, paused, fence, needed, needs_open, created_at, changed_at) "
            "VALUES (6, 'logits', 'd6', '{}', 'ready', true, 4, false, 0, 0, 0), "
            "(7, 'logits', 'd7', '{}', 'ready', false, 4, true, 0, 0, 0), "
            "(8, 'logits', 'd8', '{}', 'blocked', false, 0, false, 1, 0, 0)"
        )
        connection.exec_driver_sql("INSERT INTO job_needs VALUES (8, 7)")
    store = open_store(old, create=True)
    claims = store.claim("worker", limit=9)
    assert {claim.job_id for claim in claims} == {3, 7}
    assert store.job(8).state == "blocked"
    store.finish_many([(claim, {}) for claim in claims])
    assert (store.job(8).state, store.job(8).needs_open) == ("ready", 0)
    assert {claim.job_id for claim in store.claim("worker", limit=9)} == {8}


def test_an_old_database_goes_on_working(old: str) -> None:
    store = open_store(old, create=True)
    assert store.expire(grace_s=0.0) == 1  # the lease of job 2 ended long ago
    for _ in range(2):
        store.finish(claim_one(store, kinds=["logits"]), row())
    assert claim_one(store).spec["number"] == 4  # which needed the two
    assert store.retry(Selection(error_group="abc")) == 1
    plan(store, job(6, needs=[job(5)]))
    assert store.job(6).state == "blocked"


def test_a_newer_database_is_refused(url: str) -> None:
    with engine_of(url).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9000'")
    for create in (False, True):
        with pytest.raises(DatabaseError, match=r"schema 9000, newer than this program's .*; upgrade kt-study"):
            open_store(url, create=create)
    assert revision_of(url) == "9000"


def test_several_make_the_tables_at_once(empty: str) -> None:
    fork = multiprocessing.get_context("fork")
    makers = [fork.Process(target=open_store, args=(empty,), kwargs={"create": True}) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0, 0]
    assert open_store(empty).counts() == {}


def test_a_migration_that_fails_changes_nothing(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(parse_url(empty), "0001")
    monkeypatch.setattr(sa.Index, "__init__", _fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        migrate(parse_url(empty))
    assert revision_of(empty) == "0001"
    assert "ticket" not in {column["name"] for column in sa.inspect(engine_of(empty)).get_columns("jobs")}


def _fail(*_: object, **__: object) -> None:
    raise RuntimeError("in the middle")
