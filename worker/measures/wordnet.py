"""Class similarity from WordNet's tree of nouns, read from its own database files (Debian: wordnet-base).

The names of ImageNet's classes, such as n01440764, are byte offsets of synsets in WordNet 3.0's data.noun. The format
of the files is in WordNet's manual page wndb(5).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from worker.measures.arrays import Floats
from worker.measures.similarity_settings import SimilaritySettings, Unavailable

_HYPERNYM = ("@", "@i")  # is a kind of; is an instance of
_WORDNET_ID = re.compile(r"n\d{8}")


class Synset(msgspec.Struct, frozen=True):
    """A noun synset: its words, and the byte offsets of the synsets it is a kind or an instance of."""

    words: tuple[str, ...]
    hypernyms: tuple[int, ...]


class Nouns:
    """WordNet's nouns. Synsets are read from data.noun by their offset on demand."""

    def __init__(self, folder: Path) -> None:
        """Open the files data.noun and index.noun in `folder`. Raises Unavailable."""
        try:
            self._data = (folder / "data.noun").read_bytes()
            self._senses = _first_senses((folder / "index.noun").read_text(encoding="utf-8"))
        except OSError as error:
            raise Unavailable(f"no WordNet in {folder} ({error.strerror}); install wordnet-base") from error

    def offset(self, name: str) -> int:
        """The synset of a class: by its WordNet id, or the most frequent sense of a word. Raises Unavailable."""
        if _WORDNET_ID.fullmatch(name):
            offset = int(name[1:])
            if self._data[offset : offset + 9] != f"{offset:08d} ".encode():
                raise Unavailable(f"{name} is no synset of this WordNet; ImageNet's ids are those of WordNet 3.0")
            return offset
        word = name.strip().lower().replace(" ", "_")
        if word not in self._senses:
            raise Unavailable(f"WordNet has no noun {name!r}")
        return self._senses[word]

    def synset(self, offset: int) -> Synset:
        """The synset that starts at byte `offset` of data.noun."""
        end = self._data.index(b"\n", offset)
        fields = self._data[offset:end].decode("utf-8").split(" | ", 1)[0].split()
        n_words = int(fields[3], 16)
        words, pointers = fields[4 : 4 + 2 * n_words : 2], fields[5 + 2 * n_words :]
        hypernyms = (int(pointers[i + 1]) for i in range(0, len(pointers), 4) if pointers[i] in _HYPERNYM)
        return Synset(tuple(words), tuple(hypernyms))

    def words(self, name: str) -> str:
        """The words of a class's synset, joined by ", ". Raises Unavailable."""
        return ", ".join(self.synset(self.offset(name)).words).replace("_", " ")

    def distances_up(self, offset: int) -> Mapping[int, int]:
        """Steps from a synset to each synset above it, itself included, on the shortest path."""
        steps = {offset: 0}
        waiting = deque([offset])
        while waiting:
            current = waiting.popleft()
            for above in self.synset(current).hypernyms:
                if above not in steps:
                    steps[above] = steps[current] + 1
                    waiting.append(above)
        return steps


def path_similarity(classes: Sequence[str], settings: SimilaritySettings) -> Floats:
    """float64[C, C]: 1 / (1 + steps of the shortest path over a common hypernym), 1 for a class with itself.

    Raises:
        Unavailable: no WordNet files, a class that WordNet does not know, or classes that are numbers.
    """
    _refuse_numbers(classes)
    nouns = Nouns(Path(settings.wordnet))
    paths_up = [nouns.distances_up(nouns.offset(name)) for name in classes]
    steps = np.full((len(classes), len(classes)), np.inf)
    for below, distance in _classes_below(paths_up):
        block = np.ix_(below, below)
        steps[block] = np.minimum(steps[block], distance[:, None] + distance)
    return 1.0 / (1.0 + steps)


def _refuse_numbers(classes: Sequence[str]) -> None:
    """Raise Unavailable if every class name is a number: the meaning of numerals is not that of the classes."""
    if all(name.isdecimal() for name in classes):
        raise Unavailable("the class names are numbers, which have no meaning")


def readable_names(classes: Sequence[str], settings: SimilaritySettings) -> list[str]:
    """Class names as words: all words of its synset for a WordNet id, otherwise the name itself; no underscores.

    Joined by ", " they are the names that the paper's released code embeds (files/imagenet1000_clsidx_to_labels.txt).

    Raises:
        Unavailable: a WordNet id, and no WordNet to look it up; or classes that are numbers.
    """
    _refuse_numbers(classes)
    if not any(_WORDNET_ID.fullmatch(name) for name in classes):
        return [name.replace("_", " ") for name in classes]
    nouns = Nouns(Path(settings.wordnet))
    return [nouns.words(name) if _WORDNET_ID.fullmatch(name) else name.replace("_", " ") for name in classes]


def _classes_below(paths_up: Sequence[Mapping[int, int]]) -> Iterator[tuple[list[int], Floats]]:
    """For each synset: the classes below it, as indices, and their steps to it."""
    below: dict[int, list[int]] = {}
    for index, steps in enumerate(paths_up):
        for synset in steps:
            below.setdefault(synset, []).append(index)
    for synset, members in below.items():
        yield members, np.array([paths_up[index][synset] for index in members], dtype=np.float64)


def _first_senses(index: str) -> dict[str, int]:
    """Word -> offset of its most frequent sense, from the text of index.noun."""
    senses = {}
    for line in index.splitlines():
        if not line.startswith(" "):  # the licence at the top is indented
            fields = line.split()
            senses[fields[0]] = int(fields[6 + int(fields[3])])
    return senses
