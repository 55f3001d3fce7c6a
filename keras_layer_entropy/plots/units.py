"""Figures of single units (kernels): over epochs, by class, against one another, ranked."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from keras_layer_entropy.measures.measure import Profile
from keras_layer_entropy.plots.style import (
    BLUE,
    CYCLE,
    GRID,
    MARKERS,
    ORDER,
    VERMILION,
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
    shortened,
    slanted,
)

# Of `analysis`, which stands on a higher floor.
UnitProfile = Any

_MEASURE = "feature_entropy"
_LABELS, _INPUT = "I(unit; labels), bits", "I(input; unit), bits"
_MOST_TICKS = 32
_MOST_IMAGES = 6


def unit_information(profiles: Sequence[UnitProfile], title: str | None = None) -> Figure:
    """What every unit of a layer tells, epoch by epoch: of the labels, and of the input.

    Args:
        profiles: `UnitProfile`s of one layer, one per epoch.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`: two heat maps, units x epochs, I(T_k; Y) and I(X; T_k), bits.
        The second is of the unit with noise added: low for units that are rarely on.

    Raises:
        ValueError: no profiles, or profiles of several layers.

    Source: Fang et al., Entropy 2018, 20(11), 823.

    Example:

    >>> from keras_layer_entropy import UnitProfile
    >>> profile = UnitProfile(
    ...     layer="conv", classes=("a", "b"), count=[5, 5], information_labels=[0.9, 0.5],
    ...     information_input=[3.0, 2.0], information_per_class=[[0.9, 0.9], [0.5, 0.5]],
    ...     pairwise=[[3.0, 1.5], [1.5, 2.0]], feature_entropy=[[3.0, 2.0], [1.0, 1.5]],
    ...     selective_rate=np.ones((2, 2)))
    >>> [axes.get_title() for axes in unit_information([profile] * 3).axes[:2]]
    ['I(unit; labels), bits', 'I(input; unit), bits']
    """
    _check_epochs(profiles)
    units = profiles[0].units
    figure = Figure(figsize=(7.0, _height(units)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, words in zip(
        panels, ("information_labels", "information_input"), (_LABELS, _INPUT), strict=True
    ):
        values = np.stack([getattr(profile, name) for profile in profiles], axis=1)
        # From 0, where a unit tells nothing; below it there is only noise.
        image = axes.imshow(
            values, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest",
            vmax=max(np.nanmax(values, initial=0.0), 1e-3),
        )  # fmt: skip
        _epoch_axis(axes, range(len(profiles)), epochs_of(profiles))
        axes.set_title(words, fontsize=10, loc="center")
        figure.colorbar(image, ax=axes)
    _unit_ticks(panels[0].set_yticks, units)
    panels[0].set_ylabel("unit")
    figure.suptitle(title or _title("What every unit tells", profiles[0]), x=0.02, ha="left")
    return figure


def unit_classes(
    profile: UnitProfile, title: str | None = None, *, ax: Axes | None = None
) -> Figure:
    """What every unit tells about each class: heat map, units x classes, I(T_k; 1[Y = c]), bits.

    Args:
        profile: `UnitProfile`.
        title: title of the figure.
        ax: as for `entropy_curve`.

    Returns:
        `matplotlib.figure.Figure`.

    Source: Fang et al., Entropy 2018, 20(11), 823.

    Example:

    >>> from keras_layer_entropy import UnitProfile
    >>> profile = UnitProfile(
    ...     layer="conv", classes=("a", "b"), count=[5, 5], information_labels=[0.9, 0.5],
    ...     information_input=[3.0, 2.0], information_per_class=[[0.9, 0.9], [0.5, 0.5]],
    ...     pairwise=[[3.0, 1.5], [1.5, 2.0]], feature_entropy=[[3.0, 2.0], [1.0, 1.5]],
    ...     selective_rate=np.ones((2, 2)))
    >>> unit_classes(profile).axes[0].images[0].get_array().shape
    (2, 2)
    """
    axes, found = canvas(ax, (7.0, _height(profile.units))), profile.information_per_class
    image = axes.imshow(
        found, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest",
        vmax=max(np.nanmax(found, initial=0.0), 1e-3),
    )  # fmt: skip
    names = [plain(name) for name in shortened(profile.classes, longest=18)]
    step = -(-len(names) // 25)
    if max(map(len, names)) > 4:
        slanted(axes, range(0, len(names), step), names[::step])
    else:
        axes.set_xticks(range(0, len(names), step), names[::step])
    _unit_ticks(axes.set_yticks, profile.units)
    axes.set_xlabel("class")
    axes.set_ylabel("unit")
    axes.figure.colorbar(image, ax=axes, label="I(unit; is it the class?), bits")
    axes.set_title(title or _title("What every unit tells of each class", profile), loc="left")
    return axes.figure


def unit_ranks(
    profiles: Sequence[UnitProfile], title: str | None = None, *, ax: Axes | None = None
) -> Figure:
    """The rank of every unit of a layer over the epochs, by I(T_k; Y): rank 1 tells most.

    Args:
        profiles: `UnitProfile`s of one layer, one per epoch.
        title: title of the figure.
        ax: as for `entropy_curve`.

    Returns:
        `matplotlib.figure.Figure`: a line per unit, from dark (rank 1 in the last epoch) to light.

    Raises:
        ValueError: as `unit_information`.

    Source: Fang et al., Entropy 2018, 20(11), 823.

    Example:

    >>> from keras_layer_entropy import UnitProfile
    >>> profile = UnitProfile(
    ...     layer="conv", classes=("a", "b"), count=[5, 5], information_labels=[0.9, 0.5],
    ...     information_input=[3.0, 2.0], information_per_class=[[0.9, 0.9], [0.5, 0.5]],
    ...     pairwise=[[3.0, 1.5], [1.5, 2.0]], feature_entropy=[[3.0, 2.0], [1.0, 1.5]],
    ...     selective_rate=np.ones((2, 2)))
    >>> sorted(int(line.get_ydata()[-1]) for line in unit_ranks([profile] * 3).axes[0].lines)
    [1, 2]
    """
    _check_epochs(profiles)
    units = profiles[0].units
    ranks = np.stack([_ranks(profile.information_labels) for profile in profiles])
    epochs = epochs_of(profiles)
    axes = canvas(ax, (7.0, _height(units)))
    step = -(-units // _MOST_TICKS)
    for unit in range(units):
        last = ranks[-1, unit]
        color = ORDER((last - 1) / max(units - 1, 1))
        axes.plot(epochs, ranks[:, unit], "o-", color=color, lw=1.8, markersize=4, label=str(unit))
        if (last - 1) % step == 0:
            axes.annotate(
                str(unit), (epochs[-1], last), xytext=(8, 0), textcoords="offset points",
                va="center", fontsize=8, color=color,
            )  # fmt: skip
    axes.set_ylim(units + 0.5, 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _epoch_axis(axes, epochs, epochs)
    axes.set_ylabel("rank by I(unit; labels); 1 tells most")
    bare(axes)
    words = title or _title("Which units tell most (unit numbers at the right)", profiles[0])
    axes.set_title(words, loc="left")
    return axes.figure


def unit_pairs(
    profile: UnitProfile,
    less_effective: ArrayLike | None = None,
    title: str | None = None,
    *,
    ax: Axes | None = None,
) -> Figure:
    """What units share, I(T_k; T_l), with those marked that repeat others or tell little.

    Args:
        profile: `UnitProfile`.
        less_effective: bool `[units]`; None for `profile.less_effective()`, which knows of no
            earlier epochs.
        title: title of the figure.
        ax: as for `entropy_curve`.

    Returns:
        `matplotlib.figure.Figure`: a matrix, units x units, bits. A square in the row of a
        redundant unit stands at the unit that says the same; a cross on the diagonal at a unit that
        is less effective.

    Raises:
        ValueError: `less_effective` of another shape.

    Source: Fang et al., Entropy 2018, 20(11), 823.

    Example:

    >>> from keras_layer_entropy import UnitProfile
    >>> profile = UnitProfile(
    ...     layer="conv", classes=("a", "b"), count=[5, 5], information_labels=[0.9, 0.5],
    ...     information_input=[3.0, 2.0], information_per_class=[[0.9, 0.9], [0.5, 0.5]],
    ...     pairwise=[[3.0, 1.5], [1.5, 2.0]], feature_entropy=[[3.0, 2.0], [1.0, 1.5]],
    ...     selective_rate=np.ones((2, 2)))
    >>> unit_pairs(profile).axes[0].images[0].get_array().shape
    (2, 2)
    """
    units = profile.units
    if less_effective is None:
        less_effective = profile.less_effective()
    less_effective = np.asarray(less_effective, bool)
    if less_effective.shape != (units,):
        raise ValueError(
            f"less_effective has shape {less_effective.shape}; expected one entry for each of "
            f"{units} units."
        )
    found = profile.redundant()
    rows = np.flatnonzero(found.redundant)
    little = np.flatnonzero(less_effective)
    side = min(max(4.4, 2.6 + 0.16 * units), 7.0)
    axes = canvas(ax, (7.0, side))
    shared = profile.pairwise.copy()
    np.fill_diagonal(shared, np.nan)  # what a unit shares with itself would drown the rest
    image = axes.imshow(
        shared, cmap=colormaps["cividis"].with_extremes(bad=GRID), vmin=0,
        vmax=max(np.nanmax(shared, initial=0.0), 1e-3), interpolation="nearest",
    )  # fmt: skip
    size = max(3.0, min(11.0, 150 / units))
    marks = {
        f"redundant ({len(rows)}): this row's unit\nsays what this column's says": (
            found.kept[rows], rows, dict(marker="s", markerfacecolor="none"),
        ),
        f"less effective ({len(little)}): tells\nlittle of the class": (
            little, little, dict(marker="x"),
        ),
    }  # fmt: skip
    for label, (x, y, style) in marks.items():
        axes.plot(
            x, y, linestyle="none", color=VERMILION, markersize=size, markeredgewidth=1.8,
            label=label, **style,
        )  # fmt: skip
    _unit_ticks(axes.set_xticks, units)
    _unit_ticks(axes.set_yticks, units)
    axes.set_xlabel("unit")
    axes.set_ylabel("unit")
    axes.figure.colorbar(image, ax=axes, label="I(unit; unit), bits")
    axes.set_title(title or _title("What units share", profile), loc="left")
    handles = [
        Line2D([], [], linestyle="none", color=VERMILION, markeredgewidth=1.8, markersize=8,
               label=label, **style)
        for label, (_, _, style) in marks.items()
    ]  # fmt: skip
    legend(axes, ax, handles=handles, ncols=2, fontsize=9)
    return axes.figure


def unit_ranking(
    profile: UnitProfile, images: ArrayLike, maps: ArrayLike, title: str | None = None
) -> Figure:
    """Units by feature entropy, and what the best and the worst one see in some images.

    Args:
        profile: `UnitProfile`.
        images: `[n, height, width]` or `[n, height, width, channels]`, 1 or 3 channels; the first
            six are drawn.
        maps: `[n, height, width, units]`, the layer's outputs for them (`ActivationProbe`), each
            drawn from its lowest value (black) to its highest (white).
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`: a dot per unit, then rows of images and maps.

    Raises:
        ValueError: no images, maps of other images or another layer, or no feature entropy.

    Source: Zhao & Zhang, ICLR 2022, arXiv 2103.09716.

    Example:

    >>> from keras_layer_entropy import UnitProfile
    >>> profile = UnitProfile(
    ...     layer="conv", classes=("a", "b"), count=[5, 5], information_labels=[0.9, 0.5],
    ...     information_input=[3.0, 2.0], information_per_class=[[0.9, 0.9], [0.5, 0.5]],
    ...     pairwise=[[3.0, 1.5], [1.5, 2.0]], feature_entropy=[[3.0, 2.0], [1.0, 1.5]],
    ...     selective_rate=np.ones((2, 2)))
    >>> figure = unit_ranking(profile, np.ones((3, 8, 8)), np.ones((3, 6, 6, 2)))
    >>> figure.axes[0].get_ylabel(), len(figure.axes)  # the ranking and 3 x 3 pictures
    ('feature entropy (nats)', 10)
    """
    images, maps = np.asarray(images)[:_MOST_IMAGES], np.asarray(maps)[:_MOST_IMAGES]
    if (
        images.ndim not in (3, 4)
        or maps.ndim != 4
        or not len(images) == len(maps) > 0
        or maps.shape[-1] != profile.units
    ):
        raise ValueError(
            f"images has shape {images.shape} and maps {maps.shape}; expected [n, height, width, "
            f"channels] and [n, height, width, {profile.units}], a map of each image."
        )
    entropy = profile.mean_feature_entropy
    order = [unit for unit in profile.by_feature_entropy() if np.isfinite(entropy[unit])]
    if not order:
        raise ValueError(f"The feature entropy of no unit of {profile.layer!r} is known.")
    figure = Figure(figsize=(7.0, 5.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    axes = top.add_subplot()
    places = np.arange(len(order))
    spread = [np.nanmin(profile.feature_entropy[order], axis=1)]
    spread.append(np.nanmax(profile.feature_entropy[order], axis=1))
    axes.vlines(places, *spread, color="0.75", lw=2, label="from class to class")
    axes.plot(places, entropy[order], "o", color=BLUE, ms=5, label="mean of the classes")
    step = -(-len(order) // _MOST_TICKS)
    axes.set_xticks(places[::step], [str(unit) for unit in order[::step]])
    axes.set_xlabel("unit, from the lowest feature entropy (best) to the highest")
    axes.set_ylabel("feature entropy (nats)")
    axes.set_ylim(-0.04 * spread[1].max(), 1.08 * spread[1].max())
    bare(axes)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    best, worst = order[0], order[-1]
    rows = {
        "images": images,
        f"best, {best}": maps[..., best],
        f"worst, {worst}": maps[..., worst],
    }
    grid = bottom.subplots(3, len(images), squeeze=False)
    for (name, pictures), panels in zip(rows.items(), grid, strict=True):
        panels[0].set_ylabel(name, fontsize=9)
        for panel, picture in zip(panels, pictures, strict=True):
            panel.imshow(picture, cmap="gray", interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(False)
    figure.suptitle(title or _title("Units by feature entropy", profile), x=0.02, ha="left")
    return figure


def feature_entropy_by_depth(profile: Profile, title: str | None = None) -> Figure:
    """Feature entropy and selective rate of convolutions against depth: trained, untrained, noise.

    Args:
        profile: `EntropyProfile` with `"feature_entropy"` among its measures; its `baseline`, if
            there is one, is the untrained network. Layers without maps are left out.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`: feature entropy above, selective rate below, both averaged over
        units and classes.

    Raises:
        ValueError: a profile without feature entropy.

    Source: Zhao & Zhang, ICLR 2022, arXiv 2103.09716.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> from keras_layer_entropy.measures import MeasureResult
    >>> profile = EntropyProfile(
    ...     layers=("conv", "logits"), widths=(8, 2), is_output=(False, True),
    ...     classes=("a", "b"), count=[5, 5], results={"feature_entropy": MeasureResult(
    ...         [[2.9, 2.8], [np.nan, np.nan]],
    ...         {"selective_rate": [0.9, np.nan], "noise": [3.1, np.nan]})})
    >>> [line.get_label() for line in feature_entropy_by_depth(profile).axes[0].lines]
    ['trained', 'noise of the same size']
    """
    result, rate = profile[_MEASURE], "selective_rate"
    mean = result.mean
    shown = np.flatnonzero(np.isfinite(mean))
    if not len(shown):
        raise ValueError(
            f"None of the layers {', '.join(profile.layers)} has a feature entropy, which needs "
            "maps: measure again with convolutions among layers=."
        )
    labels = [layer_labels(profile)[i] for i in shown]
    depth = np.arange(len(shown))
    trained = dict(color=BLUE, marker="o", lw=2.4, label="trained")
    untrained = dict(color=VERMILION, marker="s", ls="--", lw=1.8, ms=4.5, label="untrained")
    figure = Figure(figsize=(max(7.0, layers_width(labels, 2.2, 0.6)), 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(depth, mean[shown], **trained)
    lower.plot(depth, result.whole[rate][shown], **trained)
    if profile.baseline is not None:
        twin = profile.baseline[_MEASURE]
        upper.plot(depth, twin.mean[shown], **untrained)
        lower.plot(depth, twin.whole[rate][shown], **untrained)
    upper.plot(
        depth, result.whole["noise"][shown], "^:", color="0.4", lw=1.6, ms=4.5,
        label="noise of the same size",
    )  # fmt: skip
    from_zero(upper)
    upper.set_ylabel("feature entropy (nats)")
    lower.set_ylabel("selective rate")
    lower.set_ylim(-0.03, 1.03)
    lower.set_xlabel("layer (units), in the order of the forward pass")
    layer_ticks(lower, labels)
    lower.set_xlim(-0.4, len(shown) - 0.6)
    for axes in (upper, lower):
        bare(axes)
    upper.set_title(title or "Feature entropy against depth", loc="left")
    handles, names = upper.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return figure


def feature_entropy_and_loss(profiles: Sequence[Profile], title: str | None = None) -> Figure:
    """Feature entropy of each convolution over the epochs, and below it the loss.

    Args:
        profiles: `EntropyProfile`s of one model over its epochs (`EntropyMonitor.profiles`) with
            `"feature_entropy"` among their measures and a loss among their metrics.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`: feature entropy above, averaged over units and classes, a line
        per layer that has one, and the loss below.

    Raises:
        ValueError: no profiles, profiles of different layers, without feature entropy or loss.

    Source: Zhao & Zhang, ICLR 2022, arXiv 2103.09716.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> epochs = [EntropyProfile(
    ...     layers=("conv",), widths=(8,), is_output=(False,), classes=("a", "b"), count=[5, 5],
    ...     results={"feature_entropy": [[2.9, 2.8]]}, epoch=epoch,
    ...     metrics={"loss": 1 / (1 + epoch)}) for epoch in range(3)]
    >>> [axes.get_ylabel() for axes in feature_entropy_and_loss(epochs).axes]
    ['feature entropy (nats)', 'loss']
    """
    check_one_model(profiles)
    if any("loss" not in profile.metrics for profile in profiles):
        raise ValueError(
            "The profiles hold no loss: measure a compiled model on data with labels, as "
            "EntropyMonitor does."
        )
    means = np.stack([profile[_MEASURE].mean for profile in profiles])
    shown = np.flatnonzero(np.isfinite(means).any(axis=0))
    epochs = epochs_of(profiles)
    figure = Figure(figsize=(7.0, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.5, 1))
    for place, layer in enumerate(shown):
        upper.plot(
            epochs, means[:, layer], marker=MARKERS[place % len(MARKERS)], ms=4.5, lw=2.0,
            color=CYCLE[place % len(CYCLE)], label=layer_labels(profiles[0])[layer],
        )  # fmt: skip
    lower.plot(epochs, [profile.metrics["loss"] for profile in profiles], "o-", color="0.3", ms=4.5)
    from_zero(upper)
    upper.set_ylabel("feature entropy (nats)")
    lower.set_ylabel("loss")
    from_zero(lower)
    _epoch_axis(lower, epochs, epochs)
    for axes in (upper, lower):
        bare(axes)
    upper.set_title(title or "Feature entropy while the loss falls", loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _check_epochs(profiles: Sequence[UnitProfile]) -> None:
    layers = {(profile.layer, profile.units) for profile in profiles}
    if len(layers) != 1:
        raise ValueError(
            f"{len(profiles)} profiles of {len(layers)} different layers; expected those of one "
            "layer, one per epoch."
        )


def _epoch_axis(axes: Axes, places: Sequence[int] | np.ndarray, epochs: np.ndarray) -> None:
    """Ticks below the x axis, not too many."""
    step = -(-len(epochs) // 12)
    axes.set_xticks(places[::step], [str(epoch) for epoch in epochs[::step]])
    axes.set_xlabel("epoch (0: untrained)" if 0 in epochs else "epoch")


def _unit_ticks(set_ticks: Callable[..., Any], units: int) -> None:
    step = -(-units // _MOST_TICKS)
    set_ticks(range(0, units, step), [str(unit) for unit in range(0, units, step)], fontsize=8)


def _height(units: int) -> float:
    """Inches for a row per unit."""
    return min(max(3.4, 1.4 + 0.18 * units), 8.0)


def _ranks(values: np.ndarray) -> np.ndarray:
    """1 for the largest; of equal ones the earlier first, unknown ones last."""
    ranks = np.empty(len(values), int)
    ranks[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return ranks


def _title(words: str, profile: UnitProfile) -> str:
    return plain(f"{words}: {shortened([profile.layer])[0]}")
