"""The contrastive objectives of the appendix, over the pairs of paper-10pct."""

from __future__ import annotations

from orchestrator.planning.presets import paper_10pct
from orchestrator.planning.presets.paper import IMAGENET_SUBSET, PAPER, arms_of
from orchestrator.planning.presets.record import Preset


def build() -> Preset:
    """399 pairs for CD and for CRD."""
    return Preset(
        name="paper-contrastive",
        title="contrastive distillation (CD, CRD), 10 % of ImageNet",
        source=f"{PAPER}, appendix; per-student results in students_20x7.csv",
        arms=arms_of(("cd", "crd"), paper_10pct.pairs(), IMAGENET_SUBSET),
        datasets=(IMAGENET_SUBSET,),
        notes=(
            "For a comparison with XE-KL and KL+DP, also plan paper-10pct: both share models, logits and pairs.",
            "The learning rate is that of the other objectives, 1e-4; the released configuration has no other.",
        ),
    )
