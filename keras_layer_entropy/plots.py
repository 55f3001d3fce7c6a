"""Profile -> matplotlib Figure.

No pyplot: nothing is global, and a figure that is dropped is gone. Show one with
`display(figure)` in a notebook, save it with `figure.savefig(path)`.
"""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by colour-blind people too.
_TRAINED, _UNTRAINED, _CLASS = "#0072B2", "#D55E00", "#7FB2D5"
_NAMES = {
    "activation_entropy": "Activation entropy",
    "instability": "Instability within a class",
    "state_entropy": "On/off state entropy (bits)",
}


def entropy_curve(profile, measure="activation_entropy", title=None):
    """Entropy against depth: every class thin, their mean thick, the untrained twin dashed.

    Args:
        profile: `EntropyProfile`; its `baseline`, if there is one, is the twin.
        measure: a name in `profile.values`.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), units=(8, 2), outputs=(False, True), classes=("a", "b"),
    ...     count=[5, 5], normalizer=[2.1, 0.7],
    ...     values={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> [line.get_label() for line in entropy_curve(profile).axes[0].lines]
    ['each class', '_class b', 'mean of the classes']
    """
    values, depth = profile.values[measure], np.arange(len(profile.layers))
    labels = _layer_labels(profile)
    height = 3.7 + 0.04 * max(map(len, labels))  # the labels are slanted
    figure = Figure(figsize=(max(6.0, 2.2 + 0.6 * len(depth)), height), layout="constrained")
    axes = figure.add_subplot()
    for index, name in enumerate(profile.classes if len(profile.classes) > 1 else ()):
        label = "each class" if index == 0 else f"_class {name}"
        faint = min(1.0, 30 / len(profile.classes))
        axes.plot(
            depth, values[:, index], color=_CLASS, linewidth=0.9, alpha=faint, label=label, zorder=2
        )
    mean = "mean of the classes" if len(profile.classes) > 1 else "all samples"
    axes.plot(
        depth, profile.mean_of(measure), "o-", color=_TRAINED, linewidth=2.6, label=mean, zorder=4
    )
    if profile.baseline is not None:
        axes.plot(
            depth,
            profile.baseline.mean_of(measure),
            "s--",
            color=_UNTRAINED,
            linewidth=1.8,
            markersize=4.5,
            label="same network, untrained (mean)",
            zorder=3,
        )
    axes.set_xticks(depth, labels, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_xlabel("layer (units), in the order of the forward pass")
    axes.set_ylabel(_axis_label(profile, measure))
    if profile.settings.get("normalization", "log") == "log":
        axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="y", color="0.9", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title or f"{_NAMES.get(measure, measure)} against depth", loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def heatmap(profile, measure="activation_entropy", title=None):
    """Layers x classes: one cell per layer and class, the value written in it.

    Args, returns: as for `entropy_curve`.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), units=(8, 2), outputs=(False, True), classes=("a", "b"),
    ...     count=[5, 5], normalizer=[2.1, 0.7],
    ...     values={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> [text.get_text() for text in heatmap(profile).axes[0].texts]
    ['.90', '.80', '.10', '.20']
    """
    values = profile.values[measure]
    rows, columns = values.shape
    figure = Figure(
        figsize=(min(max(4.6, 3.2 + 0.55 * columns), 16.0), max(3.4, 1.6 + 0.36 * rows)),
        layout="constrained",
    )
    axes = figure.add_subplot()
    bounded = profile.settings.get("normalization", "log") == "log"
    limits = {"vmin": 0.0, "vmax": 1.0} if bounded else {}
    image = axes.imshow(values, aspect="auto", cmap="cividis", **limits)
    if columns <= 20:
        for (row, column), value in np.ndenumerate(values):
            level = image.norm(value)
            axes.text(
                column,
                row,
                _short(value),
                ha="center",
                va="center",
                fontsize=8,
                color="black" if np.isnan(value) or level > 0.55 else "white",
            )
    axes.set_yticks(range(rows), _layer_labels(profile))
    shown = np.arange(0, columns, max(1, columns // 25))
    names = [profile.classes[i] for i in shown]
    slanted = max(map(len, names)) > 4
    axes.set_xticks(
        shown,
        names,
        rotation=30 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )
    axes.set_xlabel("class")
    axes.set_ylabel("layer (units)")
    axes.set_title(title or f"{_NAMES.get(measure, measure)}, class by class", loc="left")
    figure.colorbar(image, label=_axis_label(profile, measure))
    return figure


def pixels(figure):
    """The figure as pixels: uint8 `[height, width, 4]`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def _layer_labels(profile):
    short = [x if len(x) <= 24 else f"{x[:10]}...{x[-11:]}" for x in profile.layers]
    return [f"{layer} ({units})" for layer, units in zip(short, profile.units, strict=True)]


def _axis_label(profile, measure):
    if measure == "state_entropy":
        return "state entropy (bits)"
    return f"{measure.replace('_', ' ')} ({profile.unit})"


def _short(value):
    if np.isnan(value):
        return "-"
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"
