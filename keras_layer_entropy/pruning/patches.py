"""What the kernel of a layer is multiplied with, as rows of features."""

import itertools
import math

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.pruning import linear

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_MOST = 2**25  # numbers that rows hold at a time
_CHEAP = 2e9  # products that may be in float64; of more, float32 is enough


def obstacle(layer):
    """Why the kernel of a layer cannot be found by a regression on what it is given, or None.

    Example:

    >>> obstacle(keras.layers.Conv2D(3, 3)), obstacle(keras.layers.DepthwiseConv2D(3))
    (None, 'it is a DepthwiseConv2D')
    """
    if _is_convolution(layer):
        return f"it has {layer.groups} groups" if layer.groups > 1 else None
    return linear.obstacle(layer)


def features_of(layer):
    """How many features the kernel is multiplied with: taps times channels."""
    if _is_convolution(layer):
        return math.prod(layer.kernel.shape[:-1])
    return linear.features_of(layer)


def matrix(layer):
    """The kernel as `[features, units]`, an array of float64."""
    kernel = np.asarray(ops.convert_to_numpy(layer.kernel), np.float64)
    return kernel.reshape(features_of(layer), -1)


def taps_of(layer):
    """How many features there are for each channel, which comes last among them."""
    return math.prod(layer.kernel.shape[:-2]) if _is_convolution(layer) else 1


def rows(layer, x):
    """What the kernel is multiplied with, for one batch: a tensor `[rows, features]`."""
    x = ops.cast(x, layer.variable_dtype)
    if not _is_convolution(layer):
        return ops.reshape(x, (-1, x.shape[-1]))
    if layer.data_format == "channels_first":
        x = ops.moveaxis(x, 1, -1)
    x = ops.pad(x, [(0, 0), *_padding(layer, x.shape[1:-1]), (0, 0)])
    places = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(
            x.shape[1:-1], layer.kernel_size, layer.dilation_rate, layer.strides, strict=True
        )
    ]
    parts = []
    for tap in itertools.product(*map(range, layer.kernel_size)):
        index = [
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, layer.dilation_rate, places, layer.strides, strict=True)
        ]
        parts.append(x[(slice(None), *index)])
    found = ops.stack(parts, axis=-2)
    return ops.reshape(found, (-1, len(parts) * x.shape[-1]))


def before_activation(layer, x):
    """What a layer computes before its activation function, for one batch: `[rows, units]`."""
    x = ops.cast(x, layer.variable_dtype)
    if not _is_convolution(layer):
        z = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), linear.matrix(layer))
        return z if layer.bias is None else z + ops.reshape(layer.bias, (-1,))
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


def at_a_time(layer, x):
    """How many samples of a batch are looked at at a time, so that their rows fit into memory."""
    places = math.prod(x.shape[1:]) / x.shape[1 if channels_first(layer) else -1]
    return max(1, int(_MOST // max(1.0, places * features_of(layer))))


def gram(parts, ones):
    """Sum of products of rows, float64 `[columns, columns]`.

    The means of the first part are taken off before, in whatever precision the rows have, and come
    back in float64: products of large means would leave nothing of small deviations.

    Args:
        parts: generator of tensors `[rows, columns]`.
        ones: the column that is 1 everywhere.
    """
    total, shift = 0.0, None
    for part in parts:
        if shift is None:
            shift = ops.mean(part, axis=0) * (np.arange(part.shape[1]) != ones)
        part = part - shift
        if part.shape[0] * part.shape[1] ** 2 < _CHEAP:  # where the backend has it
            part = ops.cast(part, "float64")
        product = ops.matmul(ops.transpose(part), part)
        total = total + np.asarray(ops.convert_to_numpy(product), np.float64)
    back = np.eye(len(total))
    back[ones] += np.asarray(ops.convert_to_numpy(shift), np.float64)
    return back.T @ total @ back


def constrained(layer, kernel):
    """A kernel `[features, units]` as the layer's constraint leaves it."""
    if layer.kernel_constraint is None:
        return kernel
    shaped = ops.convert_to_tensor(kernel.reshape(layer.kernel.shape), layer.variable_dtype)
    return np.asarray(ops.convert_to_numpy(layer.kernel_constraint(shaped)), kernel.dtype).reshape(
        kernel.shape
    )


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


def channels_first(layer):
    """Whether the channels of what a layer takes and gives come before the places."""
    return _is_convolution(layer) and layer.data_format == "channels_first"


def _is_convolution(layer):
    return type(layer) in _CONVOLUTIONS
