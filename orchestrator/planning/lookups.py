"""Database lookups for planning: measured accuracies, and transfers that are running or done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from kt_study.multi_teacher import transfer_digest
from kt_study.paths import StudyPaths
from kt_study.records import JobState, TransferSpec
from orchestrator.planning.record import RecordedTransfer

if TYPE_CHECKING:
    from kt_study.store import JobRow, JobStore

_TRANSFERS = ("transfer", "soup")


class Lookups:
    """The lookups of `Sources` in the job database. Each table is read once, when it is first needed.

    Args:
        open_store: opens the database; None if there is none, which has no rows.
        paths: of the study, for the files of kept students.
    """

    def __init__(self, open_store: Callable[[], JobStore | None], paths: StudyPaths) -> None:
        self._open_store = open_store
        self._paths = paths
        self.accuracies: Callable[[str], Mapping[str, float]] = cache(self._accuracies)
        """Top-1 on a data set's validation split, % by model key."""

    def recorded(self, digest: str) -> RecordedTransfer | None:
        """A transfer or soup that is running or done; None for others."""
        job = self._claimed.get(digest)
        if job is None:
            return None
        done = job.state == JobState.DONE
        planned = {job.spec.get("settings", {}).get("keep", "none"), self._remade.get(digest, "none")}
        keep = next(each for each in ("all", "best", "none") if each in planned)
        return RecordedTransfer(
            done=done, keep=keep, there=keep == "all" and (not done or self._paths.weights(digest).exists())
        )

    def acc_after(self, digest: str) -> float | None:
        """Accuracy after a transfer or soup that is done, %."""
        return self._acc_after.get(digest)

    def _accuracies(self, dataset_key: str) -> dict[str, float]:
        return {
            row["model_key"]: row["acc"]
            for row in self._rows("evaluations")
            if row["dataset_key"] == dataset_key and row["split"] == "val" and row["acc"] is not None
        }

    @cached_property
    def _claimed(self) -> dict[str, JobRow]:
        return {job.digest: job for job in self._jobs(_TRANSFERS, JobState.RUNNING, JobState.DONE)}

    @cached_property
    def _remade(self) -> dict[str, str]:
        """`keep` of each `remake` that is done, by the digest of its transfer."""
        specs = [msgspec.convert(job.spec, TransferSpec) for job in self._jobs(("remake",), JobState.DONE)]
        return {transfer_digest(spec): spec.settings.keep for spec in specs}

    @cached_property
    def _acc_after(self) -> dict[str, float | None]:
        digests = {job.id: job.digest for job in self._jobs(_TRANSFERS, JobState.DONE)}
        return {digests[row["job_id"]]: row["acc_after"] for row in self._rows("transfers") if row["job_id"] in digests}

    def _jobs(self, kinds: tuple[str, ...], *states: JobState) -> list[JobRow]:
        from kt_study.store import Selection

        store = self._open_store()
        if store is None:
            return []
        selections = [Selection(kind=kind, state=state) for kind in kinds for state in states]
        return [job for selection in selections for job in store.jobs(selection, limit=sys.maxsize)]

    def _rows(self, table: str) -> Iterator[dict[str, Any]]:
        if store := self._open_store():
            for batch in store.results(table):
                yield from batch
