"""Which units and blocks of networks can go, and that what is left is exact.

    python benchmarks/parts.py
    python benchmarks/parts.py --only=ResNet50,MobileNetV2
    python benchmarks/parts.py --only=disk --model=ResNet56.json
    python benchmarks/parts.py --kind=blocks        # with backbones of keras-hub, if that is there

Each network in float64, with statistics, scales and offsets that are random everywhere.

*Thinned*: 30 per cent of the units of every group that can be thinned go at once; outputs, before a
softmax, are compared with those of the network in which the kernels take nothing of these units.
(Groups that a normalisation is over are left out of that comparison: it is of what remains. The
parameters are those without them.) What is left is saved, loaded, and trained for one step.

*Planted*: in every group a dead unit, a constant and a second one of another; `simplify_model`
takes them out, and the outputs are compared with those before. A group has none of them where
`simplify_model` leaves its units alone, or where it is of fewer than five; the reasons are printed.
A constant stays before a convolution that pads.

Printed are the largest differences over the spread of the outputs over samples, and beside each, as
controls, what the same is for the network with nothing taken out, and for one with the same units
taken out that nothing was planted in.

*Blocks*: how many of each form there are; one of each form goes, without data, and the outputs are
compared with those of the network run call by call, what comes into these blocks going on in place
of what comes out.
"""

import collections
import pathlib
import tempfile
import time
import warnings

import keras
import numpy as np
from absl import app, flags, logging
from keras import layers

from keras_layer_entropy import load_model, remove_blocks, save_model, simplify_model
from keras_layer_entropy.pruning import kernels
from keras_layer_entropy.pruning.block_parts import find_blocks
from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.rewrite import thinned
from keras_layer_entropy.recording.graph import flat_graph, run

_ONLY = flags.DEFINE_list("only", None, "Some of the networks (default: all but disk).")
_MODEL = flags.DEFINE_string("model", None, "The network of `disk`.")
_KIND = flags.DEFINE_enum("kind", "units", ["units", "blocks"], "What goes.")
_SHARE = flags.DEFINE_float("share", 0.3, "Share of every group that goes.")

# The smallest input of each, in pixels.
APPLICATIONS = {
    "VGG16": 32, "ResNet50": 32, "ResNet50V2": 32, "MobileNetV2": 32, "MobileNetV3Small": 32,
    "EfficientNetB0": 32, "DenseNet121": 32, "InceptionV3": 75, "Xception": 71, "ConvNeXtTiny": 32,
    "NASNetMobile": 32,
}  # fmt: skip


def lenet():
    """LeNet-5, with ReLU."""
    inputs = x = keras.Input((28, 28, 1))
    for width in (6, 16):
        x = layers.MaxPooling2D()(layers.Conv2D(width, 5, activation="relu")(x))
    x = layers.Flatten()(x)
    for width in (120, 84):
        x = layers.Dense(width, "relu")(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def autoencoder():
    """Strided convolutions to 32 numbers, and transposed ones back."""
    inputs = x = keras.Input((28, 28, 1))
    for width in (16, 32):
        x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(32, "tanh")(layers.Flatten()(x))
    x = layers.Reshape((7, 7, 16))(layers.Dense(7 * 7 * 16, "relu")(x))
    x = layers.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(1, 3, strides=2, padding="same")(x)
    return keras.Model(inputs, x)


def unet():
    """Four levels; what comes from below is concatenated with what was there before."""

    def twice(x, width):
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        return x

    inputs = x = keras.Input((32, 32, 3))
    before = []
    for width in (16, 32, 64):
        before.append(x := twice(x, width))
        x = layers.MaxPooling2D()(x)
    x = twice(x, 128)
    for skip in reversed(before):
        x = layers.Conv2DTranspose(skip.shape[-1], 2, strides=2)(x)
        x = twice(layers.Concatenate()([x, skip]), skip.shape[-1])
    return keras.Model(inputs, layers.Conv2D(2, 1)(x))


def _feed_forward(x, hidden):
    return layers.Dense(x.shape[-1])(layers.Dense(hidden, "gelu")(x))


def mixer():
    """MLP-Mixer: four blocks over the patches of an image."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Reshape((64, 32))(layers.Conv2D(32, 4, strides=4)(inputs))
    for _ in range(4):
        y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Permute((2, 1))(_feed_forward(y, 48))])
        x = layers.Add()([x, _feed_forward(layers.LayerNormalization()(x), 128)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(x))


def transformer():
    """An encoder: four blocks of attention and feed-forward, normalised before."""
    inputs = keras.Input((20, 12))
    x = layers.Dense(32)(inputs)
    for _ in range(4):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(8, 4)(y, y)])
        x = layers.Add()([x, _feed_forward(layers.LayerNormalization()(x), 128)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(x))


def disk():
    """The network of `--model`, in float64 and without its softmax."""
    model = load_model(_MODEL.value)
    weights = model.get_weights()
    model.layers[-1].activation = keras.activations.linear
    model = keras.models.model_from_json(model.to_json().replace("float32", "float64"))
    model.set_weights(weights)
    return model


def backbones():
    """Name -> function that makes a backbone of keras-hub, whose blocks are code of their own."""
    try:
        from keras_hub import models
    except ImportError:
        print("keras-hub is not installed: its backbones are left out.")
        return {}
    both = {"num_layers": 3, "hidden_dim": 16}
    text = {**both, "vocabulary_size": 30, "intermediate_dim": 32}
    heads = {"num_query_heads": 2, "num_key_value_heads": 2}
    return {
        "BERT": lambda: models.BertBackbone(**text, num_heads=2, max_sequence_length=6),
        "GPT-2": lambda: models.GPT2Backbone(**text, num_heads=2, max_sequence_length=6),
        "Llama": lambda: models.LlamaBackbone(**text, **heads),
        "ViT": lambda: models.ViTBackbone((16, 16, 3), 4, mlp_dim=32, num_heads=2, **both),
    }


BUILT = {
    "LeNet": lenet, "autoencoder": autoencoder, "U-Net": unet, "MLP-Mixer": mixer,
    "transformer": transformer, "disk": disk,
}  # fmt: skip


def network(name):
    """A network whose statistics, scales and offsets are random."""
    keras.utils.set_random_seed(0)
    if name in BUILT:
        model = BUILT[name]()
    else:
        size = APPLICATIONS[name]
        model = getattr(keras.applications, name)(
            input_shape=(size, size, 3), weights=None, classes=10, classifier_activation=None
        )
    random = np.random.default_rng(0)
    normalisations = [
        layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)
    ]
    before = [layer.momentum for layer in normalisations]
    for layer in normalisations:
        layer.momentum = 0.0  # statistics are those of one batch, so that no signal dies
    model(random.normal(size=(16, *model.input_shape[1:])), training=True)
    for layer, momentum in zip(normalisations, before, strict=True):
        layer.momentum = momentum
    for variable in model.variables:
        if len(variable.shape) == 1 and "seed" not in variable.path:
            value, factor = (
                keras.ops.convert_to_numpy(variable),
                random.uniform(0.7, 1.3, variable.shape),
            )
            offset = random.uniform(-0.3, 0.3, variable.shape) if (value == 0).all() else 0.0
            variable.assign(value * factor + offset)
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()  # it computes with copies of its statistics
        if type(layer).__name__ == "LayerScale":  # ConvNeXt's, which begin at 1e-6
            layer.gamma.assign(random.uniform(0.7, 1.3, layer.gamma.shape))
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
            value = np.moveaxis(keras.ops.convert_to_numpy(part.variable), part.axis, 0)
            value[np.isin(channels.ties.roots(part.ids), gone)] = 0.0
            part.variable.assign(np.moveaxis(value, 0, part.axis))


_PASSING = (layers.BatchNormalization, layers.PReLU)


def why_not(channels, units):
    """Why `simplify_model` takes out none of a group, or None."""
    if len(units) < 5:
        return "it is of fewer than five"

    def among(ids):
        return np.isin(channels.ties.roots(ids), units).any()

    if any(map(among, channels.together)):
        return "a normalisation is over them"
    for call in channels.graph.calls:
        reason = getattr(call.operation, "weights", ()) and kernels.obstacle(call.operation)
        bound = [part.ids for part in channels.slices if part.path == call.path]
        if reason and type(call.operation) not in _PASSING and any(map(among, bound)):
            return reason
    return None


def plant(channels, dead, constant, twins):
    """Gives units of the model that was looked at weights by which they change nothing.

    Args:
        channels: `channels.Channels`.
        dead, constant: roots of units that are to be 0, or the same for all that is given.
        twins: root -> root of the unit that it becomes the same as.
    """
    random = np.random.default_rng(2)
    operations = {call.path: call.operation for call in channels.graph.calls}
    for part in channels.slices:
        layer, name = operations[part.path], part.variable.path.split("/")[-1]
        depthwise = isinstance(layer, layers.DepthwiseConv1D | layers.DepthwiseConv2D)
        kernel = name.endswith("kernel")
        if kernel and not part.makes and not depthwise:
            continue
        value = np.moveaxis(keras.ops.convert_to_numpy(part.variable), part.axis, 0)
        roots = channels.ties.roots(part.ids)
        # Without gamma, it is the moving mean by which a normalisation of 0 is not 0.
        if (
            kernel
            or name in ("bias", "gamma", "beta")
            or (name == "moving_mean" and not layer.scale)
        ):
            value[np.isin(roots, np.concatenate([dead, constant]))] = 0.0
        if name in ("bias", "beta"):
            there = np.isin(roots, constant)
            value[there] = random.uniform(0.5, 1.0, value[there].shape)
        for twin, other in twins.items():
            value[roots == twin] = value[roots == other]
        part.variable.assign(np.moveaxis(value, 0, part.axis))


def outputs(model, x):
    """What a model gives, as an array."""
    return keras.ops.convert_to_numpy(model(x))


def apart(found, expected):
    """The largest difference over the spread over samples."""
    return f"{np.abs(found - expected).max() / expected.std(axis=0).mean():.0e}"


def can_go_on(model, x, found):
    """`yes` if it is the same once saved and loaded, and can be trained then; else what happens."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            save_model(model, pathlib.Path(folder, "m.keras"))
            again = load_model(pathlib.Path(folder, "m.keras"))
    except Exception as error:  # noqa: BLE001 - told in the table
        return f"{type(error).__name__} in saving or loading"
    if not np.allclose(outputs(again, x), found, rtol=1e-12, atol=1e-12 * found.std()):
        return "other outputs once loaded"
    again.compile("sgd", "mse", run_eagerly=True)
    before = [keras.ops.convert_to_numpy(variable) for variable in again.trainable_variables]
    loss = again.train_on_batch(x, np.zeros(found.shape))
    after = again.trainable_variables
    moved = any(
        (a != keras.ops.convert_to_numpy(b)).any() for a, b in zip(before, after, strict=True)
    )
    return "yes" if np.isfinite(loss) and moved else f"a loss of {loss}"


def study(name):
    """Prints a line for a network; why units stay, and why nothing was planted in some groups."""
    model = network(name)
    start = time.perf_counter()
    channels = find_channels(model)
    found = time.perf_counter() - start
    groups, reasons = groups_of(channels)
    random = np.random.default_rng(1)
    x = random.normal(size=(4, *model.input_shape[1:]))
    weights, whole = model.get_weights(), outputs(model, x)

    gone = [random.permutation(units)[: int(len(units) * _SHARE.value)] for units in groups]
    gone = np.unique(np.concatenate(gone))
    smaller = thinned(model, channels, gone)
    together = np.concatenate([np.zeros(0, int), *channels.together])
    exact = np.setdiff1d(gone, channels.ties.roots(together))
    left = outputs(smaller, x)
    goes_on = can_go_on(smaller, x, left)
    if len(exact) < len(gone):
        left = outputs(thinned(model, channels, exact), x)
    take_nothing(channels, exact)
    expected = outputs(model, x)
    model.set_weights(weights)

    refused = [why_not(channels, units) for units in groups]
    drawn = [random.permutation(u)[:4] for u, why in zip(groups, refused, strict=True) if not why]
    dead, constant, *pairs = np.array(drawn).T
    twins = dict(zip(np.maximum(*pairs).tolist(), np.minimum(*pairs).tolist(), strict=True))
    planted = np.unique([*dead, *constant, *twins])
    without = outputs(thinned(model, channels, planted), x)
    plant(channels, dead, constant, twins)
    before = outputs(model, x)
    simpler = simplify_model(model)
    cells = (
        f"{len(groups)}", f"{found:.1f}",
        f"{smaller.count_params() / model.count_params():.2f}",
        apart(left, expected), apart(whole, expected), goes_on,
        f"{len(planted)} in {len(drawn)}", f"{taken_out(channels, groups, simpler)}",
        apart(outputs(simpler, x), before), apart(without, whole),
    )  # fmt: skip
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    nothing = collections.Counter(why for why in refused if why)
    return [*reasons, *(f"nothing planted in {n} groups: {why}" for why, n in nothing.items())]


def taken_out(channels, groups, simpler):
    """How many units of groups are not in the simpler model, as far as their layers still are."""
    after, lost = find_channels(simpler), 0
    for units in groups:
        paths = [
            path
            for path in channels.makers.keys() & after.makers.keys()
            if np.isin(channels.roots(path), units).any()
        ]
        for sign, found in ((1, channels), (-1, after)):
            lost += sign * len({root for path in paths for root in found.roots(path).tolist()})
    return lost


def study_blocks(name, make=None):
    """Prints a line for a network; why sums and composite layers stay."""
    if make is None:
        model = network(name)
    else:
        model = make()
        model = keras.Model(model.input, keras.tree.flatten(model.output)[-1])
    random = np.random.default_rng(1)
    x = keras.tree.map_structure(lambda tensor: samples(tensor, random), model.input)
    blocks, reasons = find_blocks(model)
    forms = collections.Counter(block.form for block in blocks.values())
    chosen = []
    for form in forms:
        others = {i for block in chosen for i in block.calls}
        fitting = (b for b in blocks.values() if b.form == form and others.isdisjoint(b.calls))
        chosen += [block for block in (next(fitting, None),) if block is not None]
    whole, expected = outputs(model, x), outputs_without(model, x, chosen)
    cells = [str(forms[form]) for form in FORMS]
    if chosen:
        smaller = remove_blocks(model, [block.path for block in chosen])
        left = outputs(smaller, x)
        cells += [apart(left, expected), apart(whole, expected), can_go_on(smaller, x, left)]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return [f"{count} times: {why}" for why, count in collections.Counter(reasons.values()).items()]


FORMS = ("residual", "projection", "composite", "convolution")


def samples(tensor, random):
    """Four samples for an input: numbers of words, or anything."""
    shape = (4, *(n or 6 for n in tensor.shape[1:]))
    if "mask" in tensor.name or "segment" in tensor.name:
        return np.ones(shape, "int32") * ("mask" in tensor.name)
    integers = "int" in tensor.dtype
    return random.integers(1, 30, shape) if integers else random.normal(size=shape)


def outputs_without(model, x, blocks):
    """What a model gives where what comes into some blocks goes on in their place."""
    graph = flat_graph(model)
    given = [keras.ops.convert_to_tensor(part) for part in keras.tree.flatten(x)]
    values = dict(enumerate(given))
    instead = {block.made: block.given for block in blocks}
    for call in graph.calls:
        values.update(zip(call.outputs, run(call, [values[n] for n in call.inputs]), strict=True))
        values.update((n, values[instead[n]]) for n in call.outputs if n in instead)
    return keras.ops.convert_to_numpy(values[graph.outputs[0]])


def main(argv):
    """Prints a table, and below it what keeps its units, or what is no block."""
    del argv
    logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", "Without calibration_data=")
    keras.config.set_floatx("float64")
    names = _ONLY.value or [name for name in (*BUILT, *APPLICATIONS) if name != "disk"]
    if "disk" in names and _MODEL.value is None:
        raise app.UsageError("--only=disk needs --model.")
    if _KIND.value == "blocks":
        print(f"| network | {' | '.join(FORMS)} | difference | control | goes on |")
        print(f"|{'---|' * (len(FORMS) + 4)}", flush=True)
        told = {name: study_blocks(name) for name in names}
        if not _ONLY.value:
            told |= {name: study_blocks(name, make) for name, make in backbones().items()}
        tell(told)
        return
    print("| | thinned | | | | | | planted | | | |")
    print("| network | groups | s to find | parameters left | difference | control | goes on "
          "| planted in groups | taken out | difference | control |")  # fmt: skip
    print(f"|{'---|' * 11}", flush=True)
    tell({name: study(name) for name in names})


def tell(told):
    """Prints the reasons of each network."""
    for name, reasons in told.items():
        for reason in reasons:
            print(f"{name}: {reason}")


if __name__ == "__main__":
    app.run(main)
