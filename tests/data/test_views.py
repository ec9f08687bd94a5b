"""Views: statistically torchvision's, and a pure function of (seed, view, sample)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop

from worker.data.views import ViewRecipe, boxes, coloured, colours, epoch_order, flips, small_exp

AUGMENTS = ("none", "flip", "crop_flip", "authors")
sides = st.integers(1, 700)


def _boxes(recipe: ViewRecipe, view: int, n: int, height: int, width: int) -> np.ndarray:
    return boxes(recipe, view, np.arange(n), np.full(n, height), np.full(n, width))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (32, 32), (80, 600)])
def test_random_crops_are_torchvisions(height: int, width: int) -> None:
    n = 4000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    ours = _boxes(ViewRecipe(augment="crop_flip", seed=5), 0, n, height, width)
    measures = {
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
    }
    for name, measure in measures.items():
        p = ks_2samp(measure(theirs), measure(ours)).pvalue
        assert p > 1e-3, f"{name}: Kolmogorov-Smirnov p = {p:.2g}"


@given(st.sampled_from(AUGMENTS), st.lists(st.tuples(sides, sides), min_size=1, max_size=20), st.integers(0, 9))
def test_boxes_lie_inside_the_image(augment: str, sizes: list[tuple[int, int]], seed: int) -> None:
    height, width = np.array(sizes).T
    box = boxes(ViewRecipe(augment=augment, seed=seed), 3, np.arange(len(sizes)), height, width)  # type: ignore[arg-type]
    assert (box[:, :2] >= 0).all()
    assert (box[:, 2:] > 0).all()
    assert (box[:, 0] + box[:, 2] <= height).all()
    assert (box[:, 1] + box[:, 3] <= width).all()


@given(st.integers(0, 2**63 - 1), st.integers(0, 50), st.permutations(range(40)), st.integers(1, 39))
def test_a_sample_does_not_care_about_its_batch(seed: int, view: int, order: list[int], cut: int) -> None:
    recipe = ViewRecipe(augment="authors", seed=seed)
    crops = ViewRecipe(augment="crop_flip", seed=seed)
    size = 20 + np.arange(40)
    chosen = np.array(order)
    whole = boxes(crops, view, np.arange(40), size, 2 * size), flips(recipe, view, np.arange(40))
    colour = colours(recipe, view, np.arange(40))
    for part in (chosen[:cut], chosen[cut:]):
        assert np.array_equal(boxes(crops, view, part, size[part], 2 * size[part]), whole[0][part])
        assert np.array_equal(flips(recipe, view, part), whole[1][part])
        mine = colours(recipe, view, part)
        for name in ("jitter", "brightness", "contrast", "saturation", "hue", "grey"):
            assert np.array_equal(getattr(mine, name), getattr(colour, name)[part])


def test_views_seeds_and_streams_differ() -> None:
    n = 500
    first = _boxes(ViewRecipe(seed=0), 0, n, 300, 300)
    for other in (_boxes(ViewRecipe(seed=0), 1, n, 300, 300), _boxes(ViewRecipe(seed=1), 0, n, 300, 300)):
        assert (first == other).all(axis=1).mean() < 0.01
        assert abs(np.corrcoef(first[:, 0], other[:, 0])[0, 1]) < 4 / math.sqrt(n)
    flipped = flips(ViewRecipe(), 0, np.arange(n))
    assert abs(np.corrcoef(first[:, 0], flipped)[0, 1]) < 4 / math.sqrt(n)


def test_flips_and_colours_have_their_probabilities() -> None:
    n = 20_000
    recipe = ViewRecipe(augment="authors", seed=2)
    colour = colours(recipe, 0, np.arange(n))
    assert colour is not None
    for drawn, p in ((flips(recipe, 0, np.arange(n)), 0.5), (colour.jitter, 0.8), (colour.grey, 0.2)):
        assert chisquare([drawn.sum(), n - drawn.sum()], [n * p, n * (1 - p)]).pvalue > 1e-3
    for name in ("brightness", "contrast", "saturation"):
        assert kstest(getattr(colour, name) / 65536, "uniform", (0.2, 1.6)).pvalue > 1e-3
    angle = np.arccos(np.clip((np.trace(colour.hue, axis1=1, axis2=2) / 65536 - 1) / 2, -1, 1))
    assert kstest(angle / (2 * np.pi), "uniform", (0, 0.2)).pvalue > 1e-3


def test_none_neither_crops_at_random_nor_flips() -> None:
    recipe = ViewRecipe(augment="none", crop_pct=0.875)
    assert not flips(recipe, 0, np.arange(100)).any()
    assert _boxes(recipe, 0, 2, 300, 400).tolist() == [[19, 69, 262, 262]] * 2
    assert colours(recipe, 0, np.arange(3)) is None
    assert colours(ViewRecipe(augment="crop_flip"), 0, np.arange(3)) is None


def test_small_exp_is_exp() -> None:
    y = np.linspace(-0.2877, 0.2877, 10_001)
    assert np.abs(small_exp(y) / np.array([math.exp(v) for v in y]) - 1).max() < 4e-16


def test_colours_follow_their_definition_in_floats() -> None:
    """Against the steps in float64: brightness, contrast about the mean grey, saturation, hue, greyscale."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 9, 3)).astype(np.uint8)
    colour = colours(ViewRecipe(augment="authors", seed=7), 1, np.arange(60))
    assert colour is not None
    luma = np.array([0.299, 0.587, 0.114])
    for i in range(60):
        expected = pixels.astype(float)
        if colour.jitter[i]:
            step = np.clip(expected * colour.brightness[i] / 65536, 0, 255).round()
            mean, c, s = (step @ luma).mean(), colour.contrast[i] / 65536, colour.saturation[i] / 65536
            step = np.clip(c * step + (1 - c) * mean, 0, 255).round()
            step = np.clip(s * step + (1 - s) * (step @ luma)[..., None], 0, 255).round()
            turn = colour.hue[i] / 65536
            assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-4), "a rotation"
            assert np.allclose(turn @ np.ones(3), 1, atol=1e-4), "about the grey axis"
            expected = np.clip(step @ turn.T, 0, 255)
        if colour.grey[i]:
            expected = np.repeat((expected @ luma)[..., None], 3, axis=2)
        assert np.abs(coloured(pixels, colour, i) - expected).max() < 4


def test_epoch_orders_are_permutations_that_differ() -> None:
    orders = [epoch_order(seed, epoch, 1000) for seed in range(3) for epoch in range(3)]
    assert all(np.array_equal(np.sort(order), np.arange(1000)) for order in orders)
    assert len({tuple(order) for order in orders}) == 9
    assert np.array_equal(epoch_order(1, 2, 1000), epoch_order(1, 2, 1000))
    places = np.array([np.argsort(epoch_order(0, epoch, 50))[7] for epoch in range(3000)])
    assert chisquare(np.bincount(places, minlength=50)).pvalue > 1e-3
