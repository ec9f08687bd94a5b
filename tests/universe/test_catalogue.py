"""The catalogue against the installed timm, torchvision's own counts and the paper's tables."""

from __future__ import annotations

import csv
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from docs.generate import make_catalogue as making
from kt_study.errors import UnknownModelError
from kt_study.published import read_table
from orchestrator.planning.universe import TIMM_VERSION, catalogue, resolve
from orchestrator.planning.universe.table import CATALOGUE_FILE, aliases, by_name
from tests.require import require


def imported(package: str, version: str = "") -> Any:
    require(package, find_spec(package) is not None, f"{package} is not installed")
    module = import_module(package)
    require(package, module.__version__.startswith(version), f"{package} is not {version}")
    return module


@pytest.fixture(scope="module")
def timm() -> Any:
    return imported("timm", TIMM_VERSION)


def test_it_has_every_imagenet1k_tag_once() -> None:
    models = catalogue()
    assert len(models) == len(by_name()) == 1321
    assert len({model.module for model in models}) == 91
    assert [model.name for model in models] == sorted(model.name for model in models)
    assert all(model.name == f"{model.architecture}.{model.tag}" for model in models)
    assert len({model.weights for model in models}) == 1321


def test_it_lists_what_the_installed_timm_lists(timm: Any) -> None:
    from timm.models import get_pretrained_cfg

    listed = {name for name in timm.list_models(pretrained=True) if get_pretrained_cfg(name).num_classes == 1000}
    assert listed == set(by_name())


@pytest.mark.usefixtures("timm")
def test_preprocessing_is_what_timm_resolves() -> None:
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg

    for model in catalogue():
        pretrained = get_pretrained_cfg(model.name)
        config = pretrained.to_dict()
        for use_test, size, crop in (
            (False, model.input_size, model.crop_pct),
            (True, model.test_input_size or model.input_size, model.test_crop_pct or model.crop_pct),
        ):
            resolved = resolve_data_config(pretrained_cfg=config, use_test_size=use_test)
            assert (resolved["input_size"], resolved["crop_pct"]) == (size, crop), model.name
        assert resolved["interpolation"] == model.interpolation
        assert resolved["crop_mode"] == model.crop_mode
        assert (tuple(resolved["mean"]), tuple(resolved["std"])) == (model.mean, model.std)
        assert (pretrained.license or "", pretrained.hf_hub_id or "") == (model.license, model.hf_hub_id)


@pytest.mark.usefixtures("timm")
def test_defaults_are_timms_own() -> None:
    from timm.models import get_pretrained_cfg

    others = set()
    for model in (model for model in catalogue() if model.is_default):
        config = get_pretrained_cfg(model.architecture)
        if config.num_classes == 1000:
            assert config.tag == model.tag
        else:
            others.add(model.architecture)
    assert "vit_base_patch16_224_miil" in others  # timm's default there has the 11,221 classes of ImageNet-21k
    architectures = [model.architecture for model in catalogue() if model.is_default]
    assert len(architectures) == len(set(architectures)) == len({model.architecture for model in catalogue()})


@pytest.mark.parametrize(
    ("name", "enum"),
    [
        ("resnet18.tv_in1k", "ResNet18_Weights"),
        ("resnet50.tv_in1k", "ResNet50_Weights"),
        ("vgg16_bn.tv_in1k", "VGG16_BN_Weights"),
        ("densenet121.tv_in1k", "DenseNet121_Weights"),
        ("vit_base_patch16_224.orig_in21k_ft_in1k", "ViT_B_16_Weights"),
        ("swin_tiny_patch4_window7_224.ms_in1k", "Swin_T_Weights"),
        ("convnext_large.fb_in1k", "ConvNeXt_Large_Weights"),
        ("maxvit_tiny_tf_224.in1k", "MaxVit_T_Weights"),
        ("regnety_320.tv2_in1k", "RegNet_Y_32GF_Weights"),
    ],
)
def test_counts_are_near_those_torchvision_publishes(name: str, enum: str) -> None:
    models = imported("torchvision").models
    meta = next(iter(getattr(models, enum))).meta
    model = resolve(name)
    assert model.gmacs is not None
    assert model.gmacs == pytest.approx(meta["_ops"], rel=0.02)
    if enum != "MaxVit_T_Weights":  # torchvision's has another head
        assert model.params * 1e6 == pytest.approx(meta["num_params"], rel=1e-4)


def test_parameters_are_those_the_paper_prints() -> None:
    for table in ("table5_models", "table6_models"):
        for row in read_table(table):
            # Table 1 prints 10.62 for PiT-XS, Tables 5 and 6 print 11.00, which is its distilled sibling's.
            printed = 10.62 if row["paper_name"] == "PiT-XS" else float(row["params_m"])
            assert resolve(row["timm_name"]).params == pytest.approx(printed, abs=0.006), row["paper_name"]


def test_top1_is_what_the_paper_prints_and_says_so() -> None:
    printed = {row["timm_name"]: float(row["acc"]) for n in (6, 5) for row in read_table(f"table{n}_models")}
    assert {model.name: model.top1 for model in catalogue() if model.top1 is not None} == printed
    assert all(bool(model.top1_source) == (model.top1 is not None) for model in catalogue())


@pytest.mark.usefixtures("timm")
def test_aliases_lead_to_models_of_the_catalogue() -> None:
    from timm.models import _registry

    for name, (weights_of, _) in aliases().items():
        assert name in _registry._deprecated_models
        assert weights_of in by_name() or name == "ig_resnext101_32x48d"
        assert name not in by_name()
    left_out = set(_registry._deprecated_models) - set(aliases())
    assert not {target for name in left_out if (target := _registry._deprecated_models[name]) in by_name()}


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    "name", ["test_resnet.r160_in1k", "test_vit.r160_in1k", "mixnet_s.ft_in1k", "resmlp_12_224.fb_dino"]
)
def test_the_generator_still_writes_the_shipped_rows(name: str) -> None:
    path = making.UNIVERSE / CATALOGUE_FILE
    with path.open(encoding="utf-8", newline="") as file:
        shipped = {row["name"]: row for row in csv.DictReader(file)}
    assert making._row(name, making.published_top1(None).get(name, ("", ""))) == shipped[name]


@pytest.mark.usefixtures("timm")
def test_the_generator_stops_at_a_module_without_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_module", lambda _: "newnet")
    with pytest.raises(UnknownModelError, match="newnet"):
        making._row("test_resnet.r160_in1k", ("", ""))


def test_timms_own_results_win_over_the_paper(tmp_path: Path) -> None:
    results = tmp_path / "results-imagenet.csv"
    results.write_text("model,top1,top5\nresnet50.a1_in1k,81.2,95.1\nmixnet_s.ft_in1k,75.9,92.8\n", encoding="utf-8")
    found = making.published_top1(results)
    assert found["resnet50.a1_in1k"] == ("81.2", "timm results-imagenet.csv")
    assert found["mixnet_s.ft_in1k"][0] == "75.9"
    assert found["mixnet_l.ft_in1k"] == ("78.98", "arXiv 2310.17653 Table 5")


def test_the_universe_needs_neither_torch_nor_a_network() -> None:
    script = (
        "import socket, sys\n"
        "socket.socket = None\n"
        "from orchestrator.planning import presets, sampling, universe\n"
        "assert len(universe.catalogue()) == 1321 and universe.resolve('resnet50')\n"
        "assert all(presets.preset(name).arms for name in presets.presets() if 'hyper' not in name)\n"
        "heavy = {'torch', 'timm', 'pandas', 'pyarrow', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, check=True)
