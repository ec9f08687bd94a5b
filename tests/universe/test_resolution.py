"""Names to weights."""

from __future__ import annotations

import pytest

from kt_study.errors import UnknownModelError
from kt_study.published import read_table
from orchestrator.planning.universe import note, resolve


def test_a_full_name_is_itself_and_needs_no_note() -> None:
    assert resolve("resnet50.tv_in1k").name == "resnet50.tv_in1k"
    assert note("resnet50.tv_in1k") == ""


def test_a_bare_name_is_the_default_tag_and_the_note_says_so() -> None:
    assert resolve("vit_base_patch16_224").name == "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert "augreg2_in21k_ft_in1k" in note("vit_base_patch16_224")


def test_a_bare_name_whose_default_has_other_classes_is_its_imagenet1k_tag() -> None:
    assert resolve("vit_base_patch16_224_miil").name == "vit_base_patch16_224_miil.in21k_ft_in1k"


@pytest.mark.parametrize(
    ("name", "full", "millions"),
    [  # millions of parameters as published with the checkpoints
        ("ig_resnext101_32x8d", "resnext101_32x8d.fb_wsl_ig1b_ft_in1k", 88),
        ("ig_resnext101_32x16d", "resnext101_32x16d.fb_wsl_ig1b_ft_in1k", 193),
        ("ig_resnext101_32x32d", "resnext101_32x32d.fb_wsl_ig1b_ft_in1k", 466),
        ("swsl_resnext101_32x8d", "resnext101_32x8d.fb_swsl_ig1b_ft_in1k", 88),
        ("resmlp_12_224_dino", "resmlp_12_224.fb_dino", 15.4),
        ("vit_base_patch16_224_sam", "vit_base_patch16_224.sam_in1k", 86.6),
        ("xception", "legacy_xception.tf_in1k", 22.9),
    ],
)
def test_deprecated_names_are_their_weights(name: str, full: str, millions: float) -> None:
    assert resolve(name).name == full
    assert resolve(name).params == pytest.approx(millions, rel=0.01)


def test_the_note_tells_where_timm_would_load_something_else() -> None:
    assert "timm 1.0.31 would load resnext101_32x8d.fb_wsl_ig1b_ft_in1k" in note("ig_resnext101_32x16d")
    assert "would load" not in note("swsl_resnext101_32x8d")


def test_weights_that_timm_dropped_are_refused() -> None:
    with pytest.raises(UnknownModelError, match="no longer carries these weights"):
        resolve("ig_resnext101_32x48d")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "did you mean resnet50"),
        ("resnet50.a9_in1k", "a1_in1k, a1h_in1k"),
        ("qqqqqqqq", "1321 ImageNet-1k tags"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        resolve(name)


def test_the_authors_bare_names_are_table_5_but_where_timms_default_moved() -> None:
    students = {row["timm_name"] for row in read_table("table5_models") if row["role"] == "student"}
    bare = {row["student"] for row in read_table("students_20x7")}
    moved = {name for name in bare if resolve(name).name not in students}
    assert moved == {"vit_base_patch16_224"}
