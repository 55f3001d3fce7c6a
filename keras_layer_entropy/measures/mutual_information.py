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
informations of the layer plus a little noise (`kernel_information`; I(X; T) of
`leave_one_out_information`) or of its rounded values (`binned_information`), and they depend on how
much.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from keras import ops

from keras_layer_entropy.backend import Tensor
from keras_layer_entropy.measures.kept_samples import one_hot
from keras_layer_entropy.measures.leave_one_out import Bounds, bounds_of
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
from keras_layer_entropy.measures.pairs import checked_samples, distances, in_blocks


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
    """sum_j k_ij membership_jc, `[..., samples, classes]`, by blocks of rows of k; t is centred."""
    of_pairs = distances(t)
    exponent = -ops.square(of_pairs.unit) / (2.0 * variance)

    def rows(index: Tensor) -> Tensor:
        sums = ops.matmul(ops.exp(exponent * of_pairs.rows(index)), membership)
        return ops.moveaxis(sums, -2, 0)

    return ops.moveaxis(in_blocks(rows, t.shape[-2], math.prod(t.shape[:-1])), 0, -2)


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


def check_bins(bins: object) -> None:
    """Raises ValueError where `bins` is no positive int."""
    if not isinstance(bins, numbers.Integral) or bins < 1:
        raise ValueError(f"bins={bins!r}; expected a positive int.")


ESTIMATORS = {"leave_one_out": "noise", "kernel": "variance", "bins": "bins"}
_CAVEATS = {
    "leave_one_out": (
        "A bound from below, from at most some thousand samples: it is what the other samples, "
        "by their distances in the layer, tell of the class of each. Where it is low, the layer "
        "may hold more that distances do not show: the linear probe looks for that."
    ),
    "kernel": (
        "Estimated by kernel density from at most some thousand samples: where no two samples lie "
        "near one another it says that everything is known, even of random labels. It depends on "
        "the scale of activations and on the variance of the noise."
    ),
    "bins": (
        "Estimated by rounding to bins from at most some thousand samples: where no two samples "
        "are in the same bins it says that everything is known, even of random labels. It depends "
        "on the number of bins."
    ),
}
_OF_SAMPLES = {
    "leave_one_out": "It counts directions in which samples differ by more than the noise: where "
    "that is a tenth of the layer's whole variance, as usual, 1.7 bits for a single one and 7.2 "
    "for very many alike. A bound from below.",
    "kernel": "At its largest, the binary logarithm of the number of samples, it says that the "
    "noise is small against the distances, and no more.",
    "bins": "At its largest, the binary logarithm of the number of samples, it says that bins are "
    "small against the distances, and no more.",
}


def _whole(estimator: str) -> dict[str, Words]:
    """The numbers of a layer as a whole, in words."""
    return {
        "input": Words(
            "I(input; layer)",
            "bits",
            "I(X; T): how well the layer's output, with a little noise added or rounded, tells "
            "samples apart.",
            _OF_SAMPLES[estimator],
        ),
        "labels": Words(
            "I(layer; labels)",
            "bits",
            "I(T; Y): what the layer tells of the class; with ten classes of one size 3.32 bits at "
            "most. Shuffled is the same with the labels of other samples: only what lies above it "
            "is information.",
            _CAVEATS[estimator],
        ),
    }


class MutualInformation(Measure):
    """Mutual information of layers, with the class and with the input.

    `per_class` is the information between the layer and whether a sample is of the class; `whole`
    holds `input` I(X; T) and `labels` I(T; Y), and `shuffled` the latter with the labels of other
    samples. By `"leave_one_out"` both are bounds from below, and `details` of a layer holds
    `input_at_most`, `input_error` and `labels_error`.

    Args:
        estimator: `"leave_one_out"` (`leave_one_out_information`), `"kernel"`
            (`kernel_information`, the kernel density of Saxe et al. with one variance for all
            layers) or `"bins"` (`binned_information`).
        noise: variance of the noise of `"leave_one_out"` as a share of the layer's; None for 0.1.
        variance: of the noise of `"kernel"`, thought to be added to each unit; None for 0.1.
        bins: number of bins of `"bins"`; None for 30.
        samples: how many samples are compared.
        name: as for every `Measure`.

    Raises:
        ValueError: no such estimator, an option of another one, `noise`, `variance` or `bins` not
            positive, `samples` no int of at least 2.

    Source: Fang et al. 2018; Barber & Agakov 2003; Poole et al. 2019; Kolchinsky & Tracey 2017.

    Example:

    >>> MutualInformation("bins", bins=20)
    MutualInformation(estimator='bins', bins=20)
    """

    key = "mutual_information"
    title = "Information on a class"
    unit = "bits"
    meaning = (
        "What the layer tells of whether a sample is of the class: the mutual information of "
        "the layer's output and that yes or no. With ten classes of one size it is 0.469 bits at "
        "most."
    )
    caveat = _CAVEATS["leave_one_out"]
    whole = _whole("leave_one_out")
    panels = (
        *Measure.panels,
        Panel("whole"),
        Panel("plane", {"title": "Information plane, mutual information", "bounded": True}),
    )

    def __init__(
        self,
        estimator: str = "leave_one_out",
        noise: float | None = None,
        variance: float | None = None,
        bins: int | None = None,
        samples: int = MOST_SAMPLES,
        *,
        name: str | None = None,
    ) -> None:
        own = {"noise": noise, "variance": variance, "bins": bins}
        super().__init__(name, estimator=estimator, **own, samples=samples)
        self.check(estimator=(f"one of {tuple(ESTIMATORS)}", estimator in ESTIMATORS))
        own.pop(ESTIMATORS[estimator])
        self.check(
            noise=("a positive number, or None", noise is None or is_positive(noise)),
            variance=("a positive number, or None", variance is None or is_positive(variance)),
            bins=("a positive int, or None", bins is None or is_int(bins)),
            samples=("an int of at least 2", is_int(samples, 2)),
        )
        words = f"None with estimator={estimator!r}"
        self.check(**{option: (words, value is None) for option, value in own.items()})
        self.samples = samples
        self.caveat = _CAVEATS[estimator]
        self.whole = _whole(estimator)

    @classmethod
    def from_saved(
        cls, name: str, options: Mapping[str, Any], result: MeasureResult, widths: Sequence[int]
    ) -> Self:
        if "estimator" not in options:  # before there was a choice
            bins, variance = options.get("bins"), options.get("variance")
            which = "kernel" if bins is None else "bins"
            own = {"variance": variance} if bins is None else {"bins": bins}
            options = {"estimator": which, **own, "samples": options["samples"]}
        return cls(name=name, **options)

    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples
    ) -> MeasureResult:
        membership = one_hot(samples.membership)
        # Kept samples come in random order: the label of a neighbour is that of any sample.
        ways = [membership, np.roll(membership, 1, axis=0)]
        several = (samples.membership > 0).sum(axis=1).max() > 1
        if several:  # of each class by itself, whether it is among a sample's
            inside = (samples.membership > 0).T
            ways += [np.stack([x, ~x], axis=1).astype(membership.dtype) for x in inside]
        per_class, details = [], {}
        whole: dict[str, list[float]] = {"input": [], "labels": []}
        chance = []
        for number, (layer, rows) in enumerate(zip(layers, samples.layers, strict=True)):
            # As other measures: of few features they are made faster than they are worth keeping.
            by_products = rows.shape[1] > len(rows) and self.options["estimator"] == "leave_one_out"
            products = samples.products(number, rows) if by_products else None
            found, shuffled, *single = self._estimate(rows, ways, products)
            for key, values in whole.items():
                values.append(float(getattr(found, key)))
            chance.append(float(shuffled.labels))
            of_classes = [float(x.labels) for x in single]
            per_class.append(
                np.where(inside.any(axis=1), of_classes, np.nan)
                if several
                else np.asarray(ops.convert_to_numpy(found.per_class))
            )
            if isinstance(found, Bounds):
                names = ("input_at_most", "input_error", "labels_error")
                details[layer.path] = {key: getattr(found, key) for key in names}
        return MeasureResult(per_class, whole, {"labels": chance}, self.unit, details=details)

    def _estimate(
        self, rows: np.ndarray, ways: Sequence[np.ndarray], products: np.ndarray | None
    ) -> Sequence[Information | Bounds]:
        """What is found in a layer for each way to put its samples into classes."""
        estimator = self.options["estimator"]
        option = ESTIMATORS[estimator]
        own = {} if self.options[option] is None else {option: self.options[option]}
        if estimator == "leave_one_out":
            return bounds_of(rows, ways, products=products, **own)
        estimate = kernel_information if estimator == "kernel" else binned_information
        return [estimate(rows, membership, **own) for membership in ways]
