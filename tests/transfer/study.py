"""A study folder with the digits, small models with random weights, and a way to run jobs in it without a database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kt_study.datasets import prepare
from kt_study.hashing import job_digest
from kt_study.objectives import settings_for
from kt_study.paths import StudyPaths
from kt_study.records import Claim, DatasetRecord, ModelRecord, Progress, TransferSpec, as_spec
from kt_study.study import DatasetSection
from worker.job.context import JobContext, Rows, WorkerOptions
from worker.kinds import job_kind


def digits_model(name: str, factory: str, seed: int, **arguments: Any) -> ModelRecord:
    """A record of one of tests.transfer.toy's factories, its weights drawn from `seed`."""
    return ModelRecord(
        key=f"key-{name}",
        name=name,
        family="cnn",
        weights=f"random:{seed}",
        input_size=(3, 32, 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        factory=f"tests.transfer.toy:{factory}",
        arguments={"num_classes": 10, **arguments},
        num_classes=10,
    )


@dataclass(kw_only=True)
class Study:
    """Runs jobs of one folder; records are plain dictionaries."""

    paths: StudyPaths
    data: DatasetRecord
    models: dict[str, ModelRecord]
    worker_cache: dict[str, Any] = field(default_factory=dict)
    reports: list[Progress] = field(default_factory=list)

    def model(self, key: str) -> ModelRecord:
        return self.models[key]

    def dataset(self, key: str) -> DatasetRecord:
        assert key == self.data.key
        return self.data

    def spec(self, objective: str, *teachers: str, student: str = "s", **given: Any) -> TransferSpec:
        """A short transfer with steps large enough to change predictions."""
        given = {"epochs": 2, "augment": "none", "lr": 0.05, "batch_size": 64, **given}
        return TransferSpec(
            dataset=self.data.key,
            student=f"key-{student}",
            teachers=tuple(f"key-{name}" for name in teachers),
            objective=objective,
            settings=settings_for(objective, given),
        )

    def run(self, spec: TransferSpec, *, stopping: Callable[[], bool] = lambda: False, **options: Any) -> Rows:
        """The rows of one job, of kind soup or transfer as the specification says."""
        context = self.context(spec, stopping=stopping, **options)
        return job_kind(context.claim.kind).run(context.claim.spec, context)

    def context(
        self, spec: TransferSpec, *, stopping: Callable[[], bool] = lambda: False, **options: Any
    ) -> JobContext:
        """What the pilot would hand to the job."""
        kind, plain = "soup" if spec.settings.multi_teacher == "soup" else "transfer", as_spec(spec)
        digest = job_digest(kind, plain)
        return JobContext(
            claim=Claim(job_id=1, attempt_id=1, fence=1, kind=kind, digest=digest, spec=plain, attempt=1),
            records=self,
            paths=self.paths,
            device=torch.device("cpu"),
            report=self.reports.append,
            stopping=stopping,
            options=WorkerOptions(**options),
            worker_cache=self.worker_cache,
        )


def make_study(root: Path) -> Study:
    """Student s, teachers a, b, c, and w, whose network is its `model`, on the digits."""
    paths = StudyPaths(root=root)
    records = [
        digits_model("s", "small_cnn", 1, width=8),
        digits_model("a", "small_mlp", 2, side=32),
        digits_model("b", "small_cnn", 3, width=12),
        digits_model("c", "small_mlp", 4, side=32),
        digits_model("w", "Wrapped", 5, width=8),
    ]
    data = prepare(DatasetSection(kind="digits"), seed=0, folder=root, paths=paths)
    return Study(paths=paths, data=data, models={record.key: record for record in records})
