"""Steps of every loader for a batch: type conversion, normalisation, transfer to the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images float32 [b, 3, h, w] and sample positions int64 [b], both on the device."""


class Normaliser:
    """Bytes to what the model expects, by the operations of torchvision's ToTensor and Normalize in their order."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self._mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, -1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [b, 3, h, w] -> float32 [b, 3, h, w]."""
        return images.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)


def ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy each batch to a GPU while the one before it is worked on; on the CPU, the batches as they are.

    A batch is asked for only when the one before it has left the host: its buffer may be the same.
    """
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: tuple[torch.Tensor, ...] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            coming = tuple(part.to(device, non_blocking=True) for part in batch)
            copied = side.record_event()
        if waiting is not None:
            yield waiting[0], waiting[1]
        torch.cuda.current_stream(device).wait_stream(side)
        for part in coming:
            part.record_stream(torch.cuda.current_stream(device))
        waiting = coming
        copied.synchronize()
    if waiting is not None:
        yield waiting[0], waiting[1]
