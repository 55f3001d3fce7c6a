"""What the examples share: networks from a config, their data and training, tables of results."""

import json
import pathlib

import keras
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from keras_layer_entropy import EntropyMonitor
from keras_layer_entropy.datasets import DatasetSpec, load_parts
from keras_layer_entropy.files import replacing
from keras_layer_entropy.pruning.shuffling import Shuffled


def main(run, config, workdir):
    """Runs an example's `run(config, workdir, overwrite)` with what the flags say."""
    config = config_flags.DEFINE_config_file("config", config)
    workdir = flags.DEFINE_string("workdir", workdir, "Folder for the results.")
    overwrite = flags.DEFINE_boolean("overwrite", False, "Replace earlier results there.")

    def parsed(argv):
        if len(argv) > 1:
            raise app.UsageError(f"Unknown arguments {argv[1:]}.")
        logging.set_verbosity(logging.ERROR)  # TensorFlow tells of every network that is new
        run(config.value, workdir.value, overwrite.value)

    app.run(parsed)


def new_folder(workdir, overwrite):
    """The folder for results, made; FileExistsError where it holds some and may not be written."""
    folder = pathlib.Path(workdir)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds results: choose another --workdir or --overwrite.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load(config):
    """The training, validation and test part of the data, as `datasets.Parts`."""
    return load_parts(DatasetSpec(config.dataset, shape=tuple(config.shape)))


def build(config, hidden):
    """Convolutions, each with pooling, and `hidden` Dense layers: a compiled classifier.

    Args:
        config: shape, convolutions, kernel_size, activation, optimizer, learning_rate.
        hidden: units of each Dense layer but the output.
    """
    layers = [keras.Input(tuple(config.shape))]
    for i, filters in enumerate(config.convolutions, start=1):
        layers += [
            keras.layers.Conv2D(
                filters, config.kernel_size, padding="same", activation="relu", name=f"conv_{i}"
            ),
            keras.layers.MaxPooling2D(name=f"pool_{i}"),
        ]
    layers.append(keras.layers.Flatten(name="flatten"))
    layers += [
        keras.layers.Dense(units, config.activation, name=f"dense_{i}")
        for i, units in enumerate(hidden, start=1)
    ]
    layers.append(keras.layers.Dense(config.classes, "softmax", name="output"))
    model = keras.Sequential(layers)
    optimizer = keras.optimizers.get(config.optimizer)
    optimizer.learning_rate = config.learning_rate
    model.compile(
        optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"],
        jit_compile=not config.convolutions,  # XLA pays for Dense layers on a CPU
    )  # fmt: skip
    return model


def train(model, data, config, seed, epochs=None, y=None, callbacks=()):
    """Trains and watches a model; the `EntropyMonitor`.

    Args:
        data: `datasets.Parts`.
        seed: seed of the order of the images.
        epochs: number of epochs, None for `config.epochs`.
        y: other labels for the training images.
    """
    x, labels = data.train.arrays
    monitor = EntropyMonitor()
    model.fit(
        Shuffled((x, labels if y is None else y), config.batch_size, seed),
        validation_data=data.validation.arrays,
        epochs=config.epochs if epochs is None else epochs,
        verbose=0,
        callbacks=[monitor, *callbacks],
    )
    return monitor


def accuracy(model, data):
    """Share of the samples of `(x, y)` that are classified right."""
    x, y = data
    return float(np.mean(model.predict(x, batch_size=500, verbose=0).argmax(axis=-1) == y))


def mean_sd(values, digits=4):
    """Mean ± standard deviation (of the sample), as text; `-` for no values."""
    if not values:
        return "-"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def markdown(header, rows):
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write(folder, records, text):
    """Leaves results.json and results.md, and prints the second."""
    for name, content in (("results.json", json.dumps(records, indent=1)), ("results.md", text)):
        with replacing(folder / name) as temporary:
            temporary.write_text(content + "\n")
    print(text)


def draw(folder, name, figure):
    """Writes a figure as PNG."""
    with replacing(folder / name) as temporary:
        figure.savefig(temporary, dpi=110)
