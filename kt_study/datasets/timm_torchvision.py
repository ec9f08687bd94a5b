"""Source `torch/`: torchvision's data sets that fit into memory: cifar10, cifar100, mnist, kmnist, fashion_mnist, qmnist.

Nothing is downloaded: `path` has torchvision's own layout. Samples are named by their position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from kt_study.datasets.kind import ArrayImages, Listing
from kt_study.datasets.timm_sources import SplitFound, SplitPlace
from kt_study.errors import DataError


def scan_split(place: SplitPlace, *, labelled: bool) -> SplitFound:
    """Every sample in torchvision's order. Raises DataError."""
    import numpy as np

    dataset = _open(place)
    pixels, targets = np.ascontiguousarray(dataset.data), np.asarray(dataset.targets)
    labels = targets if targets.ndim == 1 else targets[:, 0]  # qmnist has its class in the first of eight columns
    listing = Listing(
        names=[f"{i:06d}" for i in range(len(pixels))],
        labels=labels.astype(np.int32) if labelled else None,
        sizes=np.full(len(pixels), -1, np.int64),
    )
    content = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
    return SplitFound(listing=listing, class_names=list(getattr(dataset, "classes", ())), content=content)


def split_images(place: SplitPlace, names: Sequence[str]) -> ArrayImages:
    """The named images, held in memory. Raises DataError."""
    import numpy as np

    return ArrayImages(pixels=np.asarray(_open(place).data)[np.array([int(name) for name in names])])


def _open(place: SplitPlace) -> Any:
    from timm.data.dataset_factory import create_dataset

    try:
        dataset = create_dataset(place.source, root=place.root, split=place.split, download=False, **place.arguments)
    except Exception as error:  # torchvision raises many kinds, timm asserts
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{place}: cannot be opened ({reason}); lay its files into [dataset] path") from error
    if not hasattr(dataset, "data"):
        raise DataError(f'{place}: its images are files; read them with kind = "imagefolder"')
    return dataset
