"""Entropy of activation patterns and of on/off states.

Source: Wang, Chen, Wang & Wang, *Layer-Wise Entropy Analysis and Visualization of Neurons
Activation*, ChinaCom 2019, doi 10.1007/978-3-030-41117-6_3, section 2.2, equations 1 and 2.

In this file `samples` are the images of one class and `units` the neurons of one layer. Half
precision is computed in float32; every other floating dtype is kept.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.backend import Tensor, at_least_float32
from keras_layer_entropy.measures.class_sums import (
    ClassIds,
    ClassMeans,
    any_per_class,
    like_positions,
)
from keras_layer_entropy.measures.measure import (
    LayerInfo,
    Measure,
    MeasureResult,
    Profile,
    Samples,
    listed,
)

PATTERNS = ("mean_then_softmax", "softmax_then_mean", "per_sample")
NORMALIZATIONS = ("log", "none")
FLAT_TOLERANCE = 0.01  # a layer over which the activation entropy falls by less is flat
NOISE = 5e-4  # less than the third digit shows is no rise
# A name out of `NORMALIZATIONS`, or a function n -> f(n).
Normalization = str | Callable[[int], float]
_TINY = 2.0**-126  # the smallest number that float32 holds with all its digits


def activation_entropy(
    activations: Tensor, pattern: str = "mean_then_softmax", normalization: Normalization = "log"
) -> Tensor:
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


def instability(activations: Tensor, normalization: Normalization = "log") -> Tensor:
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


def state_entropy(pre_activations: Tensor) -> Tensor:
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


def activation_pattern(activations: Tensor) -> Tensor:
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


def softmax_entropy(logits: Tensor) -> Tensor:
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


def shannon_entropy(probabilities: Tensor) -> Tensor:
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


def binary_entropy(probability: Tensor) -> Tensor:
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


def maximum_entropy(units: int, normalization: Normalization = "log") -> float:
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


def log_pattern(values: Tensor) -> tuple[Tensor, Tensor]:
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


def two_way(activations: Tensor) -> Tensor:
    """`[..., 1]` -> `[..., 2]`: a single unit is the logit of a two-way choice; else unchanged.

    >>> import numpy as np
    >>> np.asarray(two_way(np.array([[3.0]]))).tolist()
    [[0.0, 3.0]]
    """
    if activations.shape[-1] != 1:
        return activations
    return ops.concatenate([ops.zeros_like(activations), activations], axis=-1)


def check_pattern(pattern: str) -> None:
    """Raises ValueError unless `pattern` is one of `PATTERNS`."""
    if pattern not in PATTERNS:
        raise ValueError(f"Unknown pattern {pattern!r}; expected one of {PATTERNS}.")


def _checked(activations: Tensor) -> Tensor:
    activations = at_least_float32(activations)
    if len(activations.shape) < 2:
        raise ValueError(
            f"Activations of shape {tuple(activations.shape)}; expected [..., samples, units]."
        )
    return activations


def _x_log_x(p: Tensor) -> Tensor:
    positive = p > 0
    return ops.where(positive, p * ops.log(ops.where(positive, p, 1.0)), 0.0)


class Undecided(keras.metrics.Metric):
    """The state of a measure of the patterns of an output layer whose function nobody knows.

    Where every row of its outputs, over the whole pass, turns out to be a distribution, the layer
    ends in a softmax by another name, and what counts is ln p, in place of the logits; else the
    outputs (`log_pattern`).

    Args:
        given, logs: two states of the measure.
    """

    takes_ids = True

    def __init__(self, given: Any, logs: Any, name: str | None = None) -> None:
        super().__init__(name=name, dtype="float32")
        self._given, self._logs = given, logs
        self._misfits = self.add_variable((), "zeros", "float32", name="misfits")

    def update_state(
        self, values: Tensor, membership: Tensor | ClassIds, mask: Tensor | None = None
    ) -> None:
        """Adds a batch, as to each of the two."""
        logs, fits = log_pattern(values)
        misfit = ops.logical_not(fits)
        if mask is not None:
            misfit = ops.logical_and(misfit, like_positions(mask, values) > 0)
        misfits = ops.sum(ops.cast(any_per_class(misfit, membership), "float32"))
        self._misfits.assign(self._misfits + misfits)
        self._given.update_state(values, membership, mask)
        self._logs.update_state(logs, membership, mask)

    def merge_state(self, statistics: Iterable["Undecided"]) -> None:
        """Adds the states of others."""
        for other in statistics:
            self._given.merge_state([other._given])
            self._logs.merge_state([other._logs])
            self._misfits.assign(self._misfits + other._misfits)

    def not_finite(self) -> np.ndarray:
        """As of each of the two."""
        return self._given.not_finite()

    @property
    def decided(self) -> Any:
        """The state that counts."""
        return self._given if ops.convert_to_numpy(self._misfits) else self._logs


class _Normalized(Measure):
    """A measure of patterns that is divided by the largest it could be."""

    reads = "pattern"

    def __init__(self, normalization: Normalization, name: str | None, **options: Any) -> None:
        if callable(normalization) and not isinstance(normalization, _Function):
            normalization = _Function(normalization)
        if not isinstance(normalization, _Function) or normalization.can_compute:
            maximum_entropy(2, normalization)
        super().__init__(name, **options, normalization=normalization)

    @property
    def unit(self) -> str:
        known: dict[str | None, str] = {"log": "normalised, 0 to 1", "none": "nats"}
        return known.get(self._word, "normalised")

    @property
    def largest(self) -> float | None:
        return 1.0 if self._word == "log" else None

    @property
    def _word(self) -> str | None:
        normalization = self.options["normalization"]
        return normalization if isinstance(normalization, str) else None

    def normalizer(self, widths: Sequence[int]) -> list[float]:
        return [maximum_entropy(width, self.options["normalization"]) for width in widths]

    @classmethod
    def from_saved(
        cls, name: str, options: Mapping[str, Any], result: MeasureResult, widths: Sequence[int]
    ) -> Self:
        if options["normalization"] not in NORMALIZATIONS:  # the name of a function
            normalizer = [] if result.normalizer is None else result.normalizer.tolist()
            pairs = zip(widths, normalizer, strict=False)
            known = {max(width, 2): value for width, value in pairs if np.isfinite(value)}
            normalization = _Function(None, options["normalization"], known)
            options = {**options, "normalization": normalization}
        return cls(name=name, **options)


class _Function:
    """A normalization of one's own that knows its name and what it gave.

    That is all that is left of it where it was saved or pickled.
    """

    def __init__(
        self,
        function: Callable[[int], float] | None,
        name: str | None = None,
        known: Mapping[int, float] | Iterable[tuple[int, float]] = (),
    ) -> None:
        self._function: Any = function
        self.__name__: Any = name or getattr(function, "__name__", type(function).__name__)
        self._known = dict(known)

    @property
    def can_compute(self) -> bool:
        """Whether the function itself is there."""
        return self._function is not None

    def __call__(self, units: int) -> float:
        if units not in self._known:
            if not self.can_compute:
                raise ValueError(
                    f"Of the normalization {self.__name__!r} of a saved profile nobody knows what "
                    f"it is for {units} units: pass the function itself."
                )
            self._known[units] = self._function(units)
        return self._known[units]

    def __repr__(self) -> str:
        return self.__name__

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_function": None}


class ActivationEntropy(_Normalized):
    """Activation entropy of the samples of each class (`activation_entropy`).

    Args:
        pattern, normalization: as for the function `activation_entropy`.
        keep_patterns: keep the activation pattern of every class in `profile.patterns`, not for
            `per_sample`, which averages entropies; it takes classes x units numbers for each layer.
        name: as for every `Measure`.

    Raises:
        ValueError: unknown `pattern` or `normalization`, or `keep_patterns` with `per_sample`.

    Example:

    >>> ActivationEntropy(pattern="per_sample", name="of_samples")
    ActivationEntropy(pattern='per_sample', name='of_samples')
    """

    key = "activation_entropy"
    title = "Activation entropy"
    caveat = (
        "It depends on the scale of activations: the same pattern, three times as large, has a "
        "much lower entropy. A falling curve can be plain growth of magnitudes: compare it "
        "with the untrained network and with the state entropy. A layer over which entropy "
        "does not fall is a suspect, not a verdict: take it out and measure the accuracy."
    )
    _READINGS = {
        "mean_then_softmax": (
            "All samples of one class are fed in and each neuron's output is averaged; the softmax "
            "over the layer's neurons is the activation pattern, and this is its entropy"
        ),
        "softmax_then_mean": (
            "All samples of one class are fed in; the softmax over the layer's neurons, averaged "
            "over these samples, is the activation pattern, and this is its entropy"
        ),
        "per_sample": (
            "The softmax over the layer's neurons is the activation pattern of a sample; this is "
            "the mean of the entropies of the samples of one class"
        ),
    }
    _SCALES = {
        "log": (
            ", divided by the largest it could be: near 1 when all neurons answer alike, near 0 "
            "when a few neurons answer for the class."
        ),
        "none": (
            ", in nats: the logarithm of the number of neurons when all answer alike, near 0 when "
            "a few neurons answer for the class."
        ),
        None: ", divided by a number for each layer: low when a few neurons answer for the class.",
    }

    def __init__(
        self,
        pattern: str = "mean_then_softmax",
        normalization: Normalization = "log",
        keep_patterns: bool = False,
        *,
        name: str | None = None,
    ) -> None:
        check_pattern(pattern)
        if not isinstance(keep_patterns, bool):
            raise ValueError(f"keep_patterns={keep_patterns!r}; expected True or False.")
        if keep_patterns and pattern == "per_sample":
            raise ValueError(
                "keep_patterns=True with pattern='per_sample': patterns of classes come with "
                "'mean_then_softmax' or 'softmax_then_mean'."
            )
        super().__init__(normalization, name, pattern=pattern, keep_patterns=keep_patterns)

    @property
    def meaning(self) -> str:
        return self._READINGS[self.options["pattern"]] + self._SCALES[self._word]

    @property
    def log_name(self) -> str:
        return "entropy" if self.name == self.key else self.name

    def new_state(self, layer: LayerInfo, classes: int) -> ClassMeans:
        mean_first = self.options["pattern"] == "mean_then_softmax"
        return ClassMeans(classes, self._width(layer), self._features, two_way, mean_first)

    def state_size(self, layer: LayerInfo, classes: int) -> int:
        return ClassMeans.size(classes, 1 + self._width(layer))

    def _width(self, layer: LayerInfo) -> int:
        return 1 if self.options["pattern"] == "per_sample" else max(layer.units, 2)

    def _features(self, values: Tensor, centred: Tensor) -> Tensor:
        if self.options["pattern"] == "mean_then_softmax":
            return centred
        if self.options["pattern"] == "softmax_then_mean":
            return ops.softmax(centred, axis=-1)
        return ops.expand_dims(softmax_entropy(centred), axis=-1)

    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples | None
    ) -> MeasureResult:
        normalizer = self.normalizer([layer.units for layer in layers])
        rows = [x.of_means(self._nats) / n for x, n in zip(states, normalizer, strict=True)]
        details = {
            layer.path: {"pattern": state.of_means(self._pattern)}
            for layer, state in zip(layers, states, strict=True)
            if self.options["keep_patterns"]
        }
        return MeasureResult(rows, unit=self.unit, normalizer=normalizer, details=details)

    def _nats(self, mean: np.ndarray) -> np.ndarray:
        if self.options["pattern"] == "mean_then_softmax":
            return ops.convert_to_numpy(softmax_entropy(_shifted(mean)))
        if self.options["pattern"] == "softmax_then_mean":
            return ops.convert_to_numpy(shannon_entropy(mean))
        return mean[:, 0]

    def _pattern(self, mean: np.ndarray) -> np.ndarray:
        if self.options["pattern"] == "softmax_then_mean":
            return mean
        return ops.convert_to_numpy(ops.softmax(_shifted(mean), axis=-1))

    def verdict(self, profile: Profile, tolerance: float) -> str | None:
        """How entropy goes with depth, and what to try."""
        if self.name != self.key:
            return None
        profile = profile.of_layers(
            [x for x, judged in zip(profile.layers, profile.judged, strict=True) if judged]
        )
        if not profile.layers:
            return None
        means = zip(profile.layers, profile.mean, strict=True)
        if unknown := [layer for layer, mean in means if not np.isfinite(mean)]:
            return f"No entropy of {listed(unknown)}: the activations are not finite."
        if len(profile.layers) == 1:
            return f"The one layer, {profile.layers[0]}, has entropy {profile.mean[0]:.3f}."
        sentences = (_course(profile), _untrained(profile), _candidates(profile, tolerance))
        return " ".join(filter(None, sentences))


def _course(profile: Profile) -> str:
    ends = (
        f"{profile.mean[0]:.3f} in {profile.layers[0]}, "
        f"{profile.mean[-1]:.3f} in {profile.layers[-1]}"
    )
    risen = [x for x, g in zip(profile.layers, profile.gradient, strict=True) if g < -NOISE]
    if risen:
        return f"Entropy rises over {listed(risen)}: {ends}."
    return f"Entropy never rises with depth: {ends}."


def _untrained(profile: Profile) -> str:
    """How much of the fall was there before training."""
    if profile.baseline is None:
        return ""
    fall, untrained = (p.mean[0] - p.mean[-1] for p in (profile, profile.baseline))
    if not np.isfinite(untrained):
        return "The untrained network's activations are not finite."
    if abs(untrained) < NOISE:
        how = "stays the same"
    else:
        how = f"falls by {untrained:.3f}" if untrained > 0 else f"rises by {-untrained:.3f}"
    if fall < NOISE:
        return f"In the untrained network it {how}."
    return f"It falls by {fall:.3f} in all; in the untrained network it {how}."


def _candidates(profile: Profile, tolerance: float) -> str:
    flat = profile.flat(tolerance)
    if not flat:
        return f"No layer is flat: entropy falls by {tolerance:g} or more over each."
    what = "is a candidate" if len(flat) == 1 else "are candidates"
    over = "it" if len(flat) == 1 else "each"
    how = f"falls by less than {tolerance:g}"
    how += " or rises" if "rises" in profile.trend(tolerance) else ""
    return f"{listed(flat)} {what} for removal: entropy {how} over {over}."


class Instability(_Normalized):
    """How much patterns vary within each class (`instability`).

    Args:
        normalization: as for the function `instability`.
        name: as for every `Measure`.

    Raises:
        ValueError: unknown `normalization`.

    Example:

    >>> Instability().unit
    'normalised, 0 to 1'
    """

    key = "instability"
    title = "Instability within a class"
    meaning = (
        "How much the pattern varies from sample to sample inside a class: the entropy of the "
        "mean of the samples' patterns minus the mean of their entropies. 0 when all samples "
        "of the class share one pattern."
    )
    caveat = "Like the activation entropy, it depends on the scale of activations."

    def __init__(self, normalization: Normalization = "log", *, name: str | None = None) -> None:
        super().__init__(normalization, name)

    def new_state(self, layer: LayerInfo, classes: int) -> ClassMeans:
        return ClassMeans(classes, max(layer.units, 2) + 1, self._features, two_way)

    def state_size(self, layer: LayerInfo, classes: int) -> int:
        return ClassMeans.size(classes, max(layer.units, 2) + 2)

    def _features(self, values: Tensor, centred: Tensor) -> Tensor:
        own = ops.expand_dims(softmax_entropy(centred), axis=-1)
        return ops.concatenate([ops.softmax(centred, axis=-1), own], axis=-1)

    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples | None
    ) -> MeasureResult:
        def nats(mean: np.ndarray) -> np.ndarray:
            pooled = ops.convert_to_numpy(shannon_entropy(mean[:, :-1]))
            return np.maximum(pooled - mean[:, -1], 0.0)

        normalizer = self.normalizer([x.units for x in layers])
        rows = [x.of_means(nats) / most for x, most in zip(states, normalizer, strict=True)]
        return MeasureResult(rows, unit=self.unit, normalizer=normalizer)


class StateEntropy(Measure):
    """Entropy of on/off states (`state_entropy`).

    Args:
        name: as for every `Measure`.

    Example:

    >>> StateEntropy().unit
    'bits'
    """

    key = "state_entropy"
    title = "On/off state entropy"
    unit = "bits"
    largest = 1.0
    meaning = (
        "A neuron is on for a sample when what goes into its activation function is positive. "
        "This is the mean over neurons of the binary entropy of the share of samples for which "
        "it is on: 0 when each is always on or always off for the class, 1 when each is on for "
        "half of the samples."
    )
    caveat = (
        "It does not change with the scale of weights, but says nothing of how far a neuron is on. "
        "Low is not dispensable: units chosen by it could be taken out no better than at random, "
        "and whole layers on some networks alone."
    )
    reads = "pre_activation"

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__(name)

    def new_state(self, layer: LayerInfo, classes: int) -> ClassMeans:
        return ClassMeans(classes, layer.units, self._features)

    def state_size(self, layer: LayerInfo, classes: int) -> int:
        return ClassMeans.size(classes, layer.units + 1)

    def _features(self, values: Tensor, centred: Tensor) -> Tensor:
        return ops.cast(values > 0, "float32")

    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples | None
    ) -> MeasureResult:
        def bits(mean: np.ndarray) -> np.ndarray:
            return ops.convert_to_numpy(binary_entropy(mean)).mean(axis=-1)

        return MeasureResult([state.of_means(bits) for state in states], unit=self.unit)


def _shifted(mean: np.ndarray) -> np.ndarray:
    """The same softmax; shifted in float64, because some backends go on in float32."""
    return mean - mean.max(axis=-1, keepdims=True)
