"""Look into the network that examples/train.py left: feature maps, patterns, entropies.

python examples/analyze.py --config configs/mnist.py:full --workdir runs/mnist

Leaves a folder figures/ in the workdir: the feature maps of both convolutions, the neurons'
probabilities class by class and image by image, entropy against depth, stability.
"""

import keras
import numpy as np
import studies

from keras_layer_entropy import ActivationProbe, analyze_model, load_model, plots
from keras_layer_entropy.measures import ActivationEntropy

MOST_IMAGES = 1000


def run(config, workdir, overwrite=False):
    """Draws every figure; returns the `EntropyProfile` on the test data."""
    model = load_model(f"{workdir}/saved_model")
    folder = studies.new_folder(f"{workdir}/figures", overwrite)
    data = studies.load(config).test
    x, y = data.arrays
    images = x[y == data.classes.index(config.class_name)][:MOST_IMAGES]

    few = images[: config.images]
    maps = ActivationProbe(model, layers=keras.layers.Conv2D).predict(few, verbose=0)
    for layer, outputs in maps.items():
        title = f"Feature maps of {layer}, class {config.class_name}"
        studies.draw(folder, f"feature_maps_{layer}.png", plots.feature_maps(few, outputs, title))

    patterns = ActivationProbe(model, patterns=True).predict(images, verbose=0)
    title = f"Activation probabilities in {len(images)} images of class {config.class_name}"
    figure = plots.probability_histograms(patterns, title)
    studies.draw(folder, "probability_histograms.png", figure)

    profiles = {
        pattern: analyze_model(model, data.arrays, measures=ActivationEntropy(pattern), verbose=0)
        for pattern in ("per_sample", "softmax_then_mean")
    }
    studies.draw(folder, "stability.png", plots.stability(*profiles.values()))
    measures = ActivationEntropy(keep_patterns=True)
    profile = analyze_model(
        model, data.arrays, measures=measures, baseline=True, seed=config.seed, verbose=0
    )
    profile = profile.with_classes(data.classes)
    classes = (config.class_name, config.other_class)
    figures = {
        "activation_probabilities": plots.activation_probabilities(profile, classes),
        "entropy": plots.entropy_curve(profile),
        "heatmap": plots.heatmap(profile),
    }
    for name, figure in figures.items():
        studies.draw(folder, f"{name}.png", figure)
    print(f"Entropy {np.round(profile.mean, 3).tolist()}. Now look at {folder}.")
    return profile


if __name__ == "__main__":
    studies.main(run, "configs/mnist.py", "runs/mnist")
