"""Mutual information of whole layers, with the input and with the labels.

Sources: Fang, Wang & Yamaguchi, *Dissecting Deep Learning Networks - Visualizing Mutual
Information*, Entropy 2018, 20(11), 823, doi 10.3390/e20110823; the kernel density estimate is that
of Kolchinsky & Tracey, *Estimating Mixture Entropy with Pairwise Distances*, Entropy 2017, 19(7),
361, as Saxe et al., *On the Information Bottleneck Theory of Deep Learning*, ICLR 2018, use it.

In this file everything is in bits. `membership` is `[samples, classes]`, one-hot labels or
nonnegative weights: a sample counts as much as its row sums to, shared out among its classes, so
that the row 0.5, 0.5 is one sample of two classes and 1, 1 one that counts twice. A row of zeros
does not count at all, whatever its sample holds. Half precision is computed in float32; every
other floating dtype is kept.

A layer that is a deterministic function of its input has no finite information about it: these are
informations of the layer plus a little noise (`kernel_information`) or of its rounded values
(the others), and they depend on how much.
"""

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_layer_entropy.backend import Tensor, at_least_float32
from keras_layer_entropy.measures.kept_samples import one_hot
from keras_layer_entropy.measures.measure import (
    MOST_SAMPLES,
    LayerInfo,
    Measure,
    MeasureResult,
    Panel,
    Samples,
    Words,
    is_int,
    is_positive,
)

# Numbers of a pairwise table that are held at a time: 8 MiB of float32, a few times over.
BLOCK = 2**21
# Steps of the grid from 0 to the longest vector: their products are whole numbers below 2^24, which
# float32 holds exactly, and they have 11 bits, all that TF32 multiplies with.
GRID = 2000


class Information(NamedTuple):
    """What a layer tells, in bits.

    Attributes:
        input: `[...]`, about which sample it was, I(X; T).
        labels: `[...]`, about the class, I(T; Y).
        per_class: `[..., classes]`, about one class against all others; NaN for a class without
            samples.
    """

    input: Tensor
    labels: Tensor
    per_class: Tensor


def kernel_information(t: Tensor, membership: Tensor, variance: float = 0.1) -> Information:
    """Information of a whole layer, by a Gaussian kernel around every sample.

    With n_c the weight of class c, n = sum_c n_c and k_ij = exp(-|t_i - t_j|^2 / (2 variance)),

    - p(t_i | c) = sum_j membership_jc k_ij / n_c, and p(t_i) = sum_c n_c / n p(t_i | c)
    - I(X; T) = -sum_ic membership_ic / n log2 p(t_i)
    - I(T; Y) = sum_ic membership_ic / n log2(p(t_i | c) / p(t_i)), which is
      H(T) - sum_c n_c / n H(T | c), every entropy estimated as I(X; T) is
    - per class: the same with two classes, c and the rest.

    Every k_ii is 1, so that 0 <= I(T; Y) <= I(X; T) <= log2(samples) and I(T; Y) <= H(Y).
    Samples that are all far apart against sqrt(variance) reach log2(samples) and H(Y), *whatever
    the labels*: compare with the same samples and shuffled labels. The shuffled value grows with
    the number of kernels that fit beside each other: it is about 2^I(X; T) (classes - 1) /
    (samples ln 2) while that is small.

    Memory is that of four copies of `t` and some blocks of 8 MiB, whatever the square of samples.

    Precision in float32, with A the longest distance from the mean: a squared distance is off by
    up to 2e-10 A^2 sqrt(features) (a plain product of centred rows: 1e-6 A^2), which matters where
    it reaches the variance; up to 1e-6 A^2 where float32 is multiplied as TF32, as GPUs do it
    (instead of 1e-3 A^2). Pass float64 for more.

    Args:
        t: tensor `[..., samples, features]`; all but the features of static shape.
        membership: `[samples, classes]`.
        variance: of the noise, a positive number; 0.1 is that of Saxe et al. for MNIST. It counts
            against the squares of activations: those of another scale need another.

    Returns:
        `Information`; NaN where a sample that counts holds NaN, or where none counts.

    Raises:
        ValueError: other shapes, no samples, `variance` not positive.

    Source: Fang et al. 2018; Kolchinsky & Tracey 2017.

    Example:

    >>> import numpy as np
    >>> labels = np.eye(2)[[0, 0, 1, 1]]
    >>> found = kernel_information(100 * labels, labels)  # two places, far apart, one per class
    >>> [round(float(value), 4) for value in (found.input, found.labels)]
    [1.0, 1.0]
    """
    if not 0 < variance < math.inf:
        raise ValueError(f"variance={variance}; expected a positive number.")
    t, membership = checked_samples(t, membership)
    if None in t.shape[:-1]:
        raise ValueError(
            f"t has shape {tuple(t.shape)}; expected a static number of samples: give the "
            "tf.function an input signature without None in that place."
        )
    t = _centred(t, membership)  # under the same name: the memory of the other is free again
    return information_of(membership, _kernel_sums(t, membership, variance))


def binned_information(
    t: Tensor, membership: Tensor, bins: int = 30, limits: tuple[float, float] | None = None
) -> Information:
    """Information of a whole layer whose values are rounded to bins of equal width.

    The bins divide the range from the smallest to the largest value of the layer, one range for all
    features, and the bins of all features together are one symbol:

    - I(X; T) = H(symbol) = -sum_s p_s log2 p_s
    - I(T; Y) = H(symbol) - sum_c p_c H(symbol | c)
    - per class: the same with two classes, c and the rest.

    These are plug-in estimates. With symbols and classes occupied by chance only, I(T; Y) is too
    large by about (symbols - 1)(classes - 1) / (2 samples ln 2); where each sample is a symbol of
    its own, as in wide layers, it is H(Y) whatever the labels.

    For arrays, not inside a compiled graph: equal rows are counted on the host.

    Args:
        t: `[..., samples, features]`.
        membership: `[samples, classes]`.
        bins: number of bins, a positive int.
        limits: (smallest, largest) value of the range, or None; what lies outside is put into the
            first and the last bin.

    Returns:
        `Information`; NaN where a sample that counts holds what is not finite.

    Raises:
        ValueError: other shapes, no samples or none that counts, `bins` no positive int, `limits`
            not in order.

    Source: Fang et al. 2018; Saxe et al. 2018.

    Example:

    >>> import numpy as np
    >>> labels = np.eye(2)[[0, 0, 1, 1]]
    >>> found = binned_information([[0.1], [0.2], [0.9], [1.0]], labels, bins=2)
    >>> [round(float(value), 4) for value in (found.input, found.labels)]
    [1.0, 1.0]
    """
    check_bins(bins)
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError(f"limits={limits}; expected two numbers, the smaller one first.")
    t, membership = (ops.convert_to_numpy(x) for x in checked_samples(t, membership))
    counts = (membership > 0).any(axis=-1)
    if not counts.any():
        raise ValueError("All of membership is 0; expected a sample that belongs to a class.")
    t, membership = t[..., counts, :], membership[counts]
    tables = [
        _symbol_table(rows, membership, bins, limits) for rows in t.reshape(-1, *t.shape[-2:])
    ]
    tables = [ops.convert_to_tensor(table) for table in tables]
    found = zip(*(information_of(table, table) for table in tables), strict=True)
    stacked = (ops.stack(list(part)) for part in found)
    return Information(*(ops.reshape(x, (*t.shape[:-2], *x.shape[1:])) for x in stacked))


def _centred(t: Tensor, membership: Tensor) -> Tensor:
    """Minus the mean of the samples that count; the others, which must not spoil them, are 0."""
    counts = ops.any(membership > 0, axis=-1)[:, None]
    t = ops.where(counts, t, 0.0)
    number = ops.maximum(ops.sum(ops.cast(counts, t.dtype)), 1.0)
    return ops.where(counts, t - ops.sum(t, axis=-2, keepdims=True) / number, 0.0)


def _kernel_sums(t: Tensor, membership: Tensor, variance: float) -> Tensor:
    """sum_j k_ij membership_jc, `[..., samples, classes]`, from blocks of rows of k; t is centred.

    |t_i - t_j|^2 = |t_i|^2 + |t_j|^2 - 2 t_i't_j cancels where vectors are long and close. So each
    is divided into a point of a grid and what is left, t = whole + part: between grid points that
    formula is exact, and in the other terms one factor is small.
    """
    longest = ops.sqrt(ops.max(_row_products(t, t), axis=-1))[..., None, None]
    unit = ops.where(longest > 0, longest, 1.0) / GRID
    t = t / unit
    whole = ops.round(t)
    part = t - whole
    square = _row_products(whole, whole)
    remainder = 2.0 * _row_products(part, whole) + _row_products(part, part)
    exponent = -ops.square(unit) / (2.0 * variance)

    def rows(index: Tensor) -> Tensor:
        def select(x: Tensor, axis: int = -2) -> Tensor:
            return ops.take(x, index, axis=axis)

        exact = _sums(select(square, -1), square) - 2.0 * _products(select(whole), whole)
        rest = _products(select(whole), part) + _products(select(part), t)
        rest = _sums(select(remainder, -1), remainder) - 2.0 * rest
        distance = ops.maximum(exact + rest, 0.0)
        itself = index[:, None] == ops.arange(t.shape[-2])
        distance = ops.where(itself, 0.0 * distance, distance)  # not 0.0: NaN stays
        sums = ops.matmul(ops.exp(exponent * distance), membership)
        return ops.moveaxis(sums, -2, 0)

    return ops.moveaxis(in_blocks(rows, t.shape[-2], math.prod(t.shape[:-1])), 0, -2)


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    return ops.einsum("...if,...if->...i", a, b)


def _products(a: Tensor, b: Tensor) -> Tensor:
    return ops.einsum("...if,...jf->...ij", a, b)


def _sums(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] + b[..., None, :]


def in_blocks(function: Callable[[Tensor], Tensor], number: int, row: int) -> Tensor:
    """`function(indices)` of 0..`number` in blocks, `[number, ...]`, for rows of `row` numbers."""
    blocks = -(-number // max(1, BLOCK // row))
    if blocks == 1:  # JAX would compile the loop anew in every call
        return function(ops.arange(number))
    size = -(-number // blocks)
    # The last block is filled up with its last row.
    index = np.minimum(np.arange(blocks * size), number - 1).reshape(blocks, size)
    found = ops.map(function, ops.convert_to_tensor(index, "int32"))
    return ops.reshape(found, (blocks * size, *found.shape[2:]))[:number]


def information_of(weights: Tensor, sums: Tensor) -> Information:
    """`Information` from what stands in each place.

    Args:
        weights: `[..., places, classes]`, the weight of each class in each place.
        sums: `[..., places, classes]`, the weight of each class around it, itself included.
    """
    total = ops.sum(sums, axis=-1, keepdims=True)
    weight = ops.sum(weights, axis=-1, keepdims=True)
    number = ops.sum(weights, axis=(-2, -1))[..., None, None]
    gains = gain_of_classes(weights, sums, total, number)
    rest = gain_of_classes(of_the_others(weights), of_the_others(sums), total, number)
    some = ops.sum(weights, axis=-2) > 0
    # H(T) is what is gained by knowing the place. Rounding may leave less than nothing.
    surprise = ops.where(weight > 0, weight * ops.log2(total / number), 0.0)
    return Information(
        ops.maximum(-ops.sum(surprise, axis=(-2, -1)) / number[..., 0, 0], 0.0),
        ops.maximum(ops.sum(gains, axis=-1), 0.0),
        ops.where(some, ops.maximum(gains + rest, 0.0), np.nan),
    )


def gain_of_classes(weights: Tensor, sums: Tensor, total: Tensor, number: Tensor) -> Tensor:
    """sum_i w_ic / n log2(p(t_i | c) / p(t_i)), `[..., classes]`."""
    ratio = (sums / ops.sum(weights, axis=-2, keepdims=True)) / (total / number)
    terms = ops.where(weights > 0, weights * ops.log2(ratio), 0.0)
    return ops.sum(terms / number, axis=-2)


def of_the_others(weights: Tensor) -> Tensor:
    """The sum over all other classes, for each class: without a difference that might cancel."""
    classes = weights.shape[-1]
    return ops.matmul(weights, 1.0 - ops.eye(classes, dtype=weights.dtype))


def _symbol_table(
    rows: np.ndarray, membership: np.ndarray, bins: int, limits: tuple[float, float] | None
) -> np.ndarray:
    """Weight of each class in each symbol, `[symbols, classes]`."""
    if not np.isfinite(rows).all():
        return np.full((1, membership.shape[-1]), np.nan)
    low, high = (float(x) for x in limits or (rows.min(), rows.max()))
    scale = bins / (high - low) if high > low else 0.0
    symbols: dict[bytes, int] = {}
    place = []
    for row in rows:  # not np.unique(axis=0): it takes minutes for thousands of features
        codes = np.clip(np.floor((row.astype("float64") - low) * scale), 0, bins - 1)
        place.append(symbols.setdefault(codes.tobytes(), len(symbols)))
    table = np.zeros((len(symbols), membership.shape[-1]))
    np.add.at(table, place, membership)
    return table


def checked_samples(t: Tensor, membership: Tensor) -> tuple[Tensor, Tensor]:
    """Samples and their classes as tensors of one dtype; ValueError where shapes do not fit."""
    t = at_least_float32(t)
    membership = ops.cast(membership, t.dtype)
    fits = len(t.shape) > 1 and len(membership.shape) == 2 and membership.shape[1] != 0
    if not fits or 0 in t.shape or len({t.shape[-2], membership.shape[0]} - {None}) > 1:
        raise ValueError(
            f"t has shape {tuple(t.shape)} and membership {tuple(membership.shape)}; expected "
            "[..., samples, features] and [samples, classes], none of them 0."
        )
    return t, membership


def check_bins(bins: object) -> None:
    """Raises ValueError where `bins` is no positive int."""
    if not isinstance(bins, numbers.Integral) or bins < 1:
        raise ValueError(f"bins={bins!r}; expected a positive int.")


class MutualInformation(Measure):
    """Mutual information of layers, by kernel density or by rounding to bins.

    `per_class` is the information between the layer and whether a sample is of the class; `whole`
    holds `input` I(X; T) and `labels` I(T; Y), and `shuffled` the latter with the labels of other
    samples.

    Args:
        variance: of the noise that is thought to be added to each unit: by kernel density.
        bins: number of bins that values are rounded to instead; None for kernel density.
        samples: how many samples are compared.
        name: as for every `Measure`.

    Raises:
        ValueError: `variance` or `bins` not positive, `samples` no int of at least 2.

    Source: Fang et al. 2018; Kolchinsky & Tracey 2017.

    Example:

    >>> MutualInformation(bins=30)
    MutualInformation(bins=30)
    """

    key = "mutual_information"
    title = "Information on a class"
    unit = "bits"
    meaning = (
        "What the layer tells of whether a sample is of the class: the mutual information of "
        "the layer's output, with a little noise added, and that yes or no. With ten classes "
        "of one size it is 0.469 bits at most."
    )
    caveat = (
        "Estimated by kernel density, or by rounding to bins, from at most some thousand "
        "samples: where no two samples lie near one another it says that everything is known, "
        "even of random labels. It depends on the scale of activations and on the variance of "
        "the noise or the number of bins."
    )
    whole = {
        "input": Words(
            "I(input; layer)",
            "bits",
            "I(X; T): how well the layer's output, with a little noise added or rounded, tells "
            "samples apart; the binary logarithm of their number when it tells all.",
            "At its largest it says that the noise is small against the distances, and no more.",
        ),
        "labels": Words(
            "I(layer; labels)",
            "bits",
            "I(T; Y): what the layer tells of the class; with ten classes of one size 3.32 bits at "
            "most. Shuffled is the same with the labels of other samples: only what lies above it "
            "is information.",
            "Where the layer tells all samples apart it is the largest possible whatever the "
            "labels: look at it beside that of shuffled labels.",
        ),
    }
    panels = (
        *Measure.panels,
        Panel("whole"),
        Panel("plane", {"title": "Information plane, mutual information", "bounded": True}),
    )

    def __init__(
        self,
        variance: float = 0.1,
        bins: int | None = None,
        samples: int = MOST_SAMPLES,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name, variance=variance, bins=bins, samples=samples)
        self.check(
            variance=("a positive number", is_positive(variance)),
            bins=("a positive int, or None", bins is None or is_int(bins)),
            samples=("an int of at least 2", is_int(samples, 2)),
        )
        self.samples = samples

    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples
    ) -> MeasureResult:
        estimate = self._estimate()
        membership = one_hot(samples.membership)
        # Kept samples come in random order: the label of a neighbour is that of any sample.
        others = np.roll(membership, 1, axis=0)
        found = [estimate(rows, membership) for rows in samples.layers]
        chance = [float(estimate(rows, others).labels) for rows in samples.layers]
        several = (samples.membership > 0).sum(axis=1).max() > 1
        per_class = [
            _of_each_class(estimate, rows, samples.membership)
            if several
            else np.asarray(information.per_class)
            for rows, information in zip(samples.layers, found, strict=True)
        ]
        whole = {name: [float(getattr(x, name)) for x in found] for name in ("input", "labels")}
        return MeasureResult(per_class, whole, {"labels": chance}, self.unit)

    def _estimate(self) -> Callable[[Tensor, Tensor], Information]:
        if self.options["bins"] is None:
            return functools.partial(kernel_information, variance=self.options["variance"])
        return functools.partial(binned_information, bins=self.options["bins"])


def _of_each_class(
    estimate: Callable[[Tensor, Tensor], Information], rows: np.ndarray, membership: np.ndarray
) -> np.ndarray:
    """I(T; 1[c is among the sample's classes]) where samples have several."""
    inside = (membership > 0).T
    found = [estimate(rows, np.stack([x, ~x], axis=1)) for x in inside]
    return np.where(inside.any(axis=1), [float(x.labels) for x in found], np.nan)
