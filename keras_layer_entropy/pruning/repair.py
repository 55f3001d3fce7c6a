"""Give layers that lost some of what they take the kernels with which they do what they did."""

import dataclasses
import math
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.measures.gram import (
    fit_of,
    fit_to,
    ridge_regression,
    ridge_regression_of_few,
)
from keras_layer_entropy.pruning import patches
from keras_layer_entropy.pruning.linear import ATTENTION
from keras_layer_entropy.pruning.reconstruction import RIDGE, Taker, least_missed
from keras_layer_entropy.pruning.walking import Walk, array_of
from keras_layer_entropy.recording.graph import Call, shared_paths, turns

WIDEST = 8192  # features, or samples where there are more features
# Layers whose kernel mixes what they take: where it is not refitted, that is told.
KERNELS = (
    *(keras.layers.Dense, keras.layers.EinsumDense),
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
    *(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
    *(keras.layers.SimpleRNN, keras.layers.GRU, keras.layers.LSTM, keras.layers.Bidirectional),
    keras.layers.TimeDistributed,
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Units to choose among where the one layer that takes them is refitted.

    Attributes:
        owners: `[channels]`, the unit that each channel that the layer takes belongs to.
        among: list of (units, how many of them go).
    """

    owners: np.ndarray
    among: list


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Which call of one model is which of another that had more calls.

    Attributes:
        same: index of a call of the larger model -> the `Call` of the smaller one.
        stand_ins: index of a call of the larger model -> the `Call` of a layer of the smaller one
            that is to give what it gave.
        lost: number of a tensor of the smaller model -> number of the tensor of the larger one that
            is no longer added to it.
    """

    same: dict[int, Call]
    stand_ins: dict[int, Call] = dataclasses.field(default_factory=dict)
    lost: dict[int, int] = dataclasses.field(default_factory=dict)


def repair(student, teacher, inputs, kept, cut, choices=None, pairs=None):
    """Refits layers in the order of the forward pass, each to what it computed in another model.

    Each is fitted on what the layers before it, refitted already, give now. Where its output joins
    a sum, it is fitted so that the sum is that of the other model: it makes up for what the rest of
    the sum has lost.

    Args:
        student: the model whose layers are refitted, in place.
        teacher: the model that it was, with the same calls, or more.
        inputs: what `walking.inputs_of` gave.
        kept: path of each layer that lost something -> places of the units that it still makes,
            None for all.
        cut: a function of the number of a tensor, what the teacher has for it, and axes, if any:
            the same without the units that are gone along all other axes.
        choices: path of a layer -> `Choice`: its kernel is 0 for the units chosen.
        pairs: `Pairs`; None where both have the same calls.

    Returns:
        `(residuals, chosen)`: path -> relative residual of the regression, and list of
        `(unit, cost)` of the units that were chosen.
    """
    new, old = Walk(student, inputs), Walk(teacher, inputs)
    pairs = pairs or Pairs(dict(enumerate(new.graph.calls)))
    models = _Models(new, old, pairs, cut, shared_paths(new.graph))
    choices, residuals, chosen = choices or {}, {}, []
    for turn in turns(old.graph, _has_kernel, models.waiting()):
        found = [(pairs.same[i], old.graph.calls[i]) for i in turn if i in pairs.same]
        target = models.target(found, kept, choices) if found else None
        if target is not None:
            residuals[target.path], gone = target.fit(choices.get(found[0][0].path))
            chosen += gone
        untouched = target is None and not any(call.path in kept for call, _ in found)
        alike = {id(before): models.alike(call, before) for call, before in found}
        for index in turn:
            call, before = pairs.same.get(index), old.graph.calls[index]
            old.make(before)
            if call is not None and untouched and alike[id(before)]:
                new.take(call, old, before)
            elif call is not None:
                new.make(call)
            if index in pairs.stand_ins:
                instead = pairs.stand_ins[index]
                given, outputs = _taken(new, [instead]), old.value(before.outputs[0])
                target = StandIn(instead.operation, instead.path, given, outputs)
                residuals[target.path], _ = target.fit()
                new.make(instead)
    return residuals, chosen


@dataclasses.dataclass(frozen=True)
class _Models:
    """The walks through both models, and what is which.

    Attributes:
        new, old: `Walk`s.
        pairs, cut: as for `repair`.
        shared: paths of layers that are called several times.
    """

    new: Walk
    old: Walk
    pairs: Pairs
    cut: Any
    shared: set

    def alike(self, call, before):
        """Whether a call is given what it was given."""
        values = zip(self.new.given(call), self.old.given(before), strict=True)
        return all(a is b for a, b in values)

    def target(self, found, kept, choices):
        """The `_Target` of the calls of one layer; None where it is not refitted."""
        calls, befores = zip(*found, strict=True)
        call = calls[0]
        if not _has_kernel(call.operation):
            return None
        inside = patches.mixer(call.operation) is not call.operation
        other = inside and kept.get(call.path) is not None
        other = other or not all(self.alike(*pair) for pair in found)
        beside = self._beside(call, befores[0])
        other = other or any(new is None for _, new in beside[-1])
        if not other and call.path not in choices:
            return None
        if reason := _reason(self.new, calls):
            warnings.warn(f"{call.path} is not refitted: {reason}.", stacklevel=4)
            return None
        return _Target(self, calls, befores, beside)

    def waiting(self):
        """Index of a call -> number of what its sum has lost, which is to be known before it."""
        found = {}
        for index, call in self.pairs.same.items() if self.pairs.lost else ():
            if _has_kernel(call.operation) and call.path not in self.shared:
                *_, others = self._beside(call, self.old.graph.calls[index])
                found.update((index, number) for number, new in others if new is None)
        return found

    def missing(self, others, axis):
        """What the other tensors of a sum have lost: arrays for one batch after the other.

        The units, along an axis, come last; None where that is nothing, or not known.
        """
        found = []
        for number, now in others:
            was, left = self.old.value(number), None if now is None else self.new.value(now)
            if was is None or (left is None and now is not None):
                return None
            if was is not left:
                was = [self.cut(number, part).astype("float32") for part in was]
                left = [0.0] * len(was) if now is None else left
                found.append([a - np.asarray(b, "float32") for a, b in zip(was, left, strict=True)])
        sums = [sum(parts) for parts in zip(*found, strict=True)]
        return [np.moveaxis(part, axis, -1) for part in sums] or None

    def _beside(self, call, before):
        """`(normalization, scale, others)`: what lies between a layer and the sum that it joins.

        The first normalisation behind the layer or None; what a difference in the sum is multiplied
        with to be one before that; the numbers of the other tensors of the sum in the old model and
        in the new one, None for what is no longer added.
        """
        normalization, scale, number, graph = None, 1.0, call.outputs[0], self.new.graph
        layer = patches.mixer(call.operation)
        activation = getattr(layer, "activation", None)
        if call.path in self.shared or activation not in (None, keras.activations.linear):
            return None, scale, ()
        axis = 1 if patches.channels_first(layer) else len(graph.shapes[number]) - 1
        while True:
            if number in self.pairs.lost:
                return normalization, scale, ((self.pairs.lost[number], None),)
            takers = graph.consumers(number)
            if len(takers) != 1 or number in graph.outputs or takers[0].path in self.shared:
                return normalization, scale, ()
            operation = takers[0].operation
            if type(operation) is keras.layers.BatchNormalization and normalization is None:
                if operation.axis % len(graph.shapes[number]) != axis:
                    return None, 1.0, ()
                normalization, scale = operation, _inverse_scale(operation)
            elif type(operation).__name__ == "Add":
                return normalization, scale, self._others(takers[0], number)
            elif not isinstance(operation, keras.layers.Dropout | keras.layers.Identity):
                return normalization, scale, ()
            number = takers[0].outputs[0]

    def _others(self, call, number):
        """Numbers of the other tensors of a sum, in the old model and in the new one."""
        before = next(
            self.old.graph.calls[i] for i, x in self.pairs.same.items() if x.outputs == call.outputs
        )
        pairs = [pair for pair in zip(before.inputs, call.inputs, strict=True) if pair[1] != number]
        shapes = self.new.graph.shapes
        alike = all(shapes[new] == shapes[number] for _, new in pairs)
        return tuple(pairs) if alike and len(pairs) == len(call.inputs) - 1 else ()


def centred(gram, features):
    """The sums of products of the first columns around their means, from those of `[x, 1, ...]`.

    What rounding leaves of a constant is no variation: its row and column are 0.
    """
    sums = gram[features, :features]
    found = gram[:features, :features] - np.outer(sums, sums) / gram[features, features]
    constant = np.diag(found) <= 1e-10 * np.diag(gram)[:features]
    found[constant] = found[:, constant] = 0.0
    return found


def whole_paths(graph):
    """Paths of layers that can be refitted on what all of their calls are given."""
    return {
        graph.calls[turn[0]].path
        for turn in turns(graph, _has_kernel)
        if len(turn) == len(graph.calls_of(graph.calls[turn[0]].path))
    }


def mixes(layer):
    """Whether a layer mixes what it takes with a kernel."""
    return type(patches.mixer(layer)) in KERNELS


def _has_kernel(layer):
    if not mixes(layer):
        return False
    layer = patches.mixer(layer)
    depthwise = getattr(layer, "groups", 1) > 1 and layer.kernel.shape[-2] == 1
    return not depthwise  # which mixes nothing


def _reason(walk, calls):
    layer = patches.mixer(calls[0].operation)
    if reason := patches.obstacle(layer):
        return reason
    if len(calls) < len(walk.graph.calls_of(calls[0].path)):
        return "it is called several times, on what comes of its own calls"
    if patches.features_of(layer) <= WIDEST:
        return None
    if sum(len(x) * patches.rows_of(layer, x) for x in _taken(walk, calls)) <= WIDEST:
        return None
    return (
        f"it takes more than {WIDEST} features, and the calibration data have more than {WIDEST} "
        "samples or places for them"
    )


class _Target:
    """What a layer is to compute: what it did, and what is missing in the sum that it joins.

    Args:
        models: `_Models`.
        calls, befores: the calls of the layer in each.
        beside: what `_Models._beside` gave for them.
    """

    def __init__(self, models, calls, befores, beside):
        new, old, cut = models.new, models.old, models.cut
        call, before = calls[0], befores[0]
        self._layer, self._teacher = map(patches.mixer, (call.operation, before.operation))
        inside = self._layer is not call.operation
        self.path = f"{call.path}/{self._layer.name}" if inside else call.path
        self._given, self._wanted = _taken(new, calls), _taken(old, befores, cut)
        self._kept = _kept_units(self._teacher, old.graph, before, cut)
        self._normalization, scale, others = beside
        lost = models.missing(others, 1 if patches.channels_first(self._layer) else -1)
        self._missing = None if lost is None else [scale * part for part in lost]

    def fit(self, choice=None):
        """Gives the layer its kernel and bias; the relative residual, and the units chosen."""
        layer, chosen = self._layer, []
        intercept = layer.bias is not None or self._normalization is not None
        features, groups = patches.features_of(layer), patches.groups_of(layer)
        kind = _Samples if features > WIDEST else _Sums
        before = np.split(patches.matrix(layer), groups, axis=1)
        samples = [
            kind(self._rows(group), features, intercept, before[group]) for group in range(groups)
        ]
        stay = np.arange(features)
        if choice is not None:
            owners = np.tile(choice.owners, patches.taps_of(layer))
            gram = centred(samples[0].gram, features)
            chosen = least_missed([Taker(gram, samples[0].fit(stay).kernel, owners)], choice.among)
            stay = np.flatnonzero(~np.isin(owners, [unit for unit, _ in chosen]))
        fits = [some.fit(stay) for some in samples]
        if patches.constraint_of(layer) is not None:
            kernel = patches.constrained(layer, np.hstack([fit.kernel for fit in fits]))
            parts = np.split(kernel, groups, axis=1)
            fits = [some.fit_of(part) for some, part in zip(samples, parts, strict=True)]
            warnings.warn(
                f"The refitted weights of {self.path} were projected onto their constraint, "
                f"{type(patches.constraint_of(layer)).__name__}, so that they fit less well than "
                "least squares.",
                stacklevel=4,
            )
        if samples[0].count < len(stay):
            warnings.warn(
                f"{self.path} takes {len(stay)} features, and the calibration data have "
                f"{samples[0].count:.0f} samples or places for them: it fits these, and others "
                "less well. Pass more.",
                stacklevel=4,
            )
        bias = np.concatenate([fit.bias for fit in fits])
        patches.assign(layer, np.hstack([fit.kernel for fit in fits]), bias)
        if layer.bias is None and intercept:
            # What a bias would add, the normalisation behind takes off less.
            mean = self._normalization.moving_mean
            mean.assign(mean - ops.cast(bias, mean.dtype))
        spread = np.array([some.spread for some in samples])
        shares = spread / spread.sum() if spread.any() else spread
        return float(shares @ [fit.residual for fit in fits]), chosen

    def _rows(self, group):
        """Arrays `[rows, features + 1 + units]` of a group: what it takes, 1, what it is to be."""
        size = math.prod(patches.units_of(self._layer)) // patches.groups_of(self._layer)
        own = slice(group * size, (group + 1) * size)
        for index, x in enumerate(self._given):
            step = self._at_a_time(index)
            for start in range(0, len(x), step):
                some = slice(start, start + step)
                rows = patches.rows(self._layer, x[some], group, more=1 + size)
                rows[:, -size - 1] = 1.0
                rows[:, -size:] = array_of(self._targets(index, some, own))
                yield rows

    def _at_a_time(self, index):
        return patches.at_a_time(self._teacher, self._wanted[index])

    def _targets(self, index, some, own):
        """What some units of the layer are to be for some samples of a batch: `[rows, units]`."""
        of_teacher = math.prod(patches.units_of(self._teacher)) // patches.groups_of(self._teacher)
        before, places = self._kept[own][0] // of_teacher, self._kept[own] % of_teacher
        target = patches.before_activation(self._teacher, self._wanted[index][some], before)
        if len(places) < of_teacher:
            target = ops.take(target, places, axis=-1)
        if self._missing is not None:
            missing = ops.cast(self._missing[index][some], target.dtype)
            target = target + ops.reshape(missing, (target.shape[0], -1))[:, own]
        return target


class StandIn(_Target):
    """What a new layer is to give: what came out of the calls in whose place it is.

    Args:
        layer: the layer, built, with the kernel from which the ridge is counted.
        path: what it is called in words.
        given, outputs: what it is given and what it is to give, lists of arrays of batches.
    """

    def __init__(self, layer, path, given, outputs):
        self._layer, self.path = layer, path
        self._given, self._outputs = given, outputs
        self._normalization = None

    def _at_a_time(self, index):
        return patches.at_a_time(self._layer, self._given[index])

    def _targets(self, index, some, own):
        outputs = self._outputs[index][some]
        if patches.channels_first(self._layer):
            outputs = np.moveaxis(outputs, 1, -1)
        return outputs.reshape(-1, outputs.shape[-1])[:, own]


class _Sums:
    """The regression of a layer from sums of products.

    Args:
        parts: generator of arrays `[rows, features + 1 + units]`.
        features: how many of them there are.
        intercept: whether there is a bias.
        before: the kernel as it was, `[features, units]`; where there are more features than
            samples, what these leave open stays as it was.
    """

    def __init__(self, parts, features, intercept, before):
        self._features, self._intercept, self._before = features, intercept, before
        self.gram = patches.gram(parts, features)
        self.count = self.gram[features, features]
        sums = self.gram[features, features + 1 :]
        squares = np.diag(self.gram)[features + 1 :]
        self.spread = np.sum(squares - sums**2 / self.count if intercept else squares)

    def fit(self, stay):
        """The `LinearFit` with some features alone, the kernel of the others being 0."""
        features = self._features
        some = np.concatenate([stay, np.arange(features, len(self.gram))])
        gram = self.gram[np.ix_(some, some)] if len(stay) < features else self.gram
        start = self._before[stay] if self.count < len(stay) else None
        fit = ridge_regression(gram, len(stay), RIDGE, self._intercept, start)
        kernel = np.zeros((features, fit.kernel.shape[1]))
        kernel[stay] = fit.kernel
        return dataclasses.replace(fit, kernel=kernel)

    def fit_of(self, kernel):
        """The `LinearFit` of a kernel that is given."""
        return fit_of(kernel, self.gram, self._features, self._intercept)


class _Samples:
    """The same from the samples themselves, where these are fewer than features."""

    def __init__(self, parts, features, intercept, before):
        rows = np.concatenate(list(parts))
        self._x, self._z = rows[:, :features], rows[:, features + 1 :]
        self._intercept, self._before, self.count = intercept, before, len(rows)
        self.spread = np.sum((self._z - self._z.mean(0) if intercept else self._z) ** 2)

    def fit(self, _stay):
        """The `LinearFit` with all features."""
        return ridge_regression_of_few(self._x, self._z, RIDGE, self._intercept, self._before)

    def fit_of(self, kernel):
        """The `LinearFit` of a kernel that is given."""
        return fit_to(kernel, self._x, self._z, self._intercept)


def _taken(walk, calls, cut=None):
    """What the kernel of a layer is given in some calls, arrays for one batch after the other.

    With `cut` without what has gone, except along the axes of features.
    """
    found = []
    for call in calls:
        layer = patches.mixer(call.operation)
        for values in walk.batches(call):
            x = patches.taken(call, values)
            if cut is not None and type(call.operation) not in ATTENTION:  # which lets none go
                x = cut(call.inputs[0], x, patches.feature_axes(layer, np.ndim(x)))
            found.append(x)
    return found


def _kept_units(layer, graph, call, cut):
    """Places of the units that a layer still makes, among those that it made."""
    shape = [n or 1 for n in graph.shapes[call.outputs[0]]]
    units = patches.units_of(layer)
    numbers = np.arange(math.prod(units)).reshape(units)
    if patches.channels_first(layer):
        numbers = numbers.reshape(-1, *[1] * (len(shape) - 2))
    left = cut(call.outputs[0], np.broadcast_to(numbers, shape))
    return np.unique(left)


def _inverse_scale(layer):
    """What the output of a normalisation is multiplied with to be a difference of its input."""
    variance = np.asarray(ops.convert_to_numpy(layer.moving_variance), np.float32)
    gamma = 1.0 if layer.gamma is None else np.asarray(ops.convert_to_numpy(layer.gamma))
    scale = gamma / np.sqrt(variance + layer.epsilon)
    # A channel that is next to constant cannot make up for anything.
    weak = np.abs(scale) < 1e-3 * np.abs(scale).max()
    return np.where(weak, 0.0, 1.0 / np.where(weak, 1.0, scale)).astype("float32")
