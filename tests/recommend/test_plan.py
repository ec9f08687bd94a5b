"""Planning what was recommended: the right transfers, once, with the study file's settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from kt_study.errors import DataError, UsageError
from kt_study.multi_teacher import transfer_digest
from kt_study.records import DatasetRecord
from kt_study.store import JobStore
from kt_study.study import StudyFile
from orchestrator.cli.commands import plan as plan_command
from orchestrator.cli.commands import recommend as recommend_command
from orchestrator.planning import Plan, write_plan
from orchestrator.results.recommend.from_recommendation import recommended_plan
from orchestrator.results.recommend.record import as_json
from tests.planning.support import assert_sound, specs_of
from tests.recommend.invented import (
    KEYS,
    NAME,
    STUDY,
    WORLD,
    ask,
    everyone,
    fill,
    other,
    sources,
    transfer_spec,
    write_dataset_index,
)

STUDENT = KEYS[0]
RUN = [(KEYS[4], STUDENT), (KEYS[5], STUDENT)]

STUDY_TOML = f"""
[study]
name = "{NAME}"
[dataset]
kind = "imagefolder"
[transfer]
objectives = ["kl_dp"]
epochs = 3
"""


@pytest.fixture
def folder(store: JobStore, url: str, tmp_path: Path) -> Path:
    """A study folder with pairs and two transfers measured, and a recommendation of every teacher."""
    fill(store, pairs=everyone(STUDENT), transfers=RUN)
    write_dataset_index(tmp_path, [f"class {label}" for label in range(WORLD.classes)])
    (tmp_path / "study.toml").write_text(STUDY_TOML)
    (tmp_path / "recommendation.json").write_bytes(as_json(ask(url, tmp_path, STUDENT)))
    return tmp_path


def planned(folder: Path, store: JobStore, study: StudyFile = STUDY) -> Plan:
    return recommended_plan(folder / "recommendation.json", study, sources(folder), store)


def test_every_teacher_that_was_not_measured_is_planned(folder: Path, store: JobStore) -> None:
    plan = planned(folder, store)
    teachers = set(KEYS) - {STUDENT, KEYS[4], KEYS[5]}
    assert set(plan.runs) == {transfer_spec(teacher, STUDENT) for teacher in teachers}
    assert set(specs_of(plan, "transfer")) == set(plan.runs)
    assert_sound(plan)
    assert plan.notes == ["2 of 7 recommended pairs are measured already and left out"]


def test_a_second_plan_adds_nothing(folder: Path, store: JobStore) -> None:
    study = store.study(NAME)
    first = write_plan(planned(folder, store), sources(folder), store)
    # 5 transfers, and two views of the training set of 5 teachers and of the frozen student; val was forwarded before
    assert first.new == 5 + 2 * 6
    again = write_plan(planned(folder, store), sources(folder), store)
    assert (again.new, again.linked, again.existing) == (0, 0, first.new + first.existing)
    assert store.study(NAME) == {**study, "folder": str(folder.resolve())}


def test_what_is_measured_by_then_is_not_run_again(folder: Path, store: JobStore) -> None:
    """The file is older than the transfer: the job is known by what it is."""
    fill(store, transfers=[(KEYS[1], STUDENT)])
    digest = transfer_digest(transfer_spec(KEYS[1], STUDENT))
    plan = planned(folder, store)
    assert digest in plan.jobs
    written = write_plan(plan, sources(folder), store)
    assert written.new == 4 + 2 * 6


def test_other_settings_make_other_transfers(folder: Path, store: JobStore) -> None:
    longer = replace(STUDY, transfer=replace(STUDY.transfer, epochs=9))
    plan = planned(folder, store, longer)
    assert set(plan.runs) == {transfer_spec(teacher, STUDENT, settings=other(epochs=9)) for teacher in KEYS[1:]}
    assert plan.notes == []


def test_the_commands_write_and_read_the_same_file(
    folder: Path, url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    runner = CliRunner()

    def plan(*arguments: str) -> Result:
        return runner.invoke(plan_command.command, ["--db", url, "--from-recommendation", *arguments])

    (folder / "recommendation.json").unlink()
    asked = ["--db", url, "--student", WORLD.name(STUDENT), "--unmeasured", "--top", "3"]
    told = runner.invoke(recommend_command.command, [*asked, "--out", "recommendation.json"])
    assert told.exit_code == 0 and "written to recommendation.json" in told.output
    machine = runner.invoke(recommend_command.command, [*asked, "--json"])
    assert json.loads(machine.output) == json.loads((folder / "recommendation.json").read_text())

    jobs = len(store.jobs())
    dry = plan("--dry-run", "--json")
    assert json.loads(dry.output)["transfers"] == 3
    assert len(store.jobs()) == jobs
    assert "dry run: nothing written" in plan("recommendation.json", "--dry-run").output
    assert json.loads(plan("--json").output)["new"] == 3 + 2 * 4
    assert plan().output.splitlines()[-1].startswith("0 new jobs")


@pytest.mark.parametrize(
    "flags", [["--pairs", "3"], ["--preset", "paper-full"], ["--complementarity-pairs", "all"], ["--grid", "lr=1,2"]]
)
def test_other_ways_to_name_pairs_are_refused(
    folder: Path, url: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(plan_command.command, ["--db", url, *flags, "--from-recommendation"])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith(f"{flags[0]} and --from-recommendation")


def remove(folder: Path, store: JobStore) -> None:  # noqa: ARG001
    (folder / "recommendation.json").unlink()


def spoil(folder: Path, store: JobStore) -> None:  # noqa: ARG001
    (folder / "recommendation.json").write_text('{"study": "invented"')


def rename(folder: Path, store: JobStore) -> None:  # noqa: ARG001
    file = folder / "recommendation.json"
    file.write_text(file.read_text().replace(f'"study": "{NAME}"', '"study": "another"'))


def lose_index(folder: Path, store: JobStore) -> None:  # noqa: ARG001
    (folder / "cache" / "datasets" / "data.npz").unlink()


def lose_training_set(folder: Path, store: JobStore) -> None:  # noqa: ARG001
    store.add_datasets([DatasetRecord(key="data", name="synthetic", kind="invented", splits={"val": WORLD.n})])


@pytest.mark.parametrize(
    ("break_it", "error", "said"),
    [
        (remove, UsageError, "no such recommendation; `kt-study recommend --student NAME --out "),
        (spoil, UsageError, "not a recommendation"),
        (rename, UsageError, "is about study 'another', and this one is 'invented'"),
        (lose_index, DataError, "the index of data set 'synthetic' is not here"),
        (lose_training_set, UsageError, "has no training samples"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    folder: Path, store: JobStore, break_it: Callable[[Path, JobStore], None], error: type[Exception], said: str
) -> None:
    break_it(folder, store)
    with pytest.raises(error) as raised:
        planned(folder, store)
    assert said in str(raised.value) and "\n" not in str(raised.value)
