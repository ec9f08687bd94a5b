"""What a launch hands to a pilot: a small record that names files and limits, and never a secret."""

from __future__ import annotations

import time
from pathlib import Path

from kt_study.paths import StudyPaths
from kt_study.words import Record


class PilotOptions(Record):
    """How one pilot works. Travels in submitit's pickle, so it holds no password: `database` is a URL without one."""

    root: str  # the study folder, shared by all nodes
    database: str
    study: str = ""  # work for this study only; any when empty
    device: str = "auto"  # auto | cpu | cuda
    threads: int = 0  # torch threads; 0 for the cores this process may use
    lease_s: float = 60.0
    idle_s: float = 600.0  # how long to wait for work that others must finish first
    grace_s: float = 20.0  # from the first signal to the last word to the database
    margin_s: float = 60.0  # time left to the allocation in which no job is claimed
    eval_batch_size: int = 64
    loader_workers: int = 0
    checkpoint_every_s: float = 300.0
    ends_at: float = 0.0  # end of the allocation, seconds since 1970 by this machine's clock; 0 for none
    token: str = ""  # names the launch in Slurm's job list

    @property
    def paths(self) -> StudyPaths:
        """The files of the study."""
        return StudyPaths(root=Path(self.root))

    def time_left_s(self) -> float | None:
        """Seconds until the allocation ends, less the margin; None without an end."""
        return self.ends_at - time.time() - self.margin_s if self.ends_at else None
