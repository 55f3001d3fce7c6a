"""Mutual information of layers and of convolution kernels, with the input and with the labels.

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

import math
import numbers
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_layer_entropy.backend import at_least_float32

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

    input: object
    labels: object
    per_class: object


class UnitInformation(NamedTuple):
    """What each unit tells by itself, in bits.

    Attributes:
        entropy: `[units]`, of the binned unit, H(T_k).
        labels: `[units]`, about the class, I(T_k; Y).
        per_class: `[units, classes]`, about one class against all others; NaN for a class without
            samples.
    """

    entropy: object
    labels: object
    per_class: object


class Redundancy(NamedTuple):
    """Which units only repeat others.

    Attributes:
        redundant: bool `[units]`.
        kept: int `[units]`, the unit that says the same; its own index for a unit that stays.
    """

    redundant: np.ndarray
    kept: np.ndarray


def kernel_information(t, membership, variance=0.1):
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
    t, membership = _checked(t, membership)
    if None in t.shape[:-1]:
        raise ValueError(
            f"t has shape {tuple(t.shape)}; expected a static number of samples: give the "
            "tf.function an input signature without None in that place."
        )
    t = _centred(t, membership)  # under the same name: the memory of the other is free again
    return _information(membership, _kernel_sums(t, membership, variance))


def binned_information(t, membership, bins=30, limits=None):
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
    _check_bins(bins)
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError(f"limits={limits}; expected two numbers, the smaller one first.")
    t, membership = (ops.convert_to_numpy(x) for x in _checked(t, membership))
    counts = (membership > 0).any(axis=-1)
    if not counts.any():
        raise ValueError("All of membership is 0; expected a sample that belongs to a class.")
    t, membership = t[..., counts, :], membership[counts]
    tables = [
        _symbol_table(rows, membership, bins, limits) for rows in t.reshape(-1, *t.shape[-2:])
    ]
    tables = [ops.convert_to_tensor(table) for table in tables]
    found = zip(*(_information(table, table) for table in tables), strict=True)
    stacked = (ops.stack(list(part)) for part in found)
    return Information(*(ops.reshape(x, (*t.shape[:-2], *x.shape[1:])) for x in stacked))


def quantile_information(values, membership, bins=10):
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
        `UnitInformation`; NaN for a unit that is NaN in a sample that counts, and if none counts.
        (Infinite values are the largest or smallest ones.)

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
    values, membership = _checked(_units(values, bins), membership)
    weight = ops.sum(membership, axis=-1)
    codes = _quantile_codes(values, weight, bins)
    in_bin = (ops.cast(codes == k, values.dtype) for k in range(bins))
    tables = ops.stack([ops.matmul(ops.transpose(on), membership) for on in in_bin], axis=1)
    plain = _information(tables, tables)  # [units, bins, classes]

    rest = _of_the_others(tables)
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
    return UnitInformation(
        ops.where(unknown, np.nan, entropy),
        ops.where(unknown, np.nan, labels),
        ops.where(unknown[:, None], np.nan, per_class),
    )


def pairwise_information(values, bins=10):
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
    values = _units(values, bins)
    weight = ops.ones_like(values[:, 0])
    samples, units = ops.shape(values)
    number = ops.sum(weight)
    codes = _quantile_codes(values, weight, bins)
    one_hot = ops.cast(codes[..., None] == ops.arange(bins), values.dtype)
    one_hot = ops.reshape(one_hot, (samples, units * bins))
    of_bins = _occupied(ops.sum(ops.reshape(one_hot, (samples, units, bins)), axis=0))

    def rows(index):
        columns = ops.reshape(index[:, None] * bins + ops.arange(bins), (-1,))
        some = ops.take(one_hot, columns, axis=1)
        tables = ops.reshape(ops.matmul(ops.transpose(some), one_hot), (-1, bins, units, bins))
        tables = ops.transpose(tables, (0, 2, 1, 3))  # [rows, units, bins, bins]
        total = ops.sum(tables, axis=-1, keepdims=True)
        plain = ops.sum(_gain(tables, tables, total, number), axis=-1)
        pairs = _occupied(ops.reshape(tables, (-1, units, bins * bins)))
        of_rows = ops.take(of_bins, index)[:, None]
        return plain + _miller_madow(of_rows, of_bins, pairs, number)

    found = _in_blocks(rows, values.shape[1], values.shape[1] * bins * bins)
    unknown = _unknown(values, weight)
    return ops.where(ops.logical_or(unknown[:, None], unknown), np.nan, found)


def redundant_units(pairwise, information=None, threshold=0.6):
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
    kept, stays = np.arange(len(entropy)), []
    for unit in np.argsort(-information, kind="stable"):
        covering = [other for other in stays if pairwise[other, unit] >= needed[unit]]
        if covering:
            kept[unit] = max(covering, key=lambda other: pairwise[other, unit])
        else:
            stays.append(unit)
    return Redundancy(kept != np.arange(len(entropy)), kept)


def less_effective_units(information, threshold=0.1, flatness=0.1):
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


def _centred(t, membership):
    """Minus the mean of the samples that count; the others, which must not spoil them, are 0."""
    counts = ops.any(membership > 0, axis=-1)[:, None]
    t = ops.where(counts, t, 0.0)
    number = ops.maximum(ops.sum(ops.cast(counts, t.dtype)), 1.0)
    return ops.where(counts, t - ops.sum(t, axis=-2, keepdims=True) / number, 0.0)


def _kernel_sums(t, membership, variance):
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

    def rows(index):
        def select(x, axis=-2):
            return ops.take(x, index, axis=axis)

        exact = _sums(select(square, -1), square) - 2.0 * _products(select(whole), whole)
        rest = _products(select(whole), part) + _products(select(part), t)
        rest = _sums(select(remainder, -1), remainder) - 2.0 * rest
        distance = ops.maximum(exact + rest, 0.0)
        itself = index[:, None] == ops.arange(t.shape[-2])
        distance = ops.where(itself, 0.0 * distance, distance)  # not 0.0: NaN stays
        sums = ops.matmul(ops.exp(exponent * distance), membership)
        return ops.moveaxis(sums, -2, 0)

    return ops.moveaxis(_in_blocks(rows, t.shape[-2], math.prod(t.shape[:-1])), 0, -2)


def _row_products(a, b):
    return ops.einsum("...if,...if->...i", a, b)


def _products(a, b):
    return ops.einsum("...if,...jf->...ij", a, b)


def _sums(a, b):
    return a[..., :, None] + b[..., None, :]


def _in_blocks(function, number, row):
    """`function(indices)` of 0..`number` in blocks, `[number, ...]`, for rows of `row` numbers."""
    blocks = -(-number // max(1, BLOCK // row))
    if blocks == 1:  # JAX would compile the loop anew in every call
        return function(ops.arange(number))
    size = -(-number // blocks)
    # The last block is filled up with its last row.
    index = np.minimum(np.arange(blocks * size), number - 1).reshape(blocks, size)
    found = ops.map(function, ops.convert_to_tensor(index, "int32"))
    return ops.reshape(found, (blocks * size, *found.shape[2:]))[:number]


def _information(weights, sums):
    """`Information` from what stands in each place.

    Args:
        weights: `[..., places, classes]`, the weight of each class in each place.
        sums: `[..., places, classes]`, the weight of each class around it, itself included.
    """
    total = ops.sum(sums, axis=-1, keepdims=True)
    weight = ops.sum(weights, axis=-1, keepdims=True)
    number = ops.sum(weights, axis=(-2, -1))[..., None, None]
    gains = _gain(weights, sums, total, number)
    rest = _gain(_of_the_others(weights), _of_the_others(sums), total, number)
    some = ops.sum(weights, axis=-2) > 0
    # H(T) is what is gained by knowing the place. Rounding may leave less than nothing.
    surprise = ops.where(weight > 0, weight * ops.log2(total / number), 0.0)
    return Information(
        ops.maximum(-ops.sum(surprise, axis=(-2, -1)) / number[..., 0, 0], 0.0),
        ops.maximum(ops.sum(gains, axis=-1), 0.0),
        ops.where(some, ops.maximum(gains + rest, 0.0), np.nan),
    )


def _gain(weights, sums, total, number):
    """sum_i w_ic / n log2(p(t_i | c) / p(t_i)), `[..., classes]`."""
    ratio = (sums / ops.sum(weights, axis=-2, keepdims=True)) / (total / number)
    terms = ops.where(weights > 0, weights * ops.log2(ratio), 0.0)
    return ops.sum(terms / number, axis=-2)


def _of_the_others(weights):
    """The sum over all other classes, for each class: without a difference that might cancel."""
    classes = weights.shape[-1]
    return ops.matmul(weights, 1.0 - ops.eye(classes, dtype=weights.dtype))


def _symbol_table(rows, membership, bins, limits):
    """Weight of each class in each symbol, `[symbols, classes]`."""
    if not np.isfinite(rows).all():
        return np.full((1, membership.shape[-1]), np.nan)
    low, high = (float(x) for x in limits or (rows.min(), rows.max()))
    scale = bins / (high - low) if high > low else 0.0
    symbols = {}
    place = []
    for row in rows:  # not np.unique(axis=0): it takes minutes for thousands of features
        codes = np.clip(np.floor((row.astype("float64") - low) * scale), 0, bins - 1)
        place.append(symbols.setdefault(codes.tobytes(), len(symbols)))
    table = np.zeros((len(symbols), membership.shape[-1]))
    np.add.at(table, place, membership)
    return table


def _quantile_codes(values, weight, bins):
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


def _miller_madow(first, second, pairs, samples):
    return (first + second - pairs - 1.0) / (2.0 * math.log(2.0) * samples)


def _occupied(tables):
    """How many cells of the last axis are not empty."""
    return ops.sum(ops.cast(tables > 0, tables.dtype), axis=-1)


def _unknown(values, weight):
    return ops.any(ops.logical_and(ops.isnan(values), (weight > 0)[:, None]), axis=0)


def _checked(t, membership):
    t = at_least_float32(t)
    membership = ops.cast(membership, t.dtype)
    fits = len(t.shape) > 1 and len(membership.shape) == 2 and membership.shape[1] != 0
    if not fits or 0 in t.shape or len({t.shape[-2], membership.shape[0]} - {None}) > 1:
        raise ValueError(
            f"t has shape {tuple(t.shape)} and membership {tuple(membership.shape)}; expected "
            "[..., samples, features] and [samples, classes], none of them 0."
        )
    return t, membership


def _units(values, bins):
    _check_bins(bins)
    values = at_least_float32(values)
    if len(values.shape) != 2 or 0 in values.shape:
        raise ValueError(
            f"values have shape {tuple(values.shape)}; expected [samples, units], none of them 0: "
            "reduce each kernel's map to a number, such as its mean."
        )
    return values


def _check_bins(bins):
    if not isinstance(bins, numbers.Integral) or bins < 1:
        raise ValueError(f"bins={bins!r}; expected a positive int.")
