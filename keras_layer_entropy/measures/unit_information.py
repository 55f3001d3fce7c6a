"""What single units tell: mutual information of each with the class, with the input, with others.

Source: Fang, Wang & Yamaguchi, *Dissecting Deep Learning Networks - Visualizing Mutual
Information*, Entropy 2018, 20(11), 823, doi 10.3390/e20110823.

In this file everything is in bits, and `membership` is as in `mutual_information`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.backend import Tensor, at_least_float32
from keras_layer_entropy.measures.class_sums import like_positions
from keras_layer_entropy.measures.leave_one_out import NOISE, ROUNDING
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
    mean_of_known,
    unmasked,
)
from keras_layer_entropy.measures.mutual_information import (
    Information,
    check_bins,
    gain_of_classes,
    information_of,
    kernel_information,
    of_the_others,
)
from keras_layer_entropy.measures.pairs import checked_samples, in_blocks

ESTIMATORS = ("quantile", "kernel")
WIDEST = 1024  # units of a layer that are compared with one another
_BLOCK = 2**24  # numbers of maps that are compared at a time: 64 MiB, a few times over
_STEP = 0.025  # of the grid of a density, in standard deviations: a twelfth of that of the noise
_FURTHEST = 64.0  # beyond lie 1/4,096 of the samples at most: it is enough to know that they do
_TAIL = 12.0  # what lies between the two ends of a grid, in standard deviations of the noise


class QuantileInformation(NamedTuple):
    """What each unit tells by itself, in bits.

    Attributes:
        entropy: `[units]`, of the binned unit, H(T_k).
        labels: `[units]`, about the class, I(T_k; Y).
        per_class: `[units, classes]`, about one class against all others; NaN for a class without
            samples.
    """

    entropy: Tensor
    labels: Tensor
    per_class: Tensor


class Redundancy(NamedTuple):
    """Which units only repeat others.

    Attributes:
        redundant: bool `[units]`.
        kept: int `[units]`, the unit that says the same; its own index for a unit that stays.
    """

    redundant: np.ndarray
    kept: np.ndarray


def quantile_information(values: Tensor, membership: Tensor, bins: int = 10) -> QuantileInformation:
    """Information of each unit by itself, from bins that hold about equally many samples.

    The fast mode for convolution kernels: a value per sample and kernel, such as the mean of its
    map. Equal values share a bin, so that a unit may have fewer bins than asked for (a constant one
    has 1, an entropy of 0 and no information), and nothing changes when a unit passes through an
    increasing function. With q_tc the weight of class c in bin t, over the whole,

    I(T; Y) = sum_tc q_tc log2(q_tc / (q_t q_c)) + (m_T + m_Y - m_TY - 1) / (2 N ln 2)

    where m are the numbers of bins, classes and pairs of the two that are not empty, and
    N = (sum_i w_i)^2 / sum_i w_i^2, the number of samples where all weights w_i are equal. The
    second term is the correction of Miller and Madow for few samples. H(T) gets
    + (m_T - 1) / (2 N ln 2). So corrected, an entropy may exceed log2(bins), and an information may
    come out below 0 by a few times sqrt((bins - 1)(classes - 1) / 2) / (N ln 2), the spread that is
    left for labels that mean nothing.

    Args:
        values: `[samples, units]`.
        membership: `[samples, classes]`.
        bins: number of bins, a positive int.

    Returns:
        `QuantileInformation`; NaN for a unit that is NaN in a sample that counts, and if none
        counts. (Infinite values are the largest or smallest ones.)

    Raises:
        ValueError: other shapes, no samples, `bins` no positive int.

    Source: Fang et al. 2018 for kernels; Miller, *Note on the bias of information estimates*, 1955.

    Example:

    >>> import numpy as np
    >>> labels = np.eye(2)[np.arange(1000) % 2]
    >>> values = np.stack([labels[:, 0], np.ones(1000)], axis=1)  # the class; always the same
    >>> [round(float(value), 3) for value in quantile_information(values, labels).labels]
    [1.001, 0.0]
    """
    check_bins(bins)
    values, membership = checked_samples(_units(values), membership)
    weight = ops.sum(membership, axis=-1)
    codes = _quantile_codes(values, weight, bins)
    in_bin = (ops.cast(codes == k, values.dtype) for k in range(bins))
    tables = ops.stack([ops.matmul(ops.transpose(on), membership) for on in in_bin], axis=1)
    plain = information_of(tables, tables)  # [units, bins, classes]

    rest = of_the_others(tables)
    samples = ops.square(ops.sum(weight)) / ops.sum(ops.square(weight))
    of_bins = _occupied(ops.sum(tables, axis=-1))  # [units]
    inside, outside = (_occupied(ops.swapaxes(x, 1, 2)) for x in (tables, rest))  # [units, classes]
    some, others = (ops.cast(x > 0, values.dtype) for x in (inside, outside))
    entropy = plain.input + _miller_madow(of_bins, of_bins, of_bins, samples)
    labels = plain.labels + _miller_madow(
        of_bins, ops.sum(some, axis=-1), ops.sum(inside, axis=-1), samples
    )
    per_class = plain.per_class + _miller_madow(
        of_bins[:, None], some + others, inside + outside, samples
    )
    unknown = _unknown(values, weight)
    return QuantileInformation(
        ops.where(unknown, np.nan, entropy),
        ops.where(unknown, np.nan, labels),
        ops.where(unknown[:, None], np.nan, per_class),
    )


def pairwise_information(values: Tensor, bins: int = 10) -> Tensor:
    """Information between each two units, from the same bins as `quantile_information`.

    I(T_k; T_l), with the other unit's bins in place of the classes and the same correction; on the
    diagonal the entropy H(T_k). Every sample counts.

    Memory is that of `bins` copies of `values`, beside the result.

    Args:
        values: `[samples, units]`.
        bins: number of bins, a positive int.

    Returns:
        Tensor `[units, units]`, symmetric; NaN in the rows and columns of units that hold NaN.

    Raises:
        ValueError: other shapes, no samples, `bins` no positive int.

    Source: as `quantile_information`.

    Example:

    >>> import numpy as np
    >>> unit = np.linspace(-1, 1, 1000)
    >>> found = pairwise_information(np.stack([unit, -unit, unit**2], axis=1))
    >>> [round(float(value), 2) for value in found[0]]  # the same up to a sign; without the sign
    [3.33, 3.33, 2.32]
    """
    check_bins(bins)
    values = _units(values)
    weight = ops.ones_like(values[:, 0])
    samples, units = ops.shape(values)
    number = ops.sum(weight)
    codes = _quantile_codes(values, weight, bins)
    one_hot = ops.cast(codes[..., None] == ops.arange(bins), values.dtype)
    one_hot = ops.reshape(one_hot, (samples, units * bins))
    of_bins = _occupied(ops.sum(ops.reshape(one_hot, (samples, units, bins)), axis=0))

    def rows(index: Tensor) -> Tensor:
        columns = ops.reshape(index[:, None] * bins + ops.arange(bins), (-1,))
        some = ops.take(one_hot, columns, axis=1)
        tables = ops.reshape(ops.matmul(ops.transpose(some), one_hot), (-1, bins, units, bins))
        tables = ops.transpose(tables, (0, 2, 1, 3))  # [rows, units, bins, bins]
        total = ops.sum(tables, axis=-1, keepdims=True)
        plain = ops.sum(gain_of_classes(tables, tables, total, number), axis=-1)
        pairs = _occupied(ops.reshape(tables, (-1, units, bins * bins)))
        of_rows = ops.take(of_bins, index)[:, None]
        return plain + _miller_madow(of_rows, of_bins, pairs, number)

    found = in_blocks(rows, values.shape[1], values.shape[1] * bins * bins)
    unknown = _unknown(values, weight)
    return ops.where(ops.logical_or(unknown[:, None], unknown), np.nan, found)


def noisy_information(values: Tensor, weight: Tensor | None = None) -> np.ndarray:
    """How well each unit tells samples apart once noise is added to it, I(X; T_k + e), in bits.

    A unit is a function of the input, so that I(X; T_k) is infinite, or the entropy of the data.
    With Gaussian noise e of a tenth of the unit's variance, s^2 = 0.1 Var(T_k), it is finite and
    does not change with the scale of the unit. With h the differential entropy

    I(X; T_k + e) = h(T_k + e) - 1/2 log2(2 pi exp(1) s^2)

    where the density of T_k + e is that of the samples with noise around each, on a grid.
    It is highest, 1/2 log2(1 + 1 / 0.1) = 1.73, where values are normal. A unit that is on for a
    share p of the samples, and else off, has nearly -p log2 p - (1 - p) log2(1 - p): the rarer it
    is on, the less it tells.

    For arrays, not inside a compiled graph.

    Args:
        values: `[samples, units]`.
        weight: `[samples]`, how much each counts, None for all alike.

    Returns:
        float64 NumPy array `[units]`; 0 for a unit that is the same in all samples; NaN for one
        that is not finite in a sample that counts, and if none counts.

    Raises:
        ValueError: other shapes, no samples.

    Source: as `leave_one_out_information`, whose lower bound of I(X; T + noise) this is for a layer
    of one unit, with the noise integrated and not drawn.

    Example:

    >>> samples = np.arange(1000)
    >>> values = np.stack([samples % 2, samples % 10 == 0, 0 * samples], axis=1)
    >>> noisy_information(values).round(2).tolist()  # on for one of two, for one of ten, never
    [1.0, 0.47, 0.0]
    """
    columns = np.asarray(ops.convert_to_numpy(_units(values)), np.float64)
    weights = np.ones(len(columns)) if weight is None else ops.convert_to_numpy(weight)
    weights = np.asarray(weights, np.float64)
    if weights.shape != columns.shape[:1]:
        raise ValueError(
            f"weight has shape {weights.shape} and values {columns.shape}; expected [samples] and "
            "[samples, units]."
        )
    columns, weights = columns[weights > 0], weights[weights > 0]
    return np.array([_noisy_information(column, weights) for column in columns.T])


def _noisy_information(column: np.ndarray, weights: np.ndarray) -> float:
    if not len(column) or not np.isfinite(column).all():
        return math.nan
    share = weights / weights.sum()
    centred = column - share @ column
    deviation = math.sqrt(share @ np.square(centred))
    if deviation <= ROUNDING * np.abs(column).max():
        return 0.0
    places = np.clip(centred / deviation, -_FURTHEST, _FURTHEST) / _STEP
    places -= places.min()
    cells = places.astype(int)
    size = int(cells.max()) + 2 + math.ceil(_TAIL * math.sqrt(NOISE) / _STEP)
    # A value between two places counts at both.
    above = places - cells
    mass = np.bincount(cells, share * (1.0 - above), size).astype(np.float64)
    mass += np.bincount(cells + 1, share * above, size)
    gaussian = np.exp(-2.0 * NOISE * np.square(np.pi * np.fft.rfftfreq(size, _STEP)))
    mass = np.fft.irfft(np.fft.rfft(mass) * gaussian, size)
    mass = mass[mass > 0]  # but for rounding all are
    entropy = -np.sum(mass * np.log2(mass / _STEP))
    return max(0.0, float(entropy - 0.5 * math.log2(2.0 * math.pi * math.e * NOISE)))


def redundant_units(
    pairwise: Tensor, information: Tensor | None = None, threshold: float = 0.6
) -> Redundancy:
    """Units of which another one says enough.

    Units are visited from the most informative to the least, of equal ones the earlier first. A
    unit k is redundant if a unit i that stays has I(T_i; T_k) / H(T_k) >= `threshold`: so much of
    what k says is said by i. (It is the unit k's own entropy that divides: a unit that tells less
    than another is covered by it, not the other way round.) Else it stays. So of a group that
    says the same, the most informative stays.

    A unit without entropy is not redundant but says nothing (`less_effective_units`); one that is
    NaN stays and covers none.

    Args:
        pairwise: `[units, units]`, from `pairwise_information`.
        information: `[units]`, what makes a unit worth keeping, such as the `labels` of
            `quantile_information`; None for its entropy.
        threshold: share of the entropy, over 0 and at most 1. With 10 bins, 0.6 is reached by
            normal units with a correlation of 0.99, 0.3 by 0.9; 1 by copies only, up to an
            increasing or decreasing function.

    Returns:
        `Redundancy`, NumPy arrays.

    Raises:
        ValueError: other shapes, `threshold` outside its range.

    Source: Fang et al. 2018, who compare kernels by their mutual information.

    Example:

    >>> values = np.random.default_rng(0).normal(size=(1000, 3))
    >>> values[:, 2] = values[:, 0] ** 3
    >>> redundant_units(pairwise_information(values)).kept.tolist()
    [0, 1, 0]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}; expected a number over 0 and at most 1.")
    pairwise = np.asarray(ops.convert_to_numpy(pairwise), np.float64)
    if pairwise.ndim != 2 or pairwise.shape[0] != pairwise.shape[1]:
        raise ValueError(f"pairwise has shape {pairwise.shape}; expected [units, units].")
    entropy = np.diag(pairwise)
    if information is None:
        information = entropy
    information = np.asarray(ops.convert_to_numpy(information), np.float64)
    if information.shape != entropy.shape:
        raise ValueError(
            f"information has shape {information.shape} and pairwise {pairwise.shape}; expected "
            "[units] and [units, units]."
        )
    # Rounding may tell copies apart, by less than this.
    needed = np.where(entropy > 0, (threshold - 1e-5) * entropy, np.inf)
    kept = np.arange(len(entropy))
    stays: list[int] = []
    for unit in np.argsort(-information, kind="stable"):
        covering = [other for other in stays if pairwise[other, unit] >= needed[unit]]
        if covering:
            kept[unit] = max(covering, key=lambda other: pairwise[other, unit])
        else:
            stays.append(unit)
    return Redundancy(kept != np.arange(len(entropy)), kept)


def less_effective_units(
    information: Tensor, threshold: float = 0.1, flatness: float = 0.1
) -> np.ndarray:
    """Units that say little of the class and, where the past is known, never said anything else.

    With M the largest information of the layer (of the last epoch; 0 if that is negative), a unit
    is flagged if its own is at most `threshold` M and, given several epochs, its largest and
    smallest over the epochs are at most `flatness` M apart. If no unit says anything, M is 0 and
    all that have always said nothing are flagged.

    Args:
        information: `[units]`, or `[epochs, units]` with the last epoch last: I(T_k; Y), such as
            the `labels` of `quantile_information`.
        threshold: share of M, in 0..1.
        flatness: share of M, not negative.

    Returns:
        bool NumPy array `[units]`; False for a unit that is NaN in any epoch.

    Raises:
        ValueError: other shapes, no epochs or units, shares outside their ranges.

    Source: Fang et al. 2018, who look for kernels whose information stays low.

    Example:

    >>> epochs = [[0.0, 0.02, 0.5], [0.6, 0.02, 0.05], [1.0, 0.03, 0.05]]
    >>> less_effective_units(epochs[-1]).tolist()
    [False, True, True]
    >>> less_effective_units(epochs).tolist()  # the last one has seen better days
    [False, True, False]
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}; expected a number in 0..1.")
    if not flatness >= 0:
        raise ValueError(f"flatness={flatness}; expected a number that is not negative.")
    epochs = np.asarray(ops.convert_to_numpy(information), np.float64)
    if epochs.ndim not in (1, 2) or 0 in epochs.shape:
        raise ValueError(
            f"information has shape {epochs.shape}; expected [units] or [epochs, units]."
        )
    epochs = np.atleast_2d(epochs)
    last = epochs[-1]
    largest = np.max(last, initial=0.0, where=~np.isnan(last))
    return (last <= threshold * largest) & (np.ptp(epochs, axis=0) <= flatness * largest)


def _quantile_codes(values: Tensor, weight: Tensor, bins: int) -> Tensor:
    """Bin 0..bins - 1 of every value, int `[samples, units]`.

    The lower edge of bin k is the first value, in order, below and at which more than the share
    k / bins of the weight lies.
    """
    counts = (weight > 0)[:, None]
    last = ops.where(counts, values, np.inf)
    order = ops.argsort(last, axis=0)
    ordered = ops.take_along_axis(last, order, axis=0)
    up_to = ops.cumsum(ops.take(weight, order), axis=0)
    codes = ops.zeros_like(order)
    for k in range(1, bins):
        # Multiplied, not divided: exact for whole weights.
        below = ops.cast(up_to * bins <= k * ops.sum(weight), "int32")
        first = ops.minimum(ops.sum(below, axis=0, keepdims=True), ops.shape(order)[0] - 1)
        edge = ops.take_along_axis(ordered, first, axis=0)
        codes = codes + ops.cast(values >= edge, codes.dtype)
    return codes


def _miller_madow(first: Tensor, second: Tensor, pairs: Tensor, samples: Tensor) -> Tensor:
    return (first + second - pairs - 1.0) / (2.0 * math.log(2.0) * samples)


def _occupied(tables: Tensor) -> Tensor:
    """How many cells of the last axis are not empty."""
    return ops.sum(ops.cast(tables > 0, tables.dtype), axis=-1)


def _unknown(values: Tensor, weight: Tensor) -> Tensor:
    return ops.any(ops.logical_and(ops.isnan(values), (weight > 0)[:, None]), axis=0)


def _units(values: Tensor) -> Tensor:
    values = at_least_float32(values)
    if len(values.shape) != 2 or 0 in values.shape:
        raise ValueError(
            f"values have shape {tuple(values.shape)}; expected [samples, units], none of them 0: "
            "reduce each kernel's map to a number, such as its mean."
        )
    return values


class UnitInformation(Measure):
    """What every unit (neuron, kernel, channel) of a layer tells by itself.

    A unit of a convolution or of a sequence gives a map of values for a sample, one of a Dense
    layer a single value. The estimator `"quantile"`, the fast one, looks at the mean of a unit's
    map, of the labels in bins that hold about equally many samples (`quantile_information`), of the
    input with noise in proportion to its spread (`noisy_information`); `"kernel"` at whole
    maps, with a Gaussian kernel around every sample (`kernel_information`). `"kernel"` depends on
    the scale of activations, and says that everything is known, whatever the labels, where no two
    maps lie near one another: look at what is shuffled.

    `per_class`, `whole` (`labels`, `input`) and `shuffled` (`labels`) are means over units;
    `profile.units` has every one of them.

    Args:
        estimator: `"quantile"` or `"kernel"`.
        samples: how many samples are kept. `"kernel"` keeps whole maps of each.
        variance: of the noise of `"kernel"`, as for `kernel_information`; it counts against the
            squared distance of whole maps.
        pairwise: whether units are compared with one another, for `UnitProfile.redundant`: units x
            units numbers for each layer, and for each epoch of a monitor. None for layers of at
            most 1,024 units.
        name: as for every `Measure`.

    Raises:
        ValueError: no such estimator, `samples` no int of at least 2, `variance` not positive.

    Source: Fang et al. 2018.

    Example:

    >>> UnitInformation(estimator="kernel", samples=50)
    UnitInformation(estimator='kernel', samples=50)
    """

    key = "unit_information"
    title = "Information of single units"
    unit = "bits"
    meaning = (
        "What a unit tells of whether a sample is of the class, by itself, averaged over the units "
        "of the layer: the mutual information of its output, in bins that hold about equally many "
        "samples, and that yes or no."
    )
    caveat = (
        "A mean over units: some may tell much where it is low. Units that tell the same each "
        "count. Only what lies above the value for shuffled labels is information. A unit that "
        "tells little may be one that the layers behind need: chosen by this, units could be taken "
        "out no better than at random; choose_units looks at what would be missed."
    )
    whole = {
        "labels": Words(
            "I(unit; labels)",
            "bits",
            "What a unit tells of the class, averaged over units. Shuffled is the same with the "
            "labels of other samples.",
        ),
        "input": Words(
            "I(input; unit)",
            "bits",
            "What a unit, with a little noise added, tells of which sample it was, averaged over "
            "units: at most 1.73, where its values are normal; of one that is on or off at most 1. "
            "(By kernel density of whole maps at most the logarithm of the number of samples.)",
        ),
    }
    panels = (*Measure.panels, Panel("whole"))
    layers = (
        keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D,
    )  # fmt: skip
    needs_classes = True

    def __init__(
        self,
        estimator: str = "quantile",
        samples: int = MOST_SAMPLES,
        variance: float = 0.1,
        pairwise: bool | None = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(
            name, estimator=estimator, samples=samples, variance=variance, pairwise=pairwise
        )
        self.check(
            estimator=(f"one of {ESTIMATORS}", estimator in ESTIMATORS),
            samples=("an int of at least 2", is_int(samples, 2)),
            variance=("a positive number", is_positive(variance)),
            pairwise=("True, False or None", pairwise in (True, False, None)),
        )
        self.samples = samples

    def row(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if self.options["estimator"] == "kernel":
            return unmasked(tensors)
        values, mask = ops.cast(tensors["output"], "float32"), tensors.get("mask")
        places = tuple(range(1, len(values.shape) - 1))
        if mask is None or not places:
            return ops.mean(values, axis=places) if places else values
        weight = like_positions(mask, values)
        total = ops.sum(ops.where(weight > 0, values, 0.0), axis=places)
        return total / ops.maximum(ops.sum(weight, axis=places), 1.0)

    def row_width(self, layer: LayerInfo) -> int | None:
        if self.options["estimator"] == "kernel":
            return super().row_width(layer)
        return layer.units

    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples
    ) -> MeasureResult:
        membership, details = samples.membership, {}
        # Kept samples come in random order: the label of a neighbour is that of any sample.
        others = np.roll(membership, 1, axis=0)
        for layer, rows in zip(layers, samples.layers, strict=True):
            maps = rows.reshape(len(rows), -1, layer.units)
            means = maps.mean(axis=1)
            found, chance = (
                self._estimate(maps, means, weights) for weights in (membership, others)
            )
            of_units = {
                "labels": found.labels,
                "labels_shuffled": chance.labels,
                "input": self._about_input(found, means, membership),
                "per_class": found.per_class,
            }
            pairwise = self.options["pairwise"]
            if layer.units <= WIDEST if pairwise is None else pairwise:
                of_units["pairwise"] = pairwise_information(means)
            details[layer.path] = {k: ops.convert_to_numpy(v) for k, v in of_units.items()}
        every = list(details.values())

        def mean(name: str) -> list[float]:
            return [float(mean_of_known(of_units[name][None])[0]) for of_units in every]

        return MeasureResult(
            [mean_of_known(of_units["per_class"].T) for of_units in every],
            {"labels": mean("labels"), "input": mean("input")},
            {"labels": mean("labels_shuffled")},
            self.unit,
            details=details,
        )

    def _about_input(
        self, found: QuantileInformation | Information, means: np.ndarray, membership: np.ndarray
    ) -> Tensor:
        if isinstance(found, Information):
            return found.input
        return noisy_information(means, membership.sum(axis=-1))

    def _estimate(
        self, maps: np.ndarray, means: np.ndarray, membership: np.ndarray
    ) -> QuantileInformation | Information:
        if self.options["estimator"] == "quantile":
            return quantile_information(means, membership)
        maps = np.moveaxis(maps, -1, 0)
        parts = np.array_split(maps, min(len(maps), -(-maps.size // _BLOCK)))
        variance = self.options["variance"]
        found = [
            map(ops.convert_to_numpy, kernel_information(part, membership, variance))
            for part in parts
        ]
        return Information(*map(np.concatenate, zip(*found, strict=True)))
