"""What measuring and refitting take on the accelerator that is here, in seconds.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --small        # the same of small networks, for a CPU
    KERAS_BACKEND=jax python benchmarks/gpu.py

Analyses are timed over `evaluate` of the same model on the same data, in turn, after a run of each
that compiles: median of the pairs. All else is timed once it was run, alone. Beside each stands how
far its numbers are from NumPy's in float64, from the same activations or matrices, over the largest
of these: the entropies of class means, a log determinant, births of loops, and what a regression
leaves unexplained, of which NumPy's own is the same to rounding.
"""

import functools
import itertools
import time
import warnings

import keras
import numpy as np
from absl import app, flags

from keras_layer_entropy import EntropyAnalyzer, choose_units, remove_layer, remove_units
from keras_layer_entropy.measures.births import birth_index
from keras_layer_entropy.measures.logdet import logdet_entropy

_SMALL = flags.DEFINE_boolean("small", False, "Small networks and few samples.")
_PAIRS = flags.DEFINE_integer("pairs", 5, "Pairs of an analysis and an evaluate.", lower_bound=1)
CLASSES = 10


def size(whole, small):
    """One of two sizes."""
    return small if _SMALL.value else whole


def mlp():
    """12 Dense layers."""
    dense = [keras.layers.Dense(size(4096, 64), "relu") for _ in range(12)]
    return keras.Sequential([keras.Input((784,)), *dense, keras.layers.Dense(CLASSES, "softmax")])


def vit():
    """A vision transformer of the size of ViT-B/16."""
    layers, width, pixels = keras.layers, size(768, 32), size(224, 32)
    inputs = keras.Input((pixels, pixels, 3))
    x = layers.Conv2D(width, 16, strides=16)(inputs)
    x = layers.Reshape((-1, width))(x)
    for _ in range(size(12, 2)):
        normal = layers.LayerNormalization()(x)
        x = layers.Add()(
            [x, layers.MultiHeadAttention(size(12, 2), width // 12 or 1)(normal, normal)]
        )
        normal = layers.LayerNormalization()(x)
        grown = layers.Dense(4 * width, "gelu")(normal)
        x = layers.Add()([x, layers.Dense(width)(grown)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(CLASSES, "softmax")(x))


def convolutions(input_shape):
    """A small residual network."""
    layers = keras.layers
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.Add()([x, layers.Conv2D(8, 3, padding="same")(y)])
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def seconds(function):
    """Wall time of a call whose result is on this machine when it ends."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def entropies(model, x, y, paths):
    """Entropies of the patterns of class means, normalised, in float64; [layers, classes]."""
    outputs = [model.get_layer(path).output for path in paths]
    found = keras.Model(model.inputs, outputs).predict(x, batch_size=64, verbose=0)
    rows = []
    for values in found:
        values = np.log(values + 0.0) if values.shape[-1] == CLASSES else values
        values = values.astype(np.float64)
        row = []
        for label in range(CLASSES):
            mean = values[y == label].reshape(-1, values.shape[-1]).mean(axis=0)
            p = np.exp(mean - mean.max())
            p /= p.sum()
            row.append(-np.sum(p * np.log(np.maximum(p, 1e-300))) / np.log(len(p)))
        rows.append(row)
    return np.array(rows)


def analysis(make, policy, samples):
    """`(seconds of an analysis, over evaluate, difference)`."""
    keras.config.set_dtype_policy(policy)
    model = make()
    keras.config.set_dtype_policy("float32")
    model.compile("sgd", "sparse_categorical_crossentropy")
    random = np.random.default_rng(0)
    x = random.normal(size=(samples, *model.input_shape[1:])).astype("float32")
    y = np.arange(samples) % CLASSES
    analyzer = EntropyAnalyzer(model)

    def measure():
        return analyzer.analyze((x, y), batch_size=64, verbose=0)

    def evaluate():
        model.evaluate(x, y, batch_size=64, verbose=0)

    profile = measure()
    evaluate()
    pairs = [(seconds(measure), seconds(evaluate)) for _ in range(_PAIRS.value)]
    own, plain = np.transpose(pairs)
    hidden = [
        path for path, output in zip(profile.layers, profile.is_output, strict=True) if not output
    ]
    names = [path for path in hidden if "/" not in path]
    wanted = entropies(model, x, y, names)
    found = profile.entropy[[profile.layers.index(path) for path in names]]
    return np.median(own), np.median(own / plain), np.abs(found - wanted).max()


def loops(units, images):
    """`(seconds, None, difference)` of the births of one layer's maps of 14 x 14."""
    maps = np.random.default_rng(0).normal(size=(units * images, 14, 14)).astype("float32")
    found = keras.ops.convert_to_numpy(birth_index(maps))
    taken = seconds(lambda: keras.ops.convert_to_numpy(birth_index(maps)))
    some = range(0, len(maps), max(1, len(maps) // 50))
    return taken, None, max(abs(int(found[i]) - _birth(maps[i])) for i in some)


def _birth(map_):
    """The first of the heaviest edges that closes a loop that no triangle fills at once."""
    weights = np.maximum(map_, map_.T).astype(np.float64)
    edges = sorted(itertools.combinations(range(len(map_)), 2), key=lambda e: -weights[e])
    parent, near = list(range(len(map_))), [set() for _ in map_]

    def root(i):
        while parent[i] != i:
            i = parent[i]
        return i

    for rank, (i, j) in enumerate(edges[:51]):
        if root(i) == root(j) and not near[i] & near[j]:
            return rank
        parent[root(i)] = root(j)
        near[i].add(j)
        near[j].add(i)
    return 0


def determinant(width):
    """`(seconds, None, difference)` of a LogDet entropy."""
    x = np.random.default_rng(0).normal(size=(2 * width, width)).astype("float32")
    found = float(logdet_entropy(x))
    taken = seconds(lambda: float(logdet_entropy(x)))
    rows = x.astype(np.float64)
    rows -= rows.mean(axis=0)
    wanted = 0.5 * np.linalg.slogdet(np.eye(width) + rows.T @ rows / len(rows))[1]
    return taken, None, abs(found / wanted - 1)


def dense_refit(width):
    """`(seconds, None, difference)` of a Dense layer that is refitted when one before it goes."""
    dense = keras.layers.Dense
    model = keras.Sequential([
        keras.Input((width,)), dense(width, "relu", name="a"), dense(width, name="b"),
        dense(width, name="c"), dense(CLASSES, name="out"),
    ])  # fmt: skip
    x = np.random.default_rng(0).normal(size=(2 * width, width)).astype("float32")
    taken = seconds(lambda: remove_layer(model, "b", calibration_data=x))
    smaller = remove_layer(model, "b", calibration_data=x)
    before, after = (each.predict(x, verbose=0) for each in (model, smaller))
    return taken, None, np.abs(after - before).max() / np.abs(before).max()  # b is linear


def convolution_refit(channels, pixels):
    """`(seconds, None, difference)` of a convolution that loses channels that say nothing."""
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((pixels, pixels, channels)),
        layers.Conv2D(channels, 3, padding="same", activation="relu", name="a"),
        layers.Conv2D(channels, 3, padding="same", name="b"), layers.GlobalAveragePooling2D(),
        layers.Dense(CLASSES),
    ])  # fmt: skip
    kernel, bias = model.get_layer("a").get_weights()
    dead = list(range(0, channels, 2))
    kernel[..., dead], bias[dead] = 0.0, 0.0
    model.get_layer("a").set_weights([kernel, bias])
    x = np.random.default_rng(0).normal(size=(64, pixels, pixels, channels)).astype("float32")
    taken = seconds(lambda: remove_units(model, {"a": dead}, x))
    before, after = (
        each.predict(x, verbose=0) for each in (model, remove_units(model, {"a": dead}, x))
    )
    return taken, None, np.abs(after - before).max() / np.abs(before).max()


def thinned(pixels, samples):
    """`(seconds, None, None)` of half of a network's operations chosen and taken out."""
    shape = (pixels, pixels, 3)
    whole = functools.partial(keras.applications.ResNet50, weights=None, classes=CLASSES)
    model = size(whole, convolutions)(input_shape=shape)
    x = np.random.default_rng(0).normal(size=(samples, pixels, pixels, 3)).astype("float32")
    plan = []
    taken = seconds(lambda: plan.append(choose_units(model, x, target={"flops": 0.5})))
    return taken + seconds(lambda: remove_units(model, plan[0], x)), None, None


def main(argv):
    """Prints the table."""
    del argv
    warnings.simplefilter("ignore")
    print(f"{keras.backend.backend()}, {keras.ops.ones(()).device}")
    print("\n| what | seconds | over evaluate | difference |\n|---|---|---|---|", flush=True)
    samples = size(8192, 640)
    half = "mixed_bfloat16"
    rows = {
        "analysis, 12 Dense": lambda: analysis(mlp, "float32", samples),
        f"analysis, 12 Dense, {half}": lambda: analysis(mlp, half, samples),
        "analysis, ViT": lambda: analysis(vit, "float32", samples // 4),
        f"analysis, ViT, {half}": lambda: analysis(vit, half, samples // 4),
        "births of loops": lambda: loops(size(512, 32), size(1000, 20)),
        "LogDet": lambda: determinant(size(4096, 128)),
        "refit of a Dense layer": lambda: dense_refit(size(4096, 64)),
        "refit of a convolution": lambda: convolution_refit(size(512, 16), size(14, 6)),
        size("half of ResNet-50", "half of three convolutions"): lambda: thinned(
            size(224, 16), size(256, 100)
        ),
    }
    for what, run in rows.items():
        taken, ratio, difference = run()
        words = ["" if each is None else f"{each:.2g}" for each in (ratio, difference)]
        print(f"| {what} | {taken:.3f} | {' | '.join(words)} |", flush=True)


if __name__ == "__main__":
    app.run(main)
