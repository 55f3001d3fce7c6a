"""Figures of profiles: against depth, class by class, over epochs, before and after."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_layer_entropy.measures.measure import Profile
from keras_layer_entropy.plots.style import (
    BLUE,
    CYCLE,
    MARKERS,
    PALE_BLUE,
    VERMILION,
    axis_label,
    bare,
    canvas,
    check_one_model,
    epochs_of,
    labels_of,
    layer_labels,
    layer_ticks,
    layers_width,
    legend,
    limits,
    order_of_both,
    plain,
    set_limits,
    short,
    shortened,
    slanted,
    whole_steps,
)


def entropy_curve(
    profile: Profile,
    measure: str = "activation_entropy",
    title: str | None = None,
    *,
    ax: Axes | None = None,
) -> Figure:
    """Entropy against depth: every class thin, their mean thick, the untrained twin dashed.

    Args:
        profile: `EntropyProfile`; its `baseline`, if there is one, is the twin.
        measure: a name in `profile.results`.
        title: title of the figure.
        ax: matplotlib axes to draw into; None for a figure of its own.

    Returns:
        `matplotlib.figure.Figure`.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), widths=(8, 2), is_output=(False, True),
    ...     classes=("a", "b"), count=[5, 5],
    ...     results={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> [line.get_label() for line in entropy_curve(profile).axes[0].lines]
    ['each class', '_class b', 'mean of the classes']
    """
    result, depth = profile[measure], np.arange(len(profile.layers))
    values = result.per_class
    labels = layer_labels(profile)
    height = 3.7 + 0.04 * max(map(len, labels))  # the labels are slanted
    width = max(7.0, layers_width(labels, 2.2, 0.6))
    axes = canvas(ax, (width, height))
    for index, name in enumerate(profile.classes if len(profile.classes) > 1 else ()):
        label = "each class" if index == 0 else f"_class {plain(name)}"
        faint = min(1.0, 30 / len(profile.classes))
        axes.plot(
            depth,
            values[:, index],
            color=PALE_BLUE,
            linewidth=0.9,
            alpha=faint,
            label=label,
            zorder=2,
        )
    mean = "mean of the classes" if len(profile.classes) > 1 else "all samples"
    axes.plot(depth, result.mean, "o-", color=BLUE, linewidth=2.6, label=mean, zorder=4)
    if profile.baseline is not None:
        axes.plot(
            depth,
            profile.baseline[measure].mean,
            "s--",
            color=VERMILION,
            linewidth=1.8,
            markersize=4.5,
            label="same network, untrained (mean)",
            zorder=3,
        )
    reference = profile.measures[measure].reference
    if reference in result.whole:
        known = result.whole[reference]
        axes.plot(depth, known, "^:", color="0.4", lw=1.6, ms=4.5, label=reference, zorder=3)
    layer_ticks(axes, labels)
    axes.set_xlabel("layer (units), in the order of the forward pass")
    axes.set_ylabel(axis_label(profile, measure))
    set_limits(axes, profile, measure)
    bare(axes)
    axes.set_title(title or f"{profile.measures[measure].title} against depth", loc="left")
    legend(axes, ax, ncols=3)
    return axes.figure


def heatmap(
    profile: Profile,
    measure: str = "activation_entropy",
    title: str | None = None,
    *,
    ax: Axes | None = None,
) -> Figure:
    """Layers x classes: one cell per layer and class, the value written in it.

    Args, returns: as for `entropy_curve`.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), widths=(8, 2), is_output=(False, True),
    ...     classes=("a", "b"), count=[5, 5],
    ...     results={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> [text.get_text() for text in heatmap(profile).axes[0].texts]
    ['.90', '.80', '.10', '.20']
    """
    values = profile[measure].per_class
    rows, columns = values.shape
    names = [plain(name) for name in shortened(profile.classes, longest=18)]
    longest = max(map(len, names))
    width = min(max(4.6, 3.2 + 0.55 * columns), 16.0)
    axes = canvas(ax, (width, max(3.4, 1.6 + 0.36 * rows) + 0.04 * longest))
    lowest, highest = limits(profile, measure) or (None, None)
    image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=lowest, vmax=highest)
    if columns <= 20:
        for (row, column), value in np.ndenumerate(values):
            level = image.norm(value)
            axes.text(
                column,
                row,
                short(value),
                ha="center",
                va="center",
                fontsize=8,
                color=None if np.isnan(value) else "black" if level > 0.46 else "white",
            )
    axes.set_yticks(range(rows), layer_labels(profile))
    shown = np.arange(0, columns, max(1, columns // 25))
    if longest > 4:
        slanted(axes, shown, [names[i] for i in shown])
    else:
        axes.set_xticks(shown, [names[i] for i in shown])
    axes.set_xlabel("class")
    axes.set_ylabel("layer (units)")
    axes.set_title(title or f"{profile.measures[measure].title}, class by class", loc="left")
    axes.figure.colorbar(image, ax=axes, label=profile[measure].unit)
    return axes.figure


def pruning_curves(
    before: Profile,
    after: Profile,
    qualities: Sequence[tuple[float, float, str]],
    limit: float,
    what: str = "layers",
    quality: str = "accuracy",
) -> Figure:
    """What pruning did: entropy against depth before and after; quality as layers went.

    Args:
        before, after: `EntropyProfile`s of the original and of the smaller network; layers that
            only the second has stand before what comes behind them. Their untrained twins are drawn
            faintly.
        qualities: list of `(layers removed, quality, kind)`, kind being `"original"`,
            `"right after removal"`, `"after retraining"` or `"rolled back"`.
        limit: the worst quality that was accepted; an infinite one is not drawn.
        what: what went, `"layers"`, `"blocks"` or both.
        quality: what it is called.

    Returns:
        `matplotlib.figure.Figure`.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), widths=(8, 2), is_output=(False, True),
    ...     classes=("a", "b"), count=[5, 5],
    ...     results={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> figure = pruning_curves(profile, profile, [(0, 0.9, "original")], 0.89)
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['activation entropy (normalised, 0 to 1)', 'validation accuracy']
    """
    widths = _widths_of_both(before, after)
    labels = labels_of(widths)
    height = 4.0 + 0.04 * max(map(len, labels))
    width = max(3.0, layers_width(labels, 0, 0.45))
    figure = Figure(figsize=(max(9.0, width + 5.6), height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(width, 2.6))
    place = {layer: i for i, layer in enumerate(widths)}
    for profile, color, marker, name in (
        (before, VERMILION, "o", "before"),
        (after, BLUE, "s", "after"),
    ):
        depth = [place[layer] for layer in profile.layers]
        if profile.baseline is not None:
            left.plot(depth, profile.baseline.mean, ":", color=color, alpha=0.6, linewidth=1.3,
                      label=f"{name}, untrained")  # fmt: skip
        left.plot(depth, profile.mean, marker=marker, color=color, linewidth=2.4, label=name)
    layer_ticks(left, labels)
    left.set_ylabel(axis_label(before, "activation_entropy"))
    set_limits(left, before, "activation_entropy")
    left.set_title("Activation entropy against depth", loc="left")
    _qualities(right, qualities, limit, quality)
    most = max(int(n) for n, _, _ in qualities)
    right.set_xticks(range(0, most + 1, max(1, most // 10)))
    right.set_xlim(-0.5, most + 0.5)
    right.set_xlabel(f"{what} removed")
    right.set_title(f"{plain(_capital(quality))} as {what} went", loc="left")
    for axes in (left, right):
        bare(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3 if axes is left else -0.18),
                    ncols=2, frameon=False)  # fmt: skip
    return figure


def _widths_of_both(before: Profile, after: Profile) -> dict[str, int]:
    """Path of each layer of two networks -> how many units it has, in the first if it is there."""
    widths = {
        layer: int(units)
        for profile in (after, before)
        for layer, units in zip(profile.layers, profile.widths, strict=True)
    }
    return {layer: widths[layer] for layer in order_of_both(before.layers, after.layers)}


def thinning_curves(
    widths: Mapping[str, tuple[int, int]],
    qualities: Sequence[tuple[float, float, str]],
    limit: float,
    cost: str = "FLOPs",
    quality: str = "accuracy",
) -> Figure:
    """What pruning of units did: how many each layer has left; quality as they went.

    Args:
        widths: path of a layer -> number of its units in the original and in the smaller network.
        qualities: list of `(share of the cost that is left, quality, kind)`, kind as for
            `pruning_curves`.
        limit: the worst quality that was accepted; an infinite one is not drawn.
        cost: what the shares are of.
        quality: what the quality is called.

    Returns:
        `matplotlib.figure.Figure`.

    Example:

    >>> figure = thinning_curves({"conv": (16, 9), "dense": (32, 8)}, [(1.0, 0.9, "original")], 0.8)
    >>> [axes.get_xlabel() for axes in figure.axes]
    ['', 'FLOPs left (per cent)']
    """
    labels = [plain(name) for name in shortened(list(widths))]
    width = max(3.0, layers_width(labels, 0, 0.45))
    figure = Figure(
        figsize=(max(9.0, width + 5.6), 4.0 + 0.04 * max(map(len, labels))), layout="constrained"
    )
    left, right = figure.subplots(1, 2, width_ratios=(width, 2.6))
    places = np.arange(len(labels))
    before, after = np.array(list(widths.values())).T
    left.bar(places, before, 0.8, color=PALE_BLUE, label="before", zorder=2)
    left.bar(places, after, 0.5, color=BLUE, label="after", zorder=3)
    layer_ticks(left, labels)
    left.set_ylabel("units")
    left.set_title("Units of each layer", loc="left")
    points = [(100 * share, value, kind) for share, value, kind in qualities]
    _qualities(right, points, limit, quality)
    right.invert_xaxis()  # as the search went
    right.set_xlabel(f"{cost} left (per cent)")
    right.set_title(f"{plain(_capital(quality))} as the network shrank", loc="left")
    for axes in (left, right):
        bare(axes)
    left.legend(loc="upper right", bbox_to_anchor=(1.0, 1.12), ncols=2, frameon=False)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    return figure


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _qualities(
    axes: Axes, points: Sequence[tuple[float, float, str]], limit: float, quality: str
) -> None:
    """What the validation data said of the steps of a search, and the worst that was accepted."""
    styles = {
        "original": dict(marker="D", color="black"),
        "right after removal": dict(marker="v", color=VERMILION),
        "after retraining": dict(marker="o", color=BLUE),
        "rolled back": dict(marker="x", color="0.45"),
    }
    for kind, style in styles.items():
        found = [(n, value) for n, value, of in points if of == kind]
        if found:
            axes.plot(*zip(*found, strict=True), linestyle="none", label=kind, **style)
    if np.isfinite(limit):
        axes.axhline(limit, color="0.45", linestyle="--", linewidth=1.0, label="limit")
    axes.set_ylabel(f"validation {plain(quality)}")


def compared_curves(
    profiles: Mapping[str, Profile],
    measure: str = "activation_entropy",
    title: str | None = None,
    *,
    ax: Axes | None = None,
) -> Figure:
    """The mean curves of several profiles in one plot, layer by layer from the first.

    Args:
        profiles: name -> `EntropyProfile`; the layers need not be the same.
        measure: a name in `profile.results`.
        title: title of the figure.
        ax: as for `entropy_curve`.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: no profiles.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), widths=(8, 2), is_output=(False, True),
    ...     classes=("a", "b"), count=[5, 5],
    ...     results={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> axes = compared_curves({"one": profile, "another": profile}).axes[0]
    >>> [line.get_label() for line in axes.lines]
    ['one', 'another']
    """
    if not profiles:
        raise ValueError("There are no profiles to compare.")
    longest = max(profiles.values(), key=lambda profile: len(profile.layers))
    axes = canvas(ax, (7.0, 4.4))
    styles = zip(profiles.items(), itertools.cycle(CYCLE), itertools.cycle(MARKERS))
    for (name, profile), color, marker in styles:
        values = profile[measure].mean
        axes.plot(range(len(values)), values, marker=marker, color=color, lw=1.9, label=plain(name))
    axes.set_xticks(range(len(longest.layers)), range(1, len(longest.layers) + 1))
    axes.set_xlabel("layer, in the order of the forward pass")
    axes.set_ylabel(axis_label(longest, measure))
    set_limits(axes, longest, measure)
    bare(axes)
    axes.set_title(title or longest.measures[measure].title, loc="left")
    legend(axes, ax, ncols=min(3, len(profiles)))
    return axes.figure


def entropy_over_epochs(
    profiles: Sequence[Profile],
    measure: str = "activation_entropy",
    title: str | None = None,
    *,
    ax: Axes | None = None,
) -> Figure:
    """A line per layer over the epochs of a training; from dark (first layer) to light (last).

    Args:
        profiles: `EntropyProfile`s of one model with their `epoch`: `EntropyMonitor.profiles`.
        measure: a name in `profile.results`.
        title: title of the figure.
        ax: as for `entropy_curve`.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: no profiles, or profiles of different layers.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> epochs = [EntropyProfile(
    ...     layers=("dense", "logits"), widths=(8, 2), is_output=(False, True),
    ...     classes=("a", "b"), count=[5, 5], epoch=epoch,
    ...     results={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]}) for epoch in range(3)]
    >>> [line.get_label() for line in entropy_over_epochs(epochs).axes[0].lines]
    ['dense (8)', 'logits (2)']
    """
    check_one_model(profiles)
    labels = layer_labels(profiles[0])
    axes = canvas(ax, (7.0, 3.4 + 0.1 * len(labels)))
    epochs = epochs_of(profiles)
    means = np.array([profile[measure].mean for profile in profiles])
    colors = colormaps["viridis"](np.linspace(0.05, 0.85, len(labels)))
    for values, label, color in zip(means.T, labels, colors, strict=True):
        axes.plot(epochs, values, "o-", color=color, markersize=3.5, label=label)
    whole_steps(axes.xaxis)
    axes.set_xlabel("epoch")
    axes.set_ylabel(axis_label(profiles[0], measure))
    set_limits(axes, profiles[0], measure)
    bare(axes)
    axes.set_title(title or f"{profiles[0].measures[measure].title} over epochs", loc="left")
    columns = -(-len(labels) // 20)
    legend(axes, ax, "right upper", ncols=columns, title="layer (units)")
    return axes.figure


def stability(
    per_sample: Profile, pooled: Profile, title: str | None = None, *, ax: Axes | None = None
) -> Figure:
    """How much patterns vary inside a class: per-sample against pooled entropy, layer by layer.

    The entropy of the mean of the images' patterns (pooled) is never below the mean of their
    entropies (per sample); the gap between the two is the instability.

    Args:
        per_sample, pooled: `EntropyProfile`s of the same model and data, measured with
            `ActivationEntropy("per_sample")` and `ActivationEntropy("softmax_then_mean")`.
        title: title of the figure.
        ax: as for `entropy_curve`.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: profiles of other patterns, or of different layers.

    Example:

    >>> import keras
    >>> from keras_layer_entropy import analyze_model
    >>> from keras_layer_entropy.measures import ActivationEntropy
    >>> model = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> data = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> figure = stability(*(analyze_model(model, data, measures=ActivationEntropy(p), verbose=0)
    ...                      for p in ("per_sample", "softmax_then_mean")))
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['of the mean pattern (pooled)', 'of the single samples (mean)']
    """
    measures = [profile.measures.get("activation_entropy") for profile in (per_sample, pooled)]
    found = tuple(measure and measure.options["pattern"] for measure in measures)
    if found != ("per_sample", "softmax_then_mean") or per_sample.layers != pooled.layers:
        raise ValueError(
            f"per_sample has pattern={found[0]!r} and pooled {found[1]!r}, for {per_sample.layers} "
            f"and {pooled.layers}; expected 'per_sample' and 'softmax_then_mean' of one model."
        )
    labels, depth = layer_labels(pooled), np.arange(len(pooled.layers))
    axes = canvas(ax, (max(7.0, layers_width(labels, 2.2, 0.6)), 4.4))
    axes.fill_between(
        depth, per_sample.mean, pooled.mean, color=PALE_BLUE, alpha=0.35, lw=0, label="instability"
    )
    axes.plot(depth, pooled.mean, "o-", color=BLUE, lw=2.2,
              label="of the mean pattern (pooled)")  # fmt: skip
    axes.plot(depth, per_sample.mean, "s-", color=VERMILION, lw=2.2,
              label="of the single samples (mean)")  # fmt: skip
    layer_ticks(axes, labels)
    axes.set_ylabel(axis_label(pooled, "activation_entropy"))
    set_limits(axes, pooled, "activation_entropy")
    bare(axes)
    axes.set_title(title or "How much patterns vary inside a class", loc="left")
    legend(axes, ax, ncols=3)
    return axes.figure
