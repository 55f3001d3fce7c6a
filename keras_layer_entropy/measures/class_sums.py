"""What streams past of a layer as sums per class, O(classes x units).

Two states of the same layer add up (`merge_state`), and measures look at the sums of the whole
pass: a mean of the batches' entropies would be biased low.

Which class a sample is of is said by a tensor `[batch, ..., classes]`, its weight in each, or by
`ClassIds`, where it is of one class alone. By ids a batch costs the same however many classes
there are: only the rows of its own classes are touched.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.backend import Tensor, add_rows, rows_of, set_rows

# Means below this are summed as they are: float32 knows them to 1e-5.
_SMALL = 100.0
_BLOCK = 2**24  # numbers of a sum that are looked at in one go, as float64: 128 MiB
# Classes: a batch of so many costs less as one product with the weights in each than by ids.
MANY = 64
TURNS = 256  # batches after which what is recent of a class has been added to what is kept


class ClassIds(NamedTuple):
    """The class of each sample or position, where it has one alone.

    Attributes:
        ids: int32 `[batch, ...]`, in 0..classes - 1, also where it does not count.
        weights: float32 `[batch, ...]`, how much it counts.
        classes: number of classes.
        groups: int32 `[batch * ...]`, which of the classes of the batch, in order, each is of;
            None while nobody asked (`grouped`).
        of_groups: int32 `[batch * ...]`, the ids of these classes, and then 0.
    """

    ids: Tensor
    weights: Tensor
    classes: int
    groups: Tensor | None = None
    of_groups: Tensor | None = None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """That of the weights of each class, `(batch, ..., classes)`."""
        return (*self.ids.shape, self.classes)

    def grouped(self) -> "ClassIds":
        """The same with its groups, which serve all layers."""
        ids = ops.reshape(self.ids, (-1,))
        order = ops.argsort(ids)
        ordered = ops.take(ids, order)
        new = ops.cast(ordered[1:] != ordered[:-1], "int32")
        groups = ops.cumsum(ops.concatenate([ops.zeros_like(ordered[:1]), new]))
        groups = ops.take(groups, ops.argsort(order))
        of_groups = ops.segment_max(ids, groups, num_segments=ops.shape(ids)[0])
        return self._replace(groups=groups, of_groups=ops.maximum(of_groups, 0))

    def dense(self) -> Tensor:
        """The weight in each class, `[batch, ..., classes]`."""
        return ops.one_hot(self.ids, self.classes, dtype="float32") * self.weights[..., None]


class CompensatedSum(keras.metrics.Metric):
    """A sum of float32 tensors that does not drift: each addition's rounding error is kept.

    The sum is the unevaluated sum of two floats (Dekker 1971): TwoSum gives the exact error of each
    addition (Knuth, TAOCP vol. 2, 4.2.2, theorem B), FastTwoSum brings the two parts back in order.
    float64 would do too, but JAX has none by default. Both parts are one variable, because every
    variable that a step writes costs time.
    """

    def __init__(self, shape: tuple[int, ...], name: str | None = None) -> None:
        super().__init__(name=name, dtype="float32")
        first, *rest = shape
        self._parts = self.add_variable((first, 2, *rest), "zeros", "float32", name="sum")

    def add(self, value: Tensor) -> None:
        """Adds a tensor."""
        self._parts.assign(_plus(self._parts, value))

    def total(self) -> np.ndarray:
        """The sum of all that was added, float64."""
        return np.asarray(ops.convert_to_numpy(self._parts), np.float64).sum(axis=1)

    def merge_state(self, statistics: Iterable["CompensatedSum"]) -> None:
        """Adds the states of other statistics of the same layer (other devices, other parts)."""
        for other in statistics:
            self.add(other._parts[:, 0])
            self.add(other._parts[:, 1])

    def arrays(self) -> dict[str, np.ndarray]:
        """As `states` joins them."""
        return {"sum/total": self.total()}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """From `arrays`, to 48 bits."""
        self.reset_state()
        total = arrays["sum/total"]
        high = total.astype(np.float32)
        low = np.where(np.isfinite(total), total - high, 0.0).astype(np.float32)
        self._parts.assign(np.stack([high, low], axis=1))

    @staticmethod
    def size(*shape: int) -> int:
        """Bytes of a sum of this shape."""
        return 8 * math.prod(shape)


def _plus(parts: Tensor, value: Tensor) -> Tensor:
    high, low = ops.unstack(ops.convert_to_tensor(parts), axis=1)
    total = high + value
    rest = total - high
    low = low + ((high - (total - rest)) + (value - rest))
    high = total + low
    return ops.stack([high, low - (high - total)], axis=1)


class ClassMeans(CompensatedSum):
    """A weighted mean per class of some features of a layer's activations.

    Of many classes a batch holds few. What their samples add, by `ClassIds`, goes to sums that are
    plain floats, and in turns, so many classes after each batch that it takes `TURNS` for all, what
    they have come to is moved to the compensated sum. So a batch costs what its samples and a few
    rows more cost, and a plain sum is one of `TURNS` batches at most.

    Args:
        classes: number of classes.
        width: number of features.
        features: what is averaged: a function of activations `[batch, ..., units]`, and of the
            same without each sample's mean over units (0 where not finite), to `[batch, ...,
            width]`.
        prepare: done to activations first.
        are_activations: whether the features are the activations themselves.
    """

    takes_ids = True

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
        self._recent: Any = None
        if classes > MANY:
            shape = (classes, 1 + width)
            self._recent = self.add_variable(shape, "zeros", "float32", name="recent")
            self._turn = self.add_variable((), "zeros", "int32", name="turn")

    @staticmethod
    def size(*shape: int) -> int:
        """Bytes of the means of `(classes, 1 + width)`."""
        size = CompensatedSum.size(*shape)
        return size + (size // 2 + 4 if shape[0] > MANY else 0)

    def update_state(
        self, values: Tensor, membership: Tensor | ClassIds, mask: Tensor | None = None
    ) -> None:
        """Adds a batch.

        Args:
            values: tensor `[batch, ..., units]`. Each position is a sample of its class.
            membership: `[batch, classes]`, weight of each sample in each class;
                `[batch, positions, classes]` where the labels are per position; or `ClassIds`,
                grouped.
            mask: `[batch, ...]`, which positions count, or None.
        """
        values = ops.cast(values, "float32")
        values = values if self._prepare is None else self._prepare(values)
        if mask is None:
            weight = ops.expand_dims(_sizes(membership), axis=-1)
            if _extra_axes(values, membership):
                weight = weight * _shared_positions(values, membership)
        else:
            mask = like_positions(mask, values)
            weight = per_class(mask * ops.ones_like(values[..., :1]), membership)
        total = self._class_sums(values, membership, mask, weight)
        total = ops.concatenate([weight, total], axis=-1)
        if isinstance(membership, ClassIds):
            self._add_rows(total, membership.of_groups)
        else:
            self.add(total)

    def merge_state(self, statistics: Iterable["ClassMeans"]) -> None:
        """Adds the states of other statistics of the same layer (other devices, other parts)."""
        statistics = list(statistics)
        super().merge_state(statistics)
        for other in statistics:
            if other._recent is not None:
                self.add(other._recent[:])

    def _add_rows(self, rows: Tensor, classes: Tensor) -> None:
        add_rows(self._recent, classes, rows)
        # No class twice: what is moved is taken off.
        number = self._recent.shape[0]
        some = ops.arange(-(-number // TURNS), dtype="int32") + self._turn * -(-number // TURNS)
        some = some % number
        moved = rows_of(self._recent, some)
        set_rows(self._parts, some, _plus(rows_of(self._parts, some), moved))
        # Not set to 0: XLA would copy all rows where it cannot tell that these were read before.
        add_rows(self._recent, some, -moved)
        self._turn.assign((self._turn + 1) % TURNS)

    def of_means(self, function: Callable[[np.ndarray], Tensor]) -> np.ndarray:
        """What a function makes of the mean of each class; NaN where there is none.

        There is none of a class without samples or with values that were not finite.

        Args:
            function: from means, float64 `[some classes, width]`, to `[some classes, ...]`, class
                by class; it is given blocks of them.

        Returns:
            float64 `[classes, ...]`.
        """
        blocks = []
        for total in self._blocks():
            weight, sums = total[:, :1], total[:, 1:]
            known = (weight[:, 0] > 0) & ~np.isnan(sums).any(axis=1)
            # Where nothing is known, of something, for its shape.
            means = np.where(known[:, None], sums, 0.0) / np.where(known[:, None], weight, 1.0)
            found = np.asarray(ops.convert_to_numpy(function(means)), np.float64)
            blocks.append(np.where(known.reshape(-1, *[1] * (found.ndim - 1)), found, np.nan))
        return np.concatenate(blocks)

    def not_finite(self) -> np.ndarray:
        """Boolean `[classes]`: where activations were NaN or infinite."""
        return np.concatenate([np.isnan(total).any(axis=1) for total in self._blocks()])

    def total(self) -> np.ndarray:
        """The sum of all that was added, float64."""
        return np.concatenate(list(self._blocks()))

    def _blocks(self) -> Iterator[np.ndarray]:
        """The total of some classes after the other: all of many would be large in float64."""
        parts = ops.convert_to_numpy(self._parts)
        recent = None if self._recent is None else ops.convert_to_numpy(self._recent)
        size = max(1, _BLOCK // parts.shape[-1])
        for start in range(0, len(parts), size):
            total = parts[start : start + size].astype(np.float64).sum(axis=1)
            yield total if recent is None else total + recent[start : start + size]

    def _class_sums(
        self,
        values: Tensor,
        membership: Tensor | ClassIds,
        mask: Tensor | None,
        weight: Tensor,
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

    def _finite_sums(
        self, values: Tensor, membership: Tensor | ClassIds, mask: Tensor | None
    ) -> Tensor:
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


def per_class(values: Tensor, membership: Tensor | ClassIds) -> Tensor:
    """Sums of `[batch, ..., k]` over the samples of each class, `[classes, k]`.

    By `ClassIds` those of the classes of the batch, `[batch, k]`.
    """
    if axes := _extra_axes(values, membership):
        values = ops.sum(values, axis=axes)
    values = _rows(values)
    if isinstance(membership, ClassIds):
        return _of_groups(ops.segment_sum, values * _weights(membership)[:, None], membership)
    membership = _rows(membership)
    # A matrix product, because XLA compiles neither boolean masks nor counts of unique values.
    return ops.matmul(ops.transpose(membership), values)


def _rows(x: Tensor) -> Tensor:
    """`[batch, ..., k]` as `[batch * ..., k]`."""
    return x if len(x.shape) == 2 else ops.reshape(x, (-1, x.shape[-1]))


def any_per_class(flags: Tensor, membership: Tensor | ClassIds) -> Tensor:
    """For which classes a flag `[batch, ..., 1]` is raised, `[classes, 1]`.

    By `ClassIds` for which of the classes of the batch, `[batch, 1]`.
    """
    flags = ops.any(flags, axis=_extra_axes(flags, membership))
    if isinstance(membership, ClassIds):
        raised = ops.logical_and(ops.reshape(flags, (-1,)), _weights(membership) > 0)
        return _of_groups(ops.segment_max, ops.cast(raised, "int32"), membership)[:, None] > 0
    flags = ops.logical_and(flags, membership > 0)
    return ops.expand_dims(ops.any(flags, axis=tuple(range(len(flags.shape) - 1))), axis=-1)


def count_samples(membership: Tensor | ClassIds) -> Tensor:
    """How many samples and positions count for each class, float32 `[classes]`."""
    if isinstance(membership, ClassIds):
        counts = ops.cast(_weights(membership) > 0, "float32")
        ids = ops.reshape(membership.ids, (-1,))
        return ops.segment_sum(counts, ids, num_segments=membership.classes)
    return _sum_samples(ops.cast(membership > 0, "float32"))


def positions_of(membership: Tensor | ClassIds) -> tuple[Any, ...]:
    """Shape of what has a class: `(batch, ...)`, with tensors for what is not known."""
    if isinstance(membership, ClassIds):
        return tuple(ops.shape(membership.ids))
    return tuple(ops.shape(membership)[:-1])


def _sizes(membership: Tensor | ClassIds) -> Tensor:
    """Weights of all samples and positions of each class, as `per_class` would add them."""
    if isinstance(membership, ClassIds):
        return _of_groups(ops.segment_sum, _weights(membership), membership)
    return _sum_samples(membership)


def _sum_samples(membership: Tensor) -> Tensor:
    return ops.sum(membership, axis=tuple(range(len(membership.shape) - 1)))


def _weights(membership: ClassIds) -> Tensor:
    return ops.reshape(membership.weights, (-1,))


def _of_groups(reduce: Callable[..., Tensor], values: Tensor, membership: ClassIds) -> Tensor:
    """What the samples and positions of each class of the batch come to."""
    groups = membership.groups
    return reduce(values, groups, num_segments=ops.shape(groups)[0])


def _extra_axes(values: Tensor, membership: Tensor | ClassIds) -> tuple[int, ...]:
    """The axes of positions that share one entry of `membership`."""
    return tuple(range(len(membership.shape) - 1, len(values.shape) - 1))


def _shared_positions(values: Tensor, membership: Tensor | ClassIds) -> Tensor:
    """How many positions share one entry of `membership`."""
    shape = ops.shape(values)
    return math.prod(ops.cast(shape[axis], "float32") for axis in _extra_axes(values, membership))
