"""A training that is the same whoever the teacher is: done once a student, measured against each teacher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from kt_study.hashing import job_digest
from kt_study.multi_teacher import multi_teacher_specs, transfer_digest
from kt_study.objectives import OBJECTIVES, needed_logits, shared_training
from kt_study.records import LogitsSpec, TransferSpec, as_spec
from tests.transfer.study import Study, make_study
from worker.job.context import Stopped
from worker.kinds import job_kind
from worker.training.loop import TransferLoop

MEASURED_TIMES = {"seconds", "images_per_s", "peak_memory"}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A note for each training that is begun."""
    begun: list[str] = []
    run = TransferLoop.run

    def noted(loop: TransferLoop) -> Any:
        begun.append(loop.step.name)
        return run(loop)

    monkeypatch.setattr(TransferLoop, "run", noted)
    yield begun


def train_once(study: Study, spec: TransferSpec, **given: Any) -> str:
    """Do the job that planning adds for these transfers. Returns its digest."""
    training = shared_training(spec)
    assert training is not None
    assert job_kind("shared").run(as_spec(training), study.context(spec, **given)) == {}
    return job_digest("shared", as_spec(training))


def row_of(study: Study, spec: TransferSpec) -> dict[str, Any]:
    (row,) = study.run(spec)["transfers"]
    return dict(row)


def test_what_asks_no_teacher_is_the_same_for_every_teacher(study: Study) -> None:
    shared = [name for name in OBJECTIVES if shared_training(study.spec(name, "a")) is not None]
    assert shared == ["self_distillation", "labels"]
    spec = study.spec("self_distillation", "a")
    assert shared_training(spec) == shared_training(study.spec("self_distillation", "b"))
    assert shared_training(spec) != shared_training(study.spec("self_distillation", "a", lr=0.01))
    for stage in multi_teacher_specs(study.spec("self_distillation", "a", "b"), "sequential")[1:]:
        assert shared_training(stage) is None


def test_it_reads_no_pass_of_a_teacher_over_the_training_set(study: Study) -> None:
    passes = needed_logits(study.spec("self_distillation", "a"), dataset=study.data, model=study.model)
    assert {(one.model, one.split) for one in passes} == {("key-s", "val"), ("key-a", "val"), ("key-s", "train")}
    shared = shared_training(study.spec("self_distillation", "a"))
    assert shared is not None
    passes = needed_logits(shared, dataset=study.data, model=study.model)
    assert {(one.model, one.split) for one in passes} == {("key-s", "val"), ("key-s", "train")}
    assert all(isinstance(one, LogitsSpec) for one in passes)


def test_training_on_labels_reads_no_pass_over_the_training_set(study: Study) -> None:
    passes = needed_logits(study.spec("labels", "a"), dataset=study.data, model=study.model)
    assert {(one.model, one.split) for one in passes} == {("key-s", "val"), ("key-a", "val")}


def test_training_on_labels_gives_nothing_to_a_teacher(study: Study) -> None:
    (row,) = study.run(study.spec("labels", "a"))["transfers"]
    assert {row[name] for name in ("teacher_share", "dp_pos_to_teacher", "dp_neg_to_teacher")} == {None}
    assert row["knowledge_gain"] - row["knowledge_loss"] == pytest.approx(row["delta_transf"])


def test_each_transfers_rows_are_those_of_a_training_of_its_own(study: Study, trainings: list[str]) -> None:
    specs = [study.spec("self_distillation", teacher) for teacher in ("a", "b", "c")]
    alone = []
    for spec in specs:
        alone.append(study.run(spec))
        study.paths.outcome(job_digest("shared", as_spec(shared_training(spec)))).unlink()  # type: ignore[arg-type]
    assert len(trainings) == 3
    train_once(study, specs[0])
    together = [study.run(spec) for spec in specs]
    assert len(trainings) == 3 + 1
    for first, second in zip(alone, together, strict=True):
        assert first["transfers"][0].keys() == second["transfers"][0].keys()
        for name, value in first["transfers"][0].items():
            assert name in MEASURED_TIMES or second["transfers"][0][name] == value, name
        curves = [[{**epoch, "seconds": 0} for epoch in rows["transfer_epochs"]] for rows in (first, second)]
        assert curves[0] == curves[1]
    rows = [rows["transfers"][0] for rows in together]
    assert len({row["acc_teacher"] for row in rows}) == 3
    assert len({row["acc_after"] for row in rows}) == len({row["seconds"] for row in rows}) == 1
    predictions = [np.load(study.paths.root / row["predictions"]) for row in rows]
    assert all(np.array_equal(one, predictions[0]) for one in predictions)


def test_what_is_gone_is_trained_again_and_left_for_the_others(study: Study, trainings: list[str]) -> None:
    job = train_once(study, study.spec("self_distillation", "a"))
    study.paths.predictions(job).unlink()
    first = row_of(study, study.spec("self_distillation", "a"))
    assert len(trainings) == 2
    assert row_of(study, study.spec("self_distillation", "b"))["acc_after"] == first["acc_after"]
    assert len(trainings) == 2


@pytest.mark.parametrize("keep", ["all", "best"])
def test_a_kept_student_is_each_transfers_own_file(study: Study, trainings: list[str], keep: str) -> None:
    specs = [study.spec("self_distillation", teacher, keep=keep) for teacher in ("a", "b")]
    job = train_once(study, specs[0])
    for spec in specs:
        row_of(study, spec)
    assert len(trainings) == 1
    files = [study.paths.weights(transfer_digest(spec)) for spec in specs]
    trained = load_file(study.paths.weights(job))
    left = [file for file in files if file.exists()]
    assert left == (files if keep == "all" else [min(files, key=lambda file: file.stem)])
    for file in left:
        state = load_file(file)
        assert all(torch.equal(state[name], trained[name]) for name in trained)


def test_a_kept_student_has_the_names_of_its_network(study: Study, trainings: list[str]) -> None:
    """Also where they begin as a wrapper's would."""
    specs = [study.spec("self_distillation", teacher, student="w", keep="all") for teacher in ("a", "b")]
    train_once(study, specs[0])
    for spec in specs:
        row_of(study, spec)
    assert len(trainings) == 1
    for spec in specs:
        names = load_file(study.paths.weights(transfer_digest(spec))).keys()
        assert names and all(name.startswith("model.") for name in names)


def test_a_training_that_kept_nothing_serves_no_transfer_that_keeps(study: Study, trainings: list[str]) -> None:
    spec = study.spec("self_distillation", "a")
    train_once(study, spec)
    kept = replace(spec, settings=replace(spec.settings, keep="all"))
    row_of(study, kept)
    assert len(trainings) == 2
    assert study.paths.weights(transfer_digest(kept)).exists()
    row_of(study, study.spec("self_distillation", "b", keep="all"))
    assert len(trainings) == 2


def test_it_goes_on_where_it_was_stopped(study: Study) -> None:
    spec = study.spec("self_distillation", "a", epochs=3)
    expected = row_of(study, spec)
    job = job_digest("shared", as_spec(shared_training(spec)))  # type: ignore[arg-type]
    study.paths.outcome(job).unlink()
    calls = iter(range(10**6))
    with pytest.raises(Stopped):
        train_once(study, spec, stopping=lambda: next(calls) == 12)
    assert study.paths.checkpoint(job).exists()
    assert not study.paths.outcome(job).exists()
    train_once(study, spec)
    assert not study.paths.checkpoint(job).exists()
    assert row_of(study, spec)["acc_after"] == expected["acc_after"]
