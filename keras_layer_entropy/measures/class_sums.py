"""What streams past of a layer as sums per class, O(classes x units).

Two states of the same layer add up (`merge_state`), and measures look at the sums of the whole
pass: a mean of the batches' entropies would be biased low.
"""

import math
from collections.abc import Callable, Iterable

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.backend import Tensor

# Means below this are summed as they are: float32 knows them to 1e-5.
_SMALL = 100.0


class CompensatedSum(keras.metrics.Metric):
    """A sum of float32 tensors that does not drift: each addition's rounding error is kept.

    The sum is the unevaluated sum of two floats (Dekker 1971): TwoSum gives the exact error of each
    addition (Knuth, TAOCP vol. 2, 4.2.2, theorem B), FastTwoSum brings the two parts back in order.
    float64 would do too, but JAX has none by default. Both parts are one variable, because every
    variable that a step writes costs time.
    """

    def __init__(self, shape: tuple[int, ...], name: str | None = None) -> None:
        super().__init__(name=name, dtype="float32")
        self._parts = self.add_variable((2, *shape), "zeros", "float32", name="sum")

    def add(self, value: Tensor) -> None:
        """Adds a tensor."""
        high, low = self._parts[0], self._parts[1]
        total = high + value
        rest = total - high
        low = low + ((high - (total - rest)) + (value - rest))
        high = total + low
        self._parts.assign(ops.stack([high, low - (high - total)]))

    def total(self) -> np.ndarray:
        """The sum of all that was added, float64."""
        return np.asarray(ops.convert_to_numpy(self._parts), np.float64).sum(axis=0)

    def merge_state(self, statistics: Iterable["CompensatedSum"]) -> None:
        """Adds the states of other statistics of the same layer (other devices, other parts)."""
        for other in statistics:
            self.add(other._parts[0])
            self.add(other._parts[1])

    @staticmethod
    def size(*shape: int) -> int:
        """Bytes of a sum of this shape."""
        return 8 * math.prod(shape)


class ClassMeans(CompensatedSum):
    """A weighted mean per class of some features of a layer's activations.

    Args:
        classes: number of classes.
        width: number of features.
        features: what is averaged: a function of activations `[batch, ..., units]`, and of the
            same without each sample's mean over units (0 where not finite), to `[batch, ...,
            width]`.
        prepare: done to activations first.
        are_activations: whether the features are the activations themselves.
    """

    def __init__(
        self,
        classes: int,
        width: int,
        features: Callable[[Tensor, Tensor], Tensor],
        prepare: Callable[[Tensor], Tensor] | None = None,
        are_activations: bool = False,
        name: str | None = None,
    ) -> None:
        self._features = features
        self._prepare = prepare
        self._are_activations = are_activations
        # Weight of a class first, then its features, which are NaN where one was not finite.
        super().__init__((classes, 1 + width), name)

    def update_state(self, values: Tensor, membership: Tensor, mask: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            values: tensor `[batch, ..., units]`. Each position is a sample of its class.
            membership: `[batch, classes]`, weight of each sample in each class;
                `[batch, positions, classes]` where the labels are per position.
            mask: `[batch, ...]`, which positions count, or None.
        """
        values = ops.cast(values, "float32")
        values = values if self._prepare is None else self._prepare(values)
        if mask is None:
            weight = sum_samples(membership) * _shared_positions(values, membership)
            weight = ops.expand_dims(weight, axis=-1)
        else:
            mask = like_positions(mask, values)
            weight = per_class(mask * ops.ones_like(values[..., :1]), membership)
        total = self._class_sums(values, membership, mask, weight)
        self.add(ops.concatenate([weight, total], axis=-1))

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """For which classes there are means, `[classes]`, and these, `[classes, width]`.

        There are none of a class without samples or with values that were not finite.
        """
        total = self.total()
        weight, total = total[:, 0], total[:, 1:]
        known = (weight > 0) & ~np.isnan(total).any(axis=1)
        mean = np.where(known[:, None], total, 0.0) / np.where(known, weight, 1.0)[:, None]
        return known, mean

    def not_finite(self) -> np.ndarray:
        """Boolean `[classes]`: where activations were NaN or infinite."""
        return np.isnan(self.total()).any(axis=1)

    def _class_sums(
        self, values: Tensor, membership: Tensor, mask: Tensor | None, weight: Tensor
    ) -> Tensor:
        def careful() -> Tensor:
            return self._finite_sums(values, membership, mask)

        if not self._are_activations or mask is not None:
            return careful()
        # The usual case, and the fast one: activations are small enough to be summed as they are.
        # (A sample counts the same with its mean or without.) No NaN is small enough.
        plain = per_class(values, membership)
        small = ops.all(ops.abs(plain) <= _SMALL * weight)
        return ops.cond(small, lambda: plain, careful)

    def _finite_sums(self, values: Tensor, membership: Tensor, mask: Tensor | None) -> Tensor:
        # Entropy does not change when one number is added to all units. With each sample's own
        # mean gone, float32 resolves what is left even where activations are large; and a mean
        # over units is finite exactly when all of them are.
        centre = ops.mean(values, axis=-1, keepdims=True)
        finite = ops.isfinite(centre)
        bad = ops.logical_not(finite)
        features = self._features(values, ops.where(finite, values - centre, 0.0))
        if mask is not None:
            features = features * mask
            bad = ops.logical_and(bad, mask > 0)
        # Zero times NaN is NaN: kept out of the product, it spoils only the classes it is in.
        total = per_class(features, membership)
        return ops.where(any_per_class(bad, membership), np.nan, total)


def like_positions(mask: Tensor, values: Tensor) -> Tensor:
    """A mask `[batch, ...]` as float32 `[batch, ..., 1]`, to multiply `[batch, ..., units]`."""
    missing = len(values.shape) - len(mask.shape)
    return ops.cast(ops.reshape(mask, (*ops.shape(mask), *[1] * missing)), "float32")


def per_class(values: Tensor, membership: Tensor) -> Tensor:
    """Sums of `[batch, ..., k]` over the samples of each class, `[classes, k]`."""
    values = ops.sum(values, axis=_extra_axes(values, membership))
    values = ops.reshape(values, (-1, values.shape[-1]))
    membership = ops.reshape(membership, (-1, membership.shape[-1]))
    # A matrix product, because XLA compiles neither boolean masks nor counts of unique values.
    return ops.matmul(ops.transpose(membership), values)


def any_per_class(flags: Tensor, membership: Tensor) -> Tensor:
    """For which classes a flag `[batch, ..., 1]` is raised, `[classes, 1]`."""
    flags = ops.any(flags, axis=_extra_axes(flags, membership))
    flags = ops.logical_and(flags, membership > 0)
    return ops.expand_dims(ops.any(flags, axis=tuple(range(len(flags.shape) - 1))), axis=-1)


def sum_samples(membership: Tensor) -> Tensor:
    """Weights of all samples and positions, `[classes]`, from `[batch, ..., classes]`."""
    return ops.sum(membership, axis=tuple(range(len(membership.shape) - 1)))


def _extra_axes(values: Tensor, membership: Tensor) -> tuple[int, ...]:
    """The axes of positions that share one entry of `membership`."""
    return tuple(range(len(membership.shape) - 1, len(values.shape) - 1))


def _shared_positions(values: Tensor, membership: Tensor) -> Tensor:
    """How many positions share one entry of `membership`."""
    shape = ops.shape(values)
    return math.prod(ops.cast(shape[axis], "float32") for axis in _extra_axes(values, membership))
