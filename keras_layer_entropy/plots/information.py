"""Figures of the numbers of whole layers: information, probes, beside one another."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from keras_layer_entropy.measures.measure import Profile
from keras_layer_entropy.plots.style import (
    BLUE,
    CYCLE,
    GRID,
    MARKERS,
    ORDER,
    PALE_BLUE,
    VERMILION,
    axis_label,
    bare,
    canvas,
    check_one_model,
    epochs_of,
    from_zero,
    layer_labels,
    layer_ticks,
    layers_width,
    legend,
    plain,
    set_limits,
    spread_out,
    whole_steps,
)


def information_plane(
    profiles: Profile | Sequence[Profile],
    measure: str = "mutual_information",
    title: str | None = None,
    across: str = "input",
    bounded: bool | None = None,
    *,
    ax: Axes | None = None,
) -> Figure:
    """I(T; Y) against I(X; T) of every layer, a point per epoch: the information plane.

    Layers of an epoch are joined by a thin line; epochs go from dark to light. What no layer can
    tell of the labels, more than H(Y), is shaded. (A layer may tell more of them than of the input:
    noise is added to what is compared with the input.)

    Args:
        profiles: an `EntropyProfile`, or those of the epochs of one model
            (`EntropyMonitor.profiles`), with `measure` among their measures.
        measure: a measure that brings `labels` and what stands `across` for layers as a whole.
        title: title of the figure.
        across: what goes from left to right, `"input"` or, with LogDet, `"previous"`: the layer
            before, in place of the input. (The first layer has none before it and is left out.)
        bounded: whether the border is shaded; None where the measure is in bits.
        ax: as for `entropy_curve`.

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
    profiles = list(profiles) if isinstance(profiles, list | tuple) else [profiles]
    check_one_model(profiles)
    for profile in profiles:
        whole = profile[measure].whole
        if missing := [name for name in (across, "labels") if name not in whole]:
            raise ValueError(
                f"The measure {measure!r} says nothing of {missing}, only of {sorted(whole)}."
            )
    x, y = (np.array([p[measure].whole[name] for p in profiles]) for name in (across, "labels"))
    shown = np.flatnonzero(np.isfinite(x).any(axis=0) & np.isfinite(y).any(axis=0))
    labels, epochs = layer_labels(profiles[0]), epochs_of(profiles)
    axes = canvas(ax, (7.0, 4.6))
    norm = Normalize(epochs[0], max(epochs[-1], epochs[0] + 1))
    colors = ORDER(norm(epochs))
    for row, color in enumerate(colors):
        axes.plot(x[row, shown], y[row, shown], "-", color=color, lw=0.6, alpha=0.5, zorder=2)
    for layer in shown:
        style = {"s": 34, "marker": MARKERS[layer % len(MARKERS)]}
        axes.scatter(x[:, layer], y[:, layer], c=colors, zorder=3, ec="white", lw=0.4, **style)
        axes.scatter([], [], color="0.35", label=labels[layer], **style)
    described = profiles[0].measures[measure]
    unit = described.words(across).unit
    axes.set_xlabel(f"{described.words(across).title}, {unit}")
    axes.set_ylabel(f"{described.words('labels').title}, {unit}")
    if spread_out(x):  # a wide layer among narrow ones
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, 1.05 * np.nanmax(x, initial=1e-3))
    axes.set_ylim(0, 1.08 * np.nanmax(y, initial=1e-3))
    if bounded or (bounded is None and unit == "bits"):
        _bound(axes, profiles[0])
    bare(axes)
    axes.set_title(plain(title or f"Information plane: {described.title}"), loc="left")
    if len(profiles) > 1:
        bar = axes.figure.colorbar(ScalarMappable(norm, ORDER), ax=axes, label="epoch")
        whole_steps(bar.ax.yaxis)
    legend(axes, ax, ncols=3)
    return axes.figure


def layer_to_layer_plane(
    profiles: Profile | Sequence[Profile], title: str | None = None, *, ax: Axes | None = None
) -> Figure:
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
    title = title or "From layer to layer, LogDet"
    return information_plane(profiles, "logdet", title, "previous", ax=ax)


def layer_values(profile: Profile, measure: str, title: str | None = None) -> Figure:
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
    result, described = profile[measure], profile.measures[measure]
    if not result.whole:
        raise ValueError(f"{measure!r} brings no numbers of layers as a whole.")
    labels, depth = layer_labels(profile), np.arange(len(profile.layers))
    unit_of = {name: described.words(name).unit for name in result.whole}
    units = list(dict.fromkeys(unit_of.values()))
    width = max(7.0, layers_width(labels, 2.2, 0.6))
    figure = Figure(figsize=(width, 3.4 + 0.04 * max(map(len, labels))), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(units)))
    for place, (name, found) in enumerate(result.whole.items()):
        axes, words = panels[units.index(unit_of[name])], name.replace("_", " ")
        style = {
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 4.5,
            "color": CYCLE[place % len(CYCLE)],
        }
        axes.plot(depth, found, "-", linewidth=2.0, label=words, **style)
        if name in result.shuffled:
            axes.plot(depth, result.shuffled[name], "--", linewidth=1.3, markerfacecolor="none",
                      label=f"{words}, shuffled", **style)  # fmt: skip
    for axes, unit in zip(panels, units, strict=True):
        layer_ticks(axes, labels)
        axes.set_ylabel(unit)
        shown = [x for k, x in (*result.whole.items(), *result.shuffled.items())
                 if unit_of[k] == unit]  # fmt: skip
        if spread_out(np.concatenate(shown)):
            axes.set_yscale("log")
        else:
            from_zero(axes)
        bare(axes)
    panels[0].set_title(title or f"{described.title}: layers as a whole", loc="left")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def beside_entropy(profile: Profile, measure: str, name: str, title: str | None = None) -> Figure:
    """A number of layers as a whole above their activation entropy: where do the two disagree?

    Two of its standard errors are shaded where the measure brings `<name>_error`. What is shuffled
    is dashed, or only in the legend where it lies far below. Without activation entropy in the
    profile the number stands alone.

    Args:
        profile: `EntropyProfile`.
        measure: one that brings such a number, `"linear_probe"` say.
        name: of the number, `"accuracy"` say.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: there is no such number.

    Example:

    >>> import keras
    >>> from keras_layer_entropy import analyze_model
    >>> model = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)])
    >>> data = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> measures = ["activation_entropy", "linear_probe"]
    >>> profile = analyze_model(model, data, measures=measures, verbose=0)
    >>> figure = beside_entropy(profile, "linear_probe", "accuracy")
    >>> [line.get_label() for axes in figure.axes for line in axes.lines]  # doctest: +ELLIPSIS
    ['accuracy', 'accuracy, shuffled (...)', 'activation entropy']
    """
    result, described = profile[measure], profile.measures[measure]
    if name not in result.whole:
        raise ValueError(f"{measure!r} brings no {name!r} of layers as a whole.")
    labels, depth = layer_labels(profile), np.arange(len(profile.layers))
    both = "activation_entropy" in profile.results
    width, height = max(7.0, layers_width(labels, 2.2, 0.6)), 3.4 + 0.04 * max(map(len, labels))
    figure = Figure(figsize=(width, height + 1.8 * both), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1 + both, 1, sharex=True))
    found, words, label = result.whole[name], described.words(name), name.replace("_", " ")
    shown = [found]
    if (error := result.whole.get(f"{name}_error")) is not None:
        shown = [found - 2 * error, found + 2 * error]
        panels[0].fill_between(depth, *shown, color=PALE_BLUE, alpha=0.35, lw=0,
                               label="two standard errors")  # fmt: skip
    panels[0].plot(depth, found, "o-", color=BLUE, lw=2.2, label=label)
    if (chance := result.shuffled.get(name)) is not None:
        lowest, highest = np.nanmin(shown), np.nanmax(shown)
        note = f" ({np.nanmin(chance):.2f} to {np.nanmax(chance):.2f})"
        panels[0].plot(depth, chance, "s--", color="0.45", lw=1.3, ms=4.5,
                       label=f"{label}, shuffled{note}")  # fmt: skip
        if np.nanmax(chance) < lowest - 2 * (highest - lowest):
            # It lies so far below that nothing could be told apart beside it.
            margin = 0.1 * max(highest - lowest, 0.01)
            panels[0].set_ylim(lowest - margin, highest + margin)
    panels[0].set_ylabel(plain(words.unit))
    panels[0].set_title(plain(title or f"{words.title} against depth"), loc="left")
    if both:
        entropy = profile["activation_entropy"].mean
        panels[1].plot(depth, entropy, "o-", color=VERMILION, lw=2.2, label="activation entropy")
        if profile.baseline is not None:
            panels[1].plot(depth, profile.baseline.mean, "s--", color=VERMILION, lw=1.3, ms=4.5,
                           alpha=0.6, label="activation entropy, untrained")  # fmt: skip
        panels[1].set_ylabel(axis_label(profile, "activation_entropy").replace(" (", "\n("))
        set_limits(panels[1], profile, "activation_entropy")
    layer_ticks(panels[-1], labels)
    for axes in panels:
        bare(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _bound(axes: Axes, profile: Profile) -> None:
    """Shades what no layer can reach: more on the labels than there is."""
    share = profile.count[profile.count > 0] / profile.count.sum()
    most = float(-(share * np.log2(share)).sum())
    top = max(axes.get_ylim()[1], 1.08 * most)
    axes.set_ylim(0, top)
    axes.axhspan(most, top, color=GRID, lw=0, zorder=1, label="not possible")
