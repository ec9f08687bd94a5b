"""A whole transfer job through the pilot and a SQLite database, a forward pass into the cache, and what they are made
of: bare steps and forwards.

For `job` and `logits` of `benchmarks.bench_step`. The digits at 32 pixels; a job's logits are cached before the clock
starts, as in a study, where many transfers share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kt_study.cache import remove_entry
from kt_study.datasets import prepare
from kt_study.hashing import job_digest
from kt_study.objectives import needed_logits, settings_for
from kt_study.paths import StudyPaths
from kt_study.pilots import PilotOptions
from kt_study.records import Claim, DatasetRecord, JobState, LogitsSpec, ModelRecord, PlannedJob, TransferSpec, as_spec
from kt_study.settings import Settings
from kt_study.store import open_store
from kt_study.study import DatasetSection
from worker.data.loader import evaluation_views, training_views
from worker.data.views import ViewRecipe, epoch_order
from worker.job.context import JobContext, WorkerOptions
from worker.logits.forward import cached_logits
from worker.models.build import build_model
from worker.pilot.pilot import Pilot

EPOCHS = 3
STUDY = "bench"


class WholeJob:
    """One study folder; each call of `through_the_pilot` plans and runs one more transfer in it."""

    def __init__(self, root: Path, *, device: torch.device, batch: int) -> None:
        self.device = device
        self.paths = StudyPaths(root=root)
        self.settings: Settings = settings_for("kl_dp", {"epochs": EPOCHS, "batch_size": batch, "augment": "none"})
        self.dataset = prepare(DatasetSection(kind="digits"), seed=0, folder=root, paths=self.paths)
        self.models = {name: _record(name, seed) for seed, name in enumerate(("resnet18", "resnet10t"))}
        self.store = open_store(f"sqlite:///{root / 'bench.db'}", create=True)
        self._jobs = 0

    def prepare(self) -> None:
        """Records and cached logits."""
        self.store.add_study(STUDY, {})
        self.store.add_models(self.models.values())
        self.store.add_datasets([self.dataset])
        spec = self._spec()
        passes = needed_logits(spec, dataset=self.dataset, model=self.models.__getitem__)
        self._do([_job("logits", as_spec(one)) for one in passes])

    def through_the_pilot(self) -> None:
        """Plan one more transfer and run it. Its seed, and so its digest, is its own; the views have no randomness."""
        self._jobs += 1
        self._do([_job("transfer", as_spec(self._spec()))])

    def bare(self) -> None:
        """The same number of steps on, and forwards of, images in memory."""
        model = build_model(self.models["resnet18"], self.paths, self.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-3, fused=True)
        labels = torch.zeros(self.dataset.splits["train"], dtype=torch.int64, device=self.device)
        for epoch in range(EPOCHS):
            model.train()
            for images, index in self._training_batches(epoch):
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(images), labels[index]).backward()
                optimizer.step()
            model.eval()
            with torch.inference_mode():
                for images in self._validation_batches():
                    model(images)

    def _training_batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if not hasattr(self, "_train"):
            views = training_views(
                self.dataset,
                "train",
                self.models["resnet18"],
                ViewRecipe(augment="none"),
                self.paths,
                device=self.device,
            )
            self._train = torch.cat([images for images, _ in views.batches(np.arange(views.n), 256, view=0)])
        size = self.settings.batch_size
        for index in torch.from_numpy(epoch_order(0, epoch, len(self._train))).to(self.device).split(size):
            yield self._train[index], index

    def _validation_batches(self) -> Iterator[torch.Tensor]:
        if not hasattr(self, "_val"):
            views = evaluation_views(self.dataset, "val", self.models["resnet18"], self.paths, device=self.device)
            self._val = torch.cat([images for images, _ in views.batches(np.arange(views.n), 256)])
        yield from self._val.split(PilotOptions(root="").eval_batch_size)

    def _spec(self) -> TransferSpec:
        return TransferSpec(
            dataset=self.dataset.key,
            student="resnet18",
            teachers=("resnet10t",),
            objective="kl_dp",
            settings=self.settings,
            seed=self._jobs,
        )

    def _do(self, jobs: list[PlannedJob]) -> None:
        """Plan the jobs and run a pilot until nothing is left. Raises RuntimeError when one did not end well."""
        self.store.plan(STUDY, jobs)
        options = PilotOptions(root=str(self.paths.root), study=STUDY, threads=torch.get_num_threads(), idle_s=1.0)
        Pilot(options=options, store=self.store, device=self.device).run()
        states = {state for (_, state), count in self.store.summary(STUDY).counts.items() if count}
        if states != {JobState.DONE}:
            raise RuntimeError(f"jobs ended as {states}: {self.store.failures(STUDY)}")


class LogitsPass:
    """One student over the validation split, 1000 outputs, into the cache and bare."""

    def __init__(self, root: Path, *, device: torch.device, batch: int) -> None:
        self.model = _record("resnet18", 0, classes=1000)
        paths = StudyPaths(root=root)
        self.dataset = prepare(DatasetSection(kind="digits"), seed=0, folder=root, paths=paths)
        self.spec = LogitsSpec(dataset=self.dataset.key, model=self.model.key, split="val")
        self.context = JobContext(
            claim=Claim(job_id=1, attempt_id=1, fence=1, kind="logits", digest="", spec={}, attempt=1),
            records=_Records(self.model, self.dataset),
            paths=paths,
            device=device,
            options=WorkerOptions(eval_batch_size=batch),
        )
        self._paths, self._device = paths, device
        views = evaluation_views(self.dataset, "val", self.model, paths, device=device)
        self._batches = [images for images, _ in views.batches(np.arange(views.n), batch)]

    def into_the_cache(self) -> None:
        """Forward and cache it, and forget it again. The images stay rendered on the worker's worker_cache."""
        remove_entry(cached_logits(self.spec, self.context).folder)

    def bare(self) -> None:
        """The same model built and the same forwards, each batch's logits brought to the host."""
        model = build_model(self.model, self._paths, self._device)
        with torch.inference_mode():
            for images in self._batches:
                model(images).cpu()


@dataclass(frozen=True)
class _Records:
    """The one model and the one data set."""

    only_model: ModelRecord
    only_dataset: DatasetRecord

    def model(self, key: str) -> ModelRecord:  # noqa: ARG002
        """See `worker.job.context.Records`."""
        return self.only_model

    def dataset(self, key: str) -> DatasetRecord:  # noqa: ARG002
        """See `worker.job.context.Records`."""
        return self.only_dataset


def _record(name: str, seed: int, classes: int = 10) -> ModelRecord:
    return ModelRecord(
        key=name,
        name=name,
        family="cnn",
        weights=f"random:{seed}",
        input_size=(3, 32, 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        timm=name,
        num_classes=classes,
    )


def _job(kind: str, spec: dict[str, object]) -> PlannedJob:
    return PlannedJob(kind=kind, spec=spec, digest=job_digest(kind, spec))
