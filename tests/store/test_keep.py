"""A student's file is no part of a job's identity: a later plan may ask an open job to keep more, and never less."""

from __future__ import annotations

import pytest

from kt_study.hashing import job_digest
from kt_study.records import PlannedJob
from kt_study.store import JobStore, Planned
from tests.store.making import claim_one, plan


def transfer(keep: str) -> PlannedJob:
    settings = {"epochs": 3} if keep == "none" else {"epochs": 3, "keep": keep}
    spec = {"objective": "kl", "settings": settings}
    return PlannedJob(kind="transfer", spec=spec, digest=job_digest("transfer", spec))


def kept(store: JobStore) -> str:
    (job,) = store.jobs()
    assert {**job.spec, "settings": {"epochs": 3}} == transfer("none").spec
    return str(job.spec["settings"].get("keep", "none"))


@pytest.mark.parametrize(
    ("first", "second", "after"),
    [
        ("none", "best", "best"),
        ("none", "all", "all"),
        ("best", "all", "all"),
        ("all", "best", "all"),
        ("all", "none", "all"),
        ("best", "none", "best"),
        ("none", "none", "none"),
    ],
)
def test_an_open_job_keeps_the_most_that_was_planned(store: JobStore, first: str, second: str, after: str) -> None:
    plan(store, transfer(first), study="one")
    assert plan(store, transfer(second), study="two") == Planned(linked=1)
    assert kept(store) == after
    assert claim_one(store).spec["settings"].get("keep", "none") == after


def test_a_job_that_runs_or_ran_is_not_changed(store: JobStore) -> None:
    plan(store, transfer("none"))
    claim = claim_one(store)
    plan(store, transfer("all"))
    assert kept(store) == "none"
    store.finish(claim, {})
    plan(store, transfer("all"))
    assert kept(store) == "none"
