"""What is saved and opened again computes and trains as before, on every backend."""

import json
import os
import zipfile

import keras
import models
import numpy as np
import pytest

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


def test_saving_leaves_the_model_as_it_was(case, tmp_path):
    """Keras forgets the optimizer of a model that it wrote to an .h5 file."""
    case.model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    save_model(case.model, tmp_path / "m.h5")
    loaded = load_model(save_model(case.model, tmp_path / "m.keras"))
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.02)


def test_optimizers_as_pytorch_names_them_open_on_every_backend(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="a")])
    model.compile(keras.optimizers.AdamW(0.02, weight_decay=0.1), "mse")
    x = np.ones((4, 3), "float32")
    model.fit(x, x[:, :2], verbose=0)
    model.save(tmp_path / "plain.keras")
    with (
        zipfile.ZipFile(tmp_path / "plain.keras") as old,
        zipfile.ZipFile(tmp_path / "m.keras", "w") as new,
    ):
        parts = {name: old.read(name) for name in old.namelist()}
        config = json.loads(parts["config.json"])
        module = "keras.src.backend.torch.optimizers.torch_adamw"
        named = {"module": module, "class_name": "AdamW", "registered_name": "AdamW"}
        config["compile_config"]["optimizer"].update(named)
        parts["config.json"] = json.dumps(config)
        for name, part in parts.items():
            new.writestr(name, part)
    loaded = load_model(tmp_path / "m.keras")
    assert isinstance(loaded.optimizer, keras.optimizers.AdamW)
    for each in (model, loaded):  # the same step from the same state
        each.train_on_batch(x, x[:, :2])
    for mine, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_stateful_layers_open(tmp_path):
    inputs = keras.Input(batch_shape=(2, 3, 4))
    model = keras.Model(inputs, keras.layers.LSTM(5, stateful=True)(inputs))
    for name in ("m.keras", "m.h5"):
        loaded = load_model(save_model(model, tmp_path / name))
        x = np.ones((2, 3, 4), "float32")
        np.testing.assert_allclose(
            *map(keras.ops.convert_to_numpy, (loaded(x), model(x))), atol=1e-6
        )
        model.layers[1].reset_state()
