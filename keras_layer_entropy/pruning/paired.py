"""How surely one model is better than another on the same samples."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops, tree

from keras_layer_entropy.backend import Data, Tensor, of_all_replicas, strategy_scope
from keras_layer_entropy.pruning.accuracies import NAME, compiled_outputs
from keras_layer_entropy.pruning.evaluation import compiled_with
from keras_layer_entropy.pruning.rewrite import without
from keras_layer_entropy.recording.passes import Source, StreamingPass

Differences = Callable[[Any, Any, Any], Tensor]  # outputs of both and labels -> [batch]
_MEANS = ("sum_over_batch_size", "mean")


class Comparison(StreamingPass):
    """Shows a function what two models give.

    Args:
        model, other: models with the same inputs.
        statistics: list of `keras.metrics.Metric`.
        look: called in each batch with the outputs of both and the labels.
    """

    def __init__(
        self,
        model: keras.Model,
        other: keras.Model,
        statistics: list[keras.metrics.Metric],
        look: Callable[[Any, Any, Any], object],
    ) -> None:
        super().__init__(model, statistics, name="comparison")
        self._one, self._other, self._look = model, other, look

    def call(self, x: Any) -> Any:
        return [model(x, training=False) for model in (self._one, self._other)]

    def update(self, seen: Any, y: Any, sample_weight: Any) -> None:
        outputs, others = seen
        self._look(outputs, others, y)


class Spread(keras.metrics.Metric):
    """The mean of rows, and the sum of squares about it.

    The sums of two parts about their own means add up to that of the whole with the distance of
    the means (Chan, Golub & LeVeque 1979): nothing is cancelled.

    Args:
        units: entries of a row.

    Attributes:
        count, mean, total: variables: number of rows, their mean `[units]`, the sum of squares.
    """

    def __init__(self, units: int, name: str = "spread") -> None:
        super().__init__(name=name)
        # Every replica holds the same, which must not be added up.
        alone = {"aggregation": "only_first_replica"}
        self.count = self.add_variable((), "zeros", name="count", **alone)
        self.mean = self.add_variable((units,), "zeros", name="mean", **alone)
        self.total = self.add_variable((), "zeros", name="total", **alone)

    def update_state(self, rows: Tensor) -> None:
        """Adds rows, `[number, units]`, of all replicas."""
        rows = of_all_replicas(rows)
        more, own = ops.cast(ops.shape(rows)[0], "float32"), ops.mean(rows, axis=0)
        both, apart = self.count + more, own - self.mean
        between = ops.sum(ops.square(apart)) * self.count * more / both
        self.total.assign_add(ops.sum(ops.square(rows - own)) + between)
        self.mean.assign_add(apart * more / both)
        self.count.assign(both)

    def result(self) -> Tensor:
        return ops.sqrt(self.total / self.count)


def standard_error(
    model: keras.Model,
    other: keras.Model,
    differences: Differences,
    data: Data,
    batch_size: int = 256,
    steps: int | None = None,
) -> float:
    """The standard error of the mean difference between two models on the same samples.

    With d what a sample is worth more to one than to the other, sd(d) / sqrt(n).

    Args:
        model, other: models with the same inputs.
        differences: a function of both models' outputs and the labels of a batch, d `[batch]`.
        data: as for `analyze_model`.
        batch_size: batch size for arrays.
        steps: number of batches, None for all.

    Returns:
        The standard error; NaN of a single sample.

    Example:

    >>> import numpy as np
    >>> model, other = (keras.Sequential([keras.Input((1,)), keras.layers.ReLU(threshold=t)])
    ...                 for t in (0.0, 2.5))
    >>> x = np.array([[1.0], [2.0], [3.0]])  # d is 1, 2, 0
    >>> error = standard_error(model, other, lambda a, b, y: (a - b)[:, 0], x)
    >>> round(error, 4)  # 1 / sqrt(3)
    0.5774
    """
    with strategy_scope(model):
        spread = Spread(1)

        def look(outputs: Any, others: Any, y: Any) -> None:
            found = ops.cast(differences(outputs, others, y), "float32")
            spread.update_state(ops.reshape(found, (-1, 1)))

        comparison = Comparison(model, other, [spread], look)
    comparison.run(Source(data, batch_size, steps))
    count, total = (float(ops.convert_to_numpy(x)) for x in (spread.count, spread.total))
    return math.sqrt(total / (count - 1) / count) if count > 1 else math.nan


def loss_differences(model: keras.Model, batch: Any) -> Differences | None:
    """By how much each sample's loss differs; None where the loss is no mean over samples.

    Args:
        model: a compiled model; it is not changed.
        batch: of the data, `(x, y, sample_weight)`.
    """
    copy, _ = without(model, None)
    outputs = compiled_outputs(copy, batch)
    if any(loss.reduction not in _MEANS for output in outputs for loss in output.losses):
        return None
    parts = [
        (output.key, loss.call, 1.0 if factor is None else factor)
        for output in outputs
        for loss, factor in zip(output.losses, output.loss_weights, strict=True)
    ]
    return _of_samples(copy, batch, parts, len(outputs) == 1) if parts else None


def accuracy_differences(model: keras.Model, batch: Any, metrics: Any) -> Differences | None:
    """Which samples the one model has right and the other not; None where nobody can know.

    Args:
        model, batch: as for `loss_differences`.
        metrics: what `accuracy_metrics` gave.
    """
    copy, _ = without(model, None)
    with compiled_with(copy, metrics):
        outputs = compiled_outputs(copy, batch)
        found = [(o.key, m) for o in outputs for m in o.metrics if m.name == NAME]
        weighted = any(m.name == NAME for o in outputs for m in o.weighted_metrics)
    own = keras.metrics.MeanMetricWrapper.update_state
    if weighted or any(type(metric).update_state is not own for _, metric in found):
        return None
    parts = [
        (key, functools.partial(metric._fn, **metric._fn_kwargs), 1 / len(found))
        for key, metric in found
    ]
    return _of_samples(copy, batch, parts, len(outputs) == 1)


def _of_samples(model: Any, batch: Any, parts: Any, single: bool) -> Differences | None:
    """The sum of functions of single outputs, each times a factor, where these are per sample."""

    def entry(structure: Any, key: Any) -> Any:
        return structure if single else dict(tree.flatten_with_path(structure))[key]

    def values(outputs: Any, y: Any) -> Any:
        total = 0.0
        for key, function, factor in parts:
            output = entry(outputs, key)
            found = function(ops.cast(entry(y, key), output.dtype), output)
            axes = tuple(range(1, len(found.shape)))
            total = total + factor * (ops.mean(found, axis=axes) if axes else found)
        return total

    x, y, weight = batch
    if weight is not None:
        return None
    try:
        outputs = model(x, training=False)
        size, found = tree.flatten(outputs)[0].shape[0], tuple(values(outputs, y).shape)
    except Exception:  # noqa: BLE001 - somebody's own functions may raise anything
        return None
    masked = any(getattr(part, "_keras_mask", None) is not None for part in tree.flatten(outputs))
    if masked or found != (size,):
        return None
    return lambda outputs, others, y: values(outputs, y) - values(others, y)
