"""The options that a launch passes to a pilot: a small record of files and limits, without secrets."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from msgspec import field

from kt_study.errors import DatabaseError, UntrustedFile
from kt_study.paths import StudyPaths
from kt_study.records import Record
from kt_study.trust import read_own, require_own


class ProbeExit(IntEnum):
    """Exit codes of a pilot whose check of its node failed: they reach the user through Slurm even if no file can be written."""

    NO_STUDY = 81  # the study folder is not there, or another one is
    NO_PYTHON = 82  # the virtual environment is not there, or kt-study is not in it
    NO_DATABASE = 83
    NO_GPU = 84
    LOST_GPU = 85  # after it had worked
    UNTRUSTED = 86  # another account may have written a file that a pilot runs or trusts


LEASE_S = 60.0
"""Default lease: seconds without a heartbeat before a job is requeued."""

HOLD_BAD_NODE_S = 20
"""Seconds that a pilot waits after a failed check: otherwise its node would use up a whole array."""


@dataclass(frozen=True, kw_only=True)
class LaunchFiles:
    """Files of the study folder that launches and pilots share, in addition to those of `StudyPaths`. All are private."""

    root: Path

    @property
    def folder(self) -> Path:
        """The folder of these files."""
        return self.root / ".kt-study"

    @property
    def database(self) -> Path:
        """The database's URL for pilots on other nodes; one line."""
        return self.folder / "database"

    @property
    def passfile(self) -> Path:
        """The database's password in libpq's format, where the user's URL carried it."""
        return self.folder / "pgpass"

    @property
    def marker(self) -> Path:
        """A random token, with which a node checks that it sees the same study folder as the launch."""
        return self.folder / "marker"

    @property
    def stop(self) -> Path:
        """A random token, which each `kt-study stop` replaces."""
        return self.folder / "stop"

    @property
    def launches(self) -> Path:
        """One record per launch on Slurm."""
        return self.folder / "launches"

    @property
    def slurm_view(self) -> Path:
        """The last answers of squeue and sacct."""
        return self.folder / "slurm.json"

    def channels(self, study: str) -> Path:
        """The channels of messages about a study."""
        return self.folder / "notify" / f"{study}.json"

    def sent(self, study: str, event: str) -> Path:
        """Marks that the message about an event of a study was or is being sent; contains the outcome."""
        return self.folder / "notify" / f"{study}.{event}"

    def launch(self, token: str) -> Path:
        """The record of one launch."""
        return self.launches / f"{token}.json"

    def probe(self, token: str, slurm_job: str) -> Path:
        """The result of a pilot's check of its node."""
        return self.folder / "probes" / token / f"{slurm_job}.json"


class Probe(Record, frozen=True, kw_only=True):
    """Result of a pilot's check of its node: `error` is empty, or one line."""

    node: str
    slurm_job: str
    error: str = field(name="trouble", default="")


class PilotOptions(Record, frozen=True, kw_only=True):
    """The options of one pilot. They are in submitit's pickle, so `database` is a URL without a password."""

    root: str  # the study folder, shared by all nodes
    database: str = ""  # empty: in the file `LaunchFiles.database`
    study: str = ""  # work for this study only; any when empty
    device: str = "auto"  # auto | cpu | cuda
    threads: int = 0  # torch threads; 0 for the cores this process may use
    lease_s: float = LEASE_S
    idle_s: float = 600.0  # how long to wait for jobs that need unfinished ones
    grace_s: float = 20.0  # from the first signal to the last write to the database
    margin_s: float = 60.0  # before the end of the allocation, in which no job is claimed
    linger_s: float = 120.0  # on Slurm, how long a stopped pilot waits to be killed and so requeued
    eval_batch_size: int = 64
    loader_workers: int | None = None  # processes that read images; None: on a GPU all threads but one, else none
    checkpoint_every_s: float = 300.0
    cuda_graphs: bool = False  # replay compiled students as CUDA graphs
    gpus: int = 0  # of the allocation; its pilots share them evenly
    token: str = ""  # names the launch in Slurm's job list
    umask: int | None = None  # for files that the study makes; what is in `logs` is private before it is set
    after_stop: str = ""  # token of the last `kt-study stop` before the launch; a later one ends the pilot

    @property
    def paths(self) -> StudyPaths:
        """The files of the study."""
        return StudyPaths(root=Path(self.root))

    @property
    def files(self) -> LaunchFiles:
        """The files that launches and pilots share."""
        return LaunchFiles(root=Path(self.root))

    def database_url(self) -> str:
        """The URL of the job database.

        Raises:
            DatabaseError: its file cannot be read.
            UntrustedFile: another account may have written it.
        """
        if self.database:
            return self.database
        try:
            return read_own(self.files.database, self.files.root).decode().strip()
        except OSError as error:
            raise DatabaseError(
                f"{self.files.database}, which names the job database, cannot be read: {error.strerror}; launch again"
            ) from error


def alive_within_s(*leases_s: float) -> float:
    """Seconds since its last heartbeat for which a worker counts as alive: twice the longest lease."""
    return 2 * max(leases_s, default=LEASE_S)


def leave_if_untrusted(study: str, *folders: str) -> None:
    """Called by an sbatch script before anything is unpickled: exit with `ProbeExit.UNTRUSTED` and one line if another
    account can write the study folder, or one of its `folders` or a pickle in them."""
    try:
        require_own(Path(study), Path(study))
        for folder in map(Path, folders):
            for path in (folder, *folder.glob("*.pkl")):
                require_own(path, Path(study))
    except FileNotFoundError:
        return  # a pickle is being renamed; other checks find a missing folder
    except UntrustedFile as error:
        print(f"kt-study: {error}", flush=True)
        raise SystemExit(int(ProbeExit.UNTRUSTED)) from None


def last_stop(files: LaunchFiles) -> str:
    """The token of the study's last `kt-study stop`; empty if there was none, or the file cannot be read."""
    try:
        return files.stop.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def time_left_s(ends_at: float, margin_s: float) -> float | None:
    """Seconds until `ends_at` (since 1970, by this machine's clock; 0 for none), less a margin; None without an end."""
    return ends_at - time.time() - margin_s if ends_at else None
