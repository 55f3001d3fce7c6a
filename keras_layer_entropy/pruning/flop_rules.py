"""Rules: how many floating-point operations a call of a layer or an operation is.

A rule is called with the layer or operation and the `Sizes` around a call of it. What it cannot say
raises `UnknownError`. The conventions are those that `flops.count_flops` states.
"""

import dataclasses
import inspect
import math

import keras
from keras import activations, layers
from keras.src.applications.convnext import LayerScale
from keras.src.ops import core as core_ops
from keras.src.ops import math as math_ops
from keras.src.ops import nn as nn_ops
from keras.src.ops import numpy as numpy_ops

from keras_layer_entropy.recording.graph import flat_graph, opened


class UnknownError(Exception):
    """Nobody can say how many operations it is."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shapes around a call, that of the samples among their axes.

    Attributes:
        given, made: of the tensors that go in and come out.
        arguments: what it is called with, in order and by name; tensors have their shapes.
    """

    given: list
    made: list
    arguments: tuple = ((), {})

    def named(self, operation):
        """All arguments by name."""
        args, kwargs = self.arguments
        return inspect.signature(operation.call).bind(*args, **kwargs).arguments


def count_call(call, shapes):
    """The operations of a call, by the shapes of the tensors of its graph.

    Raises:
        UnknownError: they are not known.
    """
    given, made = (
        [tuple(n or 1 for n in shapes[number]) for number in numbers]
        for numbers in (call.inputs, call.outputs)
    )
    tensors = call.node.input_tensors
    filled = {id(x): keras.KerasTensor(shape) for x, shape in zip(tensors, given, strict=True)}
    return _count(call.operation, Sizes(given, made, call.node.arguments.fill_in(filled)))


def opening(graph):
    """The path of the first call around which a size is not known, or None.

    A Reshape that moves entries to the axis of samples hides one.
    """
    for call in graph.calls:
        shapes = [graph.shapes[number] for number in (*call.inputs, *call.outputs)]
        if any(n is None for shape in shapes for n in shape[1:]):
            return call.path
        if isinstance(call.operation, numpy_ops.Reshape | numpy_ops.Ravel):
            taken, made = shapes
            if taken[0] is None and _size(taken) != _size(made):
                return call.path
    return None


def _count(operation, sizes):
    rule = RULES.get(type(operation))
    if rule is None or getattr(operation, "quantization_mode", None):
        raise UnknownError
    return rule(operation, sizes)


def _size(shape):
    """Number of entries; an open axis, that of the samples, is one."""
    return math.prod(n or 1 for n in shape)


def _each(count):
    """Some operations for each entry that comes out."""
    return lambda _, sizes: count * _size(sizes.made[0])


def _each_given(count):
    """Some operations for each entry that goes in."""
    return lambda _, sizes: count * _size(sizes.given[0])


def _function(function, shape):
    """The operations of an activation function, or of a layer in its place."""
    if function is None:
        return 0
    if isinstance(function, layers.Layer):
        return _count(function, Sizes([shape], [shape]))
    if function not in _FUNCTIONS:
        raise UnknownError
    return _FUNCTIONS[function] * _size(shape)


def _finish(layer, made):
    """A bias for each entry, and the activation function."""
    return (layer.bias is not None) * _size(made) + _function(layer.activation, made)


def _dense(layer, sizes):
    (made,) = sizes.made
    return 2 * sizes.given[0][-1] * _size(made) + _finish(layer, made)


def _convolution(layer, sizes):
    """Each entry is made of the channels of a group at all places of a window."""
    (made,) = sizes.made
    return 2 * math.prod(layer.kernel.shape[:-1]) * _size(made) + _finish(layer, made)


def _depthwise_convolution(layer, sizes):
    (made,) = sizes.made
    return 2 * math.prod(layer.kernel_size) * _size(made) + _finish(layer, made)


def _transposed_convolution(layer, sizes):
    window = math.prod(layer.kernel_size)
    return 2 * window * layer.filters * _size(sizes.given[0]) + _finish(layer, sizes.made[0])


def _separable_convolution(layer, sizes):
    (made,) = sizes.made
    between = layer.pointwise_kernel.shape[-2]
    places = _size(made) // layer.filters
    depthwise = 2 * math.prod(layer.kernel_size) * between * places
    return depthwise + 2 * between * _size(made) + _finish(layer, made)


def _einsum_dense(layer, sizes):
    products = _products(layer.equation, [sizes.given[0], layer.kernel.shape])
    return products + _finish(layer, sizes.made[0])


def _einsum(operation, sizes):
    operands = [x.shape for x in sizes.named(operation)["operands"]]
    if len(operands) != 2:  # how several are multiplied is the backend's choice
        raise UnknownError
    return _products(operation.subscripts, operands)


def _products(equation, shapes):
    """The operations of an einsum of two operands."""
    taken, arrow, made = equation.replace(" ", "").partition("->")
    if not arrow:
        raise UnknownError
    others = "01234567"  # letters for "..."
    sizes = {}
    for term, shape in zip(taken.split(","), shapes, strict=True):
        hidden = len(shape) - len(term.replace("...", ""))
        letters = term.replace("...", others[len(others) - hidden :])
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    summed = set(sizes) - set(made) - (set(others) if "..." in made else set())
    return (2 if summed else 1) * math.prod(sizes.values())


def _matmul(operation, sizes):
    return 2 * sizes.named(operation)["x1"].shape[-1] * _size(sizes.made[0])


def _dot(layer, sizes):
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    norms = 3 * sum(map(_size, sizes.given)) if layer.normalize else 0
    return norms + 2 * sizes.given[0][axis] * _size(sizes.made[0])


def _normalization(layer, sizes):
    """By mean and variance of its own."""
    return (6 + layer.center + layer.scale) * _size(sizes.given[0])


def _pooling(layer, sizes):
    return math.prod(layer.pool_size) * _size(sizes.made[0])


def _upsampling(layer, sizes):
    if layer.interpolation != "nearest":
        raise UnknownError
    return 0


def _merge(layer, sizes):
    return (len(sizes.given) - 1) * _size(sizes.made[0])


def _average(layer, sizes):
    return len(sizes.given) * _size(sizes.made[0])


def _steps(sizes):
    """How often a cell is called, and for how many features."""
    samples, steps, features = sizes.given[0]
    return samples * steps, features


def _simple_rnn(layer, sizes):
    steps, features = _steps(sizes)
    cell = 2 * (features + layer.units) + layer.use_bias + 1
    return steps * cell * layer.units + _function(layer.activation, (steps, layer.units))


def _lstm(layer, sizes):
    """Four gates of two products each, and 4 for the states."""
    steps, features = _steps(sizes)
    cell = 4 * (2 * (features + layer.units) + layer.use_bias + 1) + 4
    gates = _function(layer.recurrent_activation, (steps, 3 * layer.units))
    states = _function(layer.activation, (steps, 2 * layer.units))
    return steps * cell * layer.units + gates + states


def _gru(layer, sizes):
    """Three gates of two products each, 1 for the reset, and 4 for the state."""
    steps, features = _steps(sizes)
    biases = layer.use_bias * (2 if layer.reset_after else 1)
    cell = 3 * (2 * (features + layer.units) + biases + 1) + 5
    gates = _function(layer.recurrent_activation, (steps, 2 * layer.units))
    states = _function(layer.activation, (steps, layer.units))
    return steps * cell * layer.units + gates + states


def _bidirectional(layer, sizes):
    merged = {None: 0, "concat": 0, "sum": 1, "mul": 1, "ave": 2}[layer.merge_mode]
    both = (layer.forward_layer, layer.backward_layer)
    return sum(_count(x, sizes) for x in both) + merged * _size(sizes.made[0])


def _time_distributed(layer, sizes):
    given, made = (shape[0][2:] for shape in (sizes.given, sizes.made))
    times = math.prod(sizes.given[0][:2])
    if opened(layer.layer) is None:
        return times * _count(layer.layer, Sizes([(1, *given)], [(1, *made)]))
    graph = flat_graph(layer.layer)
    if opening(graph) is not None:
        raise UnknownError
    return times * sum(count_call(call, graph.shapes) for call in graph.calls)


def _places(shape):
    return _size(shape[:-1])


def _attend(scores, key, value):
    """Products with keys, softmax, products with values: of each score."""
    return scores * (2 * key + 5 + 2 * value)


def _multi_head_attention(layer, sizes):
    query, key, value = _query_key_value(layer, sizes)
    if layer.attention_axes not in (None, tuple(range(1, len(query) - 1))):
        raise UnknownError
    return _heads(
        layer, sizes, (query, key, value), heads=layer.num_heads, pairs=layer.num_heads,
        depth=layer.key_dim, width=layer.value_dim,
    )  # fmt: skip


def _group_query_attention(layer, sizes):
    return _heads(
        layer, sizes, _query_key_value(layer, sizes), heads=layer.num_query_heads,
        pairs=layer.num_key_value_heads, depth=layer.head_dim, width=layer.head_dim,
    )  # fmt: skip


def _query_key_value(layer, sizes):
    arguments = sizes.named(layer)
    value = arguments["value"].shape
    key = arguments.get("key")
    return arguments["query"].shape, value if key is None else key.shape, value


def _heads(layer, sizes, tensors, *, heads, pairs, depth, width):
    """Projections and scaled attention: `heads` of queries, `pairs` of keys and values."""
    query, key, value = tensors
    made = _size(sizes.made[0]) // _places(query)
    gated = layer.get_config()["use_gate"]

    def project(shape, units):
        return _places(shape) * units * (2 * shape[-1] + layer.use_bias)

    scores = heads * _places(query) * _places(key[1:])
    projected = project(query, heads * depth) + project(key, pairs * depth)
    projected += project(value, pairs * width) + project((*query[:-1], heads * width), made)
    if gated:  # by a sigmoid
        projected += project(query, heads * width) + 2 * _places(query) * heads * width
    return projected + scores + _attend(scores, depth, width)


def _attention(layer, sizes):
    query, value, *_ = (x.shape for x in sizes.named(layer)["inputs"])
    scores, depth = _places(query) * value[-2], query[-1]
    if layer.score_mode == "dot":
        return scores * layer.use_scale + _attend(scores, depth, value[-1])
    return scores + _added(scores, depth, value[-1], layer.use_scale)


def _additive_attention(layer, sizes):
    query, value, *_ = (x.shape for x in sizes.named(layer)["inputs"])
    return _added(_places(query) * value[-2], query[-1], value[-1], layer.use_scale)


def _added(scores, depth, value, scaled):
    """Attention by the sum of `tanh(query + key)`, with a scale or without."""
    return scores * (3 + scaled) * depth + _attend(scores, 0, value)


def _dot_product_attention(operation, sizes):
    arguments = sizes.named(operation)
    query, key, value = (arguments[name].shape for name in ("query", "key", "value"))
    scores = _places(query) * key[1]
    return scores + _attend(scores, query[-1], value[-1])


def _kinds(module, names):
    """The classes of these names; one that this Keras has not is an operation that is unknown."""
    return [getattr(module, name) for name in names.split() if hasattr(module, name)]


_FREE = (
    *_kinds(layers, "Flatten Permute RepeatVector Reshape Concatenate Embedding Identity Masking"),
    *_kinds(layers, "ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D Cropping2D Cropping3D"),
    *_kinds(layers, "UpSampling1D UpSampling3D ActivityRegularization"),  # at inference, these:
    *_kinds(layers, "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout"),
    *_kinds(layers, "GaussianDropout GaussianNoise RandomFlip RandomRotation RandomZoom"),
    *_kinds(layers, "RandomTranslation RandomContrast RandomBrightness"),
    *_kinds(numpy_ops, "Reshape Ravel Transpose Swapaxes Moveaxis ExpandDims Squeeze Concatenate"),
    *_kinds(numpy_ops, "Stack Hstack Vstack Dstack Split ArraySplit GetItem Take TakeAlongAxis"),
    *_kinds(numpy_ops, "Flip Roll Rot90 Pad Tile Repeat BroadcastTo Copy Diagonal Tril Triu"),
    *_kinds(numpy_ops, "ZerosLike OnesLike FullLike EmptyLike"),
    *_kinds(core_ops, "Cast SaturateCast StopGradient Slice Unstack ConvertToTensor"),
    *_kinds(nn_ops, "OneHot DepthToSpace SpaceToDepth"),
)
_SINGLE = (  # functions of single entries
    *_kinds(layers, "ReLU LeakyReLU PReLU ELU"),
    LayerScale,
    *_kinds(nn_ops, "Relu Relu6 LeakyRelu Elu Selu Celu Gelu Silu HardSilu Softplus Softsign"),
    *_kinds(nn_ops, "Sigmoid SparseSigmoid HardSigmoid LogSigmoid SoftShrink HardShrink"),
    *_kinds(nn_ops, "TanhShrink HardTanh SparsePlus Squareplus Threshold"),
    *_kinds(numpy_ops, "Add Subtract Multiply Divide TrueDivide DivideNoNan FloorDivide Mod Power"),
    *_kinds(numpy_ops, "Maximum Minimum Absolute Abs Negative Sign Square Sqrt Reciprocal Exp"),
    *_kinds(numpy_ops, "Exp2 Expm1 Log Log1p Log2 Log10 Logaddexp Sin Cos Tan Tanh Sinh Cosh"),
    *_kinds(numpy_ops, "Arctan Arctan2 Arcsin Arccos Clip Round Floor Ceil Trunc Where"),
    *_kinds(numpy_ops, "Cumsum Cumprod Equal NotEqual Less LessEqual Greater GreaterEqual"),
    *_kinds(numpy_ops, "LogicalAnd LogicalOr LogicalNot LogicalXor Isfinite Isnan Isinf"),
    *_kinds(math_ops, "Rsqrt Erf Erfc Erfinv"),
)
_REDUCTIONS = (
    *_kinds(layers, "GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D"),
    *_kinds(layers, "GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D"),
    *_kinds(numpy_ops, "Mean Sum Prod Max Min Amax Amin Argmax Argmin All Any CountNonzero"),
)
_POOLINGS = (
    *_kinds(layers, "MaxPooling1D MaxPooling2D MaxPooling3D"),
    *_kinds(layers, "AveragePooling1D AveragePooling2D AveragePooling3D"),
)
_FUNCTIONS = {
    activations.linear: 0,
    **dict.fromkeys((activations.softmax, activations.log_softmax), 5),
    **dict.fromkeys(
        _kinds(
            activations,
            "relu relu6 leaky_relu elu selu celu gelu silu hard_silu softplus softsign sigmoid "
            "sparse_sigmoid hard_sigmoid log_sigmoid soft_shrink hard_shrink tanh tanh_shrink "
            "hard_tanh sparse_plus squareplus threshold exponential mish",
        ),
        1,
    ),
}

RULES = {
    **dict.fromkeys(_FREE, _each(0)),
    **dict.fromkeys(_SINGLE, _each(1)),
    **dict.fromkeys(_REDUCTIONS, _each_given(1)),
    **dict.fromkeys(_POOLINGS, _pooling),
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
    layers.EinsumDense: _einsum_dense,
    layers.UpSampling2D: _upsampling,
    layers.Activation: lambda layer, sizes: _function(layer.activation, sizes.made[0]),
    layers.Softmax: _each(5),
    layers.Rescaling: _each(2),
    layers.Normalization: _each(2),
    layers.BatchNormalization: _each(2),
    layers.LayerNormalization: _normalization,
    layers.GroupNormalization: _normalization,
    layers.RMSNormalization: _each(4),
    layers.UnitNormalization: _each(3),
    layers.Add: _merge,
    layers.Subtract: _merge,
    layers.Multiply: _merge,
    layers.Maximum: _merge,
    layers.Minimum: _merge,
    layers.Average: _average,
    layers.Dot: _dot,
    layers.SimpleRNN: _simple_rnn,
    layers.LSTM: _lstm,
    layers.GRU: _gru,
    layers.Bidirectional: _bidirectional,
    layers.TimeDistributed: _time_distributed,
    layers.MultiHeadAttention: _multi_head_attention,
    layers.GroupQueryAttention: _group_query_attention,
    layers.Attention: _attention,
    layers.AdditiveAttention: _additive_attention,
    nn_ops.Softmax: _each(5),
    nn_ops.LogSoftmax: _each(5),
    nn_ops.Normalize: _each(3),
    nn_ops.DotProductAttention: _dot_product_attention,
    numpy_ops.Var: _each_given(4),
    numpy_ops.Std: _each_given(4),
    numpy_ops.Matmul: _matmul,
    numpy_ops.Einsum: _einsum,
    math_ops.Logsumexp: _each_given(4),
}
