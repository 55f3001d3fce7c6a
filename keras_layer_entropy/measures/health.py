"""Activation health: dead, always-on and saturated units, scale, spread, rank, NaN.

In this file `samples` are all samples and positions that count, of whatever class.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_layer_entropy.backend import Tensor, of_all_replicas
from keras_layer_entropy.measures.class_sums import (
    ClassIds,
    ClassMeans,
    CompensatedSum,
    like_positions,
)
from keras_layer_entropy.measures.measure import (
    LayerInfo,
    Measure,
    MeasureResult,
    Panel,
    Profile,
    Samples,
    Words,
    listed,
)
from keras_layer_entropy.measures.thresholds import find_alerts

# Beside the root mean square of its layer, below this a unit is silent.
SILENT = 1e-6
# A unit is saturated so near an end of its function's range for such a share of samples.
NEAR_AN_END = 0.01
MOST_SAMPLES_OF_A_UNIT = 0.95
_ENDS = {
    **dict.fromkeys(("sigmoid", "hardsigmoid", "sparsesigmoid"), (0.0, 1.0)),
    **dict.fromkeys(("tanh", "hardtanh", "softsign"), (-1.0, 1.0)),
}
_DISTRIBUTIONS = ("softmax", "sparsemax")
_LINEAR_ABOVE_0 = ("relu", "leakyrelu", "prelu", "elu", "selu", "celu")
_ROWS = ("samples", "on", "saturated", "values", "squares")


def effective_rank(means: ArrayLike) -> float:
    """In how many directions some means differ: exp of the entropy of their singular values.

    erank = exp(-sum p_i ln p_i) with p_i = s_i / sum s, and s the singular values of the means less
    their own mean: 1 where all lie on a line, at most one less than there are of them. 0 where all
    are the same.

    Args:
        means: `[classes, units]`, finite.

    Source: Roy & Vetterli, *The effective rank*, EUSIPCO 2007.

    Example:

    >>> effective_rank([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]])
    1.0
    >>> round(effective_rank(np.eye(5)), 6)
    4.0
    """
    means = np.asarray(means, np.float64)
    values = np.linalg.svd(means - means.mean(axis=0), compute_uv=False)
    # What float32 rounds of the largest is no direction.
    values = values[values > 1e-6 * max(values.max(initial=0.0), np.abs(means).max(initial=0.0))]
    if not len(values):
        return 0.0
    p = values / values.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


class FirstNotFinite(keras.metrics.Metric):
    """The number of the first batch in which there was NaN or infinity, for each of some tensors.

    Args:
        count: number of them; several in a tuple count as one.

    Example:

    >>> first = FirstNotFinite(2)
    >>> for value in (1.0, np.inf):
    ...     first.update_state([np.ones(3), np.array([value])])
    >>> first.result().tolist()
    [0, 2]
    """

    def __init__(self, count: int, name: str | None = None) -> None:
        super().__init__(name=name, dtype="float32")
        alone = {"aggregation": "only_first_replica"}  # every replica holds the same
        # How many batches there were, and then the number of the first that is not finite, or 0.
        self._numbers = self.add_variable((1 + count,), "zeros", "int32", name="numbers", **alone)

    @property
    def batches(self) -> Tensor:
        """How many batches there were."""
        return self._numbers[0]

    def update_state(self, tensors: Sequence[Any]) -> None:
        """Adds a batch."""
        found = [[ops.all(ops.isfinite(x)) for x in keras.tree.flatten(one)] for one in tensors]
        finite = ops.stack([functools.reduce(ops.logical_and, flags) for flags in found])
        finite = of_all_replicas(ops.cast(finite, "int32")[None])
        number, first = self._numbers[0] + 1, self._numbers[1:]
        new = ops.logical_and(ops.any(finite == 0, axis=0), first == 0)
        self._numbers.assign(ops.concatenate([number[None], ops.where(new, number, first)]))

    def merge_state(self, statistics: Iterable["FirstNotFinite"]) -> None:
        """Joins others: the first that knows of one says its number."""
        for other in statistics:
            number, first = self._numbers[0] + other._numbers[0], self._numbers[1:]
            first = ops.where(first > 0, first, other._numbers[1:])
            self._numbers.assign(ops.concatenate([number[None], first]))

    def result(self) -> np.ndarray:
        """Numbers of batches, from 1 on, 0 where all is finite; int `[count]`."""
        return np.asarray(ops.convert_to_numpy(self._numbers))[1:]

    def set_result(self, numbers: np.ndarray) -> None:
        """Sets them."""
        self._numbers.assign(np.concatenate([[0], numbers]).astype("int32"))


class HealthState(keras.metrics.Metric):
    """Sums of each unit and means of each class, and the first batch that is not finite.

    Args:
        classes: number of classes.
        units: number of units.
        function: name of the activation function, or None.
    """

    takes_ids = True

    def __init__(
        self, classes: int, units: int, function: str | None, name: str | None = None
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self._function = _plain(function)
        self.means = ClassMeans(classes, units, _finite, are_activations=True)
        self._sums = CompensatedSum((len(_ROWS), units))
        # Values are summed less this, the mean of the first batch: float32 would not resolve what
        # hardly differs beside its size.
        alone = {"aggregation": "only_first_replica"}  # every replica holds the same
        self._reference = self.add_variable((units,), "zeros", "float32", name="reference", **alone)
        self._first = FirstNotFinite(1)

    def update_state(
        self,
        values: tuple[Tensor, Tensor],
        membership: Tensor | ClassIds,
        mask: Tensor | None = None,
    ) -> None:
        """Adds a batch: output and pre-activation `[batch, ..., units]`, else as `ClassMeans`."""
        output, before = (ops.cast(x, "float32") for x in values)
        self.means.update_state(output, membership, mask)
        counts = membership.weights > 0 if isinstance(membership, ClassIds) else membership > 0
        counts = counts if isinstance(membership, ClassIds) else ops.any(counts, axis=-1)
        counts = like_positions(counts, output)
        if mask is not None:
            counts = counts * like_positions(mask, output)
        counts = ops.broadcast_to(counts, ops.shape(output))
        known = ops.where(counts > 0, output, 0.0)
        axes = tuple(range(len(output.shape) - 1))
        self._begin(ops.sum(known, axis=axes), ops.sum(counts, axis=axes))
        less = counts * (known - self._reference)
        on = counts * ops.cast(before > 0, "float32")
        rows = [counts, on, counts * self._saturated(output), less, ops.square(less)]
        self._sums.add(ops.stack([ops.sum(row, axis=axes) for row in rows]))
        self._first.update_state([known])

    def _begin(self, values: Tensor, counts: Tensor) -> None:
        """Takes the means of the first batch for the reference."""
        values, counts = (ops.sum(of_all_replicas(x[None]), axis=0) for x in (values, counts))
        mean = values / ops.maximum(counts, 1.0)
        new = ops.logical_and(self._first.batches == 0, ops.isfinite(mean))
        self._reference.assign(ops.where(new, mean, self._reference[:]))

    def _totals(self) -> np.ndarray:
        """The sums of the values themselves, float64 `[len(_ROWS), units]`."""
        samples, on, at_an_end, less, squares = self._sums.total()
        reference = np.asarray(ops.convert_to_numpy(self._reference), np.float64)
        squares = squares + 2 * reference * less + samples * reference**2
        return np.stack([samples, on, at_an_end, less + samples * reference, squares])

    def _saturated(self, output: Tensor) -> Tensor:
        if self._function in _DISTRIBUTIONS:
            largest = ops.max(output, axis=-1, keepdims=True)
            return ops.cast(largest > 1 - NEAR_AN_END, "float32") * ops.ones_like(output)
        if self._function not in _ENDS:
            return ops.zeros_like(output)
        low, high = _ENDS[self._function]
        near = NEAR_AN_END * (high - low)
        at_end = ops.logical_or(output < low + near, output > high - near)
        return ops.cast(at_end, "float32")

    def merge_state(self, statistics: Iterable["HealthState"]) -> None:
        """Adds the states of others."""
        for other in statistics:
            self.means.merge_state([other.means])
            totals = self._totals() + other._totals()
            self._reference.assign(ops.zeros_like(self._reference[:]))
            self._sums.set_arrays({"sum/total": totals})
            self._first.merge_state([other._first])

    def not_finite(self) -> np.ndarray:
        """Boolean `[classes]`: where activations were NaN or infinite."""
        return self.means.not_finite()

    def arrays(self) -> dict[str, np.ndarray]:
        """As `states` joins them."""
        return {
            "sum/means": self.means.total(),
            "sum/units": self._totals(),
            "first/not_finite": self._first.result(),
        }

    def set_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """From `arrays`."""
        self.reset_state()
        self.means.set_arrays({"sum/total": arrays["sum/means"]})
        self._sums.set_arrays({"sum/total": arrays["sum/units"]})
        self._first.set_result(arrays["first/not_finite"])

    @staticmethod
    def size(classes: int, units: int) -> int:
        """Bytes of such a state."""
        return ClassMeans.size(classes, 1 + units) + CompensatedSum.size(len(_ROWS), units)

    def found(self) -> tuple[np.ndarray, dict[str, float], dict[str, np.ndarray]]:
        """What `ActivationHealth` says of a layer: for each class, of the whole, of each unit."""
        samples, on, at_an_end, values, squares = self._totals()
        whole = dict.fromkeys(ActivationHealth.whole, np.nan)
        whole["not_finite"] = float(self._first.result()[0])
        means = self.means.of_means(lambda x: x)
        per_class = np.full(len(means), np.nan)
        samples = np.where(samples > 0, samples, np.nan)
        squares = squares / samples
        units = {"on": on / samples, "at_an_end": at_an_end / samples, "rms": np.sqrt(squares)}
        scale = np.sqrt(squares.mean())
        whole["rms"] = float(scale)  # infinite where a square is
        if not np.isfinite(scale):
            return per_class, whole, units
        units["dead"] = units["rms"] <= SILENT * scale
        if self._function in _LINEAR_ABOVE_0:
            units["always_on"] = units["on"] == 1.0
        if self._function in _ENDS or self._function in _DISTRIBUTIONS:
            units["saturated"] = units["at_an_end"] >= MOST_SAMPLES_OF_A_UNIT
        for name in ("dead", "always_on", "saturated"):
            if name in units:
                whole[name] = float(np.mean(units[name]))
        variance = np.maximum(squares - np.square(values / samples), 0.0)
        whole["spread"] = float(np.sqrt(variance.mean()))
        known = np.isfinite(means).all(axis=1)
        per_class[known] = np.mean(np.abs(means[known]) <= SILENT * scale, axis=1)
        if known.sum() > 1:
            whole["effective_rank"] = effective_rank(means[known])
        return per_class, whole, units


def _finite(values: Tensor, centred: Tensor) -> Tensor:
    """Activations, 0 where they are not finite."""
    return ops.where(ops.isfinite(values), values, 0.0)


def _plain(function: str | None) -> str:
    """The name of an activation function, of a layer or operation that is one, in one form."""
    return (function or "").lower().replace("_", "")


class ActivationHealth(Measure):
    """Whether the units of a layer do their work: numbers that alerts are given of.

    `per_class` is the share of units that are silent for every sample of the class: their mean is 0
    (a ReLU that is never on). `whole` holds

    * `dead`: the share of units that are silent for all samples;
    * `always_on`: of functions that are linear above 0, such as ReLU, the share of units whose
      pre-activation is positive for every sample;
    * `saturated`: of sigmoid, tanh and the like, the share of units within 1 % of an end of their
      range for at least 95 % of the samples; of a softmax all units of a sample are, where the
      largest is above 0.99;
    * `rms`, the root mean square of the activations, and `spread`, that of what each unit differs
      by from its own mean over the samples;
    * `effective_rank` of the means of the classes (`effective_rank`);
    * `not_finite`: the number of the first batch with NaN or infinite activations, 0 for none.

    NaN stands where there is no such number. `details` holds, for every unit, its `rms`, for what
    share of the samples it is `on` and `at_an_end`, and whether it is `dead`, `always_on` and
    `saturated`. What is unhealthy of these `find_alerts` says.

    Args:
        name: as for every `Measure`.

    Example:

    >>> from keras_layer_entropy import analyze_model
    >>> layers = [keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(3)]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> layers[0].bias.assign([-100.0] * 6 + [0.0] * 2) is None
    False
    >>> x, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 3
    >>> found = analyze_model(model, (x, y), measures="activation_health", verbose=0)
    >>> float(found["activation_health"].whole["dead"][0])
    0.75
    """

    key = "activation_health"
    title = "Silent units"
    unit = "share of the units"
    largest = 1.0
    meaning = (
        "The share of the units that are 0 for every sample of the class, as a ReLU is that is "
        "never on. Of all samples together such a unit is dead: nothing is learned through it."
    )
    caveat = (
        "A few dead units in a wide layer do no harm. What is said of scale is beside the first "
        "layer, and of a training pass it is with dropout, while weights move."
    )
    whole = {
        "dead": Words(
            "Dead units", "share of the units", "The share of units that are 0 for all samples."
        ),
        "always_on": Words(
            "Units that are always on",
            "share of the units",
            "Of ReLU and its kin: units that are on for every sample, and so are linear.",
        ),
        "saturated": Words(
            "Saturated units",
            "share of the units",
            "Of sigmoid, tanh and their kin: units within 1 % of an end of their range for at "
            "least 95 % of the samples, where hardly any gradient is left.",
        ),
        "rms": Words("Scale", "activation", "The root mean square of the activations."),
        "spread": Words(
            "Spread over the samples",
            "activation",
            "The root mean square of what each unit differs by from its own mean.",
        ),
        "effective_rank": Words(
            "Effective rank of the class means",
            "directions",
            "In how many directions the means of the classes differ.",
            "At most one less than there are classes; the means of few samples differ by chance.",
        ),
        "not_finite": Words(
            "First batch that is not finite",
            "batch",
            "The number of the first batch with NaN or infinite activations, 0 for none.",
        ),
    }
    panels = (Panel("health"), Panel("heatmap"))
    layers = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__(name)

    @property
    def log_name(self) -> str:
        return "silent" if self.name == self.key else self.name

    def seen(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return tensors["output"], tensors["pre_activation"]

    def new_state(self, layer: LayerInfo, classes: int) -> HealthState:
        return HealthState(classes, layer.units, layer.function)

    def state_size(self, layer: LayerInfo, classes: int) -> int:
        return HealthState.size(classes, layer.units)

    def result(
        self, layers: Sequence[LayerInfo], states: Sequence[Any], samples: Samples | None
    ) -> MeasureResult:
        per_class, whole, details = zip(*(state.found() for state in states), strict=True)
        return MeasureResult(
            per_class,
            {name: [row[name] for row in whole] for name in self.whole},
            unit=self.unit,
            details={layer.path: row for layer, row in zip(layers, details, strict=True)},
        )

    def verdict(self, profile: Profile, tolerance: float) -> str:
        """What is unhealthy, by the usual thresholds."""
        alerts = find_alerts(profile, measure=self.name)
        whole, told = profile[self.name].whole, [alert.layer for alert in alerts]
        unknown = [
            layer
            for layer, batch in zip(profile.layers, whole["not_finite"], strict=True)
            if batch > 0 and layer not in told
        ]
        found = list(map(str, alerts))
        if unknown:
            found.append(f"Of {listed(unknown)} nothing is known: there are NaN or infinities.")
        return " ".join(found) or "No layer is unhealthy."
