"""Two searches for a smaller network side by side."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from keras_layer_entropy import plots
from keras_layer_entropy.comparing.models import cells_of_costs, costs_of
from keras_layer_entropy.plots.style import order_of_both
from keras_layer_entropy.pruning.search import PruningResult
from keras_layer_entropy.recording.layers import every_layer
from keras_layer_entropy.report.side_by_side import Comparison, Section


def compare_results(
    first: PruningResult, second: PruningResult, names: tuple[str, str], x: Any = None
) -> Comparison:
    """The `Comparison` of two searches."""
    results = first, second
    costs, notes = costs_of([result.model for result in results], names, x)
    columns = ["", *names, "change"]
    sections = [
        Section("The smaller networks", columns, cells_of_costs(*costs)),
        Section("Quality on the validation data", columns, _qualities(results)),
        Section("The searches", columns[:-1], _searches(results)),
        Section("Options that differ", ["option", *names], _options(results)),
        Section("What went, and in which step that was kept", ["", *names], _gone(results)),
        Section("Units that went", ["layer", *names, "in both"], _units(results)),
    ]
    draw = functools.partial(_figure, results, names)
    sections = [section for section in sections if section.rows]
    return Comparison(names, sections, [*notes, *_notes(results, names)], draw)


def _original(result: PruningResult) -> float:
    """The quality that a search began with; NaN where it made no step, which alone tells it."""
    return float(result.steps[0].quality_before) if result.steps else np.nan


def _final(result: PruningResult) -> float:
    """The quality of the smaller network."""
    kept = [step.quality_retrained for step in result.steps if step.accepted]
    return float(kept[-1]) if kept else _original(result)


def _qualities(results: Sequence[PruningResult]) -> list[tuple[str, ...]]:
    """Of each quality that one of them held on to: before, after and what is known of the loss."""
    rows = []
    for words, quality in {x.quality.words: x.quality for x in results}.items():
        for name, value in (("of the original", _original), ("of the smaller one", _final)):
            rows.append(_row(f"{words} {name}", words, quality.text, results, value))
        error = _row("standard error of what was lost", words, quality.text, results, _error)
        if set(error[1:]) != {"-"}:
            rows.append((*error[:-1], ""))
    return rows


def _row(
    name: str,
    words: str,
    text: Callable[[float], str],
    results: Sequence[PruningResult],
    value: Callable[[PruningResult], float],
) -> tuple[str, ...]:
    """A number of those that held on to a quality; `-` for the others and what is not known."""
    values = [value(x) if x.quality.words == words else np.nan for x in results]
    change = values[1] - values[0]
    changed = "-" if np.isnan(change) else f"{'-' if change < 0 else '+'}{text(abs(change))}"
    return name, *("-" if np.isnan(x) else text(x) for x in values), changed


def _error(result: PruningResult) -> float:
    """The standard error of the last step that was kept; NaN where it is not known."""
    kept = [step.standard_error for step in result.steps if step.accepted]
    return np.nan if not kept or kept[-1] is None else kept[-1]


def _searches(results: Sequence[PruningResult]) -> list[tuple[str, ...]]:
    met = {None: "no target", True: "yes", False: "no"}
    words = {
        "steps": lambda result: str(len(result.steps)),
        "of these rolled back": lambda result: str(sum(not x.accepted for x in result.steps)),
        "seconds": lambda result: f"{sum(step.seconds for step in result.steps):.1f}",
        "layers and blocks that went": lambda result: str(len(result.removed)),
        "units that went": lambda result: str(sum(map(len, result.units.values()))),
        "target met": lambda result: met[result.target_met],
    }
    return [(name, *map(word, results)) for name, word in words.items()]


def _options(results: Sequence[PruningResult]) -> list[tuple[str, ...]]:
    names = [field.name for field in dataclasses.fields(results[0].options)]
    pairs = [(name, *(getattr(x.options, name) for x in results)) for name in names]
    return [(name, str(a), str(b)) for name, a, b in pairs if a != b]


def _gone(results: Sequence[PruningResult]) -> list[tuple[str, ...]]:
    """Each layer or block that went in one of them, and in which of the steps that were kept."""
    places = []
    for result in results:
        kept = [step for step in result.steps if step.accepted]
        numbers = {f"{x.kind} {x.part}": str(i) for i, x in enumerate(kept, 1) if x.kind != "unit"}
        places.append(numbers)
    parts = order_of_both(*map(list, places))
    return [(part, *(found.get(part, "-") for found in places)) for part in parts]


def _units(results: Sequence[PruningResult]) -> list[tuple[str, ...]]:
    """How many units of each layer went, and how many of them in both."""
    gone = [result.units for result in results]
    order = [path for path in _layers(results) if any(path in found for found in gone)]
    sets = [[set(found.get(path, ())) for found in gone] for path in order]
    return [
        (path, *(str(len(x)) if x else "-" for x in units), str(len(set.intersection(*units))))
        for path, units in zip(order, sets, strict=True)
    ]


def _layers(results: Iterable[PruningResult]) -> list[str]:
    """The paths of the layers that are left in one of them, or lost units, in order."""
    orders = [order_of_both(list(every_layer(x.model)[0]), list(x.units)) for x in results]
    return order_of_both(*orders)


def _cost(results: Iterable[PruningResult]) -> str:
    """What is left is told by FLOPs where all steps know them."""
    known = all(step.flops is not None for result in results for step in result.steps)
    return "flops" if known else "parameters"


def _figure(results: Sequence[PruningResult], names: tuple[str, str]) -> Figure:
    cost = _cost(results)
    pairs = list(zip(names, results, strict=True))
    return plots.two_searches(
        {
            name: [(getattr(x, cost), x.quality_retrained, x.accepted) for x in result.steps]
            for name, result in pairs
        },
        {name: _original(result) for name, result in pairs},
        {name: result.quality.words for name, result in pairs},
        {"flops": "FLOPs per sample", "parameters": "parameters"}[cost],
        "Quality against what is left",
    )


def _notes(results: Sequence[PruningResult], names: tuple[str, str]) -> list[str]:
    notes = []
    before = [result.before for result in results]
    if (before[0].layers, before[0].widths) != (before[1].layers, before[1].widths):
        notes.append("The searches began with other networks: what went is not of the same one.")
    elif _same_quality(results) and abs(_original(results[0]) - _original(results[1])) > 0:
        notes.append(
            "The original networks are not equally good, so that one search may have begun with "
            "other weights or other validation data: units of the same number need not be the same."
        )
    counts = [x.count.sum() for x in before]
    if counts[0] != counts[1]:
        notes.append(
            f"The validation data differ: {counts[0]} samples of {names[0]}, {counts[1]} of "
            f"{names[1]}."
        )
    if not _same_quality(results):
        notes.append("The searches held on to other qualities, which have no difference.")
    for name, result in zip(names, results, strict=True):
        if not result.steps:
            notes.append(f"{name} tried nothing, and so tells no quality.")
    return notes


def _same_quality(results: Sequence[PruningResult]) -> bool:
    return bool(results[0].quality.words == results[1].quality.words)
