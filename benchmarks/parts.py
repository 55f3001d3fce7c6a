"""Which units of well-known networks can go, and that what is left is exact.

    python benchmarks/parts.py
    python benchmarks/parts.py --only=ResNet50,MobileNetV2

For each network, in float64 and with statistics, scales and offsets that are random everywhere: 30
per cent of the units of every group that can be thinned go at once; the outputs, before a softmax,
are compared with those of the network in which the kernels take nothing of these units. (A
LayerNormalization over units is of what remains, so that networks with some are not exact.) Printed
are the largest difference over the spread of the outputs over samples, the same for the network
with nothing taken out, parameters, and what keeps its units.
"""

import collections
import time

import keras
import numpy as np
from absl import app, flags, logging

from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.rewrite import thinned

_ONLY = flags.DEFINE_list("only", None, "Some of the networks (default: all).")
_SHARE = flags.DEFINE_float("share", 0.3, "Share of every group that goes.")

# The smallest input of each, in pixels.
NETWORKS = {
    "VGG16": 32, "ResNet50": 32, "ResNet50V2": 32, "MobileNetV2": 32, "MobileNetV3Small": 32,
    "EfficientNetB0": 32, "DenseNet121": 32, "InceptionV3": 75, "Xception": 71, "ConvNeXtTiny": 32,
    "NASNetMobile": 32,
}  # fmt: skip


def network(name):
    """A network of `keras.applications` whose weights are all random."""
    size = NETWORKS[name]
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        input_shape=(size, size, 3), weights=None, classes=10, classifier_activation=None
    )
    random = np.random.default_rng(0)
    normalisations = [
        layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in normalisations:
        layer.momentum = 0.0  # statistics are those of one batch, so that no signal dies
    model(random.normal(size=(16, size, size, 3)), training=True)
    for variable in model.variables:
        if len(variable.shape) == 1:
            value, factor = np.array(variable), random.uniform(0.7, 1.3, variable.shape)
            offset = random.uniform(-0.3, 0.3, variable.shape) if (value == 0).all() else 0.0
            variable.assign(value * factor + offset)
    return model


def groups_of(channels):
    """`(groups, reasons)`: lists of units that may go, one for each group; reason -> how often."""
    groups, reasons = {}, collections.Counter()
    for path in channels.makers:
        frozen = channels.reasons(path)
        roots = np.unique(
            [root for i, root in enumerate(channels.roots(path).tolist()) if i not in frozen]
        )
        if len(roots):
            groups.setdefault(roots[0], roots)
        if frozen:
            reasons[f"{path}: {next(iter(frozen.values()))}"] += 1
    return list(groups.values()), reasons


def take_nothing(channels, gone):
    """Zeroes, in the model that was looked at, what kernels take of some units."""
    for part in channels.slices:
        if part.variable.path.endswith("kernel") and not part.makes:
            value = np.moveaxis(np.array(part.variable), part.axis, 0)
            value[np.isin(channels.ties.roots(part.ids), gone)] = 0.0
            part.variable.assign(np.moveaxis(value, 0, part.axis))


def study(name):
    """Prints a line for a network."""
    model = network(name)
    start = time.perf_counter()
    channels = find_channels(model)
    found = time.perf_counter() - start
    groups, reasons = groups_of(channels)
    random = np.random.default_rng(1)
    gone = [random.permutation(units)[: int(len(units) * _SHARE.value)] for units in groups]
    gone = np.unique(np.concatenate(gone))
    smaller = thinned(model, channels, gone)
    x = random.normal(size=(4, *model.input_shape[1:]))
    whole, left = np.asarray(model(x)), np.asarray(smaller(x))
    take_nothing(channels, gone)
    expected = np.asarray(model(x))
    spread = expected.std(axis=0).mean()
    cells = (
        f"{len(groups)}", f"{found:.1f}",
        f"{smaller.count_params() / model.count_params():.2f}",
        f"{np.abs(left - expected).max() / spread:.0e}",
        f"{np.abs(whole - expected).max() / spread:.0e}",
    )  # fmt: skip
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return reasons


def main(argv):
    """Prints a table, and below it what keeps its units."""
    del argv
    logging.set_verbosity(logging.ERROR)
    keras.config.set_floatx("float64")
    print("| network | groups | s to find | parameters left | difference | control |")
    print("|---|---|---|---|---|---|", flush=True)
    told = {name: study(name) for name in _ONLY.value or NETWORKS}
    for name, reasons in told.items():
        for reason in reasons:
            print(f"{name}: {reason}")


if __name__ == "__main__":
    app.run(main)
