"""Stratified subsets drawn by hashing, independent of the file system's order of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kt_study.datasets.kind import Listing
from kt_study.hashing import hash64

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def subset_of(listing: Listing, *, seed: int, fraction: float, per_class: int) -> Listing:
    """A stratified part of a listing, in the listing's own order.

    Args:
        listing: a labelled split; an unlabelled one counts as one class.
        seed: other seeds draw other samples.
        fraction: share of each class, in (0, 1]; at least one sample a class.
        per_class: samples of each class, or all of a class that has fewer; 0 to go by `fraction`.
    """
    if per_class == 0 and fraction == 1.0:
        return listing

    def count(size: int) -> int:
        return min(per_class, size) if per_class else max(1, round(fraction * size))

    return listing.take(_first_by_hash(listing, f"subset {seed}", count))


def split_by_hash(listing: Listing, shares: dict[str, float], word: str) -> dict[str, Listing]:
    """Cut a listing into named parts, class by class. The last part takes what the others leave.

    `word` names the draw: the same word gives the same parts wherever and whenever.
    """
    import numpy as np

    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in shares}
    for members in _hashed_classes(listing, word):
        cuts = np.rint(np.cumsum(list(shares.values()))[:-1] * len(members)).astype(int)
        for name, part in zip(shares, np.split(members, cuts), strict=True):
            parts[name].append(part)
    return {name: listing.take(np.sort(np.concatenate(chosen))) for name, chosen in parts.items()}


def _first_by_hash(listing: Listing, word: str, count: Callable[[int], int]) -> NDArray[np.int64]:
    import numpy as np

    return np.sort(np.concatenate([members[: count(len(members))] for members in _hashed_classes(listing, word)]))


def _hashed_classes(listing: Listing, word: str) -> Iterator[NDArray[np.int64]]:
    """Positions of each class in the order of the hash of (word, name); names break ties."""
    import numpy as np

    hashes = np.array([hash64(word, name) for name in listing.names], dtype=np.uint64)
    labels = np.zeros(len(hashes), np.int32) if listing.labels is None else listing.labels
    order = np.lexsort((np.array(listing.names), hashes, labels))
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    yield from np.split(order, starts)
