"""URLs, file systems, unusable databases: each said in one line, and no password in any of them."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from kt_study import database, file_systems
from kt_study.database import (
    hosts,
    is_this_machine,
    parse_url,
    place,
    sqlalchemy_engine,
    sqlite_url,
    without_password,
)
from kt_study.errors import DatabaseError, NothingPlanned
from kt_study.file_systems import file_system, require_local_disk
from kt_study.store import open_store
from orchestrator.cli import kt_study_command
from orchestrator.cluster.doctor.study import database as database_findings
from orchestrator.terminal.study_context import StudyContext
from tests.cli import kt_study
from tests.command_line.tiny import STUDY_FILE
from tests.postgres import Server
from tests.store.making import claim_one, job, plan, wait_until

SECRET = "s3cret%2Fword"


def test_sqlite_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_url("sqlite:///kt-study.db").path == str(tmp_path / "kt-study.db")
    assert parse_url("sqlite:////abs/a%20b.db").path == "/abs/a b.db"
    open_store("sqlite:///odd %23?name.db".replace("?", "%3F"), create=True)
    assert (tmp_path / "odd #?name.db").exists()


def test_postgresql_urls() -> None:
    address = parse_url(f"postgresql+psycopg://me:{SECRET}@node7:5433/study?passfile=/x/y&sslmode=require")
    assert address.conninfo == {
        "host": "node7", "port": "5433", "user": "me", "password": "s3cret/word", "dbname": "study",
        "passfile": "/x/y", "sslmode": "require",
    }  # fmt: skip
    assert place(address) == "study on node7:5433"


@pytest.mark.parametrize("url", ["", "kt-study.db", "mysql://h/x", "sqlite://", "sqlite:///", "postgresql://h:port/x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(DatabaseError, match="cannot read the database URL"):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@h:1/x",
        f"postgresql://me:{SECRET}@h/x?password={SECRET}&passfile=/f",
        f"postgresql://h/x?passfile=/f&password={SECRET}",
        f"mysql://me:{SECRET}@h/x",
        f"mysql://h/x?password={SECRET}&password={SECRET}&PASSWORD={SECRET}&sslpassword={SECRET}",
        f"host=h password={SECRET} dbname=x",
        f"host = h Password = '{SECRET} {SECRET}' dbname=x",
        f"dbname='//x' password={SECRET}",
    ],
)
def test_passwords_are_taken_out(url: str) -> None:
    assert SECRET not in without_password(url)
    if url.startswith("postgresql"):
        assert SECRET not in parse_url(url).url
        assert ("passfile=/f" in without_password(url)) == ("passfile" in url)


@pytest.mark.parametrize(
    "password", ["hun/ter2", "hun?ter2", "hun#ter2", "12/ter2", "12?ter2", "12#ter2", "70000/ter2", "hun[ter2", "[hun]ter2",
                 "a/b@c:ter2"],
)  # fmt: skip
@pytest.mark.parametrize("user", ["me", "me@realm", ""])
def test_a_password_that_is_not_percent_encoded_is_refused_and_not_repeated(user: str, password: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        parse_url(f"postgresql://{user}:{password}@db.example:5432/kt?sslmode=require")
    said = str(caught.value)
    assert "@db.example:5432/kt?sslmode=require'" in said
    assert "write / as %2F, @ as %40" in said
    assert not any(piece in said for piece in re.split(r"[/?#@:\[\]]", password) if len(piece) > 1)


@pytest.mark.parametrize("user", ["me", "me@realm", ""])
@pytest.mark.parametrize("password", ["hunt@er2", "hunt:er2", "h@nt:er2", "hunt%2Fer2"])
@pytest.mark.parametrize("query", ["", "?passfile=/x/y&sslmode=require", "?user=you@realm"])
def test_the_url_for_others_is_the_same_but_for_the_password(user: str, password: str, query: str) -> None:
    address = parse_url(f"postgresql://{user}:{password}@db.example:5433/kt{query}")
    assert address.conninfo["password"] == password.replace("%2F", "/")
    assert address.url == f"postgresql://{user}@db.example:5433/kt{query}"
    for each in ("password", "p%61ssword"):
        among = query + ("&" if query else "?") + f"{each}={password}&connect_timeout=3"
        given = parse_url(f"postgresql://db.example/kt{among}")
        assert given.conninfo["password"] == password.replace("%2F", "/")
        assert given.url == f"postgresql://db.example/kt{query}{'&' if query else '?'}connect_timeout=3"


@pytest.mark.parametrize(
    "url",
    ["postgresql://h:5433/x?user=me@realm", "postgresql://[::1]:5433/x", "postgresql:///x?host=/run/pg&user=me@realm"],
)
def test_a_url_without_a_password_is_left_as_it_is(url: str) -> None:
    assert parse_url(url).url == url


ODD = ["exp#1", "exp#2", "50%20off", "what?", "b c&ü=\"q'"]


def test_a_folder_of_any_name_has_a_database_of_its_own(tmp_path: Path) -> None:
    """By the commands: the study folder's name is part of a URL that nobody typed."""
    study = '[study]\nname = "{}"\n[dataset]\nkind = "digits"\n[models]\ninclude = ["digits_lin*"]\n'
    for number, name in enumerate(ODD):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "study.toml").write_text(study.format(f"s{number}"))
        here = StudyContext(study_path=folder / "study.toml", db_flag=None)
        here.store(create=True).add_study(f"s{number}", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(ODD)
    for number, name in enumerate(ODD):
        url = parse_url(sqlite_url(tmp_path / name / "kt-study.db")).url
        assert url.isprintable() and parse_url(url).path == str(tmp_path / name / "kt-study.db")
        assert open_store(url).studies() == [f"s{number}"]
    done = kt_study(tmp_path / ODD[0], "query", "SELECT name FROM studies", "--format", "csv")
    assert done.stdout.split() == ["name", "s0"]


def test_a_path_with_control_characters_is_quoted_in_its_url(tmp_path: Path) -> None:
    """No study may lie there, but a database may."""
    (tmp_path / "a\nb\tc").mkdir()
    path = tmp_path / "a\nb\tc" / "kt-study.db"
    url = parse_url(sqlite_url(path)).url
    assert url.isprintable() and parse_url(url).path == str(path)
    open_store(url, create=True).add_study("s", {})
    assert path.exists() and [found.name for found in tmp_path.iterdir()] == ["a\nb\tc"]


@pytest.mark.parametrize(
    "url", ["sqlite:///exp#1/x.db", "sqlite:///x.db?mode=ro", "sqlite:///a\nb.db", "sqlite:///a%00b"]
)
def test_a_url_that_would_name_another_file_is_refused(url: str) -> None:
    with pytest.raises(DatabaseError, match=r"cannot read the database URL.*write") as caught:
        parse_url(url)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("?sslmod=require", "the option 'sslmod', which PostgreSQL does not know; did you mean 'sslmode'?"),
        (f"?Password={SECRET}", "the option 'Password', which PostgreSQL does not know; did you mean 'password'?"),
        (f"?passwrod={SECRET}", "the option 'passwrod', which PostgreSQL does not know; did you mean 'password'?"),
        ("?autocommit=yes", "the option 'autocommit', which PostgreSQL does not know"),
        ("?row_factory=x", "the option 'row_factory', which PostgreSQL does not know"),
        ("?connect_timeout=abc", "connect_timeout='abc', which is not an integer"),
        ("?keepalives_idle=1m", "keepalives_idle='1m', which is not an integer"),
        ("?password=hun&ter2", "in a password, write & as %26"),
        ("?password=hun&t3r=2", "in a password, write & as %26"),
        ("?sslmode=nope", 'invalid sslmode value: "nope"; correct it'),
        ("?port=x", 'invalid integer value "x" for connection option "port"; correct it'),
        ("?service=nosuch", 'definition of service "nosuch" not found; correct it'),
        ("?target_session_attrs=q", 'invalid target_session_attrs value: "q"; correct it'),
        ("?password=a%00b", "cannot read the database URL"),
    ],
)
def test_a_slip_in_an_option_is_one_line_at_once(given: str, said: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        open_store(f"postgresql://me@127.0.0.1:1/x{given}", wait_s=30.0)
    line = str(caught.value)
    assert said in line and "\n" not in line
    assert not any(piece in line for piece in (SECRET, "s3cret", "hun", "ter2", "t3r"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@127.0.0.1:1/x?sslmod=require",
        "postgresql://me@127.0.0.1:1/x?Password=s3cret",
        "postgresql://me:s3cret@127.0.0.1:1/x?connect_timeout=abc",
        "sqlite:///exp#1/x.db",
        "host=127.0.0.1 port=1 password=s3cret dbname=x",
        "host=127.0.0.1 PASSWORD = 's3cret phrase' dbname=x",
    ],
)
def test_every_command_says_a_slip_in_one_line(url: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY_FILE)
    where = ["--study", str(tmp_path / "study.toml"), "--db", url]
    for command in (
        "plan",
        "plan --dry-run",
        "status",
        "query x.y",
        "collect",
        "retry",
        "cancel --job 1",
        "pause",
        "launch",
        "recommend --student x",
    ):
        done = CliRunner().invoke(kt_study_command, [*command.split(), *where])
        said = done.output + str(done.exception or "")
        assert isinstance(done.exception, DatabaseError), (command, done.exception)
        assert not any(word in said for word in ("Traceback", "s3cret", "phrase", "\n")), command
    (found,) = database_findings(url)
    assert found.verdict == "wrong" and "s3cret" not in found.found and "phrase" not in found.found


def test_what_the_url_leaves_out_means_the_same_to_plan_and_to_status(
    postgres_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each form makes the tables, which goes through SQLAlchemy, and opens the store, which goes through psycopg."""
    known = parse_url(postgres_server.url).conninfo
    host, port, passfile = known["host"], known["port"], known["passfile"]

    def works(url: str, where: str) -> None:
        assert place(parse_url(url)) == where
        open_store(url, create=True).add_study("one", {})
        assert open_store(url).studies() == ["one"]

    def empty() -> str:
        return parse_url(postgres_server.database("template0")).conninfo["dbname"]

    name = empty()
    services = tmp_path / "services"
    services.write_text(f"[mine]\nhost={host}\nport={port}\nuser=kt_study\npassfile={passfile}\ndbname={name}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    works("postgresql://?service=mine", "database of service mine")

    name = empty()
    works(
        f"postgresql://kt_study@127.0.0.2:9,{host}:{port}/{name}?passfile={passfile}",
        f"{name} on 127.0.0.2:9,{host}:{port}",
    )

    monkeypatch.setenv("PGHOST", host)
    monkeypatch.setenv("PGPORT", port)
    name = empty()
    works(f"postgresql://kt_study@/{name}?passfile={passfile}", f"{name} on {host}:{port}")
    assert hosts(parse_url("postgresql:///x")) == (host,)
    monkeypatch.setenv("PGDATABASE", empty())
    monkeypatch.setenv("PGUSER", "kt_study")
    monkeypatch.setenv("PGPASSFILE", passfile)
    works("postgresql://", f"{os.environ['PGDATABASE']} on {host}:{port}")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://h1:1,h2/x", {"host": "h1,h2", "port": "1,", "dbname": "x"}),
        ("postgresql://u@[::1]:5433,[::2]/x", {"host": "::1,::2", "port": "5433,", "user": "u", "dbname": "x"}),
        ("postgresql://%2FRun%2Fpg/x", {"host": "/Run/pg", "dbname": "x"}),
        ("postgresql://h/x?password=a+b%20c", {"host": "h", "dbname": "x", "password": "a+b c"}),
        ("postgresql://h/x?ssl=true", {"host": "h", "dbname": "x", "sslmode": "require"}),
    ],
)
def test_urls_are_read_as_libpq_reads_them(url: str, expected: dict[str, str]) -> None:
    from psycopg.conninfo import conninfo_to_dict

    assert parse_url(url).conninfo == expected == {key: str(value) for key, value in conninfo_to_dict(url).items()}


def test_where_a_server_of_ours_is_started_again_is_said(postgres_server: Server, tmp_path: Path) -> None:
    """With the folder, where it is not the usual one: otherwise the advice would start another server."""
    import json
    import shutil

    folder = tmp_path / "of ours"
    folder.mkdir()
    shutil.copy(postgres_server.folder / "server.json", folder)
    machine = json.loads((folder / "server.json").read_text())["machine"]
    with pytest.raises(DatabaseError) as caught:
        open_store(f"postgresql://kt_study@127.0.0.1:1/x?passfile={folder}/pgpass".replace(" ", "%20"))
    assert f"`kt-study db start --dir '{folder}'` on {machine} starts it" in str(caught.value)


def test_hosts_that_mean_whichever_machine_asks() -> None:
    for host in ("", "localhost", "127.0.0.1", "127.1.2.3", "::1", "0.0.0.0", "::", "/run/postgresql", "@abstract"):
        assert is_this_machine(host), host
    for host in ("db.example", "10.0.0.1", "localhost.db.example", "fe80::1", "node127.0"):
        assert not is_this_machine(host), host


def test_an_unreachable_server_is_said_with_host_and_port_and_without_password() -> None:
    with pytest.raises(DatabaseError) as caught:
        open_store("postgresql://me:s3cret@127.0.0.1:1/x")
    said = str(caught.value)
    assert "x on 127.0.0.1:1 does not answer" in said
    assert "refused" in said and "kt-study db start" in said
    assert "s3cret" not in said and "\n" not in said


def test_a_wrong_password_is_said_without_it(postgres_server: Server) -> None:
    url = postgres_server.url.replace("kt_study@", "kt_study:wr0ng@").split("?")[0]
    with pytest.raises(DatabaseError, match="password authentication failed") as caught:
        open_store(url)
    assert "wr0ng" not in str(caught.value)


def test_an_absent_file_is_said_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(
        NothingPlanned, match=r"nothing is planned here yet: .*none.db; `kt-study plan` creates it"
    ) as said:
        open_store(f"sqlite:///{tmp_path}/none.db")
    assert said.value.exit_code == 2
    with pytest.raises(DatabaseError, match=f"there is no folder {tmp_path}/nope; correct the URL"):
        open_store(f"sqlite:///{tmp_path}/nope/none.db", create=True)
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_our_tables_is_said(postgres_server: Server, tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE x (y)")
    for url in (f"sqlite:///{tmp_path}/other.db", postgres_server.database("template0")):
        with pytest.raises(NothingPlanned, match=r"nothing is planned here yet: .* has no kt-study tables"):
            open_store(url)


@pytest.mark.parametrize("revision", ["ae1027a6acf3", "00ab12", "0003", "0009", "0010"])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_database_of_another_program_is_recognised_and_left_alone(
    kind: str, revision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import sqlalchemy as sa

    url = f"sqlite:///{tmp_path}/other.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_server").database("template0")
    with sqlalchemy_engine(parse_url(url)).begin() as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(sa.text(f"INSERT INTO alembic_version VALUES ('{revision}')"))
        connection.execute(sa.text("CREATE TABLE experiments (id INTEGER)"))
    for create in (False, True):
        if revision == database.newest_revision():
            continue  # seen by the statement that finds no table
        with pytest.raises(DatabaseError, match=f"belongs to another program.*'{revision}'.*--db") as caught:
            open_store(url, create=create)
        assert "newer" not in str(caught.value)
    with sqlalchemy_engine(parse_url(url)).connect() as connection:
        assert set(sa.inspect(connection).get_table_names()) == {"alembic_version", "experiments"}


def test_a_table_of_our_name_that_is_not_ours_is_left_alone(postgres_server: Server, tmp_path: Path) -> None:
    import sqlalchemy as sa

    for url in (f"sqlite:///{tmp_path}/other.db", postgres_server.database("template0")):
        engine = sqlalchemy_engine(parse_url(url))
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE jobs (id INTEGER)"))
        with pytest.raises(DatabaseError, match="belongs to another program: it has a table 'jobs'"):
            open_store(url, create=True)
        with engine.connect() as connection:
            assert sa.inspect(connection).get_table_names() == ["jobs"]


def test_a_role_that_may_not_make_tables_is_said(postgres_server: Server) -> None:
    url = postgres_server.database("template0")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE visitor LOGIN PASSWORD 'v1sitor'")
    try:
        theirs = url.replace("kt_study@", "visitor:v1sitor@").split("?")[0]
        with pytest.raises(DatabaseError, match=r"permission denied for schema public.*allowed to create") as caught:
            open_store(theirs, create=True)
        assert "\n" not in str(caught.value) and "v1sitor" not in str(caught.value)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("GRANT CREATE ON SCHEMA public TO visitor")  # as docs/troubleshooting.md advises
        assert open_store(theirs, create=True).studies() == []
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP OWNED BY visitor")
            connection.execute("DROP ROLE visitor")


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("dear diary " * 1000)
    for create in (False, True):
        with pytest.raises(DatabaseError, match="not a database"):
            open_store(f"sqlite:///{file}", create=create)
    assert file.read_text().startswith("dear diary")


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "gpfs", "beegfs", "cifs", "fuse.sshfs"])
def test_network_file_systems_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's own list of mounts, as such a mount looks in it."""
    shared = tmp_path / "shared folder"
    shared.mkdir()
    spelled = str(shared).replace(" ", "\\040")
    mounts = (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"90 22 0:50 / {spelled} rw,relatime shared:9 - {kind} server:/export rw,vers=4.2\n"
    )
    monkeypatch.setattr(file_systems, "mount_table", lambda: mounts)
    for name in ("x.db", "deeper/down/x.db"):
        with pytest.raises(DatabaseError, match=rf"network file system \({kind}\).*kt-study db start"):
            open_store(f"sqlite:///{shared / name}", create=True)
    open_store(f"sqlite:///{tmp_path / 'shared folder too.db'}", create=True)


def test_a_link_to_a_network_file_system_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mounts = f"1 1 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / {tmp_path}/far rw - nfs s:/ rw\n"
    monkeypatch.setattr(file_systems, "mount_table", lambda: mounts)
    with pytest.raises(DatabaseError, match="nfs"):
        require_local_disk(tmp_path / "near" / "x.db", "the database")


def test_a_mount_with_an_accent_in_its_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = f"1 1 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / {tmp_path}/données\\040là rw - nfs s:/ rw\n"
    monkeypatch.setattr(file_systems, "mount_table", lambda: mounts)
    assert file_system(tmp_path / "données là" / "x.db") == "nfs"


def test_several_nodes_cannot_share_a_file(url: str) -> None:
    store = open_store(url)
    store.require_single_node(1)
    if url.startswith("postgresql"):
        store.require_single_node(40)
    else:
        with pytest.raises(DatabaseError, match=r"40 nodes cannot share.*kt-study db start"):
            store.require_single_node(40)


def test_sqlite_survives_a_power_cut_by_its_settings(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    open_store(url, create=True)
    connection = database.connect_sqlite(parse_url(url).path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_store_holds_no_connection_for_long(postgres_server: Server) -> None:
    name = postgres_server.database().split("?")[0].split("/")[-1]
    store = open_store(postgres_server.named(name), idle_s=0.2)
    plan(store, job(1))
    claim = claim_one(store)
    with psycopg.connect(postgres_server.url, autocommit=True) as watcher:

        def held() -> int:
            row = watcher.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", [name]).fetchone()
            return int(row[0]) if row else 0

        assert store._database.write(lambda _: held()) == 1  # while it is in use
        wait_until(lambda: held() == 0)
    store.finish(claim, {})


def test_a_store_serves_several_threads(url: str) -> None:
    store = open_store(url)
    plan(store, *(job(n) for n in range(80)))
    done: list[int] = []

    def work(name: str) -> None:
        while claims := store.claim(name):
            store.finish(claims[0], {})
            done.append(claims[0].job_id)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(1, 81))


def test_a_child_process_leaves_its_parents_connection_alone(url: str) -> None:
    store = open_store(url, idle_s=60.0)
    plan(store, job(1), job(2))
    mine = claim_one(store)
    child = os.fork()
    if child == 0:
        store.finish(claim_one(store, "child"), {})
        store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.finish(mine, {})
    assert store.workload().done == 2


def test_importing_the_store_is_light() -> None:
    """A login node waits for every import: nothing that a command does not need."""
    heavy = ["torch", "pandas", "pyarrow", "numpy", "sqlalchemy", "alembic"]
    code = (
        "import sys, tempfile; from kt_study.store import open_store; import kt_study.store.spool, kt_study.failures; "
        f"print([m for m in {heavy!r} + ['psycopg'] if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
