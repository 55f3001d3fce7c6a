"""Give layers that lost some of what they take the kernels with which they do what they did."""

import dataclasses
import warnings

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.measures.gram import fit_of, ridge_regression
from keras_layer_entropy.pruning import linear, patches
from keras_layer_entropy.pruning.graph import shared_paths
from keras_layer_entropy.pruning.reconstruction import RIDGE, Taker, least_missed
from keras_layer_entropy.pruning.walking import Walk

WIDEST = 8192  # features
# Layers whose kernel mixes what they take: where it is not refitted, that is told.
KERNELS = (
    *(keras.layers.Dense, keras.layers.EinsumDense),
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
    *(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
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


def repair(student, teacher, inputs, kept, cut, choices=None):
    """Refits layers in the order of the forward pass, each to what it computed in another model.

    Each is fitted on what the layers before it, refitted already, give now. Where its output joins
    a sum, it is fitted so that the sum is that of the other model: it makes up for what the rest of
    the sum has lost.

    Args:
        student: the model whose layers are refitted, in place.
        teacher: the model that it was, with the same calls.
        inputs: what `walking.inputs_of` gave.
        kept: path of each layer that lost something -> places of the units that it still makes,
            None for all.
        cut: a function of the number of a tensor, what the teacher has for it, and an axis: the
            same without the units that are gone along all other axes.
        choices: path of a layer -> `Choice`: its kernel is 0 for the units chosen.

    Returns:
        `(residuals, chosen)`: path -> relative residual of the regression, and list of
        `(unit, cost)` of the units that were chosen.
    """
    new, old, residuals, chosen = Walk(student, inputs), Walk(teacher, inputs), {}, []
    choices = choices or {}
    shared = shared_paths(new.graph)
    for call, before in zip(new.graph.calls, old.graph.calls, strict=True):
        given, wanted = new.given(call), old.given(before)
        same = all(a is b for a, b in zip(given, wanted, strict=True))
        untouched = same and call.path not in kept
        if _has_kernel(call) and (not same or call.path in choices):
            reason = _reason(call, shared)
            if reason is None:
                target = _Target(new, old, call, before, kept.get(call.path), cut, shared)
                choice = choices.get(call.path)
                rank = len(new.graph.shapes[call.inputs[0]])
                axis = 1 if patches.channels_first(call.operation) else rank - 1
                wanted = [cut(call.inputs[0], part, axis) for part in wanted[0]]
                residuals[call.path], gone = target.fit(given[0], wanted, choice)
                chosen += gone
            else:
                warnings.warn(f"{call.path} is not refitted: {reason}.", stacklevel=3)
        old.make(before)
        if untouched and call.path not in residuals:
            new.take(call, [old.value(number) for number in before.outputs])
        else:
            new.make(call)
    return residuals, chosen


def centred(gram, features):
    """The sums of products of the first columns around their means, from those of `[x, 1, ...]`."""
    sums = gram[features, :features]
    return gram[:features, :features] - np.outer(sums, sums) / gram[features, features]


def _has_kernel(call):
    layer = call.operation
    if type(layer) not in KERNELS:
        return False
    depthwise = getattr(layer, "groups", 1) > 1 and layer.kernel.shape[-2] == 1
    return not depthwise  # which mixes nothing


def _reason(call, shared):
    if reason := patches.obstacle(call.operation):
        return reason
    if call.path in shared:
        return "it is called several times"
    if patches.features_of(call.operation) > WIDEST:
        return f"it takes more than {WIDEST} features"
    return None


class _Target:
    """What a layer is to compute: what it did, and what is missing in the sum that it joins.

    Args:
        new, old: the `Walk`s through both models.
        call, before: the call of the layer in each.
        kept: places of the units that it still makes, None for all.
        cut, shared: as for `repair`; paths of layers that are called several times.
    """

    def __init__(self, new, old, call, before, kept, cut, shared):
        self._layer, self._teacher, self._kept = call.operation, before.operation, kept
        self._path = call.path
        self._normalization, scale, others = _way_to_sum(new.graph, call, shared)
        self._missing = None
        pairs = [(old.value(number), new.value(number)) for number in others]
        known = all(a is not None and b is not None for a, b in pairs)
        if known and any(a is not b for a, b in pairs):
            pairs = [
                ([cut(number, part, None) for part in a], b)
                for number, (a, b) in zip(others, pairs, strict=True)
            ]
            batches = zip(*(zip(a, b, strict=True) for a, b in pairs), strict=True)
            axis = 1 if patches.channels_first(self._layer) else -1
            self._missing = [_difference(parts, axis) * scale for parts in batches]

    def fit(self, given, wanted, choice=None):
        """Gives the layer its kernel and bias; the relative residual, and the units chosen."""
        layer, chosen = self._layer, []
        features = patches.features_of(layer)
        intercept = layer.bias is not None or self._normalization is not None
        gram = patches.gram(self._rows(given, wanted), features)
        stay = np.arange(features)
        if choice is not None:
            owners = np.tile(choice.owners, patches.taps_of(layer))
            fit = ridge_regression(gram, features, RIDGE, intercept=intercept)
            taker = Taker(centred(gram, features), fit.kernel, owners)
            chosen = least_missed([taker], choice.among)
            stay = np.flatnonzero(~np.isin(owners, [unit for unit, _ in chosen]))
        some = np.concatenate([stay, np.arange(features, len(gram))])
        fit = ridge_regression(gram[np.ix_(some, some)], len(stay), RIDGE, intercept=intercept)
        kernel = np.zeros((features, fit.kernel.shape[1]))
        kernel[stay] = fit.kernel
        if layer.kernel_constraint is not None:
            kernel = patches.constrained(layer, kernel)
            fit = fit_of(kernel, gram, features, intercept)
            warnings.warn(
                f"The refitted weights of {self._path} were projected onto their constraint, "
                f"{type(layer.kernel_constraint).__name__}, so that they fit less well than least "
                "squares.",
                stacklevel=4,
            )
        if gram[features, features] < len(stay):
            warnings.warn(
                f"{self._path} takes {len(stay)} features, and the calibration data have "
                f"{gram[features, features]:.0f} samples or places for them: it fits these, and "
                "others less well. Pass more.",
                stacklevel=4,
            )
        linear.assign(layer, kernel, fit.bias)
        if layer.bias is None and intercept:
            # What a bias would add, the normalisation behind takes off less.
            mean = self._normalization.moving_mean
            mean.assign(mean - ops.cast(fit.bias, mean.dtype))
        return fit.residual, chosen

    def _rows(self, given, wanted):
        for index, (x, before) in enumerate(zip(given, wanted, strict=True)):
            step = patches.at_a_time(self._layer, x)
            for start in range(0, len(x), step):
                some = slice(start, start + step)
                target = patches.before_activation(self._teacher, before[some])
                if self._kept is not None:
                    target = ops.take(target, self._kept, axis=-1)
                if self._missing is not None:
                    missing = ops.cast(self._missing[index][some], target.dtype)
                    target = target + ops.reshape(missing, ops.shape(target))
                features = ops.cast(patches.rows(self._layer, x[some]), target.dtype)
                yield ops.concatenate([features, ops.ones_like(target[:, :1]), target], axis=-1)


def _difference(parts, axis):
    """What is missing in the other tensors of a sum, the units last."""
    total = sum(old.astype("float32") - new.astype("float32") for old, new in parts)
    return np.moveaxis(total, axis, -1)


def _way_to_sum(graph, call, shared):
    """`(normalization, scale, others)`: what lies between a layer and the sum that it joins.

    The first normalisation behind the layer or None; what a difference in the sum is multiplied
    with to be one before that; the numbers of the other tensors of the sum, none where the layer
    joins none.
    """
    normalization, scale, number = None, 1.0, call.outputs[0]
    if getattr(call.operation, "activation", None) not in (None, keras.activations.linear):
        return None, scale, ()
    axis = 1 if patches.channels_first(call.operation) else len(graph.shapes[number]) - 1
    while True:
        takers = graph.consumers(number)
        if len(takers) != 1 or number in graph.outputs or takers[0].path in shared:
            return normalization, scale, ()
        operation = takers[0].operation
        if type(operation) is keras.layers.BatchNormalization and normalization is None:
            if operation.axis % len(graph.shapes[number]) != axis:
                return None, 1.0, ()
            normalization = operation
            scale = _inverse_scale(operation)
        elif type(operation).__name__ == "Add":
            others = [x for x in takers[0].inputs if x != number]
            alike = all(graph.shapes[x] == graph.shapes[number] for x in others)
            one = len(others) == len(takers[0].inputs) - 1
            return normalization, scale, others if alike and one else ()
        elif not isinstance(operation, keras.layers.Dropout | keras.layers.Identity):
            return normalization, scale, ()
        number = takers[0].outputs[0]


def _inverse_scale(layer):
    """What the output of a normalisation is multiplied with to be a difference of its input."""
    variance = np.asarray(ops.convert_to_numpy(layer.moving_variance), np.float32)
    gamma = 1.0 if layer.gamma is None else np.asarray(ops.convert_to_numpy(layer.gamma))
    scale = gamma / np.sqrt(variance + layer.epsilon)
    # A channel that is next to constant cannot make up for anything.
    weak = np.abs(scale) < 1e-3 * np.abs(scale).max()
    return np.where(weak, 0.0, 1.0 / np.where(weak, 1.0, scale)).astype("float32")
