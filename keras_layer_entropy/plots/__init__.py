"""Profiles and activations -> matplotlib Figures.

No pyplot: nothing is global, and a figure that is dropped is gone. Show one with
`display(figure)` in a notebook, save it with `figure.savefig(path)`.
"""

from keras_layer_entropy.plots.activations import (
    activation_probabilities,
    entropy_and_patterns,
    feature_maps,
    probability_histograms,
)
from keras_layer_entropy.plots.profiles import (
    compared_curves,
    entropy_curve,
    entropy_over_epochs,
    heatmap,
    pruning_curves,
    stability,
)
from keras_layer_entropy.plots.rendering import pixels, svg

__all__ = [
    "activation_probabilities",
    "compared_curves",
    "entropy_and_patterns",
    "entropy_curve",
    "entropy_over_epochs",
    "feature_maps",
    "heatmap",
    "pixels",
    "probability_histograms",
    "pruning_curves",
    "stability",
    "svg",
]
