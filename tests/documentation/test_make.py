"""The blocks that call make: the demo to its end in a copy of the checkout, and `make test`, under which this runs."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.documentation.blocks import ROOT, commands, of, pages_for
from tests.documentation.environment import copy_checkout, run
from tests.require import require

OBJECTIVES = ("labels", "kl", "kl_dp")
STAMP = ".installed"
TIMEOUT_S = 1800

pytestmark = pytest.mark.timeout(TIMEOUT_S + 60)


def test_these_are_the_pages() -> None:
    assert pages_for("make") == ["README.md", "docs/first-hour.md"]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A copy of the checkout after the README's block, and what that printed."""

    checkout: Path
    environment: dict[str, str]
    said: str

    def rows(self, table: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pq.read_table(self.checkout / "runs/demo/results" / table).to_pylist()
        return rows


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """`make demo` as the README has it; its `make test` is only listed, since it is what runs this test."""
    require("make", (Path(sys.prefix) / "bin/activate").exists(), "Python runs in no environment as make would make it")
    checkout = copy_checkout(tmp_path_factory.mktemp("make") / "kt-study")
    _installed(checkout / ".venv")
    elsewhere = [part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != Path(sys.prefix) / "bin"]
    environment = {"PATH": os.pathsep.join(elsewhere), "PYTHONPATH": str(checkout), "MAKEFLAGS": "", "MAKELEVEL": "0"}
    (block,) = of("README.md", "make")
    said = run(
        block,
        checkout,
        substitutions={"make test": "make --dry-run test"},
        environment=environment,
        timeout=TIMEOUT_S,
    )
    return Demo(checkout=checkout, environment=environment, said=said)


def _installed(environment: Path) -> None:
    """The environment that runs this test, entry by entry, with a stamp of its own: make must not install into it."""
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != STAMP:
            (environment / entry.name).symlink_to(entry)
    (environment / STAMP).touch()


def test_make_demo_does_every_job_of_the_study(demo: Demo) -> None:
    assert "pip install" not in demo.said
    with sqlite3.connect(demo.checkout / "runs/demo/kt-study.db") as database:
        assert database.execute("SELECT DISTINCT state FROM jobs").fetchall() == [("done",)]
    assert len(demo.rows("complementarity")) == 12 * 11
    assert len(demo.rows("transfers")) == 72


def test_make_demo_ends_with_success_rate_and_mean_change_of_each_objective(demo: Demo) -> None:
    for objective in OBJECTIVES:
        deltas = [row["delta_transf"] for row in demo.rows("transfers") if row["objective"] == objective]
        success, mean = 100 * sum(delta > 0 for delta in deltas) / len(deltas), sum(deltas) / len(deltas)
        line = re.search(rf"^{objective} +24 +(\S+) % +(\S+) +(\S+) ", demo.said, re.MULTILINE)
        assert line, demo.said
        assert float(line[1]) == pytest.approx(success, abs=0.051)
        assert float(line[2]) == pytest.approx(mean, abs=0.0051)
        labels = {(row["student"], row["teacher"]): row["delta_transf"] for row in demo.rows("transfers")
                  if row["objective"] == "labels"}  # fmt: skip
        beyond = [row["delta_transf"] - labels[row["student"], row["teacher"]] for row in demo.rows("transfers")
                  if row["objective"] == objective]  # fmt: skip
        assert float(line[3]) == pytest.approx(sum(beyond) / 24, abs=0.0051)


def test_make_demo_trains_on_labels_once_per_student(demo: Demo) -> None:
    rows = [row for row in demo.rows("transfers") if row["objective"] == "labels"]
    students = {row["student"] for row in rows}
    with sqlite3.connect(demo.checkout / "runs/demo/kt-study.db") as database:
        (shared,) = database.execute("SELECT count(*) FROM jobs WHERE kind = 'shared'").fetchone()
    assert shared == len(students) < len(rows)
    assert len({(row["student"], row["acc_after"], row["seconds"]) for row in rows}) == len(students)


def test_make_demo_names_what_it_wrote(demo: Demo) -> None:
    named = dict(re.findall(r"^(database|parquet|report) +(\S+)$", demo.said, re.MULTILINE))
    assert set(named) == {"database", "parquet", "report"}
    assert all(path.startswith("runs/demo/") for path in named.values())
    assert (demo.checkout / named["database"]).read_bytes().startswith(b"SQLite format 3")
    assert list((demo.checkout / named["parquet"]).rglob("*.parquet"))
    page = demo.checkout / named["report"]
    for figure in ("1a", "4a", "7"):
        assert f'id="digits-figure-{figure}"' in page.read_text(encoding="utf-8")
        assert (page.parent / f"figures/digits/figure-{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_hour_starts_from_the_demo_with_kt_study_on_the_path(demo: Demo) -> None:
    """The same command again, which finds every job done; then the environment that it made."""
    (block,) = of("docs/first-hour.md", "make")
    told = replace(block, text=f"{block.text}command kt-study --version\ntype -P kt-study\n")
    said = run(told, demo.checkout, environment=demo.environment, timeout=TIMEOUT_S)
    assert "0 new jobs" in said
    assert "nothing to do" in said
    version, program = said.splitlines()[-2:]
    assert version == "kt-study, version 0.1.0"
    assert Path(program).samefile(Path(sys.prefix) / "bin" / "kt-study")


def test_make_test_runs_the_tests(demo: Demo) -> None:
    assert demo.said.rstrip().endswith(
        "-m pytest --numprocesses 4 --dist loadscope --no-loadscope-reorder --durations 30"
    )


def test_ci_runs_the_readmes_test_command_last_and_wants_this_file() -> None:
    (block,) = of("README.md", "make")
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert [line.partition("#")[0].strip() for line in commands(block)] == ["make demo", "make test"]
    assert script.rstrip().splitlines()[-1] == "make test"
    required = re.search(r'^export KT_STUDY_REQUIRE="(.*)"$', script, re.MULTILINE)
    assert required
    assert "make" in required[1].split(",")


def test_make_test_is_what_runs_this_test() -> None:
    """A test cannot start the command that runs all tests, itself among them, without an end. What it can show is that
    it was started by it: `make test`, in the checkout, whose recipe's last line is the pytest above this process. CI
    starts it so, and then a test that is not fails; one that a developer starts otherwise skips."""
    above = list(_ancestors(os.getpid()))
    made = [cwd for words, cwd in above if Path(words[0]).name == "make" and "test" in words[1:]]
    require("make", ROOT in made, "this pytest was not started by `make test`")
    listing = ["make", "--no-print-directory", "--dry-run", "test"]
    recipe = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert recipe.splitlines()[-1].split() in [words for words, _ in above]


def _ancestors(pid: int) -> Iterator[tuple[list[str], Path]]:
    """Command line and working folder of each process above this one, the nearest first, while they can be seen."""
    while pid > 1:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        pid = int(status.partition("PPid:")[2].split()[0])
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").rstrip("\0").split("\0")
            yield words, Path(f"/proc/{pid}/cwd").readlink()
        except OSError:
            return
