"""Kernels of Dense layers and convolutions, all seen alike.

Each is `[taps, groups, features, units]`, with the features and units of one group. What such a
layer makes before its activation function is, at each place, the sum over taps and the features of
the group, and the bias. Units are numbered group by group, as are features.
"""

import numpy as np
from keras import layers, ops

from keras_layer_entropy.pruning import linear

_PLAIN = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_DENSE = (layers.Dense, layers.EinsumDense)


def obstacle(layer):
    """Why the kernel of a layer cannot be seen so, or None.

    Example:

    >>> obstacle(layers.SeparableConv2D(3, 3)), obstacle(layers.Conv2D(3, 3, dtype="float16"))
    (None, 'it computes in float16')
    """
    if type(layer) not in (*_PLAIN, *_TRANSPOSED, *_DEPTHWISE, *_SEPARABLE, *_DENSE):
        return f"it is a {type(layer).__name__}"
    if getattr(layer, "lora_enabled", False):
        return "it is being fine-tuned with LoRA"
    if getattr(layer, "quantization_mode", None):
        return f"it is quantized ({layer.quantization_mode})"
    for dtype in (layer.compute_dtype, layer.variable_dtype):
        if dtype not in ("float32", "float64"):
            return f"it computes in {dtype}"
    if type(layer) is layers.EinsumDense and (linear.obstacle(layer) or layer.kernel.ndim != 2):
        return "it does more than multiply the last axis"
    return None


def kernel_of(layer):
    """The kernel, `[taps, groups, features, units]`; of a separable one what both come to."""
    if type(layer) in _SEPARABLE:
        depthwise, pointwise = _array(layer.depthwise_kernel), _array(layer.pointwise_kernel)
        features, multiplier = depthwise.shape[-2:]
        depthwise = depthwise.reshape(-1, features, multiplier)
        pointwise = pointwise.reshape(features, multiplier, -1)
        return np.einsum("tfm,fmu->tfu", depthwise, pointwise)[:, None]
    kernel = np.asarray(ops.convert_to_numpy(layer.kernel))  # not in float64: it may be large
    if type(layer) in _DENSE:
        return kernel[None, None]
    *_, first, second = kernel.shape
    if type(layer) in _DEPTHWISE:
        return kernel.reshape(-1, first, 1, second)
    if type(layer) in _TRANSPOSED:
        return kernel.reshape(-1, 1, first, second).swapaxes(2, 3)
    kernel = kernel.reshape(-1, first, layer.groups, second // layer.groups)
    return kernel.swapaxes(1, 2)


def weights_of(layer, kernel):
    """Name of a weight -> array: what `kernel_of` gave, changed, for a layer of one kernel."""
    _, groups, features, units = kernel.shape
    taps = layer.kernel.shape[:-2]
    if type(layer) in _DEPTHWISE:
        shape = (*taps, groups, units)
    elif type(layer) in _TRANSPOSED:
        kernel, shape = kernel.swapaxes(2, 3), (*taps, units, features)
    else:
        kernel, shape = kernel.swapaxes(1, 2), (*taps, features, groups * units)
    return {"kernel": kernel.reshape(shape)}


def rescaled(layer, *, features=None, units=None):
    """Name of a weight -> array, of a kernel whose features or units are multiplied by numbers.

    Args:
        layer: of which `obstacle` says nothing.
        features, units: `[all features]`, `[all units]`; one of them.
    """
    if type(layer) in _SEPARABLE:
        if units is None:
            return {"depthwise_kernel": _array(layer.depthwise_kernel) * features[:, None]}
        return {"pointwise_kernel": _array(layer.pointwise_kernel) * units}
    kernel = kernel_of(layer)
    _, groups, each, made = kernel.shape
    if units is None:
        return weights_of(layer, kernel * features.reshape(groups, each, 1))
    return weights_of(layer, kernel * units.reshape(groups, 1, made))


def given_constants(layer, values):
    """What features that are constants add to each unit, away from borders, float64 `[units]`."""
    kernel = kernel_of(layer).sum(axis=0, dtype=np.float64)
    groups, each, _ = kernel.shape
    return np.einsum("gf,gfu->gu", values.reshape(groups, each), kernel).ravel()


def bias_of(layer):
    """The bias, float64 `[units]`, zeros where there is none."""
    if layer.bias is not None:
        return _array(layer.bias)
    _, groups, _, units = kernel_of(layer).shape
    return np.zeros(groups * units)


def with_bias(layer):
    """The attributes that give a layer a bias; none where it has one."""
    if layer.bias is not None:
        return {}
    if type(layer) is layers.EinsumDense:
        return {"bias_axes": layer.equation.strip()[-1]}
    return {"use_bias": True}


def sees_no_border(layer):
    """Whether what a layer gives for the same features everywhere is the same everywhere."""
    if type(layer) in _DENSE:
        return True
    if type(layer) in _TRANSPOSED:
        return False
    return layer.padding == "valid" or set(layer.kernel_size) == {1}


def is_pointwise(layer):
    """Whether a layer is as a Dense layer is at each point."""
    if type(layer) in _PLAIN:
        return {*layer.kernel_size, *layer.strides, layer.groups} == {1}
    return type(layer) is layers.Dense


def is_convolution(layer):
    """Whether a layer is a convolution of one group, neither transposed nor in two steps."""
    return type(layer) in _PLAIN and layer.groups == 1


def is_separable(layer):
    """Whether a layer has two kernels."""
    return type(layer) in _SEPARABLE


def channel_axis(layer, rank):
    """The axis of what a layer takes and gives along which its features and units lie."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return 1 if first and type(layer) not in _DENSE else rank - 1


def _array(variable):
    return np.asarray(ops.convert_to_numpy(variable), np.float64)
