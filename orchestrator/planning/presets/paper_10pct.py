"""Sections 5.1 and A: 20 students x 20 teachers on 10 % of ImageNet."""

from __future__ import annotations

from orchestrator.planning.presets.paper import IMAGENET_SUBSET, PAPER, arms_of, cross, names_of
from orchestrator.planning.presets.record import Preset, TransferPair


def pairs() -> tuple[TransferPair, ...]:
    """The 400 pairs of Table 5 without ResMLP-36 with itself."""
    return cross(names_of(5, "student"), names_of(5, "teacher"))


def build() -> Preset:
    """399 pairs for each of the five objectives of Figure 4 and Section 5.1."""
    objectives = ("kl", "xe_kl", "xe_kl_mcl", "kl_dp", "kl_dp_unsupervised")
    return Preset(
        name="paper-10pct",
        title="20 students x 20 teachers, 10 % of ImageNet",
        source=f"{PAPER}, Sections 5.1 and A, Table 5",
        arms=arms_of(objectives, pairs(), IMAGENET_SUBSET),
        datasets=(IMAGENET_SUBSET,),
        notes=(
            "Table 5 lists ResMLP-36 as a student and as a teacher. This pair is left out: 399 of 400 pairs remain.",
            "paper-contrastive has the two contrastive objectives, over the same pairs.",
        ),
    )
