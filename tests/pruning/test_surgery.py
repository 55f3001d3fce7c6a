"""Layers taken out of models of every kind: what stays is the same, what is refitted is lstsq."""

import dataclasses

import keras
import numpy as np
import pytest
from backends import some_on_each
from keras import layers, ops
from precision import roundings

from keras_layer_entropy import remove_layer
from keras_layer_entropy.pruning.layer_parts import removable_layers
from keras_layer_entropy.pruning.rewrite import without

SAMPLES = 200


def dense(units, activation=None, **kwargs):
    return layers.Dense(units, activation, **kwargs)


@dataclasses.dataclass
class Case:
    """A model, what it takes, which layer goes, what goes with it, and what is refitted."""

    model: keras.Model
    x: object
    remove: str
    members: tuple = ()
    consumers: tuple = ("out",)


def like(*shape):
    return np.random.default_rng(3).normal(size=(SAMPLES, *shape)).astype("float32")


def sequential():
    model = keras.Sequential(
        [keras.Input((8,)), dense(6, "relu", name="a"), dense(6, "relu", name="b")]
    )
    model.add(dense(3, name="out"))
    return Case(model, like(8), "b")


def other_width():
    model = keras.Sequential(
        [keras.Input((8,)), dense(6, "relu", name="a"), dense(9, "tanh", name="b")]
    )
    model.add(dense(3, "softmax", name="out"))
    return Case(model, like(8), "a", consumers=("b",))


def functional():
    inputs = keras.Input((8,), name="pixels")
    x = layers.Rescaling(0.5)(inputs)
    x = dense(6, "relu", name="a")(x)
    model = keras.Model(inputs, dense(3, name="out")(dense(5, "relu", name="b")(x)), name="mine")
    return Case(model, like(8), "b")


def with_normalization_and_dropout():
    inputs = keras.Input((8,))
    x = dense(7, "relu", name="a")(inputs)
    x = dense(6, use_bias=False, name="b")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Activation("relu", name="act")(x)
    x = layers.Dropout(0.3, seed=7, name="drop")(x)
    model = keras.Model(inputs, dense(3, name="out")(x))
    return Case(model, like(8), "b", ("norm", "act", "drop"))


def operations():
    inputs = keras.Input((8,))
    x = ops.relu(dense(6, name="a")(inputs))
    x = ops.tanh(dense(5, name="b")(x))
    model = keras.Model(inputs, dense(3, name="out")(x) * 2.0)
    return Case(model, like(8), "b", (next(o.name for o in model.operations if "tanh" in o.name),))


def nested_sequential():
    inner = keras.Sequential([keras.Input((8,)), dense(6, "relu", name="b")], name="inner")
    block = keras.Sequential([keras.Input((8,)), dense(8, "relu", name="a"), inner], name="block")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, dense(3, name="out")(block(inputs)))
    return Case(model, like(8), "block/a", consumers=("block/inner/b",))


def last_of_a_nested_functional():
    inputs = keras.Input((8,))
    block = keras.Model(inputs, dense(5, name="b")(dense(6, "relu", name="a")(inputs)), name="blk")
    outer = keras.Input((8,))
    x = layers.ReLU(name="act")(block(outer))
    model = keras.Model(outer, dense(3, name="out")(x))
    return Case(model, like(8), "blk/b", ("act",))


def only_one_in_a_nested_model():
    inputs = keras.Input((7,))
    block = keras.Model(inputs, dense(5, "relu", name="b")(inputs), name="blk")
    model = keras.Sequential([keras.Input((8,)), dense(7, "relu", name="a"), block])
    model.add(dense(3, name="out"))
    return Case(model, like(8), "blk/b")


def before_a_nested_model():
    inner = keras.Sequential(
        [keras.Input((5,)), dense(6, "relu", name="b"), dense(4, name="c")], name="blk"
    )
    model = keras.Sequential([keras.Input((8,)), dense(5, "relu", name="a"), inner])
    model.add(dense(3, name="out"))
    return Case(model, like(8), "a", consumers=("blk/b",))


def same_names_in_two_models():
    inputs = keras.Input((8,))
    x = inputs
    for name in ("one", "two"):
        part = keras.Input((8,))
        y = dense(8, name="second")(dense(6, "relu", name="first")(part))
        x = keras.Model(part, y, name=name)(x)
    model = keras.Model(inputs, dense(3, name="out")(x))
    return Case(model, like(8), "two/first", consumers=("two/second",))


def branches():
    inputs = keras.Input((8,))
    x = dense(6, "relu", name="a")(inputs)
    left, right = dense(4, "relu", name="left")(x), dense(5, name="right")(x)
    joined = layers.Concatenate()([left, right, x])
    model = keras.Model(inputs, dense(3, name="out")(joined))
    return Case(model, like(8), "a", consumers=("left", "right", "out"))


def skip_connection():
    inputs = keras.Input((8,))
    x = dense(8, "relu", name="a")(inputs)
    x = layers.Add()([x, dense(8, "relu", name="b")(x)])
    model = keras.Model(inputs, dense(3, name="out")(x))
    return Case(model, like(8), "b")


def transformer_feed_forward():
    inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    y = layers.LayerNormalization(name="norm")(x)
    y = dense(16, "gelu", name="expand")(y)
    x = x + dense(8, name="project")(y)
    model = keras.Model(inputs, dense(3, name="out")(layers.GlobalAveragePooling1D()(x)))
    return Case(model, like(5, 8), "expand", consumers=("project",))


def convolutional():
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = dense(6, "relu", name="a")(layers.Flatten()(x))
    x = layers.Dropout(0.5, name="drop")(x)
    model = keras.Model(inputs, dense(3, name="out")(dense(5, "relu", name="b")(x)))
    return Case(model, like(6, 6, 1), "a", ("drop",), consumers=("b",))


def masked_sequence():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True, name="embed")(inputs)
    x = dense(6, "relu", name="b")(dense(7, "tanh", name="a")(x))
    model = keras.Model(inputs, dense(3, name="out")(layers.GlobalAveragePooling1D()(x)))
    x = np.random.default_rng(0).integers(0, 9, (SAMPLES, 5)).astype("int32")
    return Case(model, x, "a", consumers=("b",))


def dicts_in_and_out():
    first, second = keras.Input((8,), name="first"), keras.Input((4,), name="second")
    x = layers.Concatenate()([dense(6, "relu", name="a")(first), dense(5, name="b")(second)])
    outputs = {"out": dense(3, name="out")(x), "aux": dense(2, "sigmoid", name="aux")(x)}
    model = keras.Model({"first": first, "second": second}, outputs)
    x = {"first": like(8), "second": like(4)}
    return Case(model, x, "b", consumers=("out", "aux"))


def keyword_call_arguments():
    first, second = keras.Input((8,)), keras.Input((8,))
    x = dense(8, "relu", name="b")(inputs=dense(8, "relu", name="a")(inputs=first))
    x = layers.MultiHeadAttention(1, 4, name="attend")(
        query=ops.expand_dims(x, 1), value=ops.expand_dims(second, 1)
    )
    model = keras.Model([first, second], dense(3, name="out")(layers.Flatten()(x)))
    return Case(model, [like(8), like(8)], "a", consumers=("b",))


def mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input((8,))
    x = dense(6, "relu", name="b")(dense(7, "relu", name="a")(inputs))
    model = keras.Model(inputs, dense(3, dtype="float32", name="out")(x))
    keras.config.set_dtype_policy("float32")
    return Case(model, like(8), "b")


def frozen_and_regularized():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            dense(6, "relu", kernel_regularizer=keras.regularizers.L2(1e-3), name="a"),
            dense(5, "relu", name="b"),
            dense(3, name="out", use_bias=False),
        ]
    )
    model.get_layer("a").trainable = False
    return Case(model, like(8), "b")


def normalized_inputs():
    adapted = layers.Normalization(name="adapted")
    adapted.adapt(like(8) * 3 + 1)
    model = keras.Sequential(
        [keras.Input((8,)), adapted, dense(6, "relu", name="a"), dense(5, "relu", name="b")]
    )
    model.add(dense(3, name="out"))
    return Case(model, like(8) * 3 + 1, "b")


class Doubled(layers.Layer):
    """A custom layer that is not registered."""

    def call(self, x):
        return 2 * x


def swished(x):
    return x * ops.sigmoid(x)


def custom_parts():
    inputs = keras.Input((8,))
    x = Doubled(name="doubled")(dense(6, swished, name="a")(inputs))
    x = layers.Lambda(lambda t: t + 1, name="plus")(dense(6, "relu", name="b")(x))
    model = keras.Model(inputs, dense(3, name="out")(x))
    return Case(model, like(8), "b")


CASES = [
    *(sequential, other_width, functional, with_normalization_and_dropout, operations),
    *(nested_sequential, last_of_a_nested_functional, only_one_in_a_nested_model),
    *(before_a_nested_model, same_names_in_two_models, branches, skip_connection),
    *(transformer_feed_forward, convolutional, masked_sequence, dicts_in_and_out),
    *(keyword_call_arguments, mixed_precision, frozen_and_regularized, normalized_inputs),
    custom_parts,
]


# Graphs are read and models made again in one way on every backend. Forward passes and the
# regressions are the backend's: with each kind of layer that changes what goes through them.
ON_EACH = (
    *(with_normalization_and_dropout, transformer_feed_forward, convolutional, masked_sequence),
    mixed_precision,
)


@pytest.fixture(params=some_on_each(CASES, ON_EACH), ids=lambda case: case.__name__)
def case(request):
    found = request.param()
    random = np.random.default_rng(7)
    for variable in found.model.variables:  # no zero biases, no equal kernels
        if keras.backend.is_float_dtype(variable.dtype) and "adapted" not in variable.path:
            noise = random.normal(size=variable.shape) * 0.3
            variable.assign(variable + np.abs(noise) if "variance" in variable.path else noise)
    return found


def leaves(model, prefix=""):
    """Path -> layer for all layers; those inside a layer are numbered, since names differ."""
    found = {}
    for i, layer in enumerate(model._flatten_layers(include_self=False, recursive=False)):
        is_model = isinstance(model, keras.Model)
        path = prefix + (layer.name if is_model else str(i))
        found |= {path: layer, **leaves(layer, f"{path}/")}
    return found


def own(layer):
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def flat(outputs):
    return [np.asarray(ops.cast(o, "float32")) for o in keras.tree.flatten(outputs)]


def tapped(model, paths, x):
    """What layers are called with, `[rows, features]` float64, by replacing their `call`."""
    seen, found = {}, leaves(model)
    for path in paths:

        def call(inputs, *args, original=found[path].call, path=path, **kwargs):
            seen[path] = inputs
            return original(inputs, *args, **kwargs)

        object.__setattr__(found[path], "call", call)
    model(x, training=False)
    for path in paths:
        del vars(found[path])["call"]
    return {
        path: ops.convert_to_numpy(ops.cast(t, "float32"))
        .astype(np.float64)
        .reshape(-1, t.shape[-1])
        for path, t in seen.items()
    }


@pytest.mark.tensorflow  # how it trains on is tested on each backend
def test_a_copy_is_the_same(case):
    copy, fresh = without(case.model, None)
    assert fresh == []
    assert copy.name == case.model.name
    for mine, other in zip(flat(case.model(case.x)), flat(copy(case.x)), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_everything_else_stays(case):
    before = [np.asarray(v) for v in case.model.variables]
    config = case.model.get_config()
    smaller = remove_layer(case.model, case.remove, calibration_data=case.x)

    # the model itself is as it was
    assert case.model.get_config() == config
    for value, variable in zip(before, case.model.variables, strict=True):
        np.testing.assert_array_equal(value, np.asarray(variable))

    old, new = leaves(case.model), leaves(smaller)
    gone = {case.remove, *case.members}.intersection(old)  # operations are no layers
    assert set(new) == set(old) - gone
    for path, layer in new.items():
        assert type(layer) is type(old[path])
        assert layer.trainable == old[path].trainable
        assert layer.dtype_policy.name == old[path].dtype_policy.name
        if path not in case.consumers:
            for mine, other in zip(own(old[path]), own(layer), strict=True):
                np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))
    assert smaller.name == case.model.name
    assert smaller.dtype_policy.name == case.model.dtype_policy.name
    assert smaller.input_shape == case.model.input_shape
    assert smaller.output_shape == case.model.output_shape
    assert getattr(smaller, "input_names", None) == getattr(case.model, "input_names", None)
    assert getattr(smaller, "output_names", None) == getattr(case.model, "output_names", None)


def test_the_refit_is_least_squares(case):
    smaller = remove_layer(case.model, case.remove, calibration_data=case.x)
    given = tapped(smaller, case.consumers, case.x)
    wanted = tapped(case.model, case.consumers, case.x)
    shown = case.x != 0 if "embed" in leaves(case.model) else np.ones(1, bool)
    for path in case.consumers:
        old, new = leaves(case.model)[path], leaves(smaller)[path]
        z = wanted[path] @ np.asarray(old.kernel, np.float64)
        x = given[path]
        columns = [x]
        if old.use_bias:
            z = z + np.asarray(old.bias, np.float64)
            columns.append(np.ones((len(x), 1)))
        rows = np.broadcast_to(shown.reshape(-1, 1) if shown.size > 1 else True, (len(x), 1))[:, 0]
        a = np.hstack(columns)
        best, *_ = np.linalg.lstsq(a[rows], z[rows], rcond=1e-7)
        found = np.asarray(new.kernel, np.float64)
        if old.use_bias:
            found = np.vstack([found, np.asarray(new.bias, np.float64)[None]])
        # float32 sums, or what float16 layers gave to the regression and give here: z is rounded
        # four times (sum and bias of two layers), a twice, both numbers of the order of 1.
        half = any(layer.compute_dtype == "float16" for layer in leaves(case.model).values())
        tolerance = roundings(6, "float16") if half else 1e-4
        np.testing.assert_allclose(a[rows] @ found, a[rows] @ best, atol=tolerance, rtol=tolerance)
        if np.linalg.matrix_rank(a[rows], rtol=1e-5) == a.shape[1]:
            np.testing.assert_allclose(found, best, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.tensorflow  # files are the same on every backend
def test_it_saves_loads_and_trains(case, tmp_path):
    smaller = remove_layer(case.model, case.remove, calibration_data=case.x)
    targets = keras.tree.map_structure(lambda o: np.asarray(ops.cast(o, "float32")) * 0 + 1,
                                       smaller(case.x))  # fmt: skip
    smaller.compile("adam", "mse", run_eagerly=True)  # tracing takes longer than two steps
    smaller.fit(case.x, targets, batch_size=SAMPLES // 2, epochs=1, verbose=0)
    smaller.save(tmp_path / "model.keras")
    again = keras.saving.load_model(
        tmp_path / "model.keras",
        custom_objects={"Doubled": Doubled, "swished": swished},
        safe_mode=False,
    )
    for mine, other in zip(flat(smaller(case.x)), flat(again(case.x)), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.tensorflow  # no forward pass in it
def test_the_block_is_found(case):
    parts, _ = removable_layers(case.model)
    block = parts[case.remove]
    assert block.members[0] == case.remove
    assert block.members[1:] == case.members
    assert block.consumers == case.consumers
