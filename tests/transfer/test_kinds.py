"""The job kinds `transfer` and `soup` on the digits, from specification to result rows and files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from kt_study.datasets import open_split
from kt_study.errors import ArtefactGone, DataError, UsageError
from kt_study.multi_teacher import (
    intermediate_students,
    multi_teacher_specs,
    previous_stage,
    transfer_digest,
)
from kt_study.objectives import OBJECTIVES, needed_logits
from kt_study.records import LogitsSpec, TransferSpec
from kt_study.schema import TRANSFER_EPOCHS, TRANSFERS
from tests.transfer.study import Study, make_study
from worker.job.context import Stopped
from worker.kinds.soup import mean_weights
from worker.logits import LogitsCache
from worker.models.kept import kept_facts
from worker.training.opened import open_transfer


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


def row_of(study: Study, spec: TransferSpec, **options: Any) -> dict[str, Any]:
    (row,) = study.run(spec, **options)["transfers"]
    return dict(row)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_gives_a_row_whose_identities_hold(study: Study, objective: str) -> None:
    rows = study.run(study.spec(objective, "a"))
    (row,) = rows["transfers"]
    assert set(row) == {column.name for column in TRANSFERS.columns}
    assert {name for epoch in rows["transfer_epochs"] for name in epoch} == {c.name for c in TRANSFER_EPOCHS.columns}
    assert row["delta_transf"] == pytest.approx(row["acc_after"] - row["acc_before"])
    assert row["delta_transf"] == pytest.approx(row["knowledge_gain"] - row["knowledge_loss"])
    delta_acc = row["acc_teacher"] - row["acc_after"]
    assert row["rho_pos_after"] - row["rho_neg_after"] == pytest.approx(delta_acc)
    moved = (row["rho_neg_after"] - row["rho_neg_before"]) - (row["rho_pos_after"] - row["rho_pos_before"])
    assert row["delta_transf"] == pytest.approx(moved)
    assert row["delta_stage"] == pytest.approx(row["delta_transf"])
    assert row["steps"] == 2 * math.ceil(504 / 64)
    assert [epoch["epoch"] for epoch in rows["transfer_epochs"]] == [1, 2]
    assert rows["transfer_epochs"][-1]["delta_transf"] == pytest.approx(row["delta_transf"])
    assert not row["diverged"]
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_accuracies_are_counted_from_the_stored_predictions(study: Study) -> None:
    spec = study.spec("xe_kl", "a", epochs=3)
    row = row_of(study, spec)
    labels = open_split(study.data, "val", study.paths).labels
    after = np.load(study.paths.root / row["predictions"])
    assert after.dtype == np.uint8
    assert row["acc_after"] == pytest.approx(100 * (after == labels).mean())
    before, teacher = (
        cached.argmax for view in needed_logits(spec, dataset=study.data, model=study.model)[:2]
        if (cached := LogitsCache(study.paths).open(view)) is not None
    )  # fmt: skip
    assert row["acc_before"] == pytest.approx(100 * (before == labels).mean())
    assert row["acc_teacher"] == pytest.approx(100 * (teacher == labels).mean())
    assert row["knowledge_gain"] == pytest.approx(100 * ((after == labels) & (before != labels)).mean())
    assert (after != before).mean() > 0.1  # the transfer did something


def test_partition_shares_are_counted_by_hand(study: Study) -> None:
    spec = study.spec("kl_dp", "a")
    row = row_of(study, spec)
    passes = {
        (view.model, view.split): LogitsCache(study.paths).open(view)
        for view in needed_logits(spec, dataset=study.data, model=study.model)
    }
    s, a = passes["key-s", "val"], passes["key-a", "val"]
    assert s is not None and a is not None
    positive, taught = a.right & ~s.right, a.p_label > s.p_label
    assert row["dp_pos_to_teacher"] == pytest.approx(100 * taught[positive].mean())
    assert row["dp_neg_to_teacher"] == pytest.approx(100 * taught[s.right & ~a.right].mean())
    s, a = passes["key-s", "train"], passes["key-a", "train"]
    assert s is not None and a is not None
    assert row["teacher_share"] == pytest.approx(100 * (a.p_label > s.p_label).mean())
    assert 0 < row["teacher_share"] < 100


def test_a_transfer_forwards_only_the_student(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = study.spec("kl_dp", "b")
    row_of(study, spec)
    import worker.logits.forward as forward

    monkeypatch.setattr(forward, "build_model", lambda *_: pytest.fail("a model was forwarded again"))
    built: list[str] = []
    import worker.kinds.transfer as transfer

    original = transfer.build_model
    monkeypatch.setattr(
        transfer, "build_model", lambda record, *rest: built.append(record.name) or original(record, *rest)
    )
    study.worker_cache.clear()
    row_of(study, spec)
    row_of(study, study.spec("kl", "b"))
    assert built == ["s"]  # and its initial weights stayed in memory for the second job


def test_a_stopped_job_resumes_to_the_same_weights_and_row(study: Study) -> None:
    spec = study.spec("kl_dp", "a", keep="all", epochs=3)
    unbroken = row_of(study, spec)
    kept = study.paths.root / unbroken["weights"]
    expected = load_file(kept)
    kept.unlink()
    job = transfer_digest(spec)
    for stop in (3, 0, 9):
        calls = iter(range(10**6))
        with pytest.raises(Stopped):
            study.run(spec, stopping=lambda calls=calls, stop=stop: next(calls) == stop)
        assert study.paths.checkpoint(job).exists()
    resumed = row_of(study, spec)
    assert not study.paths.checkpoint(job).exists()
    for name, value in load_file(kept).items():
        assert torch.equal(value, expected[name]), name
    volatile = {"seconds", "images_per_s", "peak_memory"}
    assert {k: v for k, v in resumed.items() if k not in volatile} == {
        k: v for k, v in unbroken.items() if k not in volatile
    }
    assert resumed["seconds"] > 0


def test_a_torn_checkpoint_starts_afresh_with_the_same_result(study: Study) -> None:
    spec = study.spec("kl", "a", epochs=3)
    unbroken = row_of(study, spec)
    calls = iter(range(10**6))
    with pytest.raises(Stopped):
        study.run(spec, stopping=lambda: next(calls) == 5)
    path = study.paths.checkpoint(transfer_digest(spec))
    path.write_bytes(path.read_bytes()[:-7])
    assert row_of(study, spec)["acc_after"] == unbroken["acc_after"]


def test_checkpoints_are_written_every_so_often(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    import worker.kinds.transfer as transfer

    saved: list[Path] = []
    monkeypatch.setattr(transfer, "save_checkpoint", lambda path, *_: saved.append(path))
    row_of(study, study.spec("kl", "a"), checkpoint_every_s=0.0)
    assert len(saved) == 16


class TestKeeping:
    def test_none_keeps_nothing(self, study: Study) -> None:
        spec = study.spec("kl", "a")
        assert row_of(study, spec)["weights"] is None
        assert not study.paths.weights(transfer_digest(spec)).exists()

    def test_all_keeps_the_student_with_its_settings_inside(self, study: Study) -> None:
        spec = study.spec("xe_kl_mcl", "a", keep="all", mcl_tau=0.5)
        row = row_of(study, spec)
        facts = kept_facts(study.paths.root / row["weights"])
        assert facts["settings"]["mcl_tau"] == 0.5
        assert facts["acc_after"] == row["acc_after"]
        assert (facts["student"], facts["teacher"]) == ("s", "a")

    def test_best_keeps_one_for_each_student_and_objective_whatever_the_order(self, study: Study) -> None:
        specs = [study.spec("kl", name, keep="best", lr=lr) for name in "abc" for lr in (0.02, 0.1)]
        accuracies = {transfer_digest(spec): row_of(study, spec)["acc_after"] for spec in specs}
        best = min(accuracies, key=lambda job: (-accuracies[job], job))
        left = [job for job in accuracies if study.paths.weights(job).exists()]
        assert left == [best]
        for spec in reversed(specs):
            row = row_of(study, spec)
            assert (row["weights"] is not None) == (transfer_digest(spec) == best)
        assert [job for job in accuracies if study.paths.weights(job).exists()] == [best]


class TestSeveralTeachers:
    def test_parallel_takes_the_most_confident_of_student_and_teachers(self, study: Study) -> None:
        (spec,) = multi_teacher_specs(study.spec("kl_dp", "a", "b", "c"), "parallel")
        row = row_of(study, spec)
        assert row["teacher"] == "a+b+c"
        assert row["multi_teacher"] == "parallel"
        p = [
            cached.p_label
            for view in needed_logits(spec, dataset=study.data, model=study.model)
            if view.split == "train" and (cached := LogitsCache(study.paths).open(view)) is not None
        ]
        assert len(p) == 4
        frozen, teachers = p[-1], np.stack(p[:-1])
        assert row["teacher_share"] == pytest.approx(100 * (teachers.max(0) > frozen).mean())

    def test_flips_of_several_teachers_are_those_of_the_most_accurate(self, study: Study) -> None:
        def right(name: str) -> Any:
            cached = LogitsCache(study.paths).open(LogitsSpec(dataset=study.data.key, model=f"key-{name}", split="val"))
            assert cached is not None
            return cached.right, cached.p_label

        row_of(study, multi_teacher_specs(study.spec("kl_dp", "a", "b", "c"), "parallel")[0])  # for the caches
        order = sorted("abc", key=lambda name: right(name)[0].sum())
        assert right(order[1])[0].sum() < right(order[2])[0].sum()
        (spec,) = multi_teacher_specs(study.spec("kl_dp", *order), "parallel")
        assert open_transfer(spec, study.context(spec)).best_teacher() == 2
        row = row_of(study, spec)
        student, p_student = right("s")
        taught = np.max([right(name)[1] for name in order], axis=0) > p_student
        positive = right(order[2])[0] & ~student
        assert row["acc_teacher"] == pytest.approx(100 * right(order[2])[0].mean())
        assert row["dp_pos_to_teacher"] == pytest.approx(100 * taught[positive].mean())
        assert row["dp_neg_to_teacher"] == pytest.approx(100 * taught[student & ~right(order[2])[0]].mean())

    def test_parallel_over_one_teacher_is_the_single_transfer(self, study: Study) -> None:
        single = study.spec("kl_dp", "a")
        (parallel,) = multi_teacher_specs(single, "parallel")
        left, right = row_of(study, single), row_of(study, parallel)
        for name in ("acc_after", "delta_transf", "teacher_share", "dp_pos_to_teacher", "rho_pos_after"):
            assert left[name] == right[name]

    def test_a_soup_of_one_is_the_run(self, study: Study) -> None:
        *singles, soup = multi_teacher_specs(study.spec("xe_kl", "a", keep="all"), "soup")
        assert len(singles) == 1
        single_row, soup_row = row_of(study, singles[0]), row_of(study, soup)
        assert soup_row["multi_teacher"] == "soup"
        for name in ("acc_after", "delta_transf", "knowledge_gain", "mcnemar_p", "transfer_rate_top100"):
            assert soup_row[name] == single_row[name]
        single, mixed = (load_file(study.paths.root / row["weights"]) for row in (single_row, soup_row))
        assert single.keys() == mixed.keys()
        assert all(torch.equal(single[name], mixed[name]) for name in single)

    def test_a_soup_of_three_is_the_mean_with_the_first_ones_counters(self, study: Study) -> None:
        *singles, soup = multi_teacher_specs(study.spec("kl", "a", "b", "c", keep="all", epochs=1), "soup")
        states = [load_file(study.paths.root / row_of(study, single)["weights"]) for single in singles]
        mixed = load_file(study.paths.root / row_of(study, soup)["weights"])
        for name, value in mixed.items():
            if name.endswith("num_batches_tracked"):
                assert torch.equal(value, states[0][name])
            else:
                mean = np.mean([state[name].double().numpy() for state in states], axis=0)
                np.testing.assert_allclose(value, mean, rtol=1e-6, atol=1e-9)

    def test_a_soup_whose_part_is_gone_has_it_made_again(self, study: Study) -> None:
        kept, single, soup = multi_teacher_specs(study.spec("kl", "a", "b", keep="all", lr=0.0123), "soup")
        study.run(kept)
        with pytest.raises(ArtefactGone, match=r"1 of the 2 students to average are missing") as gone:
            study.run(soup)
        assert gone.value.makers == (transfer_digest(single),)

    def test_integer_buffers_are_the_first_files(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        for k in range(2):
            save_file({"w": torch.tensor([1.0 + k]), "n": torch.tensor(5 + k)}, tmp_path / f"{k}.safetensors")
        mixed = mean_weights(load_file(tmp_path / f"{k}.safetensors") for k in range(2))
        assert (float(mixed["w"]), int(mixed["n"])) == (1.5, 5)

    def test_sequential_over_one_teacher_is_the_single_transfer(self, study: Study) -> None:
        (only,) = multi_teacher_specs(study.spec("kl_dp", "a"), "sequential")
        assert transfer_digest(only) == transfer_digest(study.spec("kl_dp", "a"))

    def test_a_second_stage_is_a_fresh_transfer_into_what_the_first_left(self, study: Study) -> None:
        first, second = multi_teacher_specs(study.spec("kl_dp", "a", "b", keep="all"), "sequential")
        study.models.update(
            (record.key, record) for record in intermediate_students(study.models["key-s"], [first, second])
        )
        first_row, rows = row_of(study, first), study.run(second)
        (row,) = rows["transfers"]
        assert (row["teacher"], row["multi_teacher"], row["stage"]) == ("a+b", "sequential", 1)
        assert row["acc_before"] == first_row["acc_before"]
        assert row["delta_stage"] == pytest.approx(row["acc_after"] - first_row["acc_after"])
        assert [(e["stage"], e["epoch"]) for e in rows["transfer_epochs"]] == [(0, 1), (0, 2), (1, 3), (1, 4)]
        assert rows["transfer_epochs"][1]["acc"] == first_row["acc_after"]
        before = previous_stage(second)
        assert before is not None
        between = intermediate_students(study.models["key-s"], [second])[0]
        study.models["key-between"] = replace(between, key="key-between", name="between")
        alone = row_of(study, replace(study.spec("kl_dp", "b", student="between", keep="all"), seed=0))
        assert alone["acc_before"] == first_row["acc_after"]
        left, right = (load_file(study.paths.root / r["weights"]) for r in (row, alone))
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_authors_reading_forwards_a_contrastive_teacher_in_train_mode(study: Study) -> None:
    row = row_of(study, study.spec("cd", "b", reading="authors", lr=1e-3))
    assert (row["reading"], row["diverged"]) == ("authors", False)
    assert row["lr_effective"] == pytest.approx(1e-3 * 64 / 256)


def test_views_take_turns_and_augmentation_is_drawn(study: Study) -> None:
    still = row_of(study, study.spec("kl_dp", "a"))
    moving = row_of(study, study.spec("kl_dp", "a", augment="crop_flip", views=2))
    assert moving["views"] == 2
    assert moving["teacher_share"] != still["teacher_share"]


def test_micro_batches_with_batch_norm_in_train_mode_are_refused(study: Study) -> None:
    with pytest.raises(UsageError, match="batchnorm = 'frozen'"):
        study.run(study.spec("kl", "a", micro_batch=16))
    whole = row_of(study, study.spec("kl", "a", batchnorm="frozen"))
    split = row_of(study, study.spec("kl", "a", batchnorm="frozen", micro_batch=16))
    assert split["acc_after"] == pytest.approx(whole["acc_after"], abs=0.2)  # one flip of 754 by rounding


def test_a_diverged_run_is_a_result(study: Study) -> None:
    row = row_of(study, study.spec("xe_kl", "a", lr=1e30, epochs=3))
    assert row["diverged"]
    assert row["diverged_step"] < 8
    assert row["steps"] == row["diverged_step"]
    assert json.dumps(row, allow_nan=False)


def test_deterministic_mode_runs_and_is_undone(study: Study) -> None:
    row_of(study, study.spec("kl", "a", deterministic=True))
    assert not torch.are_deterministic_algorithms_enabled()


def test_teacher_and_student_of_different_classes_are_refused(study: Study) -> None:
    other = study.models["key-a"]
    study.models["key-z"] = replace(
        other, key="key-z", name="z", num_classes=12, arguments={**other.arguments, "num_classes": 12}
    )
    with pytest.raises(DataError, match="teacher 'z' has 12 classes, student 's' 10"):
        study.run(study.spec("kl", "z"))
