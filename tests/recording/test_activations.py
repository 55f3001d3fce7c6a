"""Every activation function of Keras, in every form in which a functional model may apply it."""

import functools
import inspect

import keras
import models
import numpy as np
import pytest
import reference
from keras import layers, ops
from precision import roundings

from keras_layer_entropy import ActivationProbe, analyze_model
from keras_layer_entropy.measures import ActivationEntropy
from keras_layer_entropy.recording.layer_kinds import effect, family, kind
from keras_layer_entropy.recording.recorder import Recorder

UNITS = 6
# Float32 sums of a few products of size 1, through functions that are not steep.
FLOAT32 = dict(rtol=1e-5, atol=1e-5)


def _public():
    names = [n for n in dir(keras.activations) if inspect.isfunction(getattr(keras.activations, n))]
    return [n for n in names if n not in ("get", "serialize", "deserialize")]


def _function(name, home=keras.activations):
    function = getattr(home, name)
    if name == "threshold":  # alone among them it needs arguments
        return functools.partial(function, threshold=0.1, default_value=-0.2)
    return function


class Own(layers.Layer):
    """A layer that applies a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


def _dense(**kwargs):
    return layers.Dense(UNITS, **kwargs)


def _then(make):
    """A form in which something follows a Dense layer: `make(activation name)(its output)`."""
    return lambda name, path, x: make(name)(_dense(name=path)(x))


LAYERS = {name.lower(): getattr(layers, name) for name in dir(layers)}
FORMS = {
    "string": lambda name, path, x: _dense(activation=name, name=path)(x),
    "function": lambda name, path, x: _dense(activation=_function(name), name=path)(x),
    "lambda": lambda name, path, x: _dense(activation=lambda t: _function(name)(t), name=path)(x),
    "layer in Dense": lambda name, path, x: _dense(
        activation=layers.Activation(_function(name)), name=path
    )(x),
    "Activation of a string": _then(layers.Activation),
    "Activation of a function": _then(lambda name: layers.Activation(_function(name))),
    "layer of its name": _then(lambda name: LAYERS[name.replace("_", "")]()),
    "own layer": _then(lambda name: Own(_function(name))),
    "Lambda": _then(lambda name: layers.Lambda(_function(name))),
    "keyword": _then(lambda name: lambda t: layers.Activation(_function(name))(inputs=t)),
    "applied": _then(_function),
    "operation": _then(lambda name: _function(name, ops)),
    "normalised": lambda name, path, x: _function(name)(
        layers.BatchNormalization()(_dense(name=path, use_bias=False)(x))
    ),
}


# Keras has no such thing.
ABSENT = {
    "layer of its name": lambda name: name.replace("_", "") not in LAYERS,
    "operation": lambda name: not hasattr(ops, name),
}
# Keras's own code fails: a name says no arguments, and symbolic tensors are not computed with.
_CONCRETE = {"hard_silu", "hard_swish", "mish", "sparsemax"}
REFUSED = {
    "string": {"threshold"},
    "Activation of a string": {"threshold"},
    "applied": _CONCRETE,
    "normalised": _CONCRETE,
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_what_follows_the_activation_is_measured(form, capsys):
    inputs, x = keras.Input((5,)), models.inputs_like(5)
    branches, refused = {}, {}
    absent = [name for name in _public() if ABSENT.get(form, lambda _: False)(name)]
    for name in set(_public()) - set(absent):
        try:
            branch = FORMS[form](name, f"d_{name}", inputs)
            keras.Model(inputs, branch)(x)
            branches[f"d_{name}"] = branch
        except Exception as error:  # noqa: BLE001 - Keras raises what it likes
            refused[name] = type(error).__name__
    assert refused.keys() <= REFUSED.get(form, set()), refused
    if form == "normalised":  # a normalisation that nothing follows belongs to the next block
        del branches["d_linear"]
    model = keras.Model(inputs, branches)
    for weight in model.weights:
        if "normalization" not in weight.path:
            weight.assign(np.random.default_rng(1).normal(size=weight.shape))

    found = ActivationProbe(model).predict(x, verbose=0)

    want = model.predict(x, verbose=0)
    assert set(found) == set(want)
    for name in branches:
        np.testing.assert_allclose(found[name], want[name], **FLOAT32, err_msg=f"{name}, {form}")
    with capsys.disabled():
        if refused or absent:
            print(f"\n{form}: Keras does not take {refused}, has no {absent}")
    assert "d_relu" in branches


def test_every_activation_layer_is_known():
    inputs = keras.Input((4, 5))
    found = {n: getattr(layers, n) for n in dir(layers) if inspect.isclass(getattr(layers, n))}
    found = {n: c for n, c in found.items() if ".layers.activations." in c.__module__}
    assert {"ReLU", "PReLU", "Softmax"} < set(found)
    arguments = {"Activation": ("tanh",)}
    branches = {n: c(*arguments.get(n, ()))(_dense(name=n)(inputs)) for n, c in found.items()}
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(list(branches.values()))))
    x = models.inputs_like(4, 5)
    seen = ActivationProbe(model, list(found)).predict(x, verbose=0)
    for name, want in keras.Model(inputs, branches).predict(x, verbose=0).items():
        np.testing.assert_allclose(seen[name], want, **FLOAT32, err_msg=name)
        assert kind(found[name](*arguments.get(name, ()))) == "activation"


COMPOSED = {
    "silu": lambda t: t * ops.sigmoid(t),
    "silu of layers": lambda t: layers.Multiply()([t, layers.Activation("sigmoid")(t)]),
    "mish": lambda t: t * ops.tanh(ops.softplus(t)),
    "maximum": lambda t: ops.maximum(t, 0.0),
    "leaky by where": lambda t: ops.where(t > 0, t, 0.1 * t),
    "squared relu": lambda t: ops.square(ops.relu(t)),
    "relu of a scaled output": lambda t: ops.relu(0.5 * t),
    "squareplus": lambda t: (t + ops.sqrt(t * t + 4.0)) / 2.0,
    "bounded": lambda t: 3.0 * ops.tanh(t),
    "sine": lambda t: ops.sin(30.0 * t),
    "clipped": lambda t: ops.clip(t, 0.0, 6.0),
    "own layer of a layer": lambda t: Own(lambda u: u * ops.sigmoid(u))(t),
    "exponential": lambda t: ops.exp(t),
}


def test_compositions_are_followed():
    inputs = keras.Input((5,))
    branches = {
        f"d{i}": compose(_dense(name=f"d{i}")(inputs))
        for i, compose in enumerate(COMPOSED.values())
    }
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(list(branches.values()))))
    x = models.inputs_like(5)
    found = ActivationProbe(model).predict(x, verbose=0)
    want = keras.Model(inputs, branches).predict(x, verbose=0)
    for name, path in zip(COMPOSED, branches, strict=True):
        np.testing.assert_allclose(found[path], want[path], rtol=1e-4, atol=1e-5, err_msg=name)


MOVES = {
    "Flatten": lambda: layers.Flatten(),
    "Reshape": lambda: layers.Reshape((2, 2 * UNITS)),
    "Reshape with -1": lambda: layers.Reshape((-1, 3)),
    "Permute": lambda: layers.Permute((2, 1)),
    "Identity": lambda: layers.Identity(),
    "linear": lambda: layers.Activation("linear"),
    "dropout": lambda: layers.Dropout(0.5),
    "Flatten, Reshape": lambda: keras.Sequential([layers.Flatten(), layers.Reshape((2, -1))]),
    "Lambda": lambda: layers.Lambda(lambda t: ops.reshape(t, (-1, 2, 2 * UNITS))),
    "ops.reshape": lambda: lambda t: ops.reshape(t, (-1, 4 * UNITS)),
    "ops.transpose": lambda: lambda t: ops.transpose(t, (0, 2, 1)),
    "ops.swapaxes": lambda: lambda t: ops.swapaxes(t, 1, 2),
    "ops.expand_dims": lambda: lambda t: ops.expand_dims(t, 2),
    "ops.squeeze": lambda: lambda t: ops.squeeze(ops.expand_dims(t, 1), 1),
    "transposed and flat": lambda: lambda t: layers.Flatten()(ops.moveaxis(t, 1, 2)),
    "keyword": lambda: lambda t: layers.Flatten()(inputs=t),
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Reshape((2, UNITS // 2))),
}
AFTER = {
    "relu": lambda: layers.ReLU(),
    "gelu": lambda: keras.activations.gelu,
    "PReLU": lambda: layers.PReLU(alpha_initializer="glorot_normal"),
    "normalised": lambda: keras.Sequential([layers.BatchNormalization(), layers.ReLU()]),
}


@pytest.mark.slow
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_activation_behind_another_form_is_measured_in_the_layers_own_shape(after, wrapped):
    inputs, branches = keras.Input((4, 5)), {}
    for i, move in enumerate(MOVES.values()):
        layer = _dense(name=f"d{i}")
        t = layers.TimeDistributed(layer, name=f"td{i}")(inputs) if wrapped else layer(inputs)
        branches[f"td{i}/d{i}" if wrapped else f"d{i}"] = AFTER[after]()(move()(t))
    rest = [layers.Flatten()(t) for t in branches.values()]
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Concatenate()(rest)))
    for weight in model.weights:
        if "moving_mean" in weight.path or "beta" in weight.path:
            weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    x = models.inputs_like(4, 5)

    found = ActivationProbe(model).predict(x, verbose=0)

    want = keras.Model(inputs, branches).predict(x, verbose=0)
    for name, path in zip(MOVES, branches, strict=True):
        expected = want[path]
        if name in ("Permute", "ops.transpose", "ops.swapaxes"):
            expected = np.swapaxes(expected, 1, 2)
        if name == "transposed and flat":
            expected = np.swapaxes(expected.reshape(len(x), UNITS, 4), 1, 2)
        expected = expected.reshape(len(x), 4, UNITS)
        np.testing.assert_allclose(found[path], expected, **FLOAT32, err_msg=name)


NOT_MOVES = {
    "mean": lambda t: ops.mean(t, axis=-1, keepdims=True) + 0 * t,
    "flip and mix": lambda t: t + ops.flip(t, axis=-1),
    "cropped": lambda t: t[:, 1:],
    "repeated": lambda t: ops.repeat(t, 2, axis=1),
    "sorted": lambda t: ops.sort(t, axis=-1),
    "summed": lambda t: ops.cumsum(t, axis=-1),
}


@pytest.mark.parametrize("name", NOT_MOVES)
def test_what_computes_anything_else_is_not_followed(name):
    inputs = keras.Input((4, 5))
    t = layers.Lambda(NOT_MOVES[name])(layers.Dense(UNITS, "sigmoid", name="a")(inputs))
    u = layers.ReLU()(layers.Lambda(NOT_MOVES[name])(layers.Dense(UNITS, name="b")(inputs)))
    model = keras.Model(inputs, [t, layers.Dense(UNITS, name="c")(u)])
    with Recorder(model).recording() as recording:
        model(models.inputs_like(4, 5))
    a, b, c = sorted(recording.activations, key=lambda activation: activation.path)
    assert (a.is_output, b.is_output, c.is_output) == (False, False, True)
    assert a.features()["pattern"] is a.output
    assert b.function is None


HEADS = {
    "string": lambda f: layers.Dense(3, f, name="out"),
    "lambda": lambda f: layers.Dense(3, lambda t: getattr(ops, f)(t), name="out"),
    "partial": lambda f: layers.Dense(3, functools.partial(getattr(ops, f)), name="out"),
    "own layer": lambda f: keras.Sequential(
        [layers.Dense(3, name="out"), Own(lambda t: getattr(ops, f)(t))], name="head"
    ),
    "Lambda": lambda f: keras.Sequential(
        [layers.Dense(3, name="out"), layers.Lambda(lambda t: getattr(ops, f)(t))], name="head"
    ),
    "Activation of a lambda": lambda f: keras.Sequential(
        [layers.Dense(3, name="out"), layers.Activation(lambda t: getattr(ops, f)(t))], name="head"
    ),
}


@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("form", HEADS)
def test_a_head_is_read_through_its_logits_whatever_applies_its_function(form, function):
    model = keras.Sequential([keras.Input((5,)), HEADS[form](function)])
    kernel = 5 * np.random.default_rng(2).normal(size=(5, 3))
    model.set_weights([kernel, np.zeros(3)])
    x, y = models.inputs_like(5), np.arange(50) % 3
    profile = analyze_model(model, (x, y), num_classes=3, verbose=0)
    want = reference.by_class(reference.activation_entropy, x @ kernel, y, 3)
    np.testing.assert_allclose(profile.entropy[0], want, rtol=0, atol=1e-5)
    assert profile.is_output == (True,)


class Temperature(layers.Dense):
    """A head of its own: no function of Keras is seen in it."""

    def call(self, inputs):
        return ops.softmax(super().call(inputs) / 2.0)


UNKNOWN = {
    "temperature": (lambda: layers.Dense(3, lambda t: ops.softmax(t / 2.0), name="out"), True),
    "layer": (lambda: Temperature(3, name="out"), True),
    "no distribution": (lambda: layers.Dense(3, lambda t: ops.cumsum(t, -1), name="out"), False),
    "half a distribution": (
        lambda: layers.Dense(3, lambda t: ops.softmax(t) / 2.0, name="out"),
        False,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("head", UNKNOWN)
def test_a_distribution_is_known_by_what_it_computes(head, dtype):
    keras.config.set_dtype_policy(dtype)
    make, distributed = UNKNOWN[head]
    model = keras.Sequential([keras.Input((5,)), make()])
    # Logits of up to 6: no probability is so small that float16 has few digits of it.
    model.set_weights([1.5 * np.random.default_rng(2).normal(size=(5, 3)), np.zeros(3)])
    x, y = models.inputs_like(5), np.arange(50) % 3
    measures = [ActivationEntropy(keep_patterns=True), "instability"]
    profile = analyze_model(model, (x, y), num_classes=3, measures=measures, verbose=0)

    p = np.asarray(model.predict(x, verbose=0), np.float64)
    pattern = np.log(p) if distributed else p
    for name, measure in (
        ("activation_entropy", reference.activation_entropy),
        ("instability", reference.instability),
    ):
        want = reference.by_class(measure, pattern, y, 3)
        # Half precision: p is computed twice, in two graphs. ln p of a sample is off by four
        # roundings of its logits, of which those of the 17 samples of a class even out.
        tolerance = 1e-5 if dtype == "float32" else roundings(10, dtype)
        np.testing.assert_allclose(profile[name].per_class[0], want, rtol=0, atol=tolerance)
    sums = [profile.patterns["out"].sum(axis=-1)]
    np.testing.assert_allclose(sums, 1.0, rtol=1e-5)
    own = ActivationProbe(model, patterns=True).predict(x, verbose=0)["out"]
    np.testing.assert_allclose(
        own, p if distributed else reference.softmax(p), rtol=0, atol=tolerance
    )


def test_one_row_that_is_no_distribution_decides_for_the_whole_pass():
    """The last of many batches, and only where it counts."""

    def nearly(t):
        return ops.where(t[:, :1] > 1e3, t, ops.softmax(t / 2.0))

    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, nearly, name="out")])
    model.set_weights([np.eye(3), np.zeros(3)])
    x, y = models.inputs_like(3, samples=40), np.zeros(40, "int32")
    x[-1] = 2e3
    weight = np.ones(40)
    p = model.predict(x, verbose=0)
    whole = analyze_model(model, (x, y, weight), num_classes=1, batch_size=8, verbose=0)
    want = reference.activation_entropy(p)
    np.testing.assert_allclose(whole.entropy[0, 0], want, rtol=0, atol=1e-5)
    weight[-1] = 0
    rest = analyze_model(model, (x, y, weight), num_classes=1, batch_size=8, verbose=0)
    want = reference.activation_entropy(np.log(p[:-1]))
    np.testing.assert_allclose(rest.entropy[0, 0], want, rtol=0, atol=1e-5)


def test_masked_positions_do_not_decide():
    def nearly(t):
        return ops.where(t[..., :1] > 1e3, t, ops.softmax(t / 2.0))

    inputs = keras.Input((4, 3))
    masked = layers.Masking(2e3)(inputs)
    head = layers.Dense(3, nearly, name="out")
    model = keras.Model(inputs, head(masked))
    head.set_weights([np.eye(3), np.full(3, 2e3)])
    x, y = models.inputs_like(4, 3) - 2e3, np.zeros(50, "int32")
    x[:, 0] = 2e3
    profile = analyze_model(model, (x, y), num_classes=1, verbose=0)
    p = np.log(model.predict(x, verbose=0)[:, 1:].reshape(-1, 3).astype(np.float64))
    # Sums of numbers of size 2,000 in float32 are known to 1e-4.
    np.testing.assert_allclose(
        profile.entropy[0, 0], reference.activation_entropy(p), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("form", [layers.Softmax, lambda axis: Own(lambda t: ops.softmax(t, axis))])
def test_a_softmax_over_positions_is_no_choice_of_a_unit(form):
    """As attention does: what the layer gives are its weights."""
    inputs = keras.Input((4, 5))
    t = layers.Dense(UNITS, name="a")(inputs)
    model = keras.Model(inputs, form(axis=1)(t))
    x, y = models.inputs_like(4, 5), np.arange(50) % 3
    profile = analyze_model(model, (x, y), num_classes=3, verbose=0)
    if form is layers.Softmax:
        want = model.predict(x, verbose=0)
    else:  # not element-wise and no distribution over the units: not followed
        want = models.linear(model.get_layer("a"), x)
    want = reference.by_class(reference.activation_entropy, want, y, 3)
    np.testing.assert_allclose(profile.entropy[0], want, rtol=0, atol=1e-5)


def test_a_softmax_over_flattened_positions_of_one_unit():
    inputs = keras.Input((4, 5))
    t = layers.Softmax()(layers.Flatten()(layers.Dense(1, name="score")(inputs)))
    model = keras.Model(inputs, layers.Dense(3, name="out")(t))
    x, y = models.inputs_like(4, 5), np.arange(50) % 3
    profile = analyze_model(model, (x, y), verbose=0)
    weights = keras.Model(inputs, t).predict(x, verbose=0)[..., None]
    want = reference.by_class(reference.activation_entropy, weights, y, 3)
    np.testing.assert_allclose(profile.entropy[0], want, rtol=0, atol=1e-5)


def test_a_softmax_over_groups_of_units_is_read_through_its_logits():
    inputs = keras.Input((5,))
    t = layers.Softmax()(layers.Reshape((2, 3))(layers.Dense(6, name="out")(inputs)))
    model = keras.Model(inputs, t)
    x, y = models.inputs_like(5), np.arange(50) % 3
    profile = analyze_model(model, (x, y), num_classes=3, verbose=0)
    want = models.linear(model.get_layer("out"), x)
    want = reference.by_class(reference.activation_entropy, want, y, 3)
    np.testing.assert_allclose(profile.entropy[0], want, rtol=0, atol=1e-5)
    assert profile.is_output == (True,)


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (lambda t: t[:, ::-1], None),  # every value once, but no form of Keras's
        (lambda t: ops.reshape(t, (2, -1)), "moves"),
        (lambda t: ops.cast(t, "float16"), "moves"),
        (lambda t: 2 * t - 1, "affine"),
        (lambda t: 0 * t, None),
        (lambda t: t > 0, "element-wise"),
        (lambda t: ops.round(t), "element-wise"),
        (lambda t: t - ops.mean(t, axis=-1, keepdims=True), None),
        (lambda t: ops.softmax(t), "distribution"),
        (lambda t: (t, t), None),
        (lambda t: keras.random.normal(ops.shape(t)), None),
        (lambda t: t + 1 / 0, None),
    ],
)
def test_effects(function, want):
    found = effect(function, [(None, 4, 3)], ["float32"])
    assert (found and found.kind) == want


def test_functions_are_known_by_who_wrote_them():
    def softmax(x):
        return x

    assert family(softmax) == ("unknown", None)
    assert family(keras.activations.softmax) == ("softmax", (-1,))
    assert family(functools.partial(keras.activations.softmax, axis=1)) == ("softmax", (1,))
    assert family(ops.log_softmax) == ("softmax", (-1,))
    assert family(keras.activations.relu) == ("other", None)
    assert family(keras.activations.sparsemax) == ("unknown", None)
