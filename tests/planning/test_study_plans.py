"""Plans of study files: the timm universe at its real size, predictions made elsewhere, fine-tuning, grids, costs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from kt_study.cache import SIDE_BYTES
from kt_study.datasets import open_split
from kt_study.errors import UsageError
from kt_study.records import DatasetRecord, LogitsSpec, ModelRecord, TrainSpec
from kt_study.settings import Settings
from orchestrator.planning import PlanOptions, cost, model_records, plan_cost
from orchestrator.planning.cost import all_pairs_s
from orchestrator.planning.universe.table import by_name
from tests.cli import succeeds
from tests.data.support import image_folder
from tests.databases import Databases
from tests.photos import photos_dir
from tests.planning.support import (
    DIGITS,
    FOUR,
    assert_sound,
    model_table,
    plan_of,
    run_jobs,
    save_resnet,
    sources_of,
    specs_of,
    write_study,
)
from worker.logits import LogitsCache
from worker.logits.columns import SIDE


def timm_study(*, train: bool) -> str:
    photos = photos_dir()
    lines = f'[study]\nname = "timm"\n[dataset]\nkind = "imagefolder"\nval = "{photos}"\n'
    return lines + (f'train = "{photos}"\n' if train else "") + '[models]\nuniverse = "timm"\n'


def test_the_dry_run_of_the_papers_sample(tmp_path: Path) -> None:
    write_study(tmp_path, timm_study(train=False))
    output = succeeds(tmp_path, "plan", "--dry-run")
    assert "complementarity: 466 ordered pairs of 301 models" in output
    assert "jobs: 466 complementarity, 301 logits" in output
    assert f"cost: {301 * 200:,} images forwarded once" in output
    assert "GPU-hours" in output
    assert "no training samples" in output
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def test_the_whole_universe_is_planned_in_seconds(tmp_path: Path) -> None:
    began = time.process_time()
    sampled = plan_of(tmp_path, timm_study(train=True))
    assert {job.kind for job in sampled.jobs.values()} == {"complementarity", "logits", "transfer"}
    assert (len(sampled.complementarity_pairs), len(sampled.runs)) == (466, 2 * 400)
    assert plan_cost(sampled).complementarity_models == 301
    every = plan_of(tmp_path, timm_study(train=True), options=PlanOptions(complementarity_pairs="all", pairs=0))
    assert time.process_time() - began < 10
    n = sum(model.trained_head for model in by_name().values())
    assert dict(every.by_kind()) == {"all_pairs": 1, "logits": n}
    assert plan_cost(every).complementarity_pairs == n * (n - 1)
    assert_sound(every)


def test_a_filter_by_published_top1_says_how_few_have_one(tmp_path: Path) -> None:
    known = sum(model.top1 is not None for model in by_name().values())
    assert known < len(by_name()) / 2
    few = plan_of(tmp_path, timm_study(train=False), "top1_min = 70.0\n")
    assert f"timm publishes a top-1 for {known} of its {len(by_name()):,} models" in " ".join(few.notes)
    assert all(model.top1_published is not None for model in few.models)
    assert not any("publishes" in note for note in plan_of(tmp_path, timm_study(train=False)).notes)


def test_a_table_that_takes_the_place_of_a_model_of_timms_is_noted(tmp_path: Path) -> None:
    table = model_table("resnet18.a1_in1k", num_classes=1000)
    plan = plan_of(tmp_path, timm_study(train=False), table, options=PlanOptions(complementarity_pairs=1, pairs=0))
    assert "[[model]] 'resnet18.a1_in1k' replaces timm's model of that name" in plan.notes
    (own,) = [model for model in plan.models if model.name == "resnet18.a1_in1k"]
    assert own.weights == "random:0"


def test_zero_pairs_are_none(tmp_path: Path) -> None:
    assert not plan_of(tmp_path, DIGITS, *FOUR, options=PlanOptions(complementarity_pairs=0, pairs=0)).jobs


def test_every_pass_is_planned_once_and_shared(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, DIGITS, '[transfer]\naugment = "flip"\nviews = 3\n', *FOUR)
    assert_sound(plan)
    passes = [
        (job.spec["model"], job.spec["split"], job.spec.get("view", -1))
        for job in plan.jobs.values()
        if job.kind == "logits"
    ]
    assert len(passes) == len(set(passes)) == 4 * (1 + 3)
    summed = plan_cost(plan)
    train, val = plan.datasets[0].splits["train"], plan.datasets[0].splits["val"]
    assert summed.forwards == 4 * (val + 3 * train)
    assert summed.cache_bytes == summed.forwards * (2 * 10 + 7 * 4)
    assert (summed.runs, summed.transfers, summed.transfer_pairs) == (24, 24, 12)


def test_side_columns_are_as_wide_as_the_cost_says() -> None:
    assert SIDE.itemsize == SIDE_BYTES


def test_a_grid_is_every_combination_that_the_objective_uses(tmp_path: Path) -> None:
    grid = {"lr": (1e-3, 1e-4), "temperature": (0.1, 1.0, 10.0)}
    transfer = '[transfer]\npairs = 2\nobjectives = ["kl", "cd"]\naugment = "none"\n'
    plan = plan_of(tmp_path, DIGITS, transfer, *FOUR, options=PlanOptions(grid=grid))
    points = {objective: set() for objective in ("kl", "cd")}
    for spec in specs_of(plan, "transfer"):
        points[spec.objective].add((spec.settings.lr, spec.settings.temperature))
    assert points["kl"] == {(lr, t) for lr in grid["lr"] for t in grid["temperature"]}
    assert points["cd"] == {(lr, Settings().temperature) for lr in grid["lr"]}  # it has no temperature
    assert plan_cost(plan).runs == 2 * (6 + 2)


def test_estimates_follow_arithmetic_and_loader() -> None:
    """By hand: ResNet-50 has 4.1 GMACs, so 2 * 4.1e9 / 1.2e13 s a forward; a split too large for memory is decoded in
    every epoch at 1,500 images a second."""
    imagenet = DatasetRecord(
        key="d", name="d", kind="imagefolder", n_classes=1000, splits={"train": 1_000_000, "val": 50_000}
    )
    model = ModelRecord(
        key="m", name="m", family="cnn", weights="x", input_size=(3, 224, 224), mean=(), std=(), gmacs=4.1, params=25.6
    )
    small = msgspec.structs.replace(model, gmacs=0.1)
    assert cost.forward_s(model, imagenet, "val") == pytest.approx(2 + 50_000 * 8.2e9 / 1.2e13)
    assert cost.forward_s(small, imagenet, "val") == pytest.approx(2 + 50_000 / 1_500)
    epochs = 20 * (3 * 1_000_000 + 50_000) * 8.2e9 / 1.2e13
    assert cost.transfer_s(model, imagenet, Settings(epochs=20)) == pytest.approx(2 + epochs)
    ffcv = Settings(epochs=20, loader="ffcv", eval_every=0)
    assert cost.transfer_s(small, imagenet, ffcv) == pytest.approx(2 + 20_000_000 / 6_000 + 50_000 / 1_500)
    assert cost.transfer_s(model, imagenet, Settings(multi_teacher="soup")) == cost.forward_s(model, imagenet, "val")
    few = msgspec.structs.replace(imagenet, splits={"train": 10_000, "val": 0})  # 1.5 GB of images
    assert cost.transfer_s(small, few, Settings(epochs=20)) == pytest.approx(
        2 + max(2 * 10_000 / 1_500, 60 * 10_000 * 0.2e9 / 1.2e13)
    )


def test_fine_tuning_gives_every_model_a_last_layer_for_the_data(tmp_path: Path) -> None:
    seven = [model_table(f"m{i}", num_classes=7, arguments={"drop_rate": i / 10}) for i in range(3)]
    tuned = '[fine_tuning]\nscope = "head"\nepochs = 2\n[transfer]\naugment = "none"\n'
    plan = plan_of(tmp_path, DIGITS, tuned, *seven)
    assert_sound(plan)
    assert {model.num_classes for model in plan.models} == {10}
    assert [model.name for model in plan.models] == ["m0", "m1", "m2"]
    assert {model.num_classes for model in plan.others} == {7}
    specs = [msgspec.convert(job.spec, TrainSpec) for job in plan.jobs.values() if job.kind == "train"]
    assert [(s.scope, s.epochs, s.batch_size, s.lr) for s in specs] == [("head", 2, 256, 0.1)] * 3
    only = plan_of(tmp_path, DIGITS, '[fine_tuning]\nmodels = ["m1"]\n', *FOUR)
    assert only.by_kind()["train"] == 1


def test_a_trained_model_can_be_trained_on(tmp_path: Path) -> None:
    study = '[models]\nuniverse = "digits-zoo"\n[transfer]\npairs = 0\n[fine_tuning]\nscope = "all"\nepochs = 1\n'
    plan = plan_of(tmp_path, DIGITS, study)
    assert_sound(plan)
    trains = [job for job in plan.jobs.values() if job.kind == "train"]
    assert [len(job.needs) for job in trains] == [0] * 12 + [1] * 12


def test_teachers_from_another_domain_teach_at_home(tmp_path: Path) -> None:
    """As the paper's Section B.5, small: both models are trained on images and then transfer on the digits."""
    for split in ("train", "val"):
        image_folder(tmp_path / "images" / split, {"cat": 6, "dog": 6, "eel": 6})
    second = '[fine_tuning.dataset]\nkind = "imagefolder"\ntrain = "images/train"\nval = "images/val"\nname = "p"\n'
    tuned = '[fine_tuning]\nscope = "body"\nmodels = ["m0"]\nepochs = 1\naugment = "flip"\n'
    transfer = '[transfer]\nobjectives = ["kl_dp"]\nepochs = 1\naugment = "none"\nteachers = ["m0@p"]\n'
    plan = plan_of(tmp_path, DIGITS, transfer, tuned, second, *FOUR[:2])
    assert_sound(plan)
    assert [dataset.n_classes for dataset in plan.datasets] == [10, 3]
    rows = run_jobs(plan, sources_of(tmp_path), "train", "logits", "transfer")
    (trained,) = rows["trainings"]
    (transferred,) = rows["transfers"]
    assert (trained["dataset"], trained["model"]) == ("p", "m0@p")
    assert (transferred["dataset"], transferred["teacher"], transferred["student"]) == ("digits", "m0@p", "m1")
    assert transferred["teacher_key"] == trained["model_key"]


TWO = (
    model_table("one", num_classes=None, input_size=[3, 32, 32]),
    model_table("two", "test_efficientnet", num_classes=None, input_size=[3, 32, 32]),
)
NO_TRANSFERS = "[transfer]\npairs = 0\n[complementarity]\npairs = 2\n"


def _forwarded(folder: Path) -> dict[str, list[dict[str, object]]]:
    """Rows of two tiny models forwarded here; their predictions are files in `folder`/p."""
    image_folder(folder / "photos", {"cat": 7, "dog": 9, "eel": 6, "fox": 8})
    np.save(folder / "e.npy", np.random.default_rng(0).normal(size=(4, 5)))
    head = '[study]\nname = "x"\n[dataset]\nkind = "imagefolder"\nval = "photos"\nclass_embeddings = "e.npy"\n'
    plan = plan_of(folder, head, NO_TRANSFERS, *TWO)
    rows = run_jobs(plan, sources_of(folder), "logits", "complementarity")
    paths, dataset = sources_of(folder).paths, plan.datasets[0]
    split = open_split(dataset, "val", paths)
    for model in plan.models:
        (spec,) = [job.spec for job in plan.jobs.values() if job.kind == "logits" and job.spec["model"] == model.key]
        entry = LogitsCache(paths).open(msgspec.convert(spec, LogitsSpec))
        assert entry is not None
        frame = pd.DataFrame(
            {
                "sample_index": split.listing.names,
                "predicted": [split.class_names[i] for i in entry.argmax],
                "label": [split.class_names[i] for i in split.listing.labels],
            }
        )
        (folder / "p").mkdir(exist_ok=True)
        frame.sample(frac=1.0, random_state=1).to_csv(folder / "p" / f"{model.name}.csv", index=False)
    return rows


def test_predictions_made_elsewhere_give_the_rows_of_models_forwarded_here(tmp_path: Path) -> None:
    here = _forwarded(tmp_path)
    head = '[study]\nname = "x"\n[dataset]\nkind = "predictions"\npath = "p"\nclass_embeddings = "e.npy"\n'
    plan = plan_of(tmp_path, head, "[complementarity]\npairs = 2\n")
    assert_sound(plan)
    assert [model.name for model in plan.models] == ["one", "two"]
    assert [model.family for model in plan.models] == ["unknown", "unknown"]
    assert plan.notes == ["no transfers: predictions made elsewhere have no models to train"]
    there = run_jobs(plan, sources_of(tmp_path), "logits", "complementarity")
    names = {"dataset", "dataset_key", "teacher_key", "student_key", "source"}
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in names} for row in found["complementarity"]]
        for found in (here, there)
    )
    assert ours == theirs
    assert {row["similarity"] for row in there["complementarity"]} == {"embeddings"}
    assert {row["source"] for row in here["complementarity"]} == {"forwarded here"}
    assert {row["source"] for row in there["complementarity"]} == {"predictions made elsewhere"}
    flips = [{k: v for k, v in row.items() if k != "dataset"} for row in here["class_flips"]]
    assert flips == [{k: v for k, v in row.items() if k != "dataset"} for row in there["class_flips"]]
    by_number = _by_number(tmp_path, head)
    assert [{k: v for k, v in row.items() if k not in names} for row in by_number["complementarity"]] == theirs
    assert by_number["class_flips"] == there["class_flips"]


def _by_number(folder: Path, head: str) -> dict[str, list[dict[str, object]]]:
    """Rows of the same predictions with classes by number, and the names in a list."""
    names = ["cat", "dog", "eel", "fox"]
    (folder / "names.txt").write_text("\n".join(names) + "\n")
    for file in (folder / "p").iterdir():
        frame = pd.read_csv(file).replace({name: i for i, name in enumerate(names)})
        frame.to_csv(file, index=False)
    plan = plan_of(folder, head, 'class_names = "names.txt"\n', "[complementarity]\npairs = 2\n")
    return run_jobs(plan, sources_of(folder), "logits", "complementarity")


def test_predictions_named_after_a_timm_model_have_its_family(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for number, name in enumerate(("vit_base_patch16_224.augreg_in21k_ft_in1k", "my.model")):
        (folder / f"{name}.csv").write_text(f"sample_index,predicted,label\n0,{number},1\n1,0,0\n")
    head = '[study]\nname = "x"\n[dataset]\nkind = "predictions"\npath = "p"\n'
    plan = plan_of(tmp_path, head)
    mine, vit = plan.models
    assert (mine.family, vit.family, vit.params) == ("unknown", "transformer", by_name()[vit.name].params)
    assert vit.weights.startswith("predictions:")
    every = plan_of(tmp_path, head, options=PlanOptions(complementarity_pairs="all"))
    assert dict(every.by_kind()) == {"all_pairs": 1, "logits": 2}


def test_class_embeddings_do_not_change_the_data_set(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.eye(10))
    without = plan_of(tmp_path, DIGITS, *FOUR)
    given = plan_of(tmp_path, DIGITS, 'class_embeddings = "e.npy"\n', *FOUR)
    assert given.datasets[0].location["class_embeddings"] == str((tmp_path / "e.npy").resolve())
    assert given.datasets[0].key == without.datasets[0].key
    assert list(given.jobs) == list(without.jobs)


def test_what_measures_the_similarity_of_classes_is_a_setting_of_the_pairs_alone(tmp_path: Path) -> None:
    unset = plan_of(tmp_path, DIGITS, *FOUR)
    assert list(plan_of(tmp_path, DIGITS, 'class_similarity = "auto"\n', *FOUR).jobs) == list(unset.jobs)
    (tmp_path / "w").mkdir()
    (tmp_path / "clip.pt").touch()
    files = 'clip_weights = "clip.pt"\nwordnet = "w"\n'
    requested = plan_of(tmp_path, DIGITS, 'class_similarity = "wordnet"\n', files, *FOUR)
    changed = {requested.jobs[digest].kind for digest in set(requested.jobs) - set(unset.jobs)}
    assert changed == {"complementarity"}
    location = requested.datasets[0].location
    assert (location["clip_weights"], location["wordnet"]) == (str(tmp_path / "clip.pt"), str(tmp_path / "w"))
    every = plan_of(
        tmp_path, DIGITS, 'class_similarity = "none"\n', *FOUR, options=PlanOptions(complementarity_pairs="all")
    )
    (job,) = [job for job in every.jobs.values() if job.kind == "all_pairs"]
    assert job.spec["class_similarity"] == "none"


def test_pairs_are_compared_by_the_similarity_that_was_asked_for(tmp_path: Path) -> None:
    """One worker, pairs of three studies of one data set."""
    image_folder(tmp_path / "photos", {"cat": 7, "dog": 9, "eel": 6, "fox": 8})
    np.save(tmp_path / "e.npy", np.eye(4, 5))
    (tmp_path / "w").mkdir()
    head = '[study]\nname = "x"\n[dataset]\nkind = "imagefolder"\nval = "photos"\nclass_embeddings = "e.npy"\n'
    auto, none, wordnet = (
        plan_of(tmp_path, head, f'wordnet = "w"\nclass_similarity = "{name}"\n', NO_TRANSFERS, *TWO)
        for name in ("auto", "none", "wordnet")
    )
    auto.jobs.update(none.jobs)
    rows = run_jobs(auto, sources_of(tmp_path), "logits", "complementarity")["complementarity"]
    assert [row["similarity"] for row in rows] == ["embeddings", "embeddings", None, None]
    with pytest.raises(UsageError, match="class similarity 'wordnet' cannot be used: no WordNet in "):
        run_jobs(wordnet, sources_of(tmp_path), "logits", "complementarity")


def test_all_pairs_are_estimated_with_the_similarity_of_their_classes() -> None:
    """0.025 ms a pair and 1,000 classes, measured; without classes only the pass over bits."""
    few, many = (
        DatasetRecord(key="d", name="d", kind="digits", n_classes=n, splits={"val": 50_000}) for n in (0, 1000)
    )
    assert all_pairs_s(301, few) < 5
    assert 1_000 * 999 * 0.25e-4 < all_pairs_s(1_000, many) < 1_000 * 999 * 1e-4


def test_planning_twice_adds_nothing_and_a_wider_plan_its_own(tmp_path: Path, databases: Databases) -> None:
    write_study(tmp_path, DIGITS, '[transfer]\naugment = "none"\n', *FOUR)
    databases.settle(tmp_path)
    first = json.loads(succeeds(tmp_path, "plan", "--pairs", "3", "--json"))
    again = json.loads(succeeds(tmp_path, "plan", "--pairs", "3", "--json"))
    assert (again["new"], again["existing"]) == (0, first["new"])
    wider = json.loads(succeeds(tmp_path, "plan", "--pairs", "5", "--json"))
    assert wider["new"] == 2 * 2 + _more_logits(first, wider)
    index = list((tmp_path / "cache" / "datasets").iterdir())
    assert len(index) == 1


def _more_logits(first: dict[str, dict[str, int]], wider: dict[str, dict[str, int]]) -> int:
    return wider["jobs"]["logits"] - first["jobs"]["logits"]


def test_a_checkpoint_is_read_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_resnet(tmp_path / "w.safetensors")
    write_study(tmp_path, DIGITS, *FOUR, model_table("own", random_weights=None, checkpoint="w.safetensors"))
    succeeds(tmp_path, "plan", "--pairs", "0")
    assert (tmp_path / "cache" / "digests.json").is_file()
    monkeypatch.setattr(model_records, "file_digest", lambda _: pytest.fail("the file was read again"))
    plan = plan_of(tmp_path, DIGITS, *FOUR, model_table("own", random_weights=None, checkpoint="w.safetensors"))
    assert "own" in {model.name for model in plan.models}
