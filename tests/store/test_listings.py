"""Queries of the store: jobs, failures, workers, records and results."""

from __future__ import annotations

import functools

import pytest

from kt_study.errors import UsageError
from kt_study.records import DatasetRecord, Failure, JobState, ModelRecord
from kt_study.store import JobStore, Selection, WorkerRecord, Workload, listings
from kt_study.store.expressions import chunks
from tests.store.making import STUDY, claim_one, job, lasting, passing, plan, result_rows, row


def test_studies_models_and_datasets_come_back_as_they_were(store: JobStore) -> None:
    model = ModelRecord(
        key="k", name="ä/b", family="cnn", weights="w", input_size=(3, 2, 1), mean=(0.5,), std=(1.0,), timm="t",
        arguments={"depth": [1, {"x": None}]}, params=1.25,
    )  # fmt: skip
    data = DatasetRecord(key="d", name="digits", kind="digits", splits={"train": 5}, labelled=False)
    for _ in range(2):
        store.add_models([model])
        store.add_datasets([data])
    assert (store.model("k"), store.dataset("d")) == (model, data)
    assert (store.models(), store.datasets()) == ([model], [data])
    store.add_models([])
    store.add_study(STUDY, {"seed": 0, "name": "x"})
    store.add_study(STUDY, {"seed": 1})
    assert (store.study(STUDY), store.studies()) == ({"seed": 1}, [STUDY])
    for ask in (lambda: store.model("x"), lambda: store.dataset("x"), lambda: store.study("x"), lambda: store.job(1)):
        with pytest.raises(UsageError, match="no "):
            ask()


def test_workload_and_counts_agree_with_the_jobs(store: JobStore) -> None:
    plan(store, *(job(n) for n in range(6)), job(9, kind="transfer", needs=[job(5)]))
    claims = store.claim("worker", limit=4)
    store.finish(claims[0], {})
    store.fail(claims[1], lasting())
    store.cancel(Selection(job_ids=(claims[2].job_id,)))
    store.pause(Selection(job_ids=(6,)))
    assert store.workload() == Workload(ready_now=1, blocked=1, running=1, failed=1, done=1, cancelled=1, paused=1)
    assert store.workload("none") == Workload()
    assert store.summary(STUDY).counts == {
        ("logits", JobState.DONE): 1,
        ("logits", JobState.FAILED): 1,
        ("logits", JobState.CANCELLED): 1,
        ("logits", JobState.RUNNING): 1,
        ("logits", JobState.READY): 2,
        ("transfer", JobState.BLOCKED): 1,
    }
    assert [found.id for found in store.jobs(limit=3)] == [1, 2, 3]


def test_the_time_left_leaves_out_what_waits_for_a_failed_job(store: JobStore) -> None:
    """Two jobs of 10 s done; one of 100 s can be done, four of 1000 s wait for a failed or a cancelled one, near or far."""
    done = [job(n, estimate_s=10.0, priority=9) for n in (0, 1)]
    failed, cancelled = job(2, priority=8), job(3)
    open_one, near = job(4, estimate_s=100.0), job(5, estimate_s=1000.0, needs=[failed])
    far = job(6, estimate_s=1000.0, needs=[near])
    both = job(7, estimate_s=1000.0, needs=[open_one, far])
    other = job(8, estimate_s=1000.0, needs=[cancelled])
    plan(store, *done, failed, cancelled, open_one, near, far, both, other)
    for claim in store.claim("worker", limit=2):
        store.finish(claim, {})
    store.fail(claim_one(store), lasting())
    store.cancel(Selection(job_ids=(4,)))
    summary = store.summary(STUDY)
    assert summary.eta_s is not None and summary.eta_s == pytest.approx(100.0 / 20.0 * 2 / summary.jobs_per_s, rel=1e-6)
    store.fail(claim_one(store), lasting())
    assert store.summary(STUDY).eta_s is None, "nothing is left that can be done"
    store.retry(Selection())
    assert store.summary(STUDY).eta_s is not None


def test_states_are_looked_up_by_digest(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "chunks", functools.partial(chunks, size=2))
    plan(store, *(job(n) for n in range(5)), study="one")
    plan(store, job(4), job(5), study="two")
    store.finish(claim_one(store), {})
    asked = [job(n).digest for n in (0, 1, 3, 4, 7)]
    assert store.states(asked) == dict(zip(asked, ["done", "ready", "ready", "ready"], strict=False))
    assert store.states(asked, "two") == {asked[3]: "ready"}
    assert store.states([]) == {}


def test_every_state_has_its_reason(store: JobStore) -> None:
    plan(store, *(job(n) for n in range(1, 6)), job(9, kind="transfer", needs=[job(n) for n in range(1, 6)]))
    claims = store.claim("w-1", limit=4)
    store.finish(claims[0], {})
    store.fail(claims[1], lasting())
    store.cancel(Selection(job_ids=(3,)))
    why = {found.id: store.job(found.id).why for found in store.jobs()}
    assert why[1] == "done"
    assert why[2] == "failed with ValueError: wrong; `kt-study retry` runs it again"
    assert why[3] == "cancelled"
    assert why[4].startswith("runs on w-1; its lease ends in")
    assert why[5] == "ready; waits for a worker"
    assert why[6] == "waits for job 2 (logits, failed), 3 (logits, cancelled), 4 (logits, running) and 1 more"


def test_failures_are_grouped_by_cause_most_frequent_first(store: JobStore) -> None:
    plan(store, *(job(n, kind="transfer" if n == 5 else "logits") for n in range(8)))
    for claim in store.claim("worker", limit=7):
        rare = claim.spec["number"] == 0
        message = f"message {claim.spec['number']}"
        store.fail(claim, Failure(error="E", message=message, traceback="t", group="rare" if rare else "frequent"))
    store.fail(claim_one(store), passing())  # comes again, so it is no failure
    frequent, rare = store.failures(STUDY)
    assert (frequent.group, frequent.count, frequent.kinds) == ("frequent", 6, ("logits", "transfer"))
    assert frequent.message == "message 6"
    assert len(frequent.job_ids) == 5
    assert (rare.group, rare.count, rare.message) == ("rare", 1, "message 0")
    assert store.failures("none") == []


def test_workers_are_listed_with_what_they_run(store: JobStore) -> None:
    plan(store, job(1), job(2))
    store.register(WorkerRecord(id="a", host="n1", pid=5, slurm_job="7_1", log="/x.log", device="cuda:0"))
    store.register(WorkerRecord(id="b", host="n2", pid=6))
    claims = store.claim("a", limit=2)
    first, second = store.workers()
    assert (first.id, first.host, first.pid, first.slurm_job, first.log) == ("a", "n1", 5, "7_1", "/x.log")
    assert set(first.running) == {claim.job_id for claim in claims}
    assert second.running == ()
    assert 0.0 <= first.beat_age_s < 600.0
    assert store.job(claims[0].job_id).attempts[0].log == "/x.log"
    store.leave("b")
    assert [worker.id for worker in store.workers(alive_within_s=60.0)] == ["a"]
    assert store.workers()[1].ended_at is not None
    assert store.workers(alive_within_s=-1.0) == []


def test_results_stream_in_chunks_with_the_study_joined_in(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "RESULTS_CHUNK", 3)
    plan(store, *(job(n) for n in range(7)), study="one")
    plan(store, job(0), job(1), study="two")
    for claim in store.claim("worker", limit=7):
        store.finish(claim, row(float(claim.spec["number"])))
    chunks = list(store.results("evaluations", study="one"))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    assert [found["acc"] for chunk in chunks for found in chunk] == [float(n) for n in range(7)]
    assert [(found["acc"], found["study"]) for found in result_rows(store)][:4] == [
        (0.0, "one"), (0.0, "two"), (1.0, "one"), (1.0, "two"),
    ]  # fmt: skip
    last = chunks[0][-1]["id"]
    assert next(found["acc"] for chunk in store.results("evaluations", "one", last) for found in chunk) == 3.0
    assert list(store.results("evaluations", study="none")) == []
    with pytest.raises(UsageError, match="no result table 'nothing'"):
        list(store.results("nothing"))


def test_every_type_of_column_comes_back(store: JobStore) -> None:
    import numpy as np

    plan(store, job(1))
    rows = {
        "transfers": [{"student": "ä'b", "epochs": np.int64(2**40), "lr": np.float32(0.5), "diverged": np.bool_(True)}]
    }
    store.finish(claim_one(store), rows)
    (found,) = result_rows(store, "transfers")
    assert (found["student"], found["epochs"], found["lr"], found["diverged"]) == ("ä'b", 2**40, 0.5, True)
    assert type(found["diverged"]) is bool
    assert found["compile"] is None
