"""A short draw of the fault run on SQLite (tests/slurm/test_faults.py has the one on Slurm), and what the run itself promises."""

from __future__ import annotations

import copy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documentation.blocks import ROOT
from tests.faults import disk
from tests.faults.catalogue import FAULTS, SLURM, SQLITE
from tests.faults.run import FAULTS_A_ROUND, Ground, Tally, backend_of, drawn, play, unbroken
from tests.faults.study import BrokenPromise, Left, check
from tests.require import require

SEED = 1


@pytest.mark.timeout(1800)
def test_a_round_on_sqlite_needs_no_hand(tmp_path: Path) -> None:
    trouble = disk.trouble()
    require("root", not trouble, trouble)
    ground, tally = Ground(root=tmp_path, mounts=True), Tally()
    reference = unbroken(ground, SQLITE)
    assert len(reference.jobs) == len({job[:2] for job in reference.jobs}) > 15
    assert len(reference.rows["transfers"]) == len(reference.parquet["transfers"]) == 6
    faults = drawn(SEED, 1, list(FAULTS))
    play(ground, 1, faults, reference, seed=SEED, tally=tally, say=print)
    assert tally.tried.total() >= 2
    assert tally.survived == tally.tried


def test_a_rounds_draw_depends_on_seed_and_number_and_every_kind_comes_before_one_comes_again() -> None:
    kinds = list(FAULTS)
    for backend, first in ((SQLITE, 1), (SLURM, 2)):
        possible = {name for name, fault in FAULTS.items() if backend in fault.backends}
        rounds = range(first, first + 2 * (len(possible) // FAULTS_A_ROUND), 2)
        names = [fault.name for number in rounds for fault in drawn(7, number, kinds)]
        assert {backend_of(number) for number in rounds} == {backend}
        assert len(names) == len(set(names)) >= len(possible) - FAULTS_A_ROUND
        assert set(names) <= possible
    assert drawn(7, 12, kinds) == drawn(7, 12, kinds)
    assert any(drawn(seed, 2, kinds) != drawn(7, 2, kinds) for seed in range(3))


def _changed_value(left: Left) -> None:
    left.rows["evaluations"][0][1]["acc"] += 1e-9


def _doubled_row(left: Left) -> None:
    left.rows["evaluations"].append(left.rows["evaluations"][0])


def _missing_row(left: Left) -> None:
    left.rows["evaluations"].pop()


def _open_job(left: Left) -> None:
    left.jobs[0] = (*left.jobs[0][:2], "ready", 0)


def _job_done_twice(left: Left) -> None:
    left.jobs[0] = (*left.jobs[0][:3], 2)


def _new_job(left: Left) -> None:
    left.jobs.append(("logits", "other", "done", 1))


def _other_parquet(left: Left) -> None:
    left.parquet["evaluations"][0] = "other"


@pytest.mark.parametrize(
    "harm", [_changed_value, _doubled_row, _missing_row, _open_job, _job_done_twice, _new_job, _other_parquet]
)
def test_a_broken_promise_is_seen(harm: Callable[[Left], None]) -> None:
    rows = [((kind, "d1"), {"acc": 50.0}) for kind in ("logits", "train")]
    reference = Left(
        jobs=[("logits", "d1", "done", 1), ("train", "d1", "done", 1)],
        rows={"evaluations": rows},
        parquet={"evaluations": ["[50.0]"]},
    )
    check(copy.deepcopy(reference), reference)
    harmed = copy.deepcopy(reference)
    harm(harmed)
    with pytest.raises(BrokenPromise):
        check(harmed, reference)


def test_the_kinds_are_listed_and_an_unknown_one_is_refused() -> None:
    command = [sys.executable, "-m", "tests.faults"]
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert listed == list(FAULTS)
    refused = subprocess.run([*command, "--kinds", "node up"], capture_output=True, text=True, check=False)
    assert "no kind 'node up'; there are worker killed, " in refused.stderr
    assert refused.returncode


def test_make_hands_its_variables_on() -> None:
    asked = ["faults", "SECONDS=60", "SEED=7", "ROUND=3", "KINDS=node down", "BACKEND=slurm"]
    command = ["make", "--no-print-directory", "--dry-run", *asked]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = shlex.split(said.partition("-m tests.faults")[2].replace("\\\n", " "))
    assert words == ["--seconds", "60", "--seed", "7", "--round", "3", "--kinds", "node down", "--backend", "slurm"]
