"""The figures of a measure, as it says them in words."""

from collections.abc import Callable, Iterable

from matplotlib.figure import Figure

from keras_layer_entropy.measures.measure import Panel, Profile
from keras_layer_entropy.plots.health import layer_health
from keras_layer_entropy.plots.histograms import activation_histograms
from keras_layer_entropy.plots.information import (
    beside_entropy,
    information_plane,
    layer_values,
)
from keras_layer_entropy.plots.profiles import entropy_curve, heatmap

# What a `Panel` may ask for.
PANELS: dict[str, Callable[..., Figure]] = {
    "curve": entropy_curve,
    "heatmap": heatmap,
    "whole": layer_values,
    "plane": information_plane,
    "beside_entropy": beside_entropy,
    "health": layer_health,
    "histograms": activation_histograms,
}
# Of these, what shows every epoch of a training where they are known.
_OF_EPOCHS = ("plane",)


def panel(profile: Profile, name: str, wanted: Panel, history: Iterable[Profile] = ()) -> Figure:
    """A figure of a measure.

    Args:
        profile: `EntropyProfile`.
        name: of the measure in it.
        wanted: `measures.measure.Panel`, one of the measure's `panels`.
        history: profiles of the epochs of the training, if there are any.

    Returns:
        `matplotlib.figure.Figure`.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), widths=(8, 2), is_output=(False, True),
    ...     classes=("a", "b"), count=[5, 5], results={"state_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> [panel(profile, "state_entropy", each).axes[0].get_title("left")
    ...  for each in profile.measures["state_entropy"].panels]
    ['On/off state entropy against depth', 'On/off state entropy, class by class']
    """
    epochs = [epoch for epoch in history if name in epoch.results]
    shown = epochs if epochs and wanted.kind in _OF_EPOCHS else profile
    return PANELS[wanted.kind](shown, name, **wanted.options)
