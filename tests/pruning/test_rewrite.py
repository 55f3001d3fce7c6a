"""A rewritten model goes on training where the old one stands; layers that cannot go say why."""

import keras
import numpy as np
import pytest
from backends import some_on_each
from keras import layers, ops

from keras_layer_entropy import remove_layer
from keras_layer_entropy.pruning import refit as refit_module
from keras_layer_entropy.pruning.layer_parts import layer_part, removable_layers
from keras_layer_entropy.pruning.rewrite import without
from keras_layer_entropy.pruning.surgery import take_out

OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.01, 50)),
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "averaging": lambda: keras.optimizers.SGD(0.01, use_ema=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "adagrad": lambda: keras.optimizers.Adagrad(0.01),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "lion": lambda: keras.optimizers.Lion(0.001),
    "accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}


def data():
    random = np.random.default_rng(0)
    return random.normal(size=(64, 8)).astype("float32"), np.arange(64) % 3


def network(hidden=("a", "b", "c")):
    inputs = keras.Input((8,))
    x = inputs
    for name in hidden:
        x = layers.Dense(8, "relu", name=name)(x)
        x = layers.Dropout(0.3, seed=5, name=f"{name}_drop")(x)
    x = layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, layers.Dense(3, name="out")(x))


def compiled(model, optimizer="adam", **options):
    model.compile(
        OPTIMIZERS[optimizer](),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")],
        **options,
    )
    return model


# On each backend those that keep more than a slot per weight, and one that does not. (Keras 3.15.1
# cannot fit twice with averaging on JAX, whether or not a model was rewritten.)
@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", some_on_each(OPTIMIZERS, ("adam", "adafactor", "accumulating", "scaled"))
)
def test_training_goes_on_as_if_nothing_had_happened(optimizer):
    x, y = data()
    # In TensorFlow tracing takes longer than the steps: one optimizer shows that it works.
    eager = keras.backend.backend() == "tensorflow" and optimizer != "adam"
    model = compiled(network(), optimizer, run_eagerly=eager)
    model.fit(x, y, epochs=2, batch_size=32, shuffle=False, verbose=0)
    copy, _ = without(model, None)
    kept, copied = (m.optimizer.variables for m in (model, copy))
    assert [v.shape for v in copied] == [v.shape for v in kept]
    histories = [
        m.fit(x, y, epochs=2, batch_size=32, shuffle=False, verbose=0).history
        for m in (model, copy)
    ]
    assert histories[0] == histories[1]
    for mine, other in zip(model.variables, copy.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))


def slots(model):
    """Adam's first moment by the variable it belongs to."""
    optimizer = model.optimizer
    return {
        v.path.split("/")[-2] + "/" + v.name: np.asarray(m)
        for v, m in zip(optimizer._trainable_variables, optimizer._momentums, strict=True)
    }


def test_the_optimizer_keeps_the_state_of_what_survives():
    x, y = data()
    model = compiled(network())
    model.fit(x, y, epochs=2, verbose=0)
    smaller = remove_layer(model, "b", (x, y))
    before, after = slots(model), slots(smaller)
    assert sorted(after) == sorted(k for k in before if not k.startswith("b/"))
    for key, value in after.items():
        assert np.abs(value).max() > 0
        np.testing.assert_array_equal(value, before[key])
    assert int(smaller.optimizer.iterations) == int(model.optimizer.iterations) > 0
    assert [m.name for m in smaller.metrics] == [m.name for m in model.metrics]
    smaller.fit(x, y, epochs=1, verbose=0)


@pytest.mark.tensorflow
def test_a_smaller_model_is_saved_with_its_optimizer(tmp_path):
    """Keras builds a loaded optimizer in the order of the model's variables."""
    x, y = data()
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(6, name="b")])
    model = compiled(keras.Sequential([*model.layers, layers.Dense(3)]))
    model.fit(x, y, epochs=2, verbose=0)
    smaller = remove_layer(model, "b", (x, y))
    smaller.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for mine, other in zip(smaller.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))


def test_the_input_model_keeps_its_optimizer_and_metrics():
    x, y = data()
    model = compiled(network())
    model.fit(x, y, verbose=0)
    before = [np.asarray(v) for v in model.optimizer.variables]
    remove_layer(model, "b", (x, y)).fit(x, y, verbose=0)
    for value, variable in zip(before, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(value, np.asarray(variable))
    # 64 samples were seen in the last evaluation of it alone
    assert model.evaluate(x, y, verbose=0, return_dict=True).keys() == {"loss", "accuracy", "top"}


@pytest.mark.tensorflow
def test_bypass_keeps_weights_of_the_same_width():
    model = network()
    smaller = remove_layer(model, "b")
    for name in ("a", "c", "norm", "out"):
        for mine, other in zip(
            model.get_layer(name).variables, smaller.get_layer(name).variables, strict=True
        ):
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))
    assert "b_drop" not in [layer.name for layer in smaller.layers]


@pytest.mark.tensorflow
def test_bypass_of_another_width_says_that_the_kernel_is_fresh():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(5, name="a")])
    model.add(layers.Dense(3, name="out", bias_initializer="ones"))
    with pytest.warns(UserWarning, match="kernels of out start anew"):
        smaller = remove_layer(model, "a")
    assert smaller.get_layer("out").kernel.shape == (8, 3)
    np.testing.assert_array_equal(np.asarray(smaller.get_layer("out").bias), 1.0)


def test_neighbours_go_in_one_step_with_one_regression():
    """Two linear layers are linear together: nothing is lost, whichever way they go."""
    x, _ = data()
    names = ("a", "b", "c")
    hidden = [layers.Dense(n, name=name) for name, n in zip(names, (12, 9, 8), strict=True)]
    model = keras.Sequential([keras.Input((8,)), *hidden, layers.Dense(3, "relu", name="out")])
    smaller, residuals = take_out(model, model, ["b", "c"], x)
    assert [layer.name for layer in smaller.layers] == ["a", "out"]
    assert list(residuals) == ["out"]
    # float32 forward passes of 64 samples
    np.testing.assert_allclose(
        *(each.predict(x, verbose=0) for each in (smaller, model)), atol=1e-4
    )


def test_errors_of_one_regression_are_not_fitted_by_the_next():
    """The targets come from the trained model, not from what was only refitted."""
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 8)).astype("float32")
    model = keras.Sequential(
        [keras.Input((8,)), *(layers.Dense(16, "relu", name=n) for n in "abcd")]
    )
    model.add(layers.Dense(3, name="out"))
    first, _ = take_out(model, model, ["b"], x)
    second, residuals = take_out(first, model, ["c"], x)
    z = np.asarray(model.get_layer("d").kernel)  # what d computed in the trained model
    wanted = keras.Model(model.inputs, model.get_layer("c").output).predict(x, verbose=0) @ z
    given = keras.Model(second.inputs, second.get_layer("a").output).predict(x, verbose=0)
    columns = np.hstack([given, np.ones((500, 1))])
    best = columns @ np.linalg.lstsq(columns, wanted, rcond=None)[0]
    layer = second.get_layer("d")
    found = given @ np.asarray(layer.kernel) + np.asarray(layer.bias)
    np.testing.assert_allclose(found, best, atol=1e-4)  # float32 activations
    expected = ((wanted - best) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
    assert residuals["d"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.tensorflow
def test_a_consumer_after_another_is_fitted_after_it():
    """Everything is linear, so that nothing is lost if each sees what the other gives at last."""
    x, _ = data()
    inputs = keras.Input((8,))
    a = layers.Dense(5, name="a")(inputs)
    b = layers.Dense(4, name="b")(a)
    joined = layers.Concatenate()([a, b])
    model = keras.Model(inputs, layers.Dense(3, name="out")(joined))
    np.testing.assert_allclose(remove_layer(model, "a", x)(x), model(x), atol=1e-4)


@pytest.mark.tensorflow
def test_wide_inputs_are_bypassed_with_a_notice(monkeypatch):
    monkeypatch.setattr(refit_module, "WIDEST", 7)
    x, _ = data()
    with pytest.warns(UserWarning, match="more than 7 features: c"):
        smaller = remove_layer(network(), "b", x)
    assert smaller.get_layer("c").kernel.shape == (8, 8)


def refusals():
    inputs = keras.Input((8,))
    twice = layers.Dense(8, name="twice")
    x = twice(twice(inputs))
    x = x + layers.Dense(8, name="narrowing")(layers.Dense(4, name="wide")(x))
    x = layers.TimeDistributed(layers.Dense(8, name="steps"), name="td")(layers.Reshape((1, 8))(x))
    x = Holding(name="holding")(layers.Flatten()(x))
    x = layers.Dense(8, name="lora")(x)
    x = layers.Dense(8, name="kept")(x)
    x = layers.Reshape((8, 1))(layers.Dense(8, name="same")(x))
    x = layers.Conv1D(2, 3, name="conv")(x)
    x = layers.Dense(5, name="hidden_out")(layers.Flatten()(x))
    model = keras.Model(inputs, [x, layers.Activation("softmax")(layers.Dense(2, name="out")(x))])
    model.get_layer("lora").enable_lora(2)
    return model


class Holding(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(8, name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


@pytest.mark.tensorflow
def test_what_cannot_go_is_listed_with_the_reason():
    parts, reasons = removable_layers(refusals(), keep=["kept"])
    assert list(parts) == ["wide"]
    expected = {
        "twice": "shared: the model calls it 2 times",
        "narrowing": "from 4 to 8 features, but feeds add",
        "td/steps": "inside TimeDistributed",
        "holding/inner": "inside a subclassed layer",
        "lora": "LoRA",
        "kept": "to be kept",
        "same": "conv takes its output and cannot be refitted: it is a Conv1D",
        "hidden_out": "output layer",
        "out": "output layer",
    }
    assert set(reasons) == set(expected)
    for path, words in expected.items():
        assert words in reasons[path]
    # what cannot be refitted takes what has the same shape, if that is what is asked for
    parts, reasons = removable_layers(refusals(), "same", refit=False)
    assert parts["same"].fixed == ("conv",)
    assert not reasons


@pytest.mark.tensorflow
def test_a_layer_of_another_width_before_a_convolution_stays():
    inputs = keras.Input((8,))
    x = layers.Reshape((4, 1))(layers.Dense(4, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Conv1D(2, 2)(x))))
    assert "conv1d after it has weights for that many" in removable_layers(model)[1]["a"]


class Plain(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = layers.Dense(4, name="hidden"), layers.Dense(2, name="out")

    def call(self, x):
        return self.head(self.hidden(x))


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (network, "d", r"no layer 'd' in .*It has"),
        (network, "out", "cannot be taken out of .*: it is an output layer"),
        (network, "norm", "it is a BatchNormalization, and only Dense"),
        (Plain, "hidden", "subclassed model .*analyze_model works .*functional"),
        (lambda: keras.Sequential([layers.Dense(3, name="a")]), "a", "not built"),
        (refusals, "lora", "LoRA"),
    ],
)
def test_errors(make, name, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        remove_layer(make(), name)


@pytest.mark.tensorflow
def test_an_ambiguous_name_asks_for_the_path():
    inputs = keras.Input((8,))
    x = inputs
    for part in ("one", "two"):
        x = keras.Sequential([keras.Input((8,)), layers.Dense(8, name="same")], name=part)(x)
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    with pytest.raises(ValueError, match="'one/same', 'two/same'.*path"):
        layer_part(model, "same")
    assert layer_part(model, "two/same").path == "two/same"


@pytest.mark.tensorflow
def test_a_reshape_of_another_width_is_refused():
    """It would go through, and mix up the samples."""
    inputs = keras.Input((6,))
    x = ops.reshape(layers.Dense(8, name="a")(inputs), (-1, 4, 2))
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(x)))
    with pytest.raises(ValueError, match="reshape after it may depend on that"):
        remove_layer(model, "a")


def test_calibration_data_of_any_kind():
    x, y = data()
    model = network()
    expected = np.asarray(remove_layer(model, "b", x).get_layer("c").kernel)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return x[i::4], y[i::4]

    for given in ((x, y), (x,), [x], Batches()):
        found = np.asarray(remove_layer(model, "b", given).get_layer("c").kernel)
        np.testing.assert_allclose(found, expected, atol=1e-4)  # sums in another order


def test_empty_calibration_data_are_an_error():
    with pytest.raises(ValueError, match="no samples"):
        remove_layer(network(), "b", np.zeros((0, 8)))


@pytest.mark.tensorflow
def test_a_path_is_that_layer_alone():
    """Another layer of the same name in a nested model is neither meant nor touched."""
    block = keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu", name="c")], name="block")
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu", name="p")])
    model.add(layers.Dense(8, "relu", name="c"))
    model.add(block)
    model.add(layers.Dense(2, name="out"))
    smaller = remove_layer(model, "p", data()[0])
    kernels = [m.get_layer("block").get_layer("c").kernel for m in (model, smaller)]
    np.testing.assert_array_equal(*map(np.asarray, kernels))
    assert layer_part(model, "c").path == "c"


@pytest.mark.tensorflow
def test_a_nested_model_called_by_names_takes_each_by_its_name():
    a, b = keras.Input((3,), name="aa"), keras.Input((8,), name="bb")
    joined = layers.Concatenate()([layers.Dense(3, name="onb")(b), layers.Dense(3, name="ona")(a)])
    nest = keras.Model([b, a], joined, name="nest")
    inputs = keras.Input((8,))
    taken = layers.Dense(3, name="a")(layers.Dense(3, name="first")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="out")(nest({"aa": taken, "bb": inputs})))
    assert removable_layers(model)[0]["a"].consumers == ("nest/ona",)
    x = data()[0]
    # linear, so that nothing is lost
    np.testing.assert_allclose(remove_layer(model, "a", x)(x), model(x), atol=1e-4)


@pytest.mark.tensorflow
def test_a_layer_in_two_nested_models_is_refused():
    both = layers.Dense(8, name="both")
    parts = [keras.Sequential([keras.Input((8,)), both], name=n) for n in ("one", "two")]
    inputs = keras.Input((8,))
    x = layers.Concatenate()([part(inputs) for part in parts])
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(4, name="mid")(x)))
    with pytest.raises(ValueError, match="in two nested models, 'one/both' and 'two/both'"):
        remove_layer(model, "mid")


@pytest.mark.tensorflow
def test_the_only_dense_layer_stays():
    inputs = keras.Input((5, 6))
    x = layers.Conv1D(2, 3)(layers.Dense(6, name="a")(inputs))
    model = keras.Model(inputs, layers.Softmax()(layers.GlobalAveragePooling1D()(x)))
    assert removable_layers(model)[1] == {"a": "it is the only Dense layer"}


@pytest.mark.tensorflow
def test_a_frozen_bias_stays_frozen():
    model = network()
    model.get_layer("a").bias.trainable = False
    copy, _ = without(model, None)
    assert [v.trainable for v in copy.get_layer("a").variables] == [True, False]


def test_an_optimizer_that_cannot_be_copied_is_named():
    class Sealed(keras.optimizers.SGD):
        """Takes no more attributes."""

        def __setattr__(self, name, value):
            if "sealed" in vars(self):
                raise RuntimeError("it is sealed")
            super().__setattr__(name, value)

    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, name="a"), layers.Dense(5, name="b"), layers.Dense(2)]
    )
    model.compile(Sealed(), "mse")
    model.optimizer.sealed = True
    with pytest.raises(ValueError, match="optimizer of .*, Sealed, cannot be copied: it is sealed"):
        without(model, removable_layers(model)[0]["b"])


def test_an_activation_that_takes_one_of_two_ways_is_no_part_of_a_layer():
    inputs = keras.Input((4,))
    b = layers.Dense(4, name="b")(layers.Dense(4, "relu", name="a")(inputs))
    ways = [layers.Dense(3, name="c")(layers.ReLU(name="relu")(b)), layers.Dense(3, name="d")(b)]
    model = keras.Model(inputs, layers.Add()(ways))
    block = removable_layers(model)[0]["b"]
    assert block.members == ("b",)
    assert set(block.consumers) == {"c", "d"}
