"""Layers with weights: which entries of which variables belong to which units.

A rule is called with the finder of `channels`, a call and its layer. It binds axes of variables to
units, says which attributes count units, and returns axis -> units for the layer's output.
"""

import numpy as np
from keras import layers
from keras.src.applications.convnext import LayerScale


def _dense(finder, call, layer):
    return _dense_of(finder, call, layer)


def _time_distributed(finder, call, layer):
    if type(layer.layer) is not layers.Dense:
        kind = type(layer.layer).__name__
        return finder.refuse(call, f"it is a TimeDistributed {kind}")
    return _dense_of(finder, call, layer.layer, "layer.")


def _dense_of(finder, call, layer, within=""):
    given, last = finder.given(call), finder.rank(call) - 1
    taken = given.pop(last, None)
    units = finder.make(call, layer.units, layer if within else None)
    finder.take(call, taken)
    finder.bind(call, layer.kernel, 0, taken)
    finder.bind(call, layer.kernel, 1, units, makes=True)
    finder.bind(call, layer.bias, 0, units)
    finder.edit(call, f"{within}units", lambda kept: kept(units))
    finder.activate(call, layer.activation, units)
    return {**given, last: units}


def _convolution(finder, call, layer):
    taken, axis = _channels_alone(finder, call, layer.data_format)
    if layer.groups > 1:
        return _grouped_convolution(finder, call, layer, taken, axis)
    units = finder.make(call, layer.filters)
    finder.take(call, taken)
    finder.bind(call, layer.kernel, layer.rank, taken)
    finder.bind(call, layer.kernel, layer.rank + 1, units, makes=True)
    finder.bind(call, layer.bias, 0, units)
    finder.edit(call, "filters", lambda kept: kept(units))
    finder.activate(call, layer.activation, units)
    return {axis: units}


def _grouped_convolution(finder, call, layer, taken, axis):
    """A group goes as one, what it takes and what it makes: depthwise ones are of one each."""
    if taken is None:
        return {}
    groups = taken.reshape(layer.groups, -1)
    for group in groups:
        finder.ties.tie_all(group)
    made = np.repeat(groups[:, 0], layer.filters // layer.groups)
    finder.bind(call, layer.kernel, layer.rank + 1, made)
    finder.bind(call, layer.bias, 0, made)
    finder.edit(call, "groups", lambda kept: kept(groups[:, 0]))
    finder.edit(call, "filters", lambda kept: kept(made))
    finder.activate(call, layer.activation, made)
    return {axis: made}


def _transposed_convolution(finder, call, layer):
    taken, axis = _channels_alone(finder, call, layer.data_format)
    units = finder.make(call, layer.filters)
    finder.take(call, taken)
    finder.bind(call, layer.kernel, layer.rank + 1, taken)
    finder.bind(call, layer.kernel, layer.rank, units, makes=True)
    finder.bind(call, layer.bias, 0, units)
    finder.edit(call, "filters", lambda kept: kept(units))
    finder.activate(call, layer.activation, units)
    return {axis: units}


def _depthwise_convolution(finder, call, layer):
    taken, axis = _channels_alone(finder, call, layer.data_format)
    if taken is None:
        return {}
    made = np.repeat(taken, layer.depth_multiplier)
    finder.bind(call, layer.kernel, layer.rank, taken)
    finder.bind(call, layer.bias, 0, made)
    finder.activate(call, layer.activation, made)
    return {axis: made}


def _separable_convolution(finder, call, layer):
    taken, axis = _channels_alone(finder, call, layer.data_format)
    units = finder.make(call, layer.filters)
    between = None if taken is None else np.repeat(taken, layer.depth_multiplier)
    finder.take(call, between)
    finder.bind(call, layer.depthwise_kernel, layer.rank, taken)
    finder.bind(call, layer.pointwise_kernel, layer.rank, between)
    finder.bind(call, layer.pointwise_kernel, layer.rank + 1, units, makes=True)
    finder.bind(call, layer.bias, 0, units)
    finder.edit(call, "filters", lambda kept: kept(units))
    finder.activate(call, layer.activation, units)
    return {axis: units}


def _batch_normalization(finder, call, layer):
    given = finder.given(call)
    axis = layer.axis % finder.rank(call)
    for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
        finder.bind(call, variable, 0, given.get(axis))
    finder.normalise(call, given.get(axis))
    return given


def _layer_normalization(finder, call, layer):
    """Its mean and variance are of what remains: never exact, and left to what is refitted."""
    root_mean_square = isinstance(layer, layers.RMSNormalization)
    variables = [layer.scale] if root_mean_square else [layer.gamma, layer.beta]
    given, rank = finder.given(call), finder.rank(call)
    axes = [axis % rank for axis in np.atleast_1d(layer.axis)]
    for place, axis in enumerate(axes):
        for variable in variables:
            finder.bind(call, variable, place, given.get(axis))
        finder.normalise(call, given.get(axis), together=True)
    return given


def _group_normalization(finder, call, layer):
    given, axis = finder.given(call), layer.axis % finder.rank(call)
    for other in set(given) - {axis}:
        finder.freeze(given.pop(other), f"{call.path} mixes it with others")
    units = given.get(axis)
    if units is not None and layer.groups > 1:
        groups = units.reshape(layer.groups, -1)
        for group in groups:
            finder.ties.tie_all(group)
        finder.edit(call, "groups", lambda kept: kept(groups[:, 0]))
    for variable in (layer.gamma, layer.beta):
        finder.bind(call, variable, 0, units)
    finder.normalise(call, units, together=True)
    return given


def _prelu(finder, call, layer):
    given = finder.given(call)
    for axis, units in given.items():
        if layer.alpha.shape[axis - 1] == len(units):
            finder.bind(call, layer.alpha, axis - 1, units)
    return given


def _layer_scale(finder, call, layer):
    given, last = finder.given(call), finder.rank(call) - 1
    units = given.get(last)
    finder.bind(call, layer.gamma, 0, units)
    if units is not None:
        finder.edit(call, "projection_dim", lambda kept: kept(units))
    return given


def _embedding(finder, call, layer):
    units = finder.make(call, layer.output_dim)
    finder.bind(call, layer.embeddings, 1, units, makes=True)
    finder.edit(call, "output_dim", lambda kept: kept(units))
    return {finder.rank(call): units}


def _einsum_dense(finder, call, layer):
    """Of several axes that it makes, units lie along the first: whole heads, not parts of all."""
    given, rank = finder.given(call), finder.rank(call)
    taken, kernel, made = _letters(layer.equation, rank, layer.kernel)
    found, features = {}, [letter for letter in kernel if letter not in made]
    for axis, units in given.items():
        letter = taken[axis]
        if letter in kernel:
            finder.bind(call, layer.kernel, kernel.index(letter), units)
        if letter in made:
            found[made.index(letter)] = units
    for letter in features:
        axis = taken.index(letter)
        if axis not in given:
            finder.bind(call, layer.kernel, kernel.index(letter), None)
    known = [letter for letter in features if taken.index(letter) in given]
    if len(known) == 1:
        sizes = [layer.kernel.shape[kernel.index(letter)] for letter in features]
        shape = [-1 if letter in known else 1 for letter in features]
        units = given[taken.index(known[0])].reshape(shape)
        finder.take(call, np.broadcast_to(units, sizes).reshape(-1))
    new = [letter for letter in made if letter in kernel and letter not in taken]
    if new:
        place = made.index(new[0])
        units = finder.make(call, layer.kernel.shape[kernel.index(new[0])])
        finder.bind(call, layer.kernel, kernel.index(new[0]), units, makes=True)
        found[place] = units
        shape = layer.partial_output_shape
        inside = place - 1 - (len(made) - 1 - len(shape))
        finder.edit(
            call, "partial_output_shape",
            lambda kept: tuple(kept(units) if i == inside else n for i, n in enumerate(shape)),
        )  # fmt: skip
        finder.activate(call, layer.activation, units)
    for axis, units in found.items() if layer.bias is not None else ():
        place = axis - (len(made) - len(layer.bias.shape))
        if place >= 0 and layer.bias.shape[place] == len(units):
            finder.bind(call, layer.bias, place, units)
    return found


def _attention(finder, call, layer):
    """Units are heads; and, of the layer inside it that comes last, what it gives."""
    given = finder.named(call)
    given.setdefault("key", given["value"])
    features = {name: _features_alone(finder, call, given[name]) for name in _ATTENDED}
    for name in given.keys() - set(_ATTENDED):
        for units in finder.labels.get(given[name], {}).values():
            finder.freeze(units, f"{call.path} takes it as {name}")
    grouped = isinstance(layer, layers.GroupQueryAttention)
    heads = finder.make(call, layer.num_key_value_heads if grouped else layer.num_heads)
    queries = np.repeat(heads, layer.num_repeats) if grouped else heads
    parts = [("query", layer._query_dense, queries), ("key", layer._key_dense, heads)]
    parts.append(("value", layer._value_dense, heads))
    if layer._use_gate if not grouped else layer.use_gate:
        parts.append(("query", layer._gate_dense, queries))
    for name, dense, units in parts:
        finder.bind(call, dense.kernel, 0, features[name])
        finder.bind(call, dense.kernel, 1, units, makes=True)
        finder.bind(call, dense.bias, 0, units)
    last = layer._output_dense
    finder.bind(call, last.kernel, 0, queries)
    finder.take(call, np.repeat(queries, last.kernel.shape[1]))
    if len(call.outputs) > 1 and finder.rank(call) != 3:
        finder.freeze(heads, f"{call.path} gives scores along several axes")
    if grouped:
        finder.edit(call, "num_key_value_heads", lambda kept: kept(heads))
        finder.edit(call, "num_query_heads", lambda kept: kept(queries))
    else:
        finder.edit(call, "_num_heads", lambda kept: kept(heads))
    return _given_by_attention(finder, call, layer, features), {1: queries}


def _given_by_attention(finder, call, layer, features):
    """Axis -> units of what attention gives, which is as wide as its query if nothing is said."""
    last, query = layer._output_dense, features["query"]
    if len(last.kernel.shape) > 3:  # several axes
        return {}
    width = last.kernel.shape[-1]
    units = finder.make(call, width, last)
    finder.bind(call, last.kernel, 2, units, makes=True)
    finder.bind(call, last.bias, 0, units)
    if isinstance(layer, layers.MultiHeadAttention):
        said = layer._output_shape is not None

        def shape(kept):
            as_query = kept(units) == (width if query is None else kept(query))
            return (kept(units),) if said or not as_query else None

        finder.edit(call, "_output_shape", shape)
    else:  # it takes and gives as many
        for name in ("query", "value"):
            finder.tie(call, units, features[name])
    return {finder.rank(call) - 1: units}


def _recurrent(finder, call, layer):
    return _states(finder, call, {"": layer}, 1)


def _bidirectional(finder, call, layer):
    """Both directions lose the same units: Keras takes them to be as wide."""
    ways = {"forward_layer.": layer.forward_layer, "backward_layer.": layer.backward_layer}
    if odd := [way for way in ways.values() if type(way) not in _RECURRENT]:
        return finder.refuse(call, f"it is a Bidirectional {type(odd[0]).__name__}")
    if layer.forward_layer.units != layer.backward_layer.units:
        return finder.refuse(call, "its two directions have different numbers of units")
    return _states(finder, call, ways, 2 if layer.merge_mode == "concat" else 1)


def _states(finder, call, ways, times):
    """Units are the states, each with all of its gates.

    Args:
        finder, call: as for all rules.
        ways: where each recurrent layer stands in the operation -> that layer.
        times: how often the units are there in what is given.
    """
    first, *_ = ways.values()
    if first.stateful:
        return finder.refuse(call, "it keeps its states from one batch to the next")
    named = finder.named(call)
    taken = _features_alone(finder, call, named["sequences"])
    units = finder.make(call, first.units)
    states = set(call.inputs) - {named["sequences"], named.get("mask")}
    for number in states:
        finder.tie(call, units, _features_alone(finder, call, number))
    if finder.is_given(call, "initial_state") and not states:
        finder.freeze(units, f"{call.path} begins with states that are given")
    for within, layer in ways.items():
        cell = layer.cell
        gates = np.tile(units, cell.kernel.shape[-1] // len(units))
        finder.bind(call, cell.kernel, 0, taken)
        finder.bind(call, cell.kernel, 1, gates, makes=True)
        finder.bind(call, cell.recurrent_kernel, 0, units)
        finder.bind(call, cell.recurrent_kernel, 1, gates)
        if cell.bias is not None:
            finder.bind(call, cell.bias, len(cell.bias.shape) - 1, gates)
        for attribute in ("cell.units", "cell.output_size"):
            finder.edit(call, within + attribute, lambda kept: kept(units))
        one, several = isinstance(cell.state_size, int), len(layer.state_size)
        finder.edit(
            call, f"{within}cell.state_size",
            lambda kept, one=one, n=several: kept(units) if one else [kept(units)] * n,
        )  # fmt: skip
        finder.edit(call, f"{within}state_size", lambda kept, n=several: [kept(units)] * n)
        finder.activate(call, cell.activation, units)
        if hasattr(cell, "recurrent_activation"):
            finder.activate(call, cell.recurrent_activation, units)
    axes = [len(finder.graph.shapes[number]) - 1 for number in call.outputs]
    return {axes[0]: np.tile(units, times)}, *({axis: units} for axis in axes[1:])


def _features_alone(finder, call, number):
    """The units along the last axis of a tensor, or None; those along others are mixed."""
    given, rank = dict(finder.labels.get(number, {})), len(finder.graph.shapes[number])
    taken = given.pop(rank - 1, None)
    for units in given.values():
        finder.freeze(units, f"{call.path} mixes it with others")
    return taken


def _letters(equation, rank, kernel):
    """The letters of what an equation takes, of its kernel and of what it makes."""
    taken, rest = equation.replace(" ", "").split(",")
    weights, made = rest.split("->")
    more = rank - len(taken.replace("...", ""))
    others = "".join(x for x in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if x not in equation)[:more]
    return taken.replace("...", others), weights, made.replace("...", others)


def _channels_alone(finder, call, data_format):
    """The units along the axis of channels, and that axis; those along others are mixed."""
    given, rank = finder.given(call), finder.rank(call)
    axis = rank - 1 if data_format == "channels_last" else 1
    taken = given.pop(axis, None)
    for units in given.values():
        finder.freeze(units, f"{call.path} mixes it with others")
    return taken, axis


_RECURRENT = (layers.SimpleRNN, layers.GRU, layers.LSTM)
_ATTENDED = ("query", "value", "key")
CARRIERS = {
    layers.Dense: _dense,
    layers.Conv1D: _convolution,
    layers.Conv2D: _convolution,
    layers.Conv3D: _convolution,
    layers.Conv1DTranspose: _transposed_convolution,
    layers.Conv2DTranspose: _transposed_convolution,
    layers.Conv3DTranspose: _transposed_convolution,
    layers.DepthwiseConv1D: _depthwise_convolution,
    layers.DepthwiseConv2D: _depthwise_convolution,
    layers.SeparableConv1D: _separable_convolution,
    layers.SeparableConv2D: _separable_convolution,
    layers.BatchNormalization: _batch_normalization,
    layers.LayerNormalization: _layer_normalization,
    layers.RMSNormalization: _layer_normalization,
    layers.GroupNormalization: _group_normalization,
    layers.PReLU: _prelu,
    LayerScale: _layer_scale,
    layers.Embedding: _embedding,
    layers.EinsumDense: _einsum_dense,
    layers.MultiHeadAttention: _attention,
    layers.GroupQueryAttention: _attention,
    **dict.fromkeys(_RECURRENT, _recurrent),
    layers.Bidirectional: _bidirectional,
    layers.TimeDistributed: _time_distributed,
}
