"""self_distillation: L = T^2 KL(softmax(z_st / T) || softmax(z_s / T)): the frozen student teaches itself; a baseline.

z_st, z_s: float [b, c] logits of the student before the transfer and now; L in nats, mean over the batch. The strategy
`self-dist` of main_distillation.py in ExplainableML/FantasticGains.
"""

from __future__ import annotations

from worker.objectives.kl import KL


class SelfDistillation(KL):
    """KL to the frozen student. The partition is `frozen` of `worker.objectives.partition`."""
