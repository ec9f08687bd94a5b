"""Section 5.1, Tables 1, 3, 6, 7 and 8: 8 students x 4 teachers on the whole of ImageNet."""

from __future__ import annotations

from orchestrator.planning.presets.paper import IMAGENET, PAPER, arms_of, cross, names_of
from orchestrator.planning.presets.record import Preset


def build() -> Preset:
    """32 pairs for KL, KL+DP and unsupervised KL+DP, the objectives of Table 7."""
    pairs = cross(names_of(6, "student"), names_of(6, "teacher"))
    return Preset(
        name="paper-full",
        title="8 students x 4 teachers, all of ImageNet",
        source=f"{PAPER}, Tables 1, 3, 6, 7 and 8",
        arms=arms_of(("kl", "kl_dp", "kl_dp_unsupervised"), pairs, IMAGENET),
        datasets=(IMAGENET,),
    )
