"""kl_dp_oracle: `kl_dp` with the teacher where it alone is right: what could a perfect choice of samples give? A control."""

from __future__ import annotations

from worker.objectives.kl import KL


class OraclePartitionedKL(KL):
    """KL with the partition `positive_flips` of `worker.objectives.partition`, which reads the labels."""
