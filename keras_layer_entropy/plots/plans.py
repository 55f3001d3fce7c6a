"""Figures of what could go from a network."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from keras_layer_entropy.plots.style import BLUE, GRID, VERMILION, bare, plain, shortened

_GREEN = "#009E73"
_STYLES = {
    "block": dict(marker="s", color=BLUE, label="block"),
    "layer": dict(marker="o", color=VERMILION, label="layer"),
    "unit": dict(marker="^", color=_GREEN, label="units of a layer"),
}
_DECADES = 1.5  # from here on, the least and the largest change are not to be told on one scale
_MOST_LABELS = 10
_OFFSETS = (
    ((7, 0), "left", "center"),
    ((-7, 0), "right", "center"),
    ((0, 7), "center", "bottom"),
    ((0, -7), "center", "top"),
    *(
        ((5 * x, 5 * y), ha, va)
        for x, ha in ((1, "left"), (-1, "right"))
        for y, va in ((1, "bottom"), (-1, "top"))
    ),
)  # points, and where the name stands then


def plan_points(
    parts: Sequence[tuple[str, str, Mapping[str, float], float]], title: str | None = None
) -> Figure:
    """What could go from a network, a point for each part: what it saves, and what it costs.

    The further right and the lower, the better: parts that no other one beats in both have their
    name, as far as names fit in.

    Args:
        parts: list of `(name, kind, saved, change)`: kind `"block"`, `"layer"` or `"unit"`; saved:
            what of -> share of the network's, with the same keys for all, a panel for each;
            change: root mean square change of the outputs, relative to their spread.
        title: title of the figure.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: no parts.

    Example:

    >>> parts = [("sum_1", "block", {"FLOPs": 0.2}, 0.05), ("dense", "unit", {"FLOPs": 0.1}, 0.2)]
    >>> axes = plan_points(parts).axes[0]
    >>> [text.get_text() for text in axes.texts], axes.get_xlabel()
    (['sum_1'], 'FLOPs saved (per cent)')
    """
    if not parts:
        raise ValueError("There are no parts to draw.")
    panels = list(parts[0][2])
    figure = Figure(figsize=(5.0 * len(panels) + 0.6, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    changes = 100 * np.array([change for *_, change in parts])
    names = [plain(name) for name in shortened([name for name, *_ in parts])]
    for axes, panel in zip(all_axes, panels, strict=True):
        saved = 100 * np.array([share[panel] for _, _, share, _ in parts])
        for kind, style in _STYLES.items():
            chosen = np.array([of == kind for _, of, _, _ in parts])
            if chosen.any():
                axes.plot(saved[chosen], changes[chosen], linestyle="none", alpha=0.85, **style)
        axes.set_xlim(min(0.0, 1.1 * saved.min()), 1.15 * max(saved.max(), 0.01))
        _scale(axes, changes)
        bare(axes)
        axes.grid(axis="x", color=GRID, zorder=0)
        axes.set_xlabel(f"{panel} saved (per cent)")
    all_axes[0].set_ylabel("change of the outputs (per cent of their spread)")
    all_axes[0].set_title(title or "What parts save and cost: right and low is good", loc="left")
    figure.legend(
        *all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    figure.draw_without_rendering()  # so that it is known where points and names stand
    for axes, panel in zip(all_axes, panels, strict=True):
        saved = 100 * np.array([share[panel] for _, _, share, _ in parts])
        colors = [_STYLES[kind]["color"] for _, kind, _, _ in parts]
        _label(axes, np.column_stack([saved, changes]), names, colors)
    return figure


def _scale(axes: Axes, changes: np.ndarray) -> None:
    """The y axis: logarithmic over decades; with the part from 0 on linear where there is a 0."""
    positive = changes[changes > 0]
    if not len(positive) or np.log10(positive.max() / positive.min()) < _DECADES:
        axes.set_ylim(0, 1.1 * max(changes.max(), 0.01))
        return
    if len(positive) == len(changes):
        axes.set_yscale("log")
        axes.set_ylim(positive.min() / 2, 2 * positive.max())
    else:
        axes.set_yscale("symlog", linthresh=positive.min())
        axes.set_ylim(-0.1 * positive.min(), 2 * positive.max())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _label(axes: Axes, points: np.ndarray, names: Sequence[str], colors: Sequence[str]) -> None:
    """Names at the points that are best, where they get into nobody's way."""
    places = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    inside = axes.get_window_extent()
    for index in best(points)[:_MOST_LABELS]:
        for offset, ha, va in _OFFSETS:
            text = axes.annotate(
                names[index], points[index], xytext=offset, textcoords="offset points", ha=ha,
                va=va, fontsize=8, color=colors[index],
            )  # fmt: skip
            box = text.get_window_extent().padded(2)
            whole = all(inside.contains(*corner) for corner in box.corners())
            if whole and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def best(points: np.ndarray) -> list[int]:
    """Which of some points no other one beats, that which saves most first.

    Args:
        points: `[points, 2]`, what is saved and what it costs.

    Example:

    >>> best(np.array([[1.0, 5.0], [3.0, 4.0], [2.0, 1.0], [9.0, 9.0]]))
    [3, 1, 2]
    """
    found, least = [], np.inf
    for index in np.lexsort((points[:, 1], -points[:, 0])).tolist():
        if points[index, 1] < least:
            found.append(index)
            least = points[index, 1]
    return found
