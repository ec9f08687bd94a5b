"""Which transfer is exported: the best match, and the advice if its student was not kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kt_study.errors import UsageError
from kt_study.paths import StudyPaths
from orchestrator.results.export.selection import TransferFilter, select_transfer


class Store:
    """A fake job store with these rows of `transfers`."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def results(self, table: str, study: str) -> Iterator[list[dict[str, Any]]]:
        assert table == "transfers" and study == "s"
        yield from ([row] for row in self.rows)

    def models(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in ("digits/vit_a", "digits/deit", "digits/gmlp")]

    def job(self, number: int) -> Any:
        return SimpleNamespace(digest=f"job{number}")


def keep(folder: Path, *jobs: int) -> StudyPaths:
    """A study folder with the students of these jobs."""
    paths = StudyPaths(root=folder)
    for job in jobs:
        paths.weights(f"job{job}").parent.mkdir(parents=True, exist_ok=True)
        paths.weights(f"job{job}").touch()
    return paths


def row(job_id: int, acc: float | None, **given: Any) -> dict[str, Any]:
    return {"job_id": job_id, "student": "a", "teacher": "b", "objective": "kl", "seed": 0, "acc_after": acc,
            "keep": "none", **given}  # fmt: skip


def selected(rows: list[dict[str, Any]], paths: StudyPaths, **where: Any) -> int:
    found = select_transfer(Store(rows), "s", paths, TransferFilter(**where))  # type: ignore[arg-type]
    return int(found.row["job_id"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([50.0, 60.0, 70.0]), st.booleans(), st.integers(0, 2)), min_size=1))
def test_the_most_accurate_is_selected_and_of_equals_the_first_kept(made: list[tuple[float, bool, int]]) -> None:
    rows = [row(number, acc, seed=seed) for number, (acc, _, seed) in enumerate(made)]
    with tempfile.TemporaryDirectory() as folder:
        paths = keep(Path(folder), *(number for number, (_, kept, _) in enumerate(made) if kept))
        for seed in {seed for _, _, seed in made}:
            top = max(acc for acc, _, own in made if own == seed)
            there = [n for n, (acc, kept, own) in enumerate(made) if own == seed and acc == top and kept]
            if there:
                assert selected(rows, paths, student="a", seed=seed) == there[0]
            else:
                with pytest.raises(UsageError, match="was not kept"):
                    selected(rows, paths, student="a", seed=seed)


def test_the_error_for_a_student_not_kept_has_advice_and_lists_those_kept(tmp_path: Path) -> None:
    paths = keep(tmp_path, 4)
    with pytest.raises(UsageError) as refusal:
        selected([row(3, 61.0), row(4, 60.0, seed=1, keep="all")], paths, student="a", teacher="b")
    line = str(refusal.value)
    assert "job 3" in line and 'set keep = "all" in [transfer]' in line and "--job 4" in line
    assert "\n" not in line
    with pytest.raises(UsageError, match="replaced by a better one"):
        selected([row(5, 61.0, keep="best")], paths)
    with pytest.raises(UsageError, match="was kept, but its file is missing"):
        selected([row(5, 61.0, keep="all")], paths)


def test_without_accuracies_the_user_selects(tmp_path: Path) -> None:
    rows, paths = [row(3, None), row(4, None, seed=1)], keep(tmp_path, 3, 4)
    with pytest.raises(UsageError, match=r"without labels .* --job 3 .* --job 4"):
        selected(rows, paths, student="a")
    assert selected(rows, paths, job=4) == 4
    with pytest.raises(UsageError, match="no finished transfers yet"):
        selected([], paths)


@pytest.mark.parametrize(
    ("where", "hint"),
    [
        ({"teacher": "digits/vit_a"}, ""),  # a model of the study, which taught no other
        ({"teacher": "digits/deits"}, "; did you mean 'digits/deit'?"),
        ({"objective": "kl_dp"}, ""),
        ({"objective": "kll"}, "; did you mean 'kl'?"),
    ],
)
def test_another_name_is_suggested_only_for_one_that_nothing_has(
    tmp_path: Path, where: dict[str, str], hint: str
) -> None:
    ((column, value),) = where.items()
    with pytest.raises(UsageError) as refusal:
        selected([row(3, 61.0, student="digits/gmlp", teacher="digits/deit")], keep(tmp_path, 3), **where)
    there = {"teacher": "digits/deit", "objective": "kl"}[column]
    assert str(refusal.value) == f"no finished transfer with --{column} {value}{hint} (there: {there})"
