"""Figures of the numbers of whole layers: information on inputs, labels and other layers."""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_layer_entropy.measures.catalogue import (
    DESCRIPTIONS,
    LAYER_DESCRIPTIONS,
    layer_value_names,
)
from keras_layer_entropy.plots.style import (
    CYCLE,
    GRID,
    MARKERS,
    ORDER,
    bare,
    check_one_model,
    from_zero,
    layer_labels,
    layer_ticks,
    layers_width,
    plain,
    spread_out,
)

_ESTIMATORS = {"mutual_information": "mutual information", "logdet": "LogDet"}
_AXES = {"input": "I(input; layer)", "previous": "I(layer before; layer)"}


def information_plane(profiles, measure="mutual_information", title=None):
    """I(T; Y) against I(X; T) of every layer, a point per epoch: the information plane.

    Layers of an epoch are joined by a thin line; epochs go from dark to light. What
    `mutual_information` says cannot lie above the shaded border, min(I(X; T), H(Y)).

    Args:
        profiles: an `EntropyProfile`, or those of the epochs of one model
            (`EntropyMonitor.profiles`), with `measure` among their measures.
        measure: `"mutual_information"` (bits) or `"logdet"` (nats).
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: no profiles, profiles of different layers, or without the measure.

    Source: Shwartz-Ziv & Tishby, *Opening the Black Box of Deep Neural Networks via Information*,
    2017, arXiv 1703.00810.

    Example:

    >>> import keras
    >>> from keras_layer_entropy import analyze_model
    >>> model = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)])
    >>> data = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> profile = analyze_model(model, data, measures="mutual_information", verbose=0)
    >>> information_plane(profile).axes[0].get_xlabel()
    'I(input; layer), bits'
    """
    if measure not in _ESTIMATORS:
        raise ValueError(f"measure={measure!r}; expected one of {tuple(_ESTIMATORS)}.")
    return _plane(profiles, measure, "input", title or f"Information plane, {_ESTIMATORS[measure]}")


def layer_to_layer_plane(profiles, title=None):
    """I(T; Y) against I(T_before; T) by LogDet: what a layer takes over, and what it knows.

    Args, returns, errors: as for `information_plane`, with `logdet` among the measures. The first
    layer has none before it and is left out.

    Source: Zhouyin & Liu 2021, arXiv 2105.03705.

    Example:

    >>> import keras
    >>> from keras_layer_entropy import analyze_model
    >>> model = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)])
    >>> data = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> profile = analyze_model(model, data, measures="logdet", verbose=0)
    >>> layer_to_layer_plane(profile).axes[0].get_xlabel()
    'I(layer before; layer), nats'
    """
    return _plane(profiles, "logdet", "previous", title or "From layer to layer, LogDet")


def layer_values(profile, measure, title=None):
    """What came with a measure for the layers as a whole, against depth; shuffled pairs dashed.

    Args:
        profile: `EntropyProfile`.
        measure: one that brings such numbers, `"logdet"` say.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: there are no such numbers.

    Example:

    >>> import keras
    >>> from keras_layer_entropy import analyze_model
    >>> model = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)])
    >>> data = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> profile = analyze_model(model, data, measures="mutual_information", verbose=0)
    >>> [line.get_label() for line in layer_values(profile, "mutual_information").axes[0].lines]
    ['input', 'labels', 'labels, shuffled']
    """
    names = layer_value_names(profile, measure)
    if not names:
        raise ValueError(
            f"{measure!r} brought no numbers of layers as a whole; there are "
            f"{sorted(profile.layer_values)}."
        )
    labels, depth = layer_labels(profile), np.arange(len(profile.layers))
    units = list(dict.fromkeys(LAYER_DESCRIPTIONS[name].unit for name in names))
    width = max(7.0, layers_width(labels, 2.2, 0.6))
    figure = Figure(figsize=(width, 3.4 + 0.04 * max(map(len, labels))), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(units)))
    plain_names = [name for name in names if not name.endswith("_shuffled")]
    for name in names:
        place = plain_names.index(name.removesuffix("_shuffled"))
        axes = panels[units.index(LAYER_DESCRIPTIONS[name].unit)]
        shuffled = name.endswith("_shuffled")
        words = name.removeprefix(f"{measure}_").removesuffix("_shuffled").replace("_", " ")
        axes.plot(
            depth,
            profile.layer_values[name],
            "--" if shuffled else "-",
            marker=MARKERS[place % len(MARKERS)],
            markersize=4.5,
            markerfacecolor="none" if shuffled else None,
            color=CYCLE[place % len(CYCLE)],
            linewidth=1.3 if shuffled else 2.0,
            label=f"{words}, shuffled" if shuffled else words,
        )
    for axes, unit in zip(panels, units, strict=True):
        layer_ticks(axes, labels)
        axes.set_ylabel(unit)
        shown = [n for n in names if LAYER_DESCRIPTIONS[n].unit == unit]
        if spread_out(np.concatenate([profile.layer_values[name] for name in shown])):
            axes.set_yscale("log")
        else:
            from_zero(axes)
        bare(axes)
    panels[0].set_title(title or f"{DESCRIPTIONS[measure].title}: layers as a whole", loc="left")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _plane(profiles, measure, across, title):
    profiles = list(profiles) if isinstance(profiles, list | tuple) else [profiles]
    names = (f"{measure}_{across}", f"{measure}_labels")
    check_one_model(profiles)
    for profile in profiles:
        if missing := [name for name in names if name not in profile.layer_values]:
            raise ValueError(
                f"The profile holds no {missing}, only {sorted(profile.layer_values)}: measure "
                f"again with {measure!r} among measures."
            )
    x, y = (np.array([profile.layer_values[name] for profile in profiles]) for name in names)
    shown = np.flatnonzero(np.isfinite(x).any(axis=0) & np.isfinite(y).any(axis=0))
    labels = layer_labels(profiles[0])
    epochs = np.array([i if p.epoch is None else p.epoch for i, p in enumerate(profiles)]) + 1
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.add_subplot()
    norm = Normalize(epochs[0], max(epochs[-1], epochs[0] + 1))
    colors = ORDER(norm(epochs))
    for row, color in enumerate(colors):
        axes.plot(x[row, shown], y[row, shown], "-", color=color, lw=0.6, alpha=0.5, zorder=2)
    for layer in shown:
        style = {"s": 34, "marker": MARKERS[layer % len(MARKERS)]}
        axes.scatter(x[:, layer], y[:, layer], c=colors, zorder=3, ec="white", lw=0.4, **style)
        axes.scatter([], [], color="0.35", label=labels[layer], **style)
    unit = DESCRIPTIONS[measure].unit
    axes.set_xlabel(f"{_AXES[across]}, {unit}")
    axes.set_ylabel(f"I(layer; labels), {unit}")
    if spread_out(x):  # a wide layer among narrow ones
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, 1.05 * np.nanmax(x, initial=1e-3))
    axes.set_ylim(0, 1.08 * np.nanmax(y, initial=1e-3))
    if measure == "mutual_information":
        _bound(axes, profiles[0])
    bare(axes)
    axes.set_title(plain(title), loc="left")
    if len(profiles) > 1:
        bar = figure.colorbar(ScalarMappable(norm, ORDER), ax=axes, label="epoch")
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _bound(axes, profile):
    """Shades what no layer can reach: more on the labels than on the input, or than there is."""
    share = profile.count[profile.count > 0] / profile.count.sum()
    most = float(-(share * np.log2(share)).sum())
    right = axes.get_xlim()[1]
    corner = min(most, right)
    top = max(axes.get_ylim()[1], 1.08 * most)
    axes.set_ylim(0, top)
    axes.fill_between([0, corner, max(right, corner)], [0, corner, most], top, color=GRID, lw=0,
                      zorder=1, label="not possible")  # fmt: skip
