"""Accuracy as blocks go: deleted, or with a linear layer in their place, without training.

    python benchmarks/blocks.py --only=resnet --model=ResNet56.json
    python benchmarks/blocks.py --only=train --model=ResNet56.json
    python benchmarks/blocks.py --only=criteria --model=ResNet56.json --way="3x3, refit"
    python benchmarks/blocks.py --only=plan --model=ResNet56.json
    python benchmarks/blocks.py --only=transformer

`resnet` takes residual branches beside an identity out of a network for CIFAR-10 that lies on disk,
whose inputs are images divided by 255, minus the mean image of the training data; `choose_blocks`
chooses which, on 500 training images. Printed is what of the first 2,000 test images is right, and
of all, mean (minimum to maximum) over calibration subsets.

`train` takes 9, 6, 3 and 12 of the same branches out, with 3x3 stand-ins, and trains what is left
for a few epochs, on the labels and on what the network itself says of the same images.

`criteria` takes 3, 6 and 9 of the same branches out as several criteria order them, in one way,
and prints what of the first 2,000 test images is right.

`plan` times a plan of all blocks, layers and units from 2,500 images, beside passes of `predict`
over these, in pairs.

`transformer` trains an image classifier of 6 transformer blocks, layers with a code of their own,
on MNIST, a network for each seed, takes 1, 2 and 3 of them out, and trains networks of that depth
from scratch for as many epochs beside them.

"deleted" is without any repair, "refit" with what is behind refitted in closed form, the others
with a stand-in, too.
"""

import time
import warnings

import cifar10
import keras
import numpy as np
from absl import app, flags, logging

from keras_layer_entropy import choose_blocks, load_model, remove_blocks
from keras_layer_entropy.datasets import DatasetSpec, load_parts
from keras_layer_entropy.pruning import plan
from keras_layer_entropy.pruning.block_parts import find_blocks
from keras_layer_entropy.pruning.units import calibration_source
from keras_layer_entropy.pruning.walking import Walk, inputs_of

_ONLY = flags.DEFINE_list(
    "only", ["transformer"], "Some of resnet, train, criteria, plan, transformer."
)
_SEEDS = flags.DEFINE_integer(
    "seeds", 3, "Networks, calibration subsets, or rounds.", lower_bound=1
)
_MODEL = flags.DEFINE_string("model", None, "The network of all but `transformer`.")
_WAY = flags.DEFINE_enum("way", "refit", ["refit", "1x1, refit", "3x3, refit"], "Of `criteria`.")
_EPOCHS = flags.DEFINE_integer("epochs", 4, "Epochs of training.", lower_bound=1)
WIDTH, HEADS, DEPTH = 48, 4, 6


def right(model, x, y):
    """Per sample, whether a model has it right."""
    return model.predict(x, batch_size=500, verbose=0).argmax(axis=1) == y


def spread(values):
    """Mean (minimum to maximum)."""
    return f"{np.mean(values):.2f} ({np.min(values):.2f} to {np.max(values):.2f})"


def shrunk(model, counts, x, way, names=None):
    """Yields the model without the blocks that cost least, so many of them, in one of the ways."""
    plan = choose_blocks(model, x, most=max(counts), stand_in=STAND_INS[way], blocks=names)
    order = [part.path for part in plan.parts]
    for count in counts:
        if way == "deleted":
            yield remove_blocks(model, order[:count])
        else:
            yield remove_blocks(model, order[:count], x, stand_in=STAND_INS[way])


STAND_INS = {"deleted": None, "refit": None, "1x1, refit": 1, "3x3, refit": 3}


def opened():
    """`(model, names of its branches, training images, test images, labels of these)`."""
    images, _, x, y = cifar10.arrays()
    mean = images.mean(axis=0)
    x = x - mean
    model = load_model(_MODEL.value)
    blocks = find_blocks(model)[0].values()
    names = [block.path for block in blocks if block.form == "residual"]
    return model, names, images - mean, x, y


def resnet():
    """Prints the table of a residual network."""
    model, names, images, x, y = opened()
    found = right(model, x, y)
    print(f"{100 * found[:2000].mean():.2f} % of 2,000, {100 * found.mean():.2f} % of all right")
    counts = (3, 6, 9, 12)
    print(f"\n| of {len(names)} blocks | {' | '.join(map(str, counts))} |")
    print("|---" * (len(counts) + 1) + "|")
    for way in STAND_INS:
        found = []
        for seed in range(_SEEDS.value):
            rows = np.random.default_rng(seed).permutation(len(images))[:500]
            networks = shrunk(model, counts, images[rows], way, names)
            found.append([right(smaller, x, y) for smaller in networks])
        percent = 100 * np.array(found)  # [seeds, counts, samples]
        for label, some in (("first 2,000", percent[..., :2000]), ("all", percent)):
            cells = map(spread, some.mean(axis=-1).T)
            print(f"| {way}, {label} | {' | '.join(cells)} |", flush=True)


def train():
    """Prints how good networks without some blocks are, at once and after each epoch."""
    x, y, *test = cifar10.arrays()
    some = x[cifar10.calibration_rows(x, 0)] - x.mean(axis=0)
    for count in (9, 6, 3, 12):
        model, names, *_ = opened()
        (smaller,) = shrunk(model, [count], some, "3x3, refit", names)
        print(f"\nResNet, CIFAR-10, {count} of {len(names)} blocks")
        cifar10.retrain(model, smaller, (x, y), test, _EPOCHS.value)


def plans():
    """Prints how long a plan takes, and how many passes of `predict` take as long."""
    x, y, *_ = cifar10.arrays()
    x, y, model = (x - x.mean(axis=0))[:2500], y[:2500], load_model(_MODEL.value)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.predict(x[:500], batch_size=256, verbose=0)  # not what only the first call takes
    print("\n| a plan | wall | processor |\n|---|---|---|")
    times, ratios = [], []
    for _ in range(_SEEDS.value):
        spent = []
        for do in (
            lambda: plan(model, (x[:2000], y[:2000]), (x[2000:], y[2000:])),
            lambda: model.predict(x, batch_size=256, verbose=0),
        ):
            start = np.array([time.perf_counter(), time.process_time()])
            do()
            spent.append(np.array([time.perf_counter(), time.process_time()]) - start)
        times.append(spent[0])
        ratios.append(spent[0] / spent[1])
    print(f"| seconds | {' | '.join(map(spread, np.transpose(times)))} |")
    print(f"| passes of `predict` | {' | '.join(map(spread, np.transpose(ratios)))} |", flush=True)


def unlike(model, x, names):
    """Two dicts: block -> 1 - mean cosine similarity, 1 - linear CKA of what goes in and comes out.

    Sources: block influence, ShortGPT, arXiv 2403.03853; CKA, Kornblith et al. 2019.
    """
    blocks = [block for block in find_blocks(model)[0].values() if block.path in names]
    wanted = {number for block in blocks for number in (block.given, block.made)}
    walk = Walk(model, inputs_of(model, calibration_source(model, x, 256, None)))
    held, influence, cka = {}, {}, {}
    for call in walk.graph.calls:
        walk.make(call)
        for number in wanted.intersection(call.outputs):
            held[number] = np.concatenate(walk.value(number)).reshape(len(x), -1)
    for block in blocks:
        a, b = held[block.given], held[block.made]
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        influence[block.path] = 1 - np.mean(np.sum(a * b, axis=1) / lengths)
        a, b = ((z - z.mean(axis=0)) for z in (a, b))
        a, b = a @ a.T, b @ b.T
        cka[block.path] = 1 - np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))
    return influence, cka


def orders(model, x, names, seed):
    """Criterion -> blocks, the first to go first."""
    plan = choose_blocks(model, x, stand_in=STAND_INS[_WAY.value], blocks=names)
    influence, cka = unlike(model, x, names)
    return {
        "output_change": [part.path for part in plan.parts],
        "block influence": sorted(influence, key=influence.get),
        "CKA": sorted(cka, key=cka.get),
        "random": list(np.random.default_rng(seed).permutation(names)),
        "last": names[::-1],
    }


def criteria():
    """Prints the table of criteria on a residual network."""
    model, names, images, x, y = opened()
    counts, found = (3, 6, 9), {}
    for seed in range(_SEEDS.value):
        some = images[np.random.default_rng(seed).permutation(len(images))[:500]]
        for criterion, order in orders(model, some, names, seed).items():
            print(f"# {seed}, {criterion}: {', '.join(order[: max(counts)])}", flush=True)
            way = STAND_INS[_WAY.value]
            networks = (remove_blocks(model, order[:n], some, stand_in=way) for n in counts)
            accuracies = [100 * float(right(z, x[:2000], y[:2000]).mean()) for z in networks]
            found.setdefault(criterion, []).append(accuracies)
            print(f"# {accuracies}", flush=True)
    print(f"\n| of {len(names)} blocks | {' | '.join(map(str, counts))} |")
    print("|---" * (len(counts) + 1) + "|")
    for criterion, values in found.items():
        print(f"| {criterion} | {' | '.join(map(spread, np.transpose(values)))} |")


class TransformerBlock(keras.layers.Layer):
    """Attention and a feed-forward network, each beside what it is given."""

    def __init__(self, **options):
        super().__init__(**options)
        layers = keras.layers
        self.attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)
        self.grow, self.shrink = layers.Dense(2 * WIDTH, "gelu"), layers.Dense(WIDTH)
        self.before, self.between = layers.LayerNormalization(), layers.LayerNormalization()

    def build(self, shape):
        self.before.build(shape)
        self.between.build(shape)
        self.attention.build(shape, shape)
        self.grow.build(shape)
        self.shrink.build((*shape[:-1], 2 * WIDTH))

    def call(self, x):
        normal = self.before(x)
        x = x + self.attention(normal, normal)
        return x + self.shrink(self.grow(self.between(x)))


class Positions(keras.layers.Layer):
    """Adds a vector for each place."""

    def build(self, shape):
        self.vectors = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, x):
        return x + self.vectors


def classifier(depth, x, y, seed):
    """A trained image classifier of some transformer blocks."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = keras.Input((28, 28, 1))
    tokens = layers.Conv2D(WIDTH, 4, strides=4)(inputs)
    tokens = Positions()(layers.Reshape((49, WIDTH))(tokens))
    for number in range(depth):
        tokens = TransformerBlock(name=f"block_{number}")(tokens)
    pooled = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(tokens))
    model = keras.Model(inputs, layers.Dense(10)(pooled))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss)
    model.fit(x, y, batch_size=128, epochs=_EPOCHS.value, verbose=0)
    return model


def transformer():
    """Prints the table of a transformer."""
    parts = load_parts(DatasetSpec("mnist"))
    (x, y), test = parts.train.arrays, parts.test.arrays
    counts, ways = (1, 2, 3), ("deleted", "refit", "1x1, refit")
    lost = {(way, count): [] for way in (*ways, "from scratch") for count in counts}
    whole = []
    for seed in range(_SEEDS.value):
        model = classifier(DEPTH, x, y, seed)
        whole.append(100 * right(model, *test).mean())
        print(f"# {seed}: {whole[-1]:.2f} % right", flush=True)
        rows = np.random.default_rng(seed).permutation(len(x))[:1000]
        for way in ways:
            networks = shrunk(model, counts, x[rows], way)
            for count, smaller in zip(counts, networks, strict=True):
                lost[way, count].append(whole[-1] - 100 * right(smaller, *test).mean())
        for count in counts:
            again = classifier(DEPTH - count, x, y, seed)
            lost["from scratch", count].append(whole[-1] - 100 * right(again, *test).mean())
        for (way, count), values in lost.items():
            print(f"# {seed}, {way}, {count}: {values[-1]:.2f} points lost", flush=True)
    print(f"\n{spread(whole)} % right")
    print(f"\n| points lost, of {DEPTH} blocks | {' | '.join(map(str, counts))} |")
    print("|---" * (len(counts) + 1) + "|")
    for way in (*ways, "from scratch"):
        print(f"| {way} | {' | '.join(spread(lost[way, count]) for count in counts)} |")


def main(argv):
    """Runs the studies that were asked for."""
    del argv
    logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", "Without calibration_data=")
    studies = {"resnet": resnet, "train": train, "criteria": criteria, "plan": plans}
    for name, study in studies.items():
        if name in _ONLY.value:
            if _MODEL.value is None:
                raise app.UsageError(f"--only={name} needs --model, a network for CIFAR-10.")
            study()
    if "transformer" in _ONLY.value:
        transformer()


if __name__ == "__main__":
    app.run(main)
