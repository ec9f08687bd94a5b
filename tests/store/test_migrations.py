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
from kt_study.database import migrate, migrations_folder, parse_url, sqlalchemy_url
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
    return sa.create_engine(sqlalchemy_url(parse_url(url)), poolclass=sa.NullPool)


def revision_of(url: str) -> str:
    with engine_of(url).connect() as connection:
        return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())


def test_the_program_knows_its_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    assert ScriptDirectory.from_config(config).get_heads() == [database.REVISION]


def test_the_migrations_make_the_tables_that_the_program_knows(empty: str) -> None:
    open_store(empty, create=True)
    with engine_of(empty).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_an_old_database_comes_forward_with_all_it_holds(old: str) -> None:
    assert revision_of(old) == "0001"
    with pytest.raises(DatabaseError, match=r"schema 0001, older than this program's .*`kt-study plan`"):
        open_store(old)
    store = open_store(old, create=True)
    assert revision_of(old) == database.REVISION
    with engine_of(old).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    assert {found.spec["number"]: str(found.state) for found in store.jobs()} == {
        1: "done", 2: "running", 3: "ready", 4: "blocked", 5: "failed",
    }  # fmt: skip
    assert [found["acc"] for found in result_rows(store)] == [93.5]
    assert store.study("old") == {"seed": 7}
    assert store.failures()[0].group == "abc"


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
