"""What moves the entropy of layers besides learning? Four controls.

python examples/controls.py --config configs/controls.py:full --workdir runs/controls

Networks with 4 Dense layers: trained, untrained, trained on shuffled labels, trained and rescaled
(one layer's weights times 3, the next one's divided by 3: the same function), and trained with
layers that get narrower instead of layers of one width. Leaves results.md, results.json and
a figure per measure.
"""

import keras
import numpy as np
import studies

from keras_layer_entropy import analyze_model, plots
from keras_layer_entropy.measures import MEASURES

SHOWN = ("activation_entropy", "state_entropy")


def run(config, workdir, overwrite=False):
    """Measures every control for each seed; returns the records in results.json."""
    folder = studies.new_folder(workdir, overwrite)
    data = studies.load(config)
    records = []
    for seed in range(config.seeds):
        keras.backend.clear_session()
        profiles = measure(config, data, seed)
        for name, (accuracy, profile) in profiles.items():
            means = {m: profile[m].mean.tolist() for m in SHOWN}
            records.append({"seed": seed, "network": name, "accuracy": accuracy, **means})
            print(f"seed {seed}, {name}: {accuracy:.4f}", flush=True)
        if seed == 0:
            shown = {name: profile for name, (_, profile) in profiles.items()}
            for measure_ in SHOWN:
                figure = plots.compared_curves(shown, measure_)
                studies.draw(folder, f"controls_{measure_}.png", figure)
    studies.write(folder, records, tables(config, records))
    return records


def measure(config, data, seed):
    """Name of a network -> `(test accuracy, profile)`."""
    found = {}

    def add(name, model):
        profile = analyze_model(model, data.test.arrays, measures=SHOWN, verbose=0)
        found[name] = profile.metrics["accuracy"], profile

    keras.utils.set_random_seed(seed)
    model = studies.build(config, config.hidden)
    add("untrained", model)
    studies.train(model, data, config, seed)
    add("trained", model)
    rescale(model, "dense_2", "dense_3", config.factor)
    add(f"trained, dense_2 x {config.factor:g}", model)

    model = studies.build(config, config.hidden)
    shuffled = np.random.default_rng(seed).permutation(data.train.arrays[1])
    studies.train(model, data, config, seed, y=shuffled)
    add("trained on shuffled labels", model)

    model = studies.build(config, config.narrowing)
    add("narrowing, untrained", model)
    studies.train(model, data, config, seed)
    add("narrowing, trained", model)
    return found


def rescale(model, layer, following, factor):
    """Multiplies a layer's weights and divides the next one's: with ReLU, the same function."""
    kernel, bias = model.get_layer(layer).get_weights()
    model.get_layer(layer).set_weights([kernel * factor, bias * factor])
    kernel, bias = model.get_layer(following).get_weights()
    model.get_layer(following).set_weights([kernel / factor, bias])


def tables(config, records):
    """The tables of results.md: per network its accuracy and the mean of each layer."""
    depth = len(config.hidden) + 1
    header = ["network", "test accuracy", *(f"layer {i}" for i in range(1, depth)), "output"]
    parts = [f"{config.dataset}, {config.seeds} seeds, mean ± s.d."]
    for measure in SHOWN:
        rows = []
        for name in dict.fromkeys(r["network"] for r in records):
            have = [r for r in records if r["network"] == name]
            means = [studies.mean_sd([r[measure][x] for r in have], 3) for x in range(depth)]
            rows.append([name, studies.mean_sd([r["accuracy"] for r in have]), *means])
        described = MEASURES[measure]()
        parts.append(f"{described.title} ({described.unit}):")
        parts.append(studies.markdown(header, rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    studies.main(run, "configs/controls.py", "runs/controls")
