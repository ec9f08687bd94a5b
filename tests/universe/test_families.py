"""Families: complete for the catalogue and the installed timm, and right where something else says what they are."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from kt_study.errors import UnknownModelError
from kt_study.published import read_table
from orchestrator.planning.universe import FAMILIES, catalogue, family_of, resolve
from orchestrator.planning.universe.families import EXCEPTIONS, FAMILY_OF_MODULE
from tests.require import require


def timm_modules() -> set[str]:
    try:
        from timm.models import _registry
    except ImportError:
        require("timm", False, "timm is not installed")
    return set(_registry._model_to_module.values())


def test_every_module_of_the_installed_timm_has_a_family() -> None:
    missing = timm_modules() - set(FAMILY_OF_MODULE)
    assert not missing, f"add {sorted(missing)} to orchestrator/planning/universe/families.py"


def test_no_family_is_written_for_a_module_that_does_not_exist() -> None:
    assert set(FAMILY_OF_MODULE) <= timm_modules()


def test_a_module_without_a_family_is_an_error_that_says_where_to_add_it() -> None:
    with pytest.raises(UnknownModelError, match=r"newnet_s: timm's module newnet has no family; .*families.py"):
        family_of("newnet_s", "newnet")


def test_the_catalogue_has_the_families_of_the_rules() -> None:
    assert all(model.family == family_of(model.architecture, model.module) for model in catalogue())
    assert {model.family for model in catalogue()} == set(FAMILIES)


def test_every_exception_matters() -> None:
    for module, glob, family in EXCEPTIONS:
        hit = [m for m in catalogue() if m.module == module and fnmatchcase(m.architecture, glob)]
        assert hit, f"{glob} matches nothing"
        assert family != FAMILY_OF_MODULE[module]


PRINTED = {"Trafo": "transformer", "CNN": "cnn", "MLP": "mlp"}


@pytest.mark.parametrize("table", ["table5_models", "table6_models"])
def test_families_are_those_the_paper_prints_but_for_mixnet(table: str) -> None:
    differ = {
        row["paper_name"] for row in read_table(table) if resolve(row["timm_name"]).family != PRINTED[row["type"]]
    }
    assert differ == ({"MixNet-L", "MixNet-S"} if table == "table5_models" else set())


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("convmixer_768_32", "cnn"),
        ("mixnet_xl", "cnn"),
        ("convformer_s18", "cnn"),
        ("fastvit_t8", "cnn"),
        ("mobilenetv4_conv_large", "cnn"),
        ("gmixer_24_224", "mlp"),
        ("gmlp_s16_224", "mlp"),
        ("swin_tiny_patch4_window7_224", "transformer"),
        ("vit_relpos_base_patch16_224", "transformer"),
        ("vit_base_r50_s16_384", "hybrid"),
        ("caformer_s18", "hybrid"),
        ("fastvit_sa12", "hybrid"),
        ("coatnet_0_rw_224", "hybrid"),
        ("botnet26t_256", "hybrid"),
        ("mobilenetv4_hybrid_medium", "hybrid"),
        ("sequencer2d_s", "hybrid"),
    ],
)
def test_architectures_by_hand(architecture: str, family: str) -> None:
    assert resolve(architecture).family == family
