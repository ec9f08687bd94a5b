"""Data sets without labels: what is refused, and what can still be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.special import softmax
from scipy.stats import entropy

from kt_study.datasets import open_split, prepare
from kt_study.errors import DataError
from kt_study.objectives import OBJECTIVES, label_use, settings_for
from kt_study.paths import StudyPaths
from kt_study.study import DatasetSection
from tests.cli import refused
from tests.own.page import lay_photos
from worker.kinds.logits import mean_entropy
from worker.measures.allpairs import iter_agreements, iter_all_pairs, write_all_pairs
from worker.measures.transfer import measure_transfer, measure_without_labels
from worker.objectives import Batch, Setup, build_objective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_reads_labels_exactly_if_other_labels_give_another_loss(name: str) -> None:
    """Of those without a partition by labels; the partition is settled before the loss."""
    given_settings = settings_for(name, {})
    torch.manual_seed(0)
    logits, target, features = torch.randn(6, 4), torch.randn(6, 4), torch.randn(6, 5)
    losses = []
    for shift in (0, 1):
        labels = (torch.arange(6) + shift) % 4
        torch.manual_seed(1)
        objective = build_objective(name, Setup(settings=given_settings, labels=labels, student_dim=5, teacher_dim=5))
        batch = Batch(logits=logits, labels=labels, index=torch.arange(6), target=target, features=features,
                      teacher_features=features.flip(0), teacher_class=labels)  # fmt: skip
        losses.append(objective(batch).detach())
    differs = not torch.equal(*losses)
    assert differs == (label_use(name, given_settings) == "its loss")
    of_labels = OBJECTIVES[name].partition in ("label", "random", "positive_flips")
    assert of_labels == (label_use(name, given_settings) == "its data partition")


predictions = st.integers(1, 40).flatmap(
    lambda n: hnp.arrays(np.int64, st.tuples(st.integers(3, 5), st.just(n)), elements=st.integers(0, 4))
)


@settings(deadline=None)
@given(predictions)
def test_what_needs_no_label_is_counted_and_equals_the_labelled_measures(made: Any) -> None:
    before, after, *teachers = made
    n = len(before)
    row = measure_without_labels(before, after, teachers)
    assert row == {
        "n": n,
        "changed": pytest.approx(100 * sum(a != b for a, b in zip(before, after, strict=True)) / n),
        "agreement_before": pytest.approx(100 * sum(a == b for a, b in zip(before, teachers[0], strict=True)) / n),
        "agreement_after": pytest.approx(100 * sum(a == b for a, b in zip(after, teachers[0], strict=True)) / n),
    }
    labelled = measure_transfer(before, before, after, teachers[:1], 5).row()
    assert {name: labelled[name] for name in row} == row


@settings(deadline=None)
@given(predictions)
def test_agreement_of_all_pairs_needs_no_labels(made: Any) -> None:
    with_labels = list(iter_all_pairs(made[0], made, 5))
    without = list(iter_agreements(made))
    for one, other in zip(with_labels, without, strict=True):
        for name in ("teacher", "student", "n", "agreement"):
            assert one[name].tolist() == other[name].tolist()


def test_the_file_of_all_pairs_names_models_and_their_keys(tmp_path: Path) -> None:
    """By the keys the report tells the pairs apart."""
    predicted = np.array([[0, 1, 2, 2], [0, 1, 1, 1]])
    for labels in (None, predicted[0]):
        write_all_pairs(tmp_path / "p.parquet", labels, predicted, 3, models=["a", "b"], keys=["ka", "kb"])
        rows = pd.read_parquet(tmp_path / "p.parquet")
        names = rows[["teacher", "student", "teacher_key", "student_key"]].astype(str).to_numpy().tolist()
        assert names == [["b", "a", "kb", "ka"], ["a", "b", "ka", "kb"]]
        assert rows["agreement"].tolist() == [50.0, 50.0]


def test_the_entropy_of_predictions_is_scipys() -> None:
    logits = np.random.default_rng(0).normal(0, 4, (5000, 7)).astype(np.float16)
    expected = entropy(softmax(logits.astype(np.float64), axis=1), axis=1).mean()
    assert mean_entropy(logits) == pytest.approx(expected, rel=1e-5)


def _prepared(folder: Path, **section: Any) -> Any:
    paths = StudyPaths(root=folder / "study")
    return prepare(DatasetSection(**section), seed=0, folder=folder, paths=paths), paths


def test_a_split_without_labels_is_every_image_below_its_folder(tmp_path: Path) -> None:
    for name in ("b/x.png", "a.png", "b/c/y.png", "b/notes.txt", ".hidden/z.png"):
        (tmp_path / "flat" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "flat" / name, "PNG")
    record, paths = _prepared(tmp_path, kind="imagefolder", labels=False, val="flat")
    split = open_split(record, "val", paths)
    assert (split.listing.names, split.labels, split.class_names) == (["a.png", "b/c/y.png", "b/x.png"], None, [])
    assert record.n_classes == 0 and not record.has_labels("val")
    with pytest.raises(DataError, match="say labels = false"):
        _prepared(tmp_path, kind="imagefolder", val="flat/b/c")
    with pytest.raises(DataError, match="always has labels"):
        _prepared(tmp_path, kind="digits", labels=False)


def test_labels_in_val_alone_give_the_classes(tmp_path: Path) -> None:
    lay_photos(tmp_path / "photos", per_class=2)
    record, paths = _prepared(
        tmp_path, kind="imagefolder", labels="val", train="photos/train", val="photos/val", train_fraction=0.5
    )
    assert (record.n_classes, record.unlabelled) == (3, ("train",))
    assert record.has_labels("val") and not record.has_labels("train")
    assert open_split(record, "train", paths).n == 3  # half of all, for there are no classes to draw from
    assert open_split(record, "val", paths).labels is not None


STUDY = """
[study]
name = "bare"
[dataset]
kind = "imagefolder"
labels = false
train = "photos/train"
val = "photos/val"
[transfer]
{transfer}
[[model]]
name = "a"
timm = "test_resnet"
random_weights = true
{first}
[[model]]
name = "b"
timm = "test_convnext"
random_weights = true
num_classes = 3
"""


@pytest.mark.parametrize(
    ("transfer", "first", "line"),
    [
        ("", "num_classes = 3", "objective 'kl_dp': its data partition reads labels"),
        ('objectives = ["xe_kl"]', "num_classes = 3", "its loss reads labels"),
        ('objectives = ["kl"]\nflips = "positive"', "num_classes = 3", "its data partition reads labels"),
        ('objectives = ["kl"]\nkeep = "best"', "num_classes = 3", "set keep = 'all'"),
        ('objectives = ["kl"]', "", "'a' needs num_classes"),
        ('objectives = ["kl"]', "num_classes = 4", "all must have the same classes"),
    ],
)
def test_what_cannot_be_done_without_labels_is_said_in_one_line(
    tmp_path: Path, transfer: str, first: str, line: str
) -> None:
    lay_photos(tmp_path / "photos", per_class=1)
    (tmp_path / "study.toml").write_text(STUDY.format(transfer=transfer, first=first))
    assert line in refused(tmp_path, "plan")
