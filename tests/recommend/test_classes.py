"""Classes by the names that people use."""

from __future__ import annotations

import pytest

from kt_study.datasets.imagenet import imagenet_synsets
from kt_study.errors import UsageError
from orchestrator.results.recommend.classes import find_classes

IMAGENET = dict(enumerate(imagenet_synsets()))
FRUIT = {0: "apple", 1: "Granny Smith", 2: "003.ak47", 3: "red-pear"}


def indices(requested: str, names: dict[int, str]) -> list[int]:
    return [one.index for one in find_classes(requested, names, {})]


@pytest.mark.parametrize(
    ("requested", "index"),
    [("golden_retriever", 207), ("Golden Retriever", 207), ("n02099601", 207), ("golden-retriever", 207), ("tench", 0)],
)
def test_words_for_synsets(requested: str, index: int) -> None:
    """ImageNet's class 207 is its golden retriever and class 0 its tench, whoever numbers them."""
    assert indices(requested, IMAGENET) == [index]


def test_digits_and_folder_names() -> None:
    assert indices("3,0", {i: str(i) for i in range(10)}) == [3, 0]
    assert indices("granny_smith, ak47,red pear,apple", FRUIT) == [1, 2, 3, 0]


def test_a_class_counts_once_and_keeps_the_name_that_was_given() -> None:
    (one,) = find_classes("Red Pear,red-pear", FRUIT, {3: 17})
    assert (one.name, one.index, one.n) == ("Red Pear", 3, 17)


def test_a_word_of_two_classes_names_both() -> None:
    with pytest.raises(UsageError, match="'crane' is ambiguous: n02012849 or n03126707; give one of these names"):
        indices("crane", IMAGENET)
    assert indices("n02012849", IMAGENET) == [134]


def test_a_name_that_differs_by_case_only_is_taken_exactly() -> None:
    assert indices("a", {0: "A", 1: "a"}) == [1]


@pytest.mark.parametrize(
    ("requested", "names", "message"),
    [
        ("golden_retreiver", IMAGENET, "no class 'golden_retreiver' among 1000; did you mean 'golden_retriever'?"),
        ("aple", FRUIT, "did you mean 'apple'?"),
        ("zzz", FRUIT, "no class 'zzz' among 4; they are apple, Granny Smith, 003.ak47, red-pear"),
        (" , ", FRUIT, "names no class"),
    ],
)
def test_an_unknown_name_is_one_line(requested: str, names: dict[int, str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        indices(requested, names)
    assert message in str(error.value) and "\n" not in str(error.value)
