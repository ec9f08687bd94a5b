"""Filters, against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kt_study.errors import UnknownModelError, UsageError
from orchestrator.planning.universe import catalogue, select


def names(**filters: Any) -> list[str]:
    return [model.name for model in select(catalogue(), **filters)]


def test_no_filter_keeps_all_that_classify() -> None:
    assert names(untrained_heads=True) == [model.name for model in catalogue()]
    assert set(names(untrained_heads=True)) - set(names()) == {"resmlp_12_224.fb_dino", "resmlp_24_224.fb_dino"}


def test_globs_are_over_names_and_architectures() -> None:
    tags = names(include=["resnet50"])
    assert tags and all(name.startswith("resnet50.") for name in tags)
    assert names(include=["*.tv_in1k"]) == [m.name for m in catalogue() if m.tag == "tv_in1k"]
    assert names(include=["resnet50", "vgg*"], exclude=["*_bn", "*.a[0-9]_in1k"]) == [
        m.name
        for m in catalogue()
        if (m.architecture == "resnet50" or m.name.startswith("vgg"))
        and not m.architecture.endswith("_bn")
        and m.tag not in {f"a{n}_in1k" for n in range(10)}
    ]


def test_numbers_are_inclusive_and_unknown_ones_do_not_pass() -> None:
    known = [model for model in catalogue() if model.top1 is not None]
    lowest = min(model.top1 for model in known if model.top1 is not None)
    assert names(top1_min=lowest) == [model.name for model in known]
    assert names(params_min=25.557032, params_max=25.557032, include=["resnet50"]) == names(include=["resnet50"])


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.sampled_from(["cnn", "transformer", "mlp", "hybrid"]), min_size=1),
    st.floats(10, 300),
    st.floats(2, 60),
    st.sampled_from([(), ("mit",), ("cc-by-*", "mit")]),
)
def test_filters_hold_together(
    families: set[str], params_max: float, gmacs_max: float, licenses: tuple[str, ...]
) -> None:
    expected = []
    for model in catalogue():
        licensed = not licenses or model.license == "mit" or (len(licenses) == 2 and model.license.startswith("cc-by-"))
        small = model.params <= params_max and model.gmacs is not None and model.gmacs <= gmacs_max
        if model.family in families and licensed and small and model.tag != "fb_dino":
            expected.append(model.name)
    arguments = {"families": sorted(families), "licenses": licenses, "params_max": params_max, "gmacs_max": gmacs_max}
    if expected:
        assert names(**arguments) == expected
    else:
        with pytest.raises(UsageError, match="no model is left"):
            names(**arguments)


def test_mistakes_are_refused() -> None:
    with pytest.raises(UsageError, match="trafo: not a family"):
        names(families=["trafo"])
    with pytest.raises(UnknownModelError, match="resnt"):
        names(include=["resnet*", "resnt*"])
    with pytest.raises(UsageError, match="the params filter excludes the last 18 of 1321"):
        names(include=["resnet50"], params_max=1)
