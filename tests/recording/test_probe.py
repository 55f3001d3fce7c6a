"""Choosing and recording layers."""

import gc
import threading
import weakref

import keras
import models
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy import ActivationProbe
from keras_layer_entropy.recording.layers import choose_layers
from keras_layer_entropy.recording.recorder import Recorder
from keras_layer_entropy.recording.watching import alone_with


def test_choices():
    model = models.convolutional().model
    assert list(choose_layers(model)) == ["a", "out"]
    assert list(choose_layers(model, "a")) == ["a"]
    assert list(choose_layers(model, ["out", "a"])) == ["a", "out"]
    assert list(choose_layers(model, keras.layers.Conv2D)) == ["conv"]
    assert list(choose_layers(model, [keras.layers.Conv2D, "out"])) == ["conv", "out"]
    assert list(choose_layers(model, lambda layer: layer.name.startswith("p"))) == ["pool"]
    nested = models.nested().model
    assert list(choose_layers(nested, "block/inner/b")) == ["block/inner/b"]
    assert list(choose_layers(nested, "b")) == ["block/inner/b"]


def test_layers_of_the_same_name_are_told_apart():
    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            self.pair = [layers.Dense(4, name="same"), layers.Dense(3, name="same")]

        def call(self, x):
            return self.pair[1](self.pair[0](x))

    outputs = ActivationProbe(Twins()).predict(np.ones((2, 5)), verbose=0)
    assert {path: value.shape[-1] for path, value in outputs.items()} == {"same": 4, "same@2": 3}


def test_other_threads_are_not_recorded():
    case = models.sequential()
    recorder = Recorder(case.model)
    with recorder.recording() as recording:
        other = threading.Thread(target=case.model, args=(case.x,))
        other.start()
        other.join()
        assert recording.activations == []
        case.model(case.x)
    assert [activation.path for activation in recording.activations] == ["a", "out"]


def test_an_error_in_the_model_puts_everything_back():
    class Broken(layers.Layer):
        def call(self, x):
            raise RuntimeError("broken")

    model = keras.Sequential([layers.Dense(4, "relu", name="a"), layers.ReLU(), Broken()])
    before = [dict(vars(layer)) for layer in model.layers]
    with pytest.raises(RuntimeError, match="broken"), Recorder(model).recording():
        model(np.ones((2, 3)))
    for layer, attributes in zip(model.layers, before, strict=True):
        assert "call" not in vars(layer)
        assert layer._convert_input_args is attributes["_convert_input_args"]
        assert getattr(layer, "activation", None) is attributes.get("activation")


def test_activation_layer_given_to_dense():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, activation=layers.LeakyReLU(), name="a")]
    )
    x = models.inputs_like(3)
    with Recorder(model).recording() as recording:
        model(x)
    (activation,) = recording.activations
    pre = models.linear(model.layers[0], x)
    found = ops.convert_to_numpy(activation.pre_activation)
    np.testing.assert_allclose(found, pre, atol=1e-5)
    found = ops.convert_to_numpy(activation.output)
    np.testing.assert_allclose(found, np.where(pre > 0, pre, 0.3 * pre), atol=1e-5)


def test_a_recurrent_layer_is_recorded_by_its_output():
    model = keras.Sequential([keras.Input((4, 3)), layers.LSTM(5, name="lstm"), layers.Dense(2)])
    x = models.inputs_like(4, 3)
    outputs = ActivationProbe(model, "lstm").predict(x, verbose=0)
    expected = ops.convert_to_numpy(model.layers[0](x))
    np.testing.assert_allclose(outputs["lstm"], expected, atol=1e-6)
    with Recorder(model, "lstm").recording() as recording:
        model(x)
    # What its own activation function sees, inside the loop over time, is none of it.
    (activation,) = recording.activations
    assert activation.function is None
    assert activation.pre_activation is activation.output


def test_dropout_between_layer_and_activation_in_training():
    inputs = keras.Input((3,))
    x = layers.ReLU()(layers.Dropout(0.5, seed=1)(layers.Dense(50, name="a")(inputs)))
    model = keras.Model(inputs, x)
    with Recorder(model).recording() as recording:
        outputs = model(models.inputs_like(3), training=True)
    (activation,) = recording.activations
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (activation.output, outputs)))
    assert activation.is_output


@pytest.mark.slow
def test_quantized_layers_are_recorded():
    model = models.sequential().model
    model.quantize("int8")
    x = models.inputs_like(8)
    outputs = ActivationProbe(model).predict(x, verbose=0)
    np.testing.assert_allclose(outputs["out"], model.predict(x, verbose=0), atol=1e-6)


def test_layers_that_do_not_run():
    class Idle(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.idle = layers.Dense(3, name="used"), layers.Dense(3, name="idle")

        def call(self, x):
            return self.used(x)

    model = Idle()
    with pytest.warns(UserWarning, match=r"\['idle'\] do not run"):
        outputs = ActivationProbe(model).predict(np.ones((2, 3)), verbose=0)
    assert set(outputs) == {"used"}
    with pytest.raises(ValueError, match=r"None of the chosen layers \['idle'\]"):
        ActivationProbe(model, "idle").predict(np.ones((2, 3)), verbose=0)


def test_probe_is_a_model_of_its_own():
    """Used inside a functional model, for example."""
    case = models.nested()
    case.expected()
    inputs = keras.Input((8,))
    outputs = ActivationProbe(case.model)(inputs)
    pooled = keras.Model(inputs, ops.max(outputs["block/a"], axis=-1))
    want = case.truth({x.name: x for x in case.model._flatten_layers()}, case.x)["block/a"][0]
    np.testing.assert_allclose(
        pooled.predict(case.x, verbose=0), want.max(axis=-1), rtol=1e-5, atol=1e-5
    )


def test_a_function_used_twice_is_not_the_layers_activation():
    class Twice(layers.Layer):
        def __init__(self):
            super().__init__(name="twice")
            self.activation = keras.activations.tanh

        def call(self, x):
            return self.activation(self.activation(x)) + x

    model = keras.Sequential([keras.Input((3,)), Twice()])
    with Recorder(model, "twice").recording() as recording:
        model(models.inputs_like(3))
    (activation,) = recording.activations
    assert activation.function is None
    assert activation.pre_activation is activation.output


def test_normalization_of_the_next_block_is_not_the_layers_own():
    inputs = keras.Input((3,))
    x = layers.Dense(8, name="projection")(inputs)
    y = layers.Dense(8, "gelu", name="next")(layers.LayerNormalization()(x))
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Add()([x, y])))
    x = models.inputs_like(3)
    outputs = ActivationProbe(model).predict(x, verbose=0)
    want = models.linear(model.get_layer("projection"), x)
    np.testing.assert_allclose(outputs["projection"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "last",
    [
        lambda: layers.Activation("linear", dtype="float32"),
        lambda: layers.Lambda(lambda z: z / 2),  # found by computing, for it might do anything
        lambda: layers.Reshape((2, 3)),
    ],
)
def test_outputs_are_known_in_other_forms(last):
    inputs = keras.Input((8,))
    model = keras.Model(inputs, last()(layers.Dense(6, "sigmoid", name="out")(inputs)))
    with Recorder(model).recording() as recording:
        model(models.inputs_like(8))
    (activation,) = recording.activations
    assert activation.is_output
    assert activation.features()["pattern"] is activation.pre_activation


def test_layers_given_as_objects():
    model = models.nested().model
    inner = model.get_layer("block").layers[1].layers[0]
    assert list(choose_layers(model, inner)) == ["block/inner/b"]
    with pytest.raises(ValueError, match="layers=3; expected names, paths, layers"):
        choose_layers(model, 3)
    with pytest.raises(ValueError, match=r"model is a str; expected a keras.Model"):
        ActivationProbe("model.keras")


def test_a_head_that_ends_in_a_bare_function_is_the_last_layer():
    class Head(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = layers.Dense(4, "relu", name="a"), layers.Dense(3, name="b")

        def call(self, x):
            return ops.softmax(self.b(self.a(x)))

    model = Head()
    model(models.inputs_like(5))
    for chosen, want in ((None, [False, True]), (["a", "b"], [False, False])):
        with Recorder(model, chosen).recording() as recording:
            model(models.inputs_like(5))
        assert [activation.is_output for activation in recording.activations] == want


def test_calls_of_shared_layers_are_named_in_the_order_of_the_code():
    """Keras runs them in another: siamese branches in reverse, deep branches first."""
    left, right = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    shared, out = layers.Dense(5, "relu", name="s"), layers.Dense(3, name="o")
    inner = keras.Input((5,))
    block = keras.Model(inner, [shared(inner), shared(2 * inner)], name="block")
    first, second = block(left), block(right)
    deep = layers.ReLU()(layers.ReLU()(right))
    model = keras.Model([left, right], [out(first[0]), out(second[1]), out(deep)])
    x = [models.inputs_like(5), -2 * models.inputs_like(5)]
    found = ActivationProbe(model).predict(x, verbose=0)
    want = model.predict(x, verbose=0)
    relu = [models.relu(models.linear(shared, i * part)) for part in x for i in (1, 2)]
    for i in range(4):
        name = f"block/s#{i + 1}" if i else "block/s"
        np.testing.assert_allclose(found[name], relu[i], rtol=1e-5, atol=1e-5, err_msg=name)
    for i in range(3):
        np.testing.assert_allclose(found[f"o#{i + 1}" if i else "o"], want[i], atol=1e-6)


def test_layers_that_run_step_by_step_are_named_or_refused():
    class Cell(layers.Layer):
        state_size = output_size = 4

        def __init__(self):
            super().__init__(name="cell")
            self.inner = layers.Dense(4, "tanh", name="inner")

        def build(self, shape):
            self.inner.build((shape[0], shape[-1] + 4))

        def call(self, x, states):
            y = self.inner(ops.concatenate([x, states[0]], axis=-1))
            return y, [y]

    base = keras.Sequential([keras.Input((5,)), layers.Dense(4, "relu", name="inner")], name="base")
    for wrapped, path, word in (
        (layers.TimeDistributed(base, name="td"), "td/base/inner", "TimeDistributed"),
        (layers.RNN(Cell(), return_sequences=True, name="rnn"), "rnn/cell/inner", "RNN"),
    ):
        model = keras.Sequential([keras.Input((3, 5)), wrapped, layers.Dense(2, name="out")])
        x = models.inputs_like(3, 5)
        with pytest.warns(UserWarning, match=f"{path}.*inside {word}, where.*left out"):
            assert list(ActivationProbe(model).predict(x, verbose=0)) == ["out"]
        for choice in ("inner", path):
            with pytest.raises(ValueError, match=f"{path}.*inside {word}, where"):
                ActivationProbe(model, choice)
        alone = keras.Sequential([keras.Input((3, 5)), wrapped])
        with pytest.raises(ValueError, match=f"{path}.*inside {word}, where"):
            ActivationProbe(alone)


@pytest.mark.parametrize("first_in_first_out", [True, False])
def test_threads_that_come_and_go_in_any_order_leave_the_model_alone(first_in_first_out):
    model = models.batch_normalized().model
    before = {layer: set(vars(layer)) for layer in model._flatten_layers()}
    entered, left, counts = threading.Event(), threading.Event(), {}

    def early():
        with Recorder(model).recording() as recording:
            entered.wait(20)
            if not first_in_first_out:
                left.wait(20)
            model(models.inputs_like(8))
        counts["early"] = len(recording.activations)

    thread = threading.Thread(target=early)
    thread.start()
    with Recorder(model, "a").recording() as recording:
        entered.set()
        if first_in_first_out:
            thread.join()
        model(models.inputs_like(8))
    left.set()
    thread.join()
    assert (counts["early"], len(recording.activations)) == (3, 1)
    for layer, attributes in before.items():
        assert set(vars(layer)) == attributes


def test_nothing_is_left_of_a_model_that_is_gone():
    model = models.sequential().model
    with alone_with(model), alone_with(model):  # the same thread
        pass
    gone = weakref.ref(model.layers[0])
    del model
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None
