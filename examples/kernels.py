"""Which kernels of a convolution can be done without? Their information, and a check.

python examples/kernels.py --config configs/kernels.py:full --workdir runs/kernels

A LeNet-style network is trained, and after every epoch its kernels are looked at on validation
data. Those flagged at the end, as redundant or as less effective, are set to 0, and so is
the quarter of each layer that tells least of the labels or has the highest feature entropy; the
test accuracy is compared with that without as many random kernels of the same layer. Leaves
results.md, results.json and, of the first seed, the figures.
"""

import contextlib
import dataclasses

import keras
import numpy as np
import studies

from keras_layer_entropy import (
    ActivationProbe,
    EntropyAnalyzer,
    EntropyMonitor,
    analyze_model,
    plots,
)

CHOICES = ("redundant", "less effective", "least information", "highest feature entropy")
LAYERS = {"layers": keras.layers.Conv2D, "measures": ("feature_entropy",)}


def run(config, workdir, overwrite=False):
    """Trains and checks for each seed; returns the records in results.json."""
    folder = studies.new_folder(workdir, overwrite)
    data = studies.load(config)
    held_out = tuple(part[: config.samples] for part in data.validation.arrays)
    records = []
    for seed in range(config.seeds):
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        model = studies.build(config, config.hidden)
        watch, monitors = Watch(held_out), []
        if seed == 0:  # whose figures are drawn
            monitors = [EntropyMonitor(held_out, **LAYERS)]
        studies.train(model, data, config, seed, callbacks=[watch, *monitors])
        records += check(config, model, data.test.arrays, watch.history, seed)
        if seed == 0:
            draw(config, folder, model, held_out, watch.history, monitors[0].profiles)
    studies.write(folder, records, tables(config, records))
    return records


class Watch(keras.callbacks.Callback):
    """Looks at the kernels before training and after every epoch.

    Attributes:
        history: layer -> list of `UnitProfile`, the untrained network's first.
    """

    def __init__(self, data):
        super().__init__()
        self._data = data
        self._analyzer = None
        self.history = {}

    def on_train_begin(self, logs=None):
        measures = ["unit_information", "feature_entropy"]
        self._analyzer = EntropyAnalyzer(self.model, layers=keras.layers.Conv2D, measures=measures)
        self._look(epoch=-1)

    def on_epoch_end(self, epoch, logs=None):
        self._look(epoch)

    def _look(self, epoch):
        profile = self._analyzer.analyze(self._data, verbose=0)
        for layer, units in dataclasses.replace(profile, epoch=epoch).units.items():
            self.history.setdefault(layer, []).append(units)


def chosen(history):
    """Choice -> the kernels of a layer that it falls on, from the layer's profiles over epochs."""
    *earlier, last = history
    trained = [profile for profile in earlier if profile.epoch >= 0]
    quarter = max(1, last.units // 4)
    return {
        "redundant": np.flatnonzero(last.redundant().redundant),
        "less effective": np.flatnonzero(last.less_effective(trained)),
        "least information": np.argsort(last.information_labels)[:quarter],
        "highest feature entropy": np.argsort(-last.mean_feature_entropy, kind="stable")[:quarter],
    }


def check(config, model, test, histories, seed):
    """The records of a trained network: one per layer and choice of kernels."""
    accuracy = studies.accuracy(model, test)
    records = []
    for name, history in histories.items():
        layer, (first, last) = model.get_layer(name), (history[0], history[-1])
        for choice, kernels in chosen(history).items():
            random = np.random.default_rng(seed)
            draws = [
                random.choice(last.units, len(kernels), replace=False)
                for _ in range(config.draws if len(kernels) else 0)
            ]
            records.append({
                "seed": seed, "layer": name, "units": last.units, "choice": choice,
                "kernels": kernels.tolist(), "accuracy": accuracy,
                "without": accuracy_without(model, layer, kernels, test),
                "without_random": [accuracy_without(model, layer, d, test) for d in draws],
                "labels": last.information_labels.tolist(),
                "labels_untrained": first.information_labels.tolist(),
                "labels_shuffled": last.information_labels_shuffled.tolist(),
                "input": last.information_input.tolist(),
                "input_untrained": first.information_input.tolist(),
                "feature_entropy": last.mean_feature_entropy.tolist(),
                "feature_entropy_untrained": first.mean_feature_entropy.tolist(),
            })  # fmt: skip
            print(f"seed {seed}, {name}, {choice}: {kernels.tolist()}", flush=True)
    return records


def accuracy_without(model, layer, kernels, test):
    """Test accuracy with some kernels of a layer set to 0."""
    with zeroed(layer, kernels):
        return studies.accuracy(model, test)


@contextlib.contextmanager
def zeroed(layer, kernels):
    """Inside the block these kernels of a convolution give 0 (ReLU of 0); afterwards as before."""
    before = layer.get_weights()
    after = [weights.copy() for weights in before]
    for weights in after:  # the kernel and the bias, both with the units last
        weights[..., kernels] = 0
    layer.set_weights(after)
    try:
        yield
    finally:
        layer.set_weights(before)


def draw(config, folder, model, held_out, histories, profiles):
    """The figures of a trained network."""
    images = held_out[0][: config.images]
    maps = ActivationProbe(model, list(histories)).predict(images, verbose=0)
    profile = analyze_model(model, held_out, baseline=True, verbose=0, **LAYERS)
    figures = {
        "feature_entropy_depth": plots.feature_entropy_by_depth(profile),
        "feature_entropy_epochs": plots.feature_entropy_and_loss(profiles),
    }
    for name, history in histories.items():
        last = history[-1]
        less_effective = np.isin(np.arange(last.units), chosen(history)["less effective"])
        figures |= {
            f"{name}_information": plots.unit_information(history),
            f"{name}_classes": plots.unit_classes(last),
            f"{name}_ranks": plots.unit_ranks(history),
            f"{name}_pairs": plots.unit_pairs(last, less_effective),
            f"{name}_ranking": plots.unit_ranking(last, images, maps[name]),
        }
    for name, figure in figures.items():
        studies.draw(folder, f"{name}.png", figure)


def tables(config, records):
    """The tables of results.md: what the choices are worth, and what kernels tell."""
    layers = list(dict.fromkeys(r["layer"] for r in records))
    order = [(layer, choice) for layer in layers for choice in CHOICES]
    ordered = sorted(records, key=lambda r: order.index((r["layer"], r["choice"])))
    rows = [
        [
            r["seed"],
            r["layer"],
            r["choice"],
            f"{len(r['kernels'])} of {r['units']}",
            f"{r['accuracy']:.4f}",
            f"{r['without']:.4f}",
            studies.mean_sd(r["without_random"]),
        ]
        for r in ordered
    ]
    header = ["seed", "layer", "chosen", "kernels", "all", "without these", "without random"]
    words = (
        f"{config.dataset}, {config.seeds} seeds. Test accuracy with all kernels, with the chosen "
        f"kernels of a layer set to 0, and with as many random ones ({config.draws} draws, mean ± "
        "s.d.):"
    )
    parts = [words, studies.markdown(header, rows)]
    parts.append(
        "Mean over the kernels of a layer, then over the seeds (± s.d.); shuffled: with the labels "
        "of other images:"
    )
    rows = []
    for layer in layers:
        have = [r for r in records if (r["layer"], r["choice"]) == (layer, CHOICES[0])]
        for words, key, unit in (
            ("I(kernel; labels)", "labels", "bits"),
            ("I(input; kernel + noise)", "input", "bits"),
            ("feature entropy", "feature_entropy", "nats"),
        ):
            found = [
                studies.mean_sd([float(np.nanmean(r[name])) for r in have], 3)
                if name in have[0]
                else "-"
                for name in (key, f"{key}_untrained", f"{key}_shuffled")
            ]
            rows.append([layer, f"{words}, {unit}", *found])
    parts.append(
        studies.markdown(["layer", "measure", "trained", "untrained", "shuffled labels"], rows)
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    studies.main(run, "configs/kernels.py", "runs/kernels")
