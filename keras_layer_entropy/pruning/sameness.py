"""What the weights of a model tell of its units: which are constants, and which are the same."""

import collections
import dataclasses
import functools
import itertools

import keras
import numpy as np
from keras import layers, ops

from keras_layer_entropy.pruning import kernels
from keras_layer_entropy.pruning.probing import outputs_of, values_of


@dataclasses.dataclass(frozen=True)
class Sameness:
    """What is known of the tensors of a model, whatever it is given.

    Attributes:
        symbols: number of a tensor -> axis -> `[size]`, a number for what is at each place along
            it: where that number is the same, so is all that is there.
        constants: symbol -> value, of what is that value everywhere.
    """

    symbols: dict
    constants: dict

    def values(self, symbols):
        """What is constant, NaN elsewhere, `[len(symbols)]`."""
        return np.array([self.constants.get(symbol, np.nan) for symbol in symbols], np.float64)


def find_sameness(channels):
    """The `Sameness` along the axes of units of a model.

    A unit of a Dense layer or convolution is a constant where its kernel is zero for all that is
    none, and two are the same where their kernels and biases are, to the last bit. What operations
    without weights make of these is found by running them.

    Args:
        channels: `channels.Channels`.

    Example:

    >>> from keras_layer_entropy.pruning.channels import find_channels
    >>> dense = layers.Dense(3, "relu")
    >>> model = keras.Sequential([keras.Input((4,)), dense, layers.Dense(2)])
    >>> dense.set_weights([np.array([[0.0, 2.0, 2.0]] * 4), np.ones(3)])
    >>> found = find_sameness(find_channels(model))
    >>> (symbols,) = [axes[1] for axes in found.symbols.values() if len(axes[1]) == 3]
    >>> bool(symbols[1] == symbols[2]), found.values(symbols).tolist()
    (True, [1.0, nan, nan])
    """
    finder = _Finder(channels)
    for call in channels.graph.calls:
        finder.visit(call)
    return finder.found


class _Finder:
    """Goes through the calls of a graph.

    What is the same has one key: None is the key of what is like nothing else, `("constant",
    value)` that of a constant.
    """

    def __init__(self, channels):
        self.found = Sameness({}, {})
        self._channels = channels
        self._graph = channels.graph
        self._numbers = itertools.count()
        self._known = {}

    def visit(self, call):
        """Notes what a call gives."""
        keys = {} if call.training else self._keys(call)
        for number in call.outputs:
            for axis, ids in self._channels.labels.get(number, {}).items():
                along = keys.get((number, axis), [None] * len(ids))
                symbols = np.array([self._symbol(number, axis, key) for key in along], np.int64)
                self.found.symbols.setdefault(number, {})[axis] = symbols

    def _symbol(self, number, axis, key):
        if key is None:
            return next(self._numbers)
        constant = key[0] == "constant"
        key = key if constant else (number, axis, *key)
        if key not in self._known:
            self._known[key] = next(self._numbers)
            if constant:
                self.found.constants[self._known[key]] = key[1]
        return self._known[key]

    def _keys(self, call):
        """(number of a tensor, axis) -> list of keys, of those outputs of which any is known."""
        layer = call.operation
        rank = len(self._graph.shapes[call.outputs[0]])
        if type(layer) is layers.BatchNormalization:
            axis = layer.axis % rank
            given = self._given(call, axis)
            return (
                {} if given is None else {(call.outputs[0], axis): self._normalised(layer, given)}
            )
        if getattr(layer, "weights", ()):
            if kernels.obstacle(layer) or not self._channels.labels.get(call.outputs[0]):
                return {}
            axis = kernels.channel_axis(layer, rank)
            given = self._given(call, axis)
            return {(call.outputs[0], axis): self._multiplied(layer, given)}
        return self._probed(call)

    def _given(self, call, axis):
        """Symbols along an axis of the first input, or None."""
        return self.found.symbols.get(call.inputs[0], {}).get(axis)

    def _normalised(self, layer, given):
        scale, shift = affine(layer)
        values = self.found.values(given)
        exact = np.stack([ops.convert_to_numpy(variable) for variable in layer.weights])
        keys = [(symbol, exact[:, unit].tobytes()) for unit, symbol in enumerate(given)]
        values[scale == 0] = 0.0
        return _with_constants(keys, values * scale + shift)

    def _multiplied(self, layer, given):
        kernel, bias = kernels.kernel_of(layer), kernels.bias_of(layer)
        kernel = kernel + np.zeros((), kernel.dtype)  # -0 is 0
        _, groups, each, units = kernel.shape
        values = np.full(groups * each, np.nan) if given is None else self.found.values(given)
        known = values == 0 if not kernels.sees_no_border(layer) else np.isfinite(values)
        reads = (kernel != 0).any(axis=0) & ~known.reshape(groups, each, 1)
        values = bias + kernels.given_constants(layer, np.where(known, values, 0.0))
        values = np.where(reads.any(axis=1).ravel(), np.nan, _activated(layer, values))
        keys = []
        for group, unit in itertools.product(range(groups), range(units)):
            of = given.reshape(groups, each)[group].tobytes() if groups > 1 else None
            weights = kernel[:, group, :, unit].tobytes()
            keys.append((of, weights, bias[group * units + unit]))
        return _with_constants(keys, values)

    def _probed(self, call):
        given = [self.found.symbols.get(number, {}) for number in call.inputs]
        if not any(map(self._tells, given)):
            return {}
        shapes = [self._graph.shapes[number] for number in call.inputs]
        dtypes = [self._graph.dtypes[number] for number in call.inputs]
        draws = []
        try:
            for draw in (0, 1):
                values = values_of(shapes, dtypes, seed=draw, draw=draw)
                values = map(self._filled, values, dtypes, given)
                draws.append(outputs_of(call, list(values)))
        except Exception:  # noqa: BLE001 - operations may raise anything
            return {}
        sources = self._sources(call, given)
        if type(call.operation) is not layers.Concatenate:  # all else may look at what is not known
            sources = {root: parts for root, parts in sources.items() if all(parts)}
        keys = {}
        for place, number in enumerate(call.outputs):
            close = 1e-12 if self._graph.dtypes[number] == "float64" else 1e-6
            for axis, ids in self._channels.labels.get(number, {}).items():
                rows = [np.moveaxis(draw[place], axis, 0).reshape(len(ids), -1) for draw in draws]
                of = [sources.get(root) for root in self._channels.ties.roots(ids).tolist()]
                keys[number, axis] = self._compared(call, np.hstack(rows), of, close)
        return keys

    def _tells(self, axes):
        """Whether anything that is given is a constant, or there twice."""
        return any(
            len(np.unique(symbols)) < len(symbols)
            or any(symbol in self.found.constants for symbol in symbols.tolist())
            for symbols in axes.values()
        )

    def _filled(self, values, dtype, axes):
        """An input in which is the same, or constant, what is known to be."""
        values = values.astype(dtype) if "float" in dtype else values
        for axis, symbols in axes.items():
            _, first, places = np.unique(symbols, return_index=True, return_inverse=True)
            values = np.take(values, first[places], axis=axis)
            constants = self.found.values(symbols)
            known = np.isfinite(constants)
            constants = np.where(known, constants, 0.0).astype(values.dtype)
            shape = [-1 if i == axis else 1 for i in range(values.ndim)]
            values = np.where(known.reshape(shape), constants.reshape(shape), values)
        return values

    def _sources(self, call, given):
        """Root -> for each input the symbols of what belongs to it there, sorted."""
        found = collections.defaultdict(lambda: [[] for _ in given])
        for place, (number, axes) in enumerate(zip(call.inputs, given, strict=True)):
            for axis, symbols in axes.items():
                roots = self._channels.ties.roots(self._channels.labels[number][axis])
                for root, symbol in zip(roots.tolist(), symbols.tolist(), strict=True):
                    found[root][place].append(symbol)
        return {root: tuple(tuple(sorted(x)) for x in parts) for root, parts in found.items()}

    def _compared(self, call, rows, of, close):
        """Keys of rows of numbers, `[places, numbers]`, where all that they come from is known."""
        keys, seen = [], collections.defaultdict(list)
        agree = functools.partial(np.allclose, rtol=close, equal_nan=True)
        kind = type(call.operation)
        product = kind.__name__ == "Multiply" and kind.__module__.partition(".")[0] == "keras"
        for row, symbols in zip(rows, of, strict=True):
            values = [self.found.values(part) for part in symbols or ()]
            if product and any(len(part) and not part.any() for part in values):
                keys.append(("constant", 0.0))  # nothing is infinite in a network that computes
            elif (
                symbols
                and not np.isnan(np.concatenate(values)).any()
                and agree(row, row[0], atol=0)
            ):
                keys.append(("constant", float(row[0])))
            elif symbols:
                alike = seen[symbols]
                same = [i for i, x in enumerate(alike) if agree(row, x, atol=close)]
                if not same:
                    alike.append(row)
                keys.append((symbols, same[0] if same else len(alike) - 1))
            else:
                keys.append(None)
        return keys


def affine(layer):
    """`(scale, shift)`, float64: at inference `BatchNormalization` gives scale x + shift."""
    mean, variance, gamma, beta = (
        None if variable is None else ops.convert_to_numpy(variable).astype(np.float64)
        for variable in (layer.moving_mean, layer.moving_variance, layer.gamma, layer.beta)
    )
    with np.errstate(invalid="ignore", divide="ignore"):  # no variance: NaN, as the layer gives
        scale = (1.0 if gamma is None else gamma) / np.sqrt(variance + layer.epsilon)
    return scale, (0.0 if beta is None else beta) - mean * scale


def _with_constants(keys, values):
    return [
        ("constant", float(value)) if np.isfinite(value) else key
        for key, value in zip(keys, values, strict=True)
    ]


def _activated(layer, values):
    """What the activation function of a layer makes of numbers, NaN where it mixes them."""
    function = layer.activation or keras.activations.linear
    if isinstance(function, keras.layers.Layer):
        return np.full_like(values, np.nan)
    alone, among = (
        ops.convert_to_numpy(function(ops.convert_to_tensor(x[None], layer.compute_dtype)))[0]
        for x in (values, np.concatenate([values, values + 1.0]))
    )
    same = len(among) == 2 * len(values) and np.allclose(alone, among[: len(values)], rtol=1e-5)
    return alone.astype(np.float64) if same else np.full_like(values, np.nan)
