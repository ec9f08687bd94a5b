"""query: the named queries against hand counts on both databases, and that nothing can be written through it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import re
import sqlite3
import statistics
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest

from kt_study.database import connect_postgresql, parse_url
from kt_study.errors import DatabaseError, UsageError
from kt_study.records import AllPairsSpec, TransferSpec
from kt_study.settings import Settings
from kt_study.store import JobStore, open_store
from orchestrator.results.query import QueryResult, named_queries, pairs_in_files, queries_folder, render, run_query
from tests.cli import kt_study, refused
from tests.documentation.blocks import ROOT
from tests.postgres import Server
from tests.results import synthetic
from tests.results.synthetic import World, fill, make_world
from tests.store.making import wait_until

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
