"""The logits cache: exact, counted, shared, resumable."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax
from timm.data import create_transform

from kt_study import cache as cache_files
from kt_study.datasets import open_split
from kt_study.errors import DataError, WeightsError
from kt_study.paths import StudyPaths
from kt_study.records import LogitsSpec, as_spec
from tests.data.support import CPU, digits, folder_dataset, image_folder, job_context, tiny_model
from worker.job.context import Stopped
from worker.kinds import logits as logits_kind
from worker.logits import CachedLogits, LogitsCache
from worker.logits.columns import as_side, half, side_bits
from worker.logits.forward import cached_logits
from worker.logits.writer import EntryWriter
from worker.models.build import build_model

TRAIN = {"split": "train", "view": 1, "view_seed": 7, "augment": "crop_flip", "crop_pct": 0.875}


def _side_columns(logits: torch.Tensor, labels: torch.Tensor | None) -> NDArray[np.void]:
    return as_side(side_bits(logits, labels).numpy())


def _made(paths: StudyPaths, seed: int = 1, batch_size: int = 64, **spec: object) -> CachedLogits:
    dataset, model = digits(paths), tiny_model(key=f"m{seed}", seed=seed)
    what = LogitsSpec(dataset=dataset.key, model=model.key, **{"split": "val", **spec})  # type: ignore[arg-type]
    return cached_logits(what, job_context(paths, dataset, model, batch_size=batch_size))


def test_evaluation_is_a_plain_timm_loop(paths: StudyPaths) -> None:
    dataset, model = digits(paths), tiny_model()
    spec = LogitsSpec(dataset=dataset.key, model="tiny", split="val")
    (row,) = logits_kind.run(as_spec(spec), job_context(paths, dataset, model, batch_size=50))["evaluations"]
    split, network = open_split(dataset, "val", paths), build_model(model, paths, CPU)
    transform = create_transform(
        input_size=model.input_size, interpolation="bicubic", mean=model.mean, std=model.std, crop_pct=1.0
    )
    with torch.inference_mode():
        plain = torch.cat([network(transform(split.image(i))[None]) for i in range(split.n)])
    right = (plain.argmax(1).numpy() == split.labels).sum()
    assert row["acc"] == pytest.approx(100 * right / split.n, abs=1e-12)
    exact = log_softmax(plain.double().numpy(), axis=1)[np.arange(split.n), split.labels]
    assert row["loss"] == pytest.approx(-exact.mean(), abs=1e-5)
    assert (row["n"], row["model"], row["source"]) == (754, "tiny", "forwarded here")
    entry = LogitsCache(paths).open(spec)
    assert entry is not None
    assert np.abs(entry.logits.astype(np.float64) - plain.numpy()).max() < 2e-3 * float(plain.abs().max())
    assert np.array_equal(entry.labels, split.labels)


def test_each_view_is_its_own_entry_and_row_free(paths: StudyPaths) -> None:
    dataset, model = digits(paths), tiny_model()
    context = job_context(paths, dataset, model)
    for view in (0, 1):
        spec = LogitsSpec(dataset=dataset.key, model="tiny", **{**TRAIN, "view": view})  # type: ignore[arg-type]
        assert logits_kind.run(as_spec(spec), context) == {}
    first, second = (_made(paths, **{**TRAIN, "view": view}) for view in (0, 1))
    assert not np.array_equal(first.logits, second.logits)


def test_each_pass_is_forwarded_once(paths: StudyPaths) -> None:
    for _ in range(3):
        for seed in (1, 2):
            for view in (0, 1):
                _made(paths, seed=seed, **{**TRAIN, "view": view})
            _made(paths, seed=seed)
    passes = [(line["model"], line["split"], line.get("view", -1)) for line in cache_files.forwards(paths)]
    assert sorted(passes) == sorted(set(passes))
    assert len(passes) == 6


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 8.0, 60.0])
def test_masks_equal_those_of_live_float32_models(sharpness: float) -> None:
    """Sharp logits saturate float32 probabilities at 0 and 1: there the ties must be ties in the cache too."""
    rng = torch.Generator().manual_seed(0)
    n, classes = 4000, 10
    labels = torch.randint(classes, (n,), generator=rng)
    teacher = sharpness * torch.randn(n, classes, generator=rng)
    student = teacher + 1e-3 * sharpness * torch.randn(n, classes, generator=rng)
    student[::7] = teacher[::7]
    sides = [_side_columns(logits, labels) for logits in (teacher, student)]
    p = [torch.softmax(logits, 1) for logits in (teacher, student)]
    rows = torch.arange(n)
    assert np.array_equal(sides[0]["p_label"] > sides[1]["p_label"], (p[0][rows, labels] > p[1][rows, labels]).numpy())
    assert np.array_equal(sides[0]["p_max"] > sides[1]["p_max"], (p[0].amax(1) > p[1].amax(1)).numpy())
    if sharpness == 60.0:
        assert (sides[0]["p_label"] == sides[1]["p_label"])[np.arange(n) % 7 != 0].mean() > 0.5, "there are ties"
    assert not (sides[0]["p_label"] > sides[1]["p_label"])[::7].any(), "equal models never take from the teacher"


@given(st.integers(1, 9), st.integers(2, 30), st.floats(0.01, 80), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_side_columns_against_float64(n: int, classes: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((n, classes))).astype(np.float32)
    labels = rng.integers(0, classes, n)
    side = _side_columns(torch.from_numpy(logits), torch.from_numpy(labels))
    exact = log_softmax(logits.astype(np.float64), axis=1)
    assert np.array_equal(side["argmax"], logits.argmax(1))
    assert np.allclose(side["log_p_label"], exact[np.arange(n), labels], rtol=2e-7, atol=1e-15)
    assert np.allclose(side["log_p_max"], exact.max(1), rtol=2e-7, atol=1e-15)
    assert np.allclose(side["logsumexp"], np.logaddexp.reduce(logits.astype(np.float64), axis=1), rtol=2e-7)
    assert np.allclose(side["p_label"], np.exp(exact)[np.arange(n), labels], rtol=2e-5, atol=1e-37)
    assert np.array_equal(side["label"], labels)


def test_large_logits_stay_finite_in_float16() -> None:
    assert half(torch.tensor([[1e6, -1e6, 3.0]])).tolist() == [[65504.0, -65504.0, 3.0]]


def test_features_lie_beside_the_logits(paths: StudyPaths) -> None:
    entry = _made(paths, features=True, **TRAIN)
    assert entry.features is not None
    assert entry.features.shape == (entry.n, 96)
    assert (entry.side["log_p_max"] >= entry.log_p_label).all()


def test_stopping_and_going_on_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = StudyPaths(root=tmp_path / "whole")
    expected = _made(whole)
    paths = StudyPaths(root=tmp_path / "pieces")
    dataset, model = digits(paths), tiny_model(key="m1", seed=1)
    spec = LogitsSpec(dataset=dataset.key, model="m1", split="val")
    attempts = 0
    while True:
        attempts += 1
        answers = iter([False] * 3)
        context = job_context(paths, dataset, model, stopping=lambda answers=answers: next(answers, True))
        try:
            entry = cached_logits(spec, context)
            break
        except Stopped:
            assert LogitsCache(paths).open(spec) is None, "a part is never taken for the whole"
    assert attempts == 4, "754 samples in batches of 64, three batches an attempt"
    for name in ("logits.npy", "side.npy"):
        assert (entry.folder / name).read_bytes() == (expected.folder / name).read_bytes()
    assert len(cache_files.forwards(paths)) == 1


@pytest.mark.parametrize(("first", "then"), [(64, 100), (100, 64), (64, 64)])
def test_going_on_with_another_batch_size_leaves_no_sample_out_and_takes_none_twice(
    tmp_path: Path, first: int, then: int
) -> None:
    expected = _made(StudyPaths(root=tmp_path / "whole"))
    paths = StudyPaths(root=tmp_path / "pieces")
    dataset, model = digits(paths), tiny_model(key="m1", seed=1)
    spec = LogitsSpec(dataset=dataset.key, model="m1", split="val")
    answers = iter([False] * 3)
    with pytest.raises(Stopped):
        cached_logits(
            spec,
            job_context(paths, dataset, model, batch_size=first, stopping=lambda: next(answers, True)),
        )
    entry = cached_logits(spec, job_context(paths, dataset, model, batch_size=then))
    assert np.array_equal(entry.labels, expected.labels)
    assert np.allclose(entry.logits.astype(np.float64), expected.logits.astype(np.float64), rtol=2e-3, atol=1e-4)
    for name in ("logits.npy", "side.npy"):
        assert (entry.folder / name).stat().st_size == (expected.folder / name).stat().st_size


def test_an_unreadable_image_fails_the_job_and_names_the_file(tmp_path: Path, paths: StudyPaths) -> None:
    root = image_folder(tmp_path / "val", {"ant": 5, "bee": 5})
    dataset, model = folder_dataset(root, paths), tiny_model()
    (root / "bee" / "002.png").write_bytes(b"")
    spec = LogitsSpec(dataset=dataset.key, model="tiny", split="val")
    with pytest.raises(DataError, match=r"bee/002\.png"):
        logits_kind.run(as_spec(spec), job_context(paths, dataset, model, batch_size=2))
    assert LogitsCache(paths).open(spec) is None


def test_models_that_do_not_fit_the_labels(paths: StudyPaths) -> None:
    dataset = digits(paths)
    for model, kind, told in (
        (tiny_model(num_classes=7), DataError, "has class 9, but model 'tiny' only 7 outputs"),
        (tiny_model(timm="", factory="torch.nn:Flatten"), WeightsError, r"outputs of shape \(3072,\), not \[10\]"),
    ):
        with pytest.raises(kind, match=told):
            cached_logits(
                LogitsSpec(dataset=dataset.key, model="tiny", split="val"), job_context(paths, dataset, model)
            )


def test_logits_that_are_not_finite_are_refused(paths: StudyPaths) -> None:
    from safetensors.torch import save_file

    state = build_model(tiny_model(), paths, CPU).state_dict()
    state["fc.bias"][3] = float("nan")
    paths.weights("bad").parent.mkdir(parents=True)
    save_file(state, paths.weights("bad"))
    dataset, model = digits(paths), tiny_model(weights="train:bad")
    with pytest.raises(WeightsError, match="not finite, first at sample 0"):
        cached_logits(LogitsSpec(dataset=dataset.key, model="tiny", split="val"), job_context(paths, dataset, model))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_one_logit_that_is_not_finite_is_seen_among_finite_ones(
    wrong: float, monkeypatch: pytest.MonkeyPatch, paths: StudyPaths
) -> None:
    """-inf leaves the log of the sum of exp finite, and would be stored as float16's lowest number."""
    network = build_model(tiny_model(), paths, CPU)

    def spoil(_module: object, _images: object, logits: torch.Tensor) -> None:
        logits[5, 3] = wrong

    network.register_forward_hook(spoil)
    monkeypatch.setattr("worker.logits.forward.build_model", lambda *_: network)
    dataset = digits(paths)
    with pytest.raises(WeightsError, match=r"not finite, first at sample 5$"):
        cached_logits(
            LogitsSpec(dataset=dataset.key, model="tiny", split="val"), job_context(paths, dataset, tiny_model())
        )


def test_a_batch_is_written_while_the_next_one_is_forwarded(paths: StudyPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    network = build_model(tiny_model(), paths, CPU)
    network.register_forward_hook(lambda *_: done.append("forward"))
    append = EntryWriter.append

    def written(writer: EntryWriter, columns: dict[str, NDArray[Any]]) -> None:
        done.append("write")
        append(writer, columns)

    monkeypatch.setattr("worker.logits.forward.build_model", lambda *_: network)
    monkeypatch.setattr(EntryWriter, "append", written)
    dataset = digits(paths)
    spec = LogitsSpec(dataset=dataset.key, model="tiny", split="val")
    cached_logits(spec, job_context(paths, dataset, tiny_model(), batch_size=300))
    assert done == ["forward", "forward", "write", "forward", "write", "write"]


def _race(root: Path, barrier: object) -> None:
    torch.set_num_threads(1)
    paths = StudyPaths(root=root)
    barrier.wait()  # type: ignore[attr-defined]
    _made(paths)


def test_several_makers_at_once_make_it_once(tmp_path: Path) -> None:
    paths = StudyPaths(root=tmp_path / "study")
    digits(paths)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    makers = [context.Process(target=_race, args=(paths.root, barrier)) for _ in range(2)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(300)
    assert [maker.exitcode for maker in makers] == [0, 0]
    assert len(cache_files.forwards(paths)) == 1
    (entry,) = cache_files.entries(paths, deep=True)
    assert entry.problem == ""
    assert [file.name for file in Path(entry.folder).parent.iterdir()] == [entry.digest], "no locks, no leftovers"


def test_waiting_for_another_maker_can_be_stopped(paths: StudyPaths) -> None:
    from worker.logits.lock import held

    dataset, model = digits(paths), tiny_model()
    spec = LogitsSpec(dataset=dataset.key, model="tiny", split="val")
    folder = LogitsCache(paths).folder(spec)
    looks = iter([False] * 3)
    with (
        held(folder.with_name(f".{folder.name}.lock"), lambda: None) as locked,
        pytest.raises(Stopped),
    ):
        assert locked
        context = job_context(paths, dataset, model, stopping=lambda: next(looks, True))
        cached_logits(spec, context)
    assert next(looks, True), "it looked again and again until it was told to stop"
