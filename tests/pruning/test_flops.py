"""Floating-point operations against numbers by hand, and against TensorFlow's own profiler."""

import collections

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy.pruning import count_flops
from keras_layer_entropy.recording.graph import flat_graph


def applied(function, *shapes):
    """A functional model of one function of some inputs."""
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], function(*inputs))


# Numbers are written out as the formula has them; where there is no other word, 2 is for a
# multiplication and an addition.
BY_HAND = {
    "dense": (layers.Dense(3), [(7,)], 2 * 7 * 3 + 3),
    "dense at 5 places": (layers.Dense(3, use_bias=False), [(5, 7)], 5 * 2 * 7 * 3),
    "dense with relu": (layers.Dense(3, "relu"), [(7,)], 2 * 7 * 3 + 3 + 3),
    "dense with softmax": (layers.Dense(3, "softmax"), [(7,)], 2 * 7 * 3 + 3 + 5 * 3),
    "dense with a layer": (layers.Dense(3, layers.LeakyReLU()), [(7,)], 2 * 7 * 3 + 3 + 3),
    # 8 x 8 with a window of 3 gives 6 x 6; of 4 channels 2 in each group
    "grouped": (
        layers.Conv2D(6, 3, groups=2, use_bias=False), [(8, 8, 4)], 36 * 6 * 2 * (9 * 2)
    ),
    "strides": (layers.Conv2D(5, 3, strides=2), [(9, 9, 2)], 16 * 5 * (2 * 9 * 2 + 1)),
    "dilated": (layers.Conv1D(5, 3, dilation_rate=2), [(9, 2)], 5 * 5 * (2 * 3 * 2 + 1)),
    "same": (layers.Conv3D(2, 3, padding="same"), [(4, 4, 4, 3)], 64 * 2 * (2 * 27 * 3 + 1)),
    "depthwise": (
        layers.DepthwiseConv2D(3, depth_multiplier=2), [(8, 8, 4)], 36 * 8 * (2 * 9 + 1)
    ),
    "depthwise 1d": (layers.DepthwiseConv1D(3, use_bias=False), [(8, 4)], 6 * 4 * 2 * 3),
    "separable": (
        layers.SeparableConv2D(5, 3, depth_multiplier=2), [(8, 8, 4)],
        36 * 8 * 2 * 9 + 36 * 5 * (2 * 8 + 1),
    ),
    # each of the 7 x 7 x 3 entries is multiplied with a window for each filter; 15 x 15 come out
    "transposed": (
        layers.Conv2DTranspose(4, 3, strides=2), [(7, 7, 3)], 49 * 3 * 2 * 9 * 4 + 225 * 4
    ),
    "einsum": (
        layers.EinsumDense("bsd,dhk->bshk", (6, 2, 5), bias_axes="hk"), [(6, 7)],
        6 * 2 * 5 * (2 * 7 + 1),
    ),
    "einsum with dots": (layers.EinsumDense("...d,de->...e", 5), [(7,)], 2 * 7 * 5),
    "einsum of entries": (layers.EinsumDense("bd,d->bd", 7), [(7,)], 7),
    # 4 gates of x and h; additions of both and of a bias; f c + i g and o tanh(c): 4 for each of 5
    # units, and 5 functions
    "lstm": (layers.LSTM(5), [(7, 3)], 7 * (4 * 5 * (2 * 3 + 2 * 5 + 1 + 1) + 4 * 5 + 5 * 5)),
    # two biases; r h, + x, z h, (1 - z) h', their sum: 5, 1 of them the difference; 3 functions
    "gru": (layers.GRU(5), [(7, 3)], 7 * (3 * 5 * (2 * 3 + 2 * 5 + 2 + 1) + 5 * 5 + 3 * 5)),
    "simple rnn": (layers.SimpleRNN(5), [(7, 3)], 7 * 5 * (2 * 3 + 2 * 5 + 1 + 1 + 1)),
    "bidirectional": (
        layers.Bidirectional(layers.SimpleRNN(5, return_sequences=True), merge_mode="sum"),
        [(7, 3)], 2 * 7 * 5 * (2 * 3 + 2 * 5 + 3) + 7 * 5,
    ),
    "time distributed": (
        layers.TimeDistributed(layers.Conv1D(5, 3)), [(7, 9, 2)], 7 * 7 * 5 * (2 * 3 * 2 + 1)
    ),
    "time distributed model": (
        layers.TimeDistributed(
            keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(2)])
        ),
        [(7, 3)], 7 * (4 * (2 * 3 + 1) + 2 * (2 * 4 + 1)),
    ),
    "layer normalisation": (layers.LayerNormalization(), [(4, 10)], 8 * 40),
    "batch normalisation": (layers.BatchNormalization(), [(4, 10)], 2 * 40),
    "maxima": (layers.MaxPooling2D(3, 2), [(9, 9, 2)], 9 * 16 * 2),
    "global mean": (layers.GlobalAveragePooling2D(), [(9, 9, 2)], 162),
    "sum": (lambda a, b, c: layers.Add()([a, b, c]), [(10,)] * 3, 2 * 10),
    "product": (lambda a, b: layers.Dot(-1)([a, b]), [(4, 10), (5, 10)], 4 * 5 * 2 * 10),
    # 2 heads of 5 for queries and keys and of 3 for values: projections, with a bias each; 4 x 6
    # scores for each head, scaled; softmax; sums of values; projection to 10
    "attention": (
        lambda q, v: layers.MultiHeadAttention(2, 5, value_dim=3)(q, v), [(4, 10), (6, 8)],
        4 * 10 * (2 * 10 + 1) + 6 * 10 * (2 * 8 + 1) + 6 * 6 * (2 * 8 + 1)
        + 2 * 24 * (2 * 5 + 1 + 5 + 2 * 3) + 4 * 10 * (2 * 6 + 1),
    ),
    "attention with a key": (
        lambda q, v, k: layers.MultiHeadAttention(1, 5, use_bias=False)(query=q, key=k, value=v),
        [(4, 10), (6, 8), (6, 7)],
        4 * 5 * 2 * 10 + 6 * 5 * 2 * 7 + 6 * 5 * 2 * 8 + 24 * (10 + 1 + 5 + 10) + 4 * 10 * 2 * 5,
    ),
    # 4 heads of queries share 2 of keys and values
    "grouped attention": (
        lambda x: layers.GroupQueryAttention(5, 4, 2, use_bias=False)(x, x), [(3, 10)],
        2 * 3 * 10 * (20 + 10 + 10) + 4 * 9 * (10 + 1 + 5 + 10) + 3 * 10 * 2 * 20,
    ),
    "dot attention": (
        lambda q, v: layers.Attention(use_scale=True)([q, v]), [(4, 10), (6, 10)],
        24 * (20 + 1 + 5 + 20),
    ),
    # scale tanh(q + k), added up
    "additive attention": (
        lambda q, v: layers.AdditiveAttention()([q, v]), [(4, 10), (6, 10)],
        24 * (4 * 10 + 5 + 20),
    ),
    "matmul": (lambda a, b: a @ ops.swapaxes(b, 1, 2), [(4, 10), (5, 10)], 4 * 5 * 2 * 10),
    "einsum operation": (
        lambda a, b: ops.einsum("bij,bkj->bik", a, b), [(4, 10), (5, 10)], 4 * 5 * 2 * 10
    ),
    "operations": (lambda x: ops.mean(ops.relu(x * 2 + 1), axis=-1), [(4, 10)], 4 * 40),
    "moved": (
        lambda x: layers.Flatten()(ops.concatenate([x[:, 1:], layers.Dropout(0.5)(x)], axis=1)),
        [(4, 10)], 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_kinds_by_hand(name):
    """To the last one: these are whole numbers."""
    function, shapes, wanted = BY_HAND[name]
    found = count_flops(applied(function, *shapes))
    assert found.unknown == ()
    assert found.total == wanted


def test_channels_first_are_counted_alike():
    convolution = layers.Conv2D(6, 3, groups=2, data_format="channels_first", use_bias=False)
    assert count_flops(applied(convolution, (4, 8, 8))).total == 36 * 6 * 2 * (9 * 2)


def test_calls_come_in_the_order_of_the_graph_and_shared_layers_each_time():
    shared = layers.Dense(5, name="shared")
    block = keras.Sequential([keras.Input((5,)), layers.Dense(2, name="inside")], name="block")
    model = applied(lambda a, b: block(layers.Add(name="sum")([shared(a), shared(b)])), (4,), (4,))
    found = count_flops(model)
    paths = [call.path for call in flat_graph(model).calls]
    assert list(zip(paths, found.per_call, strict=True)) == [
        ("shared", 45), ("shared", 45), ("sum", 5), ("block/inside", 22)
    ]  # fmt: skip
    assert found.total == 117


class Doubled(layers.Layer):
    """A layer of one's own."""

    def call(self, inputs):
        return 2 * inputs


class Windows(layers.Layer):
    """Takes windows of 2 places apart, each as a sample."""

    def call(self, inputs):
        return ops.reshape(inputs, (-1, 2, inputs.shape[-1]))


def test_what_is_not_known_is_listed_once():
    own = Doubled(name="own")
    quantized = layers.Dense(8, name="quantized")
    inputs = keras.Input((8,))
    x = layers.Lambda(lambda x: x + 1, name="lambda")(own(inputs))
    x = layers.Dense(8, lambda x: x**2, name="square")(own(x))
    outputs = layers.Dense(2, name="head")(quantized(x))
    quantized.quantize("int8")
    found = count_flops(keras.Model(inputs, outputs))
    assert found.unknown == ("own", "lambda", "square", "quantized")
    assert found.per_call == (None, None, None, None, None, 2 * 8 * 2 + 2)
    assert found.total == 34


def test_open_sizes_are_those_of_the_data():
    inputs = keras.Input((None, 3))
    x = layers.Conv1D(4, 3, use_bias=False, name="first")(inputs)
    outputs = layers.Dense(2, use_bias=False)(layers.LSTM(5, name="lstm")(x))
    model = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match="at 'first' are, .* leaves open: pass x, one sample"):
        count_flops(model)
    before = [w.copy() for w in model.get_weights()]
    found = count_flops(model, np.ones((3, 9, 3), "float32"))
    steps = 7 * (4 * 5 * (2 * 4 + 2 * 5 + 2) + 9 * 5)
    assert found.per_call == (7 * 4 * 2 * 9, steps, 2 * 5 * 2)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("windows", [Windows(), lambda x: ops.reshape(x, (-1, 2, 3))])
def test_entries_that_become_samples_are_counted(windows):
    """6 places of 3 are 3 windows: what follows is done 3 times for each sample."""
    model = applied(lambda x: layers.Dense(4, use_bias=False)(windows(x)), (6, 3))
    found = count_flops(model, np.ones((1, 6, 3), "float32"))
    assert found.per_call[-1] == 6 * 2 * 3 * 4


def test_several_inputs_by_any_structure():
    inputs = {"a": keras.Input((None, 3), name="a"), "b": keras.Input((None, 3), name="b")}
    x = layers.Concatenate(axis=1)([inputs["a"], inputs["b"]])
    model = keras.Model(inputs, layers.Dense(2, use_bias=False)(x))
    a, b = np.ones((2, 4, 3), "float32"), np.ones((2, 5, 3), "float32")
    assert count_flops(model, {"b": b, "a": a}).total == 9 * 2 * 3 * 2
    model = keras.Model(list(inputs.values()), model.outputs)
    assert count_flops(model, [a, b]).total == 9 * 2 * 3 * 2


def test_a_batch_of_one_size_is_divided():
    inputs = keras.Input((None, 3), batch_size=4)
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    assert count_flops(model, np.ones((1, 5, 3), "float32")).total == 5 * (2 * 3 * 2 + 2)


def test_subclassed_models_are_refused():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="is a subclassed model"):
        count_flops(Own())


def profiled(model):
    """What TensorFlow's profiler counts for one sample, by its table of operations."""
    import tensorflow as tf

    one = [tf.zeros((1, *x.shape[1:]), x.dtype) for x in model.inputs]
    function = tf.function(lambda inputs: model(inputs, training=False))
    graph = function.get_concrete_function(one if len(one) > 1 else one[0]).graph
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    counted = profiler.profile(graph, options=options.with_empty_output().build())
    return int(counted.total_float_ops)


# Of these its table has all that they do in inference.
PROFILED = {
    "dense": (layers.Dense(3, "softmax"), [(5, 7)]),
    "convolution": (layers.Conv2D(4, 3, strides=2, padding="same"), [(8, 8, 3)]),
    "dilated": (layers.Conv1D(4, 3, dilation_rate=2), [(8, 3)]),
    "3d": (layers.Conv3D(4, 3), [(5, 5, 5, 3)]),
    "depthwise": (layers.DepthwiseConv2D(3, depth_multiplier=2), [(8, 8, 3)]),
    "separable": (layers.SeparableConv2D(4, 3), [(8, 8, 3)]),
    "transposed": (layers.Conv2DTranspose(4, 3, strides=2, padding="same"), [(8, 8, 3)]),
    "maxima": (layers.MaxPooling2D(3, 2), [(8, 8, 3)]),
    "means": (layers.AveragePooling2D(3, 2, padding="same"), [(8, 8, 3)]),
    "global means": (layers.GlobalAveragePooling2D(), [(8, 8, 3)]),
    "average": (lambda a, b, c: layers.Average()([a, b, c]), [(10,)] * 3),
    "dot": (lambda a, b: layers.Dot(-1)([a, b]), [(4, 10), (5, 10)]),
    "attention": (lambda q, v: layers.Attention(use_scale=True)([q, v]), [(4, 10), (6, 10)]),
    "rescaling": (layers.Rescaling(1 / 255), [(10,)]),
    "variance": (lambda x: ops.var(x, axis=-1), [(4, 10)]),
    "arithmetic": (lambda x: (x * 2 - 1) / 3 + ops.square(x), [(10,)]),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", PROFILED)
def test_kinds_as_the_profiler_counts_them(name):
    function, shapes = PROFILED[name]
    model = applied(function, *shapes)
    assert count_flops(model).total == profiled(model)


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_recurrent_steps_as_the_profiler_counts_them(kind):
    """Unrolled; it counts tanh and sigmoid as nothing, which are 5, 3 and 1 here."""
    model = applied(kind(5, unroll=True), (7, 3))
    functions = {layers.LSTM: 5, layers.GRU: 3, layers.SimpleRNN: 1}[kind]
    assert count_flops(model).total - 7 * 5 * functions == profiled(model)


def vgg():
    def convolution(filters):
        return layers.Conv2D(filters, 3, padding="same", activation="relu")

    return keras.Sequential([
        keras.Input((16, 16, 3)), convolution(8), convolution(8), layers.MaxPooling2D(),
        convolution(16), layers.MaxPooling2D(), layers.Flatten(), layers.Dense(32, "relu"),
        layers.Dropout(0.5), layers.Dense(10, "softmax"),
    ])  # fmt: skip


def resnet():
    def block(x, filters, strides):
        y = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(y)
        y = layers.BatchNormalization()(y)
        if strides > 1:
            x = layers.Conv2D(filters, 1, strides)(x)
        return layers.Activation("relu")(layers.Add()([x, y]))

    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    x = block(block(x, 8, 1), 16, 2)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def mobilenet():
    inputs = x = keras.Input((16, 16, 3))
    for filters in (8, 16):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(layers.ZeroPadding2D()(x))
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.Conv2D(filters, 1, use_bias=False)(x)
        x = layers.BatchNormalization(scale=False)(x)
    return keras.Model(inputs, layers.Dense(10, "softmax")(layers.GlobalAveragePooling2D()(x)))


def application(name):
    return lambda: getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3))


NETWORKS = {
    "vgg": vgg,
    "resnet": resnet,
    "mobilenet": mobilenet,
    "MobileNetV2": application("MobileNetV2"),
    "ResNet50": application("ResNet50"),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_as_the_profiler_counts_them(name):
    """But for what it knows of too little or too well, to the last one.

    It counts ReLU as nothing, which is 1 for each entry; and makes a scale and an offset for each
    channel of the weights of a batch normalisation (6, without gamma 5), once for all samples.
    """
    model = NETWORKS[name]()
    found, graph = count_flops(model), flat_graph(model)
    more = collections.Counter()
    for call in graph.calls:
        layer, entries = call.operation, int(np.prod(graph.shapes[call.outputs[0]][1:]))
        function = getattr(layer, "activation", None)
        if function is keras.activations.relu or isinstance(layer, layers.ReLU):
            more["relu"] += entries
        if isinstance(layer, layers.BatchNormalization):
            more["normalisation"] += (5 + layer.scale) * layer.moving_mean.shape[0]
    assert found.unknown == ()
    assert found.total - more["relu"] + more["normalisation"] == profiled(model)
