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

from kt_study import database
from kt_study.database import is_this_machine, parse_url, place, require_local_disk, sqlalchemy_url, without_password
from kt_study.errors import DatabaseError, NothingPlanned
from kt_study.store import open_store
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
    assert sqlalchemy_url(address).render_as_string() == (
        "postgresql+psycopg://me:***@node7:5433/study?passfile=%2Fx%2Fy&sslmode=require"
    )


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
        NothingPlanned, match=r"nothing is planned here yet: .*none.db; `kt-study plan` makes one"
    ) as said:
        open_store(f"sqlite:///{tmp_path}/none.db")
    assert said.value.exit_code == 2
    with pytest.raises(DatabaseError, match=f"there is no folder {tmp_path}/nope; correct the URL"):
        open_store(f"sqlite:///{tmp_path}/nope/none.db", create=True)
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_our_tables_is_said(postgres_server: Server, tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE x (y)")
    for url in (f"sqlite:///{tmp_path}/other.db", postgres_server.database("template0")):
        with pytest.raises(NothingPlanned, match=r"nothing is planned here yet: .* holds no kt-study tables"):
            open_store(url)


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
    monkeypatch.setattr(database, "mount_table", lambda: mounts)
    for name in ("x.db", "deeper/down/x.db"):
        with pytest.raises(DatabaseError, match=rf"network file system \({kind}\).*kt-study db start"):
            open_store(f"sqlite:///{shared / name}", create=True)
    open_store(f"sqlite:///{tmp_path / 'shared folder too.db'}", create=True)


def test_a_link_to_a_network_file_system_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mounts = f"1 1 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / {tmp_path}/far rw - nfs s:/ rw\n"
    monkeypatch.setattr(database, "mount_table", lambda: mounts)
    with pytest.raises(DatabaseError, match="nfs"):
        require_local_disk(tmp_path / "near" / "x.db", "the database")


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
    assert store.outlook().done == 2


def test_importing_the_store_is_light() -> None:
    """A login node waits for every import: nothing that a command does not need."""
    heavy = ["torch", "pandas", "pyarrow", "numpy", "sqlalchemy", "alembic"]
    code = (
        "import sys, tempfile; from kt_study.store import open_store; import kt_study.store.spool, kt_study.failures; "
        f"print([m for m in {heavy!r} + ['psycopg'] if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
