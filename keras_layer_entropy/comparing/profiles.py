"""Two profiles side by side, measure by measure."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from keras_layer_entropy import plots
from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.analysis.saved import plain
from keras_layer_entropy.comparing.matching import names_in_first, said
from keras_layer_entropy.measures.measure import Measure, listed, mean_of_known
from keras_layer_entropy.plots.style import axis_label, labels_of, limits, order_of_both, shortened
from keras_layer_entropy.report.side_by_side import (
    Comparison,
    Section,
    change_of_word,
    difference,
    most_changed,
)
from keras_layer_entropy.report.tables import number

_ENTROPY = "activation_entropy"  # which the trend is of
_MOST_CLASSES = 20


def names_of_profiles(first: EntropyProfile, second: EntropyProfile) -> tuple[str, str] | None:
    """What two profiles are called by themselves: their epochs, as `fit` counts them."""
    epochs = first.epoch, second.epoch
    if None in epochs or epochs[0] == epochs[1]:
        return None
    return f"epoch {(first.epoch or 0) + 1}", f"epoch {(second.epoch or 0) + 1}"


def compare_profiles(
    first: EntropyProfile, second: EntropyProfile, names: tuple[str, str]
) -> Comparison:
    """The `Comparison` of two profiles.

    Raises ValueError where they have no measure or no layer in common.
    """
    called = names_in_first(first.layers, second.layers)
    notes = said(first.layers, second.layers)
    pair = _Pair(first, _renamed(second, called) if notes else second, names)
    sections = [section for measure in pair.measures for section in pair.of_measure(measure)]
    sections[1:1] = pair.by_class(pair.measures[0])
    metrics = pair.of_metrics()
    draw = functools.partial(pair.figure, pair.measures[0])
    return Comparison(names, [*sections, *metrics], [*notes, *pair.notes()], draw)


class _Pair:
    """Two profiles, their layers, measures and classes brought together."""

    def __init__(
        self, first: EntropyProfile, second: EntropyProfile, names: tuple[str, str]
    ) -> None:
        self._both, self._names = (first, second), names
        self.layers = order_of_both(first.layers, second.layers)
        self.measures = [
            name
            for name, measure in first.measures.items()
            if name in second.measures and measure.key == second.measures[name].key
        ]
        if not self.measures:
            raise ValueError(
                f"The profiles hold no measure in common: {sorted(first.results)} and "
                f"{sorted(second.results)}. Measure both with the same measures=."
            )
        if not set(first.layers) & set(second.layers):
            raise ValueError(
                f"The profiles have no layer in common: {listed(first.layers)}; "
                f"{listed(second.layers)}. Layers are matched by their paths."
            )
        agree = sorted(first.classes) == sorted(second.classes)
        self._classes = first.classes if agree and len(first.classes) > 1 else ()

    def of_measure(self, name: str) -> list[Section]:
        """What a measure says of each layer: the mean of the classes, and its other numbers."""
        first, second = self._both
        measure, found = first.measures[name], first[name]
        means = self._means(name)
        columns = ["layer", "units", *self._names, "change"]
        cells = [self.layers, self._widths(), *self._changes(means, self._same_unit(name))]
        if self._classes:
            columns.append("most changed\n(class)")
            changes = self._class_changes(name)
            cells.append([most_changed(row, self._classes) for row in changes])
        if name == _ENTROPY:
            columns.append("trend")
            trends = [dict(zip(x.layers, x.trend(), strict=True)) for x in self._both]
            cells.append([_trend(*(x.get(layer) for x in trends)) for layer in self.layers])
        mean = ", mean of the classes" if self._several_classes() else ""
        sections = [_section(f"{measure.title} ({self._unit(name)}){mean}", columns, cells)]
        for key in [key for key in found.whole if key in second[name].whole]:
            values = [self._placed(x, x[name].whole[key]) for x in self._both]
            words, other = (x.measures[name].words(key) for x in self._both)
            title = f"{words.title} ({words.unit})" if words.unit else words.title
            cells = [self.layers, *self._changes(values, words.unit == other.unit)]
            sections.append(_section(title, ["layer", *self._names, "change"], cells))
        return sections

    def by_class(self, name: str) -> list[Section]:
        """What a measure says of each class, the mean of the layers that both have."""
        if not self._classes:
            return []
        values = [self._by_class(x, name) for x in self._both]
        known = np.isfinite(values[0]).any(axis=1) & np.isfinite(values[1]).any(axis=1)
        means = [mean_of_known(x[known].T) for x in values]
        changes = self._class_changes(name)
        order = list(range(len(self._classes)))
        size = np.nan_to_num(np.abs(means[1] - means[0]), nan=-1.0)
        if len(order) > _MOST_CLASSES:
            order = sorted(np.argsort(-size, kind="stable")[:_MOST_CLASSES].tolist())
        columns = ["class", "samples", *self._names, "change", "most changed\n(layer)"]
        counts = [dict(zip(x.classes, map(int, x.count), strict=True)) for x in self._both]
        cells = [
            [self._classes[i] for i in order],
            [change_of_word(*(str(x[self._classes[i]]) for x in counts)) for i in order],
            *self._changes([x[order] for x in means], self._same_unit(name)),
            [most_changed(changes[:, i], shortened(self.layers)) for i in order],
        ]
        some = len(self._classes) - len(order)
        which = f", the {len(order)} of {len(self._classes)} that change most" if some else ""
        title = f"{self._both[0].measures[name].title} by class{which}"
        return [_section(f"{title}, mean of the layers that both have", columns, cells)]

    def of_metrics(self) -> list[Section]:
        """The models' own loss and metrics."""
        metrics = [x.metrics for x in self._both]
        rows = []
        for name in order_of_both(list(metrics[0]), list(metrics[1])):
            values = [float(x.get(name, np.nan)) for x in metrics]
            cells = ["-" if np.isnan(x) else f"{x:.4g}" for x in values]
            change = values[1] - values[0]
            rows.append((name, *cells, "-" if np.isnan(change) else f"{change:+.4g}"))
        title = "The model's own loss and metrics"
        return [Section(title, ["", *self._names, "change"], rows)] if rows else []

    def figure(self, name: str) -> Figure:
        """The curves of a measure against depth, and how far they are apart."""
        twins = [x.baseline for x in self._both]
        untrained = {
            word: self._placed(x, x[name].mean)
            for word, x in zip(self._names, twins, strict=True)
            if x is not None and name in x.results
        }
        first, means = self._both[0], self._means(name)
        change = means[1] - means[0]
        return plots.two_curves(
            labels_of(dict(zip(self.layers, self._widths(), strict=True))),
            dict(zip(self._names, means, strict=True)),
            change if self._same_unit(name) else np.full_like(change, np.nan),
            by_class=self._class_changes(name) if self._classes else None,
            untrained=untrained,
            label=axis_label(first, name) if self._same_unit(name) else name.replace("_", " "),
            limits=limits(first, name) if self._same_unit(name) else None,
            title=f"{first.measures[name].title} against depth",
        )

    def notes(self) -> list[str]:
        """What is not the same in how the two were measured."""
        first, second = self._both
        notes = []
        for one, other, name in ((first, second, self._names[0]), (second, first, self._names[1])):
            if more := [x for x in one.results if x not in other.results]:
                notes.append(f"Of {name} alone is known: {listed(more)}.")
            if more := [x for x in one.layers if x not in other.layers]:
                notes.append(f"Only {name} has the layers {listed(more)}.")
        for name in [x for x in first.results if x in second.results]:
            if name not in self.measures:
                keys = " and ".join(x.measures[name].key for x in self._both)
                notes.append(f"{name} is another measure in each, {keys}: it is not compared.")
                continue
            options = [_options(x.measures[name]) for x in self._both]
            notes += [
                f"{name} was measured with {key}={options[0].get(key)!r} of {self._names[0]}, "
                f"{options[1].get(key)!r} of {self._names[1]}."
                for key in {**options[0], **options[1]}
                if options[0].get(key) != options[1].get(key)
            ]
            if not self._same_unit(name):
                notes.append(
                    f"{name} is in other units, {first[name].unit!r} and {second[name].unit!r}: "
                    "they have no difference."
                )
        notes += self._notes_on_samples()
        if (first.layers, first.widths) != (second.layers, second.widths):
            notes.append(
                "The networks have other layers or widths, which moves such numbers whatever was "
                "learned: compare each with its untrained twin, too."
            )
        return notes

    def _notes_on_samples(self) -> list[str]:
        first, second = self._both
        notes = []
        totals = [int(x.count.sum()) for x in self._both]
        if set(first.classes) != set(second.classes):
            notes.append(
                f"The classes differ, so that only their means stand here: {self._names[0]} has "
                f"{listed(first.classes)}; {self._names[1]} has {listed(second.classes)}."
            )
        counts = [dict(zip(x.classes, x.count.tolist(), strict=True)) for x in self._both]
        if totals[0] != totals[1]:
            notes.append(
                f"The samples differ: {totals[0]} of {self._names[0]}, {totals[1]} of "
                f"{self._names[1]}."
            )
        elif self._classes and counts[0] != counts[1]:
            notes.append("The samples differ: as many, but not of the same classes.")
        for one, other, name in ((0, 1, self._names[0]), (1, 0, self._names[1])):
            empty = [c for c in self._classes if not counts[one][c] and counts[other][c]]
            if empty:
                notes.append(
                    f"{name} has no samples of {listed(empty)}: the means are over other classes."
                )
        data = [x.settings.get("data") for x in self._both]
        if data[0] != data[1] and None not in data:
            notes.append(f"The data differ: {data[0]}; {data[1]}.")
        return notes

    def _means(self, name: str) -> list[np.ndarray]:
        return [self._placed(x, x[name].mean) for x in self._both]

    def _placed(self, profile: EntropyProfile, values: np.ndarray) -> np.ndarray:
        """Values of a profile's layers in the rows of all, NaN for layers that it does not have."""
        wide = np.full((len(self.layers), *values.shape[1:]), np.nan)
        wide[[self.layers.index(layer) for layer in profile.layers]] = values
        return wide

    def _by_class(self, profile: EntropyProfile, name: str) -> np.ndarray:
        """`[layers, classes]` in the order of the layers and classes of both."""
        order = [profile.classes.index(x) for x in self._classes]
        return self._placed(profile, profile[name].per_class[:, order])

    def _class_changes(self, name: str) -> np.ndarray:
        """`[layers, classes]`, second minus first; NaN where units differ."""
        first, second = (self._by_class(x, name) for x in self._both)
        return second - first if self._same_unit(name) else np.full_like(first, np.nan)

    def _changes(self, values: Sequence[np.ndarray], comparable: bool) -> list[list[str]]:
        """Three columns: the values of each, and their difference."""
        changes = [difference(a, b) if comparable else "-" for a, b in zip(*values, strict=True)]
        return [*([number(x) for x in column] for column in values), changes]

    def _widths(self) -> list[str]:
        widths = [dict(zip(x.layers, map(str, x.widths), strict=True)) for x in self._both]
        return [
            change_of_word(*(x.get(layer) for x in widths))
            if all(layer in x for x in widths)
            else next(x[layer] for x in widths if layer in x)
            for layer in self.layers
        ]

    def _several_classes(self) -> bool:
        return any(len(x.classes) > 1 for x in self._both)

    def _same_unit(self, name: str) -> bool:
        return bool(self._both[0][name].unit == self._both[1][name].unit)

    def _unit(self, name: str) -> str:
        return " and ".join(dict.fromkeys(x[name].unit for x in self._both))


def _renamed(profile: EntropyProfile, layers: Sequence[str]) -> EntropyProfile:
    """A profile with other names for the layers, without what is known of single units."""
    return dataclasses.replace(
        profile,
        layers=tuple(layers),
        results={k: dataclasses.replace(x, details={}) for k, x in profile.results.items()},
        baseline=profile.baseline and _renamed(profile.baseline, layers),
    )


def _trend(first: str | None, second: str | None) -> str:
    if first is None or second is None:
        return "new" if first is None else "gone"
    return change_of_word(first, second)


def _options(measure: Measure) -> dict[str, object]:
    """A measure's options as they are saved, of functions their names."""
    return {k: plain(getattr(v, "__name__", v)) for k, v in measure.options.items()}


def _section(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Section:
    """A section of columns of cells."""
    return Section(title, columns, list(zip(*cells, strict=True)))
