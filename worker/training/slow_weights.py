"""Slow weights that follow the fast ones: theta_slow <- tau theta_slow + (1 - tau) theta_fast (the paper's Sec. 4.3,
A.3).

The fast weights are only read. Evaluate the slow ones with `torch.func.functional_call(model, slow.state, ...)`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SlowWeights:
    """A moving average of a model's parameters and floating buffers; integer buffers are copied.

    Args:
        model: whose state is followed, from the state it has now.
        tau: weight of the old average at each update, in [0, 1).
        every: steps between updates.
        authors: as the released code, whose first update, after the first step of an epoch, starts from the fast
        weights.
    """

    def __init__(self, model: nn.Module, *, tau: float, every: int, authors: bool = False) -> None:
        self.tau = tau
        self.every = every
        self.authors = authors
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._averaged = [name for name, tensor in self.state.items() if tensor.is_floating_point()]
        self._copied = [name for name, tensor in self.state.items() if not tensor.is_floating_point()]

    def is_due(self, step: int, epoch_step: int) -> bool:
        """Whether to update after step number `step` of the run, `epoch_step` of its epoch, both from 0."""
        return epoch_step % self.every == 0 if self.authors else (step + 1) % self.every == 0

    @torch.no_grad()
    def update(self, model: nn.Module, alive: Tensor, *, first: bool = False) -> None:
        """Follow the model's current state.

        Args:
            alive: 0-d float, 1 for an update and 0 for none, so that a diverged run can stop following without a
                synchronisation.
            first: take the fast weights as they are.
        """
        fast = model.state_dict()
        slow, target = [self.state[name] for name in self._averaged], [fast[name] for name in self._averaged]
        moves = torch._foreach_sub(target, slow)
        torch._foreach_mul_(moves, alive * (1.0 if first else 1.0 - self.tau))
        torch._foreach_add_(slow, moves)
        for name in self._copied:
            self.state[name].copy_(torch.where(alive > 0, fast[name], self.state[name]))

    def overwrite(self, model: nn.Module) -> None:
        """Put the slow weights in the fast ones' place, as the released code does at every evaluation."""
        model.load_state_dict(self.state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore from a checkpoint."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])
