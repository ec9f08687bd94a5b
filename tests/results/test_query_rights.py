"""query can do no harm: nothing is written, no rights are lent, no worker is held up, on both databases."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kt_study.database import connect_postgresql, parse_url
from kt_study.errors import UsageError
from kt_study.store import JobStore, open_store
from orchestrator.results.query import run_query
from tests.cli import refused
from tests.documentation.blocks import ROOT
from tests.postgres import Server
from tests.results import synthetic
from tests.results.synthetic import fill, make_world
from tests.store.making import wait_until

WORLD = make_world(models=6, n=300, classes=12)
REFUSED = r"the database refuses the query|the query is refused"


@pytest.fixture
def filled(store: JobStore, url: str) -> str:
    fill(store, WORLD)
    return url


def rows(url: str, query: str) -> list[dict[str, Any]]:
    answer = run_query(url, query)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


WRITES = {
    "insert": "INSERT INTO studies(name, spec, created_at) VALUES ('x', '', 0)",
    "update": "UPDATE jobs SET state = 'done'",
    "delete": "DELETE FROM jobs",
    "drop": "DROP TABLE jobs",
    "create": "CREATE TABLE x (y int)",
    "temporary": "CREATE TEMP TABLE x (y int)",
    "into": "SELECT * INTO x FROM jobs",
    "in a with": "WITH x AS (DELETE FROM jobs RETURNING id) SELECT * FROM x",
    "two statements": "SELECT 1; DROP TABLE jobs",
    "end of the transaction": "SELECT 1; COMMIT; DROP TABLE jobs",
    "begin": "BEGIN",
    "attach": "ATTACH DATABASE '{tmp}/stolen.db' AS stolen",
    "pragma": "PRAGMA writable_schema=1",
    "journal": "PRAGMA journal_mode=DELETE",
    "vacuum into": "VACUUM INTO '{tmp}/stolen.db'",
    "load_extension": "SELECT load_extension('x')",
    "copy to a file": "COPY jobs TO '{tmp}/stolen.csv'",
    "copy to a program": "COPY jobs TO PROGRAM 'touch {tmp}/stolen'",
    "copy from a program": "COPY jobs FROM PROGRAM 'touch {tmp}/stolen'",
    "do": "DO $$ BEGIN DELETE FROM jobs; END $$",
    "set role": "SET ROLE postgres",
    "for update": "SELECT id FROM jobs FOR UPDATE",
}

POSTGRESQL = {
    "pg_read_file": "SELECT pg_read_file('/etc/passwd')",
    "pg_read_binary_file": "SELECT pg_read_binary_file('/etc/passwd')",
    "pg_ls_dir": "SELECT pg_ls_dir('/')",
    "pg_stat_file": "SELECT pg_stat_file('PG_VERSION')",
    "lo_import": "SELECT lo_import('/etc/passwd')",
    "lo_create": "SELECT lo_create(0)",
    "passwords": "SELECT * FROM pg_authid",
    "back to the superuser": "SELECT set_config('role', 'none', true)",
    "back to the superuser, then a file": (
        "SELECT set_config('role', 'none', true), query_to_xml('SELECT pg_read_file(''/etc/passwd'')', true, true, '')"
    ),
    "back to writing": "SELECT set_config('transaction_read_only', 'off', false)",
    "nested reset": "SELECT query_to_xml('RESET ROLE', true, true, '')",
    "nested write": "SELECT query_to_xml('DELETE FROM jobs', true, true, '')",
    "nested copy": "SELECT query_to_xml('COPY jobs TO PROGRAM ''true''', true, true, '')",
    "a sequence": "SELECT nextval('jobs_id_seq')",
    "other sessions": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity",
    "the server": "SELECT pg_reload_conf()",
    "the end of the cursor": "SELECT 1 $$; DROP TABLE jobs; --$$",
    "an advisory lock": "SELECT pg_advisory_lock(5730412)",
    "an advisory lock in other words": 'SELECT "pg_catalog" . "pg_advisory_lock" /* /* */ */ (5730412)',
    "an advisory lock behind a string": "SELECT E'\\'', pg_advisory_lock(5730412), ''",
    "an advisory lock in escapes": "SELECT U&\"pg!005fadvisory!005flock\" UESCAPE '!' (5730412)",
    "other queries": "SELECT pg_cancel_backend(pid) FROM pg_stat_activity",
    "a message": "SELECT pg_notify('x', 'y')",
    "an effect within a text": "SELECT * FROM ts_stat('SELECT pg_advisory_lock(5730412)::text::tsvector')",
    "a function of the user's": "SELECT with_effects()",
    "a sequence set": "SELECT setval('jobs_id_seq', 1)",
    "a lock on a table": "LOCK TABLE jobs",
    "a backend's end": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = session_user AND pid <> pg_backend_pid()",
    "a setting": "SELECT set_config('statement_timeout', '0', false)",
}


def contents(url: str) -> list[Any]:
    """Every job and study."""
    tables = ("SELECT * FROM jobs ORDER BY id", "SELECT * FROM studies ORDER BY id")
    return [run_query(url, sql).rows for sql in tables]


def test_nothing_can_be_written(filled: str, tmp_path: Path) -> None:
    before = contents(filled)
    for name, sql in WRITES.items():
        with pytest.raises(UsageError, match=REFUSED) as caught:
            run_query(filled, sql.format(tmp=tmp_path))
        assert "\n" not in str(caught.value), name
    assert contents(filled) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("stolen")]


@pytest.mark.parametrize("attack", POSTGRESQL)
def test_postgresql_gives_no_files_and_no_rights(attack: str, postgres_filled: str) -> None:
    with connect_postgresql(parse_url(postgres_filled)) as connection:
        connection.execute("CREATE OR REPLACE FUNCTION with_effects() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        with pytest.raises(UsageError, match=REFUSED):
            run_query(postgres_filled, POSTGRESQL[attack])
        assert connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


UNDER_THE_ROLE = [
    "pg_read_file", "pg_read_binary_file", "pg_ls_dir", "pg_stat_file", "lo_import", "passwords", "the server", "a sequence",
    "a sequence set", "a lock on a table", "a backend's end",
]  # fmt: skip


@pytest.mark.parametrize("attack", UNDER_THE_ROLE)
@pytest.mark.parametrize("caller", ["superuser", "member"])
def test_the_role_has_no_rights_to_what_is_refused_before(
    caller: str, attack: str, postgres_filled: str, ordinary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second wall stands without the first one. The caller's other sessions, such as workers', go on."""
    monkeypatch.setattr("orchestrator.results.query._refuse_effects", lambda *_: None)
    with connect_postgresql(parse_url(postgres_filled)) as administrator:
        administrator.execute("GRANT kt_study_reader TO ordinary")
    url = postgres_filled if caller == "superuser" else ordinary
    denied = r"permission denied|read-only transaction|syntax error at or near \"LOCK\"|must be a (member|superuser)|cannot open"
    with connect_postgresql(parse_url(url)) as worker:
        with pytest.raises(UsageError, match=denied):
            run_query(url, POSTGRESQL[attack])
        worker.execute("SELECT 1")


def test_queries_run_side_by_side_and_hold_up_no_worker(postgres_server: Server) -> None:
    url = postgres_server.database()
    store = open_store(url)
    fill(store, WORLD, done=3)

    def ask() -> None:
        with contextlib.suppress(UsageError):  # as it is ended
            run_query(url, "SELECT pg_sleep(60), count(*) FROM jobs", timeout_s=120)

    slow = threading.Thread(target=ask)
    with connect_postgresql(parse_url(url)) as watcher:

        def sleeping() -> list[Any]:
            asked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
            return watcher.execute(asked).fetchall()

        slow.start()
        wait_until(lambda: bool(sleeping()))
        assert run_query(url, "SELECT count(*) FROM models", timeout_s=5).rows == [(6,)]
        (claim,) = store.claim("worker")
        store.finish(claim, synthetic.outcome(WORLD, claim.kind, claim.spec))
        store.plan("synthetic", [])
        assert sleeping()
        watcher.execute("SELECT pg_terminate_backend(%s)", sleeping()[0])
    slow.join()


ENDLESS = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n % 2 + 1 FROM c) SELECT count(*) FROM c"


def test_a_query_is_stopped_after_its_time(filled: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"took longer than 0\.2 s and was stopped.*--timeout"):
        run_query(filled, ENDLESS, timeout_s=0.2)
    if filled.startswith("postgresql"):
        with pytest.raises(UsageError, match=r"took longer than 0\.2 s"):
            run_query(filled, "SELECT pg_sleep(60)", timeout_s=0.2)
    (tmp_path / "study.toml").write_text('[study]\nname = "x"\n[dataset]\nkind = "digits"\n')
    assert "took longer than 0.5 s" in refused(tmp_path, "query", ENDLESS, "--timeout", "0.5", "--db", filled)


def test_the_reader_has_no_more_rights_than_to_read(postgres_filled: str) -> None:
    assert rows(postgres_filled, "SELECT current_user AS who") == [{"who": "kt_study_reader"}]
    with connect_postgresql(parse_url(postgres_filled)) as connection:
        connection.execute("GRANT pg_read_all_data TO kt_study_reader")
        with pytest.raises(UsageError, match="kt_study_reader may do more than read; drop it"):
            run_query(postgres_filled, "SELECT 1")
        connection.execute("REVOKE pg_read_all_data FROM kt_study_reader")
        connection.execute("CREATE TABLE secrets (word text)")
        with pytest.raises(UsageError, match="permission denied for table secrets"):
            run_query(postgres_filled, "SELECT * FROM secrets")


@pytest.fixture(scope="module")
def postgres_filled(postgres_server: Server) -> str:
    url = postgres_server.database()
    fill(open_store(url), WORLD, done=3)
    return url


@pytest.fixture(scope="module")
def ordinary(postgres_server: Server) -> str:
    """URL of a study in a database whose owner, the role `ordinary`, has no other rights."""
    url = postgres_server.database("template0")
    parts = parse_url(url).conninfo
    with connect_postgresql(parse_url(url)) as administrator:
        administrator.execute("CREATE ROLE ordinary LOGIN PASSWORD 'plain'")
        administrator.execute(f"ALTER DATABASE {parts['dbname']} OWNER TO ordinary".encode())
    own = f"postgresql://ordinary:plain@{parts['host']}:{parts['port']}/{parts['dbname']}"
    fill(open_store(own, create=True), WORLD, done=3)
    return own


@pytest.fixture
def administrator(postgres_filled: str, ordinary: str) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to a server where `ordinary` is as `CREATE ROLE` made it, and kt_study_reader is not there."""
    with connect_postgresql(parse_url(postgres_filled)) as connection:
        connection.execute("ALTER ROLE kt_study_reader RENAME TO kt_study_reader_of_others")
        yield connection
        connection.execute("ALTER ROLE ordinary NOCREATEROLE")
        name = parse_url(ordinary).conninfo["dbname"]
        with connect_postgresql(
            parse_url(postgres_filled.replace(parse_url(postgres_filled).conninfo["dbname"], name))
        ) as own:
            if own.execute("SELECT FROM pg_roles WHERE rolname = 'kt_study_reader'").fetchone() is not None:
                own.execute("DROP OWNED BY kt_study_reader")
                own.execute("DROP ROLE kt_study_reader")
        connection.execute("ALTER ROLE kt_study_reader_of_others RENAME TO kt_study_reader")


WHO = "SELECT current_user AS who, count(*) AS models FROM models"


def test_an_administrator_lets_an_ordinary_role_become_the_reader(
    administrator: psycopg.Connection[Any], ordinary: str
) -> None:
    """By the lines of docs/troubleshooting.md; without them, or where the owner has not granted the tables, as before."""
    assert rows(ordinary, WHO) == [{"who": "ordinary", "models": 6}]
    lines = re.findall(
        r"`((?:CREATE ROLE|GRANT) kt_study_reader[^`]*)`", (ROOT / "docs/troubleshooting.md").read_text()
    )
    assert len(lines) == 2
    for line in lines:
        administrator.execute(line.replace("TO role", "TO ordinary").encode())
    assert rows(ordinary, WHO) == [{"who": "kt_study_reader", "models": 6}]
    for attack in POSTGRESQL.values():
        with pytest.raises(UsageError, match=REFUSED):
            run_query(ordinary, attack)
    administrator.execute("GRANT pg_read_all_data TO kt_study_reader")
    assert rows(ordinary, WHO) == [{"who": "ordinary", "models": 6}]


def test_a_role_that_may_create_roles_makes_the_reader_itself(
    administrator: psycopg.Connection[Any], ordinary: str
) -> None:
    administrator.execute("ALTER ROLE ordinary CREATEROLE")
    for _ in range(2):
        assert rows(ordinary, WHO) == [{"who": "kt_study_reader", "models": 6}]


def test_a_member_that_may_not_grant_the_tables_reads_as_itself(
    administrator: psycopg.Connection[Any], postgres_filled: str, ordinary: str
) -> None:
    own, theirs = parse_url(ordinary).conninfo, parse_url(postgres_filled).conninfo["dbname"]
    administrator.execute("CREATE ROLE kt_study_reader; GRANT kt_study_reader TO ordinary")
    administrator.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO ordinary")
    try:
        found = rows(f"postgresql://ordinary:plain@{own['host']}:{own['port']}/{theirs}", WHO)
        assert found == [{"who": "ordinary", "models": 6}]
    finally:
        administrator.execute("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM ordinary")


def test_our_own_server_has_the_reader_from_its_start(postgres_server: Server) -> None:
    with connect_postgresql(parse_url(postgres_server.url)) as connection:
        connection.execute("ALTER ROLE kt_study_reader RENAME TO kt_study_reader_of_others")
    try:
        postgres_server.end()
        postgres_server.restart()
        with connect_postgresql(parse_url(postgres_server.url)) as connection:
            connection.execute("DROP ROLE kt_study_reader")
    finally:
        with connect_postgresql(parse_url(postgres_server.url)) as connection:
            connection.execute("ALTER ROLE kt_study_reader_of_others RENAME TO kt_study_reader")


def test_an_ordinary_role_reads_too_and_leaves_no_role_behind(postgres_filled: str) -> None:
    with connect_postgresql(parse_url(postgres_filled)) as connection:
        connection.execute("CREATE ROLE plain_reader LOGIN PASSWORD 'plain'")
        try:
            connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain_reader")
            parts = parse_url(postgres_filled).conninfo
            url = f"postgresql://plain_reader:plain@{parts['host']}:{parts['port']}/{parts['dbname']}"
            assert rows(url, "SELECT count(*) AS n FROM models") == [{"n": 6}]
            for attack in POSTGRESQL.values():
                with pytest.raises(UsageError, match=REFUSED):
                    run_query(url, attack)
            with pytest.raises(UsageError, match=r"read-only transaction|permission denied"):
                run_query(url, "SELECT id FROM jobs FOR UPDATE")
            connection.execute("GRANT pg_read_server_files TO plain_reader")
            with pytest.raises(UsageError, match="may read files on the server"):
                run_query(url, "SELECT 1")
        finally:
            connection.execute("DROP OWNED BY plain_reader")
            connection.execute("DROP ROLE plain_reader")
        left = connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'kt_study_reader_%'").fetchall()
    assert left == []
