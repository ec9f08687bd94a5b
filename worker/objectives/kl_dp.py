"""kl_dp: L = T^2 KL(softmax(z_m / T) || softmax(z_s / T)) with z_m = z_t where p_t[y] > p_st[y], strictly, else z_st.

z_st: logits of the frozen student, float [b, c]; p[y]: probability of the label at T = 1; L in nats, mean over the
batch. The paper's Section 4.4, Eq. 5 (arXiv 2310.17653). With parallel teachers the source is the argmax of p[y] over
[frozen student, t_1 .. t_K], the student first on ties (Sec. 5.2).
"""

from __future__ import annotations

from worker.objectives.kl import KL


class DataPartitionedKL(KL):
    """KL with supervised data partitioning. The partition is `label` of `worker.objectives.partition`."""
