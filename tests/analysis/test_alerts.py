"""Networks that are sick on purpose are told, each by its layer and cause; healthy ones are not."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_layer_entropy import EntropyMonitor, EntropyProfile
from keras_layer_entropy.measures import Alert, Health, MeasureResult, find_alerts

pytestmark = pytest.mark.fits_once  # a fit beside a monitor as these is compared below

CLASSES = 4


def constant(value):
    return keras.initializers.Constant(value)


def normal(stddev):
    return keras.initializers.RandomNormal(stddev=stddev)


def blobs(samples=400, features=20):
    random = np.random.default_rng(0)
    y = np.arange(samples) % CLASSES
    x = random.normal(size=(samples, features)) + 2 * random.normal(size=(CLASSES, features))[y]
    return x.astype("float32"), y


def chain(*middle):
    """Some layers between 20 inputs and a softmax."""
    return keras.Sequential(
        [keras.Input((20,)), *middle, layers.Dense(CLASSES, "softmax", name="out")]
    )


def dense(name, function="relu", units=32, **options):
    return layers.Dense(units, function, name=name, **options)


class Logarithm(layers.Layer):
    def call(self, x):
        return ops.log(x - 100.0)


def alike(model):
    kernel, bias = model.get_layer("b").get_weights()
    model.get_layer("b").set_weights([1e-6 * kernel, np.ones_like(bias)])


def in_one_direction(model):
    kernel, bias = model.get_layer("b").get_weights()
    model.get_layer("b").set_weights([0.1 * np.outer(kernel[:, 0], kernel[0]), 0 * bias])


SICK = {
    "dead": ([("a", {}), ("b", {"bias_initializer": constant(-50.0)}), ("c", {})], "b"),
    "exploding": ([("a", {}), ("b", {"kernel_initializer": normal(3e3)}), ("c", {})], "b"),
    "saturated": (
        [
            ("a", {"function": "tanh"}),
            ("b", {"function": "tanh", "kernel_initializer": normal(100.0)}),
            ("c", {"function": "tanh"}),
        ],
        "b",
    ),
    "linear": (
        [("a", {}), ("b", {"bias_initializer": constant(3.0), "kernel_initializer": normal(0.05)})],
        "b",
    ),
}


def fitted(model, epochs=1, monitor=None, rate=1e-4, data=None, **options):
    monitor = monitor or EntropyMonitor(alerts=True)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    x, y = data or blobs()
    model.fit(
        x, y, epochs=epochs, verbose=0, callbacks=[monitor],
        **{"validation_data": (x[:200], y[:200]), **options},
    )  # fmt: skip
    return monitor


@pytest.mark.slow
@pytest.mark.inside_fit
@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("kind", SICK)
def test_each_names_its_layer_and_cause(kind, validates, capsys):
    given, layer = SICK[kind]
    model = chain(*(dense(name, **options) for name, options in given))
    options = {} if validates else {"validation_data": None}
    monitor = fitted(model, **options)
    assert [(alert.kind, alert.layer, alert.epoch) for alert in monitor.alerts] == [
        (kind, layer, 0)
    ]
    (alert,) = monitor.alerts
    assert alert.value >= alert.threshold
    said = capsys.readouterr().out
    assert f"EntropyMonitor: epoch 1: '{layer}'" in said
    assert alert.advice in said
    if kind != "exploding":
        assert alert.units == tuple(range(32))


@pytest.mark.inside_fit
@pytest.mark.parametrize("prepare", [alike, in_one_direction])
def test_collapse(prepare):
    model = chain(dense("a"), dense("b", "tanh", trainable=False), dense("c"))
    prepare(model)
    (alert,) = fitted(model).alerts
    assert (alert.kind, alert.layer) == ("collapse", "b")
    assert alert.value < alert.threshold
    assert ("directions" in alert.words) == (prepare is in_one_direction)


@pytest.mark.slow
@pytest.mark.inside_fit
def test_vanishing_in_many_sigmoids():
    model = chain(*(dense(f"s{i}", "sigmoid") for i in range(12)))
    (alert,) = fitted(model).alerts
    assert alert.kind == "vanishing"
    # Each sigmoid leaves about a quarter of the differences: 4 ** -5 is below 1e-3.
    assert alert.layer in ("s3", "s4", "s5", "s6")


@pytest.mark.slow
@pytest.mark.inside_fit
def test_vanishing_by_small_weights():
    model = chain(*(dense(f"r{i}", kernel_initializer=normal(0.02)) for i in range(8)))
    (alert,) = fitted(model, rate=1e-9).alerts
    assert alert.kind == "vanishing"
    assert alert.layer in ("r2", "r3", "r4")


@pytest.mark.slow
@pytest.mark.inside_fit
@pytest.mark.parametrize("validates", [True, False])
def test_nan_is_told_where_it_began(validates):
    model = chain(dense("a"), dense("b"), Logarithm(name="logarithm"), dense("c", "tanh"))
    options = {} if validates else {"validation_data": None}
    with pytest.warns(UserWarning, match="NaN or infinite activations"):
        monitor = fitted(model, epochs=2, **options)
    (alert,) = monitor.alerts
    # Without validation it is the steps of the training that are measured, of the chosen layers.
    assert (alert.kind, alert.layer) == ("nan", "logarithm" if validates else "c")
    assert (alert.epoch, alert.value) == (0, 1)


@pytest.mark.inside_fit
def test_the_training_ends_where_the_loss_is_nan(capsys):
    model = chain(dense("a", "tanh"))
    x, y = blobs()
    x[100, 0] = np.nan
    steps = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch)
    )
    monitor = EntropyMonitor(stop_on="nan")
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.warns(UserWarning, match="NaN or infinite activations"):
        history = model.fit(
            x, y, batch_size=40, epochs=3, shuffle=False, verbose=0, callbacks=[monitor, count],
            validation_data=(x[:40], y[:40]),
        )  # fmt: skip
    assert len(steps) == 3  # the third batch of ten holds it
    assert len(history.epoch) == 1
    assert [(alert.layer, alert.value) for alert in monitor.alerts] == [("", 3), ("a", 3)]
    assert capsys.readouterr().out.count("ends the training (stop_on: nan)") == 1


@pytest.mark.inside_fit
def test_the_training_ends_after_the_epoch(capsys):
    model = chain(dense("a"), dense("b", "tanh", trainable=False), dense("c"))
    alike(model)
    monitor = EntropyMonitor(stop_on=("nan", "collapse"))
    fitted(model, epochs=5, monitor=monitor)
    assert len(monitor.profiles) == 1
    assert "ends the training (stop_on: collapse)" in capsys.readouterr().out


@pytest.mark.inside_fit
def test_what_is_not_asked_for_is_not_told():
    model = chain(dense("a"), dense("b", bias_initializer=constant(-50.0)), dense("c"))
    assert fitted(model, monitor=EntropyMonitor(stop_on="nan")).alerts == []


def test_with_data_of_its_own_too():
    """As on JAX, where nothing is recorded in fit."""
    model = chain(dense("a"), dense("b", bias_initializer=constant(-50.0)), dense("c"))
    (alert,) = fitted(model, monitor=EntropyMonitor(data=blobs(), alerts=True)).alerts
    assert (alert.kind, alert.layer) == ("dead", "b")


def profile(epoch, **numbers):
    whole = {name: [value] for name, value in {"rms": 1.0, "spread": 1.0, **numbers}.items()}
    return EntropyProfile(
        layers=("dense",), widths=(100,), is_output=(False,), classes=("all",), count=[10],
        results={"activation_health": MeasureResult([[0.0]], whole)}, epoch=epoch,
    )  # fmt: skip


def test_an_alert_comes_again_only_when_it_is_worse():
    found = [find_alerts(profile(0, dead=dead)) for dead in (0.4, 0.5, 0.7, 0.8)]
    assert [len(alerts) for alerts in found] == [0, 1, 1, 1]
    first, second, third = (alerts[0] for alerts in found[1:])
    assert first.comes_after(None, 1.5)
    assert not second.comes_after(first, 1.5)  # 1.4 times
    assert third.comes_after(first, 1.5)
    lower = [Alert("collapse", "x", 0, value, 1e-3, "") for value in (1e-4, 9e-5, 1e-5)]
    assert [alert.comes_after(lower[0], 1.5) for alert in lower[1:]] == [False, True]


def test_what_is_not_unhealthy():
    assert not find_alerts(profile(0, dead=1 / 512))
    assert find_alerts(profile(0, dead=0.1), Health(dead=0.1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(alerts="yes"), "alerts='yes'; expected True, False or measures.Health"),
        (dict(stop_on="nans"), r"stop_on='nans'; expected some of \('nan', 'dead'"),
        (dict(stop_on=5), "stop_on=5; expected some of"),
        (dict(stop_on=[["nan"]]), "expected some of"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        EntropyMonitor(data=blobs(), **options)


@pytest.mark.parametrize("value", [0, -1.0, "half", float("nan")])
def test_thresholds_are_positive(value):
    with pytest.raises(ValueError, match="dead=.* of Health; expected a positive number"):
        Health(dead=value)


def test_shares_are_at_most_1():
    with pytest.raises(ValueError, match="dead=50 of Health; expected a share, at most 1"):
        Health(dead=50)


def test_a_profile_without_health_has_no_alerts():
    without = EntropyProfile(
        layers=("dense",), widths=(8,), is_output=(False,), classes=("all",), count=[10],
        results={"activation_entropy": [[0.5]]},
    )  # fmt: skip
    with pytest.raises(ValueError, match="holds no activation_health"):
        find_alerts(without)


def test_where_classes_lie_on_a_line_from_the_beginning_nothing_collapsed():
    """A rank of 1 is none where that of the layer before is no more."""

    def found(*ranks):
        whole = {name: [1.0] * len(ranks) for name in ("rms", "spread")}
        layers = tuple("abc"[: len(ranks)])
        return find_alerts(EntropyProfile(
            layers=layers, widths=[9] * len(ranks), is_output=[False] * len(ranks),
            classes=tuple("01234"), count=[9] * 5, results={"activation_health": MeasureResult(
                np.zeros((len(ranks), 5)), whole | {"effective_rank": ranks})},
        ))  # fmt: skip

    assert not found(1.0, 1.0, 1.0)
    assert [(alert.kind, alert.layer) for alert in found(3.0, 2.5, 1.0)] == [("collapse", "c")]


# Trainings in which nothing is wrong.


def images(samples=300):
    random = np.random.default_rng(1)
    y = np.arange(samples) % CLASSES
    return (random.normal(size=(samples, 12, 12, 1)) + y[:, None, None, None]).astype("float32"), y


def tokens(samples=300):
    random = np.random.default_rng(2)
    y = np.arange(samples) % CLASSES
    x = np.where(
        random.random((samples, 9)) < 0.5, 1 + y[:, None], random.integers(5, 30, (samples, 9))
    )
    return x, y


def mlp(function, depth=3):
    return lambda: (chain(*(dense(f"h{i}", function) for i in range(depth))), blobs())


def selu():
    options = {"kernel_initializer": "lecun_normal"}
    return chain(*(dense(f"h{i}", "selu", **options) for i in range(6))), blobs()


def normalised():
    parts = []
    for number in range(10):
        parts += [layers.Dense(32, name=f"h{number}"), layers.BatchNormalization(), layers.ReLU()]
    return chain(*parts), blobs()


def dropout():
    return chain(dense("a"), layers.Dropout(0.5), dense("b"), layers.Dropout(0.3)), blobs()


def cnn():
    model = keras.Sequential([
        keras.Input((12, 12, 1)), layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(),
        layers.MaxPooling2D(), layers.Conv2D(16, 3, activation="relu"),
        layers.GlobalAveragePooling2D(), layers.Dense(CLASSES, "softmax"),
    ])  # fmt: skip
    return model, images()


def resnet():
    inputs = keras.Input((12, 12, 1))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    for _ in range(3):
        y = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
        x = layers.ReLU()(layers.Add()([x, layers.Conv2D(8, 3, padding="same")(y)]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES, "softmax")(x)), images()


def transformer():
    inputs = keras.Input((9,))
    x = layers.Embedding(30, 16)(inputs)
    for _ in range(2):
        normal = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(normal, normal)])
        y = layers.Dense(32, "gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(16)(y)])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES, "softmax")(x)), tokens()


def recurrent(kind):
    def make():
        model = keras.Sequential([
            keras.Input((9,)), layers.Embedding(30, 8, mask_zero=True), kind(16),
            layers.Dense(16, "relu"), layers.Dense(CLASSES, "softmax"),
        ])  # fmt: skip
        return model, tokens()

    return make


def autoencoder():
    x, _ = blobs()
    sizes = (16, 3, 16)
    model = keras.Sequential(
        [keras.Input((20,)), *(layers.Dense(n, "relu") for n in sizes), layers.Dense(20)]
    )
    return model, (x, x), "mse"


def regression():
    x, _ = blobs()
    model = keras.Sequential(
        [keras.Input((20,)), layers.Dense(32, "relu"), layers.Dense(32, "relu"), layers.Dense(1)]
    )
    return model, (x, 1000 + x[:, :1]), "mse"


def imbalanced():
    x, _ = blobs()
    y = (np.arange(len(x)) % 50 == 0).astype("float32")[:, None]
    model = keras.Sequential(
        [keras.Input((20,)), layers.Dense(32, "relu"), layers.Dense(1, "sigmoid")]
    )
    return model, (x, y), "binary_crossentropy"


def several_labels():
    x, _ = blobs()
    model = keras.Sequential(
        [keras.Input((20,)), layers.Dense(32, "tanh"), layers.Dense(5, "sigmoid")]
    )
    return model, (x, (x[:, :5] > 0).astype("float32")), "binary_crossentropy"


def fine_tuning():
    model = chain(dense("a", trainable=False), dense("b", trainable=False), dense("c"))
    return model, blobs()


def mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = chain(dense("a"), dense("b"))
    keras.config.set_dtype_policy("float32")
    return model, blobs()


class Masked(layers.Layer):
    """Attention's way to leave something out."""

    def call(self, x):
        return ops.where(ops.abs(x) < 0.1, -np.inf, x)


def masked_by_infinity():
    inputs = keras.Input((20,))
    x = dense("a")(inputs)
    scores = layers.Softmax()(Masked()(layers.Dense(32, name="scores")(x)))
    outputs = layers.Dense(CLASSES, "softmax")(layers.Multiply()([x, scores]))
    return keras.Model(inputs, outputs), blobs()


class Filled(layers.Layer):
    """What is missing is 0."""

    def call(self, x):
        return ops.where(ops.isnan(x), 0.0, x)


def filled_where_it_is_missing():
    x, y = blobs()
    x[::7, 3] = np.nan
    return chain(layers.Rescaling(0.5), Filled(), dense("a")), (x, y)


def two_outputs():
    inputs = keras.Input((20,))
    x, x_given = dense("a")(inputs), blobs()
    value = layers.Dense(1, name="value", bias_initializer=constant(5000.0))(x)
    outputs = [value, layers.Dense(CLASSES, "softmax", name="out")(x)]
    given, y = x_given
    targets = [5000 + given[:, :1], y]
    return (
        keras.Model(inputs, outputs),
        (given, targets),
        ["mse", "sparse_categorical_crossentropy"],
    )


def not_scaled():
    x, y = blobs()
    return chain(dense("a"), dense("b")), (10 * x, y)


HEALTHY = {
    "relu": mlp("relu"), "gelu": mlp("gelu"), "tanh": mlp("tanh"), "silu": mlp("silu"),
    "elu": mlp("elu"), "leaky_relu": mlp("leaky_relu"), "sigmoid": mlp("sigmoid", 2),
    "selu": selu, "ten layers, normalised": normalised, "dropout": dropout, "cnn": cnn,
    "resnet": resnet, "transformer": transformer, "lstm": recurrent(layers.LSTM),
    "gru": recurrent(layers.GRU), "autoencoder": autoencoder, "regression": regression,
    "imbalanced": imbalanced, "several labels": several_labels, "fine-tuning": fine_tuning,
    "mixed precision": mixed_precision, "inputs not scaled": not_scaled,
    "masked": masked_by_infinity, "missing": filled_where_it_is_missing, "outputs": two_outputs,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.inside_fit
@pytest.mark.filterwarnings(
    "ignore:.*(targets of a regression|No sample belongs|in a class|NaN or infinite)"
)
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_trainings_are_left_in_peace(name):
    model, (x, y), *loss = HEALTHY[name]()
    model.compile("adam", loss[0] if loss else "sparse_categorical_crossentropy")
    monitor = EntropyMonitor(alerts=True)
    held_out = x[:200], [part[:200] for part in y] if isinstance(y, list) else y[:200]
    model.fit(x, y, epochs=4, verbose=0, callbacks=[monitor], validation_data=held_out)
    assert len(monitor.profiles) == 4
    assert monitor.alerts == []


def test_alerts_leave_the_logs_as_they_are():
    """They fill the progress line; what is measured is in the profiles."""
    keys = []
    for options in ({}, {"alerts": True}):
        monitor = EntropyMonitor(data=blobs(), **options)
        model = chain(dense("hidden"))
        fitted(model, monitor=monitor)
        keys.append(list(model.history.history))
        assert ("activation_health" in monitor.profiles[0].results) == bool(options)
    assert keys[0] == keys[1]
    assert "val_hidden_entropy" in keys[0]


def test_data_of_its_own_change_nothing():
    """PyTorch's loaders draw a number for each pass, from where orders are drawn, too."""
    weights = []
    for callbacks in ([], [EntropyMonitor(data=blobs(), alerts=True)]):
        keras.utils.set_random_seed(4)
        model = chain(dense("a"), layers.Dropout(0.2), dense("b"))
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(*blobs(), epochs=3, verbose=0, callbacks=callbacks)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.inside_fit
@pytest.mark.parametrize("validates", [True, False])
def test_a_training_beside_it_is_the_same_to_the_bit(validates):
    weights = []
    for callbacks in ([], [EntropyMonitor(alerts=True)]):
        keras.utils.set_random_seed(4)
        model = chain(dense("a"), layers.Dropout(0.2), dense("b"))
        model.compile("adam", "sparse_categorical_crossentropy")
        x, y = blobs()
        held_out = (x[:100], y[:100]) if validates else None
        model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks, validation_data=held_out)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.tensorflow
def test_what_loops_inside_is_not_looked_at():
    """An LSTM's cell runs in a loop of its own: what is inside cannot be watched, the layer can."""
    model, (x, y) = recurrent(layers.LSTM)()
    model.layers[1].cell.kernel.assign(np.nan * model.layers[1].cell.kernel)
    model.compile("sgd", "sparse_categorical_crossentropy")
    monitor = EntropyMonitor(alerts=True)
    with pytest.warns(UserWarning, match="NaN or infinite activations"):
        model.fit(x, y, verbose=0, callbacks=[monitor], validation_data=(x[:50], y[:50]))
    assert [(alert.kind, alert.layer) for alert in monitor.alerts] == [("nan", "lstm")]
