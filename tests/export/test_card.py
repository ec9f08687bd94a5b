"""The card of a student: licences, and how to load what timm does not have."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord, ModelRecord
from kt_study.settings import Settings
from orchestrator.planning.universe import catalogue
from orchestrator.results.export.card import CardFacts, model_card
from orchestrator.results.export.folder import export_student
from orchestrator.results.export.licences import card_licence, is_non_commercial, warnings
from orchestrator.results.export.selection import SelectedTransfer
from tests.transfer.study import digits_model
from tests.transfer.toy import small_cnn
from worker.models.kept import keep_student


def row(**given: Any) -> dict[str, Any]:
    settings = {name: getattr(Settings(), name) for name in Settings.__struct_fields__}
    return settings | {
        "job_id": 7, "dataset": "digits", "dataset_key": "d", "student_key": "key-s", "teacher_key": "key-t",
        "student": "s", "teacher": "t", "objective": "kl_dp", "seed": 0, "n": 200, "n_train": 300, "acc_teacher": 80.0,
        "acc_before": 70.0, "acc_after": 75.0, "delta_transf": 5.0, "delta_transf_low": 1.0, "delta_transf_high": 9.0,
        "knowledge_gain": 6.0, "knowledge_loss": 1.0, "mcnemar_p": 0.01, "device": "cpu", "versions": "python 3.11",
        **given,
    }  # fmt: skip


class Store:
    """The records and the job that an export looks up."""

    def __init__(self, *models: ModelRecord) -> None:
        self.models = {model.key: model for model in models}

    def model(self, key: str) -> ModelRecord:
        return self.models[key]

    def dataset(self, key: str) -> DatasetRecord:
        return DatasetRecord(key=key, name="digits", kind="digits")


def test_the_card_of_a_factorys_student_has_code_that_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = digits_model("s", "small_cnn", 1, width=8), digits_model("t", "small_cnn", 2, width=8)
    torch.manual_seed(5)
    state = small_cnn(num_classes=10, width=8).state_dict()
    kept = keep_student(StudyPaths(root=tmp_path), "c0ffee", state, {"acc_after": 75.0}, "all")
    assert kept is not None
    selected = SelectedTransfer(row=row(), digest="c0ffee", weights=kept, matches=1)
    out = tmp_path / "mine"
    exported = export_student(selected, Store(student, teacher), "toy", StudyPaths(root=tmp_path), out)  # type: ignore[arg-type]
    assert not exported.by_timm and "timm cannot build 'tests.transfer.toy:small_cnn'" in exported.notes[0]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.safetensors"]
    card = (out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert all(torch.equal(state[name], tensor) for name, tensor in scope["model"].state_dict().items())
    (table,) = re.findall(r"```toml\n(.*?)```", card, re.DOTALL)
    (model,) = tomllib.loads(table)["model"]
    assert model["arguments"] == {"num_classes": 10, "width": 8}
    assert (model["checkpoint"], tuple(model["mean"])) == ("mine/model.safetensors", student.mean)


def test_a_reproduced_student_that_differs_has_a_note(tmp_path: Path) -> None:
    student, teacher = digits_model("s", "small_cnn", 1, width=8), digits_model("t", "small_cnn", 2, width=8)
    paths = StudyPaths(root=tmp_path)
    for after, noted in ((75.0, False), (74.5, True)):
        state = small_cnn(num_classes=10, width=8).state_dict()
        kept = keep_student(paths, "c0ffee", state, {"acc_after": after}, "all")
        assert kept is not None
        selected = SelectedTransfer(row=row(), digest="c0ffee", weights=kept, matches=1)
        out = tmp_path / f"mine{after}"
        exported = export_student(selected, Store(student, teacher), "toy", paths, out)  # type: ignore[arg-type]
        assert ("reproduced" in (out / "README.md").read_text()) == noted
        assert any("74.50 % on the same samples" in note for note in exported.notes) == noted


def _licensed(*licences: str) -> list[ModelRecord]:
    return [
        ModelRecord(key=f"k{n}", name=f"m{n}", family="cnn", weights="w", timm="resnet18", input_size=(3, 8, 8),
                    mean=(0.5,), std=(0.5,), license=licence)
        for n, licence in enumerate(licences)
    ]  # fmt: skip


def test_licences_of_every_model_of_timm_are_known() -> None:
    names = {model.license for model in catalogue()}
    assert {name for name in names if is_non_commercial(name)} == {"cc-by-nc-4.0"}


def test_a_non_commercial_teacher_has_a_warning() -> None:
    student, teacher = _licensed("apache-2.0", "cc-by-nc-4.0")
    assert warnings(student, [teacher]) == ["the teacher m1 is licensed for non-commercial use only (cc-by-nc-4.0)"]
    facts = CardFacts(study="s", digest="d", row=row(), student=student, teachers=[teacher],
                      dataset=DatasetRecord(key="d", name="d", kind="digits"), matches=1, folder="mine")  # fmt: skip
    card = model_card(facts)
    assert "\nlicense: other\n" in card
    assert "| teacher m1 | cc-by-nc-4.0 | non-commercial use only |" in card
    assert "The teacher m1 is licensed for non-commercial use only" in card


def test_one_licence_for_all_is_the_cards() -> None:
    student, *teachers = _licensed("apache-2.0", "apache-2.0")
    assert card_licence(student, teachers) == "apache-2.0" and not warnings(student, teachers)
    student, *teachers = _licensed("apache-2.0", "")
    assert card_licence(student, teachers) == "other"
    assert warnings(student, teachers) == ["the licence of the teacher m1 is unknown"]
