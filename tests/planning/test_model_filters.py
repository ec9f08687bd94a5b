"""[models] chooses among the digits zoo, listed models and predictions as it does among timm's."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from kt_study.errors import UnknownModelError, UsageError
from kt_study.records import ModelRecord
from kt_study.training import UNTRAINED
from orchestrator.planning import Plan
from tests.planning.support import DIGITS, assert_sound, model_table, plan_of

ZOO = DIGITS + '[models]\nuniverse = "digits-zoo"\n'
SMALL = "[complementarity]\npairs = 2\n[transfer]\npairs = 2\nepochs = 1\n"


def names(plan: Plan) -> list[str]:
    return sorted(model.name for model in plan.models)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> list[ModelRecord]:
    return plan_of(tmp_path_factory.mktemp("zoo") / "all", ZOO, SMALL).models


@pytest.mark.parametrize(
    ("lines", "passes"),
    [
        ('include = ["digits/vit*", "digits/gmlp"]', lambda m: fnmatchcase(m.name, "digits/vit*") or "gmlp" in m.name),
        ('exclude = ["*_b"]', lambda m: not m.name.endswith("_b")),
        ('include = ["*_a", "*_b"]\nexclude = ["*mixer*"]', lambda m: m.name[-2] == "_" and "mixer" not in m.name),
        ('include = ["resnet18"]', lambda m: m.timm == "resnet18"),
        ('families = ["cnn", "mlp"]', lambda m: m.family in ("cnn", "mlp")),
    ],
)
def test_the_zoo_is_what_passes_and_nothing_else_is_trained(
    lines: str, passes: Callable[[ModelRecord], bool], zoo: list[ModelRecord], tmp_path: Path
) -> None:
    found = plan_of(tmp_path / "study", f"{ZOO}{lines}\n", SMALL)
    assert_sound(found)
    expected = sorted(model.name for model in zoo if passes(model))
    assert 2 <= len(expected) < len(zoo) == 12
    assert names(found) == expected
    assert {model.key for model in found.models} <= {model.key for model in zoo}
    assert sorted(model.name.removesuffix(UNTRAINED) for model in found.others) == expected
    assert found.by_kind()["train"] == len(expected)


def test_tables_are_added_to_the_zoo(tmp_path: Path) -> None:
    found = plan_of(tmp_path / "study", ZOO + 'include = ["digits/resnet_a"]\n', SMALL, model_table("mine"))
    assert_sound(found)
    assert names(found) == ["digits/resnet_a", "mine"]


def test_listed_models_are_filtered_by_family_too(tmp_path: Path) -> None:
    tables = [model_table(f"m{n}", family=family) for n, family in enumerate(("cnn", "mlp", "mlp"))]
    tables = [table + f"arguments = {{ drop_rate = 0.{n} }}\n" for n, table in enumerate(tables)]
    found = plan_of(tmp_path / "study", DIGITS + '[models]\nfamilies = ["mlp"]\n', SMALL, *tables)
    assert names(found) == ["m1", "m2"]


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ('include = ["digits/resnett_a"]', UnknownModelError, "did you mean 'digits/resnet_a'"),
        ('families = ["hybrid"]', UsageError, "no model is left: the families filter"),
        ("params_max = 0.5", UsageError, "no model is left: the params filter"),
    ],
)
def test_filters_that_cannot_be_meant_are_refused(
    lines: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        plan_of(tmp_path / "study", f"{ZOO}{lines}\n", SMALL)
