"""The forecast of delta_transf: its features by hand, its error by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import root_mean_squared_error
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kt_study.records import ModelRecord
from orchestrator.results.recommend.forecast import (
    LEAST_TRANSFERS,
    PairFacts,
    feature_names,
    features_of,
    make_forecaster,
)


def model(name: str, family: str = "cnn", params: float | None = 10.0) -> ModelRecord:
    return ModelRecord(
        key=name, name=name, family=family, weights=name, input_size=(3, 8, 8), mean=(), std=(), params=params
    )


def drawn(students: int, teachers: int, *, noise: float, seed: int = 0) -> tuple[list[PairFacts], list[float]]:
    """Every teacher with every student; delta depends on all features but for the noise."""
    rng = np.random.default_rng(seed)
    families = ("cnn", "mlp", "transformer")
    learn = [model(f"s{i}", families[i % 3], 10.0 ** rng.uniform(0, 2)) for i in range(students)]
    teach = [model(f"t{i}", families[i % 2], 10.0 ** rng.uniform(0, 2)) for i in range(teachers)]
    pairs = [
        PairFacts(teacher=t, student=s, delta_acc=rng.normal(0, 5), rho_pos=rng.uniform(2, 12))
        for s in learn
        for t in teach
    ]
    deltas = [
        0.1 * p.delta_acc + 0.2 * p.rho_pos + 0.5 * (p.teacher.family == "mlp") + noise * rng.normal() for p in pairs
    ]
    return pairs, deltas


def test_features_by_hand() -> None:
    pair = PairFacts(teacher=model("t", "mlp", 100.0), student=model("s", "cnn", None), delta_acc=-2.5, rho_pos=4.0)
    families = ("cnn", "mlp")
    (row,) = features_of([pair], families)
    named = dict(zip(feature_names(families), row.tolist(), strict=True))
    assert np.isnan(named.pop("log10 student params"))
    assert named == {
        "delta_acc": -2.5,
        "rho_pos": 4.0,
        "log10 teacher params": 2.0,
        "teacher is cnn": 0.0,
        "teacher is mlp": 1.0,
        "student is cnn": 1.0,
        "student is mlp": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("students", "teachers", "held_out"), [(5, 6, "student"), (2, 9, "teacher"), (1, 14, "teacher")]
)
def test_the_error_is_scikit_learns_on_groups_left_out(students: int, teachers: int, held_out: str) -> None:
    pairs, deltas = drawn(students, teachers, noise=0.5)
    forecaster = make_forecaster(pairs, deltas)
    assert forecaster is not None
    summary = forecaster.summary
    features, target = features_of(pairs, ("cnn", "mlp", "transformer")), np.array(deltas)
    if students < 3:  # families that nobody has are no columns
        features = features[:, np.ptp(features, axis=0) > 0]
    groups = [getattr(pair, held_out).key for pair in pairs]
    ridge = make_pipeline(StandardScaler(), Ridge(alpha=1.0))
    predicted = cross_val_predict(ridge, features, target, groups=groups, cv=LeaveOneGroupOut())
    assert summary.error == pytest.approx(root_mean_squared_error(target, predicted))
    assert summary.held_out == held_out
    assert (summary.transfers, summary.students) == (len(pairs), students)
    assert summary.folds == len(set(groups))
    assert summary.intercept == pytest.approx(target.mean())


def test_the_error_of_the_mean_by_hand() -> None:
    pairs, deltas = drawn(3, 4, noise=0.5)
    forecaster = make_forecaster(pairs, deltas)
    assert forecaster is not None
    squares = []
    for pair, delta in zip(pairs, deltas, strict=True):
        others = [d for p, d in zip(pairs, deltas, strict=True) if p.student.key != pair.student.key]
        squares.append((delta - sum(others) / len(others)) ** 2)
    assert forecaster.summary.error_of_mean == pytest.approx((sum(squares) / len(squares)) ** 0.5)


def test_what_depends_on_the_features_is_found_again() -> None:
    pairs, deltas = drawn(8, 8, noise=0.0)
    forecaster = make_forecaster(pairs, deltas)
    assert forecaster is not None
    assert forecaster.summary.is_better
    new, truth = drawn(3, 5, noise=0.0, seed=9)
    assert np.abs(np.array(forecaster.predict(new)) - truth).max() < 0.1


def test_the_mean_stands_in_where_nothing_depends_on_the_features() -> None:
    pairs, _ = drawn(4, 4, noise=0.0)
    deltas = [float(value) for value in np.random.default_rng(4).normal(size=len(pairs))]
    forecaster = make_forecaster(pairs, deltas)
    assert forecaster is not None
    assert not forecaster.summary.is_better
    assert forecaster.predict(pairs[:3]) == pytest.approx([np.mean(deltas)] * 3)


def test_too_few_transfers_make_no_forecast() -> None:
    pairs, deltas = drawn(4, 4, noise=0.1)
    assert make_forecaster(pairs[: LEAST_TRANSFERS - 1], deltas[: LEAST_TRANSFERS - 1]) is None
    assert make_forecaster(pairs[:LEAST_TRANSFERS], deltas[:LEAST_TRANSFERS]) is not None
    assert make_forecaster([], []) is None
    assert make_forecaster([pairs[0]] * 20, deltas[:1] * 20) is None  # one pair, however often
