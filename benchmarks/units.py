"""Accuracy as units go: chosen and refitted in several ways, without training.

    python benchmarks/units.py --only=lenet
    python benchmarks/units.py --only=resnet --model=ResNet56.json

`lenet` trains LeNet-300-100 on MNIST, a network for each seed, and takes the same share of both
hidden layers. `resnet` takes the same share of the first convolution of each block of a network for
CIFAR-10 that lies on disk, whose inputs are images divided by 255, minus the mean image of the
training data; seeds are calibration subsets. All is scored on the whole test part, beside the
network itself: printed are points lost, mean (minimum to maximum) over the seeds.

"alone" is without any repair, "refit" the closed form of `remove_units`, and "by cost" what
`choose_units` makes of the same layers for the same operations, with shares of its own.
"""

import time
import warnings

import keras
import numpy as np
from absl import app, flags, logging

from keras_layer_entropy import choose_units, load_model, remove_units
from keras_layer_entropy.datasets import DatasetSpec, load_parts
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

_ONLY = flags.DEFINE_list("only", ["lenet"], "Some of lenet, resnet.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Networks, or calibration subsets.", lower_bound=1)
_MODEL = flags.DEFINE_string("model", None, "The network of `resnet`.")
_SHARES = flags.DEFINE_list("shares", None, "Shares that go (default: those of the tables).")
_CRITERIA = flags.DEFINE_list(
    "criteria", None, "Criteria (default: all that say something of these layers)."
)
BY_COST = "reconstruction, refit, by cost"


def accuracy(model, x, y):
    """Per cent that a model has right."""
    return 100 * np.mean(model.predict(x, batch_size=500, verbose=0).argmax(axis=1) == y)


def indices(criterion, model, paths, share, data):
    """Path -> indices of the units that a criterion takes, on the network as it is."""
    channels = find_channels(model)
    source = calibration_source(model, data)
    situation = UnitSituation(model, channels, inputs_of(model, source), data)
    wanted = {path: round(share * len(channels.makers[path])) for path in paths}
    gone = list(first_to_go(situation, criterion, wanted))
    return {path: np.flatnonzero(np.isin(channels.roots(path), gone)).tolist() for path in paths}


def thinned(way, model, paths, share, data):
    """The model with a share of some layers taken out in one of the ways."""
    criterion, *rest = way.split(", ")
    if rest == ["alone"]:
        return remove_units(model, indices(criterion, model, paths, share, data))
    if way == BY_COST:
        alike = remove_units(model, indices("magnitude", model, paths, share, data))
        flops = count_flops(alike).total / count_flops(model).total
        return remove_units(
            model, choose_units(model, data, target={"flops": flops}, layers=paths), data
        )
    return remove_units(model, dict.fromkeys(paths, share), data, criterion=criterion)


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


def inner_layers(model):
    """The layers whose units nothing else is tied to."""
    channels, groups = find_channels(model), {}
    for path in channels.makers:
        groups.setdefault(channels.roots(path)[0], []).append(path)
    return [x[0] for x in groups.values() if len(x) == 1 and not channels.reasons(x[0])]


def study(title, networks, shares, criteria):
    """Prints a table; `networks` gives (model, paths, calibration data, test data)."""
    ways = [f"{name}, {how}" for name in criteria for how in ("alone", "refit")]
    ways += [BY_COST] if GREEDY in criteria else []
    lost, whole = {(way, share): [] for way in ways for share in shares}, []
    seconds = []
    for model, paths, data, test in networks:
        whole.append(accuracy(model, *test))
        for (way, share), points in lost.items():
            start = time.perf_counter()
            smaller = thinned(way, model, paths, share, data)
            if way == f"{GREEDY}, refit":
                seconds.append(time.perf_counter() - start)
            points.append(whole[-1] - accuracy(smaller, *test))
    print(
        f"\n{title}: {np.mean(whole):.2f} % right; reconstruction with its refit takes "
        f"{np.median(seconds or [np.nan]):.1f} s"
    )
    print("\n| points lost | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    print("|---" * (len(shares) + 1) + "|")
    for way in ways:
        cells = [
            f"{np.mean(x):.2f} ({np.min(x):.2f} to {np.max(x):.2f})"
            for x in (lost[way, share] for share in shares)
        ]
        print(f"| {way} | " + " | ".join(cells) + " |", flush=True)


def lenets():
    """Networks, and 1,000 training images for each."""
    parts = load_parts(DatasetSpec("mnist", shape=(784,)))
    (x, y), test = parts.train.arrays, parts.test.arrays
    for seed in range(_SEEDS.value):
        rows = np.random.default_rng(seed).permutation(len(x))[:1000]
        yield lenet(seed, (x, y)), ["first", "second"], (x[rows], y[rows]), test


def resnets():
    """One network, and 500 training images for each seed."""
    import tensorflow_datasets as tfds

    whole = {
        split: tfds.as_numpy(tfds.load("cifar10", split=split, batch_size=-1))
        for split in ("train", "test")
    }
    x, y = whole["train"]["image"] / np.float32(255), whole["train"]["label"]
    mean = x.mean(axis=0)
    test = whole["test"]["image"] / np.float32(255) - mean, whole["test"]["label"]
    model = load_model(_MODEL.value)
    for seed in range(_SEEDS.value):
        rows = np.random.default_rng(seed).permutation(len(x))[:500]
        yield model, inner_layers(model), (x[rows] - mean, y[rows]), test


def main(argv):
    """Runs the studies that were asked for."""
    del argv
    logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", "Without calibration_data=")
    own = _SHARES.value and [float(share) for share in _SHARES.value]
    if "lenet" in _ONLY.value:
        criteria = _CRITERIA.value or [GREEDY, *sorted(set(UNIT_CRITERIA) - {"feature_entropy"})]
        study("LeNet-300-100, MNIST", lenets(), own or [0.5, 0.6, 0.7, 0.8, 0.9], criteria)
    if "resnet" in _ONLY.value:
        if _MODEL.value is None:
            raise app.UsageError("--only=resnet needs --model, a network for CIFAR-10.")
        criteria = _CRITERIA.value or [GREEDY, *UNIT_CRITERIA]
        study("ResNet, CIFAR-10", resnets(), own or [0.25, 0.5, 0.75], criteria)


if __name__ == "__main__":
    app.run(main)
