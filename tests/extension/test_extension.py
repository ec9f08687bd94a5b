"""A newcomer adds one of everything to a copy of the source as docs/architecture.md says, and nothing else.

A small study is run before and after: on real images, by the program's own commands.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest

from tests.documentation.blocks import ROOT
from tests.documentation.environment import copy_checkout
from tests.extension.additions import Newcomer, add_everything, places
from tests.postgres import Server
from tests.require import require

TIMEOUT_S = 1200

pytestmark = pytest.mark.timeout(TIMEOUT_S + 60)

STUDY = """
[study]
name = "first"
[dataset]
kind = "digits"
[complementarity]
pairs = 0
[transfer]
pairs = 1
objectives = ["kl"]
epochs = 1
batch_size = 64
views = 1
augment = "none"
"""
MODELS = "".join(
    f"""
[[model]]
name = "tiny{number}"
timm = "{architecture}"
random_weights = true
num_classes = 10
input_size = [3, 32, 32]
"""
    for number, architecture in enumerate(("test_resnet", "test_efficientnet"))
)
EXTENDED = STUDY.replace("pairs = 1\n", "pairs = 2\nsharpness = 2.0\n").replace('["kl"]', '["kl", "sharpened"]')
STRIPES = STUDY.replace("first", "second").replace("digits", "stripes").replace("pairs = 1", "pairs = 0")
STRIPES = STRIPES.replace("[complementarity]\npairs = 0", "[complementarity]\npairs = 2")

ECHO = """
from kt_study.job_kinds import EchoSpec, planned_job
from kt_study.store import open_store
open_store("sqlite:///kt-study.db").plan("first", [planned_job("echo", EchoSpec(text="hello"), estimate_s=1.0)])
"""

RUN = """
import json, sys
from kt_study.__main__ import main
for words in json.loads(sys.argv[1]):
    if words[0] == "python":
        exec(words[1])
        continue
    sys.argv = ["kt-study", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
    print("\\x1e", flush=True)
"""
"""Several commands in one process, since each would import torch again; what they print is parted by a character."""

WORKER = ["worker", "--device", "cpu", "--threads", "1", "--idle", "1"]


def run(checkout: Path, folder: Path, *arguments: str, check: bool = True) -> str:
    """Python with the packages of a checkout; standard output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert not check or done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + ("" if check else done.stderr)


def commands(checkout: Path, folder: Path, *words: list[str]) -> list[str]:
    """What each command of `kt-study` printed."""
    return run(checkout, folder, "-c", RUN, json.dumps(words)).split("\x1e\n")[:-1]


@dataclass(frozen=True, kw_only=True)
class Extended:
    """The copy with its additions, and the study that was run with it."""

    checkout: Path
    folder: Path
    touched: set[str]  # by hand
    changed: set[str]  # in all
    planned: str
    by_sharpness: list[dict[str, str]]
    success: list[dict[str, str]]

    def rows(self, table: str, study: str = "first") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.folder / "results" / table / study).to_pylist()
        return found

    @property
    def migration(self) -> str:
        (name,) = [name for name in self.changed if "migrations" in name]
        return name

    def read(self, name: str) -> str:
        return (self.checkout / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Extended:
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY + MODELS)
    commands(ROOT, folder, ["plan"], WORKER)

    checkout = copy_checkout(tmp_path_factory.mktemp("copy") / "kt-study")
    before = contents(checkout)
    newcomer = Newcomer(checkout=checkout)
    add_everything(newcomer)
    make(checkout, "migration", "NAME=echoes_and_settings")
    make(checkout, "docs")
    changed = {name for name, _ in contents(checkout).items() ^ before.items()}

    (folder / "study.toml").write_text(EXTENDED + MODELS)
    (folder / "stripes.toml").write_text(STRIPES + MODELS)
    second = ["--study", "stripes.toml"]
    said = commands(
        checkout,
        folder,
        ["plan", "--grid", "patience=3,5"],
        ["python", ECHO],
        WORKER,
        ["plan", *second],
        [*WORKER, *second],
        ["collect"],
        ["collect", *second],
        ["report"],
        ["query", "by-sharpness", "--format", "csv"],
        ["query", "success-rate", "--format", "csv"],
    )
    by_sharpness, success = (list(csv.DictReader(io.StringIO(text))) for text in said[-2:])
    return Extended(
        checkout=checkout,
        folder=folder,
        touched=newcomer.touched,
        changed=changed,
        planned=said[0],
        by_sharpness=by_sharpness,
        success=success,
    )


def make(checkout: Path, *words: str) -> None:
    """`make` in the copy with the environment that runs this test, which is not installed anew."""
    environment = Path(sys.prefix)
    require("make", bool(shutil.which("make")) and (environment / "bin/ruff").exists(), "there is no make, or no ruff")
    subprocess.run(
        ["make", f"--old-file={environment}/.installed", f"VENV={environment}", *words],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "MAKEFLAGS": "", "MAKELEVEL": "0"},
        capture_output=True,
        check=True,
        timeout=TIMEOUT_S,
    )


def test_the_page_names_a_place_for_everything_that_was_added(extended: Extended) -> None:
    named = places(extended.read("docs/architecture.md"))
    kinds = {
        "objective",
        "setting of a transfer",
        "job kind",
        "result table or column",
        "data set kind",
        "figure",
        "query",
    }
    assert kinds <= set(named)
    assert len(extended.touched) == sum(len(named[kind]) for kind in kinds)


def test_nothing_else_had_to_be_touched(extended: Extended) -> None:
    """The rest is written by `make migration` and `make docs`."""
    pages = {f"docs/{name}.md" for name in ("concepts", "reproducing-the-paper", "schema", "study-file")}
    assert extended.changed == extended.touched | {extended.migration} | pages


def test_the_objective_shows_in_plan_rows_and_report(extended: Extended) -> None:
    assert "sharpened" in extended.planned
    rows = [row for row in extended.rows("transfers") if row["objective"] == "sharpened"]
    assert len(rows) == 4
    assert {(row["sharpness"], row["floor"]) for row in rows} == {(2.0, 0.25)}  # of the study file; its own default
    page = (extended.folder / "report/index.html").read_text(encoding="utf-8")
    assert "Sharpened KL" in page
    assert "Before and after" in page
    for figure in ("4a", "sharpness"):
        assert (extended.folder / f"report/figures/first/figure-{figure}.svg").is_file()


def test_settings_that_an_objective_does_not_use_are_at_their_default_in_its_rows(extended: Extended) -> None:
    rows = [row for row in extended.rows("transfers") if row["objective"] == "kl"]
    assert {(row["sharpness"], row["floor"]) for row in rows} == {(1.0, 0.0)}


def test_rows_of_before_have_the_new_settings_at_their_default_and_are_of_the_same_setting(extended: Extended) -> None:
    rows = [row for row in extended.rows("transfers") if row["objective"] == "kl"]
    assert len(rows) == 4
    first = min(rows, key=lambda row: row["job_id"])
    assert (first["patience"], first["motto"], first["hushed"]) == (3, "it's", False)
    by_patience = {
        (row["setting"], row["patience"]): row["transfers"] for row in extended.by_sharpness if row["objective"] == "kl"
    }
    assert by_patience == {("1", "3"): "2", ("2", "5"): "2"}


def test_the_named_queries_tell_new_settings_apart(extended: Extended) -> None:
    found = {(row["objective"], row["setting"]): row["pairs"] for row in extended.success}
    assert found == {(objective, setting): "2" for objective in ("kl", "sharpened") for setting in ("1", "2")}


def test_settings_objective_and_job_kind_stand_in_the_pages(extended: Extended) -> None:
    assert "| `sharpness` | number | `1.0` | Power of the teacher's probabilities. |" in extended.read(
        "docs/study-file.md"
    )
    assert "| `floor` | number |  | What is added to the loss; default: the objective's own. |" in extended.read(
        "docs/study-file.md"
    )
    assert "| `floor` | float | nats | what is added to the loss |  |" in extended.read("docs/schema.md")
    assert "| `sharpened` | Sharpened KL | KL to a sharpened teacher |  |" in extended.read("docs/concepts.md")
    assert "| `echo` | a text, once more |" in extended.read("docs/concepts.md")


def test_the_job_kind_is_done_by_the_worker_and_its_rows_are_collected(extended: Extended) -> None:
    assert [(row["text"], row["n"]) for row in extended.rows("echoes")] == [("hello", 1)]
    (job,) = [row for row in extended.rows("jobs") if row["kind"] == "echo"]
    assert (job["state"], job["priority"]) == ("done", 40)


def test_the_data_set_kind_is_scanned_and_its_images_are_looked_at(extended: Extended) -> None:
    rows = extended.rows("complementarity", "second")
    assert [(row["dataset"], row["n"], row["n_classes"]) for row in rows] == 2 * [("stripes", 40, 10)]


def test_the_migration_is_as_written_by_hand_and_leaves_nothing_to_write(extended: Extended) -> None:
    text = extended.read(extended.migration)
    assert text.count("add_column") == 5
    for told in ("sharpness = 1.0", "floor = 0.0", "patience = 3", "motto = 'it''s'"):
        assert told in text
    assert "nothing to write" in run(
        extended.checkout, extended.folder, str(extended.checkout / "sql/write_migration.py"), "again"
    )
    with sqlite3.connect(extended.folder / "kt-study.db") as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchone()[0] in extended.migration


def test_the_migration_holds_on_postgresql(extended: Extended, postgres_server: Server) -> None:
    url = postgres_server.database("template0")
    code = "import sys; from kt_study.store import open_store; open_store(sys.argv[1], create=True)"
    run(extended.checkout, extended.folder, "-c", code, url)
    with psycopg.connect(url) as database:
        told = "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'transfers'"
        columns = dict(database.execute(told).fetchall())
    assert {name: columns[name] for name in ("sharpness", "patience", "motto", "hushed")} == {
        "sharpness": "double precision",
        "patience": "bigint",
        "motto": "text",
        "hushed": "boolean",
    }


def test_the_programs_own_tests_of_its_facts_hold_with_the_additions(extended: Extended) -> None:
    reads_labels = "test_an_objective_reads_labels_exactly_if_other_labels_give_another_loss"
    files = ["tests/documentation/test_generated.py", "tests/transfer/test_facts.py"]
    files.append(f"tests/own/test_unlabelled.py::{reads_labels}")
    run(extended.checkout, extended.checkout, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file with what is in it."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and not {"__pycache__", ".ruff_cache"} & {*path.parts}
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
