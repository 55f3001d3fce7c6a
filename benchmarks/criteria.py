"""Which criterion chooses Dense layers best, and what refitting and retraining are worth.

    python benchmarks/criteria.py --config=configs/criteria.py:mnist_128 --seeds=5

For each seed a network is trained, once for all that is asked of it; the test data choose nothing.
`--only` says what is measured:

`regret`: layers go one by one, chosen by each criterion, with the closed-form refit and no
training. Test accuracy, and the regret: the accuracy of the network with as many layers gone that
the oracle `loss_gap` chose, minus that of the criterion's. Rank correlation is Spearman's, with
what the oracle says of each layer of the whole network.

`repair`: layers go as `linearity` chooses, with other ways to close the gap (multiplying the
kernels of neighbours; deleting and keeping the weights), and with retraining after each removal,
against networks of the same depth trained from scratch for as many epochs in total.

`search`: `prune_model` by its defaults, with retraining and a limit of quality, by the paper's
criterion, by `linearity`, by `output_change`, and by the first two one after the other.

Beside the criteria of the package there are those of `OTHERS`. Prints mean and standard deviation
over the seeds; accuracies in per cent. Networks and numbers are kept in `--workdir`: what is there
is not computed again.
"""

import dataclasses
import functools
import json
import math
import multiprocessing
import pathlib
import time

import keras
import ml_collections
import numpy as np
import scipy.stats
import tensorflow as tf
from absl import app, flags
from ml_collections import config_flags

from keras_layer_entropy import analyze_model, load_model, save_model
from keras_layer_entropy.datasets import DatasetSpec, load_parts
from keras_layer_entropy.files import replacing
from keras_layer_entropy.pruning import CRITERIA, PruningOptions, prune_model, remove_layer
from keras_layer_entropy.pruning.criteria import Situation
from keras_layer_entropy.pruning.layer_parts import removable_layers
from keras_layer_entropy.pruning.parts import Prediction
from keras_layer_entropy.pruning.shuffling import Shuffled
from keras_layer_entropy.pruning.surgery import take_out

_CONFIG = config_flags.DEFINE_config_file("config", "configs/criteria.py:digits")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", ["regret"], "Some of regret, repair, search.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/criteria", "Where networks and numbers are kept.")


def entropy_change(situation, parts):
    """Where entropy changes least along depth, up or down."""
    gradients = dict(zip(situation.profile.layers, situation.profile.gradient, strict=True))
    changes = {part: abs(float(gradients[part.path])) for part in parts}
    return {
        part: Prediction(change, f"entropy changes by {change:.3f}")
        for part, change in changes.items()
        if math.isfinite(change)  # the first layer has none
    }


def given_and_made(situation, parts):
    """Yields `(part, x, y)`: what goes into a layer and what comes out of its activation."""
    x, made = situation.train_data[0], {}
    for layer in situation.student.layers:
        made[layer.name] = x, np.asarray(layer(x))
        x = made[layer.name][1]
    for part in parts:
        yield part, made[part.path][0], made[part.members[-1]][1]


def block_influence(situation, parts):
    """1 - mean cosine similarity of input and output (ShortGPT, arXiv 2403.03853)."""
    found = {}
    for part, x, y in given_and_made(situation, parts):
        if x.shape == y.shape:
            lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            cosines = np.sum(x * y, axis=1) / np.maximum(lengths, 1e-12)  # 0 of what is 0
            influence = 1 - float(np.mean(cosines))
            found[part] = Prediction(influence, f"influence of {influence:.3f}")
    return found


def cka(situation, parts):
    """1 - linear CKA of input and output (Kornblith et al. 2019, arXiv 1905.00414)."""
    found = {}
    for part, x, y in given_and_made(situation, parts):
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
        likeness = float(np.sum((x.T @ y) ** 2) / norms)
        found[part] = Prediction(1 - likeness, f"CKA of {likeness:.3f}")
    return found


def measured(situation, parts, measure, loss):
    """What `loss` makes of the numbers per layer of a measure; without what is not finite."""
    model, data, size = situation.student, situation.train_data, situation.batch_size
    profile = analyze_model(model, data, measures=measure, batch_size=size, verbose=0)
    losses = dict(zip(profile.layers, loss(profile[measure].whole), strict=True))
    return {
        part: Prediction(float(losses[part.path]), f"{measure}: {losses[part.path]:.3f}")
        for part in parts
        if math.isfinite(losses[part.path])  # the first layer has no layer before
    }


def probe_gain(situation, parts):
    """Smallest gain of a linear probe over the one on the layer before."""
    return measured(situation, parts, "linear_probe", lambda whole: whole["gain"])


def label_information(situation, parts):
    """Smallest gain of I(T; Y) over that of the layer before."""
    return measured(
        situation, parts, "mutual_information", lambda x: np.diff(x["labels"], prepend=np.nan)
    )


def logdet_information(situation, parts):
    """Smallest share of a layer's LogDet entropy that the layer before does not tell."""
    return measured(situation, parts, "logdet", lambda x: 1 - x["previous"] / x["entropy"])


def short_list(situation, parts, size=3):
    """The most linear of the three over which entropy falls least."""
    flat = CRITERIA["entropy_gradient"](situation, parts)
    return CRITERIA["linearity"](situation, sorted(flat, key=lambda x: flat[x].loss)[:size])


OTHERS = {
    "entropy_change": entropy_change,
    "block_influence": block_influence,
    "cka": cka,
    "probe_gain": probe_gain,
    "label_information": label_information,
    "logdet_information": logdet_information,
    "short_list": short_list,
}
_CRITERIA = flags.DEFINE_list("criteria", [*CRITERIA, *OTHERS], "Criteria to compare.")


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
    layers = [keras.Input(shape), *layers, keras.layers.Dense(10, "softmax", name="output")]
    # XLA pays for Dense layers on a CPU.
    return compiled(keras.Sequential(layers), config, jit_compile=not config.convolutions)


def compiled(model, config, jit_compile=True):
    """A model that can be trained and evaluated."""
    model.compile(
        keras.optimizers.Adam(config.learning_rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )
    return model


def fit(model, data, config, seed, epochs):
    """Trains a model."""
    model.fit(Shuffled(data, config.batch_size, seed), epochs=epochs, verbose=0)


def in_batches(model, x):
    """Outputs, without tracing a new function for every network."""
    parts = [model(x[i : i + 1000], training=False) for i in range(0, len(x), 1000)]
    return np.concatenate([np.asarray(part) for part in parts])


def accuracy(model, data):
    """Accuracy in per cent."""
    x, y = data
    return 100 * float(np.mean(np.argmax(in_batches(model, x), axis=-1) == y))


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


def trained(config, seed, data, folder):
    """The network of a seed; it is trained once and then read."""
    path = folder / "network.keras"
    if not path.exists():
        keras.utils.set_random_seed(seed)
        model = build(config, config.hidden)
        fit(model, data.train, config, seed, config.epochs)
        save_model(model, path)
    return load_model(path)


def without_convolutions(model, data, config):
    """The Dense layers as a network of their own, and as its data what the convolutions give.

    These do not change where nothing is trained.
    """
    if not config.convolutions:
        return model, data
    names = [layer.name for layer in model.layers]
    first = names.index("hidden_0")
    front = keras.Sequential([keras.Input(model.input_shape[1:]), *model.layers[:first]])
    head = keras.Sequential([keras.Input(front.output_shape[1:]), *model.layers[first:]])
    parts = (data.calibration, data.validation, data.test)
    calibration, validation, test = ((in_batches(front, x), y) for x, y in parts)
    return compiled(head, config), Data(calibration, validation, test, calibration)


BATCH = 10_000  # samples at once: what is not compiled takes its time by the batch


class Networks:
    """A network without some layers, refitted to the original, each computed once.

    An order is a tuple of the layers that went, the first to go first.
    """

    def __init__(self, model, data, seed):
        self._model, self._data, self._seed = model, data, seed

    @functools.cache  # noqa: B019 - it lives as long as its process
    def model(self, order):
        """The network that is left."""
        if not order:
            return self._model
        before, data = self.model(order[:-1]), self._data.calibration
        return take_out(before, self._model, [order[-1]], data, BATCH)[0]

    @functools.cache  # noqa: B019
    def accuracy(self, order):
        """Its test accuracy."""
        return accuracy(self.model(order), self._data.test)

    @functools.cache  # noqa: B019
    def profile(self, order):
        """Its entropies."""
        measures, data = ("activation_entropy", "state_entropy"), self._data.validation
        return analyze_model(
            self.model(order), data, measures=measures, batch_size=BATCH, verbose=0
        )

    def situation(self, order, profiled):
        """What criteria look at, however little they like any of the layers."""
        return _Situation(
            self.model(order),
            self._model,
            self.profile(order) if profiled else None,
            self._data.calibration,
            self._data.validation,
            batch_size=BATCH,
            tolerance=math.inf,
            seed=self._seed + len(order),
            networks=self,
            order=order,
        )


@dataclasses.dataclass(frozen=True)
class _Situation(Situation):
    """One that computes each network once, whichever criterion asks."""

    networks: Networks | None = None
    order: tuple = ()

    def without(self, part):
        return self.networks.model((*self.order, part.path)), {}


ORACLE = "loss_gap, refit"
OF_ENTROPY = ("entropy_gradient", "state_entropy", "entropy_change", "short_list")


def without_training(criterion, networks, removals):
    """Accuracies as layers go, refitted to the original network, which went, and the first say.

    That is what the criterion says of each layer of the original.
    """
    order, first = (), {}
    for _ in range(removals):
        situation = networks.situation(order, criterion in OF_ENTROPY)
        parts = list(removable_layers(situation.student)[0].values())
        found = {**CRITERIA, **OTHERS}[criterion](situation, parts)
        first = first or {part.path: float(said.loss) for part, said in found.items()}
        order += (min(found, key=lambda part: found[part].loss).path,)
    return {
        "accuracy": [networks.accuracy(order[: n + 1]) for n in range(removals)],
        "order": order,
        "losses": first,
    }


def rank_correlation(one, other):
    """Spearman's, of what two criteria say of the layers of which both say something."""
    both = [path for path in one if path in other]
    pair = ([losses[path] for path in both] for losses in (one, other))
    return float(scipy.stats.spearmanr(*pair).statistic)


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
            remove="layers",
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


ORDERS = (
    ("entropy_gradient",),
    ("linearity",),
    ("output_change",),
    ("entropy_gradient", "linearity"),
)


def searched(criteria, model, data, seed):
    """What `prune_model` comes to by its defaults, with one criterion after the other.

    The limit is that of the original all along. Seconds are those of processors, and without
    compiling, which would be most of them.
    """
    started, smaller, gone, steps = time.process_time(), model, [], 0
    drop = most = 0.01  # the default
    for criterion in criteria:
        result = prune_model(
            smaller,
            data.train,
            data.validation,
            remove="layers",
            criterion=criterion,
            max_drop=drop,
            epochs=3,
            seed=seed,
        )
        smaller, quality = result.model, result.quality
        gone, steps = [*gone, *result.removed], steps + len(result.steps)
        lost = quality.of(model, data.validation) - quality.of(smaller, data.validation)
        drop = max(0.0, most - lost)
    return {
        "layers gone": len(gone),
        "test accuracy": accuracy(smaller, data.test) - accuracy(model, data.test),
        "steps": steps,
        "processor seconds": time.process_time() - started,
        "order": gone,
    }


class Kept:
    """Rows of numbers in a file; what is there is not computed again."""

    def __init__(self, path, config):
        self._path, self._config = path, json.loads(config.to_json())
        self.rows = {}
        if path.exists():
            found = json.loads(path.read_text())
            if found["config"] != self._config:
                raise ValueError(f"{path} is of another config: choose another --workdir.")
            self.rows = found["rows"]

    def row(self, name, compute):
        """A row, a dict; `compute()` where it is not known yet."""
        if name not in self.rows:
            started = time.perf_counter()
            self.rows[name] = compute()
            with replacing(self._path) as temporary:
                temporary.write_text(json.dumps({"config": self._config, "rows": self.rows}))
            print(f"# {name}: {self.rows[name]}, {time.perf_counter() - started:.0f} s", flush=True)
        return self.rows[name]


def measure(config, seed, studies, criteria, workdir):
    """Everything for one seed: name -> row."""
    folder = pathlib.Path(workdir) / config.name / str(seed)
    kept, data = Kept(folder / "rows.json", config), load(config, seed)
    model = trained(config, seed, data, folder)
    kept.row("original", lambda: {"accuracy": [accuracy(model, data.test)] * config.removals})
    if "repair" in studies:
        repairs(kept, model, data, config, seed)
    # Every network is another one: to trace and compile it takes far longer than to run it.
    tf.config.run_functions_eagerly(True)
    if "regret" in studies:
        networks = Networks(*without_convolutions(model, data, config), seed)
        for criterion in criteria:
            kept.row(
                f"{criterion}, refit",
                functools.partial(without_training, criterion, networks, config.removals),
            )
    if "search" in studies:
        for order in ORDERS:
            name = ", then ".join(order)
            kept.row(name, functools.partial(searched, order, model, data, seed))
    return kept.rows


def repairs(kept, model, data, config, seed):
    """The rows of other ways to close the gap, of retraining and of training from scratch."""

    def add(name, function, *args, **keywords):
        kept.row(name, lambda: {"accuracy": function(*args, **keywords)})

    networks = Networks(*without_convolutions(model, data, config), seed)
    row = functools.partial(without_training, "linearity", networks, config.removals)
    order = kept.row("linearity, refit", row)["order"]
    # The first hidden layer takes inputs of another width: there is no kernel to keep.
    known = order[: order.index("hidden_0")] if "hidden_0" in order else order
    rest = [math.nan] * (len(order) - len(known))
    gap = functools.partial(closing_the_gap, model=model, data=data)
    add("linearity, kernels merged", gap, merged, order=order)
    add(
        "linearity, deleted and weights kept",
        lambda: gap(remove_layer, order=known) + rest,
    )
    for criterion in config.retrained:
        name = f"{criterion}, refit and {config.retraining} epochs each"
        add(name, with_training, criterion, model, data, config, seed)

    def scratch():
        found = [math.nan] * config.removals
        for removed in config.scratch:
            found[removed - 1] = from_scratch(data, config, seed, removed)
        return found

    add("trained from scratch", scratch)


def run(config, seeds, *args):
    """Measures seed after seed; prints tables after each."""
    rows = {}
    # Each seed in a process of its own: what TensorFlow compiled for it goes with it.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for seed in range(seeds):
            for name, row in pool.apply(measure, (config, seed, *args)).items():
                rows.setdefault(name, []).append(row)
            print_tables(config, rows, seed + 1)


def losses_of(one, other):
    """What two criteria say of the layers of each seed's network."""
    return ((x["losses"], y["losses"]) for x, y in zip(one, other, strict=True))


def print_tables(config, rows, seeds):
    """Accuracies, regrets and searches over the seeds so far, as far as they are known."""
    rows = {name: found for name, found in rows.items() if len(found) == seeds}
    removed = [str(n + 1) for n in range(config.removals)]
    accuracies = {
        name: np.array([row["accuracy"] for row in found])
        for name, found in rows.items()
        if "accuracy" in found[0]
    }
    title = f"{config.name}, {seeds} seeds, mean ± s.d."
    print_table(f"{title}, test accuracy in per cent", ["layers removed", *removed], accuracies, 1)
    oracle = accuracies.get(ORACLE)
    if oracle is not None:
        regrets = {
            name: np.hstack([oracle - found, (oracle - found).mean(axis=1, keepdims=True)])
            for name, found in accuracies.items()
            if name.endswith(", refit") and found is not oracle
        }
        ranks = {
            name: [[rank_correlation(*both)] for both in losses_of(rows[name], rows[ORACLE])]
            for name in regrets
        }
        table = {name: np.hstack([regrets[name], ranks[name]]) for name in regrets}
        table = dict(sorted(table.items(), key=lambda item: item[1][:, -2].mean()))
        head = ["layers removed", *removed, "mean", "rank correlation"]
        print_table(f"{title}, regret in points", head, table, 2)
    names = ("layers gone", "test accuracy", "steps", "processor seconds")
    searches = {
        name: np.array([[row[key] for key in names] for row in found])
        for name, found in rows.items()
        if "steps" in found[0]
    }
    if searches:
        print_table(f"{title}, accuracy in points", ["order", *names], searches, 2)


def print_table(title, head, rows, digits):
    """Mean and standard deviation of rows of numbers, `[seeds, columns]`."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for name, values in rows.items():
        means, deviations = np.mean(values, axis=0), np.std(values, axis=0)
        cells = [
            "" if math.isnan(m) else f"{m:.{digits}f} ± {d:.{digits}f}"
            for m, d in zip(means, deviations, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main(argv):
    """Measures and prints."""
    del argv
    config = ml_collections.FrozenConfigDict(_CONFIG.value)
    run(config, _SEEDS.value, tuple(_ONLY.value), tuple(_CRITERIA.value), _WORKDIR.value)


if __name__ == "__main__":
    app.run(main)
