"""Classes by name: folder names, digits, or the words for ImageNet's synsets."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kt_study.errors import UsageError
from kt_study.nearest import nearest
from orchestrator.results.recommend.record import AskedClass

_SYNSET = re.compile(r"^n\d{8}$")

FEW = 20
"""So many classes are listed in an error; of more only the nearest is named."""


def find_classes(
    asked: str, names: Mapping[int, str], sizes: Mapping[int, int], words: Mapping[str, Sequence[str]] | None = None
) -> list[AskedClass]:
    """The classes of a list such as `golden_retriever,tabby`, each once, in that order.

    A class goes by its own name or by one of its words; case, blanks, hyphens and leading numbers (`001.ak47`) do not
    count unless two classes differ by them only.

    Args:
        asked: names, joined by commas.
        names: of the data set's classes, by index.
        sizes: validation samples, by index; may be empty.
        words: further names of a class; those of ImageNet's synsets when None.

    Raises:
        UsageError: a name that no class or more than one has.
    """
    words = synset_words(names.values()) if words is None else words
    exact = {name: {index} for index, name in names.items()}
    loose: dict[str, set[int]] = {}
    for index, name in names.items():
        for alias in (name, *words.get(name, ())):
            loose.setdefault(_plain(alias), set()).add(index)
    found: dict[int, AskedClass] = {}
    for one in filter(None, (part.strip() for part in asked.split(","))):
        index = _only(one, exact.get(one) or loose.get(_plain(one), set()), names, [*exact, *loose])
        found.setdefault(index, AskedClass(name=one, index=index, n=sizes.get(index)))
    if not found:
        raise UsageError(f"--classes {asked!r} names no class; give names joined by commas")
    return list(found.values())


def synset_words(names: Iterable[str]) -> dict[str, list[str]]:
    """The words for those of the names that are WordNet ids, as in timm; timm is located, not imported."""
    synsets = {name for name in names if _SYNSET.match(name)}
    spec = importlib.util.find_spec("timm") if synsets else None
    if spec is None or not spec.submodule_search_locations:
        return {}
    table = Path(spec.submodule_search_locations[0]) / "data" / "_info" / "imagenet_synset_to_lemma.txt"
    rows = (line.split("\t", 1) for line in table.read_text(encoding="utf-8").splitlines())
    return {synset: [word.strip() for word in said.split(",")] for synset, said in rows if synset in synsets}


def _only(asked: str, indices: set[int], names: Mapping[int, str], known: Iterable[str]) -> int:
    if not indices:
        hint = nearest(asked, known) or (f"; they are {', '.join(names.values())}" if len(names) <= FEW else "")
        raise UsageError(f"--classes: no class {asked!r} among {len(names)}{hint}")
    if len(indices) > 1:
        which = " or ".join(names[index] for index in sorted(indices))
        raise UsageError(f"--classes: {asked!r} is {which}; say which")
    return min(indices)


def _plain(name: str) -> str:
    """`Golden retriever` as `golden_retriever`, `001.ak47` as `ak47`."""
    return re.sub(r"[\s_-]+", "_", re.sub(r"^\d+\.", "", name)).casefold()
