"""The job kind `remake`: the student of a finished transfer, made again for those who read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from kt_study.multi_teacher import multi_teacher_specs, transfer_digest
from kt_study.records import TransferSpec, as_spec
from tests.transfer.study import Study, make_study
from worker.job.context import Rows, Stopped
from worker.kinds import job_kind
from worker.models.kept import kept_facts
from worker.training.loop import TransferLoop


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


def remake(
    study: Study, spec: TransferSpec, stopping: Callable[[], bool] = lambda: False, *, keep: str = "all"
) -> Rows:
    """Do the job that planning adds for a student that is wanted and was not kept."""
    kept = replace(spec, settings=replace(spec.settings, keep=keep))
    return job_kind("remake").run(as_spec(kept), study.context(kept, stopping=stopping))


def kept_file(study: Study, spec: TransferSpec) -> Path:
    return study.paths.weights(transfer_digest(spec))


def test_it_leaves_the_weights_that_keep_all_would_have_left_and_nothing_else(study: Study) -> None:
    spec = study.spec("xe_kl_mcl", "a")
    kept = replace(spec, settings=replace(spec.settings, keep="all"))
    (row,) = study.run(kept)["transfers"]
    expected = load_file(kept_file(study, spec))
    facts = kept_facts(kept_file(study, spec))
    kept_file(study, spec).unlink()
    predictions = study.paths.root / row["predictions"]
    predictions.write_bytes(b"those of the row")

    assert remake(study, spec) == {}

    again = load_file(kept_file(study, spec))
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    assert kept_facts(kept_file(study, spec))["acc_after"] == facts["acc_after"] == row["acc_after"]
    assert predictions.read_bytes() == b"those of the row"


def test_it_resumes_where_it_was_stopped(study: Study) -> None:
    spec = study.spec("kl_dp", "a", epochs=3)
    remake(study, spec)
    unbroken = load_file(kept_file(study, spec))
    kept_file(study, spec).unlink()
    calls = iter(range(10**6))
    with pytest.raises(Stopped):
        remake(study, spec, stopping=lambda: next(calls) == 12)
    checkpoint = study.paths.checkpoint(transfer_digest(spec))
    assert checkpoint.exists()
    assert not kept_file(study, spec).exists()
    remake(study, spec)
    assert not checkpoint.exists()
    again = load_file(kept_file(study, spec))
    assert all(torch.equal(again[name], unbroken[name]) for name in unbroken)


def test_a_soup_of_remade_parts_is_the_soup_of_kept_ones(study: Study) -> None:
    *singles, soup = multi_teacher_specs(study.spec("kl", "a", "b", keep="all"), "soup")
    for single in singles:
        study.run(single)
    (row,) = study.run(soup)["transfers"]
    first = load_file(kept_file(study, soup))
    for spec in (*singles, soup):
        kept_file(study, spec).unlink()
    for single in singles:
        remake(study, single)
    assert study.run(soup)["transfers"][0]["acc_after"] == row["acc_after"]
    kept_file(study, soup).unlink()
    assert remake(study, soup) == {}
    again = load_file(kept_file(study, soup))
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_the_best_of_finished_transfers_is_kept_unless_a_better_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, trained = make_study(tmp_path), []
    specs = [study.spec("kl", "a", lr=lr) for lr in (0.001, 0.02, 0.05)]
    accuracies = [study.run(spec)["transfers"][0]["acc_after"] for spec in specs]
    assert len(set(accuracies)) == 3
    worst, middle, best = (spec for _, spec in sorted(zip(accuracies, specs, strict=True), key=lambda pair: pair[0]))
    run = TransferLoop.run
    monkeypatch.setattr(TransferLoop, "run", lambda loop: trained.append(loop) or run(loop))
    files = {id(spec): kept_file(study, spec) for spec in specs}

    remake(study, middle, keep="best")
    assert (len(trained), files[id(middle)].exists()) == (1, True)
    remake(study, worst, keep="best")
    assert (len(trained), files[id(worst)].exists()) == (1, False), "beaten before it begins"
    remake(study, best, keep="best")
    assert (len(trained), [files[id(spec)].exists() for spec in (worst, middle, best)]) == (2, [False, False, True])
