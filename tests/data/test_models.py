"""Building models: weights from everywhere, and every misfit in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from kt_study.errors import ArtefactGone, UnknownModelError, UntrustedFile, WeightsError
from kt_study.files import file_digest
from kt_study.paths import StudyPaths
from kt_study.records import LogitsSpec, as_spec
from tests.data.support import CPU, digits, job_context, tiny_model
from worker.kinds import logits
from worker.models.build import (
    build_model,
    check_model,
    initialised,
    load_weights,
    save_state,
    weights_digest,
    with_features,
)


def _same(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _record(checkpoint: Path, **changes: object) -> Any:
    return tiny_model(weights=file_digest(checkpoint), checkpoint=str(checkpoint), **changes)


@pytest.mark.parametrize(
    ("suffix", "wrap"),
    [
        (".safetensors", None),
        (".pth", lambda state: state),
        (".pt", lambda state: {"state_dict": state, "epoch": 3}),
        (".pth", lambda state: {"model": {f"module.{name}": value for name, value in state.items()}}),
        (".pth", lambda state: {"state_dict": {n: v * 0 for n, v in state.items()}, "state_dict_ema": state}),
        (".pth", lambda state: {f"_orig_mod.{name}": value for name, value in state.items()}),
    ],
)
def test_local_checkpoints(tmp_path: Path, paths: StudyPaths, trained: nn.Module, suffix: str, wrap: Any) -> None:
    file = tmp_path / f"weights{suffix}"
    state = trained.state_dict()
    if wrap is None:
        save_file(state, file)
    else:
        torch.save(wrap(state), file)
    model = build_model(_record(file), paths, CPU)
    assert _same(model, trained)
    assert not model.training
    assert weights_digest(file) == file_digest(file)


def test_random_weights_are_those_of_the_seed(paths: StudyPaths) -> None:
    torch.manual_seed(5)
    expected = timm.create_model("test_resnet", num_classes=10)
    state = torch.random.get_rng_state()
    model = build_model(tiny_model(seed=5), paths, CPU)
    assert _same(model, expected)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator is left alone"
    assert not _same(build_model(tiny_model(seed=6), paths, CPU), expected)


def test_weights_of_a_train_job(paths: StudyPaths, trained: nn.Module) -> None:
    record, file = tiny_model(weights="train:abc123"), paths.weights("abc123")
    with pytest.raises(ArtefactGone, match=r"abc123.safetensors: gone; its job is done again") as gone:
        build_model(record, paths, CPU)
    assert gone.value.makers == ("abc123",)
    save_state(file, trained.state_dict())
    assert _same(build_model(record, paths, CPU), trained)
    written = file.read_bytes()
    for place in (4, len(written) // 2, len(written) - 1):  # the header's length, and values
        file.write_bytes(written[:place] + bytes([written[place] ^ 16]) + written[place + 1 :])
        with pytest.raises(ArtefactGone, match="damaged"):
            build_model(record, paths, CPU)
    file.write_bytes(written[:-9])
    with pytest.raises(ArtefactGone, match="damaged"):
        build_model(record, paths, CPU)


def test_weights_that_a_job_left_keep_the_names_of_the_network(paths: StudyPaths) -> None:
    paths.root.mkdir()
    (paths.root / "wrapped.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.model = nn.Linear(12, 10)\n"
    )
    record = tiny_model(timm="", factory="wrapped:Net", weights="train:abc123")
    model = initialised(record, paths, seed=3)
    save_state(paths.weights("abc123"), model.state_dict())
    assert _same(build_model(record, paths, CPU), model)


def test_factory_in_the_study_folder(paths: StudyPaths) -> None:
    paths.root.mkdir()
    (paths.root / "my_own_models.py").write_text(
        "from torch import nn\n"
        "def net(width, classes=10):\n    return nn.Sequential(nn.Flatten(), nn.Linear(width, classes))\n"
        "def broken():\n    raise RuntimeError('no such\\nthing')\n"
        "number = 3\n"
    )
    record = tiny_model(timm="", factory="my_own_models:net", arguments={"width": 12})
    assert isinstance(build_model(record, paths, CPU)[1], nn.Linear)  # type: ignore[index]
    for factory, told in (
        ("my_own_models:nets", "has no attribute 'nets'"),
        ("my_other_models:net", "No module named 'my_other_models'"),
        ("my_own_models:broken", "RuntimeError: no such"),
        ("my_own_models:number", "not callable"),
    ):
        with pytest.raises(UnknownModelError, match=told) as caught:
            build_model(tiny_model(timm="", factory=factory), paths, CPU)
        assert "\n" not in str(caught.value)
        assert factory in str(caught.value)


def test_an_evaluation_counts_the_parameters_of_what_was_built(paths: StudyPaths) -> None:
    """Of a factory nothing else could say them."""
    paths.root.mkdir()
    (paths.root / "my_flat_net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))\n"
    )
    model, dataset = tiny_model(timm="", factory="my_flat_net:net"), digits(paths)
    spec = as_spec(LogitsSpec(dataset=dataset.key, model=model.key, split="val"))
    for _ in ("forwarded", "from the cache"):
        (row,) = logits.run(spec, job_context(paths, dataset, model))["evaluations"]
        assert row["params"] == pytest.approx((3 * 32 * 32 * 10 + 10) / 1e6, rel=1e-12)


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path, paths: StudyPaths, trained: nn.Module) -> None:
    state = trained.state_dict()
    state["fc.weight"] = torch.zeros(7, state["fc.weight"].shape[1])
    del state["conv1.0.weight"]
    state["extra.bias"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        build_model(_record(tmp_path / "w.safetensors"), paths, CPU)
    text = str(caught.value)
    assert "\n" not in text
    for part in ("1 missing (conv1.0.weight)", "1 unexpected (extra.bias)", "1 of another shape (fc.weight (7,"):
        assert part in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("fc.bias"), r"1 missing \(fc\.bias\)"),
        (lambda state: state.update(more=torch.zeros(2)), r"1 unexpected \(more\)"),
        (lambda state: [state.pop(name) for name in list(state)[:5]], r"5 missing \(.*, .*, .*, \.\.\.\)"),
    ],
)
def test_one_misfit_is_enough(
    tmp_path: Path, paths: StudyPaths, trained: nn.Module, change: Callable[[Any], object], told: str
) -> None:
    state = dict(trained.state_dict())
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=told):
        build_model(_record(tmp_path / "w.safetensors"), paths, CPU)


def _wrapped(*wrappers: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {".".join([*wrappers, name]): value for name, value in state.items()}


def _zeros(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value * 0 for name, value in state.items()}


def _inside(state: Mapping[str, torch.Tensor], wrapper: str) -> dict[str, torch.Tensor]:
    """As where only a part of the model was wrapped."""
    return {name.replace("layer1.", f"layer1.{wrapper}."): value for name, value in state.items()}


WRAPPINGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "compiled, distributed, of a framework": (_wrapped("_orig_mod", "module", "model"), "'_orig_mod.module.model.'"),
    "the other way round": (
        lambda s: {"state_dict": _wrapped("model", "module", "_orig_mod")(s)},
        "under 'state_dict', the",
    ),
    "beside a loss and a metric": (
        lambda s: {"state_dict": {**_wrapped("model")(s), "loss.weight": torch.ones(3), "acc.total": torch.ones(1)}},
        "behind 'model.', without 2 other tensors (loss.weight, acc.total)",
    ),
    "an averaged copy beside the plain weights": (
        lambda s: {"state_dict": {**_wrapped("model")(_zeros(s)), **_wrapped("ema_model", "module")(s)}},
        "behind 'ema_model.module.', the averaged weights, not the plain ones",
    ),
    "an averaged dict beside the plain one": (
        lambda s: {"model": _zeros(s), "model_ema": {"module": s}},
        "under 'model_ema.module', the averaged weights, not the plain ones",
    ),
    "an averaged dict that does not fit": (
        lambda s: {"model": s, "ema": {"decay": torch.ones(1), "shadow": [torch.ones(2)]}},
        "the state dict under 'model'",
    ),
    "torch's AveragedModel": (
        lambda s: {**_wrapped("module")(s), "n_averaged": torch.tensor(3)},
        "behind 'module.', without 1 other tensor (n_averaged)",
    ),
    "a counter of operations": (
        lambda s: {**s, "fc.total_ops": torch.ones(1)},
        "without 1 other tensor (fc.total_ops)",
    ),
    "a distributed part": (lambda s: _inside(s, "module"), "names without 'module.'"),
    "a compiled part": (lambda s: _wrapped("module")(_inside(s, "_orig_mod")), "'module.', names without '_orig_mod.'"),
    "options and scores beside it": (
        lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1, out=Path("x")), "best": np.float64(0.5)},
        "the state dict under 'state_dict'",
    ),
    "nothing": (lambda s: s, ""),
    "of before torch 0.4.1": (lambda s: {n: v for n, v in s.items() if not n.endswith("num_batches_tracked")}, ""),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_fits_is_chosen_and_said(tmp_path: Path, paths: StudyPaths, trained: nn.Module, wrapping: str) -> None:
    wrap, said = WRAPPINGS[wrapping]
    torch.save(wrap(dict(trained.state_dict())), tmp_path / "w.pth")
    assert _same(build_model(_record(tmp_path / "w.pth"), paths, CPU), trained)
    notes = check_model(_record(tmp_path / "w.pth"), paths)
    assert len(notes) == bool(said)
    for note in notes:
        assert note.startswith("model 'tiny': read from w.pth: ") and said in note and "\n" not in note


NETWORKS = """
import timm
from torch import nn
class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = timm.create_model("test_resnet", num_classes=10)
class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.module, self.model, self.fc, self.ema = (nn.Linear(2, 2) for _ in range(4))
"""


@pytest.mark.parametrize("network", ["Inner", "Parts"])
@pytest.mark.parametrize("save", ["safetensors", "plain", "distributed", "framework"])
def test_a_network_may_use_the_names_of_wrappers(
    tmp_path: Path, paths: StudyPaths, monkeypatch: pytest.MonkeyPatch, network: str, save: str
) -> None:
    paths.root.mkdir()
    (paths.root / "own_networks.py").write_text(NETWORKS)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    factory: dict[str, Any] = {"timm": "", "factory": f"own_networks:{network}"}
    model = initialised(tiny_model(**factory), paths, seed=3)
    file = tmp_path / ("w.safetensors" if save == "safetensors" else "w.pth")
    state = model.state_dict()
    if save == "safetensors":
        save_state(file, state)  # as kt-study itself keeps and exports students
    else:
        wrapped = {"plain": state, "distributed": _wrapped("module")(state)}
        torch.save(wrapped.get(save, {"state_dict": _wrapped("model")(state)}), file)
    assert _same(build_model(_record(file, **factory), paths, CPU), model)
    check_model(_record(file, **factory), paths)


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda s: {"net": s, "acc": 0.9}, r"tensors are under 'net' \(keys: net, acc\); save that state dict alone"),
        (
            lambda s: {"weights": s, "optimizer": {"state": {}}},
            r"tensors are under 'weights' \(keys: weights, optimizer\)",
        ),
        (lambda s: {"model": {"a": torch.ones(1)}, "net": s}, "the entry 'net' would fit, save it alone"),
        (
            lambda s: {"state_dict": _wrapped("backbone")(s)},
            "the names behind 'backbone.' would fit, save the state_dict",
        ),
        (
            lambda s: {**_wrapped("model")(s), **_wrapped("module")(_zeros(s))},
            "two state dicts that fit, behind 'model.' and",
        ),
        (
            lambda s: {"state_dict": s, "model": _zeros(s)},
            "two state dicts that fit, under 'state_dict' and under 'model'",
        ),
        (lambda s: list(s.values()), "holds a list and not a state dict"),
        (lambda _: torch.ones(3), "holds a Tensor and not a state dict"),
        (lambda _: {"epoch": 3}, r"no tensors in it \(keys: epoch\)"),
        (
            lambda s: {n: (9 * v).to(torch.int8) for n, v in s.items()},
            r"tensors are int8 \(conv1\.0\.weight, .* floating-point",
        ),
        (lambda s: {n: v.to(torch.complex64) for n, v in s.items()}, r"tensors are complex64 \(conv1"),
        (
            lambda s: {**s, "fc.weight": (9 * s["fc.weight"]).to(torch.int8), "fc.SCB": torch.ones(1)},
            "1 tensors are int8",
        ),
        (
            lambda s: {"state_dict": s, "hyper_parameters": nn.ReLU()},
            r"pickled objects \(torch\.nn\S*ReLU\) beside tensors",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_name(
    tmp_path: Path, paths: StudyPaths, trained: nn.Module, wrap: Callable[[dict[str, Any]], Any], told: str
) -> None:
    torch.save(wrap(dict(trained.state_dict())), tmp_path / "w.pth")
    for refuse in (check_model, lambda record, paths: build_model(record, paths, CPU)):
        with pytest.raises(WeightsError, match=rf"w\.pth.*{told}") as caught:
            refuse(_record(tmp_path / "w.pth"), paths)
        assert "\n" not in str(caught.value)


def test_equal_copies_are_no_choice(tmp_path: Path, paths: StudyPaths, trained: nn.Module) -> None:
    state = trained.state_dict()
    torch.save(
        {"state_dict": state, "model": {name: value.clone() for name, value in state.items()}}, tmp_path / "w.pth"
    )
    assert _same(build_model(_record(tmp_path / "w.pth"), paths, CPU), trained)


def test_a_network_without_running_statistics_is_pointed_out(paths: StudyPaths) -> None:
    paths.root.mkdir()
    (paths.root / "batchwise.py").write_text(
        "from torch import nn\n"
        "def net(track):\n"
        "    return nn.Sequential(nn.InstanceNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=track), nn.ReLU(),"
        " nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))\n"
    )
    without, usual = (
        tiny_model(timm="", factory="batchwise:net", arguments={"track": track}) for track in (False, True)
    )
    assert check_model(usual, paths) == []
    (note,) = check_model(without, paths)
    assert "model 'tiny': 1 of its batch norms keep no running statistics" in note and "one batch size only" in note
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for record, alike in ((without, False), (usual, True)):  # the note says what is so
        model = build_model(record, paths, CPU)
        assert torch.allclose(model(images)[:2], model(images[:2]), atol=1e-6) == alike


def test_a_checkpoint_changed_after_planning(tmp_path: Path, paths: StudyPaths, trained: nn.Module) -> None:
    file = tmp_path / "w.safetensors"
    save_file(trained.state_dict(), file)
    record = _record(file)
    state = trained.state_dict()
    state["fc.bias"] += 1
    save_file(state, file)
    with pytest.raises(WeightsError, match="has changed since the study was planned"):
        build_model(record, paths, CPU)


def test_unknown_timm_names(paths: StudyPaths) -> None:
    with pytest.raises(UnknownModelError, match=r"has no architecture 'resnet51'"):
        build_model(tiny_model(timm="resnet51"), paths, CPU)
    with pytest.raises(UnknownModelError, match="cannot build"):
        build_model(tiny_model(arguments={"no_such_argument": 1}), paths, CPU)
    with pytest.raises(WeightsError, match=r"resnet18\.no_such_tag"):
        build_model(tiny_model(timm="resnet18.no_such_tag", weights="timm:x"), paths, CPU)


def test_pretrained_weights_without_a_network(
    paths: StudyPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    record = tiny_model(timm="test_resnet.r160_in1k", weights="timm:test_resnet.r160_in1k", num_classes=1000)
    with pytest.raises(WeightsError, match=r"weights of timm's 'test_resnet.r160_in1k' cannot be had") as caught:
        build_model(record, paths, CPU)
    assert "\n" not in str(caught.value)


def test_outputs_must_be_as_many_as_planned(paths: StudyPaths) -> None:
    with pytest.raises(WeightsError, match="has 12 outputs, not 10"):
        build_model(tiny_model(arguments={"num_classes": 12}), paths, CPU)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mlp_mixer", "test_convnext", "test_efficientnet"])
def test_features_are_what_the_classifier_sees(paths: StudyPaths, name: str) -> None:
    if not timm.is_model(name):
        name = "mixer_s32_224"
    size = timm.get_pretrained_cfg(name).input_size
    model = build_model(tiny_model(timm=name, input_size=size), paths, CPU)
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, features = with_features(model)(images)
        assert torch.equal(logits, model(images))
        assert torch.allclose(model.get_classifier()(features), logits, atol=1e-5)  # type: ignore[operator]


def test_features_of_any_module() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    logits, features = with_features(model)(torch.randn(4, 3, 2, 2))
    assert torch.allclose(model[3](features), logits)
    assert features.shape == (4, 5)
    with pytest.raises(WeightsError, match="no linear layer"):
        with_features(nn.Conv2d(3, 3, 1))


def test_a_factory_that_others_may_write_is_not_run(paths: StudyPaths) -> None:
    paths.root.mkdir()
    module = paths.root / "shared_factory.py"
    module.write_text("raise SystemExit('it was run')\n")
    module.chmod(0o666)
    record = tiny_model(timm="", factory="shared_factory:make")
    with pytest.raises(UntrustedFile, match=rf"^{module} can be written by others .*; `chmod go-w {module}`$"):
        build_model(record, paths, CPU)
    module.chmod(0o644)
    paths.root.chmod(0o777)
    with pytest.raises(UntrustedFile, match=rf"^{paths.root} can be written by others"):
        build_model(record, paths, CPU)


@pytest.mark.parametrize("save", ["zip", "legacy", "safetensors"])
def test_a_check_needs_no_weights_of_its_own_and_says_what_a_build_says(
    tmp_path: Path, paths: StudyPaths, trained: nn.Module, monkeypatch: pytest.MonkeyPatch, save: str
) -> None:
    file = tmp_path / ("w.safetensors" if save == "safetensors" else "w.pth")

    def put(state: dict[str, torch.Tensor]) -> None:
        if save == "safetensors":
            save_file(state, file)
        else:
            torch.save(state, file, _use_new_zipfile_serialization=save == "zip")

    put(trained.state_dict())
    devices: list[str] = []
    create = timm.create_model

    def watched(*given: Any, **named: Any) -> nn.Module:
        model: nn.Module = create(*given, **named)
        devices.append(next(model.parameters()).device.type)
        return model

    monkeypatch.setattr(timm, "create_model", watched)
    check_model(_record(file), paths)
    assert devices == ["meta"]

    put({name: value for name, value in trained.state_dict().items() if name != "fc.bias"})
    with pytest.raises(WeightsError, match=r"1 missing \(fc\.bias\); correct `checkpoint`") as checked:
        check_model(_record(file), paths)
    with pytest.raises(WeightsError) as built:
        build_model(_record(file), paths, CPU)
    assert str(checked.value) == str(built.value)


def test_an_architecture_that_computes_with_its_weights_is_checked_with_them(
    tmp_path: Path, paths: StudyPaths, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    create = timm.create_model

    def computes(*given: Any, **named: Any) -> nn.Module:
        model: nn.Module = create(*given, **named)
        next(model.parameters()).sum().item()
        return model

    monkeypatch.setattr(timm, "create_model", computes)
    check_model(_record(tmp_path / "w.safetensors"), paths)


def test_a_model_that_translates_names_itself_is_given_those_of_the_file(tmp_path: Path) -> None:
    def rename(_: torch.nn.Module, state: dict[str, torch.Tensor], *__: object) -> None:
        for name in [name for name in state if name.startswith("fc_")]:
            state[name.removeprefix("fc_")] = state.pop(name)

    model = torch.nn.Linear(3, 2)
    model.register_load_state_dict_pre_hook(rename)  # type: ignore[no-untyped-call]
    stored = {"fc_weight": torch.randn(2, 3), "fc_bias": torch.randn(2)}
    torch.save({"state_dict": stored, "epoch": 3}, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth", "x")
    assert torch.equal(model.weight, stored["fc_weight"]) and torch.equal(model.bias, stored["fc_bias"])
    del stored["fc_bias"]
    torch.save(stored, tmp_path / "less.pth")
    with pytest.raises(WeightsError, match="does not fit"):
        load_weights(model, tmp_path / "less.pth", "x")
