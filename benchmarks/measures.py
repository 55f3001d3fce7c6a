"""What each measure costs: time over a plain forward pass, loops against gudhi and ripser, memory.

    pip install gudhi ripser
    python benchmarks/measures.py

Two commands are timed in turn, pair by pair, in one process after a warm-up of each; printed are
the median, min and max over the pairs. Measures that compare samples do so at the end of a pass, on
the 2,000 that it kept: what they take does not grow with the data.
"""

import functools
import pathlib
import re
import subprocess
import sys
import time

import keras
import numpy as np
from absl import app, flags

from keras_layer_entropy import EntropyAnalyzer
from keras_layer_entropy.measures import MEASURES

FLAGS = flags.FLAGS
SAMPLES, CLASSES = 4000, 10


def mlp():
    """784 inputs and 4 Dense layers."""
    dense = [keras.layers.Dense(256, "relu") for _ in range(3)]
    return keras.Sequential([keras.Input((784,)), *dense, keras.layers.Dense(CLASSES, "softmax")])


def cnn():
    """Two convolutions on 28 x 28 and two Dense layers."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(CLASSES, "softmax"),
        ]
    )


MODELS = {"MLP, 4 Dense": mlp, "CNN, 2 Conv2D and 2 Dense": cnn}


def prepared(make):
    """A model with random data."""
    keras.utils.set_random_seed(0)
    model, random = make(), np.random.default_rng(0)
    x = random.normal(size=(SAMPLES, *model.input_shape[1:])).astype("float32")
    return model, x, random.integers(0, CLASSES, SAMPLES)


def measuring(model, x, y, measure):
    """A function that measures once."""
    layers = [keras.layers.Dense, keras.layers.Conv2D]
    analyzer = EntropyAnalyzer(model, layers=layers, measures=measure)
    return lambda: analyzer.analyze((x, y), verbose=0)


def over_forward(model, x, y, measure, number):
    """Seconds of a plain forward pass and of a pass for a measure, `[pairs, 2]`."""
    forward = functools.partial(model.predict, x, batch_size=256, verbose=0)
    return pairs(forward, measuring(model, x, y, measure), number)


def pairs(first, second, number):
    """Seconds of each, `[pairs, 2]`, in turn."""
    first(), second()
    return np.array([[seconds(first), seconds(second)] for _ in range(number)])


def seconds(function):
    """Wall time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def spread(values, form="{:.2f}"):
    """Median, min and max in words."""
    low, middle, high = (form.format(f(values)) for f in (np.min, np.median, np.max))
    return f"{middle} ({low} to {high})"


def times():
    """Time of every measure over a plain forward pass."""
    for name, make in MODELS.items():
        model, x, y = prepared(make)
        print(f"\n{name}, {SAMPLES} samples\n")
        print("| measure | time over that of a plain forward pass | ms more per 1,000 samples |")
        print("|---|---|---|")
        for measure in MEASURES:
            if measure == "feature_entropy" and make is mlp:
                continue  # there are no maps
            found = over_forward(model, x, y, measure, FLAGS.pairs)
            more = 1e6 * (found[:, 1] - found[:, 0]) / SAMPLES
            print(f"| {measure} | {spread(found[:, 1] / found[:, 0])} | {spread(more, '{:.0f}')} |",
                  flush=True)  # fmt: skip


def memory():
    """Peak memory of one pass per measure, each in a process of its own."""
    print("\n| measure | peak memory of one pass over the CNN, MiB more than the forward pass |")
    print("|---|---|")
    plain = alone("none")
    for measure in MEASURES:
        print(f"| {measure} | {alone(measure) - plain:.0f} |", flush=True)


def alone(measure):
    """MiB at the peak of a process that measures."""
    command = [sys.executable, __file__, f"--memory={measure}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def one_pass(measure):
    """Measures once and prints this process's peak memory in MiB."""
    model, x, y = prepared(cnn)
    model.predict(x, batch_size=256, verbose=0)
    if measure != "none":
        measuring(model, x, y, measure)()
    # Not ru_maxrss, which begins with that of the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024)


def topology():
    """Births of loops against GUDHI and Ripser (`benchmarks/topology.py`)."""
    import topology as against_others  # needs gudhi and ripser, which nothing else here does

    against_others.table()


def main(argv):
    """Prints the tables."""
    del argv
    if FLAGS.memory is not None:
        one_pass(FLAGS.memory)
        return
    parts = {"time": times, "topology": topology, "memory": memory}
    for name in FLAGS.only or parts:
        parts[name]()


if __name__ == "__main__":  # not where another benchmark takes its functions
    flags.DEFINE_integer("pairs", 5, "Pairs per comparison.", lower_bound=3)
    flags.DEFINE_list("only", None, "Some of time, topology, memory (default: all).")
    flags.DEFINE_string("memory", None, "(Used by itself: a measure, in a process alone.)")
    app.run(main)
