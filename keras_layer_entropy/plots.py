"""Profile -> matplotlib Figure.

No pyplot: nothing is global, and a figure that is dropped is gone. Show one with
`display(figure)` in a notebook, save it with `figure.savefig(path)`.
"""

import posixpath

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


def pruning_curves(before, after, accuracies, limit):
    """What pruning did: entropy against depth before and after; accuracy as layers went.

    Args:
        before, after: `EntropyProfile`s of the original and of the smaller network, the layers of
            the second among those of the first; their untrained twins are drawn faintly.
        accuracies: list of `(layers removed, accuracy, kind)`, kind being `"original"`,
            `"right after removal"`, `"after retraining"` or `"rolled back"`.
        limit: the lowest accuracy that was accepted.

    Returns:
        `matplotlib.figure.Figure`.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), units=(8, 2), outputs=(False, True), classes=("a", "b"),
    ...     count=[5, 5], normalizer=[2.1, 0.7],
    ...     values={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> figure = pruning_curves(profile, profile, [(0, 0.9, "original")], 0.89)
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['activation entropy (normalised, 0 to 1)', 'validation accuracy']
    """
    labels = _layer_labels(before)
    height = 4.0 + 0.04 * max(map(len, labels))
    figure = Figure(figsize=(max(9.0, 5.6 + 0.45 * len(labels)), height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(max(3.0, 0.45 * len(labels)), 2.6))
    place = {layer: i for i, layer in enumerate(before.layers)}
    for profile, color, marker, name in (
        (before, _UNTRAINED, "o", "before"),
        (after, _TRAINED, "s", "after"),
    ):
        depth = [place[layer] for layer in profile.layers]
        if profile.baseline is not None:
            left.plot(depth, profile.baseline.mean, ":", color=color, alpha=0.6, linewidth=1.3,
                      label=f"{name}, untrained")  # fmt: skip
        left.plot(depth, profile.mean, marker=marker, color=color, linewidth=2.4, label=name)
    left.set_xticks(range(len(labels)), labels, rotation=30, ha="right", rotation_mode="anchor")
    left.set_ylabel(_axis_label(before, "activation_entropy"))
    left.set_ylim(-0.03, 1.03)
    left.set_title("Activation entropy against depth", loc="left")
    styles = {
        "original": dict(marker="D", color="black"),
        "right after removal": dict(marker="v", color=_UNTRAINED),
        "after retraining": dict(marker="o", color=_TRAINED),
        "rolled back": dict(marker="x", color="0.45"),
    }
    for kind, style in styles.items():
        points = [(n, value) for n, value, of in accuracies if of == kind]
        if points:
            right.plot(*zip(*points, strict=True), linestyle="none", label=kind, **style)
    right.axhline(limit, color="0.45", linestyle="--", linewidth=1.0, label="limit")
    most = max(n for n, _, _ in accuracies)
    right.set_xticks(range(0, most + 1, max(1, most // 10)))
    right.set_xlim(-0.5, most + 0.5)
    right.set_xlabel("layers removed")
    right.set_ylabel("validation accuracy")
    right.set_title("Accuracy as layers went", loc="left")
    for axes in (left, right):
        axes.grid(axis="y", color="0.9", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3 if axes is left else -0.18),
                    ncols=2, frameon=False)  # fmt: skip
    return figure


def pixels(figure):
    """The figure as pixels: uint8 `[height, width, 4]`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def _layer_labels(profile):
    return [f"{x} ({n})" for x, n in zip(_shortened(profile.layers), profile.units, strict=True)]


def _shortened(layers, longest=24):
    """Paths without the folders that all long ones share, so that what tells them apart is kept."""
    if max(map(len, layers)) <= longest:
        return list(layers)
    shared = posixpath.commonpath([posixpath.dirname(x) for x in layers if len(x) > longest])
    start = f"{shared}/" if shared else ""
    short = ["../" + x.removeprefix(start) if start and x.startswith(start) else x for x in layers]
    # What is still too long keeps its end, or both ends if ends are the same.
    cut = [x if len(x) <= longest else "..." + x[3 - longest :] for x in short]
    if len(set(cut)) < len(cut):
        cut = [x if len(x) <= 2 * longest else f"{x[:longest]}...{x[-longest:]}" for x in short]
    return cut if len(set(cut)) == len(cut) else short


def _axis_label(profile, measure):
    if measure == "state_entropy":
        return "state entropy (bits)"
    return f"{measure.replace('_', ' ')} ({profile.unit})"


def _short(value):
    if np.isnan(value):
        return "-"
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"
