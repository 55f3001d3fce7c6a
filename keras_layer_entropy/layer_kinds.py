"""Which layers and operations belong to the layer before them."""

import functools

import keras

_LAYERS = {
    "activation": ("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
    "normalization": (
        *("BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"),
        "UnitNormalization",
    ),
    "dropout": ("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise"),
    # What comes out of these is still the output of the layer before, in another form.
    "passing": ("Reshape", "Flatten", "Permute", "Identity", "Lambda"),
}
# Element-wise operations of a functional model, `keras.ops.relu(x)` and the like.
_ACTIVATION_OPERATIONS = (
    *("Relu", "Relu6", "Sigmoid", "LogSigmoid", "HardSigmoid", "Tanh", "HardTanh", "TanhShrink"),
    *("Softplus", "Softsign", "SoftShrink", "HardShrink", "Silu", "HardSilu", "LeakyRelu"),
    *("Elu", "Selu", "Celu", "Gelu", "SquarePlus", "SparsePlus", "Threshold"),
    *("Softmax", "LogSoftmax"),
)


def kind(operation):
    """`"activation"`, `"normalization"`, `"dropout"`, `"passing"`, or None for anything else.

    Args:
        operation: a layer, or an operation of a functional model.

    Example:

    >>> kind(keras.layers.ReLU()), kind(keras.layers.Flatten()), kind(keras.layers.Dense(3))
    ('activation', 'passing', None)
    """
    if not isinstance(operation, keras.Layer):
        return "activation" if type(operation).__name__ in _ACTIVATION_OPERATIONS else None
    for name in _LAYERS:
        if isinstance(operation, _classes(name)):
            return name
    return None


def is_linear(layer):
    """Whether the layer is an activation that does nothing, or has one."""
    return getattr(layer, "activation", None) is keras.activations.linear


@functools.cache
def _classes(name):
    return tuple(getattr(keras.layers, x) for x in _LAYERS[name] if hasattr(keras.layers, x))
