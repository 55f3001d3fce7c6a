"""Estimates of mutual information where the truth is known: Gaussians of 2 to 512 dimensions.

    python benchmarks/information.py

First I(X; T): T is X, independent Gaussians of one size, plus noise of a tenth of their whole
variance in each of them. Then I(T; Y): ten classes of one size, their means 3 apart on average,
plus a Gaussian of variance 1 in every dimension; the truth is a mean over 50,000 draws. 2,000
samples; mean (standard deviation) over `--seeds`, in bits; in brackets behind it what shuffled
pairs show. "covered": in how many the truth lies between the bounds, with two standard errors on
either side (for I(T; Y), whose bound is from below, in how many it is not below it).
"""

import math

import numpy as np
from absl import app, flags
from keras import ops

from keras_layer_entropy.measures.leave_one_out import bounds_of
from keras_layer_entropy.measures.logdet import logdet_mutual_information
from keras_layer_entropy.measures.mutual_information import kernel_information

_SEEDS = flags.DEFINE_integer("seeds", 10, "Draws of samples.", lower_bound=1)
SAMPLES, CLASSES, NOISE = 2000, 10, 0.1
DIMENSIONS = (2, 16, 128, 512)


def spread(values):
    """Mean (standard deviation)."""
    return f"{np.mean(values):.2f} ({np.std(values):.2f})"


def logdet(x, y):
    """I(X; Y) by LogDet, in bits, with the beta of information planes."""
    return float(ops.convert_to_numpy(logdet_mutual_information(x, y, 100.0 * x.shape[1]))) / (
        math.log(2)
    )


def of_samples(features):
    """A row of the first table."""
    truth = 0.5 * features * math.log2(1 + 1 / (NOISE * features))
    low, high, covered, by_logdet, by_chance = [], [], 0, [], []
    for seed in range(_SEEDS.value):
        random = np.random.default_rng(seed)
        x = random.normal(size=(SAMPLES, features))
        (found,) = bounds_of(x, [np.ones((SAMPLES, 1))], NOISE)
        slack = 2 * found.input_error
        covered += bool(found.input - slack <= truth <= found.input_at_most + slack)
        low.append(found.input)
        high.append(found.input_at_most)
        t = x + random.normal(0, math.sqrt(NOISE * features), x.shape)
        by_logdet.append(logdet(x, t))
        by_chance.append(logdet(np.roll(x, 1, axis=0), t))
    of_logdet = f"{spread(by_logdet)} [{np.mean(by_chance):.2f}]"
    return [f"{truth:.2f}", spread(low), spread(high), f"{covered}/{_SEEDS.value}", of_logdet]


def of_classes(features):
    """A row of the second table."""
    names = ("leave one out", "kernel density", "LogDet")
    truths, covered = [], 0
    found = {name: ([], []) for name in names}
    for seed in range(_SEEDS.value):
        random = np.random.default_rng(seed)
        centres = random.normal(size=(CLASSES, features))
        between = np.square(centres[:, None] - centres).sum(axis=-1)
        centres *= 3 / math.sqrt(between.sum() / (CLASSES * (CLASSES - 1)))

        def draw(count, random=random, centres=centres):
            y = np.arange(count) % CLASSES
            return y, centres[y] + random.normal(size=(count, features))

        y, t = draw(50_000)
        logits = t @ centres.T - 0.5 * np.square(centres).sum(axis=1)
        logits -= logits.max(axis=1, keepdims=True)
        own = logits[np.arange(len(y)), y] - np.log(np.exp(logits).sum(axis=1))
        truths.append(np.mean(own) / math.log(2) + math.log2(CLASSES))
        y, t = draw(SAMPLES)
        ways = [np.eye(CLASSES)[labels] for labels in (y, random.permutation(y))]
        bounds = bounds_of(t, ways)
        covered += bool(bounds[0].labels - 2 * bounds[0].labels_error <= truths[-1])
        values = {
            "leave one out": [x.labels for x in bounds],
            "kernel density": [
                float(ops.convert_to_numpy(kernel_information(t, way).labels)) for way in ways
            ],
            "LogDet": [logdet(t, way) for way in ways],
        }
        for name, pair in values.items():
            for column, value in zip(found[name], pair, strict=True):
                column.append(value)
    cells = [f"{spread(a)} [{np.mean(b):.2f}]" for a, b in found.values()]
    return [spread(truths), cells[0], f"{covered}/{_SEEDS.value}", *cells[1:]]


def main(argv):
    """Prints both tables."""
    del argv
    print("| dimensions | I(X; T) | at least | at most | covered | LogDet |\n" + "|---" * 6 + "|")
    for features in DIMENSIONS:
        print(f"| {features} | {' | '.join(of_samples(features))} |", flush=True)
    print("\n| dimensions | I(T; Y) | leave one out | covered | kernel density | LogDet |")
    print("|---" * 6 + "|")
    for features in DIMENSIONS:
        print(f"| {features} | {' | '.join(of_classes(features))} |", flush=True)


if __name__ == "__main__":
    app.run(main)
