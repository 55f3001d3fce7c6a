"""Which criterion chooses layers best, and what refitting is worth: test accuracy as layers go.

    python benchmarks/criteria.py --config=configs/criteria.py:mnist_128 --seeds=5

For each seed a network is trained; then layers go one by one, chosen by each criterion, with the
closed-form refit and no retraining; the choice of `linearity` also with other ways to close the
gap (multiplying the kernels of neighbours; deleting and keeping the weights), and with retraining
after each removal, against networks of the same depth trained from scratch for as many epochs in
total. Prints mean and standard deviation of test accuracy over the seeds, in per cent. The test
data choose nothing.
"""

import dataclasses
import functools
import math
import multiprocessing
import time

import keras
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from keras_layer_entropy import analyze_model
from keras_layer_entropy.datasets import DatasetSpec, load_parts
from keras_layer_entropy.pruning import CRITERIA, PruningOptions, prune_model, remove_layer
from keras_layer_entropy.pruning.criteria import Situation, rank
from keras_layer_entropy.pruning.layer_parts import removable_layers
from keras_layer_entropy.pruning.shuffling import Shuffled
from keras_layer_entropy.pruning.surgery import take_out

_CONFIG = config_flags.DEFINE_config_file("config", "configs/criteria.py:digits")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds.", lower_bound=1)
_CRITERIA = flags.DEFINE_list("criteria", list(CRITERIA), "Criteria to compare.")


def build(config, hidden):
    """Convolutions if there are any, `hidden` Dense layers, ten classes; compiled."""
    layers = []
    for filters in config.convolutions:
        layers += [keras.layers.Conv2D(filters, 3, padding="same", activation="relu")]
        layers += [keras.layers.MaxPooling2D()]
    layers += [keras.layers.Flatten()] if layers else []
    layers += [
        keras.layers.Dense(config.units, "relu", kernel_initializer="he_normal", name=f"hidden_{i}")
        for i in range(hidden)
    ]
    shape = (32, 32, 3) if config.convolutions else (64 if config.dataset == "digits" else 784,)
    model = keras.Sequential(
        [keras.Input(shape), *layers, keras.layers.Dense(10, "softmax", name="output")]
    )
    model.compile(
        keras.optimizers.Adam(config.learning_rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=not config.convolutions,  # XLA pays for Dense layers on a CPU
    )
    return model


def fit(model, data, config, seed, epochs):
    """Trains a model."""
    model.fit(Shuffled(data, config.batch_size, seed), epochs=epochs, verbose=0)


def accuracy(model, data):
    """Accuracy in per cent, without tracing a new function for every network."""
    x, y = data
    parts = range(0, len(x), 1000)
    predicted = [np.argmax(model(x[i : i + 1000], training=False), axis=-1) for i in parts]
    return 100 * float(np.mean(np.concatenate(predicted) == y))


@dataclasses.dataclass
class Data:
    """The parts, as arrays, and the part of the training data that regressions read."""

    train: tuple
    validation: tuple
    test: tuple
    calibration: tuple


def load(config, seed):
    """The data with a training and validation part that depend on the seed."""
    shape = (32, 32, 3) if config.convolutions else (64 if config.dataset == "digits" else 784,)
    parts = load_parts(DatasetSpec(config.dataset, shape=shape))
    train, validation, test = (p.arrays for p in (parts.train, parts.validation, parts.test))
    rows = np.random.default_rng(seed).permutation(len(train[0]))[: config.calibration]
    return Data(train, validation, test, (train[0][rows], train[1][rows]))


def choose(criterion, student, teacher, data, config, seed):
    """The layer that a criterion takes out first, however little it likes it."""
    profile = analyze_model(
        student, data.validation, measures=("activation_entropy", "state_entropy"), verbose=0
    )
    parts, _ = removable_layers(student)
    situation = Situation(
        student, teacher, profile, data.calibration, data.validation,
        tolerance=math.inf, seed=seed,
    )  # fmt: skip
    return next(iter(rank(criterion, situation, parts.values()))).path


def without_training(criterion, model, data, config, seed):
    """`(accuracies, layers)` as layers go, refitted to the original network."""
    student, found, order = model, [], []
    for step in range(config.removals):
        layer = choose(criterion, student, model, data, config, seed + step)
        student, _ = take_out(student, model, [layer], data.calibration)
        order.append(layer)
        found.append(accuracy(student, data.test))
    return found, order


def merged(model, layer):
    """The network without a layer whose kernel is multiplied into the next one's."""
    names = [part.name for part in model.layers]
    after = names[names.index(layer) + 1]
    first, second = model.get_layer(layer), model.get_layer(after)
    kernel = np.asarray(first.kernel) @ np.asarray(second.kernel)
    bias = np.asarray(first.bias) @ np.asarray(second.kernel) + np.asarray(second.bias)
    smaller = remove_layer(model, layer)
    smaller.get_layer(after).kernel.assign(kernel)
    smaller.get_layer(after).bias.assign(bias)
    return smaller


def closing_the_gap(close, *, model, order, data):
    """Accuracies as the layers in `order` go, closed by `close(model, layer)`."""
    found = []
    for layer in order:
        model = close(model, layer)
        found.append(accuracy(model, data.test))
    return found


def with_training(criterion, model, data, config, seed):
    """Accuracies as `prune_model` takes layers out and trains after each."""
    found = []
    prune_model(
        model,
        data.train,
        data.validation,
        PruningOptions(
            criterion=criterion,
            tolerance=1e9,
            max_drop=1.0,
            max_removals=config.removals,
            epochs=config.retraining,
            batch_size=config.batch_size,
            seed=seed,
        ),
        on_step=lambda smaller, _: found.append(accuracy(smaller, data.test)),
    )
    return found


def from_scratch(data, config, seed, removed):
    """Accuracy of a network of that depth, trained for as many epochs in total."""
    model = build(config, config.hidden - removed)
    fit(model, data.train, config, seed, config.epochs + removed * config.retraining)
    return accuracy(model, data.test)


def measure(config, seed, criteria):
    """Everything for one seed: what was done -> accuracies as layers go."""
    rows = {}

    def add(name, values, note=""):
        rows[name] = values
        print(f"# {name}: {np.round(values, 2).tolist()} {note}", flush=True)

    started = time.perf_counter()
    data = load(config, seed)
    keras.utils.set_random_seed(seed)
    model = build(config, config.hidden)
    fit(model, data.train, config, seed, config.epochs)
    add("original", [accuracy(model, data.test)] * config.removals)
    orders = {}
    for criterion in criteria:
        found, orders[criterion] = without_training(criterion, model, data, config, seed)
        add(f"{criterion}, refit", found, orders[criterion])
    order = orders["linearity"]
    # The first hidden layer takes inputs of another width: there is no kernel to keep.
    known = order[: order.index("hidden_0")] if "hidden_0" in order else order
    rest = [math.nan] * (len(order) - len(known))
    gap = functools.partial(closing_the_gap, model=model, data=data)
    add("linearity, kernels merged", gap(merged, order=order))
    add("linearity, deleted and weights kept", gap(remove_layer, order=known) + rest)
    for criterion in config.retrained:
        found = with_training(criterion, model, data, config, seed)
        add(f"{criterion}, refit and {config.retraining} epochs each", found)
    scratch = [math.nan] * config.removals
    for removed in config.scratch:
        scratch[removed - 1] = from_scratch(data, config, seed, removed)
    add("trained from scratch", scratch)
    print(f"# seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    return rows


def run(config, seeds, criteria):
    """Measures seed after seed; prints a table after each."""
    rows = {}
    # Each seed in a process of its own: what TensorFlow compiled for it goes with it.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for seed in range(seeds):
            for name, values in pool.apply(measure, (config, seed, criteria)).items():
                rows.setdefault(name, []).append(values)
            print_table(config, rows)


def print_table(config, rows):
    """Mean and standard deviation over the seeds so far."""
    seeds = len(rows["original"])
    print(f"\n{config.name}, {seeds} seeds, test accuracy in per cent, mean ± s.d.\n")
    print("| layers removed |" + "|".join(f" {n + 1} " for n in range(config.removals)) + "|")
    print("|---|" + "---|" * config.removals)
    for name, values in rows.items():
        means, deviations = np.mean(values, axis=0), np.std(values, axis=0)
        cells = [
            "" if math.isnan(m) else f"{m:.1f} ± {d:.1f}"
            for m, d in zip(means, deviations, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main(argv):
    """Measures and prints."""
    del argv
    criteria = list(dict.fromkeys(["linearity", *_CRITERIA.value]))
    run(ml_collections.FrozenConfigDict(_CONFIG.value), _SEEDS.value, criteria)


if __name__ == "__main__":
    app.run(main)
