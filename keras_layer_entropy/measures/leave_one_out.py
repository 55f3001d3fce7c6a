"""Mutual information of a layer by what the other samples tell of each: bounds from below.

In this file everything is in bits. `membership` is `[samples, classes]`, one-hot labels or
nonnegative weights, as in `mutual_information`.

Sources: Barber & Agakov, *The IM Algorithm*, NIPS 2003, for the bound on I(T; Y); Poole, Ozair,
van den Oord, Alemi & Tucker, *On Variational Bounds of Mutual Information*, ICML 2019, for those on
I(X; T) where the noise is known.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_layer_entropy.backend import Tensor
from keras_layer_entropy.measures.one_thread import in_threads
from keras_layer_entropy.measures.pairs import FEATURES, centred_products, check_shapes

# Squared widths of the kernel, against the mean squared distance: 4, each time a quarter.
WIDEST = 4.0
WIDTHS = 7
POWERS = 4.0 ** np.arange(-2, 6)
# Share of the answer that is the guess without the layer: one sample costs 6.6 bits at most.
GUESS = 0.01
NOISE = 0.1  # its variance as a share of what it is added to
ROUNDING = 1e-6  # what it leaves of a constant, against its size, is no variation
LEAST = 1e-30  # of a class that has no sample near
DRAWS = 2**22  # numbers of noise that are drawn at most
FEWEST_DRAWS = 64
SEED = 20180711
# Numbers of a table of all pairs that are worked on at a time: they stay in a processor's cache.
_BLOCK = 2**17


class Bounds(NamedTuple):
    """What a layer tells, in bits, NumPy arrays.

    Attributes:
        input: `[]`, at least so much about which sample it was, I(X; T + noise).
        input_at_most: `[]`, at most so much.
        input_error: `[]`, standard error of `input`.
        labels: `[]`, at least so much about the class, I(T; Y).
        labels_error: `[]`, standard error of it.
        per_class: `[classes]`, at least so much about one class against all others; NaN for a
            class without samples.
    """

    input: np.ndarray
    input_at_most: np.ndarray
    input_error: np.ndarray
    labels: np.ndarray
    labels_error: np.ndarray
    per_class: np.ndarray


def leave_one_out_information(t: Tensor, membership: Tensor, noise: float = NOISE) -> Bounds:
    """Information of a whole layer, bounded by what the other samples tell of each.

    **Of the class.** The other samples guess the class of sample i, those nearby most: with
    s^2 the mean squared distance of two samples, p_c the share of class c and n_c its weight
    without sample i,

    - S_ic = sum_{j != i} membership_jc exp(-|t_i - t_j|^2 / (2 h s^2)) / n_c
    - q(c | t_i) = 0.99 p_c S_ic^b / sum_k p_k S_ik^b + 0.01 p_c
    - I(T; Y) >= mean_i log2(q(y_i | t_i) / p_{y_i})

    which holds of any q that has not seen y_i (Barber & Agakov 2003). The width h and the power b
    are those of a grid of 7 x 8 that say most, of the same samples, which adds some thousandths of
    a bit; with a wide kernel and a large power q is a classifier
    by distance from the classes' means. So shuffled labels say nothing, whatever the scale, the
    width and the number of features, and it is never more than H(Y); it is low where distances in
    the layer do not tell the classes, even where some direction of it does.
    `per_class` is the same of class c and the rest, by the same q.

    **Of the sample.** A layer is a function of its input, so that I(X; T) is infinite, or the
    entropy of the data. With Gaussian noise e in every unit, of variance `noise` times the sum of
    the variances of all units, it is finite, does not change with the scale of the layer or when it
    is rotated, and is at most 1 / (2 noise ln 2); for a Gaussian whose principal directions have
    the shares r of the variance it is sum_r 1/2 log2(1 + r / noise): it counts directions that
    are larger than the noise. With p(. | t_j) the density of t_j + e and N samples,

    - at least the mean of log2 p(t_i + e_i | t_i) / (1/N sum_j p(t_i + e_i | t_j))
    - at most the same with the sum over j != i, divided by N - 1

    in expectation over samples (Poole et al. 2019, their equations for a known p). The noise is
    drawn anew in each call, always the same; a few draws serve all samples where they are wide.

    For arrays, not inside a compiled graph.

    Args:
        t: `[samples, features]`.
        membership: `[samples, classes]`.
        noise: variance of the noise as a share of the layer's, a positive number.

    Returns:
        `Bounds`; NaN where a sample that counts holds what is not finite, or where fewer than two
        count. Estimates below 0 are 0.

    Raises:
        ValueError: other shapes, no samples, `noise` not positive.

    Source: Barber & Agakov 2003; Poole et al. 2019.

    Example:

    >>> labels = np.eye(2)[np.arange(100) % 2]
    >>> found = leave_one_out_information(labels, labels)  # two places, one for each class
    >>> round(float(found.labels), 2), round(float(found.per_class[0]), 2)
    (0.99, 0.99)
    >>> random = np.random.default_rng(0).normal(size=(100, 2))
    >>> round(float(leave_one_out_information(random, labels).labels), 1)
    0.0
    """
    return bounds_of(t, [membership], noise)[0]


def bounds_of(
    t: Tensor,
    memberships: Sequence[Tensor],
    noise: float = NOISE,
    products: np.ndarray | None = None,
) -> list[Bounds]:
    """`leave_one_out_information` of one layer for several ways to put its samples into classes.

    Distances are computed once, from `pairs.centred_products` of `t` where that is given. The
    weights of samples are those of the first way.

    Example:

    >>> labels = np.eye(2)[np.arange(100) % 2]
    >>> found = bounds_of(labels, [labels, np.roll(labels, 50, axis=0), labels[::-1]])
    >>> [round(float(bounds.labels), 2) for bounds in found]
    [0.99, 0.99, 0.99]
    """
    if not 0 < noise < math.inf:
        raise ValueError(f"noise={noise}; expected a positive number.")
    rows = _array(t)
    rows = rows if rows.dtype in ("float32", "float64") else rows.astype("float32")
    of_classes = [_array(membership).astype("float64") for membership in memberships]
    for membership in of_classes:
        check_shapes(rows, membership)
    counts = of_classes[0].sum(axis=-1) > 0
    weights = of_classes[0].sum(axis=-1)[counts]
    of_classes = [x[counts] for x in of_classes]
    if rows.ndim != 2:
        raise ValueError(f"t has shape {rows.shape}; expected [samples, features].")
    if not counts.all():
        rows = rows[counts]
        products = None if products is None else products[np.ix_(counts, counts)]
    least, most = rows.min(initial=np.inf), rows.max(initial=-np.inf)  # NaN where there is one
    if len(rows) < 2 or not np.isfinite([least, most]).all():
        return [_everywhere(np.nan, x) for x in of_classes]
    products = centred_products(rows) if products is None else products
    share = weights / weights.sum()
    total = float(share @ np.diag(products) - share @ products @ share)  # of all features' variance
    largest = float(max(-least, most))
    if total <= rows.shape[1] * (ROUNDING * largest) ** 2:  # all samples are the same
        return [_everywhere(0.0, x) for x in of_classes]
    of_noise = _along_noise(rows, 1.0 / (noise * total) ** 0.5)
    columns = np.concatenate(of_classes, axis=1)
    sums, logarithms = _tables(products, of_noise, total, weights, columns, noise)
    about_input = _about_input(logarithms, weights)
    ends = np.cumsum([x.shape[1] for x in of_classes])[:-1]
    return [
        Bounds(*about_input, *_about_classes(part, x))
        for part, x in zip(np.split(sums, ends, axis=-1), of_classes, strict=True)
    ]


def _array(x: Tensor) -> np.ndarray:
    """In NumPy, without a copy of what is there already: it may be large."""
    return x if isinstance(x, np.ndarray) else np.asarray(ops.convert_to_numpy(x))


def _everywhere(value: float, membership: np.ndarray) -> Bounds:
    """One value for all; NaN for a class without samples."""
    of_layer = np.full((), value)
    per_class = np.where(membership.any(axis=0), value, np.nan)
    return Bounds(of_layer, of_layer, of_layer, of_layer, of_layer, per_class)


def _along_noise(rows: np.ndarray, scale: float) -> np.ndarray:
    """`scale` e_i't_j of centred samples and noise of variance 1, `[draws, samples]`."""
    number, features = rows.shape
    draws = min(number, max(FEWEST_DRAWS, DRAWS // features))
    random = np.random.default_rng(SEED).normal(0.0, scale, (draws, features)).astype(rows.dtype)
    found = np.zeros((draws, number), rows.dtype)
    size = max(1, _BLOCK // number)
    for start in range(0, features, FEATURES):  # so that all are not held once more
        some = slice(start, start + FEATURES)
        part = rows[:, some] - rows[:, some].mean(axis=0, dtype=np.float64).astype(rows.dtype)

        def add(first: int, noise: np.ndarray = random[:, some], t: np.ndarray = part) -> None:
            found[first : first + size] += noise[first : first + size] @ t.T

        in_threads(add, range(0, draws, size))
    return found


def _tables(
    products: np.ndarray,
    of_noise: np.ndarray,
    total: float,
    weights: np.ndarray,
    of_classes: np.ndarray,
    noise: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What every pair of samples is asked for, in one pass over their distances.

    Args:
        products: `[samples, samples]`, t_i't_j.
        of_noise: `[draws, samples]`, e_i't_j / noise, where t is counted against `total`.
        total: the sum of the variances of all features.
        weights: `[samples]`.
        of_classes: `[samples, columns]`, weights in classes.
        noise: variance of the noise as a share of `total`.

    Returns:
        sum_{j != i} of_classes_jc k_ij, `[widths, samples, columns]`, where k_ij is divided by that
        of the nearest sample, which no ratio of classes notices: all would be 0 where the width is
        small against the distances. And ln sum_j weights_j p(t_i + e_i | t_j) / p(t_i + e_i | t_i),
        over all j and over j != i, `[2, samples]`.
    """
    number, dtype = len(weights), of_noise.dtype
    columns, log_weight = of_classes.astype(dtype), np.log(weights).astype(dtype)
    norms = np.diag(products) / total
    sums = np.empty((WIDTHS, number, columns.shape[1]))
    logarithms = np.empty((2, number))
    size = max(1, _BLOCK // number)

    def fill(start: int) -> None:
        block = slice(start, start + size)
        index = np.arange(number)[block]
        itself = np.arange(len(index)), index
        square = products[block] * (-2.0 / total)
        square += norms
        square += norms[block, None]
        square = np.maximum(square, 0.0).astype(dtype)
        square[itself] = 0.0
        ratio = square * dtype.type(-0.5 / noise)
        ratio += of_noise[index % len(of_noise)]
        own = ratio[itself][:, None]
        ratio += log_weight
        largest = ratio.max(axis=1, keepdims=True)
        ratio -= largest
        np.exp(ratio, out=ratio)
        alone = ratio[itself]
        ratio[itself] = 0.0
        rest = ratio.sum(axis=1)
        found = np.log(np.stack([rest + alone, np.maximum(rest, LEAST)]))
        logarithms[:, block] = found + (largest - own)[:, 0]
        square[itself] = np.inf
        square -= square.min(axis=1, keepdims=True)
        square *= dtype.type(-0.25 / WIDEST)
        kernel = np.exp(square, out=square)
        for width in range(WIDTHS):
            sums[width, block] = kernel @ columns
            if width < WIDTHS - 1:  # a quarter of the squared width
                np.square(kernel, out=kernel)
                np.square(kernel, out=kernel)

    in_threads(fill, range(0, number, size))
    return sums, logarithms


def _about_classes(sums: np.ndarray, membership: np.ndarray) -> tuple[np.ndarray, ...]:
    """The bound on I(T; Y), its standard error, and that of each class."""
    of_sample = membership.sum(axis=1)
    count = membership.sum(axis=0)
    share = count / count.sum()
    some = share > 0
    prior, weight = share[some], membership[:, some] / count.sum()
    others = np.maximum(count - membership, LEAST)[:, some]
    some_weight = np.nonzero(weight)  # one of a sample where it has one class
    best, answer = -np.inf, np.broadcast_to(prior, weight.shape)
    for each in sums[..., some]:
        logarithm = np.log(np.maximum(each, LEAST) / others)
        logarithm -= logarithm.max(axis=1, keepdims=True)
        odds = np.exp(POWERS[0] * logarithm)
        for power in range(len(POWERS)):
            if power:  # four times the one before
                odds = np.square(np.square(odds))
            whole = odds @ prior
            guess = (1.0 - GUESS) * odds[some_weight] / whole[some_weight[0]] + GUESS
            value = weight[some_weight] @ np.log2(guess)
            if value > best:
                best, answer = value, ((1.0 - GUESS) * odds / whole[:, None] + GUESS) * prior
    gain = np.log2(answer / prior)
    terms = np.sum(weight * gain, axis=1) * count.sum() / of_sample  # of each sample
    error = _standard_error(terms, of_sample / of_sample.sum())
    per_class = np.full(len(share), np.nan)
    rest = 1.0 - prior
    outside = of_sample[:, None] / count.sum() - weight
    # One class: there is no rest, and nothing to be known.
    against = np.log2(np.where(rest > 0, (1.0 - answer) / np.where(rest > 0, rest, 1.0), 1.0))
    per_class[some] = np.maximum(np.sum(weight * gain + outside * against, axis=0), 0.0)
    return np.maximum(best, 0.0), error, per_class


def _about_input(logarithms: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """The two bounds on I(X; T + noise), and the standard error of the lower one."""
    rest = np.stack([np.full_like(weights, weights.sum()), weights.sum() - weights])
    values = (np.log(rest) - logarithms) / math.log(2.0)
    share = weights / weights.sum()
    low, high = values @ share
    return np.maximum(low, 0.0), np.maximum(high, 0.0), _standard_error(values[0], share)


def _standard_error(values: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Of the mean of independent values that count as `share` says."""
    return np.sqrt(share**2 @ np.square(values - share @ values))
