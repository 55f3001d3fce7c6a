"""What the kernel of a layer is multiplied with, as rows of features."""

import copy
import itertools
import math

import keras
import numpy as np
from keras import layers, ops

from keras_layer_entropy.backend import on_processor
from keras_layer_entropy.pruning import linear
from keras_layer_entropy.recording.graph import run

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_PLACES = (*_CONVOLUTIONS, *_TRANSPOSED, *_SEPARABLE)  # layers that look at places
_MOST = 2**20  # numbers that rows hold at a time: more leave a processor's cache
_CHEAP = 1024  # columns, products of which are in float64; of more, float32 is enough
_LEAST, _ROWS = 256, 50  # samples, and rows for each feature, that are enough to choose by


def obstacle(layer):
    """Why the kernel of a layer cannot be found by a regression on what it is given, or None.

    Example:

    >>> obstacle(layers.Conv2D(3, 3)), obstacle(layers.DepthwiseConv2D(3))
    (None, 'it is a DepthwiseConv2D')
    """
    if reason := linear.adapted(layer):
        return reason
    if type(layer) in _PLACES or (type(layer) is layers.EinsumDense and _features_are_last(layer)):
        return None
    return linear.obstacle(layer)


def mixer(operation):
    """The layer whose kernel is refitted: the operation itself, or one inside it.

    Example:

    >>> attention = layers.MultiHeadAttention(2, 3)
    >>> attention.build((None, 5, 4), (None, 5, 4))
    >>> mixer(attention).name
    'attention_output'
    """
    if type(operation) in linear.ATTENTION:
        return operation._output_dense
    steps = type(operation) is layers.TimeDistributed
    return operation.layer if steps and type(operation.layer) is layers.Dense else operation


def taken(call, values):
    """What that layer is given in a call, an array for one batch of the inputs of the call."""
    x = values[0]
    if type(call.operation) in linear.ATTENTION:
        twin = copy.copy(call.operation)
        vars(twin)["_output_dense"] = lambda heads: heads
        x = run(call, values, twin)[0]
    return _array(x)


def features_of(layer):
    """How many features the kernel is multiplied with: taps times channels (of a group)."""
    if type(layer) in _TRANSPOSED:
        return math.prod(layer.kernel.shape[:-2]) * layer.kernel.shape[-1]
    kernel = kernel_of(layer)
    return math.prod(kernel.shape[: _features_rank(layer)])


def units_of(layer):
    """The shape of what a layer makes at a place: one number, or several of `EinsumDense`."""
    if type(layer) in _TRANSPOSED:
        return (layer.kernel.shape[-2],)
    return tuple(kernel_of(layer).shape[_features_rank(layer) :])


def kernel_of(layer):
    """The variable that is refitted."""
    return layer.pointwise_kernel if type(layer) in _SEPARABLE else layer.kernel


def matrix(layer):
    """The kernel as `[features, units]`, an array of float64."""
    return np.asarray(ops.convert_to_numpy(_matrix(layer)), np.float64)


def shaped(layer, kernel):
    """A matrix `[features, units]` in the shape of the layer's kernel."""
    if type(layer) in _TRANSPOSED:
        *taps, units, channels = layer.kernel.shape
        return np.swapaxes(kernel.reshape(*taps, channels, units), -1, -2)
    return kernel.reshape(kernel_of(layer).shape)


def assign(layer, kernel, bias):
    """Gives a layer a kernel `[features, units]` and a bias `[units]`."""
    kernel_of(layer).assign(shaped(layer, kernel))
    linear.assign_bias(layer, bias)


def constraint_of(layer):
    """The constraint on the variable that is refitted, or None."""
    separable = type(layer) in _SEPARABLE
    return layer.pointwise_constraint if separable else layer.kernel_constraint


def constrained(layer, kernel):
    """A kernel `[features, units]` as the layer's constraint leaves it."""
    value = ops.convert_to_tensor(shaped(layer, kernel), layer.variable_dtype)
    value = np.asarray(ops.convert_to_numpy(constraint_of(layer)(value)), kernel.dtype)
    if type(layer) in _TRANSPOSED:
        value = np.swapaxes(value, -1, -2)
    return value.reshape(kernel.shape)


def taps_of(layer):
    """How many features there are for each channel, which comes last among them."""
    looks_at_taps = type(layer) in (*_CONVOLUTIONS, *_TRANSPOSED)
    return math.prod(layer.kernel.shape[:-2]) if looks_at_taps else 1


def groups_of(layer):
    """How many groups there are, each of features and units of its own."""
    return layer.groups if type(layer) in _CONVOLUTIONS else 1


def rows(layer, x, group=0, more=0):
    """What the kernel is multiplied with, for one batch: an array `[rows, features + more]`.

    Of a transposed convolution these are, for each place that it makes, what reaches it through
    each of the taps; of a separable one what its depthwise kernel gives. The last columns, `more`
    of them, are left to be filled.
    """
    x = _array(x)
    if channels_first(layer):
        x = np.moveaxis(x, 1, -1)
    if type(layer) in _CONVOLUTIONS:
        return _patches(layer, x, group, more)
    found = _reached(layer, x) if type(layer) in _PLACES else x.reshape(-1, features_of(layer))
    return _with_room(layer, found, more)


def before_activation(layer, x, group=0):
    """What a layer computes before its activation function, for one batch: `[rows, units]`."""
    x = ops.cast(x, layer.variable_dtype)
    if type(layer) not in _CONVOLUTIONS or layer.groups > 1:
        units = math.prod(units_of(layer)) // groups_of(layer)
        some = slice(group * units, (group + 1) * units)
        z = ops.matmul(rows(layer, x, group), _matrix(layer)[:, some])
        return z if layer.bias is None else z + ops.reshape(layer.bias, (-1,))[some]
    padding = layer.padding
    if padding == "causal":
        x, padding = ops.pad(x, [(0, 0), *_padding(layer, x.shape[1:-1]), (0, 0)]), "valid"
    z = ops.conv(
        x, ops.convert_to_tensor(layer.kernel), strides=list(layer.strides), padding=padding,
        data_format=layer.data_format, dilation_rate=layer.dilation_rate,
    )  # fmt: skip
    if layer.data_format == "channels_first":
        z = ops.moveaxis(z, 1, -1)
    z = ops.reshape(z, (-1, z.shape[-1]))
    return z if layer.bias is None else z + layer.bias


def rows_of(layer, x):
    """How many rows there are for each sample of a batch."""
    if type(layer) not in _PLACES:
        return math.prod(x.shape[1:]) // features_of(layer)
    given = layer.compute_output_shape(tuple(x.shape))
    return math.prod(given[1:]) // math.prod(units_of(layer))


def at_a_time(layer, x):
    """How many samples of a batch are looked at at a time, so that their rows fit into memory."""
    return max(1, int(_MOST // max(1.0, rows_of(layer, x) * features_of(layer))))


def enough(layer, batches):
    """Yields the first of what a layer takes, batches that say enough of it to choose by.

    Where each sample has many places, more of them make a choice dear and hardly better.
    """
    samples = 0
    for x in batches:
        if samples >= samples_enough(layer, x):
            return
        samples += len(x)
        yield x


def samples_enough(layer, x):
    """How many samples say enough to choose by: 256, or as many as give 50 rows for each feature.

    Args:
        layer: a built layer of those that `rows` takes.
        x: what it takes, or what has that shape.
    """
    places = rows_of(layer, x) or 1
    return max(_LEAST, math.ceil(_ROWS * features_of(layer) / places))


def gram(parts, ones):
    """Sum of products of rows, float64 `[columns, columns]`.

    The means of the first part are taken off before, and come back at the end: products of large
    means would leave nothing of small deviations.

    Args:
        parts: generator of arrays `[rows, columns]`.
        ones: the column that is 1 everywhere.
    """
    total, shift = 0.0, None
    for part in parts:
        if shift is None:
            shift = np.mean(part, axis=0, dtype=np.float64)
            shift[ones] = 0.0
        total = total + _products(part, shift)
    back = np.eye(len(total))
    back[ones] += shift
    return back.T @ total @ back


def _products(part, shift):
    """The sum of products of rows less a shift."""
    if part.shape[1] <= _CHEAP:
        part = np.subtract(part, shift, dtype=np.float64)
        return part.T @ part  # BLAS knows that this is symmetric
    part = part - shift.astype(part.dtype)
    if on_processor():
        return part.T @ part
    return _array(ops.matmul(part.T, part))


def channels_first(layer):
    """Whether the channels of what a layer takes and gives come before the places."""
    return type(layer) in _PLACES and layer.data_format == "channels_first"


def feature_axes(layer, rank):
    """The axes, of what a layer takes, along which its features lie."""
    if channels_first(layer):
        return (1,)
    last = 1 if type(layer) in _PLACES else _features_rank(layer)
    return tuple(range(rank - last, rank))


def _array(x):
    return x if isinstance(x, np.ndarray) else np.asarray(ops.convert_to_numpy(x))


def _dtype(layer):
    """Of rows: the layer's own, float32 at least."""
    return np.dtype(keras.backend.result_type(layer.variable_dtype, "float32"))


def _matrix(layer):
    kernel = ops.convert_to_tensor(kernel_of(layer))
    if type(layer) in _TRANSPOSED:
        kernel = ops.swapaxes(kernel, -1, -2)
    return ops.reshape(kernel, (features_of(layer), -1))


def _with_room(layer, rows, more):
    """Rows, and room for more columns."""
    found = np.empty((len(rows), rows.shape[1] + more), _dtype(layer))
    found[:, : rows.shape[1]] = rows
    return found


def _reached(layer, x):
    """Rows of a separable or transposed convolution."""
    x = ops.cast(x, layer.variable_dtype)
    if type(layer) in _SEPARABLE:
        found = ops.depthwise_conv(
            x, ops.convert_to_tensor(layer.depthwise_kernel), strides=tuple(layer.strides),
            padding=layer.padding, data_format="channels_last", dilation_rate=layer.dilation_rate,
        )  # fmt: skip
    else:
        features, taps = features_of(layer), tuple(layer.kernel.shape[:-2])
        picks = np.eye(features).reshape(*taps, layer.kernel.shape[-1], features)
        found = ops.conv_transpose(
            x, ops.cast(np.swapaxes(picks, -1, -2), x.dtype), strides=list(layer.strides),
            padding=layer.padding, output_padding=layer.output_padding,
            data_format="channels_last", dilation_rate=layer.dilation_rate,
        )  # fmt: skip
    return _array(found).reshape(-1, features_of(layer))


def _patches(layer, x, group, more):
    """What lies under the taps of a convolution at each place, and room for more columns."""
    channels, sizes = layer.kernel.shape[-2], x.shape[1:-1]
    x = x[..., group * channels : (group + 1) * channels]
    x = np.pad(x, [(0, 0), *_padding(layer, sizes), (0, 0)])
    places = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(
            x.shape[1:-1], layer.kernel_size, layer.dilation_rate, layer.strides, strict=True
        )
    ]
    found = np.empty((len(x), *places, features_of(layer) + more), _dtype(layer))
    for number, tap in enumerate(itertools.product(*map(range, layer.kernel_size))):
        index = [
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, layer.dilation_rate, places, layer.strides, strict=True)
        ]
        own = slice(number * channels, (number + 1) * channels)
        found[..., own] = x[(slice(None), *index)]
    return found.reshape(-1, found.shape[-1])


def _padding(layer, sizes):
    """Zeros before and after, for each axis of places."""
    if layer.padding == "valid":
        return [(0, 0)] * len(sizes)
    found = []
    for size, k, d, s in zip(
        sizes, layer.kernel_size, layer.dilation_rate, layer.strides, strict=True
    ):
        reach = (k - 1) * d
        if layer.padding == "causal":
            found.append((reach, 0))
        else:
            missing = max((-(-size // s) - 1) * s + reach + 1 - size, 0)
            found.append((missing // 2, missing - missing // 2))
    return found


def _features_rank(layer):
    """How many axes of a kernel are of features; all but the last of convolutions."""
    if type(layer) in _PLACES:
        return len(kernel_of(layer).shape) - 1
    if isinstance(layer, layers.EinsumDense):
        kernel, made = layer.equation.replace(" ", "").split(",")[1].split("->")
        return sum(letter not in made for letter in kernel)
    return 1


def _features_are_last(einsum):
    """Whether an `EinsumDense` is as `...cd,cde->...e`, where e may be several axes."""
    taken, _, made = einsum.equation.replace(" ", "").partition("->")
    inputs, kernel = taken.split(",")
    rank = _features_rank(einsum)
    summed, new = kernel[:rank], kernel[rank:]
    whole_bias = einsum.bias is None or einsum.bias.shape == einsum.kernel.shape[rank:]
    plain = inputs.endswith(summed) and made == inputs[: -len(summed)] + new
    return rank > 0 and plain and whole_bias
