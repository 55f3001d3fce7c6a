"""Accuracy as units go: chosen and refitted in several ways, without training and with a little.

    python benchmarks/units.py --only=lenet
    python benchmarks/units.py --only=lenet5
    python benchmarks/units.py --only=resnet --model=ResNet56.json
    python benchmarks/units.py --only=train --model=ResNet56.json
    python benchmarks/units.py --only=latency --model=ResNet56.json
    python benchmarks/units.py --only=passes --model=ResNet56.json

`lenet` trains LeNet-300-100 on MNIST, a network for each seed, and takes the same share of both
hidden layers; `lenet5` does so with both convolutions of a small CNN. `resnet` takes the same share
of the first convolution of each block of a network for CIFAR-10 that lies on disk, whose inputs are
images divided by 255, minus the mean image of the training data; seeds are calibration subsets. All
is scored on the whole test part, beside the network itself: printed are points lost, mean (minimum
to maximum) over the seeds.

"alone" is without any repair, "refit" the closed form of `remove_units`, and "by cost" what
`choose_units` makes of the same layers for the same operations, with shares of its own.

`train` takes half of the operations out of the network of `resnet`, wherever that costs least, and
trains what is left for a few epochs, on the labels and on what the network itself says of the same
images (distillation, https://arxiv.org/abs/1503.02531).

`latency` measures how long that network takes as it is, thinned and simplified, for some batch
sizes, without and with XLA: all of them in turn, as ratios to the network itself in the same round.

`passes` counts what choosing and refitting takes, in passes over the calibration data: samples that
calls of the network are made on, over the number of calls, and samples whose products are summed,
over the number of layers of which they are.
"""

import collections
import functools
import time
import warnings
from unittest import mock

import cifar10
import keras
import numpy as np
from absl import app, flags, logging

from keras_layer_entropy import choose_units, load_model, remove_units, simplify_model
from keras_layer_entropy.datasets import DatasetSpec, load_parts
from keras_layer_entropy.pruning import patches, stretches, walking
from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.flops import count_flops
from keras_layer_entropy.pruning.unit_criteria import (
    GREEDY,
    UNIT_CRITERIA,
    UnitSituation,
    first_to_go,
)
from keras_layer_entropy.pruning.units import calibration_source
from keras_layer_entropy.pruning.walking import inputs_of

_ONLY = flags.DEFINE_list(
    "only", ["lenet"], "Some of lenet, lenet5, resnet, train, latency, passes."
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Networks, or calibration subsets.", lower_bound=1)
_MODEL = flags.DEFINE_string("model", None, "The network for CIFAR-10.")
_SHARES = flags.DEFINE_list("shares", None, "Shares that go (default: those of the tables).")
_CRITERIA = flags.DEFINE_list(
    "criteria", None, "Criteria (default: all that say something of these layers)."
)
_EPOCHS = flags.DEFINE_integer("epochs", 5, "Epochs of `train`.", lower_bound=1)


def order(criterion, model, paths, data, seed=0):
    """Path -> its units in the order in which a criterion takes them, on the network as it is."""
    channels = find_channels(model)
    inputs = inputs_of(model, calibration_source(model, data))
    situation = UnitSituation(model, channels, inputs, data, seed=seed)
    wanted = {path: len(channels.makers[path]) - 1 for path in paths}
    gone = list(first_to_go(situation, criterion, wanted))
    found = {}
    for path in paths:
        roots = channels.roots(path).tolist()  # of these layers each unit is alone
        found[path] = [roots.index(unit) for unit in gone if unit in roots]
    return found


def first(found, share):
    """Path -> the first units of an order, which is of all units but one, a share of all."""
    return {path: units[: round(share * (len(units) + 1))] for path, units in found.items()}


def by_cost(model, units, data):
    """The model with as few operations as without these, where that costs least in their layers."""
    flops = count_flops(remove_units(model, units)).total / count_flops(model).total
    plan = choose_units(model, data, target={"flops": flops}, layers=list(units))
    return remove_units(model, plan, data)


def ways_of(criterion, model, paths, data, seed):
    """Way -> `f(share)`, the model with a share of some layers taken out in that way."""
    found = order(criterion, model, paths, data, seed)
    ways = {
        "alone": lambda share: remove_units(model, first(found, share)),
        "refit": lambda share: remove_units(model, first(found, share), data),
    }
    if criterion == GREEDY:  # in `remove_units` it chooses layer by layer, as the refit goes on
        ways["refit"] = lambda share: remove_units(model, dict.fromkeys(paths, share), data)
        ways["refit, by cost"] = lambda share: by_cost(model, first(found, share), data)
    return ways


def lenet(seed, train):
    """A trained LeNet-300-100."""
    keras.utils.set_random_seed(seed)
    dense = keras.layers.Dense
    model = keras.Sequential([
        keras.Input((784,)), dense(300, "relu", name="first"), dense(100, "relu", name="second"),
        dense(10, "softmax", name="output"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=True)
    model.fit(*train, batch_size=128, epochs=10, verbose=0)
    return model


def lenet5(seed, train):
    """A trained network of the style of LeNet-5."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((28, 28, 1)),
        layers.Conv2D(6, 5, padding="same", activation="relu", name="first"), layers.MaxPooling2D(),
        layers.Conv2D(16, 5, activation="relu", name="second"), layers.MaxPooling2D(),
        layers.Flatten(), layers.Dense(120, "relu"), layers.Dense(84, "relu"),
        layers.Dense(10, "softmax"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*train, batch_size=128, epochs=6, verbose=0)
    return model


def inner_layers(model):
    """The layers whose units nothing else is tied to."""
    channels, groups = find_channels(model), {}
    for path in channels.makers:
        groups.setdefault(channels.roots(path)[0], []).append(path)
    return [x[0] for x in groups.values() if len(x) == 1 and not channels.reasons(x[0])]


def study(title, networks, shares, criteria):
    """Prints a table; `networks` gives (model, paths, calibration data, test data)."""
    lost, whole = {}, []
    for seed, (model, paths, data, test) in enumerate(networks):
        whole.append(cifar10.accuracy(model, *test))
        for criterion in criteria:
            for how, smaller in ways_of(criterion, model, paths, data, seed).items():
                row = [whole[-1] - cifar10.accuracy(smaller(share), *test) for share in shares]
                print(f"# {seed}, {criterion}, {how}: {np.round(row, 2).tolist()}", flush=True)
                lost.setdefault(f"{criterion}, {how}", []).append(row)
    print(f"\n{title}: {np.mean(whole):.2f} % right")
    print("\n| points lost | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    print("|---" * (len(shares) + 1) + "|")
    for way, rows in lost.items():
        columns = np.transpose(rows)
        cells = [f"{np.mean(x):.2f} ({np.min(x):.2f} to {np.max(x):.2f})" for x in columns]
        print(f"| {way} | " + " | ".join(cells) + " |", flush=True)


def of_mnist(shape, train):
    """Networks with their layers, and 1,000 training images for each."""
    parts = load_parts(DatasetSpec("mnist", shape=shape))
    (x, y), test = parts.train.arrays, parts.test.arrays
    for seed in range(_SEEDS.value):
        rows = cifar10.calibration_rows(x, seed, 1000)
        yield train(seed, (x, y)), ["first", "second"], (x[rows], y[rows]), test


def resnets():
    """One network, and 500 training images for each seed."""
    x, y, xt, yt = cifar10.arrays()
    mean = x.mean(axis=0)
    model = load_model(_MODEL.value)
    for seed in range(_SEEDS.value):
        rows = cifar10.calibration_rows(x, seed)
        yield model, inner_layers(model), (x[rows] - mean, y[rows]), (xt - mean, yt)


def train():
    """Half of the operations go; prints how good the rest is, at once and after each epoch."""
    x, y, xt, yt = cifar10.arrays()
    mean = x.mean(axis=0)
    model = load_model(_MODEL.value)
    some = x[cifar10.calibration_rows(x, 0)] - mean
    smaller = remove_units(model, choose_units(model, some, target={"flops": 0.5}), some)
    left = count_flops(smaller).total / count_flops(model).total
    print(f"\nResNet, CIFAR-10, {left:.1%} of the operations left")
    cifar10.retrain(model, smaller, (x, y), (xt, yt), _EPOCHS.value)


def latency():
    """Prints how long networks take, as ratios to the whole one in the same round."""
    import tensorflow as tf

    x, *_ = cifar10.arrays()
    some = x[cifar10.calibration_rows(x, 0)] - x.mean(axis=0)
    model = load_model(_MODEL.value)
    # Nothing is refitted: how long a network takes does not depend on that.
    paths = inner_layers(model)
    half = remove_units(model, first(order("magnitude", model, paths, some), 0.5))
    cut = {
        size: remove_units(
            model, choose_units(model, some, target={"flops": 0.5}, multiple_of=size)
        )
        for size in (1, 8)
    }
    networks = {
        "the network itself": model,
        "simplified": simplify_model(model),
        "half of each block's inner channels": half,
        "the same, simplified": simplify_model(half),
        "half of the FLOPs, by cost, simplified": simplify_model(cut[1]),
        "the same in multiples of 8, simplified": simplify_model(cut[8]),
    }
    settings = [(size, jit) for size in (256, 1) for jit in (False, True)]
    columns = []
    for size, jit in settings:
        images = tf.constant(some[:size])
        calls = [
            tf.function(lambda z, network=network: network(z, training=False), jit_compile=jit)
            for network in networks.values()
        ]
        rounds, end = [], None
        while end is None or (time.perf_counter() < end and len(rounds) < 200):
            row = []
            for call in calls:
                start = time.perf_counter()
                call(images).numpy()
                row.append(time.perf_counter() - start)
            rounds.append(row)
            end = end or time.perf_counter() + 30  # after the first round, which compiles
        columns.append(np.array(rounds[1:]))
    heads = [
        f"batch {size}{', XLA' * jit}, {len(seconds)} rounds"
        for (size, jit), seconds in zip(settings, columns, strict=True)
    ]
    print(f"\n| | FLOPs | parameters | {' | '.join(heads)} |")
    print("|---" * (3 + len(heads)) + "|")
    for i, (name, network) in enumerate(networks.items()):
        flops = count_flops(network).total / count_flops(model).total
        parameters = network.count_params() / model.count_params()
        ratios = [seconds[:, i] / seconds[:, 0] for seconds in columns]
        cells = [f"{np.median(r):.2f} ({np.min(r):.2f} to {np.max(r):.2f})" for r in ratios]
        if network is model:
            cells = [f"{1000 * np.median(seconds[:, 0]):.0f} ms" for seconds in columns]
        print(f"| {name} | {flops:.2f} | {parameters:.2f} | {' | '.join(cells)} |", flush=True)


def passes():
    """Prints how many passes over the calibration data a run without training takes."""
    x, *_ = cifar10.arrays()
    some = x[cifar10.calibration_rows(x, 0)] - x.mean(axis=0)
    model, plans = load_model(_MODEL.value), []
    calls = len(walking.flat_graph(model).calls)
    print(f"\nResNet, CIFAR-10, {len(some)} samples, half of the operations go\n")
    print("| passes over the calibration data | activations | products |\n|---|---|---|")
    for what, do in (
        ("choose_units", lambda: plans.append(choose_units(model, some, target={"flops": 0.5}))),
        ("remove_units", lambda: remove_units(model, plans[0], some)),
    ):
        samples, layers = collections.Counter(), set()

        def called(function, call, values, *rest, samples=samples):
            samples["calls"] += len(values[0])
            return function(call, values, *rest)

        def computed(function, layer, values, *rest, samples=samples):
            samples["calls"] += len(values)
            return function(layer, values, *rest)

        def summed(function, layer, values, *rest, samples=samples, layers=layers, **options):
            samples["rows"] += len(values)
            layers.add(layer)
            return function(layer, values, *rest, **options)

        with (
            mock.patch.object(walking, "run", functools.partial(called, walking.run)),
            mock.patch.object(stretches, "run", functools.partial(called, stretches.run)),
            mock.patch.object(stretches, "_OFTEN", 0),  # what is traced is called once
            mock.patch.object(
                patches, "before_activation", functools.partial(computed, patches.before_activation)
            ),
            mock.patch.object(patches, "rows", functools.partial(summed, patches.rows)),
        ):
            do()
        made = samples["calls"] / (calls * len(some))
        products = samples["rows"] / (len(layers) * len(some))
        print(f"| {what} | {made:.1f} | {products:.1f} |", flush=True)


def main(argv):
    """Runs the studies that were asked for."""
    del argv
    logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", "Without calibration_data=")
    if _MODEL.value is None and not {"lenet", "lenet5"}.issuperset(_ONLY.value):
        raise app.UsageError("All but lenet and lenet5 needs --model, a network for CIFAR-10.")
    own = _SHARES.value and [float(share) for share in _SHARES.value]
    every = [GREEDY, *UNIT_CRITERIA]
    mlp = [GREEDY, *(name for name in UNIT_CRITERIA if name != "feature_entropy")]  # of maps
    if "lenet" in _ONLY.value:
        shares, networks = own or [0.5, 0.6, 0.7, 0.8, 0.9], of_mnist((784,), lenet)
        study("LeNet-300-100, MNIST", networks, shares, _CRITERIA.value or mlp)
    if "lenet5" in _ONLY.value:
        networks = of_mnist((28, 28, 1), lenet5)
        study("LeNet-5, MNIST", networks, own or [0.25, 0.5, 0.75], _CRITERIA.value or every)
    if "train" in _ONLY.value:
        train()
    if "latency" in _ONLY.value:
        latency()
    if "passes" in _ONLY.value:
        passes()
    if "resnet" in _ONLY.value:
        study("ResNet, CIFAR-10", resnets(), own or [0.25, 0.5, 0.75], _CRITERIA.value or every)


if __name__ == "__main__":
    app.run(main)
