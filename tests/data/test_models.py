"""Building models: weights from everywhere, and every misfit in one line."""

from __future__ import annotations

import copy
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    save_state,
    weights_digest,
    with_features,
)
from worker.models.weights_file import read_weights

ARCHITECTURE = "test_resnet"


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(99)
    return timm.create_model(ARCHITECTURE, num_classes=10)


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
    expected = timm.create_model(ARCHITECTURE, num_classes=10)
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


def test_unreadable_checkpoints(tmp_path: Path, paths: StudyPaths, trained: nn.Module) -> None:
    file = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match="no such checkpoint"):
        build_model(tiny_model(weights="0" * 32, checkpoint=str(file)), paths, CPU)
    torch.save(trained, file)  # a whole module: loading it would run code
    with pytest.raises(WeightsError, match=r"could run code; save its state_dict\(\) alone"):
        read_weights(file)
    file.write_bytes(pickle.dumps(print))
    with pytest.raises(WeightsError, match=r"w\.pth"):
        read_weights(file)
    torch.save(trained.state_dict(), file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        read_weights(file)
    torch.save({"epoch": 3}, file)
    with pytest.raises(WeightsError, match="no tensors"):
        read_weights(file)
    (tmp_path / "w.safetensors").write_bytes(b"12")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        read_weights(tmp_path / "w.safetensors")


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


def _deflated(file: Path, **longer: int) -> int:
    """Pack an archive of torch's again, compressed, with so many zeros after some members. Returns its bytes inflated."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content + bytes(longer.get(name.rpartition("/")[2].replace(".", "_"), 0)))
    return sum(map(len, members.values())) + sum(longer.values())


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("longer", [{}, {"data_pkl": 2**26}], ids=["tensors", "the pickle"])
def test_an_archive_that_inflates_past_its_size_is_refused_unread(
    tmp_path: Path, longer: dict[str, int], lazily: bool
) -> None:
    file = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(10 if longer else 2**24)}, file)
    inflated = _deflated(file, **longer)
    assert inflated > 2**26 > 100 * file.stat().st_size
    with pytest.raises(WeightsError, match=rf"whose members inflate to {inflated / 1e6:.1f} MB"):
        read_weights(file, lazily=lazily)


def test_members_that_share_their_bytes_are_refused_too(tmp_path: Path) -> None:
    """Stored members whose directory entries all point to the same bytes: no compression, and many times the file."""
    file = tmp_path / "w.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/data.pkl", bytes(2**20))
        for number in range(60):
            archive.filelist.append(copy.copy(archive.filelist[0]))
            archive.filelist[-1].filename = f"w/data/{number}"
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(WeightsError, match=r"a file of 1\.1 MB whose members inflate to 64\.0 MB"):
        read_weights(file)


def test_a_member_longer_than_its_archive_says_is_not_inflated(tmp_path: Path) -> None:
    """The directory, which torch goes by, says 40 bytes; 256 MB come out."""
    file = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(2**26)}, file)
    _deflated(file)
    content = file.read_bytes()
    assert content.count((2**28).to_bytes(4, "little")) >= 2  # beside the bytes themselves, and in the directory
    file.write_bytes(content.replace((2**28).to_bytes(4, "little"), (40).to_bytes(4, "little")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        read_weights(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16


def test_an_archive_packed_again_without_gain_is_read(tmp_path: Path, trained: nn.Module) -> None:
    file = tmp_path / "w.pth"
    torch.save(trained.state_dict(), file)
    _deflated(file)
    assert read_weights(file).keys() == trained.state_dict().keys()


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
