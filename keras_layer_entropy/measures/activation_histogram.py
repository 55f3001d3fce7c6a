"""Histograms of activations, in bins that grow with their distance from 0.

There are 64 bins a sign, each half an octave wide, from 2 ** -16 to 2 ** 16; one for what is nearer
to 0, and one a sign for what is beyond.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_layer_entropy.backend import Tensor
from keras_layer_entropy.measures.class_sums import CompensatedSum
from keras_layer_entropy.measures.measure import (
    LayerInfo,
    Measure,
    MeasureResult,
    Panel,
    Samples,
    Words,
    is_int,
)

_SIDE, _OCTAVES = 64, 16  # bins a sign, and octaves on either side of 1
_ZERO = _SIDE + 1  # the bin of 0
BINS = 2 * _SIDE + 3
_MOST_NUMBERS = 4096  # of one sample that are looked at
_POSITIVE = 2.0 ** np.linspace(-_OCTAVES, _OCTAVES, _SIDE + 1)
# Ends of the bins, `[BINS + 1]`, from minus infinity to infinity.
EDGES = np.concatenate([[-np.inf], -_POSITIVE[::-1], _POSITIVE, [np.inf]])


def bin_of(values: Tensor) -> Tensor:
    """The number of the bin of each value, int32; of NaN that of 0.

    Example:

    >>> [int(bin_of(np.float32(x))) for x in (-np.inf, -1.1, 0.0, 1.1, 1e9)]
    [0, 32, 65, 98, 130]
    """
    values = ops.cast(values, "float32")
    values = ops.where(ops.isnan(values), 0.0, values)
    step = ops.floor((ops.log2(ops.abs(values)) + _OCTAVES) * (_SIDE / (2 * _OCTAVES)))
    step = ops.cast(ops.clip(step, -1.0, float(_SIDE)), "int32") + 1
    return _ZERO + ops.where(values < 0, -step, step)


class HistogramState(CompensatedSum):
    """Counts of values in bins, `[classes, BINS]`, of some samples of each batch.

    Args:
        classes: number of classes.
        rows: how many samples of a batch are looked at, at most, evenly spread over it.
    """

    def __init__(self, classes: int, rows: int, name: str | None = None) -> None:
        self._rows = rows
        super().__init__((classes, BINS), name)

    def update_state(self, values: Tensor, membership: Tensor, mask: Tensor | None = None) -> None:
        """Adds a batch, as for every state of a `Measure`."""
        whole = ops.shape(values)[0]  # a number, or a tensor where nobody knows it
        step = -(-whole // self._rows)
        step = max(step, 1) if isinstance(whole, int) else ops.maximum(step, 1)
        chosen = ops.arange(0, whole, step, dtype="int32")
        values, membership = (ops.take(x, chosen, axis=0) for x in (values, membership))
        counts = ops.cast(ops.logical_not(ops.isnan(values)), "float32")
        if mask is not None:
            mask = ops.cast(ops.take(mask, chosen, axis=0), "float32")
            counts *= ops.reshape(
                mask, (*ops.shape(mask), *[1] * (len(values.shape) - len(mask.shape)))
            )
        # A row for each sample, or position, that has a label.
        classes = membership.shape[-1]
        membership = ops.reshape(ops.cast(membership > 0, "float32"), (-1, classes))
        rows = ops.shape(membership)[0]
        bins, counts = (ops.reshape(x, (rows, -1)) for x in (bin_of(values), counts))
        if bins.shape[-1] is not None and bins.shape[-1] > _MOST_NUMBERS:
            some = np.random.default_rng(0).choice(bins.shape[-1], _MOST_NUMBERS, replace=False)
            some = np.sort(some).astype("int32")
            bins, counts = (ops.take(x, some, axis=1) for x in (bins, counts))
        places = bins + BINS * ops.arange(rows, dtype="int32")[:, None]
        found = ops.segment_sum(
            ops.reshape(counts, (-1,)), ops.reshape(places, (-1,)), num_segments=BINS * rows
        )
        self.add(ops.matmul(ops.transpose(membership), ops.reshape(found, (rows, BINS))))

    def not_finite(self) -> np.ndarray:
        """What is infinite lies in the outer bins, and NaN in none: nothing is spoilt."""
        return np.zeros(self.total().shape[0], bool)


class ActivationHistogram(Measure):
    """Histograms of what a layer gives, class by class, without keeping any of it.

    `per_class` is the share of the activations of a class that lie within 2 ** -16 of 0, `whole`
    the median of the sizes of the others, and the size below which all but one in 1,000 lie. Both
    are geometric means of the ends of a bin, and so within a factor 2 ** 0.25 (19 %) of what they
    would be of the values themselves. `details` holds `counts` `[classes, bins]` and the `edges` of
    the bins. Counted are some samples of each batch, and of each no more than 4,096 numbers, drawn
    once.

    Args:
        rows: how many samples of a batch are looked at, at most, evenly spread over it.
        name: as for every `Measure`.

    Raises:
        ValueError: `rows` no positive int.

    Example:

    >>> import keras
    >>> from keras_layer_entropy import analyze_model
    >>> model = keras.Sequential([keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(3)])
    >>> x, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 3
    >>> found = analyze_model(model, (x, y), measures="activation_histogram", verbose=0)
    >>> counts = found["activation_histogram"].details["a"]["counts"]
    >>> counts.shape, bool(counts[:, :65].any())  # a ReLU gives nothing below 0
    ((3, 131), False)
    """

    key = "activation_histogram"
    title = "Activations at 0"
    unit = "share of the activations"
    largest = 1.0
    meaning = "The share of the activations of the class that are 0, or within 2 ** -16 of it."
    caveat = "Some samples of each batch are looked at, not all."
    whole = {
        "median": Words(
            "Median size", "activation", "The median of the sizes of activations that are not 0."
        ),
        "extreme": Words(
            "Extreme size", "activation", "The size below which all but one in 1,000 lie."
        ),
    }
    panels = (Panel("histograms"), Panel("heatmap"))

    def __init__(self, rows: int = 32, *, name: str | None = None) -> None:
        super().__init__(name, rows=rows)
        self.check(rows=("a positive int", is_int(rows)))

    def new_state(self, layer: LayerInfo, classes: int) -> HistogramState:
        return HistogramState(classes, self.options["rows"])

    def state_size(self, layer: LayerInfo, classes: int) -> int:
        return CompensatedSum.size(classes, BINS)

    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples | None
    ) -> MeasureResult:
        counts = [state.total() for state in states]
        sums = [x.sum(axis=1) for x in counts]
        zero = [
            np.divide(x[:, _ZERO], n, out=np.full(len(n), np.nan), where=n > 0)
            for x, n in zip(counts, sums, strict=True)
        ]
        whole = {
            "median": [_size(x.sum(axis=0), 0.5, zero=False) for x in counts],
            "extreme": [_size(x.sum(axis=0), 0.999, zero=True) for x in counts],
        }
        details = {
            layer.path: {"counts": x, "edges": EDGES}
            for layer, x in zip(layers, counts, strict=True)
        }
        return MeasureResult(zero, whole, unit=self.unit, details=details)


def _size(counts: np.ndarray, share: float, zero: bool) -> float:
    """The size below which a share of the values lies: the geometric middle of its bin."""
    sizes = counts[_ZERO + 1 :] + counts[_ZERO - 1 :: -1]  # of both signs, the smallest first
    at_zero = counts[_ZERO] if zero else 0.0
    total = sizes.sum() + at_zero
    if not total:
        return np.nan
    place = int(np.searchsorted(at_zero + np.cumsum(sizes), share * total))
    if at_zero >= share * total:
        return 0.0
    low = 2.0 ** (-_OCTAVES + place * 2 * _OCTAVES / _SIDE)
    return float(low * 2.0 ** (_OCTAVES / _SIDE)) if place < _SIDE else np.inf
