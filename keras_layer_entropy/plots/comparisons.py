"""Figures of two things side by side, of plain values."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from keras_layer_entropy.measures.measure import listed
from keras_layer_entropy.plots.style import (
    BLUE,
    PALE_BLUE,
    VERMILION,
    bare,
    layer_ticks,
    layers_width,
    plain,
    shortened,
)

# The second above the first, which shows where they coincide.
_STYLES = (
    dict(color=VERMILION, marker="o", markersize=7.5, linewidth=2.8),
    dict(color=BLUE, marker="s", markersize=4.5, linewidth=1.7),
)
_LEAST = 0.05  # of what there can be: what changes by less is to look small


def two_curves(
    labels: Sequence[str],
    curves: Mapping[str, np.ndarray],
    change: np.ndarray,
    *,
    by_class: np.ndarray | None = None,
    untrained: Mapping[str, np.ndarray] | None = None,
    label: str = "",
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """A number of each layer of two networks against depth, and below how far they are apart.

    Args:
        labels: of the layers of both.
        curves: name -> `[layers]`, of each of the two; NaN, a gap, where it has no such layer.
        change: `[layers]`, how far they are apart; NaN, no bar, where that says nothing.
        by_class: `[layers, classes]`, the same of each class.
        untrained: name -> `[layers]` of the same networks freshly initialised.
        label: what the number is.
        limits: the smallest and the largest value that there can be.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`.

    Example:

    >>> curves = {"epoch 1": np.array([0.9, 0.5]), "epoch 9": np.array([0.8, 0.1])}
    >>> figure = two_curves(["dense (8)", "out (2)"], curves, np.array([-0.1, -0.4]))
    >>> [axes.get_ylabel() for axes in figure.axes], len(figure.axes[1].patches)
    (['', 'change'], 2)
    """
    height = 5.2 + 0.04 * max(map(len, labels))
    width = max(7.0, layers_width(labels, 2.2, 0.6))
    figure = Figure(figsize=(width, height), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    depth = np.arange(len(labels))
    for (name, values), style in zip(curves.items(), _STYLES, strict=True):
        if untrained and name in untrained:
            above.plot(depth, untrained[name], ":", color=style["color"], alpha=0.6, lw=1.3,
                       label=f"{plain(name)}, untrained")  # fmt: skip
        above.plot(depth, values, **style, label=plain(name))
    above.set_ylabel(label)
    if limits is not None:
        above.set_ylim(limits[0] - 0.03 * limits[1], 1.03 * limits[1])
    below.bar(depth, change, 0.6, color=PALE_BLUE, zorder=2, label="change")
    if by_class is not None:
        places = np.repeat(depth, by_class.shape[1])
        below.plot(places, by_class.ravel(), "_", color="0.2", ms=9, alpha=0.6, zorder=3,
                   label="change of each class")  # fmt: skip
    below.axhline(0, color="0.3", linewidth=0.9)
    below.set_xlim(-0.6, len(labels) - 0.4)
    if limits is not None:
        low, high = below.get_ylim()
        below.set_ylim(min(low, -_LEAST * limits[1]), max(high, _LEAST * limits[1]))
    below.set_ylabel("change")
    below.set_xlabel("layer (units), in the order of the forward pass")
    layer_ticks(below, labels)
    for axes in (above, below):
        bare(axes)
    above.set_title(title, loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def two_networks(
    layers: Sequence[str],
    units: Mapping[str, np.ndarray],
    parameters: Mapping[str, np.ndarray],
    title: str = "",
) -> Figure:
    """How wide each layer of two networks is, and below how many parameters it has.

    Args:
        layers: paths of the layers of both.
        units, parameters: name -> `[layers]`, of each of the two; NaN, no bar, where there is none.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`.

    Example:

    >>> numbers = {"big": np.array([16.0, 2.0]), "small": np.array([np.nan, 2.0])}
    >>> figure = two_networks(["dense", "out"], numbers, numbers)
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['units', 'parameters']
    """
    labels = [plain(name) for name in shortened(layers)]
    width = max(7.0, layers_width(labels, 2.2, 0.6))
    figure = Figure(figsize=(width, 5.2 + 0.04 * max(map(len, labels))), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    both = {"units": units, "parameters": parameters}
    for axes, (what, numbers) in zip(panels, both.items(), strict=True):
        _bars(axes, numbers)
        axes.set_ylabel(what)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        bare(axes)
    panels[1].set_xlim(-0.6, len(labels) - 0.4)
    layer_ticks(panels[1], labels)
    panels[0].set_title(title, loc="left")
    handles = panels[0].get_legend_handles_labels()  # the other has the same
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _bars(axes: Axes, numbers: Mapping[str, np.ndarray]) -> None:
    """The second narrow before the first."""
    styles = ((0.8, PALE_BLUE), (0.4, BLUE))
    for (name, values), (width, color) in zip(numbers.items(), styles, strict=True):
        axes.bar(np.arange(len(values)), values, width, color=color, label=plain(name), zorder=2)


def two_searches(
    points: Mapping[str, Sequence[tuple[float, float, bool]]],
    originals: Mapping[str, float],
    qualities: Mapping[str, str],
    cost: str = "parameters",
    title: str = "",
) -> Figure:
    """What two searches for a smaller network have left, and how good that is.

    Args:
        points: name -> list of `(cost that is left, quality, whether the step was kept)`.
        originals: name -> quality of the network that the search began with; NaN is not drawn.
        qualities: name -> what its quality is called; where the two differ, each has its own axes.
        cost: what is left.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`.

    Example:

    >>> figure = two_searches({"one": [(90, 0.9, True), (80, 0.7, False)], "other": []},
    ...                       {"one": 0.91, "other": 0.91}, dict.fromkeys(("one", "other"), "auc"))
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('parameters left', 'validation auc')
    """
    panels = list(dict.fromkeys(qualities.values()))
    figure = Figure(figsize=(7.0 if len(panels) == 1 else 11.0, 4.6), layout="constrained")
    found = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    for (name, steps), style in zip(points.items(), _STYLES, strict=True):
        axes, label = found[qualities[name]], plain(name)
        kept = [step[:2] for step in steps if step[2]]
        back = [step[:2] for step in steps if not step[2]]
        axes.plot(*np.reshape(kept, (-1, 2)).T, **style, label=label)
        if back:
            axes.plot(*np.transpose(back), "x", color=style["color"], alpha=0.7,
                      label=f"{label}, rolled back")  # fmt: skip
    begun = [(qualities[name], originals[name]) for name in points]
    for words, value in dict.fromkeys(begun):
        if np.isfinite(value):
            whose = [plain(x) for x, y in zip(points, begun, strict=True) if y == (words, value)]
            found[words].axhline(value, color="0.4", ls="--", lw=1.0, zorder=1,
                                 label=f"{listed(whose)}, original")  # fmt: skip
    for words, axes in found.items():
        axes.set_ylabel(f"validation {plain(words)}")
        axes.set_xlabel(f"{cost} left")
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.invert_xaxis()  # as the searches went
        bare(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    figure.axes[0].set_title(title, loc="left")
    return figure
