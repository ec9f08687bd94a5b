"""What a preset consists of, counted arm by arm."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from orchestrator.planning.presets import Arm, Preset, TransferPair


def runs_of(preset: Preset) -> list[tuple[Arm, TransferPair, dict[str, Any]]]:
    """Every transfer: its arm, its pair and its settings."""
    return [(arm, pair, point) for arm in preset.arms for pair in arm.pairs for point in arm.points()]


def pairs_per_objective(preset: Preset) -> dict[str, int]:
    """Different (data set, pair) per objective; a pair with several teachers counts as one."""
    pairs = defaultdict(set)
    for arm in preset.arms:
        pairs[arm.objective] |= {(arm.dataset, pair) for pair in arm.pairs}
    return {objective: len(found) for objective, found in pairs.items()}
