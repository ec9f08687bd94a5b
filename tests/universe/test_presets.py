"""Presets against the paper's tables and claims, and against hand counts."""

from __future__ import annotations

import msgspec
import pytest

from kt_study.errors import UsageError
from kt_study.published import read_table
from kt_study.settings import Settings
from orchestrator.planning.presets import Search, TransferPair, preset, presets
from orchestrator.planning.universe.table import by_name
from tests.universe.preset_counts import pairs_per_objective, runs_of

CLAIMS = {row["id"]: float(row["value"]) for row in read_table("claims")}
TABLE6_NAMES = {  # Table 7's spelling -> Table 6's
    "XCiT-P16": "XCiT-large-24-p16",
    "PiT-B": "PiT-B",
    "SWSL-ResNext101": "SWSL-ResNext101",
    "Volo-D2": "VOLO-D2",
    "ResMLP-36": "ResMLP-36",
    "CoaT-lite-mini": "CoaT-lite-mini",
}


def timm_names(table: int) -> dict[tuple[str, str], str]:
    return {(row["role"], row["paper_name"]): row["timm_name"] for row in read_table(f"table{table}_models")}


@pytest.mark.parametrize(
    ("name", "per_objective", "runs"),
    [
        (
            "paper-10pct",
            dict.fromkeys(["kl", "xe_kl", "xe_kl_mcl", "kl_dp", "kl_dp_unsupervised"], 20 * 20 - 1),
            5 * 399,
        ),
        ("paper-full", dict.fromkeys(["kl", "kl_dp", "kl_dp_unsupervised"], 8 * 4), 3 * 32),
        ("paper-multi", {"kl_dp": 9 + 3, "kl": 9 + 3}, (9 + 3 * 3) + (9 + 2 * 3)),
        ("paper-contrastive", {"cd": 399, "crd": 399}, 2 * 399),
        (
            "paper-hyperparameters",
            {"kl": 33, "xe_kl": 33, "xe_kl_mcl": 6, "kl_dp": 6},
            33 * 4 + 33 * 8 + 6 * 16 + 6 * 3,
        ),
        ("paper-datasets", dict.fromkeys(["kl", "xe_kl_mcl", "kl_dp"], 3 * 9 * 4), 3 * 3 * 36),
        ("paper-domain-shift", dict.fromkeys(["kl", "xe_kl_mcl", "kl_dp"], 32), 3 * 32),
    ],
)
def test_counts(name: str, per_objective: dict[str, int], runs: int) -> None:
    assert pairs_per_objective(preset(name)) == per_objective
    assert len(runs_of(preset(name))) == runs


def test_all_presets_are_counted_above() -> None:
    assert len(presets()) == 7
    assert all(preset(name).name == name for name in presets())


@pytest.mark.parametrize("name", presets())
def test_every_preset_can_be_planned(name: str) -> None:
    chosen = preset(name)
    assert set(chosen.models()) <= set(by_name())
    assert {arm.dataset for arm in chosen.arms} <= {dataset.name for dataset in chosen.datasets}
    assert {step.dataset for step in chosen.fine_tuning} <= {dataset.name for dataset in chosen.datasets}
    for _, pair, settings in runs_of(chosen):
        assert pair.student not in pair.teachers
        assert (settings["multi_teacher"] == "single") == (len(pair.teachers) == 1)
    for arm in chosen.arms:
        assert len(set(arm.pairs)) == len(arm.pairs)
        for point in arm.points():
            read = msgspec.convert(point, Settings)
            assert {field: getattr(read, field) for field in point} == point


def test_the_settings_are_the_papers() -> None:
    points = {arm.objective: arm.points()[0] for arm in preset("paper-10pct").arms}
    for objective, point in points.items():
        assert point["lr"] == (CLAIMS["mcl_lr"] if objective == "xe_kl_mcl" else CLAIMS["lr_kl"])
        assert point["temperature"] == CLAIMS["temperature"]
        assert point["epochs"] == CLAIMS["epochs"]
        assert (point["momentum"], point["weight_decay"]) == (CLAIMS["momentum"], CLAIMS["weight_decay"])
    mcl = points["xe_kl_mcl"]
    assert (mcl["mcl_tau"], mcl["mcl_every"]) == (CLAIMS["mcl_tau"], CLAIMS["mcl_every"])
    assert mcl["kl_weight"] == CLAIMS["mcl_lambda"]
    assert preset("paper-10pct").datasets[0].train_fraction == pytest.approx(
        CLAIMS["subset"] * 1000 / 1_281_167, abs=2e-3
    )


def test_10pct_is_table_5_without_the_one_self_pair() -> None:
    models = timm_names(5)
    students = [name for (role, _), name in models.items() if role == "student"]
    teachers = [name for (role, _), name in models.items() if role == "teacher"]
    every = {(s, t) for s in students for t in teachers}
    ours = {(pair.student, pair.teachers[0]) for pair in preset("paper-10pct").pairs()}
    assert len(every) == CLAIMS["pairs_transfer"]
    assert every - ours == {("resmlp_36_224.fb_in1k", "resmlp_36_224.fb_in1k")}
    assert preset("paper-contrastive").pairs() == preset("paper-10pct").pairs()


def test_full_and_domain_shift_are_table_6() -> None:
    expected = {
        (student, teacher)
        for (role, _), student in timm_names(6).items()
        if role == "student"
        for (other, _), teacher in timm_names(6).items()
        if other == "teacher"
    }
    for name in ("paper-full", "paper-domain-shift"):
        assert {(pair.student, pair.teachers[0]) for pair in preset(name).pairs()} == expected


def test_the_three_teachers_of_paper_multi_have_table_4s_figures() -> None:
    models = timm_names(6)
    arms = [arm for arm in preset("paper-multi").arms if arm.settings["multi_teacher"] != "single"]
    teachers = {pair.teachers for arm in arms for pair in arm.pairs}
    assert len(teachers) == 1
    for printed in read_table("table4_multi_teacher_kl_dp"):
        if printed["student"] == "Twins":  # not a student of Table 7
            continue
        deltas = [
            float(row["delta_transf"])
            for row in read_table("table7_pairs")
            if (row["student"], row["objective"]) == (printed["student"], "kl_dp")
            and models["teacher", TABLE6_NAMES[row["teacher"]]] in next(iter(teachers))
        ]
        assert sum(deltas) / 3 == pytest.approx(float(printed["single_mean"]), abs=0.006)
        assert (min(deltas), max(deltas)) == (float(printed["single_min"]), float(printed["single_max"]))


def test_the_teachers_of_paper_multi_ascend() -> None:
    accuracy = {row["timm_name"]: float(row["acc"]) for row in read_table("table6_models")}
    teachers = preset("paper-multi").arms[1].pairs[0].teachers
    assert [accuracy[name] for name in teachers] == [79.77, 84.29, 85.19]


def test_paper_multi_has_the_columns_of_tables_4_and_9() -> None:
    for objective, table in (("kl_dp", "table4_multi_teacher_kl_dp"), ("kl", "table9_multi_teacher_kl")):
        modes = {arm.settings["multi_teacher"] for arm in preset("paper-multi").arms if arm.objective == objective}
        columns = {column for column in read_table(table)[0] if column in {"sequential", "parallel", "soup"}}
        assert modes == columns | {"single"}
    accuracy = {row["student"]: float(row["acc"]) for row in read_table("table4_multi_teacher_kl_dp")}
    published = {by_name()[pair.student].top1 for pair in preset("paper-multi").pairs()}
    assert published == set(accuracy.values())


def test_the_33_pairs_are_of_table_5_and_always_the_same() -> None:
    kl = preset("paper-hyperparameters").arms[0]
    assert set(kl.pairs) <= set(preset("paper-10pct").pairs())
    assert {point["lr"] for point in kl.points()} == {1e-2, 1e-3, 1e-4, 1e-5}


def test_paper_datasets_trains_new_heads_for_all_its_models() -> None:
    chosen = preset("paper-datasets")
    students = {pair.student for pair in chosen.pairs()}
    assert (len(students), len({pair.teachers for pair in chosen.pairs()})) == (9, 4)
    assert [(step.dataset, step.scope, set(step.models) == set(chosen.models())) for step in chosen.fine_tuning] == [
        ("cub-200", "head", True),
        ("caltech-256", "head", True),
        ("stanford-cars", "head", True),
    ]


def test_a_search_is_the_grid_or_a_draw_from_it() -> None:
    axes: dict[str, tuple[str | int | float, ...]] = {"lr": (0.1, 0.2, 0.3), "epochs": (1, 2)}
    grid = [{"lr": lr, "epochs": epochs} for lr in (0.1, 0.2, 0.3) for epochs in (1, 2)]
    assert list(Search(axes=axes).points()) == grid
    drawn = [Search(axes=axes, draws=2, seed=seed).points() for seed in range(40)]
    assert all(len(points) == 2 and points[0] != points[1] for points in drawn)
    seen = {grid.index(point) for points in drawn for point in points}
    assert seen == set(range(6))


def test_pairs_of_several_teachers_count_apart() -> None:
    assert TransferPair(student="a", teachers=("b", "c")) != TransferPair(student="a", teachers=("b",))


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"paper-20pct: no such preset; did you mean 'paper-10pct'\? \(there are paper-10pct"
    ):
        preset("paper-20pct")
