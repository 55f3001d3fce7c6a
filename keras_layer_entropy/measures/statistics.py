"""What a layer accumulates while batches stream past: sums per class, O(classes x units).

Each statistic is a `keras.metrics.Metric` of one layer and one measure. Two states of the same
layer add up (`merge_state`), and `result` applies the measure to the sums of the whole pass:
a mean of the batches' entropies would be biased low.
"""

import functools
import math

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.measures import entropy as formulas
from keras_layer_entropy.measures import topology

# Mean activations below this are summed as they are: float32 knows them to 1e-5.
_SMALL = 100.0
# Fewer than four vertices have no loop.
_SMALLEST_MAP = 4


class SumStatistic(keras.metrics.Metric):
    """A sum of float32 tensors that does not drift: each addition's rounding error is kept.

    The sum is the unevaluated sum of two floats (Dekker 1971): TwoSum gives the exact error of each
    addition (Knuth, TAOCP vol. 2, 4.2.2, theorem B), FastTwoSum brings the two parts back in order.
    float64 would do too, but JAX has none by default. Both parts are one variable, because every
    variable that a step writes costs time.
    """

    def __init__(self, shape, name):
        super().__init__(name=name, dtype="float32")
        self._parts = self.add_variable((2, *shape), "zeros", "float32", name="sum")

    def add(self, value):
        high, low = self._parts[0], self._parts[1]
        total = high + value
        rest = total - high
        low = low + ((high - (total - rest)) + (value - rest))
        high = total + low
        self._parts.assign(ops.stack([high, low - (high - total)]))

    def total(self):
        """The sum of all that was added, float64."""
        return np.asarray(ops.convert_to_numpy(self._parts), np.float64).sum(axis=0)

    def merge_state(self, statistics):
        """Adds the states of other statistics of the same layer (other devices, other parts)."""
        for other in statistics:
            self.add(other._parts[0])
            self.add(other._parts[1])


class LayerStatistic(SumStatistic):
    """One measure of one layer: a weighted mean per class of some features of its activations.

    Subclasses say of which tensor (`reads`, a key of `probe.Activation.features()`), which
    features (`_features`) and what is made of their means (`_measure`).

    Args:
        units: number of units of the layer.
        num_classes: number of classes.
        pattern, normalization: as in `measures.entropy.activation_entropy`.
    """

    reads = "pattern"
    dimensions = None  # of what it reads; any

    @staticmethod
    def numbers(units, **_):
        """How many numbers are kept of a class, nearly."""
        return units

    def __init__(
        self, units, num_classes, pattern="mean_then_softmax", normalization="log", name=None
    ):
        self.units = units
        self.pattern = pattern
        self.normalizer = formulas.maximum_entropy(units, normalization)
        # Weight of a class first, then its features, which are NaN where one was not finite.
        super().__init__((num_classes, 1 + self._width()), name)

    def update_state(self, values, membership, mask=None):
        """Adds a batch.

        Args:
            values: tensor `[batch, ..., units]`. Each position is a sample of its class.
            membership: `[batch, classes]`, weight of each sample in each class;
                `[batch, positions, classes]` where the labels are per position.
            mask: `[batch, ...]`, which positions count, or None.
        """
        values = formulas.two_way(ops.cast(values, "float32"))
        if mask is None:
            weight = sum_samples(membership) * _shared_positions(values, membership)
            weight = ops.expand_dims(weight, axis=-1)
        else:
            mask = _like_positions(mask, values)
            weight = _per_class(mask * ops.ones_like(values[..., :1]), membership)
        total = self._class_sums(values, membership, mask, weight)
        self.add(ops.concatenate([weight, total], axis=-1))

    def _class_sums(self, values, membership, mask, weight):
        # Entropy does not change when one number is added to all units. With each sample's own
        # mean gone, float32 resolves what is left even where activations are large; and a mean
        # over units is finite exactly when all of them are.
        centre = ops.mean(values, axis=-1, keepdims=True)
        finite = ops.isfinite(centre)
        bad = ops.logical_not(finite)
        features = self._features(values, centre, finite)
        if mask is not None:
            features = features * mask
            bad = ops.logical_and(bad, mask > 0)
        # Zero times NaN is NaN: kept out of the product, it spoils only the classes it is in.
        total = _per_class(features, membership)
        return ops.where(_any_per_class(bad, membership), np.nan, total)

    def result(self):
        """float64 `[classes]`; NaN for a class without samples or with values not finite."""
        known, mean = self._means()
        return np.where(known, np.asarray(self._measure(mean), np.float64), np.nan)

    def _means(self):
        """For which classes there are means, `[classes]`, and these, `[classes, features]`."""
        total = self.total()
        weight, total = total[:, 0], total[:, 1:]
        known = (weight > 0) & ~np.isnan(total).any(axis=1)
        mean = np.where(known[:, None], total, 0.0) / np.where(known, weight, 1.0)[:, None]
        return known, mean

    def layer_values(self):
        """Numbers of the layer as a whole that come with the measure, by name."""
        return {}

    def not_finite(self):
        """Boolean `[classes]`: where activations were NaN or infinite."""
        return np.isnan(self.total()).any(axis=1)

    def _width(self):
        return max(self.units, 2)


class ActivationEntropy(LayerStatistic):
    """Activation entropy, normalised (`measures.entropy.activation_entropy`)."""

    def _class_sums(self, values, membership, mask, weight):
        careful = functools.partial(super()._class_sums, values, membership, mask, weight)
        if self.pattern != "mean_then_softmax" or mask is not None:
            return careful()
        # The usual case, and the fast one: activations are small enough to be summed as they are.
        # (A sample counts the same with its mean or without.) No NaN is small enough.
        plain = _per_class(values, membership)
        small = ops.all(ops.abs(plain) <= _SMALL * weight)
        return ops.cond(small, lambda: plain, careful)

    def _features(self, values, centre, finite):
        values = ops.where(finite, values - centre, 0.0)
        if self.pattern == "mean_then_softmax":
            return values
        if self.pattern == "softmax_then_mean":
            return ops.softmax(values, axis=-1)
        return ops.expand_dims(formulas.softmax_entropy(values), axis=-1)

    def patterns(self):
        """The pattern of each class, float64 `[classes, units]`; NaN where `result` is.

        Not for `per_sample`, which averages entropies.
        """
        known, mean = self._means()
        if self.pattern == "mean_then_softmax":
            mean = ops.convert_to_numpy(ops.softmax(_shifted(mean), axis=-1))
        return np.where(known[:, None], mean, np.nan)

    def _measure(self, mean):
        if self.pattern == "mean_then_softmax":
            return ops.convert_to_numpy(formulas.softmax_entropy(_shifted(mean))) / self.normalizer
        if self.pattern == "softmax_then_mean":
            return ops.convert_to_numpy(formulas.shannon_entropy(mean)) / self.normalizer
        return mean[:, 0] / self.normalizer

    def _width(self):
        return 1 if self.pattern == "per_sample" else super()._width()


class Instability(LayerStatistic):
    """Variation of the pattern within a class, normalised (`measures.entropy.instability`)."""

    def _features(self, values, centre, finite):
        values = ops.where(finite, values - centre, 0.0)
        own = ops.expand_dims(formulas.softmax_entropy(values), axis=-1)
        return ops.concatenate([ops.softmax(values, axis=-1), own], axis=-1)

    def _measure(self, mean):
        pooled = ops.convert_to_numpy(formulas.shannon_entropy(mean[:, :-1]))
        return np.maximum(pooled - mean[:, -1], 0.0) / self.normalizer

    def _width(self):
        return super()._width() + 1


class StateEntropy(LayerStatistic):
    """Entropy of on/off states, bits (`measures.entropy.state_entropy`)."""

    reads = "pre_activation"

    def _features(self, values, centre, finite):
        return ops.cast(values[..., -self.units :] > 0, "float32")

    def _measure(self, mean):
        return ops.convert_to_numpy(formulas.binary_entropy(mean)).mean(axis=-1)

    def _width(self):
        return self.units


class HeadStatistic(keras.metrics.Metric):
    """A measure of the patterns of an output layer whose function nobody knows.

    Where every row of its outputs, over the whole pass, turns out to be a distribution, the layer
    ends in a softmax by another name, and what is measured is ln p, in place of the logits; else
    the outputs (`measures.entropy.log_pattern`).

    Args:
        make: makes a `LayerStatistic` with a name.
    """

    reads = "pattern"

    def __init__(self, make, name=None):
        super().__init__(name=name, dtype="float32")
        self._given, self._logs = make(f"{name}_given"), make(f"{name}_logs")
        self._misfits = self.add_variable((), "zeros", "float32", name="misfits")

    def update_state(self, values, membership, mask=None):
        """Adds a batch, as to a `LayerStatistic`."""
        logs, fits = formulas.log_pattern(values)
        misfit = ops.logical_not(fits)
        if mask is not None:
            misfit = ops.logical_and(misfit, _like_positions(mask, values) > 0)
        misfits = ops.sum(ops.cast(_any_per_class(misfit, membership), "float32"))
        self._misfits.assign(self._misfits + misfits)
        self._given.update_state(values, membership, mask)
        self._logs.update_state(logs, membership, mask)

    def merge_state(self, statistics):
        """Adds the states of others."""
        for other in statistics:
            self._given.merge_state([other._given])
            self._logs.merge_state([other._logs])
            self._misfits.assign(self._misfits + other._misfits)

    def result(self):
        """As of a `LayerStatistic`."""
        return self._decided.result()

    def patterns(self):
        """As of `ActivationEntropy`."""
        return self._decided.patterns()

    def layer_values(self):
        """As of a `LayerStatistic`."""
        return self._decided.layer_values()

    def not_finite(self):
        """As of a `LayerStatistic`."""
        return self._given.not_finite()

    @property
    def _decided(self):
        return self._given if float(self._misfits) else self._logs


class FeatureEntropy(SumStatistic):
    """Feature entropy of convolution units (`measures.topology`): images by class, unit and birth.

    Args:
        units, num_classes: of the layer, and of the data.
        max_density, max_rank: as in `measures.topology.birth_index`.
    """

    reads = "output"
    dimensions = 4  # [batch, height, width, units]

    def __init__(self, units, num_classes, max_density=0.8, max_rank=50, name=None):
        self._limits = {"max_density": max_density, "max_rank": max_rank}
        self._side = None
        # One more for maps that are not finite.
        super().__init__((num_classes, units, max_rank + 2), name)

    @staticmethod
    def numbers(units, max_rank=50, **_):
        """How many numbers are kept of a class."""
        return units * (max_rank + 2)

    def update_state(self, values, membership, mask=None):
        """Adds a batch: `[batch, height, width, units]` and `[batch, classes]`.

        Maps that are not square are resized to the longer side, bilinearly. Convolutions have no
        masks: `mask` is not looked at.
        """
        if len(membership.shape) != 2 or None in tuple(values.shape)[1:]:
            raise ValueError(
                f"feature_entropy compares whole maps of one size; there are maps of shape "
                f"{tuple(values.shape)} and labels or weights of shape "
                f"{tuple(membership.shape[:-1])}: pass num_classes=1 for labels per position, give "
                "images of one size, or leave that measure out."
            )
        self._side = max(values.shape[1:3])
        if values.shape[1] != values.shape[2]:
            size = (self._side, self._side)
            values = ops.image.resize(values, size, data_format="channels_last")
        births = topology.birth_index(ops.moveaxis(values, -1, 1), **self._limits)
        last = self._limits["max_rank"] + 1
        places = ops.one_hot(ops.where(births < 0, last, births), last + 1, dtype="float32")
        self.add(ops.einsum("bk,bur->kur", membership, places))

    def result(self):
        """float64 `[classes]`; NaN for a class without samples or with values not finite, and for
        maps that are too small for loops."""
        values = self._mean_over_units(topology.feature_entropy)
        too_small = self._side is not None and self._side < _SMALLEST_MAP
        return np.where(self.not_finite() | too_small, np.nan, values)

    def layer_values(self):
        """Selective rate, and the feature entropy of noise of the same size."""
        rates = self._mean_over_units(topology.selective_rate)
        known = rates[np.isfinite(rates) & ~self.not_finite()]
        return {
            "feature_entropy_selective_rate": known.mean() if len(known) else np.nan,
            "feature_entropy_noise": topology.noise_entropy(self._side, **self._limits)
            if self._side is not None and self._side >= _SMALLEST_MAP
            else np.nan,
        }

    def not_finite(self):
        """Boolean `[classes]`: where maps held NaN or infinities."""
        return self.total()[:, :, -1].any(axis=1)

    def _mean_over_units(self, measure):
        return ops.convert_to_numpy(measure(self.total()[:, :, :-1])).mean(axis=1)


MEASURES = {
    "activation_entropy": ActivationEntropy,
    "instability": Instability,
    "state_entropy": StateEntropy,
    "feature_entropy": FeatureEntropy,
}


def _shifted(mean):
    """The same softmax; shifted in float64, because some backends go on in float32."""
    return mean - mean.max(axis=-1, keepdims=True)


def _like_positions(mask, values):
    """A mask `[batch, ...]` as float32 `[batch, ..., 1]`, to multiply `[batch, ..., units]`."""
    missing = len(values.shape) - len(mask.shape)
    return ops.cast(ops.reshape(mask, (*ops.shape(mask), *[1] * missing)), "float32")


def _per_class(values, membership):
    """Sums of `[batch, ..., k]` over the samples of each class, `[classes, k]`."""
    values = ops.sum(values, axis=_extra_axes(values, membership))
    values = ops.reshape(values, (-1, values.shape[-1]))
    membership = ops.reshape(membership, (-1, membership.shape[-1]))
    # A matrix product, because XLA compiles neither boolean masks nor counts of unique values.
    return ops.matmul(ops.transpose(membership), values)


def _any_per_class(flags, membership):
    """For which classes a flag `[batch, ..., 1]` is raised, `[classes, 1]`."""
    flags = ops.any(flags, axis=_extra_axes(flags, membership))
    flags = ops.logical_and(flags, membership > 0)
    return ops.expand_dims(ops.any(flags, axis=tuple(range(len(flags.shape) - 1))), axis=-1)


def sum_samples(membership):
    """Weights of all samples and positions, `[classes]`, from `[batch, ..., classes]`."""
    return ops.sum(membership, axis=tuple(range(len(membership.shape) - 1)))


def _extra_axes(values, membership):
    """The axes of positions that share one entry of `membership`."""
    return tuple(range(len(membership.shape) - 1, len(values.shape) - 1))


def _shared_positions(values, membership):
    """How many positions share one entry of `membership`."""
    shape = ops.shape(values)
    return math.prod(ops.cast(shape[axis], "float32") for axis in _extra_axes(values, membership))
