"""EntropyMonitor inside a real `fit`, in every way that people call it."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import weakref

import keras
import models
import numpy as np
import pytest
import reference
from backends import some_on_each, trained_on
from keras import layers
from PIL import Image

from keras_layer_entropy import EntropyMonitor, analyze_model, plots

pytestmark = pytest.mark.inside_fit

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(compile_with=None, dropout=0.0):
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(6, "relu", name="a"),
            layers.Dropout(dropout),
            layers.Dense(3, name="out"),
        ]
    )
    model.compile("adam", LOSS, metrics=["accuracy"], **(compile_with or {}))
    return model


def data(samples=90, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(samples, 8)).astype("float32"), random.permutation(
        np.arange(samples) % 3
    )


def assert_as_found(model, before, tmp_path):
    """The model has the attributes it had, saves, loads and clones."""
    keras_own = {"history", "stop_evaluating", "stop_predicting", "_eval_epoch_iterator"}
    assert vars(model).keys() - keras_own == before.keys() - keras_own
    for layer in model._flatten_layers():
        assert not {"call", "train_step", "test_step"} & vars(layer).keys()
    assert not type(model.train_function).__module__.startswith("keras_layer_entropy")
    assert not type(model.test_function).__module__.startswith("keras_layer_entropy")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = data()[0]
    found = (each.predict(x, verbose=0) for each in (model, loaded))
    np.testing.assert_allclose(*found, atol=1e-6)
    keras.models.clone_model(model)


def fit(model, tmp_path, monitor=None, **kwargs):
    """Fits with a monitor, checks that the model is as it was found; monitor and history."""
    x, y = data()
    monitor = monitor or EntropyMonitor()
    arguments = dict(x=x, y=y, epochs=2, verbose=0, batch_size=16) | kwargs
    callbacks = [monitor, *arguments.pop("callbacks", [])]
    model.fit(**arguments | {"epochs": 1, "callbacks": None})  # whatever fit itself leaves behind
    before = dict(vars(model))
    history = model.fit(**arguments, callbacks=callbacks)
    assert_as_found(model, before, tmp_path)
    return monitor, history.history


VALIDATION = data(60, seed=1)
COMPILED = [
    *({}, {"run_eagerly": True}, {"jit_compile": True}, {"jit_compile": False}),
    {"steps_per_execution": 4},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "compile_with",
    some_on_each(COMPILED, [{}, {"run_eagerly": True}]),
    ids=str,
)
def test_validation_pass_equals_analysis(compile_with, tmp_path):
    model = build(compile_with, dropout=0.5)
    monitor, history = fit(model, tmp_path, validation_data=VALIDATION)

    want = analyze_model(model, VALIDATION, verbose=0)
    last = monitor.profiles[-1]
    # The same float32 sums in another order.
    np.testing.assert_allclose(last.entropy, want.entropy, atol=1e-6)
    np.testing.assert_array_equal(last.count, want.count)
    assert last.metrics == pytest.approx(want.metrics, rel=1e-5)
    assert [p.epoch for p in monitor.profiles] == [0, 1]
    assert last.is_output == (False, True)
    assert {k for k in history if "entropy" in k} == {"val_a_entropy", "val_out_entropy"}
    assert history["val_a_entropy"] == [p.mean[0] for p in monitor.profiles]


@pytest.mark.slow
@pytest.mark.parametrize(
    "compile_with", some_on_each(COMPILED[:3], [{}, {"run_eagerly": True}]), ids=str
)
def test_training_pass_without_validation(compile_with, tmp_path):
    model = build(compile_with)
    model.optimizer.learning_rate = 0.0  # so that the weights at the end are those of the pass
    monitor, history = fit(model, tmp_path)

    want = analyze_model(model, data(), verbose=0)
    np.testing.assert_allclose(monitor.profiles[-1].entropy, want.entropy, atol=1e-6)
    assert monitor.profiles[-1].count.sum() == 90
    assert {k for k in history if "entropy" in k} == {"a_entropy", "out_entropy"}
    assert monitor.profiles[-1].metrics.keys() == {"loss", "accuracy"}


def test_validation_split(tmp_path):
    model = build()
    monitor, _ = fit(model, tmp_path, validation_split=1 / 3)
    x, y = data()
    want = analyze_model(model, (x[60:], y[60:]), verbose=0)
    np.testing.assert_allclose(monitor.profiles[-1].entropy, want.entropy, atol=1e-6)


@pytest.mark.slow
def test_validation_freq_and_every(tmp_path):
    model = build()
    monitor, history = fit(model, tmp_path, validation_data=VALIDATION, validation_freq=2, epochs=5)
    assert [p.epoch for p in monitor.profiles] == [1, 3]
    assert len(history["val_a_entropy"]) == 2

    monitor, _ = fit(model, tmp_path, EntropyMonitor(every=2), epochs=5)
    assert [p.epoch for p in monitor.profiles] == [1, 3]
    monitor, history = fit(
        model, tmp_path, EntropyMonitor(every=3), epochs=7, validation_data=VALIDATION
    )
    assert [p.epoch for p in monitor.profiles] == [2, 5]
    assert (len(history["val_loss"]), len(history["val_a_entropy"])) == (7, 2)


def test_custom_steps(tmp_path):
    @keras.saving.register_keras_serializable("tests")
    class Custom(keras.Model):
        def train_step(self, batch):
            x, y = batch
            loss = trained_on(self, lambda: self.compute_loss(y=y, y_pred=self(x, training=True)))
            return {"my_loss": loss}

        def test_step(self, batch):
            x, y = batch
            return {"my_loss": self.compute_loss(y=y, y_pred=self(x, training=False))}

    inputs = keras.Input((8,))
    hidden = layers.Dense(6, "relu", name="a")(inputs)
    model = Custom(inputs, layers.Dense(3, name="out")(hidden))
    model.compile("adam", LOSS)
    monitor, history = fit(model, tmp_path, validation_data=VALIDATION)
    want = analyze_model(model, VALIDATION, verbose=0)
    np.testing.assert_allclose(monitor.profiles[-1].entropy, want.entropy, atol=1e-6)
    assert history.keys() >= {"my_loss", "val_my_loss", "val_a_entropy"}
    assert monitor.profiles[-1].metrics.keys() == {"my_loss"}

    monitor, _ = fit(model, tmp_path)
    assert len(monitor.profiles) == 2


def test_class_weight_and_sample_weight(tmp_path):
    model = build()
    model.optimizer.learning_rate = 0.0
    monitor, _ = fit(model, tmp_path, class_weight={0: 1.0, 1: 2.0, 2: 5.0})
    want = analyze_model(model, data(), verbose=0)
    np.testing.assert_allclose(monitor.profiles[-1].entropy, want.entropy, atol=1e-6)

    weight = np.random.default_rng(2).uniform(size=90)
    monitor, _ = fit(model, tmp_path, sample_weight=weight)
    want = analyze_model(model, (*data(), weight), verbose=0)
    np.testing.assert_allclose(monitor.profiles[-1].entropy, want.entropy, atol=1e-6)


def test_datasets_and_generators(tmp_path):
    import tensorflow as tf

    def batches():
        while True:
            yield VALIDATION

    model = build()
    x, y = data()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).repeat()
    monitor, _ = fit(
        model,
        tmp_path,
        x=dataset,
        y=None,
        batch_size=None,
        steps_per_epoch=4,
        validation_data=batches(),
        validation_steps=1,
    )
    assert [p.count.sum() for p in monitor.profiles] == [60, 60]
    want = analyze_model(model, VALIDATION, verbose=0)
    np.testing.assert_allclose(monitor.profiles[-1].entropy, want.entropy, atol=1e-6)

    monitor, _ = fit(model, tmp_path, x=batches(), y=None, batch_size=None, steps_per_epoch=3)
    assert [p.count.sum() for p in monitor.profiles] == [180, 180]


def test_beside_other_callbacks(tmp_path):
    model = build()
    _, history = fit(
        model,
        tmp_path,
        validation_data=VALIDATION,
        epochs=6,
        callbacks=[
            keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras")),
            keras.callbacks.BackupAndRestore(str(tmp_path / "backup")),
            keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
            keras.callbacks.TensorBoard(str(tmp_path / "board")),
            # Stops at the second epoch, because no entropy falls by that much.
            keras.callbacks.EarlyStopping("val_a_entropy", min_delta=10.0, mode="min", patience=1),
        ],
    )
    assert len(history["val_a_entropy"]) == 2
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_a_entropy"]) for row in rows] == history["val_a_entropy"]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="elsewhere XLA may compile steps")
@pytest.mark.fits_once
def test_it_steps_aside_where_pytorch_compiles_the_steps():
    model, monitor = build({"jit_compile": True}), EntropyMonitor()
    with steps_aside("compiles its steps"):
        monitor.set_model(model)
        monitor.on_train_begin()  # `fit` would go on to compile them, which takes a minute


def test_second_fit_starts_afresh(tmp_path):
    model, monitor = build(), EntropyMonitor()
    fit(model, tmp_path, monitor, validation_data=VALIDATION, epochs=3)
    fit(model, tmp_path, monitor, epochs=2)
    assert len(monitor.profiles) == 2
    assert monitor.profiles[-1].count.sum() == 90


class Failing(keras.callbacks.Callback):
    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, self.fail)

    def fail(self, *args, **kwargs):
        raise KeyboardInterrupt("stop")


@pytest.mark.slow
@pytest.mark.parametrize("validates", [False, True])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_test_batch_end", "on_epoch_end"])
def test_interrupted_fit_leaves_the_model_usable(hook, validates, tmp_path):
    if hook == "on_test_batch_end" and not validates:
        hook = "on_epoch_begin"
    model = build()
    x, y = data()
    arguments = dict(x=x, y=y, verbose=0, validation_data=VALIDATION if validates else None)
    model.fit(**arguments)
    before = dict(vars(model))
    monitor = EntropyMonitor()
    with pytest.raises(KeyboardInterrupt):
        model.fit(**arguments, callbacks=[monitor, Failing(hook)])

    assert vars(model).keys() - before.keys() <= {"_eval_epoch_iterator"}  # Keras's own
    assert not any("step" in name for name in vars(model).keys() - before.keys())
    model.save(tmp_path / "model.keras")
    keras.models.clone_model(model)
    model.fit(**arguments)
    assert_as_found(model, before, tmp_path)
    model.fit(**arguments, callbacks=[monitor])
    assert len(monitor.profiles) == 1
    assert_as_found(model, before, tmp_path)


@pytest.mark.tensorflow  # on PyTorch data fail outside of the steps
def test_failing_data_leaves_the_model_as_found(tmp_path):
    def batches():
        x, y = data()
        for _ in range(10):
            yield x[:16], y[:16]
        raise RuntimeError("the disk is gone")

    model = build()
    model.fit(*data(), verbose=0)
    before = dict(vars(model))
    with pytest.raises(Exception, match="the disk is gone"):
        model.fit(batches(), steps_per_epoch=30, verbose=0, callbacks=[EntropyMonitor()])
    assert_as_found(model, before, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("eager", [False, True])
def test_unbuilt_models_without_validation(eager):
    for make in (models.unbuilt_sequential, models.subclassed):
        case, monitor = make(), EntropyMonitor()
        case.model.compile(keras.optimizers.SGD(0.0), LOSS, run_eagerly=eager)
        case.model.fit(case.x, case.y, batch_size=50, epochs=2, verbose=0, callbacks=[monitor])
        want = analyze_model(case.model, (case.x, case.y), verbose=0)
        assert [profile.layers for profile in monitor.profiles] == 2 * [want.layers]
        # The subclassed model normalises by the batch in training, not in the analysis.
        same = np.allclose(monitor.profiles[1].entropy, want.entropy, rtol=0, atol=1e-6)
        assert same == (make is models.unbuilt_sequential)


@pytest.mark.tensorflow  # PyTorch's trainer calls the whole to build it
def test_model_that_is_called_in_parts():
    class Parts(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.out = layers.Dense(6, "relu", name="a"), layers.Dense(3, name="out")

        def train_step(self, batch):
            x, y = batch
            loss = trained_on(self, lambda: self.compute_loss(y=y, y_pred=self.out(self.a(x))))
            return {"my_loss": loss}

    model = Parts()
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    monitor = EntropyMonitor(num_classes=3)
    model.fit(*data(), verbose=0, callbacks=[monitor])
    a = models.relu(models.linear(model.a, data()[0]))
    want = reference.by_class(reference.activation_entropy, a, data()[1], 3)
    np.testing.assert_allclose(monitor.profiles[0].entropy[0], want, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_unbuilt_and_subclassed_models(tmp_path):
    for case in (models.unbuilt_sequential(), models.subclassed()):
        case.model.compile("adam", LOSS)
        monitor = EntropyMonitor(measures=("activation_entropy", "instability", "state_entropy"))
        case.model.fit(
            case.x, case.y, validation_data=(case.x, case.y), verbose=0, callbacks=[monitor]
        )
        want = analyze_model(case.model, (case.x, case.y), verbose=0)
        np.testing.assert_allclose(monitor.profiles[0].entropy, want.entropy, atol=1e-6)
        assert monitor.profiles[0].layers == want.layers
        kernels = [w.path for w in case.model.weights if w.path.endswith("kernel")]
        assert not any("probe" in path or "analyzer" in path for path in kernels)


def test_own_data(tmp_path):
    model = build()
    monitor, history = fit(model, tmp_path, EntropyMonitor(data=VALIDATION, every=2), epochs=2)
    want = analyze_model(model, VALIDATION, verbose=0)
    np.testing.assert_allclose(monitor.profiles[-1].entropy, want.entropy, atol=1e-6)
    assert [p.epoch for p in monitor.profiles] == [1]
    assert len(history["val_a_entropy"]) == 1


def test_options_and_errors():
    model = build()
    x, y = data()
    with pytest.raises(ValueError, match="every=0"):
        EntropyMonitor(every=0)
    with pytest.raises(ValueError, match="can be read only once"):
        EntropyMonitor(data=iter([]))
    with pytest.raises(ValueError, match="There is no layer 'b'"):
        model.fit(x, y, verbose=0, callbacks=[EntropyMonitor(layers="b")])
    with pytest.raises(ValueError, match="expected some of"):
        model.fit(x, y, verbose=0, callbacks=[EntropyMonitor(measures=["x"])])
    with pytest.raises(ValueError, match="Two EntropyMonitors"):
        model.fit(x, y, verbose=0, callbacks=[EntropyMonitor(), EntropyMonitor()])
    monitor = EntropyMonitor(layers="a", measures=["state_entropy"])
    history = model.fit(x, y, verbose=0, callbacks=[monitor]).history
    assert monitor.profiles[0].layers == ("a",)
    assert {key for key in history if "entropy" in key} == {"a_state_entropy"}


def test_tensorboard_summaries(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    model = build()
    monitor = EntropyMonitor(log_dir=tmp_path / "log")
    fit(model, tmp_path, monitor, validation_data=VALIDATION)

    events = EventAccumulator(str(tmp_path / "log"), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()["tensors"]
    for name, draw in (("curve", plots.entropy_curve), ("heatmap", plots.heatmap)):
        pictures = events.Tensors(f"activation_entropy/{name}")
        assert [event.step for event in pictures] == [p.epoch for p in monitor.profiles]
        *_, png = tensor_util.make_ndarray(pictures[-1].tensor_proto)  # width, height, the image
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        np.testing.assert_array_equal(pixels, plots.pixels(draw(monitor.profiles[-1])))
    for row, layer in enumerate(("a", "out")):
        found = [
            float(tensor_util.make_ndarray(e.tensor_proto))
            for e in events.Tensors(f"activation_entropy/{layer}")
        ]
        want = [p.mean[row] for p in monitor.profiles]
        np.testing.assert_allclose(found, want, rtol=1e-6)
        assert f"activation_entropy_by_class/{layer}/2" in tags


@pytest.mark.slow
@pytest.mark.tensorflow
def test_several_devices(tmp_path):
    """Two replicas add up their sums; in a process of its own, because devices are fixed early."""
    script = tmp_path / "mirrored.py"
    script.write_text(
        """
import json, sys
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_layer_entropy import EntropyMonitor, analyze_model
x = np.random.default_rng(0).normal(size=(96, 8)).astype("float32")
y = np.arange(96) % 3
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = keras.Sequential([
        keras.Input((8,)), keras.layers.Dense(6, name="a"),
        keras.layers.BatchNormalization(synchronized=True), keras.layers.ReLU(),
        keras.layers.Dense(3, "softmax", name="out")])
    model.compile("adam", "sparse_categorical_crossentropy")
training, last = EntropyMonitor(), EntropyMonitor()
model.fit(x, y, batch_size=32, verbose=0, callbacks=[training])
model.fit(x, y, batch_size=32, validation_data=(x, y), verbose=0, callbacks=[last])
assert not {"call", "train_step", "test_step"} & set(vars(model))
alone = keras.models.clone_model(model)
alone.set_weights(model.get_weights())
want = analyze_model(alone, (x, y), verbose=0)
print(json.dumps({
    "count": last.profiles[0].count.tolist(), "training": training.profiles[0].count.tolist(),
    "live": last.profiles[0].entropy.tolist(), "want": want.entropy.tolist(),
    "analysis": analyze_model(model, (x, y), verbose=0).entropy.tolist()}))
"""
    )
    result = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["count"] == found["training"] == [32, 32, 32]
    np.testing.assert_allclose(found["live"], found["want"], atol=1e-6)
    np.testing.assert_allclose(found["analysis"], found["want"], atol=1e-6)


def test_live_entropies_are_the_formula():
    model = build()
    monitor = EntropyMonitor()
    x, y = VALIDATION
    model.fit(*data(), validation_data=VALIDATION, verbose=0, callbacks=[monitor])
    a = models.relu(models.linear(model.get_layer("a"), x))
    want = reference.by_class(reference.activation_entropy, a, y, 3)
    np.testing.assert_allclose(monitor.profiles[0].entropy[0], want, rtol=0, atol=1e-5)


def test_after_a_failure_nothing_is_recorded_any_more():
    model, monitor = build(), EntropyMonitor()
    for hook in ("on_test_batch_end", "on_train_batch_end"):
        validation = VALIDATION if hook == "on_test_batch_end" else None
        with pytest.raises(KeyboardInterrupt):
            model.fit(
                *data(), validation_data=validation, verbose=0, callbacks=[monitor, Failing(hook)]
            )
        before = monitor._source._function.measurement.metrics[0].result()[0].sum()
        model.evaluate(*VALIDATION, verbose=0)
        model.train_on_batch(*VALIDATION)
        assert monitor._source._function.measurement.metrics[0].result()[0].sum() == before
        name = "test_function" if validation else "train_function"
        assert not type(getattr(model, name)).__module__.startswith("keras_layer_entropy")


@pytest.mark.slow
def test_shared_layers_and_odd_names():
    for case in (models.shared(), models.nested()):
        case.model.compile("adam", LOSS)
        monitor = EntropyMonitor()
        case.model.fit(
            case.x, case.y, validation_data=(case.x, case.y), verbose=0, callbacks=[monitor]
        )
        want = analyze_model(case.model, (case.x, case.y), verbose=0)
        assert monitor.profiles[0].layers == want.layers
        np.testing.assert_allclose(monitor.profiles[0].entropy, want.entropy, atol=1e-6)


class Calls(keras.callbacks.Callback):
    """Does something in one of the hooks, and not again while it does it."""

    def __init__(self, hook, action):
        super().__init__()
        self._action, self._busy = action, False
        setattr(self, hook, self._once)

    def _once(self, *args, **kwargs):
        if not self._busy:
            self._busy = True
            self._action(self.model)
            self._busy = False


OTHER = data(33, seed=3)
HOOKS = ["on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end", "on_epoch_end"]


@pytest.mark.slow
@pytest.mark.parametrize("batches", ["arrays", "unknown number"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("hook", HOOKS)
def test_only_the_pass_of_fit_is_recorded(hook, first, batches):
    import tensorflow as tf

    validation = VALIDATION
    if batches != "arrays":
        validation = tf.data.Dataset.from_tensor_slices(VALIDATION).batch(32)
        validation = validation.filter(lambda x, y: True)
    model, monitor = build(), EntropyMonitor()
    other = Calls(hook, lambda model: model.evaluate(*OTHER, verbose=0))
    callbacks = [other, monitor] if first else [monitor, other]
    model.fit(*data(), validation_data=validation, epochs=2, verbose=0, callbacks=callbacks)
    for profile in monitor.profiles:
        np.testing.assert_array_equal(profile.count, [20, 20, 20])
    want = analyze_model(model, VALIDATION, verbose=0)
    np.testing.assert_allclose(monitor.profiles[1].entropy, want.entropy, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_train_batch_begin", "on_train_batch_end"])
def test_only_the_training_of_fit_is_recorded(hook, first):
    def more(model):
        model.train_on_batch(*OTHER)
        model.evaluate(*OTHER, verbose=0)

    model, monitor = build(), EntropyMonitor()
    callbacks = [Calls(hook, more), monitor] if first else [monitor, Calls(hook, more)]
    model.fit(*data(), epochs=2, verbose=0, callbacks=callbacks)
    assert [p.count.tolist() for p in monitor.profiles] == [[30, 30, 30]] * 2


def steps_aside(reason):
    return pytest.warns(UserWarning, match=rf"(?s)steps aside.*{reason}")


def test_a_fit_inside_a_fit():
    model, monitor = build(), EntropyMonitor()
    inner = Calls("on_epoch_end", lambda model: model.fit(*OTHER, verbose=0))
    with steps_aside("another fit"):
        model.fit(*data(), epochs=3, verbose=0, callbacks=[monitor, inner])
    assert len(monitor.profiles) == 1
    assert not type(model.train_function).__module__.startswith("keras_layer_entropy")


class Watched(keras.Sequential):
    """Knows, by weak references, the iterators that it was trained on."""

    def make_train_function(self, force=False):
        super().make_train_function(force)
        plain, self.iterators = self.train_function, []

        def function(iterator):
            if not self.iterators or self.iterators[-1]() is not iterator:
                self.iterators.append(weakref.ref(iterator))
            return plain(iterator)

        self.train_function = function


@pytest.mark.tensorflow  # there steps are given iterators
@pytest.mark.parametrize("options", [None, {}, {"every": 2}], ids=str)
def test_no_iterator_is_kept_alive(options):
    """An iterator dies in the step that lets go of it, and waits there for its threads."""
    model, alive = Watched(build().layers), []
    model.compile("adam", LOSS)
    count = lambda model: alive.append(sum(ref() is not None for ref in model.iterators))  # noqa: E731
    callbacks = [] if options is None else [EntropyMonitor(**options)]
    callbacks.append(Calls("on_test_batch_begin", count))
    model.fit(*data(), epochs=4, validation_data=VALIDATION, verbose=0, callbacks=callbacks)
    assert len(model.iterators) == 4
    # That of the epoch stands in a variable of Keras's own until the next epoch begins.
    assert alive == [1] * len(alive)


class OwnData(keras.Model):
    """Its steps take what they like."""

    def __init__(self):
        super().__init__()
        self.a, self.out = layers.Dense(6, "relu", name="a"), layers.Dense(3, name="out")

    def call(self, x):
        return self.out(self.a(x))

    def train_step(self, batch):
        x, y = (batch["pixel"], batch["labels"]) if isinstance(batch, dict) else batch[:2]
        return {"loss": trained_on(self, lambda: LOSS(y, self(x, training=True)))}


class Decorated(OwnData):
    def train_step(self, batch):
        import tensorflow as tf

        return tf.function(super().train_step)(batch)


def batches_of(structure):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(structure).batch(30)


X, Y = data()


class Inside(OwnData):
    """Its layers run in a function of their own."""

    def call(self, x):
        import tensorflow as tf

        self.a.built or self.a.build(x.shape)
        self.out.built or self.out.build((None, 6))
        return tf.function(lambda t: self.out(self.a(t)))(x)


ODD = {
    "in a function": (Inside, (X, Y), "cannot be recorded"),
    "four tensors": (OwnData, (X, Y, np.arange(90), X), "other data than"),
    "decorated": (Decorated, (X, Y), "."),
    "labels out of range": (OwnData, (X, Y + 1), "."),
}


@pytest.mark.slow
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("odd", some_on_each(ODD, ["labels out of range"]))
def test_a_training_is_never_broken(odd, built, eager):
    make, structure, reason = ODD[odd]
    histories = []
    for callbacks in ([], [EntropyMonitor(num_classes=3)]):
        keras.utils.set_random_seed(3)
        model = make()
        if odd == "labels out of range":
            model.out = layers.Dense(5, name="out")
        model.compile("sgd", LOSS, run_eagerly=eager)
        if built:
            model(X[:1])
        with contextlib.nullcontext() if not callbacks else steps_aside(reason):
            history = model.fit(batches_of(structure), epochs=2, verbose=0, callbacks=callbacks)
        histories.append((history.history, model.get_weights()))
    (plain, weights), (beside, weights_beside) = histories
    assert beside == plain
    for one, other in zip(weights, weights_beside, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not callbacks[0].profiles


def test_an_evaluate_that_lists_the_monitor():
    model, monitor = build(), EntropyMonitor()

    def evaluate(model):
        model.evaluate(*OTHER, verbose=0, callbacks=[monitor])

    callbacks = [monitor, Calls("on_epoch_begin", evaluate)]
    model.fit(*data(), validation_data=VALIDATION, epochs=2, verbose=0, callbacks=callbacks)
    assert [p.count.tolist() for p in monitor.profiles] == [[20, 20, 20]] * 2


def test_summaries_that_cannot_be_written(tmp_path):
    model, monitor = build(), EntropyMonitor(log_dir=tmp_path)
    closed = Calls("on_epoch_begin", lambda _: monitor._summaries and monitor._summaries.close())
    with steps_aside("closed"):
        history = model.fit(*data(), epochs=2, verbose=0, callbacks=[monitor, closed])
    assert len(history.history["loss"]) == 2


def test_own_data_that_cannot_be_measured():
    monitor = EntropyMonitor(data=(X, Y + 7), num_classes=3)
    with steps_aside("labels are no class") as said:
        history = build().fit(*data(), epochs=2, verbose=0, callbacks=[monitor])
    assert len(history.history["loss"]) == 2
    assert not any("With data of its own" in str(warning.message) for warning in said)


class Counting(layers.Layer):
    """Counts its calls."""

    def build(self, shape):
        self.calls = self.add_weight((), "zeros", trainable=False, name="calls")

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


@pytest.mark.parametrize("eager", [False, True])
def test_a_model_is_built_without_a_step_of_its_own(eager):
    found = []
    for callbacks in ([], [EntropyMonitor()]):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([layers.Dense(6, "relu"), Counting(), layers.Dense(3)])
        model.compile("sgd", LOSS, run_eagerly=eager)
        model.fit(X, Y, batch_size=30, epochs=2, verbose=0, callbacks=callbacks)
        found.append(model.get_weights())
    assert len(callbacks[0].profiles) == 2
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


class Patches(OwnData):
    """Folds the patches of a sample into the batch."""

    def call(self, x):
        patches = keras.ops.reshape(x, (-1, 4))
        return self.out(keras.ops.reshape(self.a(patches), (-1, 12)))

    def train_step(self, batch):
        return super().train_step(batch[:2])


@pytest.mark.slow
@pytest.mark.parametrize("validates", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_layers_of_another_batch_than_the_labels(weighted, validates):
    batches = batches_of((X, Y, np.ones(90)) if weighted else (X, Y))
    histories = []
    for callbacks in ([], [EntropyMonitor(measures=("activation_entropy", "logdet"))]):
        keras.utils.set_random_seed(3)
        model = Patches()
        model.compile("sgd", LOSS)
        with (
            contextlib.nullcontext()
            if not callbacks
            else steps_aside("(other samples|labels or weights for)")
        ):
            fit = model.fit(
                batches,
                epochs=2,
                validation_data=batches if validates else None,
                verbose=0,
                callbacks=callbacks,
            )
        histories.append(fit.history)
    assert histories[0] == histories[1]


def test_layers_of_another_batch_are_measured_as_one_class():
    model, monitor = Patches(), EntropyMonitor(num_classes=1, layers="a")
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    model.fit(batches_of((X, Y)), verbose=0, callbacks=[monitor])
    want = reference.activation_entropy(models.relu(models.linear(model.a, X.reshape(-1, 4))))
    np.testing.assert_allclose(monitor.profiles[0].entropy[0], [want], rtol=0, atol=1e-5)


@pytest.mark.tensorflow  # on PyTorch the trainer calls the model on what it takes for inputs
def test_a_dict_that_holds_the_labels_too():
    model, monitor = OwnData(), EntropyMonitor()
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(batches_of({"pixel": X, "labels": Y}), verbose=0, callbacks=[monitor])
    a = models.relu(models.linear(model.a, X))
    want = reference.activation_entropy(a)
    # All of one class, because nobody said which tensor holds the labels.
    np.testing.assert_allclose(monitor.profiles[0].entropy[0], [want], rtol=0, atol=1e-5)
    assert monitor.profiles[0].classes == ("all",)


@pytest.mark.parametrize("begins", [False, True])
def test_a_loop_that_calls_the_callbacks(begins):
    model, monitor = build(), EntropyMonitor()
    callbacks = keras.callbacks.CallbackList([monitor], model=model)
    with steps_aside("no fit" if begins else "on_train_begin"):
        if begins:
            callbacks.on_train_begin()
        for epoch in range(2):
            callbacks.on_epoch_begin(epoch)
            logs = model.train_on_batch(*data(), return_dict=True)
            callbacks.on_epoch_end(epoch, logs)
        if begins:
            callbacks.on_train_end()
    assert not monitor.profiles

    monitor = EntropyMonitor(data=VALIDATION)
    callbacks = keras.callbacks.CallbackList([monitor], model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    callbacks.on_epoch_end(0)
    want = analyze_model(model, VALIDATION, verbose=0)
    np.testing.assert_allclose(monitor.profiles[0].entropy, want.entropy, atol=1e-6)


def test_data_that_never_end_need_steps():
    data_ = batches_of(VALIDATION).repeat()
    with pytest.raises(ValueError, match="steps="):
        build().fit(*data(), verbose=0, callbacks=[EntropyMonitor(data=data_)])
    monitor = EntropyMonitor(data=data_, steps=2)
    build().fit(*data(), verbose=0, callbacks=[monitor])
    assert monitor.profiles[0].count.sum() == 60
    with pytest.raises(ValueError, match="steps=2 without data"):
        EntropyMonitor(steps=2)


@pytest.mark.parametrize("slip", ["a", ["a"], ("a", "out"), layers.Dense, [layers.Dense]], ids=str)
def test_layers_in_the_place_of_data(slip):
    with pytest.raises(ValueError, match=r"are layers, not data: EntropyMonitor\(layers="):
        EntropyMonitor(slip)


@pytest.mark.slow
@pytest.mark.tensorflow  # on PyTorch Keras itself trains no stateful layer
def test_measuring_on_own_data_moves_nothing():
    """A stateful layer is as before; the data's own pass moves it."""
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(10, 4, 8)),
            layers.LSTM(5, stateful=True),
            layers.Dense(3, name="out"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    x = np.random.default_rng(0).normal(size=(90, 4, 8)).astype("float32")
    held_out = batches_of((x[:60], Y[:60])).unbatch().batch(10)
    start, found = model.get_weights(), []
    for callbacks in ([], [EntropyMonitor(data=held_out)]):
        model.set_weights(start)
        model.layers[0].reset_state()
        model.fit(x, Y, batch_size=10, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
        found.append(model.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_ignored_labels_and_integer_targets():
    x, y = data()
    ignored = np.where(np.arange(90) < 30, -1, y)
    model = build()
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    )
    monitor = EntropyMonitor()
    model.fit(x, ignored, verbose=0, callbacks=[monitor])
    assert monitor.profiles[0].count.sum() == 60
    model = keras.Sequential([layers.Dense(4, "relu"), layers.Dense(1)])
    model.compile("adam", "mse")
    with pytest.warns(UserWarning, match="targets of a regression"):
        model.fit(x, np.arange(90) + 20, verbose=0, callbacks=[monitor])
    assert monitor.profiles[0].classes == ("all",)
