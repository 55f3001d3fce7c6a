"""What each layer knows of the image and of the label, epoch by epoch: information planes.

python examples/information_plane.py --config configs/information.py:full --workdir runs/information

A network with tanh and one with ReLU, each trained on the labels and on shuffled labels, measured
before training and after every epoch by LogDet and by leaving each sample out, at both ends by
kernel density, too, and by a linear classifier: what it has right of held-out samples proves that
the layer has so many bits on the label (Fano's inequality). Leaves results.md, results.json and the
figures.
"""

import dataclasses
import math

import keras
import ml_collections
import numpy as np
import studies

from keras_layer_entropy import EntropyMonitor, analyze_model, plots
from keras_layer_entropy.measures import MEASURES, MutualInformation
from keras_layer_entropy.pruning.shuffling import Shuffled

ESTIMATORS = {"logdet": "LogDet", "mutual_information": "leaving each sample out"}
HEADERS = {"input": "I(X; T)", "labels": "I(T; Y)", "previous": "I(T before; T)"}
DENSITY, PROOF = "kernel_density", "proved"  # what is measured at both ends alone


def run(config, workdir, overwrite=False):
    """Trains and measures every network; returns the records in results.json."""
    folder = studies.new_folder(workdir, overwrite)
    data = studies.load(config)
    records = []
    for activation in config.activations:
        own = ml_collections.ConfigDict({**config, "activation": activation})
        for labels in ("labels", "shuffled labels"):
            profiles, accuracy = measure(own, data, labels == "shuffled labels")
            trained = f"{activation}, trained on {labels}"
            if labels == "labels":
                records += record(f"{activation}, untrained", profiles[0])
                draw(folder, activation, profiles)
            records += record(trained, profiles[-1], accuracy)
            print(f"{trained}: {accuracy:.4f}", flush=True)
    studies.write(folder, records, tables(config, records))
    return records


def measure(config, data, shuffled):
    """Profiles before training and of every epoch, and the test accuracy."""
    keras.utils.set_random_seed(config.seed)
    model = studies.build(config, config.hidden)
    x, y = data.train.arrays
    some = x[: config.samples], y[: config.samples]
    measures = ["activation_entropy", *(MEASURES[k](samples=config.samples) for k in ESTIMATORS)]
    density = MutualInformation("kernel", samples=config.samples, name=DENSITY)
    closer = [*measures, density, "linear_probe"]
    layers = [keras.layers.Dense, *([keras.layers.Conv2D] if config.convolutions else [])]
    before = analyze_model(model, some, layers=layers, measures=closer, verbose=0)
    monitor = EntropyMonitor(data=some, layers=layers, measures=measures)
    if shuffled:
        y = np.random.default_rng(config.seed).permutation(y)
    model.fit(
        Shuffled((x, y), config.batch_size, config.seed),
        epochs=config.epochs, verbose=0, callbacks=[monitor],
    )  # fmt: skip
    after = analyze_model(model, some, layers=layers, measures=closer, verbose=0)
    profiles = [dataclasses.replace(before, epoch=-1), *monitor.profiles[:-1]]
    profiles.append(dataclasses.replace(after, epoch=config.epochs - 1))
    return profiles, studies.accuracy(model, data.test.arrays)


def draw(folder, activation, profiles):
    """The planes of a network."""
    for estimator, words in ESTIMATORS.items():
        title = f"Information plane of the {activation} network, {words}"
        figure = plots.information_plane(profiles, estimator, title)
        studies.draw(folder, f"plane_{estimator}_{activation}.png", figure)
    figure = plots.layer_to_layer_plane(profiles, f"The {activation} network, from layer to layer")
    studies.draw(folder, f"layer_to_layer_{activation}.png", figure)


def proved(accuracy, classes):
    """Bits on equally frequent classes that an accuracy proves, by Fano's inequality."""
    wrong = 1 - accuracy
    doubt = sum(-p * math.log2(p) for p in (wrong, accuracy) if p > 0)
    return max(0.0, math.log2(classes) - doubt - wrong * math.log2(classes - 1))


def record(network, profile, accuracy=None):
    """One record per layer: what the tables show."""
    classes = len(profile.classes)
    return [
        {
            "network": network,
            "accuracy": accuracy,
            "layer": layer,
            **{
                column: float(values[row])
                for name, result in profile.results.items()
                for column, values in result.columns(name).items()
            },
            PROOF: proved(float(profile["linear_probe"].whole["accuracy"][row]), classes),
        }
        for row, layer in enumerate(profile.layers)
    ]


def tables(config, records):
    """The tables of results.md: per network and layer, each estimate beside its shuffled twin."""
    of = f"{config.dataset}, {config.samples} training images, after {config.epochs} epochs"
    parts = [f"{of}; in brackets the estimate for shuffled pairs"]
    for estimator, words in {**ESTIMATORS, DENSITY: "kernel density"}.items():
        columns = [c for c in HEADERS if f"{estimator}_{c}" in records[0]]
        header = ["network", "test accuracy", "layer", *(HEADERS[c] for c in columns)]
        proof = estimator == "mutual_information"
        rows = []
        for r in records:
            accuracy = "-" if r["accuracy"] is None else f"{r['accuracy']:.4f}"
            cells = [cell(r, f"{estimator}_{column}") for column in columns]
            rows.append([r["network"], accuracy, r["layer"], *cells])
            rows[-1] += [f"{r[PROOF]:.2f}"] * proof
        unit = MEASURES.get(estimator, MutualInformation).unit
        parts.append(f"By {words}, {unit}:")
        parts.append(studies.markdown([*header, *["a linear classifier proves"] * proof], rows))
    return "\n\n".join(parts)


def cell(record, name):
    """An estimate and, where there is one, that of shuffled pairs."""
    if np.isnan(record[name]):
        return "-"
    shuffled = record.get(f"{name}_shuffled")
    return f"{record[name]:.2f}" + ("" if shuffled is None else f" ({shuffled:.2f})")


if __name__ == "__main__":
    studies.main(run, "configs/information.py", "runs/information")
