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

from keras_layer_entropy.backend import Tensor, at_least_float32
from keras_layer_entropy.measures.pairs import (
    Distances,
    checked_samples,
    distances,
    distances_of_products,
    in_blocks,
    row_products,
)

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
    t = at_least_float32(t)  # once: it may be large
    checked = [checked_samples(t, membership) for membership in memberships]
    of_classes = [np.asarray(ops.convert_to_numpy(x), np.float64) for _, x in checked]
    counts = of_classes[0].sum(axis=-1) > 0
    weights = of_classes[0].sum(axis=-1)[counts]
    of_classes = [x[counts] for x in of_classes]
    rows = np.asarray(ops.convert_to_numpy(t))
    if rows.ndim != 2:
        raise ValueError(f"t has shape {rows.shape}; expected [samples, features].")
    if not counts.all():
        rows = rows[counts]
        products = None if products is None else products[np.ix_(counts, counts)]
    least, most = rows.min(initial=np.inf), rows.max(initial=-np.inf)  # NaN where there is one
    if len(rows) < 2 or not np.isfinite([least, most]).all():
        return [_everywhere(np.nan, x) for x in of_classes]
    samples = ops.convert_to_tensor(rows)
    samples = samples - ops.mean(samples, axis=0)
    total = _total_variance(samples, weights)
    largest = float(max(-least, most))
    if total <= rows.shape[1] * (ROUNDING * largest) ** 2:  # all samples are the same
        return [_everywhere(0.0, x) for x in of_classes]
    columns = np.concatenate(of_classes, axis=1)
    of_pairs = distances(samples) if products is None else distances_of_products(products)
    sums, logarithms = _tables(samples, of_pairs, total, weights, columns, noise)
    about_input = _about_input(logarithms, weights)
    ends = np.cumsum([x.shape[1] for x in of_classes])[:-1]
    return [
        Bounds(*about_input, *_about_classes(part, x))
        for part, x in zip(np.split(sums, ends, axis=-1), of_classes, strict=True)
    ]


def _everywhere(value: float, membership: np.ndarray) -> Bounds:
    """One value for all; NaN for a class without samples."""
    of_layer = np.full((), value)
    per_class = np.where(membership.any(axis=0), value, np.nan)
    return Bounds(of_layer, of_layer, of_layer, of_layer, of_layer, per_class)


def _total_variance(t: Tensor, weights: np.ndarray) -> float:
    """The sum of the variances of all features; half the mean squared distance of two samples."""
    share = ops.convert_to_tensor(weights / weights.sum(), t.dtype)
    mean = ops.matmul(share, t)
    return float(ops.sum(share * row_products(t, t)) - ops.sum(ops.square(mean)))


def _tables(
    t: Tensor,
    of_pairs: Distances,
    total: float,
    weights: np.ndarray,
    of_classes: np.ndarray,
    noise: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What every pair of samples is asked for, in one pass over their distances.

    Args:
        t: `[samples, features]`, centred.
        of_pairs: its `Distances`.
        total: what the variances of its features add up to; distances are counted against it.
        weights: `[samples]`.
        of_classes: `[samples, columns]`, weights in classes.
        noise: variance of the noise as a share of `total`.

    Returns:
        sum_{j != i} of_classes_jc k_ij, `[widths, samples, columns]`, where k_ij is divided by that
        of the nearest sample, which no ratio of classes notices: all would be 0 where the width is
        small against the distances. And ln sum_j weights_j p(t_i + e_i | t_j) / p(t_i + e_i | t_i),
        over all j and over j != i, `[2, samples]`.
    """
    number, features = t.shape
    draws = min(number, max(FEWEST_DRAWS, DRAWS // features))
    random = np.random.default_rng(SEED).normal(0.0, noise**0.5, (draws, features))
    along = ops.matmul(ops.convert_to_tensor(random, t.dtype), ops.transpose(t))  # e_i't_j
    along = along / total**0.5
    squares, unit = of_pairs
    square = float(ops.convert_to_numpy(unit).item()) ** 2 / total
    log_weight = ops.convert_to_tensor(np.log(weights), t.dtype)
    columns = ops.convert_to_tensor(of_classes, t.dtype)

    def rows(index: Tensor) -> Tensor:
        square_distance = square * squares(index)
        itself = index[:, None] == ops.arange(number)
        others = ops.where(itself, np.inf, square_distance)
        nearest = ops.min(others, axis=-1, keepdims=True)
        kernel = ops.exp((nearest - others) / (2.0 * WIDEST * 2.0))
        sums = []
        for width in range(WIDTHS):
            sums.append(ops.matmul(kernel, columns))
            if width < WIDTHS - 1:  # a quarter of the squared width
                kernel = ops.square(ops.square(kernel))
        of_noise = ops.take(along, index % draws, axis=0)
        own = ops.take_along_axis(of_noise, index[:, None], axis=1)
        ratio = log_weight - (square_distance / 2.0 + own - of_noise) / noise
        largest = ops.max(ratio, axis=-1, keepdims=True)
        terms = ops.exp(ratio - largest)
        whole = ops.sum(terms, axis=-1)
        rest = ops.sum(ops.where(itself, 0.0, terms), axis=-1)
        logarithms = ops.log(ops.stack([whole, ops.maximum(rest, LEAST)], axis=-1)) + largest
        return ops.concatenate([*sums, logarithms], axis=-1)

    found = np.asarray(ops.convert_to_numpy(in_blocks(rows, number, number)), np.float64)
    sums = found[:, :-2].reshape(number, WIDTHS, -1)
    return np.moveaxis(sums, 1, 0), found[:, -2:].T


def _about_classes(sums: np.ndarray, membership: np.ndarray) -> tuple[np.ndarray, ...]:
    """The bound on I(T; Y), its standard error, and that of each class."""
    of_sample = membership.sum(axis=1)
    count = membership.sum(axis=0)
    share = count / count.sum()
    some = share > 0
    prior, weight = share[some], membership[:, some] / count.sum()
    others = np.maximum(count - membership, LEAST)[:, some]
    best, answer = -np.inf, np.broadcast_to(prior, weight.shape)
    for each in sums[..., some]:
        logarithm = np.log(np.maximum(each, LEAST) / others)
        for power in POWERS:
            logits = power * logarithm + np.log(prior)
            q = np.exp(logits - logits.max(axis=1, keepdims=True))
            q = (1.0 - GUESS) * q / q.sum(axis=1, keepdims=True) + GUESS * prior
            value = np.sum(weight * np.log2(q / prior))
            if value > best:
                best, answer = value, q
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
