"""The memory budget of a worker."""

from __future__ import annotations

import os

import torch


def within_reach(device: torch.device) -> int:
    """Bytes of a device's memory that this process holds or could have; of the CPU's, all there is.

    Several workers may share a GPU: what others hold is out of reach, what this one holds, cached or used, is not.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
