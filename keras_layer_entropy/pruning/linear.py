"""Layers that compute `activation(x @ kernel + bias)` on the last axis, by whatever name."""

import keras
from keras import ops

# Layers that end in a kernel of their own, `_output_dense`, and make their layers when built.
ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


def obstacle(layer):
    """Why a layer's kernel cannot be found by a regression on what the layer is given, or None.

    Example:

    >>> obstacle(keras.layers.Dense(3)), obstacle(keras.layers.Conv1D(3, kernel_size=2))
    (None, 'it is a Conv1D')
    """
    if reason := adapted(layer):
        return reason
    if any(_is_plain(layer, kind) and fits(layer) for kind, fits in _KINDS.items()):
        return None
    return f"it is a {type(layer).__name__}"


def adapted(layer):
    """Why the weights of a layer are not what it computes with, or None.

    Example:

    >>> adapted(keras.layers.Dense(3)) is None
    True
    """
    if getattr(layer, "lora_enabled", False):
        return "it is being fine-tuned with LoRA"
    if getattr(layer, "quantization_mode", None):
        return f"it is quantized ({layer.quantization_mode})"
    return None


def matrix(layer):
    """The kernel as `[features, units]`."""
    kernel = ops.convert_to_tensor(layer.kernel)
    return ops.reshape(kernel, (features_of(layer), -1))


def features_of(layer):
    """How many features a layer takes."""
    return layer.kernel.shape[_feature_axis(layer)]


def constrained(layer, kernel):
    """A kernel `[features, units]` as the layer's constraint leaves it."""
    if layer.kernel_constraint is None:
        return kernel
    axis, shape = _feature_axis(layer), list(layer.kernel.shape)
    shape[axis] = len(kernel)
    projected = layer.kernel_constraint(
        ops.convert_to_tensor(kernel.reshape(shape), layer.variable_dtype)
    )
    return ops.convert_to_numpy(projected).reshape(kernel.shape).astype(kernel.dtype)


def assign(layer, kernel, bias):
    """Gives a layer a kernel `[features, units]` and a bias `[units]`."""
    layer.kernel.assign(kernel.reshape(layer.kernel.shape))
    assign_bias(layer, bias)


def assign_bias(layer, bias):
    """Gives a layer a bias `[units]`, where it has one."""
    if layer.bias is not None:
        bias = ops.convert_to_tensor(bias.reshape(layer.bias.shape), layer.variable_dtype)
        layer.bias.assign(bias if layer.bias_constraint is None else layer.bias_constraint(bias))


def _feature_axis(layer):
    return len(layer.kernel.shape) - 2 if _is_convolution(layer) else 0


def _is_plain(layer, kind):
    """Whether a layer is of a kind, and runs its code."""
    return isinstance(layer, kind) and type(layer).call is kind.call


def _is_convolution(layer):
    return isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D))


def _looks_at_points(convolution):
    ones = {*convolution.kernel_size, *convolution.strides, convolution.groups}
    return ones == {1} and convolution.data_format == "channels_last"


def _is_on_the_last_axis(einsum):
    """Whether an `EinsumDense` is as `...c,cd->...d`, where d may be several axes."""
    taken, _, given = einsum.equation.replace(" ", "").partition("->")
    inputs, kernel = taken.split(",")
    whole_bias = einsum.bias is None or einsum.bias.shape == einsum.kernel.shape[1:]
    return inputs[-1] == kernel[0] and given == inputs[:-1] + kernel[1:] and whole_bias


_KINDS = {
    keras.layers.Dense: lambda _: True,
    keras.layers.EinsumDense: _is_on_the_last_axis,
    keras.layers.Conv1D: _looks_at_points,
    keras.layers.Conv2D: _looks_at_points,
    keras.layers.Conv3D: _looks_at_points,
}
