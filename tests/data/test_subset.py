"""Stratified subsets by hashing."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kt_study.datasets.kind import Listing
from kt_study.datasets.subset import split_by_hash, subset_of


def _listing(counts: list[int]) -> Listing:
    names = [f"{label}/{i}" for label, count in enumerate(counts) for i in range(count)]
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return Listing(names=names, labels=labels, sizes=np.full(len(names), 5, np.int64))


counts = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(counts, st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_each_class_keeps_its_share(sizes: list[int], fraction: float, seed: int) -> None:
    part = subset_of(_listing(sizes), seed=seed, fraction=fraction, per_class=0)
    kept = np.bincount(part.labels, minlength=len(sizes))
    assert kept.tolist() == [max(1, round(fraction * size)) for size in sizes]
    assert all(name.startswith(f"{label}/") for name, label in zip(part.names, part.labels, strict=True))


@given(counts, st.integers(1, 50), st.integers(0, 2**32))
def test_the_order_of_listing_does_not_matter(sizes: list[int], per_class: int, seed: int) -> None:
    listing = _listing(sizes)
    order = np.arange(len(listing.names))
    np.random.default_rng(len(sizes)).shuffle(order)
    one = subset_of(listing, seed=seed, fraction=1.0, per_class=per_class)
    other = subset_of(listing.take(order), seed=seed, fraction=1.0, per_class=per_class)
    assert sorted(one.names) == sorted(other.names)
    assert np.bincount(one.labels).tolist() == [min(per_class, size) for size in sizes]


def test_seeds_draw_differently_and_a_seed_always_the_same() -> None:
    listing = _listing([100, 100])
    draws = {tuple(subset_of(listing, seed=seed, fraction=0.1, per_class=0).names) for seed in range(20)}
    assert len(draws) == 20

    def rank(name: str) -> int:
        text = f"str:subset 0\x1fstr:{name}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    expected = [name for label in "01" for name in sorted((f"{label}/{i}" for i in range(100)), key=rank)[:3]]
    assert sorted(subset_of(listing, seed=0, fraction=0.03, per_class=0).names) == sorted(expected)


def test_every_sample_is_as_likely() -> None:
    listing = _listing([10])
    drawn = [subset_of(listing, seed=seed, fraction=0.3, per_class=0).names for seed in range(2000)]
    share = np.array([sum(name in names for names in drawn) for name in listing.names]) / 2000
    assert np.abs(share - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / 2000)


@given(counts)
def test_parts_are_disjoint_and_complete(sizes: list[int]) -> None:
    listing = _listing(sizes)
    parts = split_by_hash(listing, {"a": 0.3, "b": 0.28, "c": 0.42}, "word")
    together = [name for part in parts.values() for name in part.names]
    assert sorted(together) == sorted(listing.names)
    for label, size in enumerate(sizes):
        assert abs(np.sum(parts["a"].labels == label) - 0.3 * size) <= 0.5 + 1e-9
