"""What planning asks of objectives and multi-teacher modes: no torch, clear refusals, all shared that can be shared."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from kt_study.errors import DataError, PairsError, UsageError
from kt_study.hashing import job_digest
from kt_study.job_kinds import JOB_KINDS, RESUMABLE, JobKind, planned_job
from kt_study.multi_teacher import (
    intermediate_students,
    job_of_weights,
    merge_kept,
    multi_teacher_specs,
    needed_transfers,
    order_teachers,
    stage_number,
    stage_start_key,
    transfer_digest,
)
from kt_study.objectives import (
    OBJECTIVES,
    ObjectiveFacts,
    needed_logits,
    needs_live_teacher,
    settings_for,
    supports,
    transfer_logits,
)
from kt_study.records import DatasetRecord, LogitsSpec, ModelRecord, TrainSpec, TransferSpec, as_spec
from kt_study.schema import RESULT_TABLES
from kt_study.settings import SETTINGS, Settings, named
from worker.kinds import job_kind
from worker.objectives import Setup, build_objective, objective_class

DATASET = DatasetRecord(key="d", name="data", kind="digits", splits={"train": 9, "val": 9})


def record(key: str, top1: float | None = None, crop_pct: float = 0.9) -> ModelRecord:
    return ModelRecord(
        key=key,
        name=f"model {key}",
        family="cnn",
        weights="random:0",
        input_size=(3, 8, 8),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        top1_published=top1,
        crop_pct=crop_pct,
    )


def spec(objective: str = "kl_dp", teachers: tuple[str, ...] = ("a", "b", "c"), **given: Any) -> TransferSpec:
    return TransferSpec(
        dataset="d",
        student="s",
        teachers=teachers,
        objective=objective,
        settings=settings_for(objective, given),
        seed=3,
    )


def needed(of: TransferSpec) -> list[LogitsSpec]:
    return needed_logits(of, dataset=DATASET, model=record)


def test_planning_never_imports_torch() -> None:
    code = "import sys, kt_study.objectives, kt_study.multi_teacher; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_objective_has_facts_and_a_loss() -> None:
    classes = [objective_class(name) for name in OBJECTIVES]
    assert len(set(classes)) == len(OBJECTIVES) >= 10


def test_an_objective_reads_no_setting_that_its_facts_do_not_name() -> None:
    """It would be at its default in every row, whatever the study file says."""
    setup = Setup(settings=settings_for("kl", {}), labels=torch.zeros(2, dtype=torch.int64))
    objective = build_objective("kl", setup)
    assert objective.settings.temperature == 1.0
    with pytest.raises(AttributeError, match=r"'kl' reads the setting 'kl_weight'.*uses.*objectives\.py"):
        _ = objective.settings.kl_weight


def test_facts_cannot_leave_out_whether_the_loss_reads_labels_or_name_a_setting_that_is_none() -> None:
    with pytest.raises(TypeError, match="reads_labels"):
        ObjectiveFacts(name="new", label="New", meaning="", uses=frozenset())  # type: ignore[call-arg]
    for name in ("temprature", "epochs"):
        with pytest.raises(ValueError, match=name):
            ObjectiveFacts(name="new", label="New", meaning="", reads_labels=False, uses=frozenset({name}))
    with pytest.raises(ValueError, match="temprature"):
        ObjectiveFacts(
            name="new", label="New", meaning="", reads_labels=False, uses=frozenset(), defaults={"temprature": 2.0}
        )


def test_every_job_kind_has_a_module_and_planning_gives_its_priority() -> None:
    assert all(callable(job_kind(name).run) for name in JOB_KINDS)
    assert set(RESUMABLE) == {"train", "transfer", "remake", "shared"}
    job = planned_job("train", TrainSpec(dataset="d", split="zoo", start="m"), estimate_s=1.23456)
    assert (job.priority, job.estimate_s, job.spec) == (30, 1.235, {"dataset": "d", "split": "zoo", "start": "m"})
    with pytest.raises(ValueError, match="no table 'echos'"):
        JobKind(name="echo", meaning="", spec=TrainSpec, priority=0, tables=("echos",))


def test_every_setting_of_objectives_is_used_by_one_and_every_setting_is_a_column() -> None:
    used = frozenset[str]().union(*(facts.uses for facts in OBJECTIVES.values()))
    assert used == set(named("objective"))
    columns = {column.name for column in RESULT_TABLES["transfers"].columns}
    assert set(Settings.__struct_fields__) == set(SETTINGS) <= columns


def test_defaults_follow_objective_and_reading() -> None:
    assert settings_for("kl_dp", {}).weight_decay == 1e-3
    assert settings_for("kl_dp", {"reading": "authors"}).weight_decay == 1e-4
    assert settings_for("kl_dp", {"reading": "authors", "weight_decay": 0.5}).weight_decay == 0.5
    mcl = settings_for("xe_kl_mcl", {})
    assert (mcl.lr, mcl.kl_weight, mcl.mcl_tau, mcl.mcl_every) == (1e-2, 0.7, 0.9999, 2)
    assert settings_for("kl", {}).lr == 1e-4


def test_unused_settings_stay_at_their_default_so_that_rows_do_not_claim_them() -> None:
    assert settings_for("cd", {"temperature": 4.0}).temperature == 1.0
    assert settings_for("kl", {"temperature": 4.0, "kl_weight": 0.9, "mcl_tau": 0.5}) == Settings(temperature=4.0)
    assert settings_for("kl", {"augment": "none", "views": 4}).views == 1


@pytest.mark.parametrize(
    ("objective", "given", "what"),
    [
        ("kl_pd", {}, "did you mean 'kl_dp'"),
        ("cd", {"top_k": 10}, "top_k = 10"),
        ("crd", {"flips": "positive"}, "flips"),
        ("kl_dp", {"flips": "negative"}, "flips"),
        ("self_distillation", {"flips": "positive"}, "flips"),
        ("kl", {"multi_teacher": "parallel"}, "data partition"),
        ("cd", {"micro_batch": 8}, "micro_batch"),
        ("crd", {"micro_batch": 8}, "micro_batch"),
        ("xe_kl_mcl", {"micro_batch": 8, "reading": "authors"}, "micro_batch"),
        ("kl", {"epochs": 2, "warmup_epochs": 3}, "warmup_epochs"),
    ],
)
def test_refused(objective: str, given: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        settings_for(objective, given)


def test_only_partitions_know_parallel_teachers() -> None:
    assert [name for name in OBJECTIVES if supports(name, "parallel")] == ["kl_dp", "kl_dp_unsupervised"]
    assert all(supports(name, mode) for name in OBJECTIVES for mode in ("single", "sequential", "soup"))
    (run,) = multi_teacher_specs(spec("kl"), "parallel")
    with pytest.raises(UsageError, match="data partition"):
        needed(run)


def test_a_plain_transfer_reads_the_teacher_and_a_partition_the_frozen_student_too() -> None:
    plain, partitioned = needed(spec("kl", ("a",))), needed(spec("kl_dp", ("a",)))
    assert [(p.model, p.split, p.view) for p in plain] == [
        ("s", "val", -1), ("a", "val", -1), ("a", "train", 0), ("a", "train", 1),
    ]  # fmt: skip
    assert set(plain) < set(partitioned)
    assert {(p.model, p.view) for p in set(partitioned) - set(plain)} == {("s", 0), ("s", 1)}


def test_contrastive_objectives_read_features_and_authors_need_a_live_teacher() -> None:
    assert all(p.features for p in needed(spec("crd", ("a",))) if p.split == "train")
    authors = spec("cd", ("a",), reading="authors")
    assert needs_live_teacher("cd", authors.settings)
    assert [p.split for p in needed(authors)] == ["val", "val"]


def test_the_crop_is_the_students_the_studys_or_none() -> None:
    def crop(**given: Any) -> float:
        return transfer_logits(spec("kl", ("a",), **given), dataset=DATASET, model=record).student_view.crop_pct

    assert crop() == 0.0
    assert crop(augment="flip") == 0.875
    assert crop(augment="flip", crop_pct=0.7) == 0.7
    assert crop(augment="flip", crop="student") == 0.9


def test_a_crop_that_plays_no_part_makes_no_other_job() -> None:
    assert settings_for("kl", {"crop_pct": 0.7}) == settings_for("kl", {})
    assert settings_for("kl", {"crop_pct": 0.7, "augment": "flip"}) != settings_for("kl", {"augment": "flip"})


@pytest.mark.parametrize(
    ("change", "what"), [({"labelled": False}, "no labels"), ({"splits": {"val": 9}}, "no split 'train'")]
)
def test_a_data_set_that_cannot_carry_a_transfer_is_refused(change: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        needed_logits(spec(), dataset=replace(DATASET, **change), model=record)


def test_views_without_randomness_are_shared_by_all_seeds() -> None:
    still = [p for p in needed(spec("kl", ("a",), augment="none")) if p.split == "train"]
    assert [(p.view, p.view_seed) for p in still] == [(0, 0)]


class TestMultiTeacher:
    def test_a_sequence_of_one_is_the_single_transfer(self) -> None:
        (only,) = multi_teacher_specs(spec(teachers=("a",)), "sequential")
        assert transfer_digest(only) == job_digest("transfer", as_spec(spec(teachers=("a",))))

    def test_a_chain_starts_each_stage_where_the_last_one_ended(self) -> None:
        first, second, third = multi_teacher_specs(spec(), "sequential")
        assert [s.teachers for s in (first, second, third)] == [("a",), ("a", "b"), ("a", "b", "c")]
        assert [stage_number(s) for s in (first, second, third)] == [0, 1, 2]
        assert first == replace(spec(teachers=("a",)), settings=replace(spec().settings, keep="all"))
        assert [s.settings.keep for s in (first, second, third)] == ["all", "all", "none"]
        assert stage_start_key(first) == "s"
        students = intermediate_students(record("s"), [first, second, third])
        assert [job_of_weights(student) for student in students] == [transfer_digest(first), transfer_digest(second)]
        assert [stage_start_key(second), stage_start_key(third)] == [student.key for student in students]
        assert needed_transfers(third) == [second]

    def test_a_stage_reads_its_own_teacher_and_the_student_before_it(self) -> None:
        third = multi_teacher_specs(spec(), "sequential")[-1]
        trained = {p.model for p in needed(third) if p.split == "train"}
        assert trained == {"c", stage_start_key(third)}
        assert {p.model for p in needed(third) if p.split == "val"} == {"s", "a", "b", "c", stage_start_key(third)}

    def test_chains_with_a_common_beginning_share_it(self) -> None:
        left = multi_teacher_specs(spec(teachers=("a", "b", "c")), "sequential")
        right = multi_teacher_specs(spec(teachers=("a", "b", "d")), "sequential")
        assert left[:2] == right[:2]

    def test_a_soup_reuses_the_singles(self) -> None:
        *singles, soup = multi_teacher_specs(spec(), "soup")
        assert [s.teachers for s in singles] == [("a",), ("b",), ("c",)]
        assert needed_transfers(soup) == singles
        assert not [p for p in needed(soup) if p.split == "train"]
        planned = [spec(teachers=("a",)), spec(teachers=("x",)), *singles, soup]
        merged = merge_kept(planned)
        assert len(merged) == 5  # a once, and kept
        assert merged[0] == singles[0]

    def test_order(self) -> None:
        teachers = [record("a", 70.0), record("b", 60.0), record("c")]
        ordered = order_teachers(teachers, order="ascending", accuracy={"c": 65.0})
        assert [t.key for t in ordered] == ["b", "c", "a"]
        assert [t.key for t in order_teachers(teachers, order="descending", accuracy={"c": 65.0})] == ["a", "c", "b"]
        assert order_teachers(teachers, order="given") == teachers
        with pytest.raises(PairsError, match="'model c' is not known yet"):
            order_teachers(teachers, order="ascending")

    def test_an_unknown_mode_is_refused(self) -> None:
        with pytest.raises(UsageError, match="stew"):
            multi_teacher_specs(spec(), "stew")
