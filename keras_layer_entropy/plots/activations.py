"""Figures of activations: feature maps, and the probability with which each neuron is drawn."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from keras_layer_entropy.measures.measure import Profile
from keras_layer_entropy.plots.style import (
    BLUE,
    PALE_BLUE,
    VERMILION,
    axis_label,
    bare,
    layer_labels,
    layer_ticks,
    plain,
    set_limits,
    shortened,
)

_MOST_MAPS = 16


def feature_maps(images: ArrayLike, maps: ArrayLike, title: str | None = None) -> Figure:
    """Images and what a convolution layer makes of them: a row per image, a column per channel.

    Every map has its own grey scale, from its lowest value (black) to its highest (white).

    Args:
        images: `[n, height, width]` or `[n, height, width, channels]`, 1 or 3 channels.
        maps: `[n, height, width, channels]`, the layer's outputs for them (`ActivationProbe`); the
            first 16 channels are drawn.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: other shapes, or numbers of images and of maps that differ.

    Example:

    >>> figure = feature_maps(np.ones((2, 8, 8)), np.ones((2, 6, 6, 4)))
    >>> [axes.get_title() for axes in figure.axes[:5]]
    ['input', '0', '1', '2', '3']
    """
    images, maps = np.asarray(images), np.asarray(maps)
    if images.ndim not in (3, 4) or maps.ndim != 4 or not len(images) == len(maps) > 0:
        raise ValueError(
            f"images has shape {images.shape} and maps {maps.shape}; expected [n, height, width, "
            "channels] twice, with one map per image."
        )
    shown = min(maps.shape[-1], _MOST_MAPS)
    figure = Figure(figsize=(1 + 0.68 * (shown + 1), 0.8 + 0.74 * len(images)))
    grid = figure.subplots(len(images), shown + 1, squeeze=False)
    for row, (image, map_) in enumerate(zip(images, maps, strict=True)):
        pictures = [image, *np.moveaxis(map_, -1, 0)[:shown]]
        for column, picture in enumerate(pictures):
            axes = grid[row, column]
            axes.imshow(picture, cmap="gray", interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title("input" if column == 0 else str(column - 1), fontsize=9)
    rest = f" (the first {shown} of {maps.shape[-1]} channels)" if shown < maps.shape[-1] else ""
    figure.suptitle((title or "Feature maps") + rest, x=0.02, ha="left")
    figure.subplots_adjust(0.02, 0.02, 0.98, 1 - 0.6 / figure.get_figheight(), 0.06, 0.06)
    return figure


def activation_probabilities(
    profile: Profile, classes: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """For each layer, the probability of each neuron in the patterns of two classes.

    Args:
        profile: `EntropyProfile` measured with `ActivationEntropy(keep_patterns=True)`.
        classes: names of two classes (or one); None for the first two that have samples.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`, a panel per layer.

    Raises:
        ValueError: no patterns, or no such class.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> from keras_layer_entropy.measures import MeasureResult
    >>> profile = EntropyProfile(
    ...     layers=("dense",), widths=(3,), is_output=(False,), classes=("a", "b"), count=[5, 5],
    ...     results={"activation_entropy": MeasureResult([[0.9, 0.8]], details={
    ...         "dense": {"pattern": [[0.2, 0.3, 0.5], [0.1, 0.4, 0.5]]}})})
    >>> [line.get_label() for line in activation_probabilities(profile).axes[0].lines]
    ['class a', 'class b', 'uniform']
    """
    rows = [_class_index(profile, name) for name in classes or _with_samples(profile)[:2]]
    figure = Figure(figsize=(7.5, 0.9 + 1.35 * len(profile.layers)), layout="constrained")
    panels = figure.subplots(len(profile.layers), 1, squeeze=False)[:, 0]
    for axes, label, layer in zip(panels, layer_labels(profile), profile.layers, strict=True):
        pattern = _patterns(profile)[layer]
        for row, color in zip(rows, (BLUE, VERMILION), strict=False):
            _steps(axes, pattern[row], color, f"class {plain(profile.classes[row])}")
        axes.axhline(1 / pattern.shape[1], color="0.5", linestyle=":", lw=1, label="uniform")
        axes.set_title(label, loc="left", fontsize=10)
        axes.set_xlim(-0.5, pattern.shape[1] - 0.5)
        axes.set_ylim(bottom=0)
        bare(axes)
    panels[-1].set_xlabel("neuron")
    figure.supylabel("probability of activation", fontsize=10)
    panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title or "Activation patterns", x=0.02, ha="left")
    return figure


def probability_histograms(
    patterns: Mapping[str, ArrayLike], title: str | None = None, bins: int = 30
) -> Figure:
    """How the neurons' probabilities are spread over single images: a histogram per layer.

    For each neuron, how many images give it a probability in each bin; drawn is the mean over the
    neurons, and how far the middle 80 per cent of them lie apart. The first bin also holds all
    probabilities below 1e-6.

    Args:
        patterns: layer -> `[images, units]`, the pattern of each image
            (`ActivationProbe(model, patterns=True)`).
        title: title of the figure.
        bins: number of bins.

    Returns:
        `matplotlib.figure.Figure`, a panel per layer.

    Raises:
        ValueError: patterns of another shape.

    Example:

    >>> figure = probability_histograms({"dense": np.full((100, 4), 0.25)})
    >>> figure.axes[0].get_ylabel(), figure.axes[0].get_title(loc="left")
    ('images', 'dense (4)')
    """
    figure = Figure(figsize=(7.5, 1.0 + 1.9 * len(patterns)), layout="constrained")
    panels = figure.subplots(len(patterns), 1, squeeze=False)[:, 0]
    names = shortened(list(patterns))
    for axes, name, values in zip(panels, names, patterns.values(), strict=True):
        values = np.asarray(values)
        if values.ndim != 2 or not values.size:
            raise ValueError(
                f"The patterns of {name!r} have shape {values.shape}; expected [images, units]."
            )
        # Probabilities are spread over orders of magnitude, as the activations were before softmax.
        low = max(values.min(), 1e-6)
        edges = np.geomspace(low * 0.999, max(values.max(), low) * 1.001, bins + 1)
        counts = [np.histogram(np.maximum(v, low), edges)[0] for v in values.T]
        band = np.quantile(counts, (0.1, 0.9), axis=0)
        axes.stairs(band[1], edges, baseline=band[0], fill=True, color=PALE_BLUE, alpha=0.45,
                    label="middle 80 % of the neurons")  # fmt: skip
        mean = np.mean(counts, axis=0)
        axes.stairs(mean, edges, color=BLUE, lw=2.2, label="mean of the neurons")
        axes.axvline(1 / values.shape[1], color="0.5", linestyle=":", lw=1, label="uniform")
        axes.set_xscale("log")
        axes.set_ylabel("images")
        axes.set_title(plain(f"{name} ({values.shape[1]})"), loc="left", fontsize=10)
        bare(axes)
    panels[-1].set_xlabel(
        "probability of activation of a neuron in one image (log scale, from 1e-6)"
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title or "Activation probabilities, image by image", x=0.02, ha="left")
    return figure


def entropy_and_patterns(
    profile: Profile, class_name: str | None = None, title: str | None = None
) -> Figure:
    """Entropy against depth, and beside it the pattern of each layer, for one class.

    Args:
        profile: `EntropyProfile` measured with `ActivationEntropy(keep_patterns=True)`; its
            untrained twin, if there is one, is drawn dashed.
        class_name: name of the class; None for the first that has samples.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`: the curve, then a panel per layer.

    Raises:
        ValueError: no patterns, or no such class.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> from keras_layer_entropy.measures import MeasureResult
    >>> profile = EntropyProfile(
    ...     layers=("dense",), widths=(3,), is_output=(False,), classes=("a", "b"), count=[5, 5],
    ...     results={"activation_entropy": MeasureResult([[0.9, 0.8]], details={
    ...         "dense": {"pattern": [[0.2, 0.3, 0.5], [0.1, 0.4, 0.5]]}})})
    >>> len(entropy_and_patterns(profile, "b").axes)
    2
    """
    column = _class_index(profile, class_name or _with_samples(profile)[0])
    labels, depth = layer_labels(profile), np.arange(len(profile.layers))
    height = max(3.4, 0.8 + 0.95 * len(depth)) + 0.02 * max(map(len, labels))
    figure = Figure(figsize=(9.0, height), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    axes = left.subplots()
    if profile.baseline is not None:
        twin = profile.baseline.entropy[:, column]
        axes.plot(depth, twin, "s--", color=VERMILION, lw=1.5, ms=4, label="untrained")
    axes.plot(depth, profile.entropy[:, column], "o-", color=BLUE, lw=2.4, label="trained")
    layer_ticks(axes, labels)
    axes.set_ylabel(axis_label(profile, "activation_entropy"))
    set_limits(axes, profile, "activation_entropy")
    axes.legend(frameon=False)
    bare(axes)
    panels = right.subplots(len(depth), 1, squeeze=False)[:, 0]
    for row, (panel, layer) in enumerate(zip(panels, profile.layers, strict=True)):
        pattern = _patterns(profile)[layer][column]
        _steps(panel, pattern, BLUE, layer)
        panel.axhline(1 / len(pattern), color="0.5", linestyle=":", lw=1)
        panel.set_xlim(-0.5, len(pattern) - 0.5)
        panel.set_ylim(bottom=0)
        panel.set_title(labels[row], loc="left", fontsize=9)
        panel.tick_params(labelsize=8)
        bare(panel)
    panels[-1].set_xlabel("neuron", fontsize=9)
    right.supylabel("probability of activation", fontsize=9)
    name = plain(profile.classes[column])
    figure.suptitle(title or f"Entropy and patterns of class {name}", x=0.02, ha="left")
    return figure


def _steps(axes: Axes, pattern: np.ndarray, color: str, label: str) -> None:
    """A line in steps, filled: bars that stay legible with hundreds of neurons."""
    edges = np.arange(len(pattern) + 1) - 0.5
    steps = np.append(pattern, pattern[-1])
    axes.fill_between(edges, steps, step="post", color=color, alpha=0.25, lw=0)
    axes.plot(edges, steps, drawstyle="steps-post", color=color, lw=1.1, label=label)


def _patterns(profile: Profile) -> Mapping[str, np.ndarray]:
    if not profile.patterns:
        raise ValueError(
            "This profile holds no patterns: measure again with "
            "ActivationEntropy(keep_patterns=True)."
        )
    return profile.patterns


def _with_samples(profile: Profile) -> list[str]:
    return [name for name, n in zip(profile.classes, profile.count, strict=True) if n]


def _class_index(profile: Profile, name: str) -> int:
    _patterns(profile)
    if str(name) not in profile.classes:
        raise ValueError(f"There is no class {name!r}; the classes are {profile.classes}.")
    return profile.classes.index(str(name))
