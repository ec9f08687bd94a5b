"""Models that need no training before a study, as tables of a study file."""

from __future__ import annotations

_MIXER = """
[[model]]
name = "{name}"
factory = "{factory}"
arguments = {{ num_classes = 10, {arguments}embed_dim = {width}, num_blocks = {blocks}, img_size = 32, patch_size = 8 }}
input_size = [1, 32, 32]
mean = [0.5]
std = [0.5]
family = "mlp"
random_weights = true
"""


def untrained_mixer(
    name: str, *, width: int, blocks: int, factory: str = "worker.zoo:mixer", **arguments: float
) -> str:
    """A mixer for the digits with random weights; `arguments` are those that another factory takes besides."""
    more = "".join(f"{argument} = {value}, " for argument, value in arguments.items())
    return _MIXER.format(name=name, factory=factory, arguments=more, width=width, blocks=blocks)
