"""Classes by name: folder names, digits, or words of ImageNet's synsets."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from kt_study.errors import UsageError
from kt_study.nearest import nearest
from orchestrator.results.recommend.record import RequestedClass

_SYNSET = re.compile(r"^n\d{8}$")

MOST_LISTED = 20
"""An error lists all classes up to this number; of more, only the nearest."""


def find_classes(requested: str, names: Mapping[int, str], sizes: Mapping[int, int]) -> list[RequestedClass]:
    """The classes of a list such as `golden_retriever,tabby`, each once, in that order.

    A class has its own name and, if that is a synset of ImageNet, its words. Case, blanks, hyphens and leading numbers
    (`001.ak47`) are ignored unless two classes differ only in them.

    Args:
        requested: names, joined by commas.
        names: of the data set's classes, by index.
        sizes: validation samples, by index; may be empty.

    Raises:
        UsageError: a name of no class or of more than one.
    """
    words = synset_words(names.values())
    exact = {name: {index} for index, name in names.items()}
    loose: dict[str, set[int]] = {}
    for index, name in names.items():
        for alias in (name, *words.get(name, ())):
            loose.setdefault(_plain(alias), set()).add(index)
    found: dict[int, RequestedClass] = {}
    for name in filter(None, (part.strip() for part in requested.split(","))):
        index = _only(name, exact.get(name) or loose.get(_plain(name), set()), names, [*exact, *loose])
        found.setdefault(index, RequestedClass(name=name, index=index, n=sizes.get(index)))
    if not found:
        raise UsageError(f"--classes {requested!r} names no class; give names joined by commas")
    return list(found.values())


def synset_words(names: Iterable[str]) -> dict[str, list[str]]:
    """The words of each name that is a WordNet id, from timm's table; timm is located, not imported."""
    synsets = {name for name in names if _SYNSET.match(name)}
    spec = importlib.util.find_spec("timm") if synsets else None
    if spec is None or not spec.submodule_search_locations:
        return {}
    table = Path(spec.submodule_search_locations[0]) / "data" / "_info" / "imagenet_synset_to_lemma.txt"
    rows = (line.split("\t", 1) for line in table.read_text(encoding="utf-8").splitlines())
    return {synset: [word.strip() for word in listed.split(",")] for synset, listed in rows if synset in synsets}


def _only(name: str, indices: set[int], names: Mapping[int, str], known: Iterable[str]) -> int:
    """The one index. Raises UsageError if there are none or several."""
    if not indices:
        hint = nearest(name, known) or (f"; they are {', '.join(names.values())}" if len(names) <= MOST_LISTED else "")
        raise UsageError(f"--classes: no class {name!r} among {len(names)}{hint}")
    if len(indices) > 1:
        which = " or ".join(names[index] for index in sorted(indices))
        raise UsageError(f"--classes: {name!r} is ambiguous: {which}; give one of these names")
    return min(indices)


def _plain(name: str) -> str:
    """`Golden retriever` as `golden_retriever`, `001.ak47` as `ak47`."""
    return re.sub(r"[\s_-]+", "_", re.sub(r"^\d+\.", "", name)).casefold()
