"""Models of every kind pruned by the command line: what it reports is computed once more."""

import json

import keras
import numpy as np
import pytest
from command_lines import call

from keras_layer_entropy import load_model, save_model

pytestmark = pytest.mark.tensorflow
layers = keras.layers
PARTS = {"train": 200, "validation": 90, "test": 60}
QUICK = ("--epochs=1", "--max_relative_drop=5", "--max_removals=2")


def dense(inputs, *widths):
    x = inputs
    for number, width in enumerate(widths):
        x = layers.Dense(width, "relu", name=f"hidden_{number}")(x)
    return x


def regression(x):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2, name="out")(dense(inputs, 12, 12)))
    model.compile("adam", "mse")
    return model, x[:, :2] * x[:, 2:4]


def autoencoder(x):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(6, name="out")(dense(inputs, 12, 4, 12)))
    model.compile("adam", "mae")
    return model, x


def multi_label(x):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3, "sigmoid", name="out")(dense(inputs, 12, 12)))
    model.compile("adam", "binary_crossentropy", metrics=[keras.metrics.Recall(name="recall")])
    return model, (x[:, :3] > 0.5).astype("float32")


def two_heads(x):
    inputs = keras.Input((6,))
    hidden = dense(inputs, 12, 12)
    size, sort = layers.Dense(1, name="size"), layers.Dense(3, "softmax", name="sort")
    model = keras.Model(inputs, [size(hidden), sort(hidden)])
    losses = {"size": "mse", "sort": "sparse_categorical_crossentropy"}
    model.compile("adam", losses)
    return model, {"size": x[:, :1], "sort": np.argmax(x[:, 1:4], axis=1)}


def segmentation(x):
    inputs = keras.Input((8, 8, 1))
    maps = layers.Conv2D(6, 3, padding="same", activation="relu", name="first")(inputs)
    small = layers.Conv2D(6, 3, padding="same", activation="relu")(layers.MaxPooling2D()(maps))
    maps = layers.Concatenate()([maps, layers.UpSampling2D()(small)])
    maps = layers.Conv2D(6, 3, padding="same", activation="relu", name="second")(maps)
    model = keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax", name="out")(maps))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, (x[..., 0] > 0.3).astype(int)


def squared(y, p):
    return np.mean((p - y) ** 2)


def absolute(y, p):
    return np.mean(np.abs(p - y))


def recall(y, p):
    return np.sum((p > 0.5) * y) / np.sum(y)


def sum_of_losses(y, p):
    size, sort = p
    right = np.take_along_axis(sort, y["sort"][:, None], axis=1)
    return squared(y["size"], size) - np.mean(np.log(right))


def right_pixels(y, p):
    return np.mean(np.argmax(p, axis=-1) == y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "flags", "name", "mode", "value"),
    [
        (regression, (), "loss", "min", squared),
        (autoencoder, (), "loss", "min", absolute),
        (multi_label, ("--quality=recall", "--num_classes=1"), "recall", "max", recall),
        (two_heads, ("--quality=loss",), "loss", "min", sum_of_losses),
        (segmentation, (), "accuracy", "max", right_pixels),
    ],
)
def test_what_is_reported_is_what_it_is(make, flags, name, mode, value, tmp_path):
    keras.utils.set_random_seed(0)
    shape = (8, 8, 1) if make is segmentation else (6,)
    random, arrays, labels = np.random.default_rng(0), {}, {}
    for part, samples in PARTS.items():
        x = random.normal(size=(samples, *shape)).astype("float32")
        model, y = make(x)
        labels[part] = (x, y)
        arrays[f"x_{part}"] = x
        named = y if isinstance(y, dict) else {"": y}
        arrays |= {f"y_{part}{'.' if key else ''}{key}": a for key, a in named.items()}
    model.fit(*labels["train"], epochs=3, verbose=0)
    np.savez(tmp_path / "data.npz", **arrays)
    path = save_model(model, tmp_path / "model.keras")
    code, out, err = call("prune", "--model", path, "--dataset", tmp_path / "data.npz", *QUICK,
                          *flags)  # fmt: skip
    assert code == 0, out + err
    assert "num_classes" not in err  # or it is told what to pass, which these flags take
    record = json.loads((tmp_path / "model_pruned.pruning.json").read_text())
    smaller = load_model(tmp_path / "model_pruned.keras")
    assert smaller.count_params() < model.count_params()
    quality = record["quality"]
    assert (quality["name"], quality["mode"]) == (name, mode)
    for part in ("validation", "test"):
        x, y = labels[part]
        own = [value(y, each.predict(x, verbose=0)) for each in (model, smaller)]
        # Means of float32 over batches.
        np.testing.assert_allclose(quality[part], own, rtol=1e-4, err_msg=part)
