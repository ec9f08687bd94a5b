"""The path of every file of a study; no other module builds paths.

All files are under the study folder (the folder of study.toml), which all nodes must share:

    study.toml  kt-study.db  cache/{datasets,logits,weights,betons}  runs/<job>/  logs/  spool/  results/  report/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StudyPaths:
    """The files of one study folder. Nothing here touches the disk."""

    root: Path

    @property
    def database(self) -> Path:
        """The default SQLite database."""
        return self.root / "kt-study.db"

    @property
    def cache(self) -> Path:
        """What can be computed again: data set indices, logits, trained weights."""
        return self.root / "cache"

    def dataset_index(self, dataset_key: str) -> Path:
        """The stored index of a data set: its samples, labels and class names in every split."""
        return self.cache / "datasets" / f"{dataset_key}.npz"

    def beton(self, dataset_key: str, split: str) -> Path:
        """The ffcv file of one split."""
        return self.cache / "betons" / f"{dataset_key}-{split}.beton"

    def logits(self, spec_digest: str) -> Path:
        """The folder of one cached forward pass."""
        return self.cache / "logits" / spec_digest[:2] / spec_digest

    def weights(self, job_digest: str) -> Path:
        """The weights that a `train` or `transfer` job leaves for others."""
        return self.cache / "weights" / f"{job_digest}.safetensors"

    def job(self, job_digest: str) -> Path:
        """The folder of one job: checkpoint, predictions."""
        return self.root / "runs" / job_digest[:2] / job_digest

    def checkpoint(self, job_digest: str) -> Path:
        """Where an interrupted transfer or training resumes from."""
        return self.job(job_digest) / "checkpoint.pt"

    def predictions(self, job_digest: str) -> Path:
        """The student's predictions after a transfer, one small integer a validation sample."""
        return self.job(job_digest) / "predictions.npy"

    def outcome(self, job_digest: str) -> Path:
        """What a training left for the transfers that have it in common."""
        return self.job(job_digest) / "outcome.json"

    def all_pairs(self, job_digest: str) -> Path:
        """Every ordered pair of a set of models, as parquet."""
        return self.job(job_digest) / "all_pairs.parquet"

    @property
    def logs(self) -> Path:
        """Logs of workers, and what submitit keeps of them."""
        return self.root / "logs"

    @property
    def spool(self) -> Path:
        """Results waiting for a database that was gone when they were ready."""
        return self.root / "spool"

    @property
    def results(self) -> Path:
        """Parquet."""
        return self.root / "results"

    @property
    def report(self) -> Path:
        """Figures, tables and the page."""
        return self.root / "report"

    def relative(self, path: Path) -> str:
        """`path` as stored in a row: relative to the study folder, with forward slashes."""
        return path.relative_to(self.root).as_posix()
