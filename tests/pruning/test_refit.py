"""What takes the output of a removed layer is refitted by least squares, or the layer stays."""

import itertools
import warnings

import keras
import numpy as np
import pytest
from backends import some_on_each
from keras import layers, ops

from keras_layer_entropy import remove_layer
from keras_layer_entropy.measures.gram import fit_of, ridge_regression
from keras_layer_entropy.pruning.layer_parts import removable_layers
from keras_layer_entropy.pruning.refit import linear_fits
from keras_layer_entropy.pruning.rewrite import without

SAMPLES = 300


def like(*shape, seed=3):
    values = np.random.default_rng(seed).normal(size=(SAMPLES, *shape))
    return (values * 2 + 0.5).astype("float32")


def shaken(model):
    random = np.random.default_rng(7)
    for layer in model._flatten_layers():
        for variable in layer._trainable_variables:
            variable.assign(variable + random.normal(size=variable.shape) * 0.3)
    return model


def at(model, tensors, x):
    """Tensors inside a functional model, `[rows, features]` float64 each."""
    values = keras.Model(model.input, tensors)(x)
    values = map(keras.ops.convert_to_numpy, keras.tree.flatten(values))
    return [v.astype(np.float64).reshape(-1, v.shape[-1]) for v in values]


def lstsq(x, z, bias=True):
    columns = np.hstack([x, np.ones((len(x), 1))]) if bias else x
    return columns @ np.linalg.lstsq(columns, z, rcond=1e-9)[0]


def matrices(layer):
    kernel = np.asarray(layer.kernel, np.float64)
    axis = kernel.ndim - 2 if "Conv" in type(layer).__name__ else 0
    kernel = kernel.reshape(kernel.shape[axis], -1)
    return kernel, 0.0 if layer.bias is None else np.asarray(layer.bias, np.float64).reshape(-1)


def computed(layer, x):
    kernel, bias = matrices(layer)
    return x @ kernel + bias


def calls_of(layer):
    """What a layer is given in each of its calls."""
    return [node.input_tensors[0] for node in layer._inbound_nodes]


def siamese(order):
    """A shared layer, at other depths with and without the layer that goes."""
    first, second = keras.Input((8,)), keras.Input((8,))
    shared = layers.Dense(4, "relu", name="out")
    hidden = layers.Dense(8, "relu", name="h")
    calls = {"one": lambda: shared(hidden(first)), "other": lambda: shared(second)}
    outputs = {name: calls[name]() for name in order}
    # Keras runs what is farther from the outputs first, whichever was called first.
    one = layers.Dense(4, name="tail")(outputs["one"])
    model = keras.Model(
        [first, second], layers.Dense(3)(layers.Concatenate()([one, outputs["other"]]))
    )
    return model, [like(8), like(8, seed=4)]


def shared_first():
    return siamese(("one", "other"))


def shared_second():
    return siamese(("other", "one"))


def shared_three_times():
    inputs = [keras.Input((8,)) for _ in range(3)]
    shared = layers.Dense(4, name="out")
    hidden = layers.Dense(8, "relu", name="h")(inputs[1])
    deep = layers.Dense(8, "tanh")(layers.Dense(8, "tanh")(inputs[2]))
    x = layers.Add()([shared(deep), shared(hidden), shared(inputs[0])])
    return keras.Model(inputs, layers.Dense(2)(x)), [like(8, seed=s) for s in (1, 2, 3)]


def of_another_width(*consumers, shape=(8,), hidden=5):
    inputs = keras.Input(shape)
    x = layers.Dense(hidden, "relu", name="h")(inputs)
    for layer in consumers:
        x = layer(x)
    x = layers.Dense(2)(layers.Flatten()(layers.Activation("tanh")(x)))
    return keras.Model(inputs, x), like(*shape)


def einsum():
    return of_another_width(
        layers.EinsumDense("abc,cd->abd", (5, 4), bias_axes="d", name="out"), shape=(5, 8)
    )


def einsum_of_heads():
    layer = layers.EinsumDense("abc,cde->abde", (5, 2, 3), bias_axes="de", name="out")
    return of_another_width(layer, shape=(5, 8))


def einsum_with_dots():
    return of_another_width(layers.EinsumDense("...x,xy->...y", 4, name="out"))


def pointwise_convolution():
    return of_another_width(layers.Conv1D(4, 1, name="out"), shape=(5, 8))


def pointwise_convolution_of_images():
    layer = layers.Conv2D(4, 1, use_bias=False, name="out")
    return of_another_width(layer, shape=(3, 3, 8), hidden=8)


def a_nested_model_called_twice():
    part = keras.Input((8,))
    nest = keras.Model(part, layers.Dense(4, "relu", name="out")(part), name="nest")
    inputs = keras.Input((8,))
    x = layers.Concatenate()([nest(layers.Dense(8, "relu", name="h")(inputs)), nest(inputs)])
    return keras.Model(inputs, layers.Dense(2)(x)), like(8)


FITTED = [
    *(shared_first, shared_second, shared_three_times, einsum, einsum_of_heads, einsum_with_dots),
    *(pointwise_convolution, pointwise_convolution_of_images),
]


@pytest.mark.parametrize("make", some_on_each(FITTED, (shared_first, einsum_of_heads)))
def test_one_regression_over_all_calls(make):
    model, x = make()
    shaken(model)
    layer = model.get_layer("out")
    wanted = [computed(layer, given) for given in at(model, calls_of(layer), x)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        smaller = remove_layer(model, "h", x)
    shared = make.__name__.startswith("shared")
    assert any("fitted to all calls" in str(w.message) for w in said) == shared
    twin = smaller.get_layer("out")
    given = at(smaller, calls_of(twin), x)
    found = np.vstack([computed(twin, part) for part in given])
    best = lstsq(np.vstack(given), np.vstack(wanted), layer.bias is not None)
    np.testing.assert_allclose(found, best, atol=1e-3)  # float32 activations, weights and sums
    for old, new in itertools.pairwise([model, smaller]):
        kept = {
            v.path: np.asarray(v) for v in old.variables if not v.path.startswith(("h/", "out"))
        }
        for variable in new.variables:
            if variable.path in kept:
                np.testing.assert_array_equal(kept[variable.path], np.asarray(variable))


@pytest.mark.tensorflow
@pytest.mark.parametrize("make", [shared_first, shared_second, shared_three_times])
def test_calls_are_made_in_the_order_of_the_original(make):
    """By which the calls of the smaller model are matched with those of the original."""
    model, x = make()
    copy, _ = without(model, None)
    given = [at(m, calls_of(m.get_layer("out")), x) for m in (model, copy)]
    for mine, other in zip(*given, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.tensorflow
def test_a_layer_in_a_model_called_twice_is_refitted_over_both():
    model, x = a_nested_model_called_twice()
    shaken(model)
    outer = model.layers[-1]
    z = computed(model.get_layer("nest").get_layer("out"), x.astype(np.float64))
    h = model.get_layer("h")
    hidden = np.maximum(computed(h, x.astype(np.float64)), 0)
    z = np.vstack([computed(model.get_layer("nest").get_layer("out"), hidden), z])
    with pytest.warns(UserWarning, match=r"nest/out \(residual .*fitted to all calls"):
        smaller = remove_layer(model, "h", x)
    found = computed(smaller.get_layer("nest").get_layer("out"), np.vstack([x, x]).astype(float))
    np.testing.assert_allclose(found, lstsq(np.vstack([x, x]).astype(float), z), atol=1e-3)
    np.testing.assert_array_equal(np.asarray(outer.kernel), np.asarray(smaller.layers[-1].kernel))


@pytest.mark.parametrize("what", ["kernel", "bias", "both"])
@pytest.mark.tensorflow
def test_what_a_constraint_forbids_is_projected_and_said(what):
    options = {}
    if what != "bias":
        options["kernel_constraint"] = "non_neg"
    if what != "kernel":
        options["bias_constraint"] = lambda b: ops.clip(b, -0.1, 0.1)
    model, x = of_another_width(layers.Dense(4, name="out", **options))
    with pytest.warns(UserWarning, match="weights of out were projected onto their constraints"):
        smaller = remove_layer(model, "h", x)
    kernel, bias = matrices(smaller.get_layer("out"))
    hidden = np.maximum(computed(model.get_layer("h"), x.astype(np.float64)), 0)
    z = computed(model.get_layer("out"), hidden)
    columns = np.hstack([x, np.ones((SAMPLES, 1))]).astype(np.float64)
    best = np.linalg.lstsq(columns, z, rcond=None)[0][:-1]
    best = best if what == "bias" else np.maximum(best, 0)
    np.testing.assert_allclose(kernel, best, atol=1e-4)
    free = (z - x @ best).mean(axis=0)  # the bias that is best for that kernel
    np.testing.assert_allclose(
        bias, free if what == "kernel" else np.clip(free, -0.1, 0.1), atol=1e-4
    )


class Scaled(layers.Dense):
    """Called a Dense layer, but computes something else."""

    def call(self, x):
        return super().call(x * x)


class Mine(layers.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 3))

    def call(self, x):
        return ops.matmul(x, self.w)


def lora():
    layer = layers.Dense(4, name="out")
    layer.build((None, 8))
    layer.enable_lora(2)
    return layer


def quantized():
    layer = layers.Dense(4, name="out")
    layer.build((None, 8))
    layer.quantize("int8")
    return layer


REFUSED = {
    "lora": (lora, "LoRA"),
    "quantized": (quantized, r"quantized \(int8\)"),
    "own": (lambda: Mine(name="out"), "it is a Mine"),
    "own_dense": (lambda: Scaled(4, name="out"), "it is a Scaled"),
    "einsum": (
        lambda: layers.EinsumDense("abc,bd->adc", (4, 8), name="out"),
        "it is a EinsumDense",
    ),
    "bidirectional": (
        lambda: layers.Bidirectional(layers.LSTM(2), name="out"),
        "it is a Bidirectional",
    ),
    "convolution": (lambda: layers.Conv1D(2, 2, name="out"), "it is a Conv1D"),
    "strides": (lambda: layers.Conv1D(2, 1, strides=2, name="out"), "it is a Conv1D"),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", REFUSED)
def test_before_what_cannot_be_refitted_a_layer_stays(name):
    make, words = REFUSED[name]
    flat = name in ("lora", "quantized", "own", "own_dense")
    shape = (8,) if flat else (4, 8)
    model, x = of_another_width(make(), layers.Reshape((-1,)), shape=shape, hidden=8)
    parts, reasons = removable_layers(model)
    assert "h" not in parts
    assert "out takes its output and cannot be refitted" in reasons["h"]
    with pytest.raises(ValueError, match=f"out takes its output and cannot be refitted: .*{words}"):
        remove_layer(model, "h", x)
    # Without data nothing is to be refitted: what is left is as it was.
    smaller = remove_layer(model, "h")
    for old, new in zip(
        model.get_layer("out").variables, smaller.get_layer("out").variables, strict=True
    ):
        np.testing.assert_array_equal(np.asarray(old), np.asarray(new))


@pytest.mark.tensorflow
def test_a_layer_that_takes_its_own_output_is_not_refitted():
    inputs = keras.Input((8,))
    shared = layers.Dense(8, "relu", name="shared")
    x = shared(layers.Dense(8)(shared(layers.Dense(8, "relu", name="h")(inputs))))
    model = keras.Model(inputs, layers.Dense(2)(x))
    reasons = removable_layers(model)[1]
    assert "takes what it gave itself" in reasons["h"]


@pytest.mark.tensorflow
def test_weights_that_something_else_uses_are_not_refitted():
    inputs = keras.Input((8,))
    taker = layers.Dense(8, name="taker")
    x = taker(layers.Dense(8, "relu", name="h")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(ops.matmul(x, taker.kernel)))
    assert (
        "taker takes its output and cannot be refitted: matmul uses its weights, too"
        in (removable_layers(model)[1]["h"])
    )


def chain():
    model = keras.Sequential([keras.Input((8,))])
    for name in "abc":
        model.add(layers.Dense(8, "relu", name=name))
    model.add(layers.Dense(3, name="out"))
    return model


BAD = {
    "nan": (lambda x: np.where(x > 4, np.nan, x), "not finite .* from 'a' on"),
    "infinite": (lambda x: np.where(x > 4, np.inf, x), "not finite .* from 'a' on"),
    "narrow": (lambda x: x[:, :5], r"inputs of shape \(256, 5\); .* takes \(None, 8\)"),
    "ranks": (lambda x: x[:, None], r"shape \(256, 1, 8\); .* takes \(None, 8\)"),
    "two": (lambda x: ([x, x], x[:, 0]), "have 2 inputs; .* takes 1"),
    "empty": (lambda x: x[:0], "no samples"),
}


@pytest.mark.parametrize("removed", ["a", "b", "c"])
@pytest.mark.parametrize("what", some_on_each(BAD, ("nan",)))
def test_data_that_do_not_fit_are_one_clear_error(what, removed):
    change, words = BAD[what]
    words = words.replace("'a' on", "'b' on") if removed == "a" else words
    model = chain()
    before = [np.asarray(v) for v in model.variables]
    with pytest.raises(ValueError, match=words) as error:
        remove_layer(model, removed, change(like(8)))
    assert len(str(error.value)) < 400
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, np.asarray(variable))


@pytest.mark.tensorflow
def test_data_without_an_end_ask_for_steps():
    import tensorflow as tf

    x, model = like(8), chain()
    data = tf.data.Dataset.from_tensor_slices(x).batch(50)
    expected = np.asarray(remove_layer(model, "b", x[:100]).get_layer("c").kernel)
    found = remove_layer(model, "b", data.repeat(), steps=2).get_layer("c").kernel
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-3)  # sums in another order
    for endless in (data.repeat(), (x[i : i + 50] for i in itertools.count())):
        with pytest.raises(ValueError, match="steps="):
            remove_layer(model, "b", endless)
    with pytest.raises(ValueError, match=r"shape \(8,\).*Batch them"):
        remove_layer(model, "b", tf.data.Dataset.from_tensor_slices(x))
    # One pass for one layer; two that depend on one another need two.
    batches = (x[i : i + 50] for i in range(0, 100, 50))
    found = remove_layer(model, "b", batches, steps=2).get_layer("c").kernel
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-3)


@pytest.mark.tensorflow
def test_data_for_one_pass_are_not_taken_for_two():
    inputs = keras.Input((8,))
    a = layers.Dense(8, name="a")(inputs)
    b = layers.Dense(4, name="b")(a)
    model = keras.Model(inputs, layers.Dense(3, name="out")(layers.Concatenate()([a, b])))
    batches = (like(8)[i : i + 50] for i in range(0, 300, 50))
    with pytest.raises(ValueError, match="read only once, and out can be refitted only after b"):
        remove_layer(model, "a", batches, steps=6)


@pytest.mark.tensorflow
def test_inputs_of_several_tensors_are_a_list_or_a_tuple_with_labels():
    model, x = shared_first()
    kernels = []
    for data in (x, (x, np.zeros(SAMPLES)), (x,)):
        with pytest.warns(UserWarning, match="fitted to all calls"):
            smaller = remove_layer(model, "h", data)
        kernels.append(np.asarray(smaller.get_layer("out").kernel))
    np.testing.assert_array_equal(kernels[0], kernels[1])
    np.testing.assert_array_equal(kernels[0], kernels[2])


@pytest.mark.tensorflow
def test_a_pass_leaves_states_as_they_were():
    inputs = keras.Input(batch_shape=(50, 4, 8))
    x = layers.LSTM(6, stateful=True, name="lstm")(inputs)
    x = layers.Dense(6, "relu", name="b")(layers.Dense(6, "relu", name="a")(x))
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    data = like(4, 8)
    model(data[:50])
    states = [np.array(state) for state in model.get_layer("lstm").states]
    smaller = remove_layer(model, "b", _Batches(data))
    for m in (model, smaller):
        for state, expected in zip(m.get_layer("lstm").states, states, strict=True):
            np.testing.assert_array_equal(np.asarray(state), expected)


class _Batches(keras.utils.PyDataset):
    def __init__(self, data):
        super().__init__()
        self.data = data

    def __len__(self):
        return len(self.data) // 50

    def __getitem__(self, index):
        return self.data[50 * index : 50 * index + 50], np.zeros(50)


@pytest.mark.tensorflow
def test_hidden_positions_may_hold_anything():
    inputs = keras.Input((5,), dtype="int32")
    table = layers.Embedding(9, 8, mask_zero=True, name="embed")
    x = layers.Dense(6, "relu", name="b")(layers.Dense(7, "relu", name="a")(table(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    kernel = np.asarray(table.embeddings)
    x = np.random.default_rng(0).integers(0, 9, (SAMPLES, 5)).astype("int32")
    expected = np.asarray(remove_layer(model, "a", x).get_layer("b").kernel)
    kernel[0] = np.nan
    table.embeddings.assign(kernel)
    found = None
    with pytest.raises(ValueError, match="from 'embed' on"):
        found = remove_layer(model, "a", x)
    assert found is None
    assert np.isfinite(expected).all()


WRONG_NAMES = {
    "none": (None, "name=None; expected the name or path"),
    "number": (3, "name=3; expected"),
    "numbers": ([1], r"name=\[1\]; expected"),
    "dict": ({"a": 1}, "expected the name or path"),
    "bytes": (b"a", "expected the name or path"),
    "empty": ("", "There is no layer ''"),
    "unknown": (["a", "nosuch"], "There is no layer 'nosuch'.* It has .'a', "),
    "twice": (["a", "a"], "means 'a' twice"),
    "output": (["a", "out"], "'out' cannot be taken out .* output layer"),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("what", WRONG_NAMES)
def test_names_that_cannot_be_meant(what):
    name, words = WRONG_NAMES[what]
    with pytest.raises(ValueError, match=words):
        remove_layer(chain(), name, like(8))


@pytest.mark.tensorflow
@pytest.mark.parametrize("names", [("a",), {"a", "b"}, ["b", "a"], frozenset("ac"), []])
def test_names_in_any_collection(names):
    model, x = chain(), like(8)
    smaller = remove_layer(model, names, x)
    assert [layer.name for layer in smaller.layers] == [n for n in "abc" if n not in names] + [
        "out"
    ]
    assert smaller is not model


@pytest.mark.tensorflow
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_layer_that_can_go_only_after_another(names):
    inputs = keras.Input((8,))
    x = layers.Dense(8, name="b")(layers.Dense(4, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Add()([inputs, x])))
    smaller = remove_layer(model, names, like(8))
    # linear, so that nothing is lost
    np.testing.assert_allclose(smaller(like(8)), model(like(8)), atol=1e-3)


def test_a_given_kernel_gets_the_bias_that_is_best_for_it(random):
    x, kernel = random.normal(size=(200, 5)) + 3, random.normal(size=(5, 2))
    z = x @ random.normal(size=(5, 2)) + random.normal(size=(200, 2)) + 7
    columns = np.hstack([x, np.ones((200, 1)), z])
    fit = fit_of(kernel, columns.T @ columns, 5)
    rest = z - x @ kernel - (z - x @ kernel).mean(axis=0)
    np.testing.assert_allclose(fit.bias, (z - x @ kernel).mean(axis=0), rtol=1e-9)
    assert fit.residual == pytest.approx((rest**2).sum() / ((z - z.mean(0)) ** 2).sum(), rel=1e-9)
    best = ridge_regression(columns.T @ columns, 5)
    assert best.residual < fit.residual


@pytest.mark.tensorflow
def test_a_score_of_linearity_is_what_the_refit_leaves():
    model, x = of_another_width(layers.Dense(4, "relu", name="out", kernel_constraint="non_neg"))
    (fit,) = linear_fits(model, model, [("h", "out")], x).values()
    assert fit.kernel.min() >= 0
    assert fit.residual > 0


@pytest.mark.tensorflow  # no other backend has texts
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_texts_for_numbers_are_one_clear_error(dtype):
    dense = keras.layers.Dense
    model = keras.Sequential([
        keras.Input((4,), dtype=dtype), keras.layers.Rescaling(1.0), dense(4, name="a"),
        dense(2, name="out"),
    ])  # fmt: skip
    import tensorflow as tf

    texts = tf.data.Dataset.from_tensor_slices([["x"] * 4] * 8).batch(4)
    with pytest.raises(ValueError, match=f"calibration data are text; .* takes {dtype} numbers"):
        remove_layer(model, "a", texts)
