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
from keras_layer_entropy.plots.comparisons import two_curves, two_networks, two_searches
from keras_layer_entropy.plots.health import layer_health
from keras_layer_entropy.plots.histograms import activation_histograms
from keras_layer_entropy.plots.information import (
    beside_entropy,
    information_plane,
    layer_to_layer_plane,
    layer_values,
)
from keras_layer_entropy.plots.panels import panel
from keras_layer_entropy.plots.plans import plan_points
from keras_layer_entropy.plots.profiles import (
    compared_curves,
    entropy_curve,
    entropy_over_epochs,
    heatmap,
    pruning_curves,
    stability,
    thinning_curves,
)
from keras_layer_entropy.plots.rendering import pixels, svg
from keras_layer_entropy.plots.units import (
    feature_entropy_and_loss,
    feature_entropy_by_depth,
    unit_classes,
    unit_information,
    unit_pairs,
    unit_ranking,
    unit_ranks,
)

__all__ = [
    "activation_histograms",
    "activation_probabilities",
    "beside_entropy",
    "compared_curves",
    "entropy_and_patterns",
    "entropy_curve",
    "entropy_over_epochs",
    "feature_entropy_and_loss",
    "feature_entropy_by_depth",
    "feature_maps",
    "heatmap",
    "information_plane",
    "layer_health",
    "layer_to_layer_plane",
    "layer_values",
    "panel",
    "pixels",
    "plan_points",
    "probability_histograms",
    "pruning_curves",
    "stability",
    "svg",
    "thinning_curves",
    "two_curves",
    "two_networks",
    "two_searches",
    "unit_classes",
    "unit_information",
    "unit_pairs",
    "unit_ranking",
    "unit_ranks",
]
