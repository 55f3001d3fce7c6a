"""Opening by content, saving whole."""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import keras
import models
import numpy as np
import pytest

from keras_layer_entropy.datasets import DatasetSpec
from keras_layer_entropy.files import replacing
from keras_layer_entropy.model_files import dataset_record, load_model, model_format, save_model


@pytest.fixture
def case():
    return models.sequential()


@pytest.mark.parametrize(
    ("name", "kind"), [("m.keras", "keras"), ("m.h5", "h5"), ("saved_model", "directory")]
)
def test_round_trip(name, kind, case, tmp_path):
    case.model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    path = save_model(case.model, tmp_path / name)
    assert model_format(path) == kind
    loaded = load_model(path)
    np.testing.assert_array_equal(
        loaded.predict(case.x, verbose=0), case.model.predict(case.x, verbose=0)
    )
    assert loaded.compiled
    assert os.listdir(tmp_path) == [name]
    assert dataset_record(path) is None


@pytest.mark.parametrize(
    ("saved", "found"), [("m.keras", "m.H5"), ("m.keras", "m"), ("m.h5", "m.KERAS"), ("m.h5", "m")]
)
def test_formats_are_told_apart_by_content(saved, found, case, tmp_path):
    save_model(case.model, tmp_path / saved)
    os.rename(tmp_path / saved, tmp_path / found)
    loaded = load_model(tmp_path / found)
    np.testing.assert_array_equal(
        loaded.predict(case.x, verbose=0), case.model.predict(case.x, verbose=0)
    )


def test_dataset_is_recorded(case, tmp_path):
    spec = DatasetSpec("digits", split="test", scale=0.5, shape=(8,))
    directory = save_model(case.model, tmp_path / "model", dataset=spec)
    assert json.loads((directory / "dataset.json").read_text())["scale"] == 0.5
    file = save_model(case.model, tmp_path / "model.keras", dataset="mnist")
    assert (tmp_path / "model.keras.dataset.json").is_file()
    assert dataset_record(file) == {"name": "mnist"}
    assert DatasetSpec(**dataset_record(directory)).name == "digits"
    load_model(directory)
    for text in ("{", "[]", "{}"):
        (directory / "dataset.json").write_text(text)
        with pytest.raises(ValueError, match="record of the data"):
            dataset_record(directory)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "saved_model"])
def test_existing_models_are_kept(name, case, tmp_path):
    path = save_model(case.model, tmp_path / name)
    other = models.functional().model
    with pytest.raises(FileExistsError, match="exists: choose another path, or overwrite=True"):
        save_model(other, path)
    assert load_model(path).layers[-1].activation is keras.activations.softmax
    save_model(other, path, overwrite=True)
    assert load_model(path).layers[-1].activation is keras.activations.linear
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "There is no model at"),
        (lambda p: p.write_bytes(b""), "an empty file"),
        (lambda p: p.write_text("hello"), "no zip archive and no HDF5 file"),
        (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n junk"), "The h5 model .* cannot be opened"),
        (lambda p: p.mkdir(), "a directory without config.json"),
        (
            lambda p: (p.mkdir(), (p / "saved_model.pb").write_text("")),
            "an export without layers",
        ),
    ],
)
def test_other_files_are_refused(make, message, tmp_path):
    path = tmp_path / "model"
    make(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_model(path)


def test_failed_saving_leaves_the_old(case, tmp_path):
    path = save_model(case.model, tmp_path / "saved_model")
    with pytest.raises(RuntimeError, match="full"), replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("")
        raise RuntimeError("the disk is full")
    load_model(path)
    assert os.listdir(tmp_path) == ["saved_model"]


def test_a_reader_never_sees_half(tmp_path):
    """Who has the old file open goes on reading the old file, whole: it is replaced, not filled."""
    target = tmp_path / "target"
    target.write_text("old " * 1_000_000)
    with open(target) as reader:
        assert reader.read(4) == "old "
        with replacing(target) as temporary:
            temporary.write_text("new " * 1_000_000)
            assert target.read_text() == "old " * 1_000_000
        assert reader.read() == "old " * 999_999
    assert target.read_text() == "new " * 1_000_000


def test_killed_saving_leaves_the_old(tmp_path):
    """A process that rewrites one file again and again is killed; a whole file is left."""
    script = tmp_path / "write.py"
    script.write_text(
        "import itertools, sys\n"
        "from keras_layer_entropy.files import replacing\n"
        "for i in itertools.count():\n"
        "    with replacing(sys.argv[1]) as path:\n"
        "        path.write_text(str(i % 10) * 1_000_000)\n"
        "    print(i, flush=True)\n"
    )
    target = tmp_path / "target"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for wait in (0.0, 0.003, 0.011):
        process = subprocess.Popen(
            [sys.executable, script, target], env=environment, stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        text = target.read_text()
        assert len(text) == 1_000_000
        assert len(set(text)) == 1


def test_overwriting_never_takes_other_things_along(case, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds other things than a model"):
        save_model(case.model, tmp_path / "project", overwrite=True)
    assert (tmp_path / "project" / "thesis.txt").read_text() == "years of work"

    path = save_model(case.model, tmp_path / "m.keras", dataset="digits")
    save_model(case.model, path, overwrite=True)
    assert dataset_record(path) is None
    os.symlink(path, tmp_path / "link.keras")
    save_model(case.model, tmp_path / "link.keras", overwrite=True)
    assert (tmp_path / "link.keras").is_symlink()
    with pytest.raises(ValueError, match="expected a name, a path, a DatasetSpec"):
        save_model(case.model, tmp_path / "other.keras", dataset=["digits"])


def test_an_unknown_loss_is_left_out(case, tmp_path):
    def my_loss(y, p):
        return keras.ops.mean(p)

    case.model.compile("sgd", my_loss)
    path = save_model(case.model, tmp_path / "m.keras")
    with pytest.warns(UserWarning, match="without its loss and metrics.*my_loss"):
        assert not load_model(path).compiled


def test_h5_keeps_what_keras_loses_there(tmp_path):
    """Axes that are lists, scores named like functions, a loss called "mse", the optimizer."""
    x = keras.Input((4, 6))
    y = keras.layers.Attention(score_mode="dot")([x, keras.layers.Dense(6)(x)])
    model = keras.Model(x, keras.layers.Softmax(axis=[1, 2])(y))
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    data = np.random.default_rng(0).normal(size=(8, 4, 6)).astype("float32")
    model.fit(data, data, verbose=0)
    model.save(tmp_path / "m.h5")
    loaded = load_model(tmp_path / "m.h5")
    np.testing.assert_array_equal(loaded.predict(data, verbose=0), model.predict(data, verbose=0))
    assert loaded.evaluate(data, data, verbose=0) == pytest.approx(
        model.evaluate(data, data, verbose=0), rel=1e-6
    )
    for each in (model, loaded):
        each.train_on_batch(data, data)
    for mine, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)  # the same step from the same state


def test_what_is_doubtful_is_said(case, tmp_path):
    layer = case.model.layers[-1]
    layer.bias.assign(np.full(layer.bias.shape, np.nan))
    case.model.compile("adam", "sparse_categorical_crossentropy")
    save_model(case.model, tmp_path / "model")
    metadata = json.loads((tmp_path / "model" / "metadata.json").read_text())
    (tmp_path / "model" / "metadata.json").write_text(
        json.dumps(metadata | {"keras_version": "99.1.0"})
    )
    with (
        pytest.warns(UserWarning, match=f"NaN or infinite: .*{layer.name}/bias"),
        pytest.warns(UserWarning, match=r"saved by Keras 99\.1\.0, this is Keras"),
    ):
        load_model(tmp_path / "model")


def test_missing_state_of_the_optimizer_is_said(case, tmp_path):
    case.model.compile("adam", "sparse_categorical_crossentropy")
    case.model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file["optimizer_weights"]
    with pytest.warns(UserWarning, match="starts without its state"):
        assert load_model(tmp_path / "m.h5").compiled


def test_checksums_are_inside_and_go_with_what_they_sum(case, tmp_path):
    """Who writes the model anew with Keras alone leaves no stale checksum behind."""
    path = save_model(case.model, tmp_path / "m.h5")
    layer = case.model.layers[-1]
    layer.bias.assign(layer.bias + 1)
    case.model.save(path)
    np.testing.assert_array_equal(load_model(path).layers[-1].bias, layer.bias)

    path = save_model(case.model, tmp_path / "model")
    with h5py.File(path / "model.weights.h5", "r+") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
        file[names[0]][...] = file[names[0]][...] + 1
    with pytest.raises(ValueError, match="weights are damaged"):
        load_model(path)

    path = save_model(case.model, tmp_path / "other")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"relu"', '"selu"'))
    with pytest.raises(ValueError, match="config.json was changed since the model was saved"):
        load_model(path)


def test_weights_alone_are_named(case, tmp_path):
    case.model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match="weights only, no layers. Save the whole model"):
        load_model(tmp_path / "m.weights.h5")


def test_custom_objects(tmp_path):
    class Scale(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    model = keras.Sequential([keras.Input((3,)), Scale()])
    save_model(model, tmp_path / "m.keras")
    with pytest.raises(ValueError, match="Scale, which is not one of Keras's.*custom objects"):
        load_model(tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras", custom_objects={"Scale": Scale})
    np.testing.assert_array_equal(loaded.predict(np.ones((1, 3)), verbose=0), np.full((1, 3), 2))


def test_saving_leaves_the_model_as_it_was(case, tmp_path):
    """Keras forgets the optimizer of a model that it wrote to an .h5 file."""
    case.model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    save_model(case.model, tmp_path / "m.h5")
    loaded = load_model(save_model(case.model, tmp_path / "m.keras"))
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.02)


def test_stateful_layers_open(tmp_path):
    inputs = keras.Input(batch_shape=(2, 3, 4))
    model = keras.Model(inputs, keras.layers.LSTM(5, stateful=True)(inputs))
    for name in ("m.keras", "m.h5"):
        loaded = load_model(save_model(model, tmp_path / name))
        x = np.ones((2, 3, 4), "float32")
        np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
        model.layers[1].reset_state()
