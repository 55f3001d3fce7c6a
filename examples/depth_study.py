"""Does depth pay, and does entropy say so? The same recipe with 2, 4 and 6 Dense layers.

python examples/depth_study.py --config configs/cifar10.py:full --workdir runs/depth_study

For each seed and depth: test accuracy, the entropy of every class and layer beside the untrained
twin's, whether it falls monotonically; then the layers that are flat are taken out. Leaves
results.md, results.json and a figure per depth.
"""

import keras
import numpy as np
import studies
from scipy.stats import spearmanr

from keras_layer_entropy import PruningOptions, analyze_model, plots, prune_model
from keras_layer_entropy.measures import ActivationEntropy


def run(config, workdir, overwrite=False):
    """Trains, measures and prunes every network; returns the records in results.json."""
    folder = studies.new_folder(workdir, overwrite)
    data = studies.load(config)
    records = []
    for seed in range(config.seeds):
        for depth in config.depths:
            keras.backend.clear_session()
            record, profile = measure(config, data, seed, depth)
            records.append(record)
            print(f"seed {seed}, {depth} Dense layers: {record['accuracy']:.4f}", flush=True)
            if seed == 0:
                name = profile.classes[0]
                title = f"{depth} Dense layers, class {name}"
                figure = plots.entropy_and_patterns(profile, name, title)
                studies.draw(folder, f"depth_{depth}.png", figure)
    studies.write(folder, records, tables(config, records))
    return records


def measure(config, data, seed, depth):
    """Everything about one network: `(record, profile on the test data)`."""
    keras.utils.set_random_seed(seed)
    model = studies.build(config, [config.units] * (depth - 1))
    monitor = studies.train(model, data, config, seed)
    measures = ActivationEntropy(keep_patterns=True)
    profile = analyze_model(
        model, data.test.arrays, measures=measures, baseline=True, seed=seed, verbose=0
    )
    if data.test.classes is not None:
        profile = profile.with_classes(data.test.classes)
    record = {
        "seed": seed,
        "depth": depth,
        "accuracy": profile.metrics["accuracy"],
        "epoch_accuracy": [p.metrics["accuracy"] for p in monitor.profiles],
        "epoch_entropy": [float(p.mean.mean()) for p in monitor.profiles],
        "entropy": profile.entropy.tolist(),
        "untrained": profile.baseline.entropy.tolist(),
        "flat": profile.flat(config.tolerance),
    }
    return record | without_flat(config, data, seed, model), profile


def without_flat(config, data, seed, model):
    """Test accuracy without the flat layers, refitted only and retrained; and its control."""
    record = {}
    for name, epochs in (("refitted", 0), ("retrained", config.epochs_after)):
        options = PruningOptions(
            criterion="entropy_gradient", tolerance=config.tolerance, max_drop=1.0,
            epochs=epochs, batch_size=config.batch_size, seed=seed,
        )  # fmt: skip
        result = prune_model(model, data.train.arrays, data.validation.arrays, options)
        record[f"{name}_removed"] = result.removed
        record[f"{name}_accuracy"] = studies.accuracy(result.model, data.test.arrays)
    # As many epochs more, with every layer in place.
    more = config.epochs_after * len(record["retrained_removed"])
    if more:
        studies.train(model, data, config, seed + 1000, epochs=more)
    record["kept_accuracy"] = studies.accuracy(model, data.test.arrays)
    return record


def monotone(entropy):
    """For each class of `[layers, classes]`, whether entropy never rises from layer to layer."""
    return np.all(np.diff(entropy, axis=0) <= 0, axis=0)


def tables(config, records):
    """The tables of results.md."""
    by_depth = {d: [r for r in records if r["depth"] == d] for d in config.depths}
    depth_rows, flat_rows = [], []
    for depth, rows in by_depth.items():
        curves, twins = ([monotone(r[k]) for r in rows] for k in ("entropy", "untrained"))
        rho = [spearmanr(r["epoch_accuracy"], r["epoch_entropy"]).statistic for r in rows]
        depth_rows.append(
            [
                depth,
                studies.mean_sd([r["accuracy"] for r in rows]),
                f"{np.sum(curves)} of {np.size(curves)}",
                f"{np.sum(twins)} of {np.size(twins)}",
                studies.mean_sd([np.mean(r["entropy"]) for r in rows], 3),
                studies.mean_sd(rho, 2),
            ]
        )
        counts = ", ".join(str(len(r["retrained_removed"])) for r in rows)
        numbers = ("accuracy", "refitted_accuracy", "retrained_accuracy", "kept_accuracy")
        flat_rows.append([depth, counts, *(studies.mean_sd([r[k] for r in rows]) for k in numbers)])
    depths = [r["depth"] for r in records]
    accuracies = [r["accuracy"] for r in records]
    across = spearmanr(accuracies, [np.mean(r["entropy"]) for r in records])
    confounded = spearmanr(depths, [np.mean(r["entropy"]) for r in records])
    header = [
        "Dense layers",
        "test accuracy",
        "monotone curves (seed, class)",
        "of the untrained twins",
        "mean entropy",
        "rank correlation of accuracy and mean entropy over the epochs",
    ]
    flat = [
        "Dense layers",
        "flat layers taken out, each seed",
        "before",
        "refitted, not trained",
        "and retrained",
        "nothing taken out, trained as long",
    ]
    correlations = (
        f"Over the {len(records)} networks the rank correlation of accuracy and mean entropy is "
        f"{across.statistic:+.2f} (p = {across.pvalue:.2f}), that of depth and mean entropy "
        f"{confounded.statistic:+.2f}."
    )
    return "\n\n".join(
        [
            f"{config.dataset}, {config.seeds} seeds, mean ± s.d.",
            studies.markdown(header, depth_rows),
            correlations,
            f"Flat layers (entropy falls by less than {config.tolerance}):",
            studies.markdown(flat, flat_rows),
        ]
    )


if __name__ == "__main__":
    studies.main(run, "configs/cifar10.py", "runs/depth_study")
