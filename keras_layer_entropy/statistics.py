"""What a layer accumulates while batches stream past: sums per class, O(classes x units).

Each statistic is a `keras.metrics.Metric` of one layer and one measure. Two states of the same
layer add up (`merge_state`), and `result` applies the measure to the sums of the whole pass:
a mean of the batches' entropies would be biased low.
"""

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.measures import entropy as formulas


class CompensatedSum:
    """A sum of float32 tensors that does not drift: each addition's rounding error is kept.

    TwoSum (Knuth, TAOCP vol. 2, 4.2.2, theorem B): the error of a + b is itself a float and is
    added up beside the sum. float64 would do too, but JAX has none by default.
    """

    def __init__(self, metric, shape, name):
        self._high = metric.add_variable(shape, "zeros", "float32", name=name)
        self._low = metric.add_variable(shape, "zeros", "float32", name=f"{name}_error")

    def add(self, value):
        """Adds a tensor."""
        high = ops.convert_to_tensor(self._high)
        total = high + value
        rest = total - high
        error = (high - (total - rest)) + (value - rest)
        self._high.assign(total)
        self._low.assign(self._low + error)

    def merge(self, other):
        """Adds another sum."""
        self.add(ops.convert_to_tensor(other._high))
        self._low.assign(self._low + other._low)

    def numpy(self):
        """The sum, float64."""
        return sum(np.asarray(ops.convert_to_numpy(v), np.float64) for v in (self._high, self._low))


class _Statistic(keras.metrics.Metric):
    """A set of named compensated sums."""

    def __init__(self, name):
        super().__init__(name=name, dtype="float32")
        self._sums = {}

    def _add_sum(self, name, shape):
        self._sums[name] = CompensatedSum(self, shape, name)
        return self._sums[name]

    def merge_state(self, statistics):
        """Adds the states of other statistics of the same layer (other devices, other parts)."""
        for other in statistics:
            for name, total in self._sums.items():
                total.merge(other._sums[name])


class LabelStatistic(_Statistic):
    """Samples per class, and labels that are no class.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes, name="labels"):
        super().__init__(name)
        self._count = self._add_sum("count", (num_classes,))
        self._misfits = self._add_sum("misfits", ())
        # One misfit, to name it: (1, value), or (0, 0) while there is none.
        self._example = self.add_variable(
            (2,), "zeros", "float32", aggregation="only_first_replica", name="example"
        )

    def update_state(self, membership, label=None, misfit=None):
        """Adds a batch, as `labels.Labels.membership` returns it."""
        inside = ops.cast(membership > 0, "float32")
        self._count.add(ops.sum(inside, axis=tuple(range(len(inside.shape) - 1))))
        if misfit is None:
            return
        wrong = ops.cast(misfit, "float32")
        self._misfits.add(ops.sum(wrong))
        first = ops.argmax(ops.reshape(wrong, (-1,)))
        value = ops.take(ops.cast(ops.reshape(label, (-1,)), "float32"), first)
        example = ops.convert_to_tensor(self._example)
        new = ops.logical_and(ops.any(misfit), example[0] == 0)
        self._example.assign(ops.where(new, ops.stack([ops.ones_like(value), value]), example))

    def result(self):
        """`(count, misfits, example)`: int64 `[classes]`, an int, a misfitting label or None."""
        there, value = ops.convert_to_numpy(self._example)
        count = np.rint(self._count.numpy()).astype(np.int64)
        return count, int(self._misfits.numpy()), float(value) if there else None


class LayerStatistic(_Statistic):
    """One measure of one layer: a weighted mean per class of some features of its activations.

    Subclasses say of which tensor (`reads`, a key of `probe.Activation.features()`), which
    features (`_features`) and what is made of their means (`_measure`).

    Args:
        units: number of units of the layer.
        num_classes: number of classes.
        pattern, normalization: as in `measures.entropy.activation_entropy`.
    """

    reads = "pattern"

    def __init__(
        self, units, num_classes, pattern="mean_then_softmax", normalization="log", name=None
    ):
        super().__init__(name)
        self.units = units
        self.pattern = pattern
        self.normalizer = formulas.maximum_entropy(units, normalization)
        self._weight = self._add_sum("weight", (num_classes,))
        self._bad = self._add_sum("not_finite", (num_classes,))
        self._total = self._add_sum("total", (num_classes, self._width()))

    def update_state(self, values, membership, mask=None):
        """Adds a batch.

        Args:
            values: tensor `[batch, ..., units]`. Each position is a sample of its class.
            membership: `[batch, classes]`, weight of each sample in each class;
                `[batch, positions, classes]` where the labels are per position.
            mask: `[batch, ...]`, which positions count, or None.
        """
        values = formulas.two_way(formulas.at_least_float32(values))
        # Entropy does not change when one number is added to all units. With each sample's own
        # mean gone, float32 resolves what is left even where activations are large; and a mean
        # over units is finite exactly when all of them are.
        centre = ops.mean(values, axis=-1, keepdims=True)
        finite = ops.isfinite(centre)
        features = self._features(values, centre, finite)
        weight = ops.ones_like(centre, dtype="float32")
        if mask is not None:
            missing = len(weight.shape) - len(mask.shape)
            mask = ops.reshape(mask, (*ops.shape(mask), *[1] * missing))
            weight = weight * ops.cast(mask, "float32")
            features = features * weight
        bad = weight * ops.cast(ops.logical_not(finite), "float32")
        self._weight.add(_per_class(weight, membership)[:, 0])
        self._bad.add(_per_class(bad, membership)[:, 0])
        self._total.add(_per_class(features, membership))

    def result(self):
        """float64 `[classes]`; NaN for a class without samples or with values not finite."""
        weight, total = self._weight.numpy(), self._total.numpy()
        known = (weight > 0) & (self._bad.numpy() == 0)
        mean = total / np.where(known, weight, 1.0)[:, None]
        return np.where(known, np.asarray(self._measure(mean), np.float64), np.nan)

    def not_finite(self):
        """Boolean `[classes]`: where activations were NaN or infinite."""
        return self._bad.numpy() > 0

    def _width(self):
        return max(self.units, 2)


class ActivationEntropy(LayerStatistic):
    """Activation entropy, normalised (`measures.entropy.activation_entropy`)."""

    def _features(self, values, centre, finite):
        values = ops.where(finite, values - centre, 0.0)
        if self.pattern == "mean_then_softmax":
            return values
        if self.pattern == "softmax_then_mean":
            return ops.softmax(values, axis=-1)
        return ops.expand_dims(formulas.softmax_entropy(values), axis=-1)

    def _measure(self, mean):
        if self.pattern == "mean_then_softmax":
            # Shifted in float64, because some backends go on in float32.
            mean = mean - mean.max(axis=-1, keepdims=True)
            return ops.convert_to_numpy(formulas.softmax_entropy(mean)) / self.normalizer
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


MEASURES = {
    "activation_entropy": ActivationEntropy,
    "instability": Instability,
    "state_entropy": StateEntropy,
}


def check_measures(measures):
    """`measures` as a tuple of names.

    Raises ValueError for an unknown name or none at all.
    """
    measures = (measures,) if isinstance(measures, str) else tuple(measures)
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        raise ValueError(f"measures={measures!r}; expected some of {tuple(MEASURES)}.")
    return measures


def _per_class(values, membership):
    """Sums of `[batch, ..., k]` over the samples of each class, `[classes, k]`."""
    extra = tuple(range(len(membership.shape) - 1, len(values.shape) - 1))
    if extra:  # positions that share their sample's label
        values = ops.sum(values, axis=extra)
    values = ops.reshape(values, (-1, values.shape[-1]))
    membership = ops.reshape(membership, (-1, membership.shape[-1]))
    # A matrix product, because XLA compiles neither boolean masks nor counts of unique values.
    return ops.matmul(ops.transpose(membership), values)
