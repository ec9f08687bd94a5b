"""Who teaches which sample, against a plain loop over samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_study.errors import UsageError
from kt_study.hashing import hash64
from kt_study.objectives import OBJECTIVES, needs_frozen_student, partition_of
from kt_study.settings import Settings
from worker.objectives.partition import Columns, assign_sources
from worker.training.rows import ResidentTable, StreamedTable, merged_table

PROBABILITIES = st.sampled_from([0.1, 0.2, 0.25, 0.5])  # few values, so that ties happen


@st.composite
def samples(draw: st.DrawFn, teachers: int) -> tuple[list[int], list[list[tuple[float, float, int]]]]:
    n = draw(st.integers(1, 8))
    labels = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    row = st.tuples(PROBABILITIES, PROBABILITIES, st.integers(0, 2))
    return labels, [draw(st.lists(row, min_size=n, max_size=n)) for _ in range(1 + teachers)]


def as_columns(rows: list[tuple[float, float, int]]) -> Columns:
    label, largest, argmax = zip(*rows, strict=True)
    return Columns(p_label=np.float32(label), p_max=np.float32(largest), argmax=np.array(argmax))


@given(samples(teachers=3), st.sampled_from(["label", "max"]))
def test_most_confident_of_several_the_student_first_on_ties(drawn, rule) -> None:  # type: ignore[no-untyped-def]
    labels, sources = drawn
    frozen, *teachers = (as_columns(rows) for rows in sources)
    found = assign_sources(rule, labels=np.array(labels), frozen=frozen, teachers=teachers)
    for i, chosen in enumerate(found):
        best = 0
        for k, rows in enumerate(sources):
            if rows[i][rule == "max"] > sources[best][i][rule == "max"]:
                best = k
        assert chosen == best


@given(samples(teachers=1))
def test_flips(drawn) -> None:  # type: ignore[no-untyped-def]
    labels, (student, teacher) = drawn
    for rule, to_teacher in (
        ("positive_flips", lambda t, s: t and not s),
        ("negative_flips", lambda t, s: t or not s),
        ("teacher", lambda *_: True),
        ("frozen", lambda *_: False),
    ):
        found = assign_sources(
            rule,  # type: ignore[arg-type]
            labels=np.array(labels),
            frozen=as_columns(student),
            teachers=[as_columns(teacher)],
        )
        for i, label in enumerate(labels):
            assert found[i] == to_teacher(teacher[i][2] == label, student[i][2] == label)


@given(samples(teachers=1), st.integers(0, 2**32))
def test_a_random_partition_gives_the_teacher_as_many_samples_as_the_labels_do(drawn, key: int) -> None:  # type: ignore[no-untyped-def]
    labels, sources = drawn
    frozen, teacher = (as_columns(rows) for rows in sources)
    given = {"labels": np.array(labels), "frozen": frozen, "teachers": [teacher]}
    found = assign_sources("random", key=key, **given)
    assert set(found) <= {0, 1}
    assert found.sum() == sum(t[0] > s[0] for s, t in zip(*sources, strict=True))
    np.testing.assert_array_equal(found, assign_sources("random", key=key, **given))


def test_a_random_partition_draws_every_sample_equally_often() -> None:
    n, keys = 40, 2000
    frozen = Columns(p_label=np.full(n, 0.5, np.float32), p_max=np.full(n, 0.5, np.float32), argmax=np.zeros(n, int))
    p_label = np.where(np.arange(n) < 10, 0.9, 0.1).astype(np.float32)  # by the labels, always the first ten
    teacher = Columns(p_label=p_label, p_max=p_label, argmax=np.zeros(n, int))
    given = {"labels": np.zeros(n, int), "frozen": frozen, "teachers": [teacher]}
    counts = np.sum([assign_sources("random", key=hash64("draw", key), **given) for key in range(keys)], axis=0)  # type: ignore[arg-type]
    assert counts.sum() == 10 * keys
    expected, sd = keys / 4, (keys * 0.25 * 0.75) ** 0.5
    assert np.abs(counts - expected).max() < 4.5 * sd


def test_rules_for_one_teacher_refuse_several() -> None:
    columns = as_columns([(0.5, 0.5, 0)])
    with pytest.raises(UsageError, match="takes one teacher, not 2"):
        assign_sources("positive_flips", labels=np.array([0]), frozen=columns, teachers=[columns, columns])


def test_which_rule_and_who_needs_the_frozen_student() -> None:
    rules = {name: partition_of(name, Settings()) for name in OBJECTIVES}
    assert {name for name in OBJECTIVES if needs_frozen_student(name, Settings())} == {
        "kl_dp", "kl_dp_unsupervised", "self_distillation", "kl_dp_random", "kl_dp_oracle",
    }  # fmt: skip
    assert (rules["kl_dp"], rules["kl_dp_unsupervised"], rules["self_distillation"]) == ("label", "max", "frozen")
    assert needs_frozen_student("kl", Settings(flips="positive"))


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_rows_come_from_each_samples_source(seed: int, k: int) -> None:
    import torch

    draw = np.random.default_rng(seed)
    tables = [draw.normal(size=(11, 4)).astype(np.float16) for _ in range(k)]
    source = draw.integers(k, size=11).astype(np.uint8)
    positions = draw.integers(11, size=5)
    expected = np.stack([tables[source[i]][i] for i in positions])
    cpu = torch.device("cpu")
    for table in (merged_table(source, list(tables), cpu), StreamedTable(source, list(tables), cpu)):
        np.testing.assert_array_equal(table.rows(torch.from_numpy(positions), positions).numpy(), expected)
    assert isinstance(merged_table(source, list(tables), cpu), ResidentTable)
