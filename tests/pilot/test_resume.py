"""A transfer of every objective, broken off twice in the middle by real signals and gone on with by other processes: the
same rows and weights, bit for bit, as of one that nobody disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from kt_study.objectives import OBJECTIVES
from kt_study.paths import StudyPaths
from kt_study.records import JobState
from kt_study.store import JobStore, Selection, open_store
from tests.cli import succeeds

HOME = Path(__file__).parents[2]
BREAKS = ("3:SIGUSR2", "17:SIGTERM")  # in the middle of the first epoch, and of the second
RELEASES = [("released", "SIGUSR2"), ("released", "SIGTERM")]
STEPS = 22  # 2 epochs of 11 batches of at most 50 samples
ABOUT_THE_RUN = {"id", "job_id", "seconds", "images_per_s", "peak_memory", "host"}

MODELS = '''
"""A student with all that a checkpoint must carry: batch norm, dropout, momentum."""
from torch import nn


def cnn(num_classes, width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(4 * width, num_classes),
    )
'''
MODEL = """
[[model]]
name = "cnn-{width}"
factory = "small_models:cnn"
arguments = {{ num_classes = 10, width = {width} }}
input_size = [3, 32, 32]
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
family = "cnn"
random_weights = true
"""
STUDY = f"""
[study]
name = "resume"
[dataset]
kind = "digits"
{MODEL.format(width=8)}
{MODEL.format(width=12)}
[complementarity]
pairs = 0
[transfer]
pairs = 1
students = ["cnn-8"]
teachers = ["cnn-12"]
objectives = {list(OBJECTIVES)}
epochs = 2
batch_size = 50
lr = 0.05
mcl_tau = 0.9
views = 2
keep = "all"
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A study that is over, and what its workers said of their steps."""

    paths: StudyPaths
    url: str

    @property
    def store(self) -> JobStore:
        return open_store(self.url)

    @property
    def steps(self) -> list[tuple[int, str, int]]:
        """Process, objective and number of every training step, as they were taken."""
        lines = (self.paths.root / "steps").read_text().splitlines()
        return [(int(pid), name, int(step)) for pid, name, step in map(str.split, lines)]

    def rows(self, table: str, objective: str) -> list[dict[str, Any]]:
        """Result rows without what a run adds."""
        found = [row for chunk in self.store.results(table) for row in chunk if row["objective"] == objective]
        kept = [{name: value for name, value in row.items() if name not in ABOUT_THE_RUN} for row in found]
        return sorted(kept, key=lambda row: row.get("epoch") or 0)


def run_study(folder: Path, url: str, *breaks: str) -> Ended:
    folder.mkdir()
    (folder / "small_models.py").write_text(MODELS)
    (folder / "study.toml").write_text(STUDY)
    succeeds(folder, "plan", "--db", url)
    most = 1 + len(breaks) * len(OBJECTIVES)
    command = [sys.executable, "-m", "tests.pilot.nursery", str(folder), str(most), *breaks]
    named = {**os.environ, "KT_STUDY_DB": url}
    done = subprocess.run(command, cwd=HOME, env=named, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return Ended(paths=StudyPaths(root=folder), url=url)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("unbroken") / "study"
    return run_study(folder, f"sqlite:///{folder}/kt-study.db")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def broken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("broken") / "study"
    if request.param == "sqlite":
        return run_study(folder, f"sqlite:///{folder}/kt-study.db", *BREAKS)
    return run_study(folder, request.getfixturevalue("postgres_server").database(), *BREAKS)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_rows_weights_and_predictions_are_those_of_an_unbroken_run(
    objective: str, broken: Ended, unbroken: Ended
) -> None:
    for table in ("transfers", "transfer_epochs"):
        expected = unbroken.rows(table, objective)
        assert len(expected) == (2 if table == "transfer_epochs" else 1)
        assert broken.rows(table, objective) == expected
    (row,) = broken.rows("transfers", objective)
    assert row["steps"] == STEPS
    weights = [load_file(ended.paths.root / row["weights"]) for ended in (broken, unbroken)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[1].items():
        assert tensor.tobytes() == weights[0][name].tobytes(), name
    predictions = [np.load(ended.paths.root / row["predictions"]) for ended in (broken, unbroken)]
    assert np.array_equal(*predictions)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_step_is_taken_twice_and_three_processes_took_them(objective: str, broken: Ended) -> None:
    taken = [(pid, step) for pid, name, step in broken.steps if name == objective]
    assert [step for _, step in taken] == list(range(STEPS))
    assert list(Counter(pid for pid, _ in taken).values()) == [4, 14, 4]


def test_no_attempt_was_used_up(broken: Ended, unbroken: Ended) -> None:
    transfers = broken.store.jobs(Selection(kind="transfer"))
    assert len(transfers) == len(OBJECTIVES)
    shared = broken.store.jobs(Selection(kind="shared"))  # these train, and their transfers only measure
    assert len(shared) == 2
    for job in (broken.store.job(each.id) for each in (*transfers, *shared)):
        assert (job.state, job.attempts_used, job.crashes) == (JobState.DONE, 1, 0)
        assert not broken.paths.checkpoint(job.digest).exists()
        only_measures = job.kind == "transfer" and job.spec["objective"] in ("self_distillation", "labels")
        before = [] if only_measures else RELEASES
        assert [(attempt.outcome, attempt.message) for attempt in job.attempts] == [*before, ("done", None)]
    assert len({pid for pid, _, _ in broken.steps}) == 1 + 2 * len(OBJECTIVES)
    assert len({pid for pid, _, _ in unbroken.steps}) == 1
