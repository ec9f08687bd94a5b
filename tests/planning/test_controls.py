"""Controls: which are planned beside which objectives, and what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_study.errors import UsageError
from orchestrator.planning import Plan, PlanOptions
from tests.cli import kt_study
from tests.data.support import image_folder
from tests.planning.support import DIGITS, FOUR, assert_sound, plan_of, specs_of


def plan(folder: Path, objectives: str, *, more: str = "", flag: bool = False) -> Plan:
    transfer = f"[transfer]\npairs = 12\nobjectives = {objectives}\n{more}"
    found = plan_of(folder, DIGITS, transfer, *FOUR, wishes=PlanOptions(controls=flag))
    assert_sound(found)
    return found


@pytest.mark.parametrize(
    ("objectives", "controls"),
    [
        ('["kl"]', {"labels", "self_distillation"}),
        ('["kl_dp"]', {"labels", "self_distillation", "kl_dp_random", "kl_dp_oracle"}),
        ('["kl", "kl_dp_unsupervised", "labels"]', {"self_distillation", "kl_dp_random", "kl_dp_oracle"}),
    ],
)
def test_controls_are_those_of_the_objectives_asked_for(tmp_path: Path, objectives: str, controls: set[str]) -> None:
    without = plan(tmp_path / "a", objectives)
    for found in (
        plan(tmp_path / "b", objectives, more="controls = true\n"),
        plan(tmp_path / "c", objectives, flag=True),
    ):
        added = {spec.objective for spec in specs_of(found, "transfer")} - {
            spec.objective for spec in specs_of(without, "transfer")
        }
        assert added == controls
        assert set(without.jobs) <= set(found.jobs)
        assert set(found.pairs_by_objective().values()) == {12}


def test_controls_without_a_teacher_are_trained_once_per_student(tmp_path: Path) -> None:
    """Four students of three teachers each: 12 transfers of `labels` and 12 of `self_distillation` from 8 trainings."""
    found = plan(tmp_path, '["kl"]', flag=True)
    assert (found.by_kind()["transfer"], found.by_kind()["shared"]) == (36, 8)


def test_settings_that_a_control_does_not_use_are_not_refused(tmp_path: Path) -> None:
    found = plan(tmp_path, '["kl"]', more='flips = "positive"\ntemperature = 2.0\n', flag=True)
    temperatures = {spec.objective: spec.settings.temperature for spec in specs_of(found, "transfer")}
    assert temperatures == {"kl": 2.0, "self_distillation": 2.0, "labels": 1.0}
    assert {spec.settings.flips for spec in specs_of(found, "transfer") if spec.objective != "kl"} == {"all"}


def test_controls_have_one_teacher(tmp_path: Path) -> None:
    found = plan(tmp_path, '["kl_dp"]', more='multi_teacher = ["soup"]\nteachers_per_student = 2\n', flag=True)
    assert {spec.objective for spec in specs_of(found, "soup")} == {"kl_dp"}


def test_an_objective_without_controls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^labels, self_distillation: no controls belong to this; add an objective with"
    ):
        plan(tmp_path, '["labels", "self_distillation"]', flag=True)


def test_where_the_training_set_has_no_labels_those_that_read_them_are_left_out(tmp_path: Path) -> None:
    image_folder(tmp_path / "val", {"cat": 3, "dog": 3})
    image_folder(tmp_path / "train", {"any": 6})
    study = (
        '[study]\nname = "s"\n[dataset]\nkind = "imagefolder"\ntrain = "train"\nval = "val"\nlabels = "val"\n'
        '[transfer]\nobjectives = ["kl_dp_unsupervised"]\ncontrols = true\n'
    )
    found = plan_of(tmp_path, study, *FOUR)
    assert {spec.objective for spec in specs_of(found, "transfer")} == {"kl_dp_unsupervised", "self_distillation"}
    (note,) = [note for note in found.notes if note.startswith("controls")]
    assert note.endswith("has none in train: labels, kl_dp_random, kl_dp_oracle")


def test_a_preset_and_controls_are_refused_in_one_line(tmp_path: Path) -> None:
    refused = kt_study(tmp_path, "plan", "--preset", "paper-10pct", "--controls", "--dry-run")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        "kt-study: --controls and --preset paper-10pct: a preset has its own pairs and settings; drop one\n"
    )
