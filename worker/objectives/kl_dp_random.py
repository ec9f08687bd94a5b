"""kl_dp_random: `kl_dp` with the teacher on as many samples, drawn at random: what is due to the choice of samples? A control."""

from __future__ import annotations

from worker.objectives.kl import KL


class RandomlyPartitionedKL(KL):
    """KL with a random partition, `random` of `worker.objectives.partition`."""
