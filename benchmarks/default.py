"""What `prune_model` with its defaults makes of an MLP with too many layers, seed after seed.

    python benchmarks/default.py --seeds=10
    python benchmarks/default.py --seeds=10 --hidden=5 --units=96 --epochs=20

For each seed a network is trained on the digits and pruned. Prints how many of its hidden layers
went, what share of the operations is left, test accuracy before and after, steps and seconds; the
test data choose nothing. `--distill` and `--retraining` change the training after each removal,
`--max_drop` what may be lost on the validation data.
"""

import time

import keras
import numpy as np
from absl import app, flags

from keras_layer_entropy import PruningOptions, prune_model
from keras_layer_entropy.datasets import DatasetSpec, load_parts
from keras_layer_entropy.pruning.cost import cost_of, shares

_SEEDS = flags.DEFINE_integer("seeds", 10, "Number of seeds.", lower_bound=1)
_HIDDEN = flags.DEFINE_integer("hidden", 7, "Hidden layers.", lower_bound=1)
_UNITS = flags.DEFINE_integer("units", 128, "Units of each.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 12, "Epochs of training at first.", lower_bound=1)
_RETRAINING = flags.DEFINE_integer(
    "retraining", PruningOptions().epochs, "Epochs after each removal.", lower_bound=0
)
_MAX_DROP = flags.DEFINE_float(
    "max_drop", None, "Accuracy that may be lost; the default's if None."
)
_DISTILL = flags.DEFINE_boolean("distill", False, "Train for what the original gives.")


def trained(data, seed):
    """An MLP on the digits."""
    keras.utils.set_random_seed(seed)
    hidden = [
        keras.layers.Dense(_UNITS.value, "relu", kernel_initializer="he_normal", name=f"hidden_{i}")
        for i in range(_HIDDEN.value)
    ]
    model = keras.Sequential(
        [keras.Input((64,)), *hidden, keras.layers.Dense(10, "softmax", name="output")]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*data, batch_size=64, epochs=_EPOCHS.value, verbose=0)
    return model


def accuracy(model, data):
    """The share of samples whose largest output is their class."""
    x, y = data
    return float(np.mean(np.argmax(model.predict(x, verbose=0), axis=-1) == y))


def main(argv):
    """A row for each seed, and how many of them hold what is asked for."""
    del argv
    parts = load_parts(DatasetSpec("digits", shape=(64,)))
    train, validation, test = (p.arrays for p in (parts.train, parts.validation, parts.test))
    good = 0
    print("| seed | hidden layers left | FLOPs left | test before | after | | steps | s |")
    print("|---|---|---|---|---|---|---|---|")
    for seed in range(_SEEDS.value):
        model, started = trained(train, seed), time.perf_counter()
        result = prune_model(
            model, train, validation, epochs=_RETRAINING.value, distill=_DISTILL.value,
            max_drop=_MAX_DROP.value,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        left = shares(*(cost_of(each, test[0][:1]) for each in (model, result.model)))
        before, after = (accuracy(each, test) for each in (model, result.model))
        hidden = _HIDDEN.value - len(result.removed)
        good += hidden <= _HIDDEN.value / 2 and after >= before - 0.01
        print(
            f"| {seed} | {hidden} of {_HIDDEN.value} | {left['flops']:.1%} | {before:.4f} | "
            f"{after:.4f} | {after - before:+.4f} | {len(result.steps)} | {seconds:.0f} |",
            flush=True,
        )
    print(f"\nAt most half of the hidden layers left, at most 0.01 lost: {good} of {_SEEDS.value}")


if __name__ == "__main__":
    app.run(main)
