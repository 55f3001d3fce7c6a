"""What measuring costs: time over a plain `evaluate` and `fit`, and peak memory.

    python benchmarks/overhead.py

Two commands are timed in turn, pair by pair, in one process after a warm-up of each, and the ratio
of each pair is taken: machines drift, ratios less so. Prints median, min and max over the pairs,
for CPU time and for wall time. Fits are of a fresh model each, without a warm-up: of these the
epochs after the first, the whole fits, and how long a pass waits for its first step.
"""

import functools
import resource
import subprocess
import sys
import time
import warnings

import keras
import numpy as np
from absl import app, flags

from keras_layer_entropy import EntropyAnalyzer, EntropyMonitor

FLAGS = flags.FLAGS
BATCH = 256


class Tower(keras.layers.Layer):
    """Two Dense layers inside a layer."""

    def __init__(self, units):
        super().__init__()
        self.steps = [keras.layers.Dense(units, "relu") for _ in range(2)]

    def call(self, x):
        for step in self.steps:
            x = step(x)
        return x


class Towers(keras.Model):
    """A subclassed model with nested layers."""

    def __init__(self):
        super().__init__()
        self.towers = [Tower(512) for _ in range(3)]
        self.head = keras.layers.Dense(10, "softmax")

    def call(self, x):
        for tower in self.towers:
            x = tower(x)
        return self.head(x)

    def outputs_by_hand(self, x):
        """What a user would add to the model to get at its activations."""
        outputs = []
        for tower in self.towers:
            for step in tower.steps:
                x = step(x)
                outputs.append(x)
        return [*outputs, self.head(x)]


class ByHand(keras.Model):
    """The activations of `Towers` as a model."""

    def __init__(self, towers):
        super().__init__()
        self.towers = towers

    def call(self, x):
        return self.towers.outputs_by_hand(x)


def mlp():
    """An 8 x 512 MLP on 784 inputs, as a functional model."""
    hidden = [keras.layers.Dense(512, "relu") for _ in range(8)]
    head = keras.layers.Dense(10, "softmax")
    return keras.Sequential([keras.Input((784,)), *hidden, head]), (784,), 20_000


def cnn():
    """A small CNN with 6 Dense layers on 32 x 32 x 3."""
    layers = [keras.Input((32, 32, 3))]
    for filters in (32, 64, 64):
        layers += [keras.layers.Conv2D(filters, 3, activation="relu"), keras.layers.MaxPooling2D()]
    layers += [keras.layers.Flatten()] + [keras.layers.Dense(256, "relu") for _ in range(5)]
    return keras.Sequential([*layers, keras.layers.Dense(10, "softmax")]), (32, 32, 3), 5_000


def towers():
    """A subclassed nested model."""
    return Towers(), (784,), 20_000


MODELS = {"MLP 8 x 512": mlp, "CNN, 6 Dense": cnn, "subclassed, nested": towers}


def prepared(make):
    """A compiled model with data."""
    keras.utils.set_random_seed(0)
    model, shape, samples = make()
    random = np.random.default_rng(0)
    x = random.normal(size=(samples, *shape)).astype("float32")
    y = random.integers(0, 10, samples)
    model(x[:1])
    compile_like_a_user(model)
    return model, x, y


def compile_like_a_user(model):
    """Adam, cross-entropy, accuracy."""
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])


def uncompiled_twin(model, x):
    """The same network without loss and metrics."""
    twin = Towers() if isinstance(model, Towers) else keras.models.clone_model(model)
    twin(x[:1])
    twin.set_weights(model.get_weights())
    return twin


def activations_by_hand(model):
    """A sub-model of all outputs of Dense layers."""
    if isinstance(model, Towers):
        return ByHand(model)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    return keras.Model(model.inputs, [layer.output for layer in dense])


def hand_loop(model, x, y):
    """The best loop a careful person writes: one compiled sub-model, only class sums are kept."""
    inside = activations_by_hand(model)
    inside.compile(jit_compile=True)

    def run():
        sums, counts = None, np.zeros(10)
        for start in range(0, len(x), BATCH):
            one_hot = np.eye(10, dtype="float32")[y[start : start + BATCH]]
            outputs = inside.predict_on_batch(x[start : start + BATCH])
            parts = [one_hot.T @ output for output in outputs]
            sums = parts if sums is None else [a + b for a, b in zip(sums, parts, strict=True)]
            counts += one_hot.sum(axis=0)
        return [pattern_entropy(total / counts[:, None]) for total in sums]

    return run


def usual_answer(model, x, y):
    """What is usually answered: a sub-model, `predict` class by class, then NumPy."""
    inside = activations_by_hand(model)

    def run():
        found = []
        for c in range(10):
            outputs = inside.predict(x[y == c], batch_size=BATCH, verbose=0)
            found.append([pattern_entropy(output.mean(axis=0)) for output in outputs])
        return found

    return run


def pattern_entropy(mean):
    """The measure in NumPy."""
    p = np.exp(mean - mean.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return -(p * np.log(p + 1e-30)).sum(axis=-1) / np.log(p.shape[-1])


def ratios_of(run, against, pairs, warm=1):
    """Run / against, `[pairs, CPU and wall]`, in turn, after so many runs of the first."""
    for _ in range(warm):
        run()
    against()
    return [np.divide(*[seconds(each) for each in (run, against)]) for _ in range(pairs)]


def compare(name, run, against, pairs, warm=1):
    """Prints the ratios run / against."""
    ratios = ratios_of(run, against, pairs, warm)
    print(
        f"| {name} | {' | '.join(spread(column) for column in np.transpose(ratios))} |", flush=True
    )


def header(*columns):
    """The head of a table."""
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)


def now():
    """CPU time and wall time, in seconds."""
    return np.array([time.process_time(), time.perf_counter()])


def seconds(function):
    """CPU time and wall time of a call."""
    start = now()
    function()
    return now() - start


def spread(ratios):
    """Median, min and max."""
    return f"{np.median(ratios):.3f} ({np.min(ratios):.3f} to {np.max(ratios):.3f})"


def analyze(pairs):
    """`analyze_model`, warm, over `evaluate`, and the usual answer over it."""
    header("what", *(f"{kind} time: median (min to max)" for kind in ("CPU", "wall")))
    for name, make in MODELS.items():
        model, x, y = prepared(make)
        analyzer = EntropyAnalyzer(model)

        def evaluate(model=model, x=x, y=y):
            model.evaluate(x, y, batch_size=BATCH, verbose=0)

        def measure(analyzer=analyzer, x=x, y=y):
            analyzer.analyze((x, y), batch_size=BATCH, verbose=0)

        compare(f"analysis / evaluate, {name}", measure, evaluate, pairs, warm=6)  # XLA is on then
        compare(f"usual answer / evaluate, {name}", usual_answer(model, x, y), evaluate, pairs)


def hand(pairs):
    """`analyze_model` without the model's metrics over the best loop by hand."""
    header("what", *(f"{kind} time: median (min to max)" for kind in ("CPU", "wall")))
    for name, make in MODELS.items():
        model, x, y = prepared(make)
        analyzer = EntropyAnalyzer(uncompiled_twin(model, x))

        def measure(analyzer=analyzer, x=x, y=y):
            analyzer.analyze((x, y), batch_size=BATCH, verbose=0)

        compare(f"analysis / loop by hand, {name}", measure, hand_loop(model, x, y), pairs, warm=6)


def settings(pairs):
    """`analyze_model`, warm, over `evaluate`, compiled and fed in other ways."""
    header("MLP 8 x 512", *(f"{kind} time: median (min to max)" for kind in ("CPU", "wall")))
    for name in ("steps_per_execution=8", "mixed_bfloat16", "tf.data, prefetched"):
        if name == "mixed_bfloat16":
            keras.config.set_dtype_policy(name)
        model, x, y = prepared(mlp)
        keras.config.set_dtype_policy("float32")
        if name == "steps_per_execution=8":
            model.compile(
                "adam", "sparse_categorical_crossentropy", metrics=["accuracy"],
                steps_per_execution=8,
            )  # fmt: skip
        data = (x, y)
        if name == "tf.data, prefetched":
            import tensorflow as tf

            data = tf.data.Dataset.from_tensor_slices(data).batch(BATCH).prefetch(4)
        analyzer = EntropyAnalyzer(model)

        def evaluate(model=model, data=data):
            x, y = (data, None) if hasattr(data, "element_spec") else data
            model.evaluate(x, y, batch_size=None if y is None else BATCH, verbose=0)

        def measure(analyzer=analyzer, data=data):
            analyzer.analyze(data, batch_size=BATCH, verbose=0)

        compare(name, measure, evaluate, pairs)


def first(pairs):
    """The first analysis of a model over the first `evaluate`, both made anew each time."""
    header("batches", *(f"{kind} time: median (min to max)" for kind in ("CPU", "wall")))
    for name, make in MODELS.items():
        for batches in (2, 8, 78, 195):
            ratios = []
            for _ in range(pairs):
                pair = []
                for kind in ("analysis", "evaluate"):
                    model, x, y = prepared(make)
                    x, y = (np.resize(z, (batches * BATCH, *z.shape[1:])) for z in (x, y))
                    if kind == "evaluate":
                        run = functools.partial(model.evaluate, x, y, BATCH, verbose=0)
                    else:
                        analyzer = EntropyAnalyzer(model)
                        run = functools.partial(
                            analyzer.analyze, (x, y), batch_size=BATCH, verbose=0
                        )
                    pair.append(seconds(run))
                ratios.append(np.divide(*pair))
            columns = [spread(column) for column in np.transpose(ratios)]
            print(f"| {name}, {batches} | {' | '.join(columns)} |", flush=True)


def classes(pairs):
    """`analyze_model`, warm, over `evaluate`, for 6 x 512 and an output for each of many classes.

    What does not grow with the samples is taken apart: batches are counted by the difference of
    passes over all samples and over a quarter of them. Of 21,000 classes the hidden layers alone
    are measured, because the state of such an output would be refused.
    """
    header("classes, samples", "a batch, CPU time", "a batch, wall time", "the rest, CPU time")
    for number in (10, 100, 1000, 5000, 21000):
        samples, ratios, rest = of_classes(number, pairs)
        columns = [spread(column) for column in np.transpose(ratios)]
        print(
            f"| {number}, {samples} | {' | '.join(columns)} | {np.median(rest):.2f} s |", flush=True
        )


def of_classes(number, pairs):
    """Samples, ratios of batches `[pairs, CPU and wall]`, and seconds of the rest `[pairs]`."""
    random = np.random.default_rng(0)
    samples = min(max(80 * BATCH, 10 * number), 50000)
    hidden = [keras.layers.Dense(512, "relu") for _ in range(6)]
    head = keras.layers.Dense(number, "softmax")
    model = keras.Sequential([keras.Input((784,)), *hidden, head])
    compile_like_a_user(model)
    x = random.normal(size=(samples, 784)).astype("float32")
    y = random.permutation(np.arange(samples) % number)
    analyzer = EntropyAnalyzer(model, layers=hidden if number > 5000 else None)

    def evaluate(count):
        model.evaluate(x[:count], y[:count], batch_size=BATCH, verbose=0)

    def measure(count):
        analyzer.analyze((x[:count], y[:count]), batch_size=BATCH, verbose=0)

    some, ratios, rest = samples // 4 // BATCH * BATCH, [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a quarter may lack a class
        for pair in range(pairs + 1):
            found = [
                [seconds(functools.partial(each, count)) for count in (samples, some)]
                for each in (measure, evaluate)
            ]
            whole, less = np.transpose(found, (1, 0, 2))
            steps = (whole - less) / (samples - some)  # [measure and evaluate, CPU and wall]
            if pair:  # the first compiles
                ratios.append(steps[0] / steps[1])
                rest.append((less - some * steps)[0, 0] - (less - some * steps)[1, 0])
    return samples, ratios, rest


WATCHED = (
    {"alerts": True},
    {"measures": ["activation_entropy", "activation_histogram"]},
)


class Clock(keras.callbacks.Callback):
    """When epochs end, and how long each training and validation pass waits for its first step.

    Listed last, it sees an epoch end when all other callbacks are done with it.
    """

    def __init__(self):
        super().__init__()
        self.ends, self.waits = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self._pass_began = time.perf_counter()

    def on_test_begin(self, logs=None):
        self._pass_began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            self.waits.append(time.perf_counter() - self._pass_began)

    def on_test_batch_end(self, batch, logs=None):
        self.on_train_batch_end(batch)

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(now())


def timed_fit(make, x, y, callbacks):
    """Times of a fit's steady epochs and of all of it, and the waits of its steady passes."""
    model, _, _ = make()
    compile_like_a_user(model)
    held_out, clock = len(x) // 5, Clock()
    start = now()
    model.fit(
        x, y, batch_size=BATCH, epochs=5, validation_data=(x[:held_out], y[:held_out]), verbose=0,
        callbacks=[*callbacks, clock],
    )  # fmt: skip
    return clock.ends[-1] - clock.ends[0], now() - start, clock.waits[2:]


def fit(pairs):
    """`fit` with `EntropyMonitor()` over `fit` without, from a fresh model each time."""
    fits("EntropyMonitor()", EntropyMonitor, pairs)


def health(pairs):
    """The same with alerts, and with histograms besides."""
    for options in WATCHED:
        words = ", ".join(f"{name}={value!r}" for name, value in options.items())
        fits(f"EntropyMonitor({words})", functools.partial(EntropyMonitor, **options), pairs)


def fits(name, monitor, pairs):
    """Prints what a monitor costs in `fit`."""
    header(
        f"{name} / without", "steady epochs, CPU time", "steady epochs, wall time",
        "whole fit, CPU time", "whole fit, wall time", "95th percentile of waits",
    )  # fmt: skip
    for model_name, make in MODELS.items():
        ratios, waits = beside(make, monitor, pairs)
        late, plain_late = (np.percentile(np.ravel(each), 95) for each in waits)
        print(
            f"| {model_name} | {' | '.join(map(spread, ratios))} "
            f"| {late:.3f} s / {plain_late:.3f} s |",
            flush=True,
        )


def beside(make, monitor, pairs, samples=None):
    """Ratios of steady epochs and whole fits, CPU and wall `[4, pairs]`; waits with and without."""
    x, y = (part[:samples] for part in prepared(make)[1:])
    found = {True: [], False: []}
    for pair in range(pairs):
        for monitored in (pair % 2 == 0, pair % 2 == 1):
            callbacks = [monitor()] if monitored else []
            found[monitored].append(timed_fit(make, x, y, callbacks))
    (*with_one, waits), (*plain, plain_waits) = (zip(*found[m], strict=True) for m in (True, False))
    ratios = [
        np.divide(a, b)[:, kind] for a, b in zip(with_one, plain, strict=True) for kind in range(2)
    ]
    return ratios, (waits, plain_waits)


def memory():
    """Peak memory of a process that streams many samples over one that streams few."""
    peaks = {}
    for samples in (10_000, 1_000_000):
        command = [sys.executable, __file__, f"--stream={samples}"]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[samples] = int(found.stdout.split()[-1])
    few, many = peaks.values()
    print(f"Peak memory, 1,000,000 over 10,000 samples: {many / few:.3f} ({many} over {few} KiB)")


def stream(samples):
    """Streams samples and prints the peak memory of this process in KiB."""

    def batches():
        random = np.random.default_rng(0)
        for _ in range(0, samples, 1000):
            yield random.normal(size=(1000, 64)).astype("float32"), random.integers(0, 10, 1000)

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256, "relu")])
    model.add(keras.layers.Dense(10))
    EntropyAnalyzer(model).analyze(batches(), verbose=0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main(argv):
    """Prints the table."""
    del argv
    if FLAGS.stream is not None:
        stream(FLAGS.stream)
        return
    parts = {
        "analyze": analyze,
        "hand": hand,
        "settings": settings,
        "first": first,
        "classes": classes,
        "fit": fit,
        "health": health,
    }
    for name, part in parts.items():
        if FLAGS.only is None or name in FLAGS.only:
            part(FLAGS.pairs)
    if FLAGS.only is None or "memory" in FLAGS.only:
        memory()


if __name__ == "__main__":  # not where another benchmark takes its functions
    flags.DEFINE_integer("pairs", 15, "Pairs per comparison.", lower_bound=7)
    flags.DEFINE_list(
        "only",
        None,
        "Some of analyze, hand, settings, first, classes, fit, health, memory (default: all).",
    )
    flags.DEFINE_integer("stream", None, "(Used by itself, for the memory of one process.)")
    app.run(main)
