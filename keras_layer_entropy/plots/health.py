"""Figures of what is healthy in the layers."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_layer_entropy.measures.measure import MeasureResult, Profile
from keras_layer_entropy.plots.style import (
    BLUE,
    CYCLE,
    MARKERS,
    bare,
    layer_labels,
    layer_ticks,
    layers_width,
    plain,
)

_SHARES = {"dead": "dead", "always_on": "always on", "saturated": "saturated"}


def layer_health(
    profile: Profile, measure: str = "activation_health", title: str | None = None
) -> Figure:
    """Shares of units that do nothing, scale and spread of activations, rank of the class means.

    Args:
        profile: `EntropyProfile` with `activation_health`.
        measure: its name in the profile.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: it was not measured.

    Example:

    >>> import keras
    >>> from keras_layer_entropy import analyze_model
    >>> model = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> data = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> profile = analyze_model(model, data, measures="activation_health", verbose=0)
    >>> [axes.get_ylabel() for axes in layer_health(profile).axes]
    ['share of the units', 'size of activations', 'directions']
    """
    result, labels = profile[measure], layer_labels(profile)
    ranked = bool(np.isfinite(result.whole["effective_rank"]).any())
    depth = np.arange(len(labels))
    width = max(7.0, layers_width(labels, 2.2, 0.6))
    height = 4.4 + 1.4 * ranked + 0.04 * max(map(len, labels))
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(2 + ranked, 1, sharex=True)
    _bars(panels[0], result, depth)
    for name, style in (("rms", "o-"), ("spread", "s--")):
        values = np.where(result.whole[name] > 0, result.whole[name], np.nan)
        color = BLUE if name == "rms" else CYCLE[1]
        words = "root mean square" if name == "rms" else "spread over the samples"
        panels[1].plot(depth, values, style, color=color, lw=1.8, ms=4.5, label=words)
    panels[1].set_yscale("log")
    panels[1].set_ylabel("size of activations")
    panels[1].legend(frameon=False)
    if ranked:
        rank = result.whole["effective_rank"]
        panels[2].plot(depth, rank, "-", color=CYCLE[2], marker=MARKERS[2], lw=1.8, ms=4.5,
                       label="effective rank of the class means")  # fmt: skip
        panels[2].set_ylim(0, 1.15 * max(1.0, np.nanmax(rank)))
        panels[2].set_ylabel("directions")
        panels[2].legend(frameon=False)
    layer_ticks(panels[-1], labels)
    for axes in panels:
        bare(axes)
    panels[0].set_title(plain(title or "Health of the layers"), loc="left")
    return figure


def _bars(axes: Axes, result: MeasureResult, depth: np.ndarray) -> None:
    """The shares, a bar for each that is above 0 in any layer."""
    whole = result.whole
    shown = {
        key: words
        for key, words in _SHARES.items()
        if key == "dead" or np.nan_to_num(whole[key]).any()
    }
    width = 0.8 / max(1, len(shown))
    for place, (key, words) in enumerate(shown.items()):
        x = depth + (place - (len(shown) - 1) / 2) * width
        axes.bar(x, np.nan_to_num(whole[key]), 0.9 * width, color=CYCLE[place], label=words)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of the units")
    axes.legend(frameon=False, ncols=3)
