"""The nearest known name."""

from __future__ import annotations

import pytest

from kt_study.nearest import nearest

MODELS = ["resnet18", "resnet50", "vit_base_patch16_224"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnt18", "; did you mean 'resnet18'?"),
        ("RESNET50", "; did you mean 'resnet50'?"),
        ("vit_base_patch16", "; did you mean 'vit_base_patch16_224'?"),
        ("quite another thing", ""),
        ("", ""),
    ],
)
def test_a_slip_is_told_from_another_thing(name: str, said: str) -> None:
    assert nearest(name, MODELS) == said


def test_nothing_known_is_nothing_near() -> None:
    assert nearest("resnet18", []) == ""


def test_of_two_that_differ_in_case_the_first_known_is_named() -> None:
    assert nearest("A-model", ["a-Model", "a-model"]) == "; did you mean 'a-Model'?"
