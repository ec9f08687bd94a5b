"""The exceptions of kt-study. Each has a one-line message for the user: which thing, where, and what to do.

KtStudyError
|-- UsageError               exit code 2: wrong usage or input
|   |-- StudyFileError       the study file
|   |-- UnknownModelError    a model name, tag or factory that does not resolve
|   |-- WeightsError         a checkpoint that is missing, unreadable or does not fit
|   |   `-- ArtefactGone     an artefact of another job is missing: that job runs again
|   |-- DataError            a data set folder, file or image
|   `-- PairsError           more pairs, or fewer models, than can be drawn
|-- EnvironmentUnusable      exit code 3: the environment
|   |-- DatabaseError        the job database: unreachable, too new, on a network file system
|   |   |-- NothingPlanned   it does not exist yet; exit code 2
|   |   `-- SchemaMismatch   it lacks a table or column that this program writes
|   |-- SlurmError           the cluster's commands, partitions and limits
|   |-- DiskError            no space, no permission, a file that cannot be written
|   `-- UntrustedFile        another account could have written a file that is about to be run or trusted
`-- LeaseLost                a worker no longer holds the job; it stops and writes nothing
"""

from __future__ import annotations

from collections.abc import Iterable


class KtStudyError(Exception):
    """Root of everything kt-study raises on purpose."""

    exit_code = 2


class UsageError(KtStudyError):
    """Wrong usage or input. A retry of the same job cannot fix it."""

    exit_code = 2


class StudyFileError(UsageError):
    """The study file is missing, malformed, or names something that does not exist."""


class UnknownModelError(UsageError):
    """A model name that neither the study file nor the catalogue knows."""


class WeightsError(UsageError):
    """A checkpoint that is missing, unreadable, or whose tensors do not fit the architecture."""


class ArtefactGone(WeightsError):
    """A file that one job left and another reads is missing or damaged. `makers` are the digests of jobs to do again."""

    def __init__(self, message: str, makers: Iterable[str]) -> None:
        super().__init__(message)
        self.makers = tuple(makers)


class DataError(UsageError):
    """A data set folder, index or image that is missing or unreadable."""


class PairsError(UsageError):
    """A sample of pairs that cannot be drawn."""


class EnvironmentUnusable(KtStudyError):
    """The environment cannot be used: database, Slurm or disk. Trying again later may help."""

    exit_code = 3


class DatabaseError(EnvironmentUnusable):
    """The job database cannot be reached, opened or migrated."""


class NothingPlanned(DatabaseError):
    """There is no job database yet, or none of our tables in it."""

    exit_code = 2


class SchemaMismatch(DatabaseError):
    """The database answers, but lacks a table or column that this program writes. Waiting does not fix it."""


class SlurmError(EnvironmentUnusable):
    """Slurm refused, timed out, or lacks what was requested."""


class DiskError(EnvironmentUnusable):
    """A file cannot be written: no space, no permission, or a read-only disk."""


class UntrustedFile(EnvironmentUnusable):
    """A file or folder that is about to be used, and that another account owns or can write."""


class LeaseLost(KtStudyError):
    """This worker's lease on a job has passed to another attempt, or the job was cancelled."""

    exit_code = 1
