"""What a pass keeps of single samples, for measures that compare them with one another."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.backend import Tensor, of_all_replicas, rows_of, set_rows
from keras_layer_entropy.measures.measure import MOST_SAMPLES

_ROWS = 256  # that are read at a time


class KeptSamples(keras.metrics.Metric):
    """A random subset of the samples that stream past: the same rows of several tensors.

    Every sample has a priority, a hash of its number in the pass; those with the highest stay
    (bottom-k sampling). Hence nothing is drawn, and every pass over the same data in the same
    order keeps the same samples. Under a distribution strategy the samples of all replicas count.

    Args:
        widths: numbers of features of each tensor.
        most: how many samples are kept.
        seed: other hashes for another number; states that are to be merged need one each, or
            samples of different numbers.

    Attributes:
        start: the number of the first sample of a pass: not 0 where the data are a part of others,
            so that each sample has the priority that it has among all.

    Source: Cohen & Kaplan, *Summarizing data using bottom-k sketches*, PODC 2007.
    """

    def __init__(
        self,
        widths: Iterable[int],
        most: int = MOST_SAMPLES,
        seed: int = 0,
        name: str = "kept_samples",
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self.most = most
        self.seed = seed
        self.start = 0
        # Every replica holds the same, which must not be added up.
        alone = {"aggregation": "only_first_replica"}
        self._seen = self.add_variable((), "zeros", "int32", name="seen", **alone)
        # 0 marks a row that is still free; the last one takes what is not kept.
        self._priority = self.add_variable((most + 1,), "zeros", "int32", name="priority", **alone)
        self._rows = [
            self.add_variable((most + 1, width), "zeros", "float32", name=f"rows_{i}", **alone)
            for i, width in enumerate(widths)
        ]

    def update_state(self, tensors: Sequence[Tensor], counts: Tensor) -> None:
        """Adds a batch.

        Args:
            tensors: list of `[batch, ...]`, flattened to the widths.
            counts: boolean `[batch]`, which samples count.
        """
        counts = of_all_replicas(ops.cast(counts, "int32")) > 0
        tensors = [
            # There is nothing to gather of no columns, and TensorFlow crashes where it tries.
            of_all_replicas(tensor) if kept.shape[1] else ops.zeros((ops.shape(counts)[0], 0))
            for tensor, kept in zip(tensors, self._rows, strict=True)
        ]
        number = self._seen + ops.arange(ops.shape(counts)[0], dtype="int32")
        priority = ops.where(counts, _hash(number, self.seed), 0)
        self._seen.assign(self._seen + ops.shape(counts)[0])
        rows = [
            # With the number of rows, because there may be no columns.
            ops.reshape(ops.cast(tensor, "float32"), (ops.shape(tensor)[0], kept.shape[1]))
            for tensor, kept in zip(tensors, self._rows, strict=True)
        ]
        self._keep(priority, rows)

    def merge_state(self, statistics: Iterable["KeptSamples"]) -> None:
        """Joins the samples that others, with another seed each, kept."""
        for other in statistics:
            self._keep(other._priority[: other.most], [x[: other.most] for x in other._rows])
            self._seen.assign(self._seen + other._seen)

    def reset_state(self) -> None:
        """Forgets all samples; the next one has the number `start`."""
        super().reset_state()
        self._seen.assign(np.uint32(self.start % 2**32).astype(np.int32))

    def arrays(self) -> dict[str, np.ndarray]:
        """As `states` joins them."""
        priority = np.asarray(ops.convert_to_numpy(self._priority))[: self.most]
        rows = {f"highest/rows_{i}": kept for i, kept in enumerate(self.result())}
        kept = {"highest/priority": -np.sort(-priority)[: np.count_nonzero(priority)]}
        return {**kept, **rows, "highest/most": np.array(self.most)}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """From `arrays`."""
        self.reset_state()
        rows = [arrays[f"highest/rows_{i}"] for i in range(len(self._rows))]
        self._keep(ops.convert_to_tensor(arrays["highest/priority"]), rows)

    def result(self) -> "MadeWhenAsked":
        """The rows that are kept now of each tensor, float32 `[kept, width]`."""
        priority = np.asarray(ops.convert_to_numpy(self._priority))[: self.most]
        kept = np.argsort(-priority, kind="stable")[: np.count_nonzero(priority)]

        def rows(place: int) -> np.ndarray:
            held = self._rows[place]
            found = np.empty((len(kept), held.shape[1]), "float32")
            for start in range(0, len(kept), _ROWS):  # so that all are not held once more
                some = kept[start : start + _ROWS]
                found[start : start + _ROWS] = ops.convert_to_numpy(rows_of(held, some))
            return found

        return MadeWhenAsked(rows, len(self._rows))

    @staticmethod
    def size(widths: Iterable[int], most: int = MOST_SAMPLES) -> int:
        """Bytes that such a state takes while it is updated and read, copies included."""
        return 3 * 4 * (most + 1) * (1 + sum(widths))

    def _keep(self, priority: Tensor, rows: Sequence[Tensor]) -> None:
        """The highest of the new ones take the places of the lowest, as long as they are higher."""
        highest = ops.argsort(-priority)[: self.most]
        priority = ops.take(priority, highest)
        places = ops.argsort(self._priority[: self.most])[: ops.shape(highest)[0]]
        higher = priority > ops.take(self._priority[:], places)
        places = ops.where(higher, places, self.most)
        # Nothing is touched but these rows: all of them may be large.
        set_rows(self._priority, places, priority)
        for kept, new in zip(self._rows, rows, strict=True):
            if kept.shape[1]:
                set_rows(kept, places, ops.take(new, highest, axis=0))


class MadeWhenAsked(Sequence[np.ndarray]):
    """Arrays of which each is made when it is asked for, and not kept: together they are large.

    Args:
        make: a function of the number of an array.
        count: how many there are.

    Example:

    >>> arrays = MadeWhenAsked(np.arange, 3)
    >>> [array.tolist() for array in arrays], arrays[-1].tolist(), len(arrays[1:])
    ([[], [0], [0, 1]], [0, 1], 2)
    """

    def __init__(self, make: Callable[[int], np.ndarray], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        places = range(self._count)[number]
        return self._make(places) if isinstance(places, int) else [*map(self._make, places)]


def one_hot(membership: np.ndarray) -> np.ndarray:
    """Each sample counts once, shared out where it has several classes: `[samples, classes]`."""
    return membership / membership.sum(axis=1, keepdims=True)


def width(tensor: Tensor) -> int:
    """Number of features of a sample of `[batch, ...]`."""
    return math.prod(tensor.shape[1:])


def _hash(number: Tensor, seed: int) -> Tensor:
    """A positive int32 that looks random, different for different numbers up to some 2^31.

    Source: Wellons, *Prospecting for Hash Functions*, 2018, its `lowbias32`.
    """
    word = np.uint32(2**32 - 1)  # PyTorch has no uint32 to reckon in: there it is an int64
    x = ops.cast(number, "uint32") + np.uint32((1 + 0x9E3779B9 * seed) % 2**32)
    x = ops.bitwise_and(x, word)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = ops.bitwise_xor(x, ops.right_shift(x, np.uint32(shift)))
        x = ops.bitwise_and(x * np.uint32(factor), word)
    return ops.maximum(ops.cast(ops.right_shift(x, np.uint32(1)), "int32"), 1)
