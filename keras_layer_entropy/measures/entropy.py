"""Entropy of activation patterns and of on/off states.

Source: Wang, Chen, Wang & Wang, *Layer-Wise Entropy Analysis and Visualization of Neurons
Activation*, ChinaCom 2019, doi 10.1007/978-3-030-41117-6_3, section 2.2, equations 1 and 2.

In this file `samples` are the images of one class and `units` the neurons of one layer. Half
precision is computed in float32; every other floating dtype is kept.
"""

import math

import keras
from keras import ops

from keras_layer_entropy.backend import at_least_float32

PATTERNS = ("mean_then_softmax", "softmax_then_mean", "per_sample")
NORMALIZATIONS = ("log", "none")
FLAT_TOLERANCE = 0.01  # a layer over which the activation entropy falls by less is flat
_TINY = 2.0**-126  # the smallest number that float32 holds with all its digits


def activation_entropy(activations, pattern="mean_then_softmax", normalization="log"):
    """Entropy of the activation pattern of one layer for one set of samples.

    - `"mean_then_softmax"` (the paper): p = softmax(mean over samples), H = -sum_i p_i ln p_i
    - `"softmax_then_mean"`: p = mean over samples of softmax(sample), H as above
    - `"per_sample"`: the mean over samples of each sample's H

    and H / f(n) for n units. A single unit is read as the logit of a two-way choice: its pattern
    is softmax([0, a]).

    Args:
        activations: floating tensor `[..., samples, units]`; for a layer that ends in softmax, the
            logits that go into it (a softmax of softmax outputs is nearly uniform).
        pattern: one of the three readings above.
        normalization: `"log"`, f(n) = ln n, so that the result lies in 0..1; `"none"`, f(n) = 1,
            so that it is in nats; or a callable n -> f(n).

    Returns:
        Tensor `[...]`.

    Raises:
        ValueError: unknown `pattern` or `normalization`, or fewer than two dimensions.

    Source: Wang et al. 2019, section 2.2.

    Example:

    >>> import numpy as np
    >>> logits = 50.0 * np.eye(10)[[3]]  # one sample, a confident one of ten
    >>> round(float(activation_entropy(logits)), 6)
    0.0
    >>> round(float(activation_entropy(np.eye(10)[[3]])), 3)  # the softmax outputs: the trap
    0.968
    """
    check_pattern(pattern)
    activations = two_way(_checked(activations))
    if pattern == "mean_then_softmax":
        nats = softmax_entropy(ops.mean(activations, axis=-2))
    elif pattern == "softmax_then_mean":
        nats = shannon_entropy(ops.mean(ops.softmax(activations, axis=-1), axis=-2))
    else:
        nats = ops.mean(softmax_entropy(activations), axis=-1)
    return nats / maximum_entropy(activations.shape[-1], normalization)


def instability(activations, normalization="log"):
    """How much the pattern varies from sample to sample: H(mean softmax) - mean H(softmax).

    This is the generalised Jensen-Shannon divergence of the samples' patterns, in other words the
    mutual information between the sample and the neuron that its pattern draws: 0 when all
    samples share one pattern.

    Args:
        activations: as in `activation_entropy`.
        normalization: as in `activation_entropy`.

    Returns:
        Tensor `[...]`, not negative.

    Source: the gap that Wang et al. 2019 speak of as the stability of a layer.

    Example:

    >>> import numpy as np
    >>> one_pattern = 50.0 * np.eye(4)[[1, 1]]
    >>> two_patterns = 50.0 * np.eye(4)[[1, 2]]
    >>> round(float(instability(one_pattern)), 6), round(float(instability(two_patterns)), 6)
    (0.0, 0.5)
    """
    return ops.maximum(
        activation_entropy(activations, "softmax_then_mean", normalization)
        - activation_entropy(activations, "per_sample", normalization),
        0.0,
    )


def state_entropy(pre_activations):
    """Mean over units of the binary entropy of the share of samples for which a unit is on.

    q_i = share of samples with pre-activation > 0; H = mean_i h(q_i),
    h(q) = -q log2 q - (1 - q) log2(1 - q).

    Scaling the weights by a positive factor does not change it.

    Args:
        pre_activations: tensor `[..., samples, units]`, what goes into the activation function.

    Returns:
        Tensor `[...]`, bits, in 0..1.

    Source: for the samples of one class, as the PSP-entropy of Tartaglione, Bragagnolo & Grangetto,
    *Pruning artificial neural networks: a way to find well-generalizing, high-entropy sharp
    minima*, ICANN 2020, arXiv 2004.14765; for all samples, as EASIER, Quétu, Liao & Tartaglione,
    *The Simpler The Better: An Entropy-Based Importance Metric To Reduce Neural Networks' Depth*,
    ECML PKDD 2024, arXiv 2404.18949.

    Example:

    >>> import numpy as np
    >>> float(state_entropy(np.array([[1.0, 2.0], [1.0, -2.0]])))  # always on; on half the time
    0.5
    """
    on = ops.cast(_checked(pre_activations) > 0, "float32")
    return ops.mean(binary_entropy(ops.mean(on, axis=-2)), axis=-1)


def activation_pattern(activations):
    """The activation pattern of one layer: p = softmax(mean over samples).

    Args:
        activations: tensor `[..., samples, units]`.

    Returns:
        Tensor `[..., units]` of probabilities (two of them for a single unit).

    Source: Wang et al. 2019, equation 1.

    Example:

    >>> import numpy as np
    >>> np.asarray(activation_pattern(np.zeros((3, 4)))).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    return ops.softmax(ops.mean(two_way(_checked(activations)), axis=-2), axis=-1)


def softmax_entropy(logits):
    """Entropy of softmax(logits) over the last axis, in nats.

    H = ln sum_i exp(z_i) - sum_i p_i z_i with z = logits - max(logits): both terms are
    nonnegative, so nothing cancels.

    Args:
        logits: floating tensor `[..., units]`.

    Returns:
        Tensor `[...]`, nats, in 0..ln(units).

    Example:

    >>> import math, numpy as np
    >>> round(float(softmax_entropy(np.zeros(8))) / math.log(8), 6)
    1.0
    """
    logits = at_least_float32(logits)
    shifted = logits - ops.max(logits, axis=-1, keepdims=True)
    weights = ops.exp(shifted)
    total = ops.sum(weights, axis=-1)
    return ops.log(total) - ops.sum(weights * shifted, axis=-1) / total


def shannon_entropy(probabilities):
    """Entropy of a distribution over the last axis, -sum_i p_i ln p_i with 0 ln 0 = 0, in nats.

    Args:
        probabilities: nonnegative tensor `[..., outcomes]` that sums to 1 over the last axis.

    Returns:
        Tensor `[...]`, nats.

    Example:

    >>> import numpy as np
    >>> round(float(shannon_entropy(np.array([0.5, 0.5, 0.0]))), 4)
    0.6931
    """
    probabilities = at_least_float32(probabilities)
    return -ops.sum(_x_log_x(probabilities), axis=-1)


def binary_entropy(probability):
    """Entropy of a coin that shows heads with `probability`, element by element, in bits.

    h(q) = -q log2 q - (1 - q) log2(1 - q), h(0) = h(1) = 0.

    Args:
        probability: tensor of any shape, in 0..1.

    Returns:
        Tensor of the same shape, bits, in 0..1.

    Example:

    >>> import numpy as np
    >>> np.asarray(binary_entropy(np.array([0.0, 0.5, 1.0]))).tolist()
    [0.0, 1.0, 0.0]
    """
    q = at_least_float32(probability)
    # 0.0 - x, not -x: no "-0.0" for a coin that always falls on one side.
    return 0.0 - (_x_log_x(q) + _x_log_x(1.0 - q)) / math.log(2.0)


def maximum_entropy(units, normalization="log"):
    """f(n), what an entropy in nats is divided by: `ln n`, 1, or what a callable returns.

    A single unit is a two-way choice, so that f(1) = f(2).

    Args:
        units: number of units, a positive int.
        normalization: `"log"`, `"none"`, or a callable n -> f(n).

    Returns:
        A positive float.

    Raises:
        ValueError: unknown `normalization`, or a callable that returns no positive number.

    Example:

    >>> maximum_entropy(512) == math.log(512), maximum_entropy(512, "none")
    (True, 1.0)
    """
    units = max(units, 2)
    if callable(normalization):
        value = float(normalization(units))
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"normalization({units}) returned {value}; a positive number was expected, "
                "because entropies are divided by it."
            )
        return value
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"Unknown normalization {normalization!r}; expected one of {NORMALIZATIONS} or a "
            "callable n -> f(n)."
        )
    return math.log(units) if normalization == "log" else 1.0


def log_pattern(values):
    """The logarithm of outputs that may be probabilities, and which of them are.

    softmax(log p) is p, as of the logits that p is the softmax of. What a float cannot hold, 0
    among it, is taken for the smallest number that it can: in float32 ln p is at least -87.3.

    Args:
        values: floating tensor `[..., units]`.

    Returns:
        float32 `[..., units]`, and boolean `[..., 1]`: whether none is negative and they add up
        to 1, as far as their dtype tells (to 1e-3, in float16 2^-8, in bfloat16 2^-5).

    Example:

    >>> import numpy as np
    >>> log, fits = log_pattern(np.array([[0.25, 0.75], [0.25, 0.25]], "float32"))
    >>> np.asarray(ops.exp(log)).round(3).tolist(), np.asarray(fits).tolist()
    ([[0.25, 0.75], [0.25, 0.25]], [[True], [False]])
    """
    smallest, tolerance = {"float16": (2.0**-24, 2.0**-8), "bfloat16": (_TINY, 2.0**-5)}.get(
        keras.backend.standardize_dtype(values.dtype), (_TINY, 1e-3)
    )
    values = ops.cast(values, "float32")
    total = ops.sum(values, axis=-1, keepdims=True)
    positive = ops.min(values, axis=-1, keepdims=True) >= 0
    fits = ops.logical_and(positive, ops.abs(total - 1) <= tolerance)
    return ops.log(ops.maximum(values, smallest)), fits


def two_way(activations):
    """`[..., 1]` -> `[..., 2]`: a single unit is the logit of a two-way choice; else unchanged.

    >>> import numpy as np
    >>> np.asarray(two_way(np.array([[3.0]]))).tolist()
    [[0.0, 3.0]]
    """
    if activations.shape[-1] != 1:
        return activations
    return ops.concatenate([ops.zeros_like(activations), activations], axis=-1)


def check_pattern(pattern):
    """Raises ValueError unless `pattern` is one of `PATTERNS`."""
    if pattern not in PATTERNS:
        raise ValueError(f"Unknown pattern {pattern!r}; expected one of {PATTERNS}.")


def _checked(activations):
    activations = at_least_float32(activations)
    if len(activations.shape) < 2:
        raise ValueError(
            f"Activations of shape {tuple(activations.shape)}; expected [..., samples, units]."
        )
    return activations


def _x_log_x(p):
    positive = p > 0
    return ops.where(positive, p * ops.log(ops.where(positive, p, 1.0)), 0.0)
