"""Digests and counter-based random numbers: the same on every platform, with no generator state.

`digest` names a specification (the identity of a job or of a file of logits). `hash64` and `uniform` turn a counter into a
number, so item k of a stream is available without drawing items 0..k-1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces, no NaN. Raises ValueError or TypeError for others."""
    return _CANONICAL.encode(value)


def digest(value: Any) -> str:
    """blake2b-128 of the canonical JSON of `value`, 32 hex digits."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=16).hexdigest()


def job_digest(kind: str, spec: Mapping[str, Any]) -> str:
    """The digest that makes a job unique: its kind and its specification.

    `settings.keep` does not count: whether a student's file is kept afterwards does not make another transfer of it.
    """
    return digest({"kind": kind, "spec": _without_keep(spec)})


def _without_keep(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    if "keep" not in spec.get("settings", ()):
        return spec
    settings = {name: value for name, value in spec["settings"].items() if name != "keep"}
    others = {name: value for name, value in spec.items() if name != "settings"}
    return {**others, "settings": settings} if settings else others


def hash64(*parts: str | int) -> int:
    """blake2b-64 of the parts, an unsigned 64-bit integer. `hash64("a", 1)` differs from `hash64("a1")`."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    encoded = text.encode("utf-8", "surrogateescape")  # of a file name that is not UTF-8, its bytes
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def hash64_array(key: int, counters: NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """splitmix64 of `key` and each counter (Steele, Lea and Flood 2014).

    Args:
        key: any integer; taken modulo 2**64. Use `hash64(...)` to make one from text.
        counters: integers of any shape.

    Returns:
        uint64 of the same shape.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        z = np.uint64(key & 0xFFFFFFFFFFFFFFFF) + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def uniform_array(key: int, counters: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Uniform float64 in [0, 1), 53 bits, one for each counter; same shape as `counters`."""
    import numpy as np

    return np.asarray((hash64_array(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53)
