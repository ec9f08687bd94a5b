"""Study files of small networks, plans made without a database, and a way to run their jobs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from kt_study.errors import KtStudyError
from kt_study.hashing import job_digest
from kt_study.records import PlannedJob, TransferSpec
from kt_study.store.results import plain_rows
from kt_study.study import StudyFile, read_study
from orchestrator.planning import Plan, PlanOptions, Sources, make_plan
from orchestrator.planning.model_records import FileDigests
from tests.data.support import job_context
from worker.job.context import Rows
from worker.kinds import job_kind

DIGITS = '[study]\nname = "small"\nseed = 3\n[dataset]\nkind = "digits"\n'


def model_table(name: str, architecture: str = "test_resnet", **more: Any) -> str:
    """A [[model]] table: random weights for 32-pixel images unless `more` says otherwise."""
    keys = {"name": name, "timm": architecture, "family": "cnn", "input_size": [3, 32, 32], "random_weights": True}
    keys |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic", "crop_pct": 1.0, **more}
    lines = [f"{key} = {_toml(value)}" for key, value in keys.items() if value is not None]
    return "\n".join(["[[model]]", *lines, ""])


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return msgspec.json.encode(value).decode()


FOUR = [model_table(f"m{seed}", arguments={"drop_rate": seed / 10}) for seed in range(4)]
"""Models m0 .. m3: different by an argument that no test looks at."""


def save_resnet(path: Path, *, classes: int = 10) -> Path:
    """Weights that fit the tables of `model_table`, as a file of either format."""
    import timm
    import torch
    from safetensors.torch import save_file

    state = timm.create_model("test_resnet", num_classes=classes).state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def write_study(folder: Path, *parts: str) -> Path:
    """study.toml in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.toml"
    path.write_text("\n".join(parts))
    return path


def sources_of(folder: Path, **more: Any) -> Sources:
    """Sources whose scratch folder is beside the study folder."""
    scratch = folder.parent / f"{folder.name}-scratch"
    return Sources(folder=folder, scratch=scratch, digests=FileDigests(folder / "cache" / "digests.json"), **more)


def study_of(folder: Path, *parts: str) -> StudyFile:
    """The study file of these parts."""
    return read_study(write_study(folder, *parts))


def plan_of(folder: Path, *parts: str, options: PlanOptions | None = None, **more: Any) -> Plan:
    """The plan of a study file."""
    return make_plan(study_of(folder, *parts), sources_of(folder, **more), options)


def specs_of(plan: Plan, *kinds: str) -> list[TransferSpec]:
    """The transfer specifications among the jobs, in order."""
    return [msgspec.convert(job.spec, TransferSpec) for job in plan.jobs.values() if job.kind in kinds]


def assert_sound(plan: Plan) -> None:
    """Every job's digest is that of its specification, its needs come before it, and what it names is in the plan."""
    models = {model.key for model in [*plan.models, *plan.others]}
    datasets = {dataset.key for dataset in plan.datasets}
    seen: set[str] = set()
    for digest, job in plan.jobs.items():
        assert digest == job.digest == job_digest(job.kind, job.spec)
        assert set(job.needs) <= seen
        assert job.spec["dataset"] in datasets
        assert set(_named(job)) <= models
        assert job.estimate_s > 0
        seen.add(digest)


def _named(job: PlannedJob) -> Iterable[str]:
    for key in ("model", "teacher", "student", "start"):
        if key in job.spec:
            yield job.spec[key]
    yield from job.spec.get("models", ())
    yield from job.spec.get("teachers", ())


def run_jobs(plan: Plan, sources: Sources, *kinds: str) -> dict[str, list[dict[str, Any]]]:
    """Do the plan's jobs of these kinds, in order, without a database. Returns their rows by table, as they would be stored."""
    for dataset in plan.datasets:
        target = sources.paths.dataset_index(dataset.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((sources.scratch / target.relative_to(sources.folder)).read_bytes())
    context = job_context(sources.paths, plan.datasets[0], *plan.models, *plan.others)
    context.records.datasets.update((dataset.key, dataset) for dataset in plan.datasets)  # type: ignore[attr-defined]
    found: dict[str, list[dict[str, Any]]] = {}
    for job in plan.jobs.values():
        if job.kind in kinds:
            rows: Rows = job_kind(job.kind).run(job.spec, context)
            for table, more in plain_rows(rows).items():
                found.setdefault(table, []).extend(dict(row) for row in more)
    return found


def refusal(error: KtStudyError) -> str:
    """What an error says, which must be one line."""
    assert "\n" not in str(error)
    return str(error)
