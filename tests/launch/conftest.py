"""What a launch knows and decides, without a cluster."""

from __future__ import annotations

from tests.launch.pilots import fake_queue, pilots, slurm, store

__all__ = ["fake_queue", "pilots", "slurm", "store"]
