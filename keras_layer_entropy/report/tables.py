"""Tables for the terminal."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.table

from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE
from keras_layer_entropy.measures.measure import Profile, listed


def table(profile: Profile, tolerance: float = FLAT_TOLERANCE) -> rich.table.Table:
    """The layers of a profile, a `rich.table.Table`.

    Args:
        profile: `EntropyProfile` with activation_entropy.
        tolerance: below this gradient a layer is flat.

    Returns:
        `rich.table.Table`: layer, units, mean, lowest and highest class, gradient, verdict; and a
        column for the untrained twin and for each measure that says one number of a layer.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), widths=(8, 2), is_output=(False, True),
    ...     classes=("a", "b"), count=[5, 5],
    ...     results={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> [column.header for column in table(profile).columns][:4]
    ['layer', 'units', 'mean', 'min\\n(class)']
    """
    others = [
        name for name, x in profile.results.items() if name != "activation_entropy" and not x.whole
    ]
    title = f"Activation entropy ({profile.entropy_unit}) of {int(profile.count.sum())} samples"
    result = table_of(title)
    for name in ("units", "mean", "min\n(class)", "max\n(class)", "gradient"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("flat?", no_wrap=True)
    if profile.baseline is not None:
        result.add_column("un-\ntrained", justify="right", no_wrap=True)
    for name in others:
        header = "\n".join(map(_broken, name.split("_")))
        result.add_column(header, justify="right", no_wrap=True)
    trend = profile.trend(tolerance)
    for row, layer in enumerate(profile.layers):
        cells = [layer, str(profile.widths[row]), number(profile.mean[row])]
        cells += [_extreme(profile, row, np.nanargmin), _extreme(profile, row, np.nanargmax)]
        cells += [number(profile.gradient[row], sign=True), trend[row]]
        if profile.baseline is not None:
            cells.append(number(profile.baseline.mean[row]))
        cells += [number(profile[name].mean[row]) for name in others]
        result.add_row(*cells)
    return result


def layer_value_tables(profile: Profile) -> list[rich.table.Table]:
    """The measures that bring numbers of layers as a whole: a `rich.table.Table` for each.

    Args:
        profile: `EntropyProfile`.

    Returns:
        List of `rich.table.Table`: layer, mean over the classes, and these numbers.
    """
    return [layer_value_table(profile, name) for name, x in profile.results.items() if x.whole]


def layer_value_table(profile: Profile, name: str) -> rich.table.Table:
    """One of these: of the measure of that name."""
    measure, found = profile.measures[name], profile[name]
    result = table_of(f"{measure.title} ({found.unit})")
    result.add_column("mean of\nclasses", justify="right", no_wrap=True)
    columns = {key.removeprefix(f"{name}_"): v for key, v in found.columns(name).items()}
    for key in columns:
        result.add_column(key.replace("_", "\n"), justify="right", no_wrap=True)
    for row, layer in enumerate(profile.layers):
        result.add_row(layer, *(number(column[row]) for column in (found.mean, *columns.values())))
    return result


def comparison(
    before: Any, after: Any, quality: Any, validation: Sequence[float], test: Sequence[float]
) -> rich.table.Table:
    """What a smaller model saves and what it costs in quality, a `rich.table.Table`.

    Args:
        before, after: `pruning.Cost`s.
        quality: `pruning.Quality`, what the numbers are of.
        validation, test: pairs of it, before and after.
    """
    result = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    result.add_column("")
    for name in ("before", "after", "after / before"):
        result.add_column(name, justify="right")
    for row in comparison_rows(before, after, quality, validation, test):
        result.add_row(*row)
    return result


def comparison_rows(
    before: Any, after: Any, quality: Any, validation: Sequence[float], test: Sequence[float]
) -> list[tuple[str, str, str, str]]:
    """The rows of `comparison`, as text: name, before, after, ratio or difference."""
    rows = cost_rows(before, after)
    ratios = [
        (
            name,
            cost_text(a, form),
            cost_text(b, form),
            f"{b / a:.2f}" if a and b is not None else "-",
        )
        for name, a, b, form in rows
    ]
    text = quality.text
    qualities = [
        (f"{part} {quality.words}", text(a), text(b), f"{'-' if b < a else '+'}{text(abs(b - a))}")
        for part, (a, b) in (("validation", validation), ("test", test))
    ]
    return ratios + qualities


def cost_rows(before: Any, after: Any) -> list[tuple[str, Any, Any, str]]:
    """What two `pruning.Cost`s say: name, the two numbers (None: unknown), their format."""
    rows: list[tuple[str, Any, Any, str]] = [
        ("Dense layers", before.dense_layers, after.dense_layers, "{:d}"),
        ("parameters", before.parameters, after.parameters, "{:,d}"),
    ]
    uncounted = list(dict.fromkeys((*before.uncounted, *after.uncounted)))
    without = f", without {listed(uncounted)}" if uncounted else ""
    rows.append((f"FLOPs per sample{without}", before.flops, after.flops, "{:,d}"))
    for size, latency in before.latency.items():
        name = f"latency, batch of {size} (ms)"
        rows.append((name, latency, after.latency[size], "{:.2f}"))
    return rows


def cost_text(value: float | None, form: str) -> str:
    """A number of `cost_rows` as a cell."""
    return "unknown" if value is None else form.format(value)


def extreme_class(profile: Profile, row: int, choose: Callable[[np.ndarray], Any]) -> int | None:
    """The column of the class that `choose` (`np.nanargmin`, say) finds in a row, or None."""
    values = profile.entropy[row]
    return None if np.isnan(values).all() else int(choose(values))


def table_of(title: str | None, things: str = "layer") -> rich.table.Table:
    """A `rich.table.Table` with the first column, that of the names of things."""
    result = rich.table.Table(
        title=title,
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    result.add_column(things, overflow="fold", min_width=8)
    return result


def _broken(word: str, longest: int = 10) -> str:
    """A word in two halves where it is long: columns are to be narrow."""
    half = len(word) // 2
    return word if len(word) <= longest else f"{word[:half]}-\n{word[half:]}"


def _extreme(profile: Profile, row: int, choose: Callable[[np.ndarray], Any]) -> str:
    values, column = profile.entropy[row], extreme_class(profile, row, choose)
    if column is None:
        return "-"
    name = "" if len(profile.classes) == 1 else f" ({profile.classes[column]})"
    return number(values[column]) + name


def number(value: float, sign: bool = False) -> str:
    """A number of a layer as a cell, `-` where it is NaN."""
    digits = 3 if abs(value) < 100 else 1  # a row is to fit into 80 columns
    return "-" if np.isnan(value) else f"{value:{'+' if sign else ''}.{digits}f}"
