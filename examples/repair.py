"""A poorly trained network is repaired by taking layers out: 4 Dense layers, then 3, then 2.

python examples/repair.py --config configs/repair.py:full --workdir runs/repair

The recipe is weak on purpose. The pruning search takes out the layer over which entropy rises most,
refits and retrains, twice; beside it, the same network trained as long with every layer in place.
Leaves results.md, results.json, and for the first seed a figure and a profile per network.
"""

import keras
import numpy as np
import studies

from keras_layer_entropy import PruningOptions, analyze_model, plots, prune_model
from keras_layer_entropy.measures import ActivationEntropy


def run(config, workdir, overwrite=False):
    """Trains, repairs and measures for each seed; returns the records in results.json."""
    folder = studies.new_folder(workdir, overwrite)
    data = studies.load(config)
    records = []
    for seed in range(config.seeds):
        keras.backend.clear_session()
        record, profiles = repair(config, data, seed)
        records.append(record)
        print(f"seed {seed}: {record['accuracy']}, {record['removed']}", flush=True)
        if seed == 0:
            draw(folder, record, profiles)
    studies.write(folder, records, tables(config, records))
    return records


def repair(config, data, seed):
    """One seed: `(record, profiles on the test data as layers went)`."""
    keras.utils.set_random_seed(seed)
    model = studies.build(config, config.hidden)
    studies.train(model, data, config, seed)
    networks = [model]

    def on_step(smaller, _):
        networks.append(smaller)

    options = PruningOptions(
        criterion="entropy_gradient", max_drop=1.0, max_removals=config.removals,
        epochs=config.epochs_after, batch_size=config.batch_size, seed=seed,
    )  # fmt: skip
    result = prune_model(model, data.train.arrays, data.validation.arrays, options, on_step=on_step)
    measures = ActivationEntropy(keep_patterns=True)
    profiles = [
        analyze_model(
            network, data.test.arrays, measures=measures, baseline=True, seed=seed, verbose=0
        )
        for network in networks
    ]
    accuracies = [studies.accuracy(network, data.test.arrays) for network in networks]
    kept = []
    for step in range(config.removals):
        studies.train(model, data, config, seed + 1000 + step, epochs=config.epochs_after)
        kept.append(studies.accuracy(model, data.test.arrays))
    record = {
        "seed": seed,
        "accuracy": accuracies,
        "trained_as_long": kept,
        "removed": list(result.removed),
        "gradient": [step.score for step in result.steps],
        "right_after_removal": [step.quality_removed for step in result.steps],
        "entropy": [profile.mean.tolist() for profile in profiles],
    }
    return record, profiles


def draw(folder, record, profiles):
    """A figure and a profile per network."""
    gone = ["", *(f", {layer} deleted" for layer in record["removed"])]
    for number, (profile, what) in enumerate(zip(profiles, gone, strict=True)):
        title = (
            f"{len(profile.layers)} Dense layers{what}: accuracy {record['accuracy'][number]:.3f}"
        )
        figure = plots.entropy_and_patterns(profile, title=title)
        studies.draw(folder, f"repair_{number}.png", figure)
        profile.save(folder / f"profile_{number}.json")


def tables(config, records):
    """The table of results.md."""
    rows = []
    for number in range(config.removals + 1):
        have = [r for r in records if len(r["removed"]) >= number]
        removed = ", ".join(r["removed"][number - 1] if number else "-" for r in have)
        kept = [r["trained_as_long"][number - 1] for r in have] if number else []
        steps = np.concatenate([np.diff(r["entropy"][number]) for r in have])
        rows.append(
            [
                len(config.hidden) + 1 - number,
                removed,
                studies.mean_sd([r["accuracy"][number] for r in have]),
                studies.mean_sd(kept),
                f"{np.sum(steps > 0)} of {len(steps)}",
            ]
        )
    header = [
        "Dense layers",
        "layer taken out, each seed",
        "test accuracy",
        "nothing taken out, trained as long",
        "steps with depth over which mean entropy rises",
    ]
    return (
        f"{config.dataset}, {config.seeds} seeds, mean ± s.d.; {config.epochs} epochs, and "
        f"{config.epochs_after} after each removal\n\n" + studies.markdown(header, rows)
    )


if __name__ == "__main__":
    studies.main(run, "configs/repair.py", "runs/repair")
