"""What the figures have in common: colours, names, labels."""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from keras_layer_entropy.measures.measure import Profile

# Okabe & Ito's colours, told apart by colour-blind people too.
BLUE, VERMILION, PALE_BLUE = "#0072B2", "#D55E00", "#7FB2D5"
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*Xph8<>"
GRID = "#E4E4E4"
# What comes one after another; without the yellow end, which is hard to see on white.
ORDER = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.92, 256)))


def plain(text: object) -> str:
    """Text that matplotlib shows as it is: names of layers and classes may hold anything."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    text = text.replace("$", r"\$")  # no formula
    return f" {text}" if text.startswith("_") else text  # which would leave it out of a legend


def bare(axes: Axes) -> None:
    """Takes off what a chart does not need: the frame's top and right, and vertical grid lines."""
    axes.grid(axis="y", color=GRID, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def slanted(axes: Axes, places: ArrayLike, labels: Sequence[str]) -> None:
    """Names below the x axis that may be long."""
    axes.set_xticks(places, labels, rotation=30, ha="right", rotation_mode="anchor")


def layer_ticks(axes: Axes, labels: Sequence[str], most: int = 30) -> None:
    """The layers below the x axis; of a deep network not every one."""
    step = -(-len(labels) // most)
    slanted(axes, range(0, len(labels), step), labels[::step])


def layers_width(labels: Sequence[str], start: float, each: float) -> float:
    """Inches for an axis of layers, with an end: deep networks are drawn closer."""
    return min(start + each * len(labels), 16.0)


def layer_labels(profile: Profile) -> list[str]:
    """`path (units)` of each layer, long paths shortened."""
    return labels_of(dict(zip(profile.layers, profile.widths, strict=True)))


def labels_of(widths: Mapping[str, object]) -> list[str]:
    """The same for path -> units."""
    names = shortened(list(widths))
    return [plain(f"{x} ({n})") for x, n in zip(names, widths.values(), strict=True)]


def shortened(layers: Sequence[str], longest: int = 24) -> list[str]:
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


def order_of_both(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """The names in two lists, in the order of the first.

    One of the second alone stands before the next that both have.

    Example:

    >>> order_of_both(["a", "b", "c"], ["a", "new", "c", "last"])
    ['a', 'b', 'new', 'c', 'last']
    """
    order = list(first)
    for i, name in enumerate(second):
        if name not in order:
            behind = next((x for x in second[i:] if x in order), None)
            order.insert(len(order) if behind is None else order.index(behind), name)
    return order


def axis_label(profile: Profile, measure: str) -> str:
    """The measure and its unit."""
    return f"{measure.replace('_', ' ')} ({profile[measure].unit})"


def limits(profile: Profile, measure: str) -> tuple[float, float] | None:
    """The smallest and the largest value that the measure can have, or None."""
    largest = profile.measures[measure].largest
    return None if largest is None else (0.0, largest)


def set_limits(axes: Axes, profile: Profile, measure: str) -> None:
    """The y axis from the smallest to the largest possible value, a little more for the marks."""
    if (found := limits(profile, measure)) is not None:
        axes.set_ylim(found[0] - 0.03 * found[1], 1.03 * found[1])


def canvas(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes to draw into: a user's, or those of a new figure of so many inches."""
    if ax is not None:
        return ax
    return Figure(figsize=size, layout="constrained").add_subplot()


def legend(axes: Axes, ax: Axes | None, place: str = "lower center", **options: Any) -> None:
    """The legend of a figure: outside of the axes, but inside of a user's."""
    if ax is None:
        axes.figure.legend(loc=f"outside {place}", frameon=False, **options)
    else:
        axes.legend(frameon=False, **{**options, "ncols": 1, "fontsize": "small"})


def epochs_of(profiles: Sequence[Profile]) -> np.ndarray:
    """The epochs of profiles, counted from 1 as `fit` prints them; 0 for before the first."""
    return np.array([i if p.epoch is None else p.epoch for i, p in enumerate(profiles)]) + 1


def whole_steps(axis: Axis) -> None:
    """Ticks at whole numbers alone."""
    axis.set_major_locator(MaxNLocator(integer=True))


def check_one_model(profiles: Sequence[Profile]) -> None:
    """Raises ValueError unless there are profiles, all of the same layers."""
    if not profiles or len({profile.layers for profile in profiles}) != 1:
        raise ValueError(
            f"{len(profiles)} profiles of {len({p.layers for p in profiles})} different lists of "
            "layers; expected profiles of one model, those of EntropyMonitor.profiles."
        )


def from_zero(axes: Axes) -> None:
    """The y axis from 0 to a little above what is drawn."""
    top = axes.dataLim.y1
    axes.set_ylim(0, 1.08 * top if np.isfinite(top) and top > 0 else 1.0)


def spread_out(values: np.ndarray) -> bool:
    """Whether a few values are so much larger than the others that these need a log scale."""
    positive = values[values > 0]
    return len(positive) > 0 and positive.max() > 10 * np.median(positive)


def short(value: float) -> str:
    """A number in two decimals, `-` where it is NaN."""
    if np.isnan(value):
        return "-"
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"
