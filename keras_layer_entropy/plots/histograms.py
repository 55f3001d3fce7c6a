"""Figures of how activations are distributed."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_layer_entropy.measures.measure import Profile
from keras_layer_entropy.plots.style import (
    BLUE,
    PALE_BLUE,
    bare,
    canvas,
    layer_labels,
    plain,
)

_TICKS = (-1000, -10, -0.1, 0, 0.1, 10, 1000)


def activation_histograms(
    profile: Profile,
    measure: str = "activation_histogram",
    title: str | None = None,
    *,
    ax: Axes | None = None,
) -> Figure:
    """How the activations of each layer are distributed, a ridge for each, the first on top.

    The axis is logarithmic to both sides of 0, where a bar of its own is. Each ridge is as high as
    the largest of its bins that is not that of 0.

    Args:
        profile: `EntropyProfile` with `activation_histogram`.
        measure: its name in the profile.
        title: title of the figure.
        ax: as for `entropy_curve`.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: it was not measured.

    Example:

    >>> import keras
    >>> from keras_layer_entropy import analyze_model
    >>> model = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> data = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> profile = analyze_model(model, data, measures="activation_histogram", verbose=0)
    >>> activation_histograms(profile).axes[0].get_xlabel()
    'activation'
    """
    details, labels = profile[measure].details, layer_labels(profile)
    axes = canvas(ax, (7.0, 1.6 + 0.55 * len(labels)))
    for row, layer in enumerate(profile.layers):
        if layer not in details:
            continue
        counts = details[layer]["counts"].sum(axis=0)
        middle = len(counts) // 2
        rest = np.delete(counts, middle)
        height = 0.85 / max(rest.max(initial=0.0), 1.0)
        places = np.arange(len(counts))
        for part in (slice(0, middle), slice(middle + 1, None)):
            axes.fill_between(
                places[part], row, row - height * counts[part], step="mid", color=PALE_BLUE,
                edgecolor=BLUE, lw=0.8, zorder=3 + row,
            )  # fmt: skip
        share = counts[middle] / max(counts.sum(), 1.0)
        axes.bar(middle, -0.85 * share, 1.6, bottom=row, color=BLUE, zorder=3 + row)
    edges = next(iter(details.values()))["edges"] if details else np.zeros(2)
    axes.set_xticks(
        [np.searchsorted(edges, tick) - 1 for tick in _TICKS], [f"{tick:g}" for tick in _TICKS]
    )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.6, -1.1)
    axes.set_xlabel("activation")
    bare(axes)
    axes.grid(axis="y", visible=False)
    axes.set_title(plain(title or "Activations; the dark bar is the share at 0"), loc="left")
    return axes.figure
