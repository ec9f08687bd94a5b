"""Detects losses and gradients that are not finite, on the device, without a synchronisation in the loop.

From the first such step on, the fused kernel skips every optimiser step. So the weights remain those of the last finite loss,
however late the host checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = -1

SCALE_START = 2.0**16
SCALE_GROWTH_EVERY = 2000
"""Of the loss scale for fp16: torch.amp.GradScaler's defaults. It doubles after this many finite steps, else halves."""


class Guard:
    """Detects divergence; also the loss scale of fp16 and gradient clipping, which use the same gradient norm.

    Args:
        device: of the loss.
        scaled: whether gradients are scaled against underflow (fp16). An overflow then halves the scale and skips the
            step, which is no divergence until the scale is down to one.
        clip: largest gradient norm, 0 for none.
    """

    def __init__(self, device: torch.device, *, scaled: bool = False, clip: float = 0.0) -> None:
        self.scaled = scaled
        self.clip = clip
        self._state = {
            "first_bad": torch.full((), NEVER, dtype=torch.int64, device=device),
            "scale": torch.full((), SCALE_START if scaled else 1.0, device=device),
            "finite_steps": torch.zeros((), dtype=torch.int64, device=device),
            "loss_sum": torch.zeros((), dtype=torch.float64, device=device),
            "loss_count": torch.zeros((), dtype=torch.int64, device=device),
        }

    @property
    def scale(self) -> Tensor:
        """Factor of the loss before the backward pass, 0-d float."""
        return self._state["scale"]

    @property
    def alive(self) -> Tensor:
        """1 while every loss was finite, else 0; 0-d float."""
        return (self._state["first_bad"] == NEVER).float()

    @torch.no_grad()
    def watch(self, optimizer: torch.optim.Optimizer, loss: Tensor, gradients: list[Tensor], step: int) -> None:
        """Check a step's loss (0-d, unscaled) and gradients, and set whether the optimiser skips it."""
        state = self._state
        norm = torch.nn.utils.get_total_norm(gradients) / state["scale"]
        overflow = ~torch.isfinite(norm)
        bad = ~torch.isfinite(loss) | (overflow & (state["scale"] <= 1.0))
        state["first_bad"].copy_(torch.where((state["first_bad"] == NEVER) & bad, step, state["first_bad"]))
        alive = state["first_bad"] == NEVER
        state["loss_sum"].add_(torch.where(alive, loss.double(), 0.0))
        state["loss_count"].add_(alive.long())
        # The two attributes by which torch.amp.GradScaler controls the fused optimisers.
        optimizer.found_inf = (~alive | overflow).float()  # type: ignore[attr-defined]
        optimizer.grad_scale = self._divisor(norm)  # type: ignore[attr-defined]
        if self.scaled:
            self._adapt(overflow)

    def bad_step(self) -> int:
        """The first step whose loss was not finite, or NEVER. Waits for the device."""
        return int(self._state["first_bad"].item())

    def mean_loss(self) -> float | None:
        """Mean of the finite losses since the last call, None without any. Waits for the device."""
        count, total = self._state["loss_count"].item(), self._state["loss_sum"].item()
        self._state["loss_sum"].zero_()
        self._state["loss_count"].zero_()
        return total / count if count else None

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore from a checkpoint."""
        for name, tensor in self._state.items():
            tensor.copy_(state[name])

    def _divisor(self, norm: Tensor) -> Tensor | None:
        if not self.scaled and not self.clip:
            return None
        if not self.clip:
            return self.scale.clone()
        return self.scale * torch.clamp(norm / self.clip, min=1.0)

    def _adapt(self, overflow: Tensor) -> None:
        finite = torch.where(overflow, 0, self._state["finite_steps"] + 1)
        grow = finite >= SCALE_GROWTH_EVERY
        factor = torch.where(overflow, 0.5, torch.where(grow, 2.0, 1.0))
        self._state["scale"].mul_(factor).clamp_(min=1.0)
        self._state["finite_steps"].copy_(torch.where(grow, 0, finite))
