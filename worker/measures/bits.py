"""The samples that each model classifies correctly, as bits in the order of the classes.

Samples are sorted by class and every class starts a new 64-bit word, so a class's flips are the set bits of its
words: popcount(teacher & ~student). A class of ImageNet's validation set, 50 images, is one word.
"""

from __future__ import annotations

from concurrent.futures import Executor

import msgspec
import numpy as np
import numpy.typing as npt

from worker.measures.arrays import Counts, Ints

Words = npt.NDArray[np.uint64]
_WORD = 64


class Correctness(msgspec.Struct, frozen=True, kw_only=True):
    """Correctness of M models on n samples.

    `words` is uint64[M, W]; `starts` int64[classes + 1] is where each class with samples begins in a row of it;
    `class_sizes` int64[classes] are those classes' samples. Bits past a class's samples are 0 for every model.
    """

    n: int
    n_classes: int  # those without samples included
    words: Words
    starts: Counts
    class_sizes: Counts
    classes: Counts  # int64[classes], the classes that have samples

    def right_by_class(self) -> Counts:
        """int64[M, classes]: samples of each class that each model gets right."""
        bits = np.bitwise_count(self.words)
        right: Counts = np.add.reduceat(bits, self.starts[:-1], axis=1, dtype=np.int64)
        return right


def pack_correctness(labels: Ints, predictions: Ints, n_classes: int, pool: Executor) -> Correctness:
    """Pack where predictions, int[M, n], equal labels, int[n]."""
    sizes = np.bincount(labels, minlength=n_classes)
    classes = np.flatnonzero(sizes)
    starts = np.concatenate(([0], np.cumsum(-(-sizes[classes] // _WORD))))
    words = np.zeros((len(predictions), starts[-1]), dtype=np.uint64)
    order = np.argsort(labels, kind="stable")
    first_sample = np.cumsum(sizes[classes]) - sizes[classes]  # of each class, in this order
    slots = np.arange(labels.size) + np.repeat(starts[:-1] * _WORD - first_sample, sizes[classes])
    in_order = np.array_equal(order, np.arange(labels.size))

    def pack(model: int) -> None:
        right = predictions[model] == labels
        bits = np.zeros(words.shape[1] * _WORD, dtype=np.bool_)
        bits[slots] = right if in_order else right[order]
        words[model] = np.packbits(bits, bitorder="little").view(np.uint64)

    for _ in pool.map(pack, range(len(predictions))):
        pass
    return Correctness(
        n=labels.size, n_classes=n_classes, words=words, starts=starts, class_sizes=sizes[classes], classes=classes
    )
