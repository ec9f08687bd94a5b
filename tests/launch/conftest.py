"""What a launch knows and decides, without a cluster."""

from __future__ import annotations

from tests.launch.crews import crew, fake_queue, slurm, store

__all__ = ["crew", "fake_queue", "slurm", "store"]
