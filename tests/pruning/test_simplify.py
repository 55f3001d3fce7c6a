"""`simplify_model`: what should go does, what may not stays, and no output is another."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy import load_model, save_model, simplify_model
from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.sameness import find_sameness

# All of it is calls of Keras; on other backends the examples of it and of `find_sameness` run it.
pytestmark = pytest.mark.tensorflow

# Of the spread of the outputs: rounding in some layers of a few hundred products.
DTYPES = [
    pytest.param("float64", 1e-9, id="float64"),
    pytest.param("float32", 1e-3, id="float32"),
]
dtypes = pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)


@pytest.fixture
def in_dtype():
    before = keras.config.floatx()
    yield keras.config.set_floatx
    keras.config.set_floatx(before)


def drawn(model, random):
    """The model with random weights: fresh normalisations and biases do nothing."""
    for variable in model.variables:
        if "seed" not in variable.path:
            value = random.normal(size=variable.shape)
            value = value / np.sqrt(max(1, np.prod(variable.shape[:-1])))
            variable.assign(np.abs(value) + 0.5 if "variance" in variable.path else value)
    return model


def data_for(model, random, samples=3):
    found = [random.normal(size=(samples, *x.shape[1:])) for x in model.inputs]
    return found if len(found) > 1 else found[0]


def outputs(model, x):
    return [np.asarray(ops.convert_to_numpy(y)) for y in keras.tree.flatten(model(x))]


def simplified(model, random, tolerance):
    """The simpler model, whose outputs are compared; the given one is not changed."""
    x = data_for(model, random)
    before = [np.array(variable) for variable in model.variables]
    expected = outputs(model, x)
    simpler = simplify_model(model)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), value)
    for found, wanted in zip(outputs(simpler, x), expected, strict=True):
        spread = wanted.std()
        assert spread > 0
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * spread)
    return simpler


def names(model):
    """Names of all layers that a model calls, those of models inside it too."""
    return {layer.name for layer in model._flatten_layers(include_self=False)}


def gone(model, simpler):
    assert names(simpler) <= names(model)
    return names(model) - names(simpler)


def bn(name="bn", **options):
    return layers.BatchNormalization(name=name, **options)


def pooled(x):
    return layers.Dense(3, name="out")(layers.GlobalAveragePooling2D()(x))


IMAGE, ROW = (6, 6, 3), (5,)


# Normalisations. Each: shape of the input, what is built on it, the names of what goes.
def dense(x):
    x = bn()(layers.Dense(6, name="a")(x))
    return layers.Dense(3)(layers.Dropout(0.5, name="drop")(layers.ReLU()(x)))


def bare(x):
    x = bn("one", scale=False)(layers.Conv2D(6, 3, padding="same", use_bias=False)(x))
    return pooled(bn("two", center=False)(layers.Conv2D(4, 3)(layers.ReLU()(x))))


def mobile(x):
    """An inverted residual."""
    y = layers.ReLU()(bn("one")(layers.Conv2D(6, 1, use_bias=False)(x)))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = bn("three")(layers.Conv2D(3, 1, use_bias=False)(layers.ReLU()(bn("two")(y))))
    return pooled(layers.Add()([x, y]))


def multiplied(x):
    return pooled(layers.ReLU()(bn()(layers.DepthwiseConv2D(3, depth_multiplier=2)(x))))


def separable(x):
    return pooled(layers.ReLU()(bn()(layers.SeparableConv2D(4, 3, depth_multiplier=2)(x))))


def transposed(x):
    return pooled(layers.ReLU()(bn()(layers.Conv2DTranspose(4, 3, strides=2)(x))))


def grouped(x):
    x = layers.Conv2D(4, 1, activation="relu")(x)
    return pooled(layers.ReLU()(bn()(layers.Conv2D(6, 3, groups=2)(x))))


def sequence(x):
    x = layers.ReLU()(bn("one")(layers.Conv1D(4, 3, padding="causal", dilation_rate=2)(x)))
    x = layers.EinsumDense("...c,cd->...d", 6)(x)
    return layers.Dense(3)(layers.GlobalMaxPooling1D()(layers.ReLU()(bn("two")(x))))


def volume(x):
    x = layers.ReLU()(bn()(layers.Conv3D(4, 2, use_bias=False)(x)))
    return layers.Dense(3)(layers.GlobalAveragePooling3D()(x))


def channels_first(x):
    x = layers.Permute((3, 1, 2))(x)
    x = layers.Conv2D(6, 3, data_format="channels_first", use_bias=False, name="a")(x)
    x = layers.ReLU()(bn("one", axis=1)(x))
    x = bn("two", axis=1)(layers.AveragePooling2D(2, data_format="channels_first")(x))
    x = layers.Conv2D(4, 2, data_format="channels_first")(x)
    return layers.Dense(3)(layers.Flatten()(layers.ReLU()(x)))


def before(x):
    """A normalisation after a sum, that two layers take."""
    x = layers.ReLU()(layers.Conv2D(4, 3, name="a")(x))
    x = bn()(layers.Add()([x, layers.Conv2D(4, 1, activation="relu")(x)]))
    y = layers.Conv2D(4, 3, strides=2, use_bias=False)(x)
    return pooled(layers.Add()([layers.ReLU()(y), layers.Conv2D(4, 3, strides=2)(x)]))


def before_others(x):
    x = bn("one")(layers.ReLU()(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu", use_bias=False)(x)
    x = layers.SeparableConv2D(6, 2, depth_multiplier=2, activation="relu")(bn("two")(x))
    x = layers.Conv2D(4, 1, groups=2, activation="relu", padding="same")(bn("three")(x))
    return layers.Dense(3, use_bias=False)(bn("four")(layers.GlobalMaxPooling2D()(x)))


def before_dense(x):
    x = layers.EinsumDense("ab,bc->ac", 6, activation="tanh")(bn("one")(x))
    return layers.Dense(3)(bn("two")(x))


def nested(x):
    inner = keras.Sequential([keras.Input(IMAGE), layers.Conv2D(4, 3, name="a"), bn()], name="in")
    noise = keras.Sequential([keras.Input((4, 4, 4)), layers.GaussianNoise(1.0, name="noise")])
    return pooled(layers.ReLU()(noise(inner(x))))


def noisy(x):
    x = layers.Activation("linear", name="linear")(layers.GaussianDropout(0.5, name="one")(x))
    x = layers.SpatialDropout2D(0.5, name="two")(layers.Identity(name="identity")(x))
    return pooled(layers.ReLU()(layers.AlphaDropout(0.5, name="three")(layers.Conv2D(4, 3)(x))))


NORMALISED = [
    (dense, ROW, {"bn", "drop"}),
    (bare, IMAGE, {"one", "two"}),
    (mobile, IMAGE, {"one", "two", "three"}),
    (multiplied, IMAGE, {"bn"}),
    (separable, IMAGE, {"bn"}),
    (transposed, IMAGE, {"bn"}),
    (grouped, IMAGE, {"bn"}),
    (sequence, (7, 3), {"one", "two"}),
    (volume, (4, 4, 4, 2), {"bn"}),
    (before, IMAGE, {"bn"}),
    (before_others, IMAGE, {"one", "two", "three", "four"}),
    (before_dense, ROW, {"one", "two"}),
    (nested, IMAGE, {"bn", "noise"}),
    (noisy, IMAGE, {"linear", "identity", "one", "two", "three"}),
]


def built(build, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, build(inputs))


@dtypes
@pytest.mark.parametrize(
    ("build", "shape", "expected"), NORMALISED, ids=lambda x: getattr(x, "__name__", None)
)
def test_normalisations_and_noise_go(build, shape, expected, dtype, tolerance, random, in_dtype):
    in_dtype(dtype)
    model = drawn(built(build, shape), random)
    simpler = simplified(model, random, tolerance)
    assert gone(model, simpler) == expected
    kept = {layer.name: type(layer) for layer in simpler._flatten_layers()}
    assert kept.items() <= {layer.name: type(layer) for layer in model._flatten_layers()}.items()


def test_channels_may_come_first(random):
    """In float32 alone, in which TensorFlow has such convolutions on CPUs, on some of them."""
    model = built(channels_first, IMAGE)
    try:
        model(np.zeros((1, *IMAGE), "float32"))
    except Exception as error:
        if "NHWC" not in str(error):
            raise
        pytest.skip("TensorFlow has no convolutions with channels first on this processor.")
    drawn(model, random)
    assert gone(model, simplified(model, random, 1e-3)) == {"one", "two"}


# What has to stay.
def activated(x):
    return layers.Conv2D(4, 3, padding="same")(bn()(layers.Conv2D(4, 3, activation="relu")(x)))


def taken_twice(x):
    x = layers.Conv2D(4, 3)(x)
    return pooled(layers.ReLU()(layers.Add()([x, bn()(x)])))


def shared_layer(x):
    conv = layers.Conv2D(3, 3, padding="same")
    return pooled(layers.ReLU()(bn()(conv(layers.ReLU()(conv(x))))))


def shared_normalisation(x):
    norm = bn()
    x = norm(layers.Conv2D(4, 3)(x))
    return pooled(layers.ReLU()(norm(layers.Conv2D(4, 3)(layers.ReLU()(x)))))


def padded(x):
    return pooled(layers.Conv2D(4, 3, padding="same", activation="relu")(bn()(x)))


def before_transposed(x):
    return pooled(layers.Conv2DTranspose(4, 3, activation="relu")(bn()(x)))


def causal(x):
    return layers.Conv1D(4, 3, padding="causal", activation="relu")(bn()(x))


def other_axis(x):
    return pooled(layers.ReLU()(bn(axis=1)(layers.Conv2D(4, 3)(x))))


def in_training(x):
    return layers.ReLU()(layers.Dropout(0.0, name="bn")(layers.Dense(4)(x), training=True))


def statistics_of_batches(x):
    return layers.ReLU()(bn()(layers.Dense(4)(x), training=True))


def around_in_training(x):
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4), bn(), layers.ReLU()])
    return layers.Dense(3)(inner(x, training=True))


def an_output(x):
    return bn()(layers.Conv2D(4, 3)(x))


def constrained(x):
    return layers.ReLU()(bn()(layers.Dense(4, kernel_constraint="unit_norm")(x)))


def penalised(x):
    return layers.ReLU()(bn()(layers.Dense(4, activity_regularizer="l2")(x)))


def adds_to_the_loss(x):
    return layers.Dense(3)(
        layers.ActivityRegularization(0.1, name="bn")(layers.Dense(4, "relu")(x))
    )


def cast(x):
    return layers.Dense(3, "relu", dtype="float16")(layers.Identity(name="bn", dtype="float16")(x))


class Doubling(layers.Dropout):
    def call(self, inputs, training=False):
        return 2 * inputs


def own_class(x):
    return layers.Dense(3)(Doubling(0.5, name="bn")(x))


STAY = [
    *((f, IMAGE) for f in (activated, taken_twice, shared_layer, shared_normalisation, padded)),
    *((f, IMAGE) for f in (before_transposed, other_axis, an_output)),
    (causal, (7, 3)),
    *((f, ROW) for f in (in_training, statistics_of_batches, around_in_training, constrained)),
    *((f, ROW) for f in (penalised, adds_to_the_loss, cast, own_class)),
]


@pytest.mark.parametrize(("build", "shape"), STAY, ids=lambda x: getattr(x, "__name__", None))
def test_what_cannot_be_folded_stays(build, shape, random):
    model = drawn(built(build, shape), random)
    simpler = simplify_model(model)
    assert gone(model, simpler) == set()
    assert [v.path for v in simpler.variables] == [v.path for v in model.variables]
    for variable, twin in zip(model.variables, simpler.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(twin), np.asarray(variable))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_half_precision_stays(policy, random):
    keras.config.set_dtype_policy(policy)
    model = built(dense, ROW)
    assert gone(model, simplify_model(model)) == {"drop"}


def test_quantized_and_adapted_layers_stay(random):
    model = drawn(built(before_dense, ROW), random)
    model.layers[-1].enable_lora(2)
    assert gone(model, simplify_model(model)) == {"one"}
    model = drawn(built(dense, ROW), random)
    model.get_layer("a").quantize("int8")
    assert gone(model, simplify_model(model)) == {"drop"}


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("shift", [0.0, 0.01])
def test_a_scale_is_folded_into_a_convolution_that_pads_and_a_shift_is_not(padding, shift, random):
    x = inputs = keras.Input(IMAGE)
    x = layers.Conv2D(4, 3, padding=padding, activation="relu")(bn(center=False)(x))
    model = drawn(keras.Model(inputs, pooled(x)), random)
    model.get_layer("bn").moving_mean.assign([0.0, 0.0, shift])
    expected = {"bn"} if padding == "valid" or not shift else set()
    assert gone(model, simplified(model, random, 1e-3)) == expected


# Linear layers in a row


def linear(*parts, shape=IMAGE):
    def build(x):
        for part in parts:
            x = part()(x)
        return layers.Flatten()(layers.ReLU()(x))

    return build, shape


def conv(name, units, size, **options):
    return lambda: layers.Conv2D(units, size, name=name, **options)


def full(name, units, **options):
    return lambda: layers.Dense(units, name=name, **options)


ROWS = [
    ("dense", linear(full("a", 8), full("b", 4, activation="tanh"), shape=ROW), {"a"}),
    ("no_bias", linear(full("a", 8), full("b", 4, use_bias=False), shape=ROW), {"a"}),
    ("bare", linear(*(full(x, 5, use_bias=False) for x in "abc"), shape=ROW), {"a", "b"}),
    (
        "constrained",
        linear(full("a", 8), full("b", 4, kernel_constraint="non_neg"), shape=ROW),
        set(),
    ),
    ("narrow", linear(full("a", 1), full("b", 4), shape=ROW), set()),
    ("active", linear(full("a", 8, activation="relu"), full("b", 4), shape=ROW), set()),
    ("points", linear(conv("a", 8, 1), conv("b", 4, 1, strides=2)), {"a"}),
    ("before", linear(conv("a", 8, 1), conv("b", 4, 3)), {"a"}),
    ("padded", linear(conv("a", 8, 1), conv("b", 4, 3, padding="same")), set()),
    (
        "padded_bare",
        linear(conv("a", 8, 1, use_bias=False), conv("b", 4, 3, padding="same")),
        {"a"},
    ),
    (
        "after",
        linear(
            conv("a", 8, 3, padding="same", strides=2, use_bias=False),
            conv("b", 4, 1, activation="tanh"),
        ),
        {"a"},
    ),
    (
        "padded_zeros",
        linear(conv("zeros", 8, 1), conv("b", 4, 3, padding="same")),
        {"zeros"},
    ),
    ("strides", linear(conv("a", 8, 1, strides=2), conv("b", 4, 3)), set()),
    ("both", linear(conv("a", 8, 3), conv("b", 4, 3)), set()),
    ("groups", linear(conv("a", 8, 1), conv("b", 4, 3, groups=2)), set()),
    ("tower", linear(conv("a", 3, 3), conv("b", 12, 1)), set()),
]


@dtypes
@pytest.mark.parametrize(("build", "expected"), [x[1:] for x in ROWS], ids=[x[0] for x in ROWS])
def test_linear_layers_in_a_row(build, expected, dtype, tolerance, random, in_dtype):
    in_dtype(dtype)
    model = drawn(built(*build), random)
    if "zeros" in expected:
        model.get_layer("zeros").bias.assign(np.zeros(8))
    simpler = simplified(model, random, tolerance)
    assert gone(model, simpler) == expected
    assert simpler.count_params() < model.count_params() or not expected


def test_an_output_keeps_its_name(random):
    x = inputs = keras.Input(IMAGE)
    x = layers.Conv2D(4, 1, name="out")(layers.Conv2D(8, 3, name="a")(x))
    model = drawn(keras.Model(inputs, [x, layers.Flatten()(x)]), random)
    simpler = simplified(model, random, 1e-3)
    assert gone(model, simpler) == {"a"}
    assert simpler.output_names == model.output_names


# Units


def planted(model, *also):
    """Plants units in "a", and in others: 0 and 1 are zero, 2 a constant, 4 is the same as 3.

    What lies between makes the same of 3 and 4, and "taker" takes nothing of 5.
    """
    for layer in model._flatten_layers():
        values = [np.array(ops.convert_to_numpy(w)) for w in layer.weights]
        if layer.name in ("a", *also):
            kernel, bias = values
            kernel[..., :3], bias[:3] = 0.0, (0.0, 0.0, 0.7)
        if layer.name in ("a", "between", *also):
            for value in values:
                along = value[..., 0] if isinstance(layer, layers.DepthwiseConv2D) else value
                along = value if value.ndim == 1 else along
                along[..., 4] = along[..., 3]
        if layer.name in ("taker", *also):
            values[0][..., 5::6, :] = 0.0
        if not isinstance(layer, keras.Model):
            layer.set_weights(values)
    return model


def taken(x):
    return layers.Dense(4, "tanh", name="taker")(layers.Dense(6, "sigmoid", name="a")(x))


def taken_by_valid(x):
    x = layers.Activation("elu")(layers.Conv2D(6, 3, padding="same", name="a")(x))
    bare = {"use_bias": False, "bias_initializer": "ones"}
    return pooled(layers.Conv2D(4, 3, activation="relu", name="taker", **bare)(x))


def taken_by_same(x):
    x = layers.Conv2D(6, 3, name="a", activation="tanh")(x)
    return pooled(layers.Conv2D(4, 3, padding="same", activation="relu", name="taker")(x))


def taken_by_transposed(x):
    x = layers.Conv2D(6, 3, name="a", activation="tanh")(x)
    x = layers.Conv2DTranspose(4, 3, padding="same", activation="relu", name="behind")(x)
    return pooled(x)


def taken_by_separable(x):
    x = layers.Conv2D(6, 3, name="a", activation="tanh")(x)
    return pooled(layers.SeparableConv2D(4, 3, activation="relu", name="behind")(x))


def taken_flat(x):
    x = layers.MaxPooling2D()(layers.Conv2D(6, 3, name="a", activation="relu")(x))
    return layers.Dense(4, "tanh", name="taker")(layers.Flatten()(x))


def summed(x):
    x = layers.Conv2D(6, 3, name="a")(x)
    x = layers.Add()([x, layers.Conv2D(6, 1, name="b")(layers.ReLU()(x))])
    return pooled(layers.Conv2D(4, 3, activation="relu", name="taker")(layers.ReLU()(x)))


def side_by_side(x):
    y = layers.Concatenate()([x, layers.Conv2D(6, 1, name="a", activation="tanh")(x)])
    return pooled(layers.Conv2D(4, 3, activation="relu", name="behind")(y))


def through_depthwise(x):
    x = layers.Conv2D(6, 1, name="a", activation="sigmoid")(x)
    x = layers.DepthwiseConv2D(3, name="between", activation="relu")(x)
    return pooled(layers.Conv2D(4, 1, name="taker", activation="relu")(x))


def through_groups(x):
    x = layers.Conv2D(6, 1, name="a", activation="sigmoid")(x)
    x = layers.Conv2D(6, 3, groups=3, name="groups", activation="relu")(x)
    return pooled(layers.Conv2D(4, 1, name="taker", activation="relu")(x))


def through_padding(x):
    x = layers.ZeroPadding2D()(layers.Conv2D(6, 1, name="a", activation="relu")(x))
    return pooled(layers.Conv2D(4, 3, name="taker", activation="relu")(x))


def through_normalisation(x):
    x = bn("between")(layers.Conv2D(6, 1, name="a", activation="relu")(x))
    return pooled(layers.Conv2D(4, 1, name="taker", activation="relu")(layers.ReLU()(x)))


def gated(x):
    x = layers.Conv2D(6, 1, name="a", activation="relu")(x)
    gate = layers.Dense(2, "relu")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply()([x, layers.Dense(6, "sigmoid", name="gate")(gate)])
    return pooled(layers.Conv2D(4, 1, name="taker", activation="relu")(x))


def inside(x):
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(6, "relu", name="a")], name="inner")
    behind = layers.Dense(4, "relu", name="taker")
    return layers.Dense(3)(keras.Sequential([keras.Input((6,)), behind], name="next")(inner(x)))


PLANTED = [  # name of a layer -> which units are left, and how it came that others are not
    (taken, ROW, {"a": 1}),
    (taken_by_valid, IMAGE, {"a": 1}),
    (taken_by_same, IMAGE, {"a": 2}),  # not the constant, which the border does not see
    (taken_by_transposed, IMAGE, {"a": 3}),  # nor does this one; and it takes 5
    (taken_by_separable, IMAGE, {"a": 3}),  # it filters 3 and 4 in its own way, and takes 5
    (taken_flat, IMAGE, {"a": 1}),
    (summed, IMAGE, {"a": 6, "b": 6}),  # what is so in "a" is not so in the sum
    (side_by_side, IMAGE, {"a": 2}),
    (through_depthwise, IMAGE, {"a": 1}),
    (through_groups, IMAGE, {"a": 4, "groups": 4}),  # 0 and 1 are a group; 2 and 3, 4 and 5 are not
    (through_padding, IMAGE, {"a": 2}),
    (through_normalisation, IMAGE, {"a": 1}),
    (gated, IMAGE, {"a": 4, "gate": 4}),  # the gates of 2, 3 and 4 tell them apart
    (inside, ROW, {"a": 1}),
]


def widths(model, names):
    found = {layer.name: layer for layer in model._flatten_layers()}
    return {name: found[name].weights[0].shape[-1] for name in names}


@dtypes
@pytest.mark.parametrize(
    ("build", "shape", "expected"), PLANTED, ids=lambda x: getattr(x, "__name__", None)
)
def test_units_go(build, shape, expected, dtype, tolerance, random, in_dtype):
    in_dtype(dtype)
    model = planted(drawn(built(build, shape), random))
    simpler = simplified(model, random, tolerance)
    assert widths(simpler, expected) == expected
    assert gone(model, simpler) == set()


@dtypes
def test_units_of_a_sum_go_where_all_of_it_agrees(dtype, tolerance, random, in_dtype):
    in_dtype(dtype)
    model = planted(drawn(built(summed, IMAGE), random), "b")
    simpler = simplified(model, random, tolerance)
    assert widths(simpler, ("a", "b")) == {"a": 1, "b": 1}


def test_a_duplicate_that_nothing_takes_stands_for_no_other(random):
    model = planted(drawn(built(taken, ROW), random))
    kernel, bias = model.get_layer("taker").get_weights()
    kernel[3] = 0.0
    model.get_layer("taker").set_weights([kernel, bias])
    assert widths(simplified(model, random, 1e-3), ["a"]) == {"a": 1}


def test_all_other_units_stay_to_the_last_bit(random):
    model = planted(drawn(built(taken_by_same, IMAGE), random))
    simpler = simplify_model(model)
    for before, after in zip(
        model.get_layer("a").get_weights(), simpler.get_layer("a").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(after, before[..., [2, 3]])
    kernel = model.get_layer("taker").get_weights()[0][:, :, [2, 3, 4]]
    kernel[:, :, 1] += kernel[:, :, 2]
    np.testing.assert_array_equal(simpler.get_layer("taker").get_weights()[0], kernel[:, :, :2])


NEARLY = [  # name of a layer, which of its weights, of which units, how many units are left
    (taken, "a", 0, [0, 4], "bit", 3),
    (taken, "a", 0, [0, 4], "thousandth", 3),
    (taken, "a", 1, [4], "bit", 2),
    (taken_by_same, "a", 1, [0, 4], "thousandth", 4),  # 0 is a constant now, and 3 is not 4
    (through_depthwise, "between", 0, [4], "bit", 2),
    (through_normalisation, "between", 3, [4], "bit", 2),
    (through_normalisation, "between", 0, [4], "thousandth", 2),
    (summed, "b", 1, [1, 4], "thousandth", 2),
]


@pytest.mark.parametrize(("build", "name", "place", "units", "by", "left"), NEARLY)
def test_units_that_are_nearly_so_stay(build, name, place, units, by, left, random):
    model = planted(drawn(built(build, ROW if build is taken else IMAGE), random), "b")
    layer = model.get_layer(name)
    values = layer.get_weights()
    value = values[place]
    value = value[..., 0] if isinstance(layer, layers.DepthwiseConv2D) and value.ndim > 1 else value
    first = value[(0,) * (value.ndim - 1)]  # of each unit one number
    first[units] = np.nextafter(first[units], 9.0) if by == "bit" else first[units] + 1e-3
    layer.set_weights(values)
    simpler = simplified(model, random, 1e-3)
    assert widths(simpler, ["a"]) == {"a": left}


@dtypes
def test_normalisations_that_forget_give_constants(dtype, tolerance, random, in_dtype):
    """gamma of 0, before and after: a fold, and a normalisation of a sum, which is not folded."""
    in_dtype(dtype)
    x = inputs = keras.Input(IMAGE)
    x = layers.ReLU()(bn("one")(layers.Conv2D(6, 3, name="a")(x)))
    x = layers.Add()([x, layers.Conv2D(6, 1, name="b", activation="tanh")(x)])
    x = layers.Conv2D(4, 3, use_bias=False, activation="relu", name="c")(
        layers.ReLU()(bn("two")(x))
    )
    model = drawn(keras.Model(inputs, pooled(x)), random)
    for name, units in (("one", [0, 1]), ("two", [1, 2])):
        model.get_layer(name).gamma.assign([0.0 if i in units else i + 1.0 for i in range(6)])
        model.get_layer(name).beta.assign(np.arange(6) + 1.0)
    simpler = simplified(model, random, tolerance)
    assert gone(model, simpler) == {"one"}
    assert widths(simpler, ("a", "b", "c")) == {"a": 5, "b": 5, "c": 4}  # 2 is taken by "b"
    assert simpler.get_layer("c").use_bias


def test_a_border_makes_no_constant_of_a_constant(random):
    x = inputs = keras.Input(IMAGE)
    x = layers.Conv2D(6, 1, name="a")(x)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="b")(layers.ReLU()(x))
    model = planted(drawn(keras.Model(inputs, pooled(x)), random))
    kernel = np.array(ops.convert_to_numpy(model.get_layer("b").kernel))
    kernel[:, :, [0, 1, 3, 4, 5], 0] = 0.0  # takes only the constant
    kernel[:, :, 2, 0] = 1.0
    model.get_layer("b").kernel.assign(kernel)
    assert widths(simplified(model, random, 1e-3), ["b"]) == {"b": 6}


def test_equal_filters_of_different_units_give_different_ones(random):
    model = drawn(built(through_depthwise, IMAGE), random)
    layer = model.get_layer("between")
    layer.set_weights([np.ones_like(value) for value in layer.get_weights()])
    assert widths(simplified(model, random, 1e-3), ["a"]) == {"a": 6}


def test_one_after_the_other(random):
    """What takes nothing goes, and what only that took; what makes constants of constants, too."""
    x = inputs = keras.Input(ROW)
    for name in ("a", "b", "c"):
        x = layers.Dense(6, "tanh", name=name)(x)
    model = drawn(keras.Model(inputs, layers.Dense(2)(x)), random)
    kernels = {name: model.get_layer(name).kernel for name in ("a", "b", "c")}
    values = {name: np.array(ops.convert_to_numpy(kernel)) for name, kernel in kernels.items()}
    values["a"][:, 0] = 0.0  # a constant
    values["b"][1:, 0] = 0.0  # takes only that
    values["c"][5] = 0.0  # takes nothing of 5
    values["b"][4, :5] = 0.0  # only 5 takes 4
    for name, kernel in kernels.items():
        kernel.assign(values[name])
    simpler = simplified(model, random, 1e-3)
    assert widths(simpler, kernels) == {"a": 4, "b": 4, "c": 6}


def test_one_unit_of_each_layer_stays(random):
    x = inputs = keras.Input(ROW)
    x = layers.Dense(6, "relu", name="a", kernel_initializer="zeros")(x)
    model = keras.Model(inputs, layers.Add()([layers.Dense(2)(x), layers.Dense(2)(inputs)]))
    model.get_layer("a").bias.assign(random.normal(size=6))
    simpler = simplified(model, random, 1e-3)
    assert widths(simpler, ["a"]) == {"a": 1}


def test_layers_that_are_called_twice(random):
    """Zeros go, of every call; constants and duplicates stay, and so do what an output shows."""
    one, two = keras.Input(ROW), keras.Input(ROW)
    encoder, head = layers.Dense(6, "relu", name="a"), layers.Dense(3, name="taker")
    x = [head(encoder(one)), head(encoder(two))]
    shown = layers.Dense(6, name="shown")(one)
    model = keras.Model([one, two], [layers.Subtract()(x), shown, layers.Dense(2)(shown)])
    model = planted(drawn(model, random), "shown")
    simpler = simplified(model, random, 1e-3)
    assert widths(simpler, ("a", "shown")) == {"a": 3, "shown": 6}
    assert gone(model, simpler) == set()


@pytest.mark.parametrize("inside", [True, False])
def test_units_that_are_mixed_stay(inside, random):
    """A kernel of zeros before a softmax makes no constant, there or behind it."""
    x = inputs = keras.Input(ROW)
    x = layers.Dense(6, "softmax" if inside else None, name="a")(x)
    x = layers.Dense(3, "relu", name="b")(x if inside else layers.Softmax()(x))
    model = planted(drawn(keras.Model(inputs, layers.Dense(3, name="out")(x)), random))
    model.get_layer("b").kernel.assign([[1.0, 2, 3]] + [[0.0, 2, 3]] * 5)
    assert widths(simplified(model, random, 1e-3), ["a", "b"]) == {"a": 6, "b": 3}


@pytest.mark.parametrize("where", ["in", "behind"])
def test_units_whose_activity_is_part_of_the_loss_stay(where, random):
    x = inputs = keras.Input(ROW)
    if where == "in":
        x = layers.Dense(6, "relu", activity_regularizer="l2", name="a")(x)
    else:
        x = layers.ActivityRegularization(0.1)(layers.Dense(6, "relu", name="a")(x))
    model = planted(drawn(keras.Model(inputs, layers.Dense(3, name="taker")(x)), random))
    assert widths(simplified(model, random, 1e-3), ["a"]) == {"a": 6}


def test_normalisation_over_units_sees_all_of_them(random):
    x = inputs = keras.Input(ROW)
    x = layers.LayerNormalization()(layers.Dense(6, "relu", name="a")(x))
    model = planted(drawn(keras.Model(inputs, layers.Dense(3, name="taker")(x)), random))
    assert widths(simplified(model, random, 1e-3), ["a"]) == {"a": 6}


def test_what_a_function_makes_of_units_is_known_unit_by_unit(random):
    """A constant and a duplicate that a function of the model tells apart are neither."""
    vector = np.array([1.0, 1, 1, 1, 2, 1], "float32")
    x = inputs = keras.Input(ROW)
    x = layers.Dense(6, "relu", name="a")(x) * vector
    model = planted(drawn(keras.Model(inputs, layers.Dense(3, name="out")(x)), random))
    sameness = find_sameness(find_channels(model))
    after = [axes[1] for axes in sameness.symbols.values() if len(axes.get(1, ())) == 6][1]
    assert after[3] != after[4]
    np.testing.assert_allclose(sameness.values(after)[:3], [0.0, 0.0, 0.7], rtol=1e-6)


@pytest.mark.parametrize("raw", [True, False])
def test_what_is_hidden_at_first_sight_is_no_constant(raw, random):
    """The larger of a large constant and of something that is seldom larger."""
    x = inputs = keras.Input((6,))
    other = x if raw else layers.Dense(1, name="b")(x)
    x = layers.Maximum()([layers.Dense(6, "relu", name="a")(x), other])
    model = planted(drawn(keras.Model(inputs, layers.Dense(3, name="out")(x)), random))
    model.get_layer("a").bias.assign([0.0, 0.0, 7.0, 1.0, 1.0, 0.0])
    simpler = simplify_model(model)
    assert widths(simpler, ["a"]) == {"a": 6}


def test_statistics_of_batches_make_other_constants(random):
    x = inputs = keras.Input(ROW)
    x = bn("between")(layers.Dense(6, "relu", name="a")(x), training=True)
    model = planted(drawn(keras.Model(inputs, layers.Dense(3, name="taker")(x)), random))
    assert widths(simplify_model(model), ["a"]) == {"a": 5}


def test_weights_that_are_used_elsewhere_stay(random):
    """A layer that another one calls, and a kernel that an operation takes."""
    x = inputs = keras.Input((7, 5))
    shared, tied = layers.Dense(5), layers.Dense(5)
    x = layers.ReLU()(bn("one")(shared(x)))
    x = layers.ReLU()(bn("two")(tied(layers.TimeDistributed(shared)(x))))
    model = drawn(keras.Model(inputs, ops.matmul(x, tied.kernel)), random)
    assert gone(model, simplified(model, random, 1e-3)) == set()


def test_what_an_output_shows_stays(random):
    x = inputs = keras.Input(ROW)
    x = layers.Dense(4, name="a")(x)
    model = drawn(keras.Model(inputs, [x, layers.ReLU()(bn()(x))]), random)
    assert gone(model, simplified(model, random, 1e-3)) == set()


def test_layers_that_are_not_understood_keep_what_they_take(random):
    x = inputs = keras.Input((7, 5))
    x = layers.Dense(6, "relu", name="a")(x)
    x = layers.EinsumDense("abc,cde->abde", (7, 2, 3), activation="relu")(x)
    model = planted(drawn(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), random))
    assert widths(simplified(model, random, 1e-3), ["a"]) == {"a": 6}
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = planted(drawn(built(taken, ROW), random))
    assert widths(simplify_model(model), ["a"]) == {"a": 6}


class Multiply(layers.Layer):
    """No product, whatever it is called."""

    def call(self, inputs):
        return inputs[0] + inputs[1]


def test_a_layer_is_not_known_by_its_name(random):
    x = inputs = keras.Input(ROW)
    x = Multiply()([layers.Dense(6, name="a")(x), layers.Dense(6, name="b")(x)])
    model = planted(drawn(keras.Model(inputs, layers.Dense(3)(x)), random))
    assert widths(simplified(model, random, 1e-3), ["a"]) == {"a": 6}


# The model that comes out


def trained(model, x, optimizer="adam", **options):
    model.compile(optimizer, "mse", metrics=["mae"], **options)
    model.fit(x, np.zeros(model.compute_output_shape(x.shape)), epochs=2, verbose=0)
    return model


def test_it_is_compiled_and_its_optimizer_goes_on(random):
    model = planted(drawn(built(through_normalisation, IMAGE), random))
    x = data_for(model, random, 8)
    model = planted(trained(model, x))
    simpler = simplified(model, random, 1e-3)
    assert widths(simpler, ["a"]) == {"a": 1}
    assert int(simpler.optimizer.iterations) == int(model.optimizer.iterations)
    y = np.zeros((8, 3))
    np.testing.assert_allclose(
        simpler.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-4
    )
    slots = {v.path.partition("/")[2]: v for v in model.optimizer.variables}
    kept = {v.path.partition("/")[2]: v for v in simpler.optimizer.variables}
    old, new = (ops.convert_to_numpy(found["a_kernel_momentum"]) for found in (slots, kept))
    np.testing.assert_array_equal(new, old[..., [3]])
    simpler.fit(x, y, verbose=0)


@pytest.mark.parametrize(("build", "name"), [(dense, "a"), (taken, "taker")])
def test_averages_of_weights_begin_anew(build, name, random):
    model = planted(drawn(built(build, ROW), random))
    x = data_for(model, random, 8)
    model = planted(trained(model, x, keras.optimizers.SGD(0.01, use_ema=True)))
    simpler = simplify_model(model)
    before = simpler.get_layer(name).get_weights()
    simpler.optimizer.finalize_variable_values(simpler.trainable_variables)
    for value, average in zip(before, simpler.get_layer(name).get_weights(), strict=True):
        np.testing.assert_array_equal(average, value)


def test_the_bias_of_a_frozen_layer_is_frozen(random):
    model = drawn(built(bare, IMAGE), random)
    model.layers[1].trainable = False
    simpler = simplified(model, random, 1e-3)
    assert simpler.layers[1].use_bias
    assert len(simpler.trainable_variables) == 4  # of the two layers behind
    simpler.layers[1].trainable = True
    assert len(simpler.trainable_variables) == 6


@pytest.mark.parametrize(
    "inner",
    [
        lambda x: layers.MultiHeadAttention(4, 2)(x, x),
        lambda x: layers.GroupQueryAttention(2, 4, 2)(x, x),
        lambda x: layers.GRU(6, return_sequences=True)(x),
        lambda x: layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x),
    ],
    ids=["heads", "groups_of_heads", "states", "both_ways"],
)
def test_heads_and_states_that_only_their_own_layer_takes_stay(inner, random):
    inputs = keras.Input((5, 4))
    x = inner(layers.Dense(4, "tanh")(inputs))
    out = layers.Dense(3, name="out")
    model = drawn(keras.Model(inputs, out(layers.GlobalAveragePooling1D()(x))), random)
    if out.kernel.shape[0] == 6:  # of states: units 1 and 4 of the GRU, unit 1 both ways
        kernel = ops.convert_to_numpy(out.kernel).copy()
        kernel[[1, 4]] = 0.0
        out.kernel.assign(kernel)
    simpler = simplified(model, random, 1e-3)
    assert simpler.count_params() == model.count_params()


def test_names_states_and_flags_stay(random, tmp_path):
    model = drawn(built(nested, IMAGE), random)
    model.get_layer("in").get_layer("a").trainable = False
    model.get_layer("out").trainable = False
    simpler = simplify_model(model)
    assert (simpler.name, simpler.output_names) == (model.name, model.output_names)
    assert [x.name for x in simpler.layers] == [x.name for x in model.layers]
    assert simpler.trainable_variables == []
    assert type(simpler.get_layer("in")) is keras.Sequential
    out, twin = model.get_layer("out"), simpler.get_layer("out")
    np.testing.assert_array_equal(twin.get_weights()[0], out.get_weights()[0])
    save_model(simpler, tmp_path / "m.keras")
    x = data_for(model, random)
    again = load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(outputs(again, x)[0], outputs(model, x)[0], rtol=1e-3, atol=1e-4)


def test_a_model_with_nothing_to_take_out_is_copied(random):
    model = keras.Sequential([keras.Input(ROW), layers.Dense(4, "relu"), layers.Dense(2)])
    x = data_for(drawn(model, random), random)
    copy = simplify_model(model)
    assert copy is not model
    assert copy.layers[0].kernel is not model.layers[0].kernel
    assert copy.get_config() == model.get_config()
    np.testing.assert_array_equal(outputs(copy, x)[0], outputs(model, x)[0])


def test_a_subclassed_model_is_an_error():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="is a subclassed model"):
        simplify_model(Own())
