"""Presets: counts offline, and real plans on folders with the classes of the real data sets."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from kt_study.errors import UsageError
from kt_study.records import TrainSpec
from kt_study.settings import Settings
from orchestrator.planning import Plan, PlanOptions, nominal_plan, preset_plan
from orchestrator.planning.presets import preset, presets
from orchestrator.planning.universe.table import by_name
from tests.cli import succeeds
from tests.databases import Databases
from tests.planning.layouts import cub, domainnet, imagenet
from tests.planning.support import DIGITS, FOUR, assert_sound, sources_of, specs_of, study_of, write_study

VIEWS = 2

# Counted by hand from the tables: single transfers and later stages, soups, trainings, and models that are forwarded.
# One val pass a model; train passes, two views each, for each teacher, and for each student that a partition asks.
JOBS = {
    "paper-10pct": {"transfer": 5 * 399, "logits": 39 + VIEWS * 39},
    "paper-full": {"transfer": 3 * 32, "logits": 12 + VIEWS * 12},
    "paper-multi": {
        # KL+DP: 9 singles, 2 later stages and 1 parallel run for each of 3 students; KL: 9 singles and 2 stages.
        "transfer": (9 + 3 * 2 + 3) + (9 + 3 * 2),
        "soup": 3 + 3,
        # val: 6 models and, for each objective, the 2 students between the stages of 3 sequences.
        # train: 3 teachers, 3 students, and under KL+DP the 6 frozen students of later stages.
        "logits": (6 + 2 * 6) + VIEWS * (3 + 3 + 6),
    },
    # CD and CRD read the teachers' features; nobody asks the frozen student.
    "paper-contrastive": {"transfer": 2 * 399, "logits": 39 + VIEWS * 20},
    "paper-datasets": {"transfer": 3 * 108, "train": 3 * 13, "logits": 3 * (13 + VIEWS * 13)},
    "paper-domain-shift": {"transfer": 3 * 32, "train": 4, "logits": 12 + VIEWS * 12},
}


def nominal(name: str, folder: Path, wishes: PlanOptions | None = None) -> Plan:
    return nominal_plan(preset(name), sources_of(folder), wishes or PlanOptions(), why="a test")


def real(name: str, folder: Path, *parts: str, wishes: PlanOptions | None = None) -> Plan:
    return preset_plan(preset(name), study_of(folder, *parts), sources_of(folder), wishes or PlanOptions())


@pytest.mark.parametrize("name", presets())
def test_counts(name: str, tmp_path: Path) -> None:
    plan = nominal(name, tmp_path)
    assert_sound(plan)
    assert plan.pairs_by_objective() == preset(name).pairs_per_objective()
    assert len(plan.runs) == preset(name).n_runs()
    assert {model.name.partition("@")[0] for model in plan.models} == set(preset(name).models())
    assert set(preset(name).notes) <= set(plan.notes)
    if name in JOBS:
        assert dict(plan.by_kind()) == JOBS[name]


def test_every_run_has_its_own_point_of_the_search(tmp_path: Path) -> None:
    plan = nominal("paper-hyperparameters", tmp_path)
    assert plan.by_kind()["transfer"] == preset("paper-hyperparameters").n_runs() == 510
    rates = {spec.settings.lr for spec in specs_of(plan, "transfer") if spec.objective == "kl"}
    assert rates == {1e-2, 1e-3, 1e-4, 1e-5}


@pytest.mark.parametrize("name", presets())
def test_a_dry_run_needs_no_file_and_leaves_none(name: str, tmp_path: Path) -> None:
    cost = json.loads(succeeds(tmp_path, "plan", "--preset", name, "--dry-run", "--json"))
    assert cost["pairs_by_objective"] == preset(name).pairs_per_objective()
    assert (cost["runs"], cost["models"]) == (preset(name).n_runs(), len(preset(name).models()))
    assert cost["gpu_hours"] == pytest.approx(sum(cost["gpu_hours_by_kind"].values()), abs=0.03)
    assert list(tmp_path.iterdir()) == []


def test_the_text_says_what_was_left_out(tmp_path: Path) -> None:
    said = succeeds(tmp_path, "plan", "--preset", "paper-10pct", "--dry-run")
    assert "1,995 runs; pairs per objective: 399 kl, 399 xe_kl" in said
    assert "note: Table 5 lists ResMLP-36 as a student and as a teacher: that one pair is left out" in said
    assert "dry run: nothing written" in said


def test_a_dry_run_beside_another_study_says_why_its_sizes_are_the_papers(tmp_path: Path) -> None:
    write_study(tmp_path, DIGITS, *FOUR)
    cost = json.loads(succeeds(tmp_path, "plan", "--preset", "paper-full", "--dry-run", "--json"))
    assert cost["pairs_by_objective"]["kl"] == 32
    assert "data set 'digits' of kind 'digits' has 10 classes" in cost["notes"][-1]


def imagenet_study(folder: Path, *more: str) -> tuple[str, ...]:
    imagenet(folder / "in")
    head = '[study]\nname = "p"\n[dataset]\nkind = "imagefolder"\ntrain = "in/train"\nval = "in/val"\n'
    return (head, *more)


def test_a_real_plan_has_the_papers_settings_and_the_files_for_the_rest(tmp_path: Path) -> None:
    more = "[transfer]\nbatch_size = 32\nlr = 1.0\nepochs = 3\nprecision = 'bf16'\n"
    plan = real("paper-full", tmp_path, *imagenet_study(tmp_path, more))
    assert_sound(plan)
    assert plan.pairs_by_objective() == dict.fromkeys(["kl", "kl_dp", "kl_dp_unsupervised"], 32)
    for spec in specs_of(plan, "transfer"):
        assert spec.settings == Settings(lr=1e-4, epochs=20, batch_size=32, precision="bf16")
    assert any("1,281,167 training samples, this data set 12" in note for note in plan.notes)


def test_a_real_plan_goes_into_the_database_once(tmp_path: Path, databases: Databases) -> None:
    write_study(tmp_path, *imagenet_study(tmp_path))
    databases.settle(tmp_path)
    first = json.loads(succeeds(tmp_path, "plan", "--preset", "paper-multi", "--json"))
    again = json.loads(succeeds(tmp_path, "plan", "--preset", "paper-multi", "--json"))
    jobs = sum(JOBS["paper-multi"].values())
    assert (first["new"], first["existing"], again["new"], again["existing"]) == (jobs, 0, 0, jobs)


def test_two_presets_share_what_they_can(tmp_path: Path) -> None:
    parts = imagenet_study(tmp_path)
    one, two = real("paper-10pct", tmp_path, *parts), real("paper-contrastive", tmp_path, *parts)
    shared = [job for digest, job in two.jobs.items() if digest in one.jobs]
    assert {job.kind for job in shared} == {"logits"}
    assert len(shared) == 39  # the val passes; contrastive training passes keep features


def test_single_transfers_are_shared_with_the_preset_that_keeps_them(tmp_path: Path) -> None:
    """XCiT-P16 and PiT-B learn from three teachers under KL and KL+DP in both; one preset's soups read their students."""
    parts = imagenet_study(tmp_path)
    one, two = real("paper-full", tmp_path, *parts), real("paper-multi", tmp_path, *parts)
    shared = [digest for digest in one.jobs if digest in two.jobs and one.jobs[digest].kind == "transfer"]
    assert len(shared) == 2 * 3 * 2
    kept = [[plan.jobs[digest].spec.get("settings", {}).get("keep") for digest in shared] for plan in (one, two)]
    assert kept == [[None] * 12, ["all"] * 12]


def test_a_model_table_replaces_one_of_the_presets_models(tmp_path: Path) -> None:
    name = "pit_b_224.in1k"
    (tmp_path / "pit.safetensors").write_bytes(b"weights")
    table = f'[[model]]\nname = "{name}"\ntimm = "{name}"\ncheckpoint = "pit.safetensors"\n'
    plan = real("paper-full", tmp_path, *imagenet_study(tmp_path), table)
    (ours,) = [model for model in plan.models if model.name == name]
    assert ours.checkpoint == str(tmp_path / "pit.safetensors")
    assert len(plan.models) == 12


def test_complementarity_of_a_presets_models_on_request(tmp_path: Path) -> None:
    parts = imagenet_study(tmp_path)
    assert not real("paper-full", tmp_path, *parts).by_kind()["complementarity"]
    wished = real("paper-full", tmp_path, *parts, wishes=PlanOptions(complementarity_pairs=20))
    assert wished.by_kind()["complementarity"] == 20
    assert (
        real("paper-full", tmp_path, *parts, wishes=PlanOptions(complementarity_pairs="all")).by_kind()["all_pairs"]
        == 1
    )


def test_paper_datasets_trains_new_last_layers_first(tmp_path: Path) -> None:
    cub(tmp_path / "birds")
    head = '[study]\nname = "birds"\nseed = 1\n[dataset]\nkind = "cub200"\npath = "birds"\n'
    plan = real("paper-datasets", tmp_path, head)
    assert_sound(plan)
    assert plan.pairs_by_objective() == dict.fromkeys(["kl", "xe_kl_mcl", "kl_dp"], 36)
    assert dict(plan.by_kind()) == {"train": 13, "transfer": 108, "logits": 13 * (1 + VIEWS)}
    assert [job.kind for job in plan.jobs.values()][:13] == ["train"] * 13
    starts = {model.key: model for model in plan.others}
    for job in list(plan.jobs.values())[:13]:
        spec = msgspec.convert(job.spec, TrainSpec)
        assert (spec.scope, spec.split, spec.epochs, spec.lr, spec.seed) == ("head", "train", 50, 0.1, 1)
        assert starts[spec.start].weights == by_name()[starts[spec.start].name].weights
    for model in plan.models:
        assert model.num_classes == 200
        assert model.weights.removeprefix("train:") in plan.jobs
    trained = {job.digest for job in plan.jobs.values() if job.kind == "train"}
    assert all(set(job.needs) & trained for job in plan.jobs.values() if job.kind == "logits")


def shift_study(folder: Path) -> tuple[str, ...]:
    domainnet(folder / "dn")
    return imagenet_study(folder, '[fine_tuning.dataset]\nkind = "domainnet"\npath = "dn"\nname = "infograph"\n')


def test_paper_domain_shift_trains_its_teachers_on_the_second_data_set(tmp_path: Path) -> None:
    plan = real("paper-domain-shift", tmp_path, *shift_study(tmp_path))
    assert_sound(plan)
    assert [dataset.n_classes for dataset in plan.datasets] == [1000, 345]
    trained = {model.key: model for model in plan.models if model.weights.startswith("train:")}
    assert {model.name for model in trained.values()} == {
        f"{teacher}@infograph" for pair in preset("paper-domain-shift").pairs() for teacher in pair.teachers
    }
    assert {model.num_classes for model in plan.models} == {1000}
    jobs = [msgspec.convert(job.spec, TrainSpec) for job in plan.jobs.values() if job.kind == "train"]
    assert [(job.scope, job.dataset) for job in jobs] == [("body", plan.datasets[1].key)] * 4
    for spec in specs_of(plan, "transfer"):
        assert spec.dataset == plan.datasets[0].key
        assert set(spec.teachers) <= set(trained)
        assert spec.student not in trained


BIRDS = '[study]\nname = "b"\n[dataset]\nkind = "cub200"\npath = "{}"\n'


@pytest.mark.parametrize(
    ("name", "study", "told"),
    [
        ("paper-datasets", "photos", "paper-datasets is about cub-200 (200 classes, kind 'cub200') or caltech-256"),
        ("paper-datasets", "nine birds", "cub200' has 9 classes"),
        ("paper-10pct", "birds", "paper-10pct is about imagenet-1k-10pct (1000 classes"),
        ("paper-domain-shift", "photos", "first trains its teachers on domainnet-infograph: add [fine_tuning.dataset]"),
        ("paper-domain-shift", "nine drawings", "[fine_tuning.dataset] has 9 classes, domainnet-infograph 345"),
        ("paper-full", "only val", "has no training samples; give [dataset] train"),
    ],
)
def test_data_that_do_not_fit_are_refused(name: str, study: str, told: str, tmp_path: Path) -> None:
    cub(tmp_path / "all")
    cub(tmp_path / "nine", 9)
    domainnet(tmp_path / "dn", 9)
    photos = imagenet_study(tmp_path)
    studies = {
        "photos": photos,
        "only val": (photos[0].replace('train = "in/train"\n', ""),),
        "birds": (BIRDS.format("all"),),
        "nine birds": (BIRDS.format("nine"),),
        "nine drawings": (*photos, '[fine_tuning.dataset]\nkind = "domainnet"\npath = "dn"\n'),
    }
    with pytest.raises(UsageError) as caught:
        real(name, tmp_path, *studies[study])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
