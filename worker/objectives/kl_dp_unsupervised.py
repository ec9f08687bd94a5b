"""kl_dp_unsupervised: kl_dp without labels: the teacher's logits where max p_t > max p_st, strictly, else the frozen
student's.

L = T^2 KL(softmax(z_m / T) || softmax(z_s / T)) in nats, mean over the batch; z [b, c]. The paper's Section 4.4,
Table 3.
"""

from __future__ import annotations

from worker.objectives.kl import KL


class UnsupervisedDataPartitionedKL(KL):
    """KL with unsupervised data partitioning. The partition is `max` of `worker.objectives.partition`."""
